package queue

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// A Message is one that was published. It is never changed, so that many queues can have
// it. NewMessage makes one.
type Message struct {
	// Exchange and Key are what it was published to.
	Exchange, Key string
	// Properties are as they are on the wire.
	Properties, Body []byte

	ttl      int64 // in milliseconds, forever: none
	priority uint8
}

// forever is the lifetime of what does not expire.
const forever = -1

// maxMillis is what RabbitMQ takes at most for a time.
const maxMillis = 1<<32 - 1

// NewMessage makes a message of properties, which are as they are on the wire and judged
// by frame.CheckProperties. An error is a *frame.Error of the channel: the expiration is
// none.
func NewMessage(exchange, key string, properties, body []byte) (*Message, error) {
	m := &Message{Exchange: exchange, Key: key, Properties: properties, Body: body, ttl: forever}
	p := look(properties)
	m.priority = p.priority
	if p.expires {
		var err error
		if m.ttl, err = lifetime(p.expiration); err != nil {
			return nil, frame.ChannelError(frame.PreconditionFailed, "invalid expiration '%s': %v", p.expiration, err)
		}
	}
	return m, nil
}

func lifetime(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, errors.New("value_too_big")
	case err != nil:
		return 0, errors.New("no_integer")
	case n < 0:
		return 0, fmt.Errorf("{value_negative,%d}", n)
	case n > maxMillis:
		return 0, fmt.Errorf("{value_too_big,%d}", n)
	}
	return n, nil
}

// looked is what a queue has to know of properties.
type looked struct {
	priority   uint8
	expires    bool
	expiration string
	// headers is where the table is, with its length; end is 0 if there is none.
	headers, end int
}

// look reads properties without the rest of them. What is cut short has none.
func look(b []byte) (p looked) {
	if len(b) < 2 {
		return p
	}
	flags := binary.BigEndian.Uint16(b)
	at := 2
	short := func(flag uint16) (text []byte, ok bool) {
		if flags&flag == 0 {
			return nil, true
		}
		if at >= len(b) || len(b)-at-1 < int(b[at]) {
			return nil, false
		}
		text = b[at+1 : at+1+int(b[at])]
		at += 1 + len(text)
		return text, true
	}
	octet := func(flag uint16) (value byte, ok bool) {
		if flags&flag == 0 {
			return 0, true
		}
		if at >= len(b) {
			return 0, false
		}
		at++
		return b[at-1], true
	}
	for _, flag := range [...]uint16{frame.HasContentType, frame.HasContentEncoding} {
		if _, ok := short(flag); !ok {
			return p
		}
	}
	start, end := at, 0
	if flags&frame.HasHeaders != 0 {
		if len(b)-at < 4 || uint64(len(b)-at-4) < uint64(binary.BigEndian.Uint32(b[at:])) {
			return p
		}
		end = at + 4 + int(binary.BigEndian.Uint32(b[at:]))
		at = end
	}
	p.headers, p.end = start, end
	if _, ok := octet(frame.HasDeliveryMode); !ok {
		return p
	}
	priority, ok := octet(frame.HasPriority)
	if !ok {
		return p
	}
	p.priority = priority
	for _, flag := range [...]uint16{frame.HasCorrelationID, frame.HasReplyTo} {
		if _, ok := short(flag); !ok {
			return p
		}
	}
	if text, ok := short(frame.HasExpiration); ok && flags&frame.HasExpiration != 0 {
		p.expires, p.expiration = true, string(text)
	}
	return p
}

// deliveryCount is the header with how often a message came back.
const deliveryCount = "x-delivery-count"

// counted is m with the header that says how often it came back.
func (m *Message) counted(n uint32) *Message {
	of, from := *m, m.Properties
	p := look(from)
	if len(from) < 2 {
		from = []byte{0, 0}
	}
	if bytes.Contains(from[p.headers:max(p.headers, p.end)], []byte(deliveryCount)) {
		var all frame.Properties
		if all.Decode(from) == nil {
			all.Headers[deliveryCount] = int64(n)
			if b, err := all.Append(nil); err == nil {
				of.Properties = b
				return &of
			}
		}
	}
	// The table need not be read for a header that is not in it.
	var one []byte
	one = append(append(one, byte(len(deliveryCount))), deliveryCount...)
	one = binary.BigEndian.AppendUint64(append(one, 'l'), uint64(n))
	out := make([]byte, 0, len(from)+4+len(one))
	out = binary.BigEndian.AppendUint16(out, binary.BigEndian.Uint16(from)|frame.HasHeaders)
	if p.end == 0 {
		p.headers = max(p.headers, 2)
		out = append(out, from[2:p.headers]...)
		out = binary.BigEndian.AppendUint32(out, uint32(len(one)))
		out = append(append(out, one...), from[p.headers:]...)
	} else {
		size := p.end - p.headers - 4
		out = append(out, from[2:p.headers]...)
		out = binary.BigEndian.AppendUint32(out, uint32(size+len(one)))
		out = append(out, from[p.headers+4:p.end]...)
		out = append(append(out, one...), from[p.end:]...)
	}
	of.Properties = out
	return &of
}

// A Record is a message in a log.
type Record struct {
	// Seq is its place there, which the log gives; it is not among the bytes.
	Seq uint64
	// Published is when, in milliseconds since 1970.
	Published int64
	Message   *Message
}

// version is of the bytes of records.
const version = 1

// ErrRecord is the error of bytes that are no record.
var ErrRecord = errors.New("these bytes are no stored message: the log is damaged, or a newer version wrote it")

// Append appends r to dst, to be stored.
func (r *Record) Append(dst []byte) []byte {
	m := r.Message
	dst = binary.AppendUvarint(append(dst, version), uint64(r.Published))
	for _, part := range [...][]byte{[]byte(m.Exchange), []byte(m.Key), m.Properties} {
		dst = append(binary.AppendUvarint(dst, uint64(len(part))), part...)
	}
	return append(dst, m.Body...)
}

// DecodeRecord is what Append made b of. Properties and body are parts of b. Its error is
// ErrRecord.
func DecodeRecord(b []byte) (*Record, error) {
	if len(b) == 0 || b[0] != version {
		return nil, ErrRecord
	}
	b = b[1:]
	published, n := binary.Uvarint(b)
	if n <= 0 || published > 1<<62 {
		return nil, ErrRecord
	}
	b = b[n:]
	var parts [3][]byte
	for i := range parts {
		size, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return nil, ErrRecord
		}
		parts[i], b = b[n:n+int(size):n+int(size)], b[n+int(size):]
	}
	if err := frame.CheckProperties(parts[2]); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	m, err := NewMessage(string(parts[0]), string(parts[1]), parts[2], b)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return &Record{Published: int64(published), Message: m}, nil
}
