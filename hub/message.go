package hub

import (
	"bytes"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// What a link adds to a message. Each is a user property at the hub; the origin is a
// header on the bus, and what has it came from a hub and goes to none.
const (
	// OriginHeader is the node, and an id of its queue, that a message comes from.
	// One from a foreign client of the hub has foreignOrigin.
	OriginHeader  = "Fleetbus-Origin"
	foreignOrigin = "hub"
	// numberProperty is its number there, and beforeProperty that of the message
	// before it, if it is known.
	numberProperty = "Fleetbus-Number"
	beforeProperty = "Fleetbus-Before"
)

const (
	// controlTopic is where links tell of themselves, below the base.
	controlTopic = "$hub"
	// maxSubject bounds a subject that a topic becomes, in bytes: the engine ends a
	// connection that exceeds its own bound.
	maxSubject = 1024
	// maxOrigin bounds the text of an origin.
	maxOrigin = 128
	// maxProperties and maxPropertyBytes bound the user properties of a message that
	// goes out, because brokers have bounds of their own.
	maxProperties, maxPropertyBytes = 60, 12 << 10
)

// A mark is what a link adds to a message.
type mark struct {
	origin string
	number uint64
	before uint64
	// known says that before is.
	known bool
}

// base is the beginning of every topic.
func (o *Options) base() string { return o.Prefix + "/" + o.Account + "/" }

// filter is the topic filter of a subject that passes.
func (o *Options) filter(subject string) string {
	f, _ := mapping.Filter(subject) // Validate has seen it
	return o.base() + f
}

// topic is where a subject is at the hub.
func (o *Options) topic(subject string) (topic string, ok bool) {
	t, ok := mapping.Topic(subject)
	if !ok || !mapping.IsText(t) || strings.ContainsAny(t, "+#") || len(t)+len(o.base()) > 0xFFFF {
		return "", false
	}
	return o.base() + t, true
}

// subject is what a topic at the hub is here, if it passes.
func (o *Options) subject(topic string) (subject string, ok bool) {
	rest, ok := strings.CutPrefix(topic, o.base())
	if !ok || rest == "" || len(rest) > maxSubject {
		return "", false
	}
	subject = mapping.Subject(rest)
	return subject, len(subject) <= maxSubject && o.passes(subject)
}

// publish is a message of the bus as it goes out; false if it cannot, because no
// topic has its subject, or it has expired.
func (o *Options) publish(subject string, header nats.Header, payload []byte, m mark, now time.Time) (*packet.Publish, bool) {
	topic, ok := o.topic(subject)
	if !ok {
		return nil, false
	}
	p := &packet.Publish{Message: packet.Message{Topic: []byte(topic), Payload: payload}}
	props := mapping.Read(header, hasOwn(header))
	if !props.Expires.IsZero() {
		left := props.Expires.Sub(now)
		if left <= 0 {
			return nil, false
		}
		p.Expires, p.Expiry = true, uint32(min(left/time.Second+1, 1<<31))
	}
	p.Format, p.CorrelationData = props.Format, props.Correlation
	if props.Content != "" {
		p.ContentType = []byte(props.Content)
	}
	if t, ok := o.topic(mapping.Subject(props.Response)); props.Response != "" && ok && o.passes(mapping.Subject(props.Response)) {
		p.ResponseTopic = []byte(t)
	}
	size := 0
	for _, pair := range props.User {
		if size += len(pair.Name) + len(pair.Value); len(p.UserProperties) < maxProperties && size <= maxPropertyBytes {
			p.UserProperties = append(p.UserProperties, pair)
		}
	}
	add := func(name, value string) {
		p.UserProperties = append(p.UserProperties, packet.Pair{Name: []byte(name), Value: []byte(value)})
	}
	add(OriginHeader, m.origin)
	add(numberProperty, strconv.FormatUint(m.number, 10))
	if m.known {
		add(beforeProperty, strconv.FormatUint(m.before, 10))
	}
	return p, true
}

// hasOwn reports whether a header has one of MQTT's, beside those that mapping reads.
func hasOwn(header nats.Header) bool {
	for name := range header {
		if strings.HasPrefix(name, "Mqtt-") {
			return true
		}
	}
	return false
}

// message is a packet of the hub's as it stands on the bus, and its mark, which has no
// origin if it is a foreign client's.
func (o *Options) message(subject string, p *packet.Publish, now time.Time) (*nats.Msg, mark) {
	content := p.Message
	m, user := readMark(content.UserProperties)
	content.UserProperties = user
	if t := string(content.ResponseTopic); t != "" {
		content.ResponseTopic = nil
		if s, ok := o.subject(t); ok {
			back, _ := mapping.Topic(s) // it was one
			content.ResponseTopic = []byte(back)
		}
	}
	msg := &nats.Msg{Subject: subject, Data: bytes.Clone(content.Payload), Header: mapping.Headers(&content, now)}
	if msg.Header == nil {
		msg.Header = nats.Header{}
	}
	msg.Header[OriginHeader] = []string{foreignOrigin}
	if m.origin != "" {
		msg.Header[OriginHeader] = []string{m.origin}
	}
	return msg, m
}

// readMark parts the mark from the other user properties. One that is not whole is
// none.
func readMark(pairs []packet.Pair) (m mark, rest []packet.Pair) {
	good := true
	number := func(text []byte) uint64 {
		n, err := strconv.ParseUint(string(text), 10, 64)
		good = good && err == nil
		return n
	}
	for _, p := range pairs {
		switch string(p.Name) {
		case OriginHeader:
			m.origin = string(p.Value)
		case numberProperty:
			m.number = number(p.Value)
		case beforeProperty:
			m.before, m.known = number(p.Value), true
		default:
			rest = append(rest, p)
		}
	}
	if !good || !isOrigin(m.origin) || m.number == 0 || m.before >= m.number {
		m = mark{}
	}
	return m, slices.Clip(rest)
}

// isOrigin reports whether text may be an origin: a node's name, a colon and an id.
func isOrigin(text string) bool {
	if len(text) > maxOrigin || strings.Count(text, ":") != 1 {
		return false
	}
	for i := range len(text) {
		switch c := text[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == ':':
		default:
			return false
		}
	}
	return true
}
