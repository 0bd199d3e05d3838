package frame

// BasicQos says how much a client is sent before it acknowledges.
type BasicQos struct {
	PrefetchSize  uint32
	PrefetchCount uint16
	Global        bool
}

// ID implements Method.
func (*BasicQos) ID() ID       { return ClassBasic<<16 | 10 }
func (*BasicQos) name() string { return "basic.qos" }
func (m *BasicQos) code(c coder) coder {
	c.four(&m.PrefetchSize)
	c.two(&m.PrefetchCount)
	c.bits(&m.Global)
	return c
}

// BasicQosOk answers BasicQos.
type BasicQosOk struct{}

// ID implements Method.
func (*BasicQosOk) ID() ID             { return ClassBasic<<16 | 11 }
func (*BasicQosOk) name() string       { return "basic.qos-ok" }
func (*BasicQosOk) code(c coder) coder { return c }

// BasicConsume starts a consumer of a queue.
type BasicConsume struct {
	Queue       string
	ConsumerTag string
	NoLocal     bool
	NoAck       bool
	Exclusive   bool
	NoWait      bool
	Arguments   Table
}

// ID implements Method.
func (*BasicConsume) ID() ID       { return ClassBasic<<16 | 20 }
func (*BasicConsume) name() string { return "basic.consume" }
func (m *BasicConsume) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.short(&m.ConsumerTag)
	c.bits(&m.NoLocal, &m.NoAck, &m.Exclusive, &m.NoWait)
	c.table(&m.Arguments)
	return c
}

// BasicConsumeOk answers BasicConsume.
type BasicConsumeOk struct {
	ConsumerTag string
}

// ID implements Method.
func (*BasicConsumeOk) ID() ID       { return ClassBasic<<16 | 21 }
func (*BasicConsumeOk) name() string { return "basic.consume-ok" }
func (m *BasicConsumeOk) code(c coder) coder {
	c.short(&m.ConsumerTag)
	return c
}

// BasicCancel ends a consumer; both sides send it.
type BasicCancel struct {
	ConsumerTag string
	NoWait      bool
}

// ID implements Method.
func (*BasicCancel) ID() ID       { return ClassBasic<<16 | 30 }
func (*BasicCancel) name() string { return "basic.cancel" }
func (m *BasicCancel) code(c coder) coder {
	c.short(&m.ConsumerTag)
	c.bits(&m.NoWait)
	return c
}

// BasicCancelOk answers BasicCancel.
type BasicCancelOk struct {
	ConsumerTag string
}

// ID implements Method.
func (*BasicCancelOk) ID() ID       { return ClassBasic<<16 | 31 }
func (*BasicCancelOk) name() string { return "basic.cancel-ok" }
func (m *BasicCancelOk) code(c coder) coder {
	c.short(&m.ConsumerTag)
	return c
}

// BasicPublish is a message for an exchange; its content follows.
type BasicPublish struct {
	Exchange   string
	RoutingKey string
	Mandatory  bool
	Immediate  bool
}

// ID implements Method.
func (*BasicPublish) ID() ID       { return ClassBasic<<16 | 40 }
func (*BasicPublish) name() string { return "basic.publish" }
func (m *BasicPublish) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.exchange(&m.Exchange)
	c.key(&m.RoutingKey)
	c.bits(&m.Mandatory, &m.Immediate)
	return c
}

// BasicReturn is a message that could not be routed; its content follows.
type BasicReturn struct {
	ReplyCode  Code
	ReplyText  string
	Exchange   string
	RoutingKey string
}

// ID implements Method.
func (*BasicReturn) ID() ID       { return ClassBasic<<16 | 50 }
func (*BasicReturn) name() string { return "basic.return" }
func (m *BasicReturn) code(c coder) coder {
	c.code(&m.ReplyCode)
	c.short(&m.ReplyText)
	c.exchange(&m.Exchange)
	c.key(&m.RoutingKey)
	return c
}

// BasicDeliver is a message for a consumer; its content follows.
type BasicDeliver struct {
	ConsumerTag string
	DeliveryTag uint64
	Redelivered bool
	Exchange    string
	RoutingKey  string
}

