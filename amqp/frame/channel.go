package frame

// ChannelOpen opens a channel.
type ChannelOpen struct{}

// ID implements Method.
func (*ChannelOpen) ID() ID       { return ClassChannel<<16 | 10 }
func (*ChannelOpen) name() string { return "channel.open" }
func (*ChannelOpen) code(c coder) coder {
	var reserved string
	c.short(&reserved)
	return c
}

// ChannelOpenOk answers ChannelOpen.
type ChannelOpenOk struct{}

// ID implements Method.
func (*ChannelOpenOk) ID() ID       { return ClassChannel<<16 | 11 }
func (*ChannelOpenOk) name() string { return "channel.open-ok" }
func (*ChannelOpenOk) code(c coder) coder {
	var reserved string
	c.long(&reserved)
	return c
}

// ChannelFlow stops and starts what goes to its sender.
type ChannelFlow struct {
	Active bool
}

// ID implements Method.
func (*ChannelFlow) ID() ID       { return ClassChannel<<16 | 20 }
func (*ChannelFlow) name() string { return "channel.flow" }
func (m *ChannelFlow) code(c coder) coder {
	c.bits(&m.Active)
	return c
}

// ChannelFlowOk answers ChannelFlow.
type ChannelFlowOk struct {
	Active bool
}

// ID implements Method.
func (*ChannelFlowOk) ID() ID       { return ClassChannel<<16 | 21 }
func (*ChannelFlowOk) name() string { return "channel.flow-ok" }
func (m *ChannelFlowOk) code(c coder) coder {
	c.bits(&m.Active)
	return c
}

// ChannelClose ends a channel, and says why.
type ChannelClose struct {
	ReplyCode Code
	ReplyText string
	ClassID   uint16
	MethodID  uint16
}

// ID implements Method.
func (*ChannelClose) ID() ID       { return ClassChannel<<16 | 40 }
func (*ChannelClose) name() string { return "channel.close" }
func (m *ChannelClose) code(c coder) coder {
	c.code(&m.ReplyCode)
	c.short(&m.ReplyText)
	c.two(&m.ClassID)
	c.two(&m.MethodID)
	return c
}

// ChannelCloseOk answers ChannelClose.
type ChannelCloseOk struct{}

// ID implements Method.
func (*ChannelCloseOk) ID() ID             { return ClassChannel<<16 | 41 }
func (*ChannelCloseOk) name() string       { return "channel.close-ok" }
func (*ChannelCloseOk) code(c coder) coder { return c }
