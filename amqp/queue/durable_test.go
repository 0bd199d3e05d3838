package queue_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/queue/queuetest"
)

func (r *room) open(log queue.Log, arguments frame.Table) *queue.Queue {
	r.t.Helper()
	q, err := queue.Open(settings(r.t, arguments, durable), &r.Env, log)
	if err != nil {
		r.t.Fatal(err)
	}
	return q
}

func TestConfirmedOnceStored(t *testing.T) {
	log := &queuetest.Log{}
	q := newRoom(t).open(log, nil)
	c, _ := consume(t, q, queue.ConsumerOptions{})
	var v verdict
	q.Publish(message(t, "1", frame.Properties{}), &v)
	q.Publish(message(t, "2", frame.Properties{}), &v)
	same(t, "before", v.String()+bodies(c.take()), "[]")
	log.Sync()
	same(t, "after", v.String()+bodies(c.take()), "[true true]1 2")
	log.Fail(errors.New("the disk is full"))
	q.Publish(message(t, "3", frame.Properties{}), &v)
	log.Sync()
	same(t, "refused by the log", v.String()+bodies(c.take()), "[true true false]")
	log.Fail(fmt.Errorf("%w: another node has the log", queue.ErrUnknown))
	q.Publish(message(t, "4", frame.Properties{}), &v)
	log.Sync()
	same(t, "nobody knows", v.String()+bodies(c.take()), "[true true false]")
}

func TestPowerLoss(t *testing.T) {
	log := &queuetest.Log{}
	r := newRoom(t)
	q := r.open(log, nil)
	publish(t, q, "1", "2", "3", "4")
	log.Sync()
	c, _ := consume(t, q, queue.ConsumerOptions{Prefetch: 3})
	got := c.take()
	q.Settle(ids(got[:1]), queue.Ack)
	log.Sync()
	q.Settle(ids(got[1:2]), queue.Ack) // this is lost
	publish(t, q, "5")                 // and this was not confirmed
	log.LosePower()
	q = r.open(log, nil)
	same(t, "what is there", drain(t, q), "2! 3! 4!")
	log.Sync()
	if n := log.Left(); n != 0 {
		t.Fatalf("%d are left in the log", n)
	}
	publish(t, q, "6")
	log.Sync()
	log.LosePower()
	same(t, "what was never handed out", drain(t, r.open(log, nil)), "6")
}

func TestExpiryGoesOnWithoutPower(t *testing.T) {
	log := &queuetest.Log{Auto: true}
	r := newRoom(t)
	arguments := frame.Table{"x-message-ttl": int32(1000), "x-dead-letter-exchange": "d"}
	q := r.open(log, arguments)
	publish(t, q, "1")
	r.pass(500 * time.Millisecond)
	publish(t, q, "2")
	q.Close()
	r.pass(600 * time.Millisecond)
	q = r.open(log, arguments)
	same(t, "dead", r.died(), "1:expired")
	same(t, "left", drain(t, q), "2")
}

func TestDeadLettersStayInTheLogUntilTheyAreSettled(t *testing.T) {
	log := &queuetest.Log{Auto: true}
	r := newRoom(t)
	r.keep = true
	arguments := frame.Table{"x-dead-letter-exchange": "d"}
	q := r.open(log, arguments)
	publish(t, q, "1", "2")
	for range 2 {
		d, _, _, _ := q.Get(t.Context(), false)
		q.Settle([]uint64{d.ID}, queue.Reject)
	}
	r.dead[0].Settled()
	log.LosePower()
	r.dead = nil
	same(t, "the other", drain(t, r.open(log, arguments)), "2!")
}

func TestADeletedQueueHasNoLog(t *testing.T) {
	log := &queuetest.Log{}
	q := newRoom(t).open(log, nil)
	var v verdict
	q.Publish(message(t, "1", frame.Properties{}), &v)
	if _, err := q.Delete(false, false); err != nil || !log.Dropped() {
		t.Fatal(err, log.Dropped())
	}
	same(t, "what was on its way", v.String(), "[true]")
	q = newRoom(t).open(&queuetest.Log{}, nil)
	q.Publish(message(t, "1", frame.Properties{}), &v)
	q.Close()
	q.Close()
	same(t, "what was on its way to a queue that stops", v.String(), "[true false]")
}

func TestRejectPublishCountsWhatIsOnItsWay(t *testing.T) {
	log := &queuetest.Log{}
	q := newRoom(t).open(log, frame.Table{"x-max-length": int32(2), "x-overflow": "reject-publish"})
	var v verdict
	for range 3 {
		q.Publish(message(t, "m", frame.Properties{}), &v)
	}
	same(t, "the third", v.String(), "[false]")
	log.Sync()
	same(t, "the first", v.String(), "[false true true]")
}

// numbers are bodies of ten bytes.
func numbers(from, to int) (all []string) {
	for n := from; n < to; n++ {
		all = append(all, fmt.Sprintf("%010d", n))
	}
	return all
}

