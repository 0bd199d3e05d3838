package queue_test

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/queue/queuetest"
)

// modelMessage is a message of the model, which has all of them in one list.
type modelMessage struct {
	n        int // the order of publishing, and its body
	priority uint8
	expires  time.Time // zero: never
	handed   bool
	to       *modelConsumer // who has it; nil: it is ready
	got      bool           // by get
	id       uint64
	done     bool
	returns  int
}

type modelConsumer struct {
	to       *taker
	sub      *queue.Subscription
	noAck    bool
	prefetch int
	priority int
	has      int
	turn     int // when it last got something, or could again
}

// model is a queue, written without a thought for speed.
type model struct {
	max, maxPriority, limit int // -1: none
	now                     time.Time
	all                     []*modelMessage
	consumers               []*modelConsumer
	turns                   int
	dead                    []string
	highest                 int // that was ever handed out
}

func (m *model) ready() []*modelMessage {
	var ready []*modelMessage
	for _, one := range m.all {
		if !one.done && one.to == nil && !one.got {
			ready = append(ready, one)
		}
	}
	slices.SortStableFunc(ready, func(a, b *modelMessage) int {
		return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.n, b.n))
	})
	return ready
}

func (m *model) bury(one *modelMessage, why queue.Reason) {
	one.done = true
	m.dead = append(m.dead, fmt.Sprintf("%d:%s", one.n, why))
}

// expire looks at the head of each priority.
func (m *model) expire() {
	for again := true; again; {
		again = false
		for i, ready := 0, m.ready(); i < len(ready); i++ {
			if one := ready[i]; (i == 0 || ready[i-1].priority != one.priority) && !one.expires.IsZero() && !one.expires.After(m.now) {
				m.bury(one, queue.Expired)
				again = true
				break
			}
		}
	}
}

func (m *model) settle() {
	for {
		m.expire()
		ready := m.ready()
		able := slices.DeleteFunc(slices.Clone(m.consumers), func(c *modelConsumer) bool { return !c.noAck && c.prefetch > 0 && c.has >= c.prefetch })
		if len(ready) == 0 || len(able) == 0 {
			break
		}
		c := slices.MinFunc(able, func(a, b *modelConsumer) int {
			return cmp.Or(cmp.Compare(b.priority, a.priority), cmp.Compare(a.turn, b.turn))
		})
		m.hand(ready[0], c)
	}
	for ready := m.ready(); m.max >= 0 && len(ready) > m.max; ready = m.ready() {
		m.bury(ready[0], queue.MaxLength)
		m.expire()
	}
}

func (m *model) hand(one *modelMessage, c *modelConsumer) {
	m.turns++
	c.turn = m.turns
	m.highest = max(m.highest, one.n)
	if c.noAck {
		one.done, one.to = true, c
		return
	}
	c.has++
	one.to = c
}

// machine does the same to both.
type machine struct {
	model
	t         *rapid.T
	r         *room
	log       *queuetest.Log // nil: none
	arguments frame.Table
	q         *queue.Queue
	n         int
}

func (s *machine) publish(t *rapid.T) {
	s.n++
	one := &modelMessage{n: s.n}
	p := frame.Properties{Priority: uint8(rapid.IntRange(0, 6).Draw(t, "priority"))}
	if s.maxPriority > 0 {
		one.priority = min(p.Priority, uint8(s.maxPriority))
	}
	if rapid.IntRange(0, 3).Draw(t, "expires") == 0 {
		ms := rapid.IntRange(1, 50).Draw(t, "ms")
		p.Expiration = fmt.Sprint(ms)
		one.expires = s.now.Add(time.Duration(ms) * time.Millisecond)
	}
	s.all = append(s.all, one)
	s.settle()
	var v verdict
	s.q.Publish(message(s.r.t, fmt.Sprint(s.n), p), &v)
	if v.String() != "[true]" {
		t.Fatalf("%d was not confirmed: %v", s.n, &v)
	}
}

func (s *machine) consume(t *rapid.T) {
	if len(s.consumers) == 4 {
		t.Skip("enough")
	}
	c := &modelConsumer{noAck: rapid.IntRange(0, 3).Draw(t, "no ack") == 0, prefetch: rapid.IntRange(0, 3).Draw(t, "prefetch"), priority: rapid.IntRange(0, 1).Draw(t, "priority")}
	s.turns++
	c.turn = s.turns
	s.consumers = append(s.consumers, c)
	s.settle()
	c.to = &taker{room: 1 << 30}
	var err error
	if c.sub, err = s.q.Consume(c.to, queue.ConsumerOptions{NoAck: c.noAck, Prefetch: c.prefetch, Priority: c.priority}); err != nil {
		t.Fatal(err)
	}
}

