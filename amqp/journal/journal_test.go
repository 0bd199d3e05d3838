package journal_test

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/journal"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/route"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestMain(m *testing.M) { await.Main(m) }

// opened is a journal with one queue, as its owner has it.
type opened struct {
	t      *testing.T
	j      *journal.Journal
	table  *route.Table
	queues []journal.Queue
	q      *queue.Queue
	failed chan error
}

// outlet drops dead letters, and remembers nothing.
type outlet struct{}

func (outlet) DeadLetter(d *queue.Dead) { d.Settled() }
func (outlet) Gone(*queue.Queue)        {}

func open(t *testing.T, nc *nats.Conn, edit ...func(*journal.Options)) *opened {
	t.Helper()
	o := &opened{t: t, table: route.NewTable("/"), failed: make(chan error, 1)}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	options := journal.Options{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), Failed: func(err error) { o.failed <- err }}
	for _, f := range edit {
		f(&options)
	}
	var err error
	o.j, o.queues, err = journal.Open(ctx, nc, options, o.table)
	if err != nil {
		t.Fatal(err)
	}
	s, err := queue.Parse("/", &frame.QueueDeclare{Queue: "q", Durable: true}, "")
	if err != nil {
		t.Fatal(err)
	}
	if len(o.queues) == 0 {
		if err := o.j.Record(ctx, journal.Change{Declare: &journal.Queue{ID: "q1", Name: "q"}}); err != nil {
			t.Fatal(err)
		}
	}
	if o.q, err = queue.Open(s, &queue.Env{Timers: queue.NewTimers(nil), Outlet: outlet{}}, o.j.Log("q1")); err != nil {
		t.Fatal(err)
	}
	return o
}

func (o *opened) close() {
	o.q.Close()
	o.j.Close()
}

// told collects what became of messages. It implements queue.Done for each.
type told struct {
	mu           sync.Mutex
	taken, other []int
}

type one struct {
	*told
	n int
}

func (o one) Done(taken bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if taken {
		o.told.taken = append(o.told.taken, o.n)
	} else {
		o.other = append(o.other, o.n)
	}
}

func (o *told) count() (taken, other int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.taken), len(o.other)
}

func (o *opened) publish(from, to int, told *told) {
	o.t.Helper()
	for n := from; n < to; n++ {
		m, err := queue.NewMessage("", "q", []byte{0, 0}, []byte(strconv.Itoa(n)))
		if err != nil {
			o.t.Fatal(err)
		}
		o.q.Publish(m, one{told, n})
	}
}

// all takes everything that is ready, without settling it.
func (o *opened) all() (got []queue.Delivery) {
	o.t.Helper()
	for {
		d, _, ok, err := o.q.Get(o.t.Context(), false)
		if err != nil {
			o.t.Fatal(err)
		}
		if !ok {
			return got
		}
		got = append(got, d)
	}
}

func bodies(all []queue.Delivery) (out []int) {
	for _, d := range all {
		n, _ := strconv.Atoi(string(d.Message.Body))
		out = append(out, n)
	}
	return out
}

func numbers(from, to int) (out []int) {
	for n := from; n < to; n++ {
		out = append(out, n)
	}
	return out
}

func (o *opened) stored(told *told, n int) {
	o.t.Helper()
	await.Nil(o.t, "all is confirmed", func() error {
		if taken, other := told.count(); taken != n || other > 0 {
			return fmt.Errorf("%d are, and %d are refused", taken, other)
		}
		return nil
	})
}

// messages counts those on a subject of the stream.
func messages(t *testing.T, nc *nats.Conn, subject string) (n uint64) {
	t.Helper()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), "AMQP")
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	for _, count := range info.State.Subjects {
		n += count
	}
	return n
}

