// Package mapping says how what is MQTT's stands on the bus: topics as subjects, and
// the properties of a message as headers. It is pure, so that everything that speaks
// MQTT, to clients or to a broker, says the same.
package mapping

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

// The headers of a message with properties. One without has none, so that it costs
// what a NATS message costs.
const (
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

// Properties are those of a message that was read from headers. The zero value has
// none.
type Properties struct {
	// Expires is when the message does; zero: never.
	Expires time.Time
	Format  packet.Format
	// Content is the content type, and Response the response topic; empty: none.
	Content, Response string
	// Correlation is nil if there is none.
	Correlation []byte
	User        []packet.Pair
}

// Headers are the properties of m as headers, nil if there are none. Expiry counts
// from now.
func Headers(m *packet.Message, now time.Time) (header nats.Header) {
	set := func(name, value string) {
		if header == nil {
			header = nats.Header{}
		}
		header[name] = []string{value}
	}
	if m.Expires {
		set(headerExpires, strconv.FormatInt(now.Add(time.Duration(m.Expiry)*time.Second).UnixMilli(), 10))
	}
	if m.Format != packet.Unstated {
		set(headerFormat, strconv.Itoa(int(m.Format)))
	}
	if m.ContentType != nil {
		set(headerContent, HeaderText(string(m.ContentType)))
	}
	if m.ResponseTopic != nil {
		set(headerResponse, HeaderText(string(m.ResponseTopic)))
	}
	if m.CorrelationData != nil {
		set(headerCorrelation, base64.StdEncoding.EncodeToString(m.CorrelationData))
	}
	if len(m.UserProperties) > 0 {
		set(headerUser, "")
		var b []byte
		for _, pair := range m.UserProperties {
			b = append(binary.AppendUvarint(b, uint64(len(pair.Name))), pair.Name...)
			b = append(binary.AppendUvarint(b, uint64(len(pair.Value))), pair.Value...)
			if name := string(pair.Name); isHeader(name) && !strings.HasPrefix(strings.ToLower(name), "nats-") {
				header[name] = append(header[name], HeaderText(string(pair.Value)))
			}
		}
		set(headerUser, base64.StdEncoding.EncodeToString(b))
	}
	return header
}

// HeaderText keeps what would end a header out of it: such a text travels as a quoted
// one, which TextOf reads.
func HeaderText(s string) string {
	if strings.ContainsAny(s, "\r\n") || strings.TrimSpace(s) != s || strings.HasPrefix(s, `"`) {
		return strconv.Quote(s)
	}
	return s
}

// TextOf is the text that HeaderText was given.
func TextOf(s string) string {
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

// Read reads what Headers wrote. The headers of a message that has none of MQTT's,
// own among them, are its user properties.
func Read(header nats.Header, own bool) (p Properties) {
	get := func(name string) string {
		if values := header[name]; len(values) > 0 {
			own = own || name != headerContent
			return values[0]
		}
		return ""
	}
	if ms, err := strconv.ParseInt(get(headerExpires), 10, 64); err == nil {
		p.Expires = time.UnixMilli(ms)
	}
	switch get(headerFormat) {
	case "1":
		p.Format = packet.Bytes
	case "2":
		p.Format = packet.Text
	}
	p.Content = TextOf(get(headerContent))
	p.Response = TextOf(get(headerResponse))
	if corr := get(headerCorrelation); corr != "" {
		p.Correlation, _ = base64.StdEncoding.DecodeString(corr)
	}
	if user := get(headerUser); user != "" {
		p.User = pairs(user)
	} else if !own {
		p.User = foreign(header)
	}
	return p
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
			if len(user) < maxForeign && IsText(name) && IsText(value) {
				user = append(user, packet.Pair{Name: []byte(name), Value: []byte(value)})
			}
		}
	}
	return user
}

// IsText reports whether s can be a string of a packet. [MQTT-1.5.4-1] [MQTT-1.5.4-2]
func IsText(s string) bool {
	return len(s) <= 0xFFFF && utf8.ValidString(s) && !strings.Contains(s, "\x00")
}
