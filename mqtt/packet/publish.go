package packet

import "slices"

// Format says what a payload is, as its sender indicates.
type Format byte

// The formats. Unstated is also what a receiver may take for Bytes.
const (
	Unstated Format = iota
	Bytes
	Text
)

// A Message is what a PUBLISH and a will have in common.
type Message struct {
	// Topic is a topic name. In MQTT 5.0 it may be empty in a PUBLISH that has a
	// TopicAlias.
	Topic []byte
	// Payload is any bytes, or none. They are not compared with the Format.
	Payload []byte
	QoS     QoS
	Retain  bool

	Format Format
	// Expires says that there is an Expiry, in seconds.
	Expires bool
	Expiry  uint32
	// ContentType, ResponseTopic and CorrelationData are nil if they are absent.
	// A ResponseTopic is a topic name.
	ContentType, ResponseTopic, CorrelationData []byte
	UserProperties                              []Pair
}

// Publish is PUBLISH. When a Reader returned it, it is valid until the next call
// of Next: it is the Reader's own, and its texts and payload are in the buffer.
type Publish struct {
	Message
	Dup bool
	// ID is the packet identifier, 0 with QoS 0.
	ID uint16
	// TopicAlias is 0 if it is absent.
	TopicAlias uint16
	// SubscriptionIDs are the server's to send.
	SubscriptionIDs []uint32
}

// The flags of PUBLISH.
const (
	flagRetain = 1 << 0
	flagQoS    = 3 << 1
	flagDup    = 1 << 3
	shiftQoS   = 1
)

// Type is PUBLISH.
func (*Publish) Type() Type { return PUBLISH }

func (c *cursor) readPublish() *Publish {
	p := c.publish
	if p == nil {
		p = new(Publish)
	}
	*p = Publish{Dup: c.flags&flagDup != 0}
	p.QoS, p.Retain = QoS(c.flags&flagQoS>>shiftQoS), c.flags&flagRetain != 0
	p.Topic = c.topic("topic name", c.version == V5) // [MQTT-3.3.2-1] [MQTT-3.3.2-2]
	switch {
	case p.QoS == 0: // [MQTT-2.2.1-2]
	case c.from == Server:
		p.ID = c.identifier("[MQTT-2.2.1-4]")
	default:
		p.ID = c.identifier("[MQTT-2.2.1-3]")
	}
	for c.open(); c.next(); {
		switch c.id {
		case propTopicAlias:
			p.TopicAlias = c.two("Topic Alias")
			if p.TopicAlias == 0 {
				c.fail(TopicAliasInvalid, "[MQTT-3.3.2-8]", "with Topic Alias 0")
			}
		case propSubscriptionID:
			if c.from == Client {
				c.fail(ProtocolError, "[MQTT-3.3.4-6]", "with a Subscription Identifier from a client")
			}
			p.SubscriptionIDs = c.lendID(p.SubscriptionIDs, c.subscriptionID())
		default:
			c.message(&p.Message)
		}
	}
	if c.err == nil && len(p.Topic) == 0 && p.TopicAlias == 0 {
		c.fail(ProtocolError, "[MQTT 3.3.2.3.4]", "with neither a topic name nor a Topic Alias")
	}
	p.Payload, c.b = c.b, nil
	return p
}

// lendID is ids and one more, in memory of the Reader if there is one.
func (c *cursor) lendID(ids []uint32, id uint32) []uint32 {
	if c.publish == nil {
		return append(ids, id)
	}
	if ids == nil {
		ids = c.lentIDs[:0]
	}
	c.lentIDs = append(ids, id)
	return c.lentIDs
}

