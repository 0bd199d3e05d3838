package packet

// Auth is AUTH, of MQTT 5.0.
type Auth struct {
	Code Code
	// Method is empty only in the shortest form of all, without any field, which
	// is a server's.
	Method string
	// Data is nil if it is absent.
	Data           Secret
	ReasonString   string
	UserProperties []Pair
}

// Type is AUTH.
func (*Auth) Type() Type { return AUTH }

func (c *cursor) auth() *Auth {
	p := &Auth{}
	if len(c.b) == 0 { // the shortest form, of success
		if c.from == Client {
			c.fail(ProtocolError, "[MQTT-3.15.2-1]", "with reason code 0x00 from a client")
		}
		return p
	}
	p.Code = c.code("[MQTT-3.15.2-1]")
	for c.open(); c.next(); {
		switch c.id {
		case propAuthMethod:
			p.Method = c.authMethod()
		case propAuthData:
			p.Data = c.data("Authentication Data")
		case propReasonString:
			p.ReasonString = c.str("Reason String")
		case propUser:
			p.UserProperties = c.pair(p.UserProperties)
		default:
			c.stranger()
		}
	}
	if p.Method == "" {
		c.fail(ProtocolError, "[MQTT 3.15.2.2.2]", "without an Authentication Method") // [MQTT-4.12.0-5]
	}
	return p
}

// Append is Packet's.
func (p *Auth) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(AUTH)<<4, p)
}

func (p *Auth) write(w *writer) {
	w.outcome(p.Code, func() {
		w.propText(propAuthMethod, p.Method)
		w.propData(propAuthData, p.Data)
		w.answer(p.ReasonString, p.UserProperties)
	})
}