func (s *machine) cancel(t *rapid.T) {
	if len(s.consumers) == 0 {
		t.Skip("none")
	}
	i := rapid.IntRange(0, len(s.consumers)-1).Draw(t, "which")
	c := s.consumers[i]
	s.compare(t)
	s.consumers = slices.Delete(s.consumers, i, i+1)
	s.settle()
	c.sub.Cancel()
}

func (s *machine) get(t *rapid.T) {
	noAck := rapid.Bool().Draw(t, "no ack")
	s.settle()
	ready := s.ready()
	d, left, ok, err := s.q.Get(s.r.t.Context(), noAck)
	if err != nil || ok != (len(ready) > 0) {
		t.Fatalf("got something: %v, %v", ok, err)
	}
	if !ok {
		return
	}
	if want := fmt.Sprint(ready[0].n); string(d.Message.Body) != want || d.Redelivered != ready[0].handed {
		t.Fatalf("got %s, redelivered %v, and not %s", d.Message.Body, d.Redelivered, want)
	}
	s.highest = max(s.highest, ready[0].n)
	if ready[0].got, ready[0].id = true, d.ID; noAck {
		ready[0].done = true
	}
	s.settle()
	if left != len(s.ready()) {
		t.Fatalf("%d are left, and not %d", left, len(s.ready()))
	}
}

func (s *machine) settleSome(t *rapid.T) {
	var out []*modelMessage
	for _, one := range s.all {
		if !one.done && (one.to != nil || one.got) {
			out = append(out, one)
		}
	}
	if len(out) == 0 {
		t.Skip("none")
	}
	some := rapid.SliceOfNDistinct(rapid.IntRange(0, len(out)-1), 1, 4, rapid.ID).Draw(t, "which")
	how := rapid.SampledFrom([]queue.Settlement{queue.Ack, queue.Reject, queue.Requeue, queue.Requeue}).Draw(t, "how")
	var ids []uint64
	for _, i := range some {
		one := out[i]
		ids = append(ids, one.id)
		if one.to != nil {
			one.to.has--
			if one.to.prefetch > 0 && one.to.has == one.to.prefetch-1 {
				s.turns++
				one.to.turn = s.turns // it can be asked again, behind the others
			}
		}
		one.to, one.got, one.id = nil, false, 0
		switch how {
		case queue.Ack:
			one.done = true
		case queue.Reject:
			s.bury(one, queue.Rejected)
		case queue.Requeue:
			one.handed = true
			if one.returns++; s.limit >= 0 && one.returns > s.limit {
				s.bury(one, queue.DeliveryLimit)
			}
		}
	}
	s.settle()
	s.q.Settle(append(ids, 1<<60), how)
	s.q.Settle(ids, queue.Ack) // twice is nothing, unless they are handed out anew with other ids
}

func (s *machine) purge(t *rapid.T) {
	s.settle()
	ready := s.ready()
	for _, one := range ready {
		one.done = true
	}
	if n, err := s.q.Purge(); err != nil || n != len(ready) {
		t.Fatalf("%d, %v, and not %d", n, err, len(ready))
	}
}

func (s *machine) pass(t *rapid.T) {
	d := time.Duration(rapid.IntRange(1, 30).Draw(t, "ms")) * time.Millisecond
	s.now = s.now.Add(d)
	s.settle()
	s.r.pass(d)
}

// power goes: all comes back that is not done, and what was handed out is redelivered.
func (s *machine) power(t *rapid.T) {
	if s.log == nil {
		t.Skip("it has no log")
	}
	s.compare(t)
	s.log.LosePower()
	s.r = newRoom(s.r.t) // what was before has stopped, its timers, too
	s.r.now = s.now
	s.consumers = nil
	for _, one := range s.all {
		if one.n <= s.highest {
			one.handed = true
		}
		if !one.done {
			one.to, one.got, one.returns = nil, false, 0
		}
	}
	s.settle()
	s.open()
}

func (s *machine) open() {
	if s.log == nil {
		s.q = s.r.queue(s.arguments)
		return
	}
	s.q = s.r.open(s.log, s.arguments)
}

