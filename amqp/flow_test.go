package amqp

import (
	"reflect"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

func TestHeartbeats(t *testing.T) {
	h := start(t)
	r := h.raw(t)
	r.start("EXTERNAL", "")
	is[*frame.ConnectionTune](r)
	r.send(0, &frame.ConnectionTuneOk{ChannelMax: 16, FrameMax: frame.MinFrame, Heartbeat: 1}, &frame.ConnectionOpen{VirtualHost: "/"})
	is[*frame.ConnectionOpenOk](r)
	begun := time.Now()
	f, err := r.r.Next()
	if err != nil || f.Kind != frame.KindHeartbeat {
		t.Fatalf("%+v, %v", f, err)
	}
	r.gone() // it says nothing, and is cut
	if took := time.Since(begun); took < time.Second {
		t.Errorf("it was cut after %v", took)
	}
	// One that says something stays.
	conn, err := h.connect(t, func(c *amqp091.Config) { c.Heartbeat = time.Second })
	if err != nil {
		t.Fatal(err)
	}
	closed := conn.NotifyClose(make(chan *amqp091.Error, 1))
	select {
	case err := <-closed:
		t.Fatal(err)
	case <-time.After(4 * time.Second):
	}
}

func TestAlarm(t *testing.T) {
	h := start(t)
	conn, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	declare(t, ch, "q")
	blocked := conn.NotifyBlocked(make(chan amqp091.Blocking, 2))
	h.p.alarm.raise("low on disk")
	if b := next(t, blocked); !b.Active || b.Reason != "low on disk" {
		t.Errorf("%+v", b)
	}
	publish(t, ch, "q", "1", "2")
	if n, err := h.connect(t); err != nil || n.Close() != nil { // another may come
		t.Fatal(err)
	}
	if ready, _ := h.f.waiting("q"); ready != 0 {
		t.Errorf("%d were taken", ready)
	}
	h.p.alarm.clear()
	if b := next(t, blocked); b.Active {
		t.Errorf("%+v", b)
	}
	eventually(t, "what was held is there", func() bool { ready, _ := h.f.waiting("q"); return ready == 2 })
	publish(t, ch, "q", "3")
	eventually(t, "it goes on", func() bool { ready, _ := h.f.waiting("q"); return ready == 3 })
	// More than is held, and it goes on in order.
	h.p.alarm.raise("again")
	next(t, blocked)
	done := make(chan error, 1)
	go func() {
		var err error
		for range 40 {
			if err == nil {
				err = ch.PublishWithContext(t.Context(), "", "q", false, false, amqp091.Publishing{Body: make([]byte, 10_000)})
			}
		}
		done <- err
	}()
	if ready, _ := h.f.waiting("q"); ready != 3 {
		t.Errorf("%d were taken", ready)
	}
	h.p.alarm.clear()
	next(t, blocked)
	if err := next(t, done); err != nil {
		t.Error(err)
	}
	eventually(t, "all are there", func() bool { ready, _ := h.f.waiting("q"); return ready == 43 })
	// A client that is blocked can close.
	h.p.alarm.raise("again")
	next(t, blocked)
	publish(t, ch, "q", "4")
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	h.p.alarm.clear()
}

// TestSlowReader has a client that consumes and does not read: it is sent so much and no
// more, and the rest once it reads.
func TestSlowReader(t *testing.T) {
	h := start(t)
	h.p.Pending = 64 << 10
	ch := h.channel(t)
	declare(t, ch, "q")
	const n, size = 500, 50_000
	r := h.raw(t).open()
	r.send(1, &frame.BasicConsume{Queue: "q", NoAck: true})
	is[*frame.BasicConsumeOk](r)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := ch.PublishWithContext(t.Context(), "", "q", false, false, amqp091.Publishing{Body: make([]byte, size)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := ch.Flow(true); err != nil {
		t.Fatal(err)
	}
	if ready, _ := h.f.waiting("q"); ready < n/4 {
		t.Errorf("%d of %d wait", ready, n)
	}
	messages, bytes := 0, 0
	for messages < n || bytes < n*size {
		f, err := r.r.Next()
		if err != nil {
			t.Fatalf("after %d messages: %v", messages, err)
		}
		switch f.Kind {
		case frame.KindMethod:
			messages++
		case frame.KindBody:
			bytes += len(f.Payload)
		}
	}
}

// TestConfirmsModel has confirms come in any order, and clients be told of each once.
func TestConfirmsModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 40).Draw(t, "n")
		tags := make([]uint64, n)
		for i := range tags {
			tags[i] = uint64(i + 1)
		}
		order := rapid.Permutation(tags).Draw(t, "order")
		taken := map[uint64]bool{}
		var c confirms
		told := map[uint64]bool{}
		open := map[uint64]bool{}
		for _, tag := range tags {
			open[tag] = true
		}
		tell := func(m frame.Method) {
			one := func(tag uint64, ack bool) {
				if !open[tag] {
					t.Fatalf("%d is told twice", tag)
				}
				delete(open, tag)
				told[tag] = ack
			}
			switch m := m.(type) {
			case *frame.BasicNack:
				one(m.DeliveryTag, false)
			case *frame.BasicAck:
				if !m.Multiple {
					one(m.DeliveryTag, true)
					return
				}
				for tag := range m.DeliveryTag {
					if open[tag+1] {
						one(tag+1, true)
					}
				}
			}
		}
		for len(order) > 0 {
			k := rapid.IntRange(1, len(order)).Draw(t, "at once")
			for _, tag := range order[:k] {
				taken[tag] = rapid.IntRange(0, 4).Draw(t, "taken") > 0
				c.news = append(c.news, result{tag, taken[tag]})
			}
			order = order[k:]
			c.flush(tell)
			c.news = nil
			if len(told) != n-len(order) {
				t.Fatalf("%d are told of %d", len(told), n-len(order))
			}
		}
		if !reflect.DeepEqual(told, taken) {
			t.Fatalf("%v is told of %v", told, taken)
		}
		if len(c.told) > 0 || c.first != uint64(n+1) {
			t.Fatalf("%+v is left", c)
		}
	})
}

