package packet

// Disconnect is DISCONNECT. In MQTT 3.1.1 only a client sends it, and it has no
// fields.
type Disconnect struct {
	Code Code
	// SessionExpiry is in seconds, the client's to send; nil: that of CONNECT.
	SessionExpiry   *uint32
	ReasonString    string
	UserProperties  []Pair
	ServerReference string
}

// Type is DISCONNECT.
func (*Disconnect) Type() Type { return DISCONNECT }

func (c *cursor) disconnect() *Disconnect {
	p := &Disconnect{}
	if c.version != V5 || len(c.b) == 0 {
		return p
	}
	p.Code = c.code("[MQTT-3.14.2-1]")
	if len(c.b) == 0 {
		return p
	}
	for c.open(); c.next(); {
		switch c.id {
		case propSessionExpiry:
			if c.from == Server {
				c.fail(ProtocolError, "[MQTT-3.14.2-2]", "with a Session Expiry Interval from a server")
			}
			p.SessionExpiry = new(c.four("Session Expiry Interval"))
		case propReasonString:
			p.ReasonString = c.str("Reason String")
		case propUser:
			p.UserProperties = c.pair(p.UserProperties)
		case propServerReference:
			p.ServerReference = c.str("Server Reference")
		default:
			c.stranger()
		}
	}
	return p
}

// Append is Packet's.
func (p *Disconnect) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(DISCONNECT)<<4, p)
}

func (p *Disconnect) write(w *writer) {
	if w.v != V5 {
		return
	}
	w.outcome(p.Code, func() {
		w.propPointer(propSessionExpiry, p.SessionExpiry)
		w.answer(p.ReasonString, p.UserProperties)
		w.propText(propServerReference, p.ServerReference)
	})
}