// ID implements Method.
func (*BasicDeliver) ID() ID       { return ClassBasic<<16 | 60 }
func (*BasicDeliver) name() string { return "basic.deliver" }
func (m *BasicDeliver) code(c coder) coder {
	c.short(&m.ConsumerTag)
	c.eight(&m.DeliveryTag)
	c.bits(&m.Redelivered)
	c.exchange(&m.Exchange)
	c.key(&m.RoutingKey)
	return c
}

// BasicGet asks for one message of a queue.
type BasicGet struct {
	Queue string
	NoAck bool
}

// ID implements Method.
func (*BasicGet) ID() ID       { return ClassBasic<<16 | 70 }
func (*BasicGet) name() string { return "basic.get" }
func (m *BasicGet) code(c coder) coder {
	var reserved uint16
	c.two(&reserved)
	c.short(&m.Queue)
	c.bits(&m.NoAck)
	return c
}

// BasicGetOk answers BasicGet; its content follows.
type BasicGetOk struct {
	DeliveryTag  uint64
	Redelivered  bool
	Exchange     string
	RoutingKey   string
	MessageCount uint32
}

// ID implements Method.
func (*BasicGetOk) ID() ID       { return ClassBasic<<16 | 71 }
func (*BasicGetOk) name() string { return "basic.get-ok" }
func (m *BasicGetOk) code(c coder) coder {
	c.eight(&m.DeliveryTag)
	c.bits(&m.Redelivered)
	c.exchange(&m.Exchange)
	c.key(&m.RoutingKey)
	c.four(&m.MessageCount)
	return c
}

// BasicGetEmpty answers BasicGet of an empty queue.
type BasicGetEmpty struct{}

// ID implements Method.
func (*BasicGetEmpty) ID() ID       { return ClassBasic<<16 | 72 }
func (*BasicGetEmpty) name() string { return "basic.get-empty" }
func (*BasicGetEmpty) code(c coder) coder {
	var reserved string
	c.short(&reserved)
	return c
}

// BasicAck acknowledges messages; a server confirms with it.
type BasicAck struct {
	DeliveryTag uint64
	Multiple    bool
}

// ID implements Method.
func (*BasicAck) ID() ID       { return ClassBasic<<16 | 80 }
func (*BasicAck) name() string { return "basic.ack" }
func (m *BasicAck) code(c coder) coder {
	c.eight(&m.DeliveryTag)
	c.bits(&m.Multiple)
	return c
}

// BasicReject refuses a message.
type BasicReject struct {
	DeliveryTag uint64
	Requeue     bool
}

// ID implements Method.
func (*BasicReject) ID() ID       { return ClassBasic<<16 | 90 }
func (*BasicReject) name() string { return "basic.reject" }
func (m *BasicReject) code(c coder) coder {
	c.eight(&m.DeliveryTag)
	c.bits(&m.Requeue)
	return c
}

// BasicRecoverAsync is BasicRecover without an answer.
type BasicRecoverAsync struct {
	Requeue bool
}

// ID implements Method.
func (*BasicRecoverAsync) ID() ID       { return ClassBasic<<16 | 100 }
func (*BasicRecoverAsync) name() string { return "basic.recover-async" }
func (m *BasicRecoverAsync) code(c coder) coder {
	c.bits(&m.Requeue)
	return c
}

// BasicRecover gives back what is not acknowledged.
type BasicRecover struct {
	Requeue bool
}

// ID implements Method.
func (*BasicRecover) ID() ID       { return ClassBasic<<16 | 110 }
func (*BasicRecover) name() string { return "basic.recover" }
func (m *BasicRecover) code(c coder) coder {
	c.bits(&m.Requeue)
	return c
}

// BasicRecoverOk answers BasicRecover.
type BasicRecoverOk struct{}

// ID implements Method.
func (*BasicRecoverOk) ID() ID             { return ClassBasic<<16 | 111 }
func (*BasicRecoverOk) name() string       { return "basic.recover-ok" }
func (*BasicRecoverOk) code(c coder) coder { return c }

// BasicNack refuses messages; a server says with it that it did not take some.
type BasicNack struct {
	DeliveryTag uint64
	Multiple    bool
	Requeue     bool
}

// ID implements Method.
func (*BasicNack) ID() ID       { return ClassBasic<<16 | 120 }
func (*BasicNack) name() string { return "basic.nack" }
func (m *BasicNack) code(c coder) coder {
	c.eight(&m.DeliveryTag)
	c.bits(&m.Multiple, &m.Requeue)
	return c
}
