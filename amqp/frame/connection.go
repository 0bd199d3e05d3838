package frame

// ConnectionStart is the first that a server sends.
type ConnectionStart struct {
	VersionMajor     uint8
	VersionMinor     uint8
	ServerProperties Table
	Mechanisms       string
	Locales          string
}

// ID implements Method.
func (*ConnectionStart) ID() ID       { return ClassConnection<<16 | 10 }
func (*ConnectionStart) name() string { return "connection.start" }
func (m *ConnectionStart) code(c coder) coder {
	c.octet(&m.VersionMajor)
	c.octet(&m.VersionMinor)
	c.table(&m.ServerProperties)
	c.long(&m.Mechanisms)
	c.long(&m.Locales)
	return c
}

// ConnectionStartOk answers ConnectionStart with the client's credentials, which are secret.
type ConnectionStartOk struct {
	ClientProperties Table
	Mechanism        string
	Response         Secret
	Locale           string
}

// ID implements Method.
func (*ConnectionStartOk) ID() ID       { return ClassConnection<<16 | 11 }
func (*ConnectionStartOk) name() string { return "connection.start-ok" }
func (m *ConnectionStartOk) code(c coder) coder {
	c.table(&m.ClientProperties)
	c.short(&m.Mechanism)
	c.long((*string)(&m.Response))
	c.short(&m.Locale)
	return c
}

// ConnectionSecure is what a mechanism asks.
type ConnectionSecure struct {
	Challenge string
}

// ID implements Method.
func (*ConnectionSecure) ID() ID       { return ClassConnection<<16 | 20 }
func (*ConnectionSecure) name() string { return "connection.secure" }
func (m *ConnectionSecure) code(c coder) coder {
	c.long(&m.Challenge)
	return c
}

// ConnectionSecureOk answers ConnectionSecure; it is secret.
type ConnectionSecureOk struct {
	Response Secret
}

// ID implements Method.
func (*ConnectionSecureOk) ID() ID       { return ClassConnection<<16 | 21 }
func (*ConnectionSecureOk) name() string { return "connection.secure-ok" }
func (m *ConnectionSecureOk) code(c coder) coder {
	c.long((*string)(&m.Response))
	return c
}

// ConnectionTune is what a server proposes.
type ConnectionTune struct {
	ChannelMax uint16
	FrameMax   uint32
	Heartbeat  uint16
}

// ID implements Method.
func (*ConnectionTune) ID() ID       { return ClassConnection<<16 | 30 }
func (*ConnectionTune) name() string { return "connection.tune" }
func (m *ConnectionTune) code(c coder) coder {
	c.two(&m.ChannelMax)
	c.four(&m.FrameMax)
	c.two(&m.Heartbeat)
	return c
}

// ConnectionTuneOk is what the client takes of it.
type ConnectionTuneOk struct {
	ChannelMax uint16
	FrameMax   uint32
	Heartbeat  uint16
}

// ID implements Method.
func (*ConnectionTuneOk) ID() ID       { return ClassConnection<<16 | 31 }
func (*ConnectionTuneOk) name() string { return "connection.tune-ok" }
func (m *ConnectionTuneOk) code(c coder) coder {
	c.two(&m.ChannelMax)
	c.four(&m.FrameMax)
	c.two(&m.Heartbeat)
	return c
}

// ConnectionOpen opens a virtual host.
type ConnectionOpen struct {
	VirtualHost string
}

// ID implements Method.
func (*ConnectionOpen) ID() ID       { return ClassConnection<<16 | 40 }
func (*ConnectionOpen) name() string { return "connection.open" }
func (m *ConnectionOpen) code(c coder) coder {
	var reserved string
	var reserved2 bool
	c.short(&m.VirtualHost)
	c.short(&reserved)
	c.bits(&reserved2)
	return c
}

// ConnectionOpenOk answers ConnectionOpen.
type ConnectionOpenOk struct{}

// ID implements Method.
func (*ConnectionOpenOk) ID() ID       { return ClassConnection<<16 | 41 }
func (*ConnectionOpenOk) name() string { return "connection.open-ok" }
func (*ConnectionOpenOk) code(c coder) coder {
	var reserved string
	c.short(&reserved)
	return c
}

// ConnectionClose ends a connection, and says why.
type ConnectionClose struct {
	ReplyCode Code
	ReplyText string
	ClassID   uint16
	MethodID  uint16
}

// ID implements Method.
func (*ConnectionClose) ID() ID       { return ClassConnection<<16 | 50 }
func (*ConnectionClose) name() string { return "connection.close" }
func (m *ConnectionClose) code(c coder) coder {
	c.code(&m.ReplyCode)
	c.short(&m.ReplyText)
	c.two(&m.ClassID)
	c.two(&m.MethodID)
	return c
}

// ConnectionCloseOk answers ConnectionClose, and nothing comes after it.
type ConnectionCloseOk struct{}

// ID implements Method.
func (*ConnectionCloseOk) ID() ID             { return ClassConnection<<16 | 51 }
func (*ConnectionCloseOk) name() string       { return "connection.close-ok" }
func (*ConnectionCloseOk) code(c coder) coder { return c }

// ConnectionBlocked says that nothing published is read for now.
type ConnectionBlocked struct {
	Reason string
}

// ID implements Method.
func (*ConnectionBlocked) ID() ID       { return ClassConnection<<16 | 60 }
func (*ConnectionBlocked) name() string { return "connection.blocked" }
func (m *ConnectionBlocked) code(c coder) coder {
	c.short(&m.Reason)
	return c
}

// ConnectionUnblocked ends ConnectionBlocked.
type ConnectionUnblocked struct{}

// ID implements Method.
func (*ConnectionUnblocked) ID() ID             { return ClassConnection<<16 | 61 }
func (*ConnectionUnblocked) name() string       { return "connection.unblocked" }
func (*ConnectionUnblocked) code(c coder) coder { return c }

// ConnectionUpdateSecret has a new secret for a connection that is open.
type ConnectionUpdateSecret struct {
	NewSecret Secret
	Reason    string
}

// ID implements Method.
func (*ConnectionUpdateSecret) ID() ID       { return ClassConnection<<16 | 70 }
func (*ConnectionUpdateSecret) name() string { return "connection.update-secret" }
func (m *ConnectionUpdateSecret) code(c coder) coder {
	c.long((*string)(&m.NewSecret))
	c.short(&m.Reason)
	return c
}

// ConnectionUpdateSecretOk answers ConnectionUpdateSecret.
type ConnectionUpdateSecretOk struct{}

// ID implements Method.
func (*ConnectionUpdateSecretOk) ID() ID             { return ClassConnection<<16 | 71 }
func (*ConnectionUpdateSecretOk) name() string       { return "connection.update-secret-ok" }
func (*ConnectionUpdateSecretOk) code(c coder) coder { return c }
