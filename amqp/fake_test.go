package amqp

import (
	"context"
	"crypto/rand"
	"net"
	"sync"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
)

// fake is a virtual host for tests of the machine: direct queues in memory, and an
// exchange "fan" to all that are bound. One lock is over all of it.
type fake struct {
	mu     sync.Mutex
	queues map[string]*fakeQueue
	bound  map[string]bool
	hosts  int
	later  bool // confirms wait for confirmAll
	owed   []func()
	fail   error // of do
}

type fakeQueue struct {
	f         *fake
	name      string
	owner     *fakeHost
	next      uint64
	ready     []*fakeMessage
	given     map[uint64]*fakeMessage
	consumers []*fakeSub
}

type fakeMessage struct {
	*message
	at, id      uint64
	redelivered bool
}

type fakeHost struct {
	f    *fake
	who  peer
	over bool
}

type fakeSub struct {
	q      *fakeQueue
	c      consumer
	noAck  bool
	paused bool
}

func newFake() *fake { return &fake{queues: map[string]*fakeQueue{}, bound: map[string]bool{}} }

func (f *fake) open(context.Context, *fleetbus.Session, func() ([]byte, error)) (vhost, net.Conn, error) {
	return f, nil, nil
}

func (f *fake) holds() bool { return true }

func (f *fake) attach(_ context.Context, who peer) (host, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts++
	return &fakeHost{f: f, who: who}, nil
}

func (h *fakeHost) find(name string) (*fakeQueue, error) {
	q := h.f.queues[name]
	if q == nil {
		return nil, frame.ChannelError(frame.NotFound, "no queue '%s' in vhost '%s'", name, h.who.vhost)
	}
	if q.owner != nil && q.owner != h {
		return nil, frame.ChannelError(frame.ResourceLocked, "cannot obtain exclusive access to locked queue '%s' in vhost '%s'", name, h.who.vhost)
	}
	return q, nil
}

func (h *fakeHost) do(_ context.Context, m frame.Method) (frame.Method, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	if h.f.fail != nil {
		return nil, h.f.fail
	}
	switch m := m.(type) {
	case *frame.QueueDeclare:
		q, err := h.find(m.Queue)
		if e, _ := err.(*frame.Error); e != nil && (m.Passive || e.Code != frame.NotFound) {
			return nil, err
		}
		if q == nil {
			if m.Queue == "" {
				m.Queue = "amq.gen-" + rand.Text()
			}
			q = &fakeQueue{f: h.f, name: m.Queue, given: map[uint64]*fakeMessage{}}
			if m.Exclusive {
				q.owner = h
			}
			h.f.queues[m.Queue] = q
		}
		return &frame.QueueDeclareOk{Queue: q.name, MessageCount: uint32(len(q.ready)), ConsumerCount: uint32(len(q.consumers))}, nil
	case *frame.QueueBind:
		if _, err := h.find(m.Queue); err != nil {
			return nil, err
		}
		h.f.bound[m.Queue] = true
		return &frame.QueueBindOk{}, nil
	case *frame.QueueUnbind:
		delete(h.f.bound, m.Queue)
		return &frame.QueueUnbindOk{}, nil
	case *frame.QueuePurge:
		q, err := h.find(m.Queue)
		if err != nil {
			return nil, err
		}
		n := len(q.ready)
		q.ready = nil
		return &frame.QueuePurgeOk{MessageCount: uint32(n)}, nil
	case *frame.QueueDelete:
		q := h.f.queues[m.Queue]
		if q == nil {
			return &frame.QueueDeleteOk{}, nil
		}
		h.f.drop(q)
		return &frame.QueueDeleteOk{MessageCount: uint32(len(q.ready))}, nil
	case *frame.ExchangeDeclare:
		return &frame.ExchangeDeclareOk{}, nil
	case *frame.ExchangeDelete:
		return &frame.ExchangeDeleteOk{}, nil
	case *frame.ExchangeBind:
		return &frame.ExchangeBindOk{}, nil
	case *frame.ExchangeUnbind:
		return &frame.ExchangeUnbindOk{}, nil
	}
	return nil, frame.ConnectionError(frame.NotImplemented, "%v", m.ID())
}

// drop removes a queue; mu is held.
func (f *fake) drop(q *fakeQueue) {
	delete(f.queues, q.name)
	for _, s := range q.consumers {
		go s.c.gone()
	}
}

func (h *fakeHost) publish(_ context.Context, m *message, c confirmer) (bool, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	queues, err := h.route(m)
	if err != nil || len(queues) == 0 {
		return false, err
	}
	for _, q := range queues {
		q.put(m)
	}
	if c != nil {
		told := func() { c.confirm(m.tag, m.key != "refuse") }
		if h.f.later {
			h.f.owed = append(h.f.owed, told)
		} else {
			told()
		}
	}
	return true, nil
}

