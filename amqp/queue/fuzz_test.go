package queue_test

import (
	"bytes"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
)

// FuzzDecodeRecord reads what a log may have. What can be read is what was written, and
// can be handed out and die.
func FuzzDecodeRecord(f *testing.F) {
	for _, p := range []frame.Properties{
		{}, {Priority: 3, Expiration: "5"}, {ContentType: "t", ContentEncoding: "e", CorrelationID: "c", ReplyTo: "r", Headers: frame.Table{"x-delivery-count": int64(1)}, DeliveryMode: 2},
		{Headers: frame.Table{"x-death": []any{frame.Table{"queue": "q", "reason": "rejected", "count": int64(2)}, "odd"}, "CC": []any{"a", int32(1)}}},
	} {
		r := &queue.Record{Published: 1767323045000, Message: message(f, "body", p)}
		f.Add(r.Append(nil))
	}
	f.Add([]byte{1})
	f.Add([]byte("\x01\x00\x00\x00\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := queue.DecodeRecord(b)
		if err != nil {
			return
		}
		if again, err := queue.DecodeRecord(r.Append(nil)); err != nil || again.Published != r.Published || again.Message.Exchange != r.Message.Exchange || again.Message.Key != r.Message.Key ||
			!bytes.Equal(again.Message.Properties, r.Message.Properties) || !bytes.Equal(again.Message.Body, r.Message.Body) {
			t.Fatalf("%+v came back as %+v, %v", r.Message, again, err)
		}
		var before frame.Properties
		if err := before.Decode(r.Message.Properties); err != nil {
			t.Fatal(err)
		}
		room := newRoom(t)
		q := room.queue(frame.Table{"x-queue-type": "quorum", "x-dead-letter-exchange": "d", "x-delivery-limit": int32(1)}, durable)
		q.Publish(r.Message, nil)
		for range 2 {
			d, _, ok, err := q.Get(t.Context(), false)
			if err != nil {
				t.Fatal(err)
			}
			if !ok { // it has expired
				break
			}
			var p frame.Properties
			if err := p.Decode(d.Message.Properties); err != nil || p.Type != before.Type || p.Headers["x-delivery-count"] == nil {
				t.Fatalf("%+v is handed out as %+v, %v", before, p, err)
			}
			q.Settle([]uint64{d.ID}, queue.Requeue)
		}
		for _, d := range room.dead {
			var p frame.Properties
			if err := p.Decode(d.Message.Properties); err != nil || p.Expiration != "" || p.Headers["x-death"] == nil {
				t.Fatalf("%+v died as %+v, %v", before, p, err)
			}
			d.Cycles("q")
		}
	})
}

// FuzzNewMessage has the few properties that a queue reads be those that there are.
func FuzzNewMessage(f *testing.F) {
	for _, p := range []frame.Properties{{Priority: 200, Expiration: "17", ReplyTo: "r"}, {Headers: frame.Table{"a": "b"}, Expiration: "x"}} {
		b, _ := p.Append(nil)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := queue.NewMessage("", "q", b, nil)
		if frame.CheckProperties(b) != nil {
			return // it has only not to panic
		}
		var p frame.Properties
		if err := p.Decode(b); err != nil {
			t.Fatal(err)
		}
		number := p.Flags&frame.HasExpiration == 0 || p.Expiration != "" && strings.Trim(p.Expiration, "0123456789") == "" && len(strings.TrimLeft(p.Expiration, "0")) < 10
		if number && err != nil {
			t.Fatalf("%q: %v", p.Expiration, err)
		}
		if err != nil {
			return
		}
		room := newRoom(t)
		q := room.queue(frame.Table{"x-max-priority": int32(255)})
		q.Publish(message(t, "one less", frame.Properties{Priority: max(p.Priority, 1) - 1}), nil)
		q.Publish(m, nil)
		got := drain(t, q)
		if want := " one less"; p.Expiration == "" && p.Priority > 0 && got != want {
			t.Fatalf("priority %d: %q", p.Priority, got)
		}
	})
}
