package frame

// ExchangeDeclare makes an exchange, or asks for it.
type ExchangeDeclare struct {
	Exchange   string
	Type       string
	Passive    bool
	Durable    bool
	AutoDelete bool
	Internal   bool
	NoWait     bool
	Arguments  Table
}

// ID implements Method.
func (*ExchangeDeclare) ID() ID       { return ClassExchange<<16 | 10 }
func (*ExchangeDeclare) name() string { return "exchange.declare" }
func (m *ExchangeDeclare) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Exchange)
	c.short(&m.Type)
	c.bits(&m.Passive, &m.Durable, &m.AutoDelete, &m.Internal, &m.NoWait)
	c.table(&m.Arguments)
	return c
}

// ExchangeDeclareOk answers ExchangeDeclare.
type ExchangeDeclareOk struct{}

// ID implements Method.
func (*ExchangeDeclareOk) ID() ID             { return ClassExchange<<16 | 11 }
func (*ExchangeDeclareOk) name() string       { return "exchange.declare-ok" }
func (*ExchangeDeclareOk) code(c coder) coder { return c }

// ExchangeDelete removes an exchange.
type ExchangeDelete struct {
	Exchange string
	IfUnused bool
	NoWait   bool
}

// ID implements Method.
func (*ExchangeDelete) ID() ID       { return ClassExchange<<16 | 20 }
func (*ExchangeDelete) name() string { return "exchange.delete" }
func (m *ExchangeDelete) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Exchange)
	c.bits(&m.IfUnused, &m.NoWait)
	return c
}

// ExchangeDeleteOk answers ExchangeDelete.
type ExchangeDeleteOk struct{}

// ID implements Method.
func (*ExchangeDeleteOk) ID() ID             { return ClassExchange<<16 | 21 }
func (*ExchangeDeleteOk) name() string       { return "exchange.delete-ok" }
func (*ExchangeDeleteOk) code(c coder) coder { return c }

// ExchangeBind binds an exchange to another.
type ExchangeBind struct {
	Destination string
	Source      string
	RoutingKey  string
	NoWait      bool
	Arguments   Table
}

// ID implements Method.
func (*ExchangeBind) ID() ID       { return ClassExchange<<16 | 30 }
func (*ExchangeBind) name() string { return "exchange.bind" }
func (m *ExchangeBind) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Destination)
	c.short(&m.Source)
	c.short(&m.RoutingKey)
	c.bits(&m.NoWait)
	c.table(&m.Arguments)
	return c
}

// ExchangeBindOk answers ExchangeBind.
type ExchangeBindOk struct{}

// ID implements Method.
func (*ExchangeBindOk) ID() ID             { return ClassExchange<<16 | 31 }
func (*ExchangeBindOk) name() string       { return "exchange.bind-ok" }
func (*ExchangeBindOk) code(c coder) coder { return c }

// ExchangeUnbind undoes ExchangeBind.
type ExchangeUnbind struct {
	Destination string
	Source      string
	RoutingKey  string
	NoWait      bool
	Arguments   Table
}

// ID implements Method.
func (*ExchangeUnbind) ID() ID       { return ClassExchange<<16 | 40 }
func (*ExchangeUnbind) name() string { return "exchange.unbind" }
func (m *ExchangeUnbind) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Destination)
	c.short(&m.Source)
	c.short(&m.RoutingKey)
	c.bits(&m.NoWait)
	c.table(&m.Arguments)
	return c
}

// ExchangeUnbindOk answers ExchangeUnbind; its number is 51.
type ExchangeUnbindOk struct{}

// ID implements Method.
func (*ExchangeUnbindOk) ID() ID             { return ClassExchange<<16 | 51 }
func (*ExchangeUnbindOk) name() string       { return "exchange.unbind-ok" }
func (*ExchangeUnbindOk) code(c coder) coder { return c }