// TestKeeps has a queue come back with what was not done with, in its order, and with what
// had been handed out as redelivered.
func TestKeeps(t *testing.T) {
	s := fleetbustest.Start(t)
	nc := s.Dial("acme", "owner")
	o := open(t, nc)
	var all told
	o.publish(0, 1000, &all)
	o.stored(&all, 1000)
	if !slices.Equal(all.taken, numbers(0, 1000)) {
		t.Error("confirms came out of order")
	}
	var ids []uint64
	for n := range 600 {
		d, _, ok, err := o.q.Get(t.Context(), false)
		if err != nil || !ok {
			t.Fatal(ok, err)
		}
		if n < 100 || n%2 == 1 {
			ids = append(ids, d.ID)
		}
	}
	before := messages(t, nc, "amqp.m.*")
	if before > 500 {
		t.Errorf("1000 records took %d messages: none went together", before)
	}
	o.q.Settle(ids, queue.Ack)
	await.Nil(t, "what is done with is out of the stream, as far as it can be", func() error {
		// Each of the first records, as many as are sent at once, had a message of its own.
		if n := messages(t, nc, "amqp.m.*"); n > before-3 {
			return fmt.Errorf("%d are there, of %d", n, before)
		}
		return nil
	})
	o.close()

	o = open(t, nc)
	var want []int
	for n := 100; n < 1000; n++ {
		if n >= 600 || n%2 == 0 {
			want = append(want, n)
		}
	}
	again := o.all()
	if !slices.Equal(bodies(again), want) {
		t.Errorf("got %d messages, want %d: %v", len(again), len(want), bodies(again))
	}
	ids = nil
	for i, d := range again {
		if d.Redelivered != (want[i] < 600) {
			t.Errorf("%d is redelivered: %v", want[i], d.Redelivered)
		}
		ids = append(ids, d.ID)
	}
	slices.Reverse(ids)
	for some := range slices.Chunk(ids, 3) { // many notes, with gaps
		o.q.Settle(some, queue.Ack)
		if len(some)%2 == 0 {
			await.True(time.Millisecond, func() bool { return false })
		}
	}
	await.Nil(t, "nothing but the last notes is left", func() error {
		if n, notes := messages(t, nc, "amqp.m.*"), messages(t, nc, "amqp.n.*"); n > 0 || notes > 1 {
			return fmt.Errorf("%d messages and %d notes are there", n, notes)
		}
		return nil
	})
	o.close()
	o = open(t, nc)
	if left := o.all(); len(left) > 0 {
		t.Errorf("%v came again", bodies(left))
	}
	if n, err := o.q.Delete(false, false); n != 0 || err != nil {
		t.Error(n, err)
	}
	o.j.Close()
}

