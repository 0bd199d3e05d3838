package queue

import (
	"slices"
	"sync"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// A Delivery is a message that a queue hands out.
type Delivery struct {
	Message     *Message
	Redelivered bool
	// ID is what Settle knows it by; it rises.
	ID uint64
}

// A Consumer is who a queue hands messages to.
type Consumer interface {
	// Deliver hands over a message, and reports whether it was taken. If not, no more
	// come until the subscription is resumed. It does not block, and calls nothing of
	// the queue but Resume: the queue waits for it.
	Deliver(d Delivery) bool
	// Gone says that the queue is no more, after the last Deliver. It may call
	// anything.
	Gone()
}

// ConsumerOptions are how somebody consumes.
type ConsumerOptions struct {
	// NoAck has messages be done with once they are handed over.
	NoAck bool
	// Exclusive has nobody else consume.
	Exclusive bool
	// Priority is higher for those who are asked first.
	Priority int
	// Prefetch is how many messages it has at once at most that are not settled; 0:
	// any number. The consumer may also refuse, for reasons of its own.
	Prefetch int
	// Credit is what it shares with others; nil for nothing.
	Credit *Credit
}

// Priority is what x-priority says in the arguments of a consumer. Its error is a
// *frame.Error of the channel.
func Priority(arguments frame.Table) (int, error) {
	v, ok := arguments["x-priority"]
	if !ok {
		return 0, nil
	}
	n, ok := whole(v)
	if !ok || int64(int32(n)) != n {
		return 0, frame.ChannelError(frame.PreconditionFailed, "invalid arg 'x-priority' for consumer: %v", unacceptable(v))
	}
	return int(n), nil
}

// A Credit is how many messages the consumers of a channel have at once at most, of all
// queues. NewCredit makes one; it is safe for concurrent use.
type Credit struct {
	mu          sync.Mutex
	limit, used int
	waiting     []*Subscription
}

// NewCredit makes a credit; 0: any number.
func NewCredit(limit int) *Credit { return &Credit{limit: limit} }

// SetLimit changes it.
func (c *Credit) SetLimit(limit int) {
	c.mu.Lock()
	c.limit = limit
	woken := c.waiting
	c.waiting = nil
	c.mu.Unlock()
	for _, s := range woken {
		s.Resume()
	}
}

// take takes one, or has s woken when there is one.
func (c *Credit) take(s *Subscription) bool {
	if c == nil {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.limit > 0 && c.used >= c.limit {
		if !slices.Contains(c.waiting, s) {
			c.waiting = append(c.waiting, s)
		}
		return false
	}
	c.used++
	return true
}

// give gives one back, and returns who is to be resumed.
func (c *Credit) give() (woken []*Subscription) {
	if c == nil {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.used--
	woken, c.waiting = c.waiting, nil
	return woken
}

func (c *Credit) forget(s *Subscription) {
	if c == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.waiting = slices.DeleteFunc(c.waiting, func(w *Subscription) bool { return w == s })
}

// A Subscription is a consumer of a queue. Consume makes one; it is safe for concurrent
// use. Its fields are under the lock of its queue.
type Subscription struct {
	q        *Queue
	to       Consumer
	priority int32
	prefetch int32
	has      int32 // messages that are not settled
	noAck    bool
	over     bool
	stalled  bool // it did not take one, or had no credit
	linked   bool // it is in its group
	resuming bool // under inbox.mu of the queue
	credit   *Credit

	next, before *Subscription // in its group
}

// Resume has messages come again to a consumer that did not take one. It does not wait
// for anything, so that it may be called with any lock held, and from Deliver.
func (s *Subscription) Resume() {
	s.q.inbox.mu.Lock()
	if !s.resuming {
		s.resuming = true
		s.q.inbox.resumed = append(s.q.inbox.resumed, s)
	}
	s.q.inbox.mu.Unlock()
	s.q.kick()
}

// SetPrefetch changes how many messages it has at most.
func (s *Subscription) SetPrefetch(n int) {
	s.q.mu.Lock()
	s.prefetch = int32(n)
	s.q.unlink(s)
	s.q.link(s)
	s.q.unlock()
}

// Cancel ends it. Nothing is delivered to it once Cancel has returned; what it has is
// settled as before. A queue that is deleted with its last consumer is.
func (s *Subscription) Cancel() {
	s.q.mu.Lock()
	s.q.cancel(s)
	s.q.unlock()
}

// able reports whether s can be asked.
func (s *Subscription) able() bool {
	return !s.over && !s.stalled && (s.noAck || s.prefetch == 0 || s.has < s.prefetch)
}

// group are the consumers of one priority that can be asked, in the order in which
// they are.
type group struct {
	priority    int32
	first, last *Subscription
}

// link puts s at the end of its group, if it can be asked and is not there.
func (q *Queue) link(s *Subscription) {
	if s.linked || !s.able() {
		return
	}
	i, found := slices.BinarySearchFunc(q.groups, s.priority, func(g group, p int32) int { return int(p) - int(g.priority) })
	if !found {
		q.groups = slices.Insert(q.groups, i, group{priority: s.priority})
	}
	g := &q.groups[i]
	s.before, s.next, s.linked = g.last, nil, true
	if g.last != nil {
		g.last.next = s
	} else {
		g.first = s
	}
	g.last = s
}

// unlink takes s out of its group.
func (q *Queue) unlink(s *Subscription) {
	if !s.linked {
		return
	}
	i, _ := slices.BinarySearchFunc(q.groups, s.priority, func(g group, p int32) int { return int(p) - int(g.priority) })
	g := &q.groups[i]
	if s.before != nil {
		s.before.next = s.next
	} else {
		g.first = s.next
	}
	if s.next != nil {
		s.next.before = s.before
	} else {
		g.last = s.before
	}
	s.before, s.next, s.linked = nil, nil, false
	if g.first == nil && len(q.groups) > 1 {
		q.groups = slices.Delete(q.groups, i, i+1)
	}
}

// turn is whose turn it is, nil if nobody can be asked.
func (q *Queue) turn() *Subscription {
	if q.s.SingleActive {
		if len(q.subs) > 0 && q.subs[0].linked {
			return q.subs[0]
		}
		return nil
	}
	for i := range q.groups {
		if s := q.groups[i].first; s != nil {
			return s
		}
	}
	return nil
}

// Consume has messages come to c, from now on. Errors are *frame.Error, and ErrGone.
func (q *Queue) Consume(c Consumer, o ConsumerOptions) (*Subscription, error) {
	q.mu.Lock()
	defer q.unlock()
	switch {
	case q.gone:
		return nil, ErrGone
	case q.exclusive, o.Exclusive && (len(q.subs) > 0 || q.s.SingleActive):
		return nil, frame.ChannelError(frame.AccessRefused, "%s in exclusive use", q.s.what())
	}
	s := &Subscription{q: q, to: c, priority: int32(o.Priority), prefetch: int32(o.Prefetch), noAck: o.NoAck, credit: o.Credit}
	if o.NoAck {
		s.credit = nil
	}
	q.exclusive = o.Exclusive
	q.subs = append(q.subs, s)
	q.link(s)
	return s, nil
}

// cancel removes s.
func (q *Queue) cancel(s *Subscription) {
	if s.over {
		return
	}
	s.over = true
	q.unlink(s)
	s.credit.forget(s)
	q.subs = slices.DeleteFunc(q.subs, func(other *Subscription) bool { return other == s })
	if len(q.subs) > 0 {
		return
	}
	q.exclusive = false
	q.used = q.env.Timers.now()
	if q.s.AutoDelete {
		q.end()
	}
}