// nobody is a queue that knows what it is told.
type nobody map[uint64]settlement

func (q nobody) settle(ids []uint64, how settlement) {
	for _, id := range ids {
		q[id] = how
	}
}

// TestUnackedModel holds unacked to a map.
func TestUnackedModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var u unacked
		q, s := nobody{}, &subscriber{}
		open := map[uint64]bool{}
		next := uint64(0)
		for range rapid.IntRange(1, 200).Draw(t, "steps") {
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				next++
				open[next] = true
				u.add(given{tag: next, from: q, id: next, to: s})
			case 2, 3:
				tag := rapid.Uint64Range(1, next+1).Draw(t, "tag")
				multiple := rapid.Bool().Draw(t, "multiple")
				got, ok := u.take(tag, multiple)
				if ok != open[tag] {
					t.Fatalf("%d: %v, and it is %v", tag, ok, open[tag])
				}
				if !ok {
					continue
				}
				want := 0
				for other := range open {
					if other == tag || multiple && other < tag {
						want++
						delete(open, other)
					}
				}
				if len(got) != want {
					t.Fatalf("%d are taken of %d", len(got), want)
				}
				if rapid.Bool().Draw(t, "back") {
					u.countAll(got, 1)
					u.putBack(got)
					for _, g := range got {
						open[g.tag] = true
					}
				}
			case 4:
				if rapid.IntRange(0, 9).Draw(t, "all") == 0 {
					if got := u.takeAll(); len(got) != len(open) {
						t.Fatalf("%d are taken of %d", len(got), len(open))
					}
					clear(open)
				}
			}
			if u.consumed != len(open) || s.has != len(open) {
				t.Fatalf("%d and %d are counted of %d", u.consumed, s.has, len(open))
			}
		}
	})
}
