package queue

import (
	"fmt"
	"reflect"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// The types of queues.
const (
	Classic = "classic"
	Quorum  = "quorum"
)

// Overflow is what happens to messages that there is no room for.
type Overflow byte

// The ways.
const (
	DropHead         Overflow = iota // the first goes
	RejectPublish                    // the new one is refused
	RejectPublishDLX                 // the new one is refused, and a dead letter
)

// none is the value of a number that was not given.
const none = -1

// Settings are what a queue was declared with. Parse makes them; they are not changed.
type Settings struct {
	// Vhost is what refusals call the vhost.
	Name, Vhost         string
	Durable, AutoDelete bool
	// Owner is the connection of an exclusive queue; "" for others.
	Owner string
	// Arguments are as they were given.
	Arguments frame.Table

	// What follows is what Arguments say. Times are in milliseconds; -1 is no limit.
	Type                                     string
	MessageTTL, Expires, MaxLength, MaxBytes int64
	Overflow                                 Overflow
	DeadLetters                              bool // there is an exchange for them, which may be ""
	DeadLetterExchange                       string
	DeadLetterKey                            string // "": as they were published
	hasDeadLetterKey                         bool
	MaxPriority                              int64 // 0: there are no priorities
	DeliveryLimit                            int64
	SingleActive                             bool
}

// argument is one that queues know.
type argument struct {
	name string
	take func(s *Settings, value any) error
}

// arguments are all, in the order in which they are judged and compared.
func arguments() []argument {
	return []argument{
		{"x-queue-type", (*Settings).takeType},
		{"x-expires", func(s *Settings, v any) error {
			if err := number(v, &s.Expires, maxMillis); err != nil {
				return err
			}
			if s.Expires == 0 {
				return fmt.Errorf("{value_zero,0}")
			}
			return nil
		}},
		{"x-message-ttl", func(s *Settings, v any) error { return number(v, &s.MessageTTL, maxMillis) }},
		{"x-dead-letter-exchange", func(s *Settings, v any) error {
			s.DeadLetters = true
			return text(v, &s.DeadLetterExchange)
		}},
		{"x-dead-letter-routing-key", func(s *Settings, v any) error {
			if !s.DeadLetters {
				return fmt.Errorf("routing_key_but_no_dlx_defined")
			}
			s.hasDeadLetterKey = true
			return text(v, &s.DeadLetterKey)
		}},
		{"x-max-length", func(s *Settings, v any) error { return number(v, &s.MaxLength, 0) }},
		{"x-max-length-bytes", func(s *Settings, v any) error { return number(v, &s.MaxBytes, 0) }},
		{"x-max-priority", func(s *Settings, v any) error {
			if err := number(v, &s.MaxPriority, 0); err != nil {
				return err
			}
			if s.MaxPriority > 255 {
				return fmt.Errorf("{max_value_exceeded,%d}", s.MaxPriority)
			}
			return nil
		}},
		{"x-overflow", (*Settings).takeOverflow},
		{"x-queue-mode", func(_ *Settings, v any) error {
			var mode string
			if err := text(v, &mode); err != nil {
				return err
			}
			if mode != "default" && mode != "lazy" {
				return fmt.Errorf("invalid_queue_mode")
			}
			return nil
		}},
		{"x-single-active-consumer", func(s *Settings, v any) error {
			b, ok := v.(bool)
			if !ok {
				return unacceptable(v)
			}
			s.SingleActive = b
			return nil
		}},
		{"x-delivery-limit", func(s *Settings, v any) error { return number(v, &s.DeliveryLimit, 0) }},
	}
}

func (s *Settings) takeType(v any) error {
	if err := text(v, &s.Type); err != nil {
		return err
	}
	switch s.Type {
	case Classic, Quorum:
		return nil
	case "stream":
		return frame.ConnectionError(frame.NotImplemented, "x-queue-type=stream")
	}
	return fmt.Errorf("{unsupported_queue_type,<<%q>>}", s.Type)
}

func (s *Settings) takeOverflow(v any) error {
	var how string
	if err := text(v, &how); err != nil {
		return err
	}
	switch how {
	case "drop-head":
		s.Overflow = DropHead
	case "reject-publish":
		s.Overflow = RejectPublish
	case "reject-publish-dlx":
		s.Overflow = RejectPublishDLX
	default:
		return fmt.Errorf("invalid_overflow")
	}
	return nil
}

// Parse reads a declaration. owner is the connection that declares. Its errors are
// *frame.Error, with RabbitMQ's words.
func Parse(vhost string, m *frame.QueueDeclare, owner string) (*Settings, error) {
	s := &Settings{
		Name: m.Queue, Vhost: vhost, Durable: m.Durable, AutoDelete: m.AutoDelete, Arguments: m.Arguments,
		Type: Classic, MessageTTL: none, Expires: none, MaxLength: none, MaxBytes: none, DeliveryLimit: none,
	}
	if m.Exclusive {
		s.Owner = owner
	}
	for _, a := range arguments() {
		v, ok := m.Arguments[a.name]
		if !ok {
			continue
		}
		err := a.take(s, v)
		if refusal, ok := err.(*frame.Error); ok {
			return nil, refusal
		}
		if err != nil {
			return nil, frame.ChannelError(frame.PreconditionFailed, "invalid arg '%s' for %s: %v", a.name, s.what(), err)
		}
	}
	if s.Type == Quorum {
		if err := s.judgeQuorum(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *Settings) judgeQuorum() error {
	property := ""
	switch {
	case !s.Durable:
		property = "non-durable"
	case s.AutoDelete:
		property = "auto-delete"
	case s.Owner != "":
		property = "exclusive-owner"
	case s.MaxPriority > 0:
		return frame.ChannelError(frame.PreconditionFailed, "invalid arg 'x-max-priority' for %s of queue type rabbit_quorum_queue", s.what())
	default:
		return nil
	}
	return frame.ChannelError(frame.PreconditionFailed, "invalid property '%s' for %s", property, s.what())
}

// what is the queue as refusals call it.
func (s *Settings) what() string { return fmt.Sprintf("queue '%s' in vhost '%s'", s.Name, s.Vhost) }

// Same says whether a queue with settings s is what again declares. Its error is a
// *frame.Error.
func (s *Settings) Same(again *Settings) error {
	if s.Owner != again.Owner {
		return s.locked()
	}
	if s.Owner == "" && s.Durable != again.Durable {
		return s.inequivalent("durable", quoted(again.Durable), quoted(s.Durable))
	}
	if s.AutoDelete != again.AutoDelete {
		return s.inequivalent("auto_delete", quoted(again.AutoDelete), quoted(s.AutoDelete))
	}
	for _, a := range arguments() {
		before, was := s.Arguments[a.name]
		value, is := again.Arguments[a.name]
		if was != is || was && !equal(value, before) {
			return s.inequivalent(a.name, described(value, is), described(before, was))
		}
	}
	return nil
}

func (s *Settings) inequivalent(name, received, current string) error {
	return frame.ChannelError(frame.PreconditionFailed, "inequivalent arg '%s' for %s: received %s but current is %s", name, s.what(), received, current)
}

// Access says whether a connection may use the queue: an exclusive one is its owner's.
func (s *Settings) Access(connection string) error {
	if s.Owner != "" && s.Owner != connection {
		return s.locked()
	}
	return nil
}

func (s *Settings) locked() error {
	return frame.ChannelError(frame.ResourceLocked, "cannot obtain exclusive access to locked %s. It could be originally declared on another connection or the exclusive property value does not match that of the original declaration.", s.what())
}

func quoted(v any) string { return fmt.Sprintf("'%v'", v) }

func described(v any, is bool) string {
	if !is {
		return "none"
	}
	return fmt.Sprintf("the value '%v' of type '%s'", v, kind(v))
}

// equal reports whether two values are, whatever width their numbers have.
func equal(a, b any) bool {
	x, ok := whole(a)
	if y, too := whole(b); ok && too {
		return x == y
	}
	return reflect.DeepEqual(a, b)
}

// number takes a number that is not below zero, and not above most, unless that is 0.
func number(v any, to *int64, most int64) error {
	n, ok := whole(v)
	switch {
	case !ok:
		return unacceptable(v)
	case n < 0:
		return fmt.Errorf("{value_negative,%d}", n)
	case most > 0 && n > most:
		return fmt.Errorf("{value_too_big,%d}", n)
	}
	*to = n
	return nil
}

func text(v any, to *string) error {
	s, ok := v.(string)
	if !ok {
		return unacceptable(v)
	}
	*to = s
	return nil
}

func unacceptable(v any) error { return fmt.Errorf("{unacceptable_type,%s}", kind(v)) }

func whole(v any) (int64, bool) {
	switch v := v.(type) {
	case int8:
		return int64(v), true
	case uint8:
		return int64(v), true
	case int16:
		return int64(v), true
	case uint16:
		return int64(v), true
	case int32:
		return int64(v), true
	case uint32:
		return int64(v), true
	case int64:
		return v, true
	case int:
		return int64(v), true
	}
	return 0, false
}

// kind is what RabbitMQ calls the type of a value.
func kind(v any) string {
	switch v.(type) {
	case nil:
		return "void"
	case bool:
		return "bool"
	case int8:
		return "byte"
	case uint8:
		return "unsignedbyte"
	case int16:
		return "short"
	case uint16:
		return "unsignedshort"
	case int32:
		return "signedint"
	case uint32:
		return "unsignedint"
	case int64, int, uint64:
		return "long"
	case float32:
		return "float"
	case float64:
		return "double"
	case string:
		return "longstr"
	case []byte:
		return "binary"
	case []any:
		return "array"
	case frame.Decimal:
		return "decimal"
	case frame.Timestamp:
		return "timestamp"
	}
	return "table"
}
