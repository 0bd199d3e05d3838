package mqtt

import (
	"encoding/base64"
	"encoding/binary"
	"net/textproto"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// The headers of a message that an MQTT client published. One of QoS 0 without
// properties has none, so that it costs what a NATS message costs.
const (
	// headerFlags is the QoS digit, and "r" if the message was published retained.
	headerFlags = "Mqtt-Flags"
	// headerClient is a digest of the publisher's client identifier.
	headerClient = "Mqtt-Client"
	// headerExpires is when the message expires, in milliseconds since 1970.
	headerExpires     = "Mqtt-Expires"
	headerFormat      = "Mqtt-Format"
	headerContent     = "Content-Type"
	headerResponse    = "Mqtt-Response-Topic"
	headerCorrelation = "Mqtt-Correlation"
	// headerUser has all user properties in their order, for MQTT clients; each is
	// also a header of its own, if its name can be one, for NATS clients.
	headerUser = "Mqtt-User"
)

// maxForeign bounds the headers of a NATS message that become user properties.
const maxForeign = 64

// A message is one on its way to MQTT clients. Its texts are in the NATS message
// that it came in.
type message struct {
	topic    string
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
	// noted says that an MQTT client published it with QoS 1 or 2.
	noted bool
	// kept says that it is a retained message, sent because of a new subscription;
	// grant and sub are that one's, or those of the share of a group.
	kept   bool
	grant  packet.QoS
	sub    uint32
	shared func() // tells the group's consumer
}

// finished tells the group, if it is one's, that the message is done with.
func (m *message) finished() {
	if m.shared != nil {
		m.shared()
	}
}

// encode is p as it travels on subject. client is a digest of the publisher's
// identifier, or empty if nobody needs it.
func encode(subject, client string, p *packet.Message, now time.Time) *nats.Msg {
	msg := &nats.Msg{Subject: subject, Data: p.Payload}
	set := func(name, value string) {
		if msg.Header == nil {
			msg.Header = nats.Header{}
		}
		msg.Header[name] = []string{value}
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
	if p.Expires {
		set(headerExpires, strconv.FormatInt(now.Add(time.Duration(p.Expiry)*time.Second).UnixMilli(), 10))
	}
	if p.Format != packet.Unstated {
		set(headerFormat, strconv.Itoa(int(p.Format)))
	}
	if p.ContentType != nil {
		set(headerContent, headerValue(string(p.ContentType)))
	}
	if p.ResponseTopic != nil {
		set(headerResponse, headerValue(string(p.ResponseTopic)))
	}
	if p.CorrelationData != nil {
		set(headerCorrelation, base64.StdEncoding.EncodeToString(p.CorrelationData))
	}
	if len(p.UserProperties) > 0 {
		set(headerUser, "")
		var b []byte
		for _, pair := range p.UserProperties {
			b = append(binary.AppendUvarint(b, uint64(len(pair.Name))), pair.Name...)
			b = append(binary.AppendUvarint(b, uint64(len(pair.Value))), pair.Value...)
			if name := string(pair.Name); isHeader(name) && !strings.HasPrefix(strings.ToLower(name), "nats-") {
				msg.Header[name] = append(msg.Header[name], headerValue(string(pair.Value)))
			}
		}
		set(headerUser, base64.StdEncoding.EncodeToString(b))
	}
	return msg
}

// headerValue keeps what would end a header out of it: such a text travels as a
// quoted one.
func headerValue(s string) string {
	if strings.ContainsAny(s, "\r\n") || strings.TrimSpace(s) != s || strings.HasPrefix(s, `"`) {
		return strconv.Quote(s)
	}
	return s
}

func fromHeader(s string) string {
	if strings.HasPrefix(s, `"`) {
		if plain, err := strconv.Unquote(s); err == nil {
			return plain
		}
	}
	return s
}

// isHeader reports whether a user property may be a NATS header, which is not one
// of ours.
func isHeader(name string) bool {
	if name == "" || strings.HasPrefix(strings.ToLower(name), "mqtt-") || textproto.CanonicalMIMEHeaderKey(name) == headerContent {
		return false
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c >= 0x7F || c == ':' {
			return false
		}
	}
	return true
}

// decode is what an MQTT client sees of msg, which came on subject; ok is false if
// no topic has that subject.
func decode(subject string, msg *nats.Msg) (m message, ok bool) {
	m.payload = msg.Data
	if m.topic, ok = topicOf(subject); !ok || !isText(m.topic) || strings.ContainsAny(m.topic, "+#") {
		return m, false
	}
	if msg.Reply != "" {
		if topic, ok := topicOf(msg.Reply); ok {
			m.response = topic
		}
	}
	if len(msg.Header) == 0 {
		return m, true
	}
	own := false
	get := func(name string) string {
		if values := msg.Header[name]; len(values) > 0 {
			own = own || name != headerContent
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
	if ms, err := strconv.ParseInt(get(headerExpires), 10, 64); err == nil {
		m.expires = time.UnixMilli(ms)
	}
	switch get(headerFormat) {
	case "1":
		m.format = packet.Bytes
	case "2":
		m.format = packet.Text
	}
	m.content = fromHeader(get(headerContent))
	if topic := fromHeader(get(headerResponse)); topic != "" {
		m.response = topic
	}
	if corr := get(headerCorrelation); corr != "" {
		m.corr, _ = base64.StdEncoding.DecodeString(corr)
	}
	if user := get(headerUser); user != "" {
		m.user = pairs(user)
	} else if !own {
		m.user = foreign(msg.Header)
	}
	return m, true
}

// pairs are the user properties in headerUser.
func pairs(text string) (user []packet.Pair) {
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil
	}
	next := func() []byte {
		n, size := binary.Uvarint(b)
		if size <= 0 || n > uint64(len(b)-size) {
			b = nil
			return nil
		}
		part := b[size : size+int(n)]
		b = b[size+int(n):]
		return part
	}
	for len(b) > 0 {
		name := next()
		if b == nil {
			break
		}
		user = append(user, packet.Pair{Name: name, Value: next()})
	}
	return user
}

// foreign are the user properties of a message that a NATS client published.
func foreign(header nats.Header) (user []packet.Pair) {
	for name, values := range header {
		if strings.HasPrefix(name, "Nats-") || name == headerContent {
			continue
		}
		for _, value := range values {
			if len(user) < maxForeign && isText(name) && isText(value) {
				user = append(user, packet.Pair{Name: []byte(name), Value: []byte(value)})
			}
		}
	}
	return user
}

// isText reports whether s can be a string of a packet. [MQTT-1.5.4-1] [MQTT-1.5.4-2]
func isText(s string) bool {
	return len(s) <= 0xFFFF && utf8.ValidString(s) && !strings.Contains(s, "\x00")
}

// expired reports whether m must not be delivered any more. [MQTT-3.3.2-5]
func (m *message) expired(now time.Time) bool { return !m.expires.IsZero() && !now.Before(m.expires) }

// publish is m as a client is sent it.
func (m *message) publish(p *packet.Publish, now time.Time) {
	p.Topic, p.Payload, p.Format, p.UserProperties = []byte(m.topic), m.payload, m.format, m.user
	if !m.expires.IsZero() { // [MQTT-3.3.2-6]
		p.Expires, p.Expiry = true, uint32(max(1, m.expires.Sub(now).Round(time.Second)/time.Second))
	}
	if m.content != "" {
		p.ContentType = []byte(m.content) // [MQTT-3.3.2-20]
	}
	if m.response != "" {
		p.ResponseTopic = []byte(m.response) // [MQTT-3.3.2-15]
	}
	p.CorrelationData = m.corr // [MQTT-3.3.2-16]
}