// message reads a property of m, which is a PUBLISH or a will.
func (c *cursor) message(m *Message) {
	switch c.id {
	case propPayloadFormat:
		m.Format = Bytes
		if c.flag("Payload Format Indicator", "[MQTT 3.3.2.3.2]") {
			m.Format = Text
		}
	case propMessageExpiry:
		m.Expires, m.Expiry = true, c.four("Message Expiry Interval")
	case propContentType:
		m.ContentType = c.text("Content Type") // [MQTT-3.3.2-19]
	case propResponseTopic:
		m.ResponseTopic = c.responseTopic()
	case propCorrelationData:
		m.CorrelationData = c.data("Correlation Data")
	case propUser:
		m.UserProperties = c.pair(m.UserProperties)
	default:
		c.stranger()
	}
}

func (c *cursor) responseTopic() []byte {
	b := c.text("Response Topic") // [MQTT-3.3.2-13]
	if c.err != nil {
		return nil
	}
	err := judgeTopic(b, "Response Topic", c.limits.levels())
	if err != nil && err.Clause == "MQTT-4.7.0-1" {
		err.Clause = "MQTT-3.3.2-14" // [MQTT-3.3.2-14]
	}
	c.adopt(err)
	return b
}

// Size is the size of the packet in version v, in bytes.
func (p *Publish) Size(v Version) int {
	remaining, _ := p.remaining(v)
	return 1 + variableSize(remaining) + remaining
}

// remaining is the packet's length after the fixed header, and that of its
// properties.
func (p *Publish) remaining(v Version) (remaining, properties int) {
	remaining = 2 + len(p.Topic) + len(p.Payload)
	if p.QoS > 0 {
		remaining += 2
	}
	if v != V5 {
		return remaining, 0
	}
	properties = p.properties()
	if p.TopicAlias != 0 {
		properties += 3
	}
	for _, id := range p.SubscriptionIDs {
		properties += 1 + variableSize(int(id))
	}
	return remaining + variableSize(properties) + properties, properties
}

// properties is the size of the message's properties.
func (m *Message) properties() int {
	n := 0
	if m.Format != Unstated {
		n += 2
	}
	if m.Expires {
		n += 5
	}
	for _, data := range [...][]byte{m.ContentType, m.ResponseTopic, m.CorrelationData} {
		if data != nil {
			n += 3 + len(data)
		}
	}
	for _, pair := range m.UserProperties {
		n += 5 + len(pair.Name) + len(pair.Value)
	}
	return n
}

// Append is Packet's. It allocates nothing if dst has room; nothing of a message
// is shed.
func (p *Publish) Append(dst []byte, v Version, max int) ([]byte, error) {
	remaining, properties := p.remaining(v)
	if !fits(remaining, max) {
		return dst, ErrSize // [MQTT-3.1.2-24] [MQTT-3.2.2-15]
	}
	w := writer{b: slices.Grow(dst, 1+maxVariableSize+remaining), v: v}
	w.byte(p.first())
	w.variable(remaining)
	w.data(p.Topic)
	if p.QoS > 0 {
		w.two(p.ID)
	}
	if v == V5 {
		w.variable(properties)
		w.message(&p.Message)
		w.propTwo(propTopicAlias, p.TopicAlias)
		for _, id := range p.SubscriptionIDs {
			w.byte(propSubscriptionID)
			w.variable(int(id))
		}
	}
	if w.err != nil {
		return dst, w.err
	}
	return append(w.b, p.Payload...), nil
}

func (p *Publish) first() byte {
	first := byte(PUBLISH)<<4 | byte(p.QoS)<<shiftQoS
	if p.Dup {
		first |= flagDup
	}
	if p.Retain {
		first |= flagRetain
	}
	return first
}

// message writes the properties of m.
func (w *writer) message(m *Message) {
	w.propSet(propPayloadFormat, m.Format != Unstated, m.Format == Text)
	if m.Expires {
		w.byte(propMessageExpiry)
		w.four(m.Expiry)
	}
	w.propData(propContentType, m.ContentType)
	w.propData(propResponseTopic, m.ResponseTopic)
	w.propData(propCorrelationData, m.CorrelationData)
	w.users(m.UserProperties)
}