func (h *fakeHost) route(m *message) (queues []*fakeQueue, err error) {
	switch m.exchange {
	case "":
		if q := h.f.queues[m.key]; q != nil {
			queues = append(queues, q)
		}
	case "fan":
		for name := range h.f.bound {
			if q := h.f.queues[name]; q != nil {
				queues = append(queues, q)
			}
		}
	default:
		return nil, frame.ChannelError(frame.NotFound, "no exchange '%s' in vhost '%s'", m.exchange, h.who.vhost)
	}
	return queues, nil
}

func (q *fakeQueue) put(m *message) {
	q.next++
	q.ready = append(q.ready, &fakeMessage{message: m, at: q.next, id: q.next})
	q.push()
}

// push hands out what it can; mu is held.
func (q *fakeQueue) push() {
	for len(q.ready) > 0 {
		m := q.ready[0]
		taken := false
		for i, s := range q.consumers {
			if s.paused {
				continue
			}
			if s.c.offer(&delivery{message: m.message, redelivered: m.redelivered, from: q, id: m.id}) {
				taken = true
				q.consumers = append(append(q.consumers[:i:i], q.consumers[i+1:]...), s)
				if !s.noAck {
					q.given[m.id] = m
				}
				break
			}
			s.paused = true
		}
		if !taken {
			return
		}
		q.ready = q.ready[1:]
	}
}

func (q *fakeQueue) settle(ids []uint64, how settlement) {
	q.f.mu.Lock()
	defer q.f.mu.Unlock()
	for _, id := range ids {
		m := q.given[id]
		if m == nil {
			panic("settled twice")
		}
		delete(q.given, id)
		if how == settleRequeue {
			m.redelivered = true
			i := 0
			for i < len(q.ready) && q.ready[i].at < m.at {
				i++
			}
			q.ready = append(q.ready[:i:i], append([]*fakeMessage{m}, q.ready[i:]...)...)
		}
	}
	q.push()
}

func (h *fakeHost) get(_ context.Context, queue string, noAck bool) (*delivery, uint32, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	q, err := h.find(queue)
	if err != nil || len(q.ready) == 0 {
		return nil, 0, err
	}
	m := q.ready[0]
	q.ready = q.ready[1:]
	if !noAck {
		q.given[m.id] = m
	}
	return &delivery{message: m.message, redelivered: m.redelivered, from: q, id: m.id}, uint32(len(q.ready)), nil
}

func (h *fakeHost) consume(_ context.Context, m *frame.BasicConsume, c consumer) (subscription, error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	q, err := h.find(m.Queue)
	if err != nil {
		return nil, err
	}
	s := &fakeSub{q: q, c: c, noAck: m.NoAck}
	q.consumers = append(q.consumers, s)
	q.push()
	return s, nil
}

func (s *fakeSub) resume() {
	s.q.f.mu.Lock()
	defer s.q.f.mu.Unlock()
	s.paused = false
	s.q.push()
}

func (s *fakeSub) cancel() {
	s.q.f.mu.Lock()
	defer s.q.f.mu.Unlock()
	for i, other := range s.q.consumers {
		if other == s {
			s.q.consumers = append(s.q.consumers[:i:i], s.q.consumers[i+1:]...)
			return
		}
	}
}

func (h *fakeHost) commit(_ context.Context, messages []*message) (unrouted []int, err error) {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	var all [][]*fakeQueue
	for _, m := range messages {
		queues, err := h.route(m)
		if err != nil {
			return nil, err
		}
		all = append(all, queues)
	}
	for i, queues := range all {
		if len(queues) == 0 {
			unrouted = append(unrouted, i)
		}
		for _, q := range queues {
			q.put(messages[i])
		}
	}
	return unrouted, nil
}

func (h *fakeHost) detach() {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	h.f.hosts--
	h.over = true
	for _, q := range h.f.queues {
		if q.owner == h {
			h.f.drop(q)
		}
	}
}

// confirmAll tells of what is owed, the last first.
func (f *fake) confirmAll() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := len(f.owed) - 1; i >= 0; i-- {
		f.owed[i]()
	}
	f.owed = nil
}

// attached is how many connections there are.
func (f *fake) attached() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.hosts
}

// waiting is how many messages wait in a queue, and how many are handed out.
func (f *fake) waiting(queue string) (ready, given int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	q := f.queues[queue]
	if q == nil {
		return -1, -1
	}
	return len(q.ready), len(q.given)
}
