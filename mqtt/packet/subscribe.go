package packet

// Subscribe is SUBSCRIBE.
type Subscribe struct {
	ID uint16
	// SubscriptionID is 0 if it is absent.
	SubscriptionID uint32
	UserProperties []Pair
	// Subscriptions are what it asks for, at least one.
	Subscriptions []Subscription
}

// A Subscription is a topic filter and its options.
type Subscription struct {
	// Filter is as it was sent; CheckFilter takes a shared one apart.
	Filter string
	// QoS is the highest that is asked for.
	QoS QoS
	// NoLocal asks for no messages of the client's own.
	NoLocal bool
	// RetainAsPublished asks for RETAIN as it was published.
	RetainAsPublished bool
	RetainHandling    RetainHandling
}

// RetainHandling says when a subscription asks for retained messages.
type RetainHandling byte

// The choices: always, only if the subscription is a new one, never.
const (
	RetainAlways RetainHandling = iota
	RetainIfNew
	RetainNever
)

// The subscription options.
const (
	optionQoS               = 3 << 0
	optionNoLocal           = 1 << 2
	optionRetainAsPublished = 1 << 3
	optionRetainHandling    = 3 << 4
	optionReserved          = 3 << 6
	shiftRetainHandling     = 4
)

// Type is SUBSCRIBE.
func (*Subscribe) Type() Type { return SUBSCRIBE }

func (c *cursor) subscribe() *Subscribe {
	p := &Subscribe{ID: c.identifier("[MQTT-2.2.1-3]")}
	for c.open(); c.next(); {
		switch c.id {
		case propSubscriptionID:
			p.SubscriptionID = c.subscriptionID()
		case propUser:
			p.UserProperties = c.pair(p.UserProperties)
		default:
			c.stranger()
		}
	}
	for len(c.b) > 0 {
		s, shared := c.filter(len(p.Subscriptions))
		p.Subscriptions = append(p.Subscriptions, c.options(s, shared))
	}
	if len(p.Subscriptions) == 0 {
		c.fail(ProtocolError, "[MQTT-3.8.3-2]", "without a topic filter")
	}
	return p
}

// filter reads a topic filter behind n others, and whether it is a shared one.
func (c *cursor) filter(n int) (filter string, shared bool) {
	if n == c.limits.filters() {
		c.fail(QuotaExceeded, "[MQTT 3.8.3]", "with more than %d topic filters", n)
	}
	filter = c.str("topic filter") // [MQTT-3.8.3-1] [MQTT-3.10.3-1]
	if c.err != nil {
		return "", false
	}
	if c.version != V5 {
		c.adopt(judgeShape(filter, c.limits.levels()))
		return filter, false
	}
	group, _, err := judgeFilter(filter, c.limits.levels())
	c.adopt(err)
	return filter, group != ""
}

func (c *cursor) options(filter string, shared bool) Subscription {
	n := c.byte("subscription options")
	switch {
	case c.err != nil:
	case c.version != V5 && n > 2:
		c.fail(MalformedPacket, "[MQTT311-3.8.3-4]", "with requested QoS %d", n)
	case n&optionReserved != 0:
		c.fail(MalformedPacket, "[MQTT-3.8.3-5]", "with reserved subscription options")
	case n&optionQoS == optionQoS:
		c.fail(ProtocolError, "[MQTT 3.8.3.1]", "with QoS 3")
	case n&optionRetainHandling == optionRetainHandling:
		c.fail(ProtocolError, "[MQTT 3.8.3.1]", "with Retain Handling 3")
	case n&optionNoLocal != 0 && shared:
		c.fail(ProtocolError, "[MQTT-3.8.3-4]", "with No Local on a shared subscription")
	}
	return Subscription{
		Filter: filter, QoS: QoS(n & optionQoS), NoLocal: n&optionNoLocal != 0, RetainAsPublished: n&optionRetainAsPublished != 0,
		RetainHandling: RetainHandling(n & optionRetainHandling >> shiftRetainHandling),
	}
}

// Append is Packet's.
func (p *Subscribe) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(SUBSCRIBE)<<4|2, p)
}

func (p *Subscribe) write(w *writer) {
	w.two(p.ID)
	if w.v == V5 {
		at := len(w.b)
		if p.SubscriptionID != 0 {
			w.byte(propSubscriptionID)
			w.variable(int(p.SubscriptionID))
		}
		w.users(p.UserProperties)
		w.measure(at)
	}
	for _, s := range p.Subscriptions {
		w.text(s.Filter)
		w.byte(s.options(w.v))
	}
}

