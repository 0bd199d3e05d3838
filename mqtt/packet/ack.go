package packet

// Ack is PUBACK, PUBREC, PUBREL or PUBCOMP. When a Reader returned it, it is valid
// until the next call of Next.
type Ack struct {
	Kind Type
	// ID is the identifier of the PUBLISH.
	ID uint16
	// Code is not written in MQTT 3.1.1, which has no refusal.
	Code           Code
	ReasonString   string
	UserProperties []Pair
}

// Type is the Kind.
func (a *Ack) Type() Type { return a.Kind }

func (c *cursor) readAck() *Ack {
	a := c.ack
	if a == nil {
		a = new(Ack)
	}
	*a = Ack{Kind: c.kind, ID: c.identifier("[MQTT-2.2.1-5]")}
	if c.version != V5 || len(c.b) == 0 {
		return a
	}
	switch c.kind {
	case PUBACK:
		a.Code = c.code("[MQTT-3.4.2-1]")
	case PUBREC:
		a.Code = c.code("[MQTT-3.5.2-1]")
	case PUBREL:
		a.Code = c.code("[MQTT-3.6.2-1]")
	default:
		a.Code = c.code("[MQTT-3.7.2-1]")
	}
	if len(c.b) > 0 {
		a.ReasonString, a.UserProperties = c.reasons()
	}
	return a
}

// reasons reads the properties of a packet that has only a Reason String and User
// Properties.
func (c *cursor) reasons() (reason string, pairs []Pair) {
	for c.open(); c.next(); {
		switch c.id {
		case propReasonString:
			reason = c.str("Reason String")
		case propUser:
			pairs = c.pair(pairs)
		default:
			c.stranger()
		}
	}
	return reason, pairs
}

// Append is Packet's. It allocates nothing if dst has room and the packet has
// neither a Reason String nor User Properties.
func (a *Ack) Append(dst []byte, v Version, max int) ([]byte, error) {
	if a.ReasonString != "" || len(a.UserProperties) > 0 {
		long := *a // so that a itself need not be on the heap
		return assemble(dst, v, max, long.first(), &long)
	}
	w := writer{b: append(dst, a.first(), 2), v: v}
	w.two(a.ID)
	if v == V5 && a.Code != Success {
		w.b[len(dst)+1] = 3
		w.byte(byte(a.Code))
	}
	if max > 0 && len(w.b)-len(dst) > max {
		return dst, ErrSize
	}
	return w.b, nil
}

func (a *Ack) first() byte {
	if a.Kind == PUBREL {
		return byte(PUBREL)<<4 | 2
	}
	return byte(a.Kind) << 4
}

func (a *Ack) write(w *writer) {
	w.two(a.ID)
	if w.v == V5 {
		w.outcome(a.Code, func() { w.answer(a.ReasonString, a.UserProperties) })
	}
}

// outcome writes a reason code and the properties of rest, in the shortest form.
func (w *writer) outcome(code Code, rest func()) {
	at := len(w.b)
	w.byte(byte(code))
	rest()
	switch {
	case len(w.b) > at+1:
		w.measure(at + 1)
	case code == Success:
		w.b = w.b[:at]
	}
}
