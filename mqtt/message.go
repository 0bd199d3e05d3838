package mqtt

import (
	"bytes"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// The headers of a message that an MQTT client published, beside those of its
// properties. One of QoS 0 without properties has none, so that it costs what a NATS
// message costs.
const (
	// headerFlags is the QoS digit, and "r" if the message was published retained.
	headerFlags = "Mqtt-Flags"
	// headerClient is a digest of the publisher's client identifier.
	headerClient = "Mqtt-Client"
)

// A message is one on its way to MQTT clients. Its texts are in the NATS message
// that it came in.
type message struct {
	wires    wires  // of one that many clients are sent
	batch    *batch // that it is one of; nil: none
	topic    string
	name     []byte // topic, unless it is nil
	subject  string // of topic
	payload  []byte
	qos      packet.QoS
	retain   bool
	client   string
	expires  time.Time
	format   packet.Format
	content  string
	response string
	corr     []byte
	user     []packet.Pair
	seq      uint64 // in the stream of stored messages; 0: it is not stored
	part     int    // how many messages of the same pack are before it
	// noted says that an MQTT client published it with QoS 1 or 2.
	noted bool
	// late says that a subscription takes it although it was stored before.
	late bool
	// kept says that it is a retained message, sent because of a new subscription;
	// grant and sub are that one's, or those of the share of a group.
	kept   bool
	grant  packet.QoS
	sub    uint32
	share  *holding
	reply  string // where its consumer is told
	shared func() // tells it
}

// repeats reports whether other, a stored message of the same topic, says the same.
func (m *message) repeats(other *message) bool {
	return m.client == other.client && bytes.Equal(m.payload, other.payload)
}

// finished tells the group, if it is one's, that the message is done with.
func (m *message) finished() {
	if m.shared != nil {
		m.shared()
	}
}

// encode is p as it travels on subject. client is a digest of the publisher's
// identifier, or empty if nobody needs it.
func encode(subject, client string, p *packet.Message) *nats.Msg {
	return &nats.Msg{Subject: subject, Data: p.Payload, Header: headers(client, p)}
}

// headers are those of encode, nil if there are none.
func headers(client string, p *packet.Message) nats.Header {
	var now time.Time
	if p.Expires {
		now = time.Now()
	}
	header := mapping.Headers(p, now)
	set := func(name, value string) {
		if header == nil {
			header = nats.Header{}
		}
		header[name] = []string{value}
	}
	if p.QoS > 0 || p.Retain {
		flags := strconv.Itoa(int(p.QoS))
		if p.Retain {
			flags += "r"
		}
		set(headerFlags, flags)
	}
	if client != "" {
		set(headerClient, client)
	}
	return header
}

// decode is what an MQTT client sees of msg, which came on subject; ok is false if
// no topic has that subject.
func decode(subject string, msg *nats.Msg) (m message, ok bool) {
	m.payload, m.subject = msg.Data, subject
	if m.topic, ok = mapping.Topic(subject); !ok || !isName(m.topic) {
		return m, false
	}
	m.read(msg.Reply, msg.Header)
	return m, true
}

// read takes what is beside the payload.
func (m *message) read(reply string, header nats.Header) {
	if reply != "" {
		if topic, ok := mapping.Topic(reply); ok {
			m.response = topic
		}
	}
	if len(header) == 0 {
		return
	}
	own := false
	get := func(name string) string {
		if values := header[name]; len(values) > 0 {
			own = true
			return values[0]
		}
		return ""
	}
	if flags := get(headerFlags); flags != "" {
		if flags[0] == '1' || flags[0] == '2' {
			m.qos, m.noted = packet.QoS(flags[0]-'0'), true
		}
		m.retain = strings.HasSuffix(flags, "r")
	}
	m.client = get(headerClient)
	_ = get(headerPack)
	_ = get(headerRegion)
	_ = get(headerStored)
	p := mapping.Read(header, own)
	m.expires, m.format, m.content, m.corr, m.user = p.Expires, p.Format, p.Content, p.Correlation, p.User
	if p.Response != "" {
		m.response = p.Response
	}
}

// isName reports whether a topic can be a topic name.
func isName(topic string) bool {
	return topic != "" && mapping.IsText(topic) && !strings.ContainsAny(topic, "+#")
}

// expired reports whether m must not be delivered any more. [MQTT-3.3.2-5]
func (m *message) expired() bool { return !m.expires.IsZero() && !time.Now().Before(m.expires) }

// publish is m as a client is sent it.
func (m *message) publish(p *packet.Publish) {
	// [MQTT-3.3.2-4] [MQTT-3.3.2-17]
	p.Topic, p.Payload, p.Format, p.UserProperties = m.name, m.payload, m.format, m.user
	if m.name == nil {
		p.Topic = []byte(m.topic)
	}
	if !m.expires.IsZero() { // [MQTT-3.3.2-6]
		p.Expires, p.Expiry = true, uint32(max(1, time.Until(m.expires).Round(time.Second)/time.Second))
	}
	if m.content != "" {
		p.ContentType = []byte(m.content) // [MQTT-3.3.2-20]
	}
	if m.response != "" {
		p.ResponseTopic = []byte(m.response) // [MQTT-3.3.2-15]
	}
	p.CorrelationData = m.corr // [MQTT-3.3.2-16]
}

// wires are the packets of a message of QoS 0 as they go out, by version and RETAIN:
// encoded once for all who are sent the same.
type wires map[form][]byte

type form struct {
	v      packet.Version
	retain bool
}

// of is the packet p of m; nil if it cannot be one.
func (w wires) of(m *message, v packet.Version, p *packet.Publish) []byte {
	key := form{v, p.Retain}
	b, ok := w[key]
	if !ok {
		m.publish(p)
		var err error
		if b, err = p.Append(nil, v, 0); err != nil {
			b = nil
		}
		w[key] = b
	}
	return b
}