func (s Subscription) options(v Version) byte {
	n := byte(s.QoS)
	if v != V5 {
		return n
	}
	n |= byte(s.RetainHandling) << shiftRetainHandling
	if s.NoLocal {
		n |= optionNoLocal
	}
	if s.RetainAsPublished {
		n |= optionRetainAsPublished
	}
	return n
}

// Suback is SUBACK.
type Suback struct {
	ID             uint16
	ReasonString   string
	UserProperties []Pair
	// Codes has one for each subscription asked for, in order: the QoS granted or
	// the failure, which in MQTT 3.1.1 is always UnspecifiedError.
	Codes []Code
}

// Type is SUBACK.
func (*Suback) Type() Type { return SUBACK }

func (c *cursor) suback() *Suback {
	p := &Suback{ID: c.identifier("[MQTT-2.2.1-6]")}
	p.ReasonString, p.UserProperties = c.reasons()
	for len(c.b) > 0 {
		code := c.code("[MQTT-3.9.3-2]")
		if c.version != V5 && code.Failed() && code != UnspecifiedError {
			c.fail(ProtocolError, "[MQTT311-3.9.3-2]", "with return code 0x%02X", byte(code))
		}
		p.Codes = append(p.Codes, code)
	}
	if len(p.Codes) == 0 {
		c.fail(MalformedPacket, "[MQTT-3.8.4-6]", "without a reason code")
	}
	return p
}

// Append is Packet's.
func (p *Suback) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(SUBACK)<<4, p)
}

func (p *Suback) write(w *writer) {
	w.two(p.ID)
	if w.v == V5 {
		at := len(w.b)
		w.answer(p.ReasonString, p.UserProperties)
		w.measure(at)
	}
	for _, code := range p.Codes {
		if w.v != V5 && code.Failed() {
			code = UnspecifiedError // [MQTT311-3.9.3-2]
		}
		w.byte(byte(code))
	}
}

// Unsubscribe is UNSUBSCRIBE.
type Unsubscribe struct {
	ID             uint16
	UserProperties []Pair
	// Filters are as they were sent, at least one.
	Filters []string
}

// Type is UNSUBSCRIBE.
func (*Unsubscribe) Type() Type { return UNSUBSCRIBE }

func (c *cursor) unsubscribe() *Unsubscribe {
	p := &Unsubscribe{ID: c.identifier("[MQTT-2.2.1-3]")}
	for c.open(); c.next(); {
		if c.id != propUser {
			c.stranger()
			break
		}
		p.UserProperties = c.pair(p.UserProperties)
	}
	for len(c.b) > 0 {
		filter, _ := c.filter(len(p.Filters))
		p.Filters = append(p.Filters, filter)
	}
	if len(p.Filters) == 0 {
		c.fail(ProtocolError, "[MQTT-3.10.3-2]", "without a topic filter")
	}
	return p
}

// Append is Packet's.
func (p *Unsubscribe) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(UNSUBSCRIBE)<<4|2, p)
}

func (p *Unsubscribe) write(w *writer) {
	w.two(p.ID)
	if w.v == V5 {
		at := len(w.b)
		w.users(p.UserProperties)
		w.measure(at)
	}
	for _, filter := range p.Filters {
		w.text(filter)
	}
}

// Unsuback is UNSUBACK.
type Unsuback struct {
	ID             uint16
	ReasonString   string
	UserProperties []Pair
	// Codes has one for each filter, in order. MQTT 3.1.1 has none.
	Codes []Code
}

// Type is UNSUBACK.
func (*Unsuback) Type() Type { return UNSUBACK }

func (c *cursor) unsuback() *Unsuback {
	p := &Unsuback{ID: c.identifier("[MQTT-2.2.1-6]")}
	if c.version != V5 {
		return p
	}
	p.ReasonString, p.UserProperties = c.reasons()
	for len(c.b) > 0 {
		p.Codes = append(p.Codes, c.code("[MQTT-3.11.3-2]"))
	}
	if len(p.Codes) == 0 {
		c.fail(MalformedPacket, "[MQTT 3.11.3]", "without a reason code")
	}
	return p
}

// Append is Packet's.
func (p *Unsuback) Append(dst []byte, v Version, max int) ([]byte, error) {
	return assemble(dst, v, max, byte(UNSUBACK)<<4, p)
}

func (p *Unsuback) write(w *writer) {
	w.two(p.ID)
	if w.v != V5 {
		return
	}
	at := len(w.b)
	w.answer(p.ReasonString, p.UserProperties)
	w.measure(at)
	for _, code := range p.Codes {
		w.byte(byte(code))
	}
}
