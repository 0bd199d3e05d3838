package frame

// QueueDeclare makes a queue, or asks for it.
type QueueDeclare struct {
	Queue      string
	Passive    bool
	Durable    bool
	Exclusive  bool
	AutoDelete bool
	NoWait     bool
	Arguments  Table
}

// ID implements Method.
func (*QueueDeclare) ID() ID       { return ClassQueue<<16 | 10 }
func (*QueueDeclare) name() string { return "queue.declare" }
func (m *QueueDeclare) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.bits(&m.Passive, &m.Durable, &m.Exclusive, &m.AutoDelete, &m.NoWait)
	c.table(&m.Arguments)
	return c
}

// QueueDeclareOk answers QueueDeclare.
type QueueDeclareOk struct {
	Queue         string
	MessageCount  uint32
	ConsumerCount uint32
}

// ID implements Method.
func (*QueueDeclareOk) ID() ID       { return ClassQueue<<16 | 11 }
func (*QueueDeclareOk) name() string { return "queue.declare-ok" }
func (m *QueueDeclareOk) code(c coder) coder {
	c.short(&m.Queue)
	c.four(&m.MessageCount)
	c.four(&m.ConsumerCount)
	return c
}

// QueueBind binds a queue to an exchange.
type QueueBind struct {
	Queue      string
	Exchange   string
	RoutingKey string
	NoWait     bool
	Arguments  Table
}

// ID implements Method.
func (*QueueBind) ID() ID       { return ClassQueue<<16 | 20 }
func (*QueueBind) name() string { return "queue.bind" }
func (m *QueueBind) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.short(&m.Exchange)
	c.short(&m.RoutingKey)
	c.bits(&m.NoWait)
	c.table(&m.Arguments)
	return c
}

// QueueBindOk answers QueueBind.
type QueueBindOk struct{}

// ID implements Method.
func (*QueueBindOk) ID() ID             { return ClassQueue<<16 | 21 }
func (*QueueBindOk) name() string       { return "queue.bind-ok" }
func (*QueueBindOk) code(c coder) coder { return c }

// QueuePurge empties a queue.
type QueuePurge struct {
	Queue  string
	NoWait bool
}

// ID implements Method.
func (*QueuePurge) ID() ID       { return ClassQueue<<16 | 30 }
func (*QueuePurge) name() string { return "queue.purge" }
func (m *QueuePurge) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.bits(&m.NoWait)
	return c
}

// QueuePurgeOk answers QueuePurge.
type QueuePurgeOk struct {
	MessageCount uint32
}

// ID implements Method.
func (*QueuePurgeOk) ID() ID       { return ClassQueue<<16 | 31 }
func (*QueuePurgeOk) name() string { return "queue.purge-ok" }
func (m *QueuePurgeOk) code(c coder) coder {
	c.four(&m.MessageCount)
	return c
}

// QueueDelete removes a queue.
type QueueDelete struct {
	Queue    string
	IfUnused bool
	IfEmpty  bool
	NoWait   bool
}

// ID implements Method.
func (*QueueDelete) ID() ID       { return ClassQueue<<16 | 40 }
func (*QueueDelete) name() string { return "queue.delete" }
func (m *QueueDelete) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.bits(&m.IfUnused, &m.IfEmpty, &m.NoWait)
	return c
}

// QueueDeleteOk answers QueueDelete.
type QueueDeleteOk struct {
	MessageCount uint32
}

// ID implements Method.
func (*QueueDeleteOk) ID() ID       { return ClassQueue<<16 | 41 }
func (*QueueDeleteOk) name() string { return "queue.delete-ok" }
func (m *QueueDeleteOk) code(c coder) coder {
	c.four(&m.MessageCount)
	return c
}

// QueueUnbind undoes QueueBind.
type QueueUnbind struct {
	Queue      string
	Exchange   string
	RoutingKey string
	Arguments  Table
}

// ID implements Method.
func (*QueueUnbind) ID() ID       { return ClassQueue<<16 | 50 }
func (*QueueUnbind) name() string { return "queue.unbind" }
func (m *QueueUnbind) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.short(&m.Exchange)
	c.short(&m.RoutingKey)
	c.table(&m.Arguments)
	return c
}

// QueueUnbindOk answers QueueUnbind.
type QueueUnbindOk struct{}

// ID implements Method.
func (*QueueUnbindOk) ID() ID             { return ClassQueue<<16 | 51 }
func (*QueueUnbindOk) name() string       { return "queue.unbind-ok" }
func (*QueueUnbindOk) code(c coder) coder { return c }