// TestTopologyIsKept has exchanges, queues and bindings come back, also when there were very
// many changes.
func TestTopologyIsKept(t *testing.T) {
	nc := fleetbustest.Start(t).Dial("acme", "owner")
	ctx := t.Context()
	o := open(t, nc)
	record := func(c journal.Change) {
		t.Helper()
		if c.Route != nil {
			if _, _, err := o.table.Apply(*c.Route); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.j.Record(ctx, c); err != nil {
			t.Fatal(err)
		}
	}
	name := route.Name("gone")
	record(journal.Change{Declare: &journal.Queue{ID: "q2", Name: name}})
	record(journal.Change{Route: &route.Change{Kind: route.DeclareExchange, Exchange: &route.Exchange{Name: "x", Type: route.Topic, Durable: true}}})
	record(journal.Change{Route: &route.Change{Kind: route.BindTo, Binding: &route.Binding{Source: "x", Destination: "gone", Key: "a.*"}}})
	record(journal.Change{Route: &route.Change{Kind: route.BindTo, Binding: &route.Binding{Source: "x", Destination: "q", Key: "b.#", Arguments: frame.Table{"n": int16(7)}}}})
	record(journal.Change{Delete: &name})
	o.table.DropQueue("gone")
	for round := range 3 {
		want, err := o.table.MarshalJSON()
		if err != nil {
			t.Fatal(err)
		}
		o.close()
		o = open(t, nc)
		if got, err := o.table.MarshalJSON(); err != nil || string(got) != string(want) {
			t.Errorf("round %d: got %s, want %s, %v", round, got, want, err)
		}
		if len(o.queues) != 1 || o.queues[0].ID != "q1" || o.queues[0].Name != "q" {
			t.Errorf("round %d: got %+v", round, o.queues)
		}
		if round == 0 {
			for range 1100 {
				record(journal.Change{Route: &route.Change{Kind: route.BindTo, Binding: &route.Binding{Source: "x", Destination: "q", Key: "c"}}})
			}
		}
	}
	if n := messages(t, nc, "amqp.t"); n > 2 {
		t.Errorf("%d changes are kept", n)
	}
	o.close()
}

// TestDeposed has a second journal take over from one that is writing: all that the first
// said is stored is there, it says nothing of what was on its way, which may be there, and no
// to what comes after.
func TestDeposed(t *testing.T) {
	s := fleetbustest.Start(t)
	first, second := s.Dial("acme", "first"), s.Dial("acme", "second")
	a := open(t, first)
	var all told
	ctx, stop := context.WithCancel(t.Context())
	var writing sync.WaitGroup
	writing.Go(func() {
		for n := 0; ctx.Err() == nil; n++ {
			a.publish(n, n+1, &all)
			if n%100 == 0 {
				await.True(time.Second, func() bool { taken, other := all.count(); return taken+other > n-1000 })
			}
		}
	})
	await.Nil(t, "it writes", func() error {
		if taken, _ := all.count(); taken < 500 {
			return fmt.Errorf("%d are stored", taken)
		}
		return nil
	})
	b := open(t, second)
	var late told
	b.publish(1_000_000, 1_000_010, &late)
	b.stored(&late, 10)
	await.Nil(t, "the first is told", func() error {
		select {
		case err := <-a.failed:
			t.Log(err)
			return nil
		default:
			return fmt.Errorf("it is not")
		}
	})
	stop()
	writing.Wait()
	a.publish(2_000_000, 2_000_001, &all)
	taken, _ := all.count()
	await.Nil(t, "nothing is on its way", func() error {
		if now, other := all.count(); other == 0 || now != taken {
			taken = now
			return fmt.Errorf("%d and %d are told", now, other)
		}
		return nil
	})
	there := bodies(b.all())
	for _, n := range all.taken {
		if !slices.Contains(there, n) {
			t.Errorf("%d was stored, and is not there", n)
		}
	}
	for _, n := range all.other {
		if slices.Contains(there, n) {
			t.Errorf("%d was refused, and is there", n)
		}
	}
	if !slices.IsSorted(there) {
		t.Error("they are out of order")
	}
	a.close()
	b.close()
}

// TestHandedOutBefore has an owner that was lost without a word, and one that comes after it,
// hands out nothing and closes the journal: what the first may have handed out comes from the
// third as redelivered.
func TestHandedOutBefore(t *testing.T) {
	s := fleetbustest.Start(t)
	first := open(t, s.Dial("acme", "first"))
	var all told
	first.publish(0, 20, &all)
	first.stored(&all, 20)
	second := open(t, s.Dial("acme", "second"))
	second.close()
	third := open(t, s.Dial("acme", "third"))
	var late told
	third.publish(20, 25, &late)
	third.stored(&late, 5)
	got := third.all()
	if !slices.Equal(bodies(got), numbers(0, 25)) {
		t.Errorf("got %v", bodies(got))
	}
	for i, d := range got {
		if d.Redelivered != (i < 20) {
			t.Errorf("%d is redelivered: %v", i, d.Redelivered)
		}
	}
	third.close()
	first.close()
}

// TestClosedWithoutNotes has an owner close that could not note what it handed out: it comes
// as redelivered from the next.
func TestClosedWithoutNotes(t *testing.T) {
	s := fleetbustest.Start(t)
	first := open(t, s.Dial("acme", "first"))
	var all told
	first.publish(0, 20, &all)
	first.stored(&all, 20)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	js, err := jetstream.New(s.Dial("acme", "other"))
	if err != nil {
		t.Fatal(err)
	}
	limit := func(bytes int32) {
		t.Helper()
		stream, err := js.Stream(ctx, "AMQP")
		if err != nil {
			t.Fatal(err)
		}
		config := stream.CachedInfo().Config
		config.MaxMsgSize = bytes
		if _, err := js.UpdateStream(ctx, config); err != nil {
			t.Fatal(err)
		}
	}
	// What has no payload is taken, and notes are not.
	limit(80)
	if got := first.all(); len(got) != 20 {
		t.Fatalf("%d came", len(got))
	}
	first.close()
	limit(-1)
	second := open(t, s.Dial("acme", "second"))
	for _, d := range second.all() {
		if !d.Redelivered {
			t.Errorf("%s is not marked", d.Message.Body)
		}
	}
	second.close()
}

// TestLeaderDies has nothing stored twice, lost or out of order when the leader of the
// stream dies in the middle.
func TestLeaderDies(t *testing.T) {
	if testing.Short() {
		t.Skip("it starts three nodes")
	}
	all := fleetbustest.StartCluster(t, 3)
	nc := all[0].Dial("acme", "owner")
	o := open(t, nc)
	var told told
	n := 0
	for range 2 {
		o.publish(n, n+2000, &told)
		n += 2000
		await.Nil(t, "the leader steps down", func() error {
			_, err := nc.Request("$JS.API.STREAM.LEADER.STEPDOWN.AMQP", nil, time.Second) // one that is late is not answered
			return err
		})
		o.publish(n, n+2000, &told)
		n += 2000
	}
	o.stored(&told, n)
	if got := bodies(o.all()); !slices.Equal(got, numbers(0, n)) {
		t.Errorf("got %d messages, want %d in order", len(got), n)
	}
	if !slices.Equal(told.taken, numbers(0, n)) {
		t.Error("confirms are out of order")
	}
	o.close()
}
