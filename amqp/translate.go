package amqp

import (
	"encoding/base64"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// The headers of a message with properties that MQTT does not have. What MQTT has is as
// MQTT has it.
const (
	headerPrefix    = "Amqp-"
	headerMessageID = headerPrefix + "Message-Id"
	headerType      = headerPrefix + "Type"
	headerApp       = headerPrefix + "App-Id"
	headerUser      = headerPrefix + "User-Id"
	headerPriority  = headerPrefix + "Priority"
	headerMode      = headerPrefix + "Delivery-Mode"
	headerTimestamp = headerPrefix + "Timestamp" // in seconds since 1970
	// headerTable has all headers with their types, as on the wire. Those that are texts
	// or numbers are headers of their own, too.
	headerTable    = headerPrefix + "Headers"
	headerEncoding = "Content-Encoding"
)

// maxShort is how many bytes a short text has at most.
const maxShort = 255

// outward are properties as headers, nil if there are none.
func outward(p *frame.Properties, now time.Time) nats.Header {
	var m packet.Message
	if p.ContentType != "" {
		m.ContentType = []byte(p.ContentType)
	}
	if p.CorrelationID != "" {
		m.CorrelationData = []byte(p.CorrelationID)
	}
	if ms, err := strconv.ParseInt(p.Expiration, 10, 64); err == nil && ms >= 0 {
		m.Expires, m.Expiry = true, uint32(min((ms+999)/1000, 1<<32-1))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Headers)) {
		if text, ok := headerText(p.Headers[name]); ok && mapping.IsText(name) && mapping.IsText(text) {
			m.UserProperties = append(m.UserProperties, packet.Pair{Name: []byte(name), Value: []byte(text)})
		}
	}
	header := mapping.Headers(&m, now)
	set := func(name, value string) {
		if value == "" {
			return
		}
		if header == nil {
			header = nats.Header{}
		}
		header[name] = []string{mapping.HeaderText(value)}
	}
	number := func(name string, flag uint16, value uint64) {
		if value != 0 || p.Flags&flag != 0 {
			set(name, strconv.FormatUint(value, 10))
		}
	}
	set(headerEncoding, p.ContentEncoding)
	set(headerMessageID, p.MessageID)
	set(headerType, p.Type)
	set(headerApp, p.AppID)
	set(headerUser, p.UserID)
	number(headerPriority, frame.HasPriority, uint64(p.Priority))
	number(headerMode, frame.HasDeliveryMode, uint64(p.DeliveryMode))
	number(headerTimestamp, frame.HasTimestamp, p.Timestamp)
	if len(p.Headers) > 0 {
		if b, err := p.Headers.Append(nil); err == nil {
			set(headerTable, base64.StdEncoding.EncodeToString(b))
		}
	}
	return header
}

// headerText is the value of a header as text, if it can be one.
func headerText(value any) (string, bool) {
	switch v := value.(type) {
	case string:
		return v, true
	case time.Time:
		return v.UTC().Format(time.RFC3339), true
	case bool, int8, uint8, int16, uint16, int32, uint32, int64, uint64, float32, float64:
		return fmt.Sprint(v), true
	}
	return "", false
}

// inward are headers as properties. over says that the message has expired.
func inward(header nats.Header, now time.Time) (p frame.Properties, over bool) {
	if len(header) == 0 {
		return p, false
	}
	short := func(text string) string {
		if len(text) > maxShort {
			return ""
		}
		return text
	}
	get := func(name string) string {
		if values := header[name]; len(values) > 0 {
			return short(mapping.TextOf(values[0]))
		}
		return ""
	}
	m := mapping.Read(header, false)
	p.ContentType, p.CorrelationID = short(m.Content), short(string(m.Correlation))
	if !m.Expires.IsZero() {
		left := m.Expires.Sub(now).Milliseconds()
		if left <= 0 {
			return p, true
		}
		p.Expiration = strconv.FormatInt(min(left, 1<<32-1), 10)
	}
	p.ContentEncoding, p.MessageID, p.Type, p.AppID = get(headerEncoding), get(headerMessageID), get(headerType), get(headerApp)
	if n, err := strconv.ParseUint(get(headerPriority), 10, 8); err == nil {
		p.Priority, p.Flags = uint8(n), p.Flags|frame.HasPriority
	}
	if n, err := strconv.ParseUint(get(headerMode), 10, 8); err == nil && (n == frame.Transient || n == frame.Persistent) {
		p.DeliveryMode = uint8(n)
	}
	if n, err := strconv.ParseUint(get(headerTimestamp), 10, 64); err == nil {
		p.Timestamp, p.Flags = n, p.Flags|frame.HasTimestamp
	}
	p.Headers = typed(header)
	if p.Headers == nil {
		for _, pair := range m.User {
			name, value := string(pair.Name), string(pair.Value)
			if len(name) <= maxShort && !strings.HasPrefix(name, headerPrefix) && name != headerEncoding {
				if p.Headers == nil {
					p.Headers = frame.Table{}
				}
				p.Headers[name] = value
			}
		}
	}
	// Only who publishes over AMQP says where copies go.
	for _, name := range []string{"CC", "BCC"} {
		delete(p.Headers, name)
	}
	return p, false
}

// typed are the headers that headerTable has, nil if it has none that can be read.
func typed(header nats.Header) frame.Table {
	values := header[headerTable]
	if len(values) == 0 {
		return nil
	}
	b, err := base64.StdEncoding.DecodeString(values[0])
	if err != nil {
		return nil
	}
	t, err := frame.DecodeTable(b)
	if err != nil {
		return nil
	}
	return t
}