// compare is called after each step.
func (s *machine) compare(t *rapid.T) {
	ready, unacked := len(s.ready()), 0
	for _, one := range s.all {
		if !one.done && (one.to != nil || one.got) {
			unacked++
		}
	}
	settled := func() string {
		c := s.q.Counts()
		return fmt.Sprint(c.Ready, c.Unacked, c.Consumers)
	}
	if got, want := settled(), fmt.Sprint(ready, unacked, len(s.consumers)); got != want {
		t.Fatalf("counts %s, and not %s", got, want)
	}
	for i, c := range s.consumers {
		want := map[string]*modelMessage{}
		for _, one := range s.all {
			if one.to == c && one.id == 0 {
				want[fmt.Sprint(one.n)] = one
			}
		}
		last := uint64(0)
		for _, d := range c.to.take() {
			one := want[string(d.Message.Body)]
			if one == nil {
				t.Fatalf("consumer %d was handed %s, which is not its", i, d.Message.Body)
			}
			if d.Redelivered != one.handed || d.ID <= last {
				t.Fatalf("consumer %d was handed %s, redelivered %v, id %d", i, d.Message.Body, d.Redelivered, d.ID)
			}
			one.id, last = d.ID, d.ID
			delete(want, string(d.Message.Body))
		}
		if len(want) > 0 {
			t.Fatalf("consumer %d was not handed %v", i, want)
		}
	}
	for _, one := range s.all {
		if one.to == nil && !one.got {
			one.id = 0
		}
	}
	slices.Sort(s.dead)
	died := s.r.diedSorted()
	if !slices.Equal(died, s.dead) {
		t.Fatalf("dead: %v, and not %v", died, s.dead)
	}
	s.dead = nil
}

func (r *room) diedSorted() (all []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, d := range r.dead {
		all = append(all, string(d.Message.Body)+":"+string(d.Reason()))
	}
	r.dead = nil
	slices.Sort(all)
	return all
}

// TestModel does at random what can be done to a queue, and to the model.
func TestModel(t *testing.T) {
	for _, logged := range []bool{false, true} {
		t.Run(fmt.Sprintf("logged %v", logged), func(t *testing.T) {
			rapid.Check(t, func(rt *rapid.T) {
				r := newRoom(t)
				s := &machine{t: rt, r: r, arguments: frame.Table{"x-dead-letter-exchange": "d"}, model: model{now: r.now, max: -1, limit: -1}}
				if rapid.Bool().Draw(rt, "max") {
					s.max = rapid.IntRange(0, 5).Draw(rt, "length")
					s.arguments["x-max-length"] = int32(s.max)
				}
				if rapid.Bool().Draw(rt, "priorities") {
					s.maxPriority = 4
					s.arguments["x-max-priority"] = int32(4)
				}
				if rapid.Bool().Draw(rt, "limit") {
					s.limit = 2
					s.arguments["x-delivery-limit"] = int32(2)
				}
				if logged {
					s.log = &queuetest.Log{Auto: true}
				}
				s.open()
				rt.Repeat(map[string]func(*rapid.T){
					"": s.compare, "publish": s.publish, "publish more": s.publish, "consume": s.consume, "cancel": s.cancel, "get": s.get, "settle": s.settleSome,
					"settle more": s.settleSome, "purge": s.purge, "pass": s.pass, "power": s.power,
				})
			})
		})
	}
}

// TestCrowd has many publish, consume and settle at once: nothing is lost, and nothing comes
// again that was acknowledged.
func TestCrowd(t *testing.T) {
	const publishers, each = 4, 500
	for _, logged := range []bool{false, true} {
		r := newRoom(t)
		q := r.queue(nil)
		if logged {
			r.Budget = 200
			q = r.open(&queuetest.Log{Auto: true}, nil)
		}
		var all sync.WaitGroup
		seen := &crowd{acked: map[string]bool{}, over: make(chan struct{}), all: publishers * each}
		credit := queue.NewCredit(7)
		for i := range 3 {
			w := &worker{crowd: seen, q: q, work: make(chan queue.Delivery, 1000), odd: i}
			if _, err := q.Consume(w, queue.ConsumerOptions{Prefetch: i, Credit: credit}); err != nil {
				t.Fatal(err)
			}
			all.Go(w.run)
		}
		for p := range publishers {
			all.Go(func() {
				for n := range each {
					publish(t, q, fmt.Sprintf("%d-%d", p, n))
				}
			})
		}
		all.Wait()
		if n := q.Counts(); n.Ready != 0 || n.Unacked != 0 || len(seen.twice) > 0 {
			t.Fatalf("logged %v: %+v, twice: %v", logged, n, seen.twice)
		}
	}
}

type crowd struct {
	mu    sync.Mutex
	acked map[string]bool
	twice []string
	all   int
	over  chan struct{}
}

type worker struct {
	*crowd
	q    *queue.Queue
	work chan queue.Delivery
	odd  int
}

func (w *worker) Deliver(d queue.Delivery) bool { w.work <- d; return true }
func (w *worker) Gone()                         {}

func (w *worker) run() {
	for n := 0; ; n++ {
		select {
		case <-w.over:
			return
		case d := <-w.work:
			if n%5 == w.odd {
				w.q.Settle([]uint64{d.ID}, queue.Requeue)
				continue
			}
			w.mu.Lock()
			body := string(d.Message.Body)
			if w.acked[body] {
				w.twice = append(w.twice, body)
			}
			w.acked[body] = true
			last := len(w.acked) == w.all
			w.mu.Unlock()
			w.q.Settle([]uint64{d.ID}, queue.Ack)
			if last {
				close(w.over)
			}
		}
	}
}
