package queue_test

import (
	"testing"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
)

func TestArgumentsAreRefused(t *testing.T) {
	for name, c := range map[string]struct {
		arguments frame.Table
		text      string
	}{
		"negative TTL":     {frame.Table{"x-message-ttl": int32(-1)}, "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_negative,-1}"},
		"TTL as a text":    {frame.Table{"x-message-ttl": "5"}, "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {unacceptable_type,longstr}"},
		"TTL too large":    {frame.Table{"x-message-ttl": int64(1 << 33)}, "invalid arg 'x-message-ttl' for queue 'q' in vhost '/': {value_too_big,8589934592}"},
		"expires at once":  {frame.Table{"x-expires": int32(0)}, "invalid arg 'x-expires' for queue 'q' in vhost '/': {value_zero,0}"},
		"expires never":    {frame.Table{"x-expires": true}, "{unacceptable_type,bool}"},
		"DLX as a number":  {frame.Table{"x-dead-letter-exchange": int32(1)}, "{unacceptable_type,signedint}"},
		"key without DLX":  {frame.Table{"x-dead-letter-routing-key": "k"}, "invalid arg 'x-dead-letter-routing-key' for queue 'q' in vhost '/': routing_key_but_no_dlx_defined"},
		"length":           {frame.Table{"x-max-length": int32(-5)}, "invalid arg 'x-max-length' for queue 'q' in vhost '/': {value_negative,-5}"},
		"bytes":            {frame.Table{"x-max-length-bytes": float64(5)}, "{unacceptable_type,double}"},
		"priority":         {frame.Table{"x-max-priority": int32(256)}, "{max_value_exceeded,256}"},
		"overflow":         {frame.Table{"x-overflow": "drop-tail"}, "invalid arg 'x-overflow' for queue 'q' in vhost '/': invalid_overflow"},
		"mode":             {frame.Table{"x-queue-mode": "busy"}, "invalid_queue_mode"},
		"single active":    {frame.Table{"x-single-active-consumer": "yes"}, "{unacceptable_type,longstr}"},
		"type":             {frame.Table{"x-queue-type": "odd"}, "invalid arg 'x-queue-type' for queue 'q' in vhost '/'"},
		"transient quorum": {frame.Table{"x-queue-type": "quorum"}, "invalid property 'non-durable' for queue 'q' in vhost '/'"},
	} {
		_, err := queue.Parse("/", &frame.QueueDeclare{Queue: "q", Arguments: c.arguments}, "")
		t.Run(name, func(t *testing.T) { refused(t, err, frame.PreconditionFailed, c.text) })
	}
	_, err := queue.Parse("/", &frame.QueueDeclare{Queue: "q", Arguments: frame.Table{"x-queue-type": "stream"}}, "")
	refused(t, err, frame.NotImplemented, "x-queue-type=stream")
	for property, m := range map[string]*frame.QueueDeclare{
		"invalid property 'auto-delete'":     {AutoDelete: true},
		"invalid property 'exclusive-owner'": {Exclusive: true},
		"invalid arg 'x-max-priority'":       {Arguments: frame.Table{"x-max-priority": int32(3)}},
	} {
		if m.Arguments == nil {
			m.Arguments = frame.Table{}
		}
		m.Durable, m.Arguments["x-queue-type"] = true, "quorum"
		_, err := queue.Parse("/", m, "me")
		refused(t, err, frame.PreconditionFailed, property)
	}
	for _, good := range []frame.Table{
		nil, {"x-ha-policy": "all", "x-max-in-memory-length": int32(1)}, {"x-queue-mode": "lazy"}, {"x-queue-type": "classic"},
		{"x-dead-letter-exchange": "", "x-dead-letter-routing-key": ""}, {"x-message-ttl": int32(0), "x-max-length": uint16(0)},
	} {
		if _, err := queue.Parse("/", &frame.QueueDeclare{Queue: "q", Arguments: good}, ""); err != nil {
			t.Errorf("%v: %v", good, err)
		}
	}
}

func TestDeclaringAgain(t *testing.T) {
	with := func(arguments frame.Table, durable, autoDelete, exclusive bool, owner string) *queue.Settings {
		s, err := queue.Parse("v", &frame.QueueDeclare{Queue: "q", Durable: durable, AutoDelete: autoDelete, Exclusive: exclusive, Arguments: arguments}, owner)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	s := with(frame.Table{"x-max-length": int32(2), "x-ha-policy": "all"}, false, false, false, "a")
	for _, same := range []*queue.Settings{s, with(frame.Table{"x-max-length": int64(2)}, false, false, false, "b")} {
		if err := s.Same(same); err != nil {
			t.Error(err)
		}
	}
	refused(t, s.Same(with(s.Arguments, true, false, false, "a")), frame.PreconditionFailed, "inequivalent arg 'durable' for queue 'q' in vhost 'v': received 'true' but current is 'false'")
	refused(t, s.Same(with(s.Arguments, false, true, false, "a")), frame.PreconditionFailed, "inequivalent arg 'auto_delete' for queue 'q' in vhost 'v': received 'true' but current is 'false'")
	refused(t, s.Same(with(nil, false, false, false, "a")), frame.PreconditionFailed, "inequivalent arg 'x-max-length' for queue 'q' in vhost 'v': received none but current is the value '2' of type 'signedint'")
}

func TestExclusiveQueues(t *testing.T) {
	mine := settings(t, nil, func(m *frame.QueueDeclare) { m.Exclusive = true })
	if err := mine.Access("me"); err != nil {
		t.Error(err)
	}
	refused(t, mine.Access("you"), frame.ResourceLocked, "RESOURCE_LOCKED - cannot obtain exclusive access to locked queue 'q' in vhost '/'")
	again := settings(t, nil, func(m *frame.QueueDeclare) { m.Exclusive, m.Durable = true, true })
	if err := mine.Same(again); err != nil {
		t.Errorf("durable is nothing for an exclusive queue: %v", err)
	}
	refused(t, mine.Same(settings(t, nil)), frame.ResourceLocked, "locked queue 'q'")
	if err := settings(t, nil).Access("anybody"); err != nil {
		t.Error(err)
	}
}

func TestExpirationIsRefused(t *testing.T) {
	for _, bad := range []string{"abc", "", "-1", "1.5", "4294967296", "99999999999999999999", "5s"} {
		p := frame.Properties{Expiration: bad, Flags: frame.HasExpiration}
		b, err := p.Append(nil)
		if err != nil {
			t.Fatal(err)
		}
		_, err = queue.NewMessage("", "q", b, nil)
		refused(t, err, frame.PreconditionFailed, "PRECONDITION_FAILED - invalid expiration '"+bad+"'")
	}
}

func TestConsumerPriority(t *testing.T) {
	if n, err := queue.Priority(frame.Table{"x-priority": int16(-3)}); n != -3 || err != nil {
		t.Error(n, err)
	}
	if n, err := queue.Priority(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	_, err := queue.Priority(frame.Table{"x-priority": "high"})
	refused(t, err, frame.PreconditionFailed, "x-priority")
}