func TestBodiesAreReadAgain(t *testing.T) {
	for _, priorities := range []frame.Table{nil, {"x-max-priority": int32(2)}} {
		log := &queuetest.Log{Auto: true}
		r := newRoom(t)
		r.Budget = 100
		q := r.open(log, priorities)
		publish(t, q, numbers(0, 300)...)
		d, left, ok, err := q.Get(t.Context(), false)
		if err != nil || !ok || left != 299 {
			t.Fatal(left, ok, err)
		}
		q.Settle([]uint64{d.ID}, queue.Requeue)
		same(t, "all, in order", drain(t, q), "0000000000! "+strings.Join(numbers(1, 300), " "))
		if n := log.Reads(); n < 100 || n > 200 {
			t.Errorf("%d reads for 290 messages, of which two are a quarter of the budget", n)
		}
		if n := log.Left(); n != 0 {
			t.Errorf("%d are left in the log", n)
		}
	}
}

func TestAConsumerWaitsForBodies(t *testing.T) {
	log := &queuetest.Log{Auto: true}
	log.Hold()
	r := newRoom(t)
	r.Budget = 40
	q := r.open(log, frame.Table{"x-dead-letter-exchange": "d", "x-message-ttl": int32(1000)})
	publish(t, q, numbers(0, 10)...)
	c, _ := consume(t, q, queue.ConsumerOptions{Prefetch: 6})
	same(t, "those in memory", bodies(c.take()), strings.Join(numbers(0, 4), " "))
	if n := log.Answer(); n != 1 {
		t.Fatalf("%d reads at once", n)
	}
	same(t, "one that was read", bodies(c.take()), strings.Join(numbers(4, 5), " "))
	if n, err := q.Purge(); n != 5 || err != nil {
		t.Fatal(n, err)
	}
	log.Answer() // for what was purged
	publish(t, q, numbers(10, 20)...)
	same(t, "one at once", bodies(c.take()), strings.Join(numbers(10, 11), " "))
	r.pass(time.Second)
	if n := log.Answer(); n != 8 {
		t.Errorf("%d dead letters were read again", n)
	}
	same(t, "dead", r.died(), strings.Join(numbers(11, 20), ":expired ")+":expired")
}

func TestALogThatCannotBeRead(t *testing.T) {
	log := &queuetest.Log{Auto: true}
	r := newRoom(t)
	r.Budget = 1
	q := r.open(log, nil)
	publish(t, q, "1", "2", "3")
	if d, _, _, err := q.Get(t.Context(), true); err != nil || string(d.Message.Body) != "1" {
		t.Fatal(err)
	}
	log.Fail(errors.New("the disk is gone"))
	if _, _, _, err := q.Get(t.Context(), true); !errors.Is(err, queuetest.ErrRead) {
		t.Fatal(err)
	}
	if _, _, _, err := q.Get(t.Context(), true); err == nil || errors.Is(err, queuetest.ErrRead) {
		t.Fatal("it was read again at once:", err)
	}
	log.Fail(nil)
	r.pass(time.Second)
	same(t, "later", drain(t, q), "2 3")

	log.Hold()
	publish(t, q, "4", "5")
	if _, _, _, err := q.Get(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if _, _, _, err := q.Get(ctx, true); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestDamagedLogs(t *testing.T) {
	r := newRoom(t)
	_, err := queue.Open(settings(t, frame.Table{"x-expires": int32(1)}, durable), &r.Env, damaged{})
	if !errors.Is(err, queue.ErrRecord) {
		t.Fatal(err)
	}
	r.pass(time.Hour) // Drop would panic
}

type damaged struct{ queue.Log }

func (damaged) Replay(func(*queue.Record) error) (uint64, error) {
	_, err := queue.DecodeRecord([]byte("\x01\x05\x03abc"))
	return 0, err
}

// TestLongQueue has a queue cost little for each of very many messages, and lose none, nor
// their order, whatever is published and put back meanwhile.
func TestLongQueue(t *testing.T) {
	const n, budget = 10_000, 1000
	log := &queuetest.Log{Auto: true}
	r := newRoom(t)
	var held atomic.Int64
	r.Budget, r.Held = budget, &held
	q := r.open(log, nil)
	for i := range n {
		publish(t, q, fmt.Sprint(i))
	}
	if most := int64(budget*300 + n*24); held.Load() > most {
		t.Errorf("%d messages hold %d bytes, of at most %d", n, held.Load(), most)
	}
	for life := range 2 {
		for i := range n / 2 {
			d, _, ok, err := q.Get(t.Context(), false)
			if err != nil || !ok {
				t.Fatal(ok, err)
			}
			if i%7 == 0 {
				q.Settle([]uint64{d.ID}, queue.Requeue)
				if d, _, ok, err = q.Get(t.Context(), false); err != nil || !ok {
					t.Fatal(ok, err)
				}
			}
			if want := fmt.Sprint(life*n/2 + i); string(d.Message.Body) != want {
				t.Fatalf("got %s, want %s", d.Message.Body, want)
			}
			q.Settle([]uint64{d.ID}, queue.Ack)
			if life == 0 && i%2 == 0 {
				publish(t, q, fmt.Sprint(n+i/2))
			}
		}
		if life == 0 {
			q.Close()
			q = r.open(log, nil)
		}
	}
	if c := q.Counts(); c.Ready != n/4 {
		t.Errorf("%d are left", c.Ready)
	}
	if _, err := q.Purge(); err != nil || held.Load() != 0 || log.Left() != 0 {
		t.Errorf("%d bytes are held, and %d left, after a purge: %v", held.Load(), log.Left(), err)
	}
}
