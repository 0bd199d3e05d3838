package queue

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// ErrGone is the error of what is asked of a queue that was deleted.
var ErrGone = errors.New("the queue is no more")

// Env is what the queues of a node share.
type Env struct {
	Timers *Timers
	Outlet Outlet
	// Budget is how many bytes of bodies a durable queue keeps in memory; what comes then
	// is only in its log, and read again when its turn comes. 0: no limit.
	Budget int64
	// Held is about how many bytes the messages of all queues have in memory. Several may
	// share one; nil: nobody wants to know.
	Held *atomic.Int64
}

// An Outlet is told what queues cannot do themselves. It is called without any lock, and
// by one goroutine at a time for each queue, in order.
type Outlet interface {
	// DeadLetter routes one. Somebody has to call its Settled.
	DeadLetter(d *Dead)
	// Gone says that a queue has ended, also by itself: what is bound to it is to be
	// removed. Its consumers are told by the queue.
	Gone(q *Queue)
}

// Done is told what became of a message that was published.
type Done interface {
	// Done is called once, from any goroutine and without a lock, also before Publish
	// returns. taken is false if the queue refuses the message. It is not called if nobody
	// knows: the queue has no log any more then.
	Done(taken bool)
}

// Settlement is what becomes of a message that was handed out.
type Settlement byte

// The ways.
const (
	Ack     Settlement = iota // it is done with
	Reject                    // it is refused: a dead letter, or gone
	Requeue                   // it goes back to its place
)

// Counts are those of a queue.
type Counts struct {
	// Ready can be handed out, and have Bytes in their bodies; Unacked are handed out.
	Ready, Unacked, Consumers int
	Bytes                     int64
}

// A Queue is one. New and Open make them. It is safe for concurrent use.
type Queue struct {
	s   *Settings
	env *Env

	mu    sync.Mutex
	again atomic.Bool // somebody could not have the lock, and left something to do

	list    list   // without priorities
	lists   []list // with priorities
	ready   int
	lasting int // of them, those that never expire
	bytes   int64
	held    int64  // of Env.Held
	place   uint64 // the last that was given
	ids     uint64
	unacked unacked

	subs   []*Subscription // in the order in which they came
	groups []group         // the highest priority first

	gone, exclusive, telling bool
	armed                    int64 // when the timer wakes it; 0: it does not
	used                     int64 // since when nobody uses it
	grace                    uint64
	timer                    int // under the lock of Timers
	news, spare              []news
	d                        *durable // nil: in memory only

	inbox struct {
		mu      sync.Mutex
		resumed []*Subscription
		stored  []stored
	}
}

// New makes a queue that is in memory only.
func New(s *Settings, env *Env) *Queue {
	q := &Queue{s: s, env: env}
	if s.MaxPriority > 0 {
		q.lists = make([]list, s.MaxPriority+1)
	}
	q.mu.Lock()
	if s.Expires != none {
		q.used = env.Timers.now()
	}
	q.unlock()
	return q
}

// Settings are those of the queue.
func (q *Queue) Settings() *Settings { return q.s }

// Counts counts.
func (q *Queue) Counts() Counts {
	q.mu.Lock()
	defer q.unlock()
	q.expire()
	return Counts{Ready: q.ready, Unacked: q.unacked.len(), Consumers: len(q.subs), Bytes: q.bytes}
}

// Touch says that the queue is used, as declaring it again does.
func (q *Queue) Touch() {
	q.mu.Lock()
	q.used = q.env.Timers.now()
	q.unlock()
}

// Publish takes a message; done may be nil. A queue that is gone takes it, as if it had
// been there before the end.
func (q *Queue) Publish(m *Message, done Done) {
	q.mu.Lock()
	defer q.unlock()
	switch {
	case q.gone:
		q.told(done, true)
	case q.s.Overflow != DropHead && q.full(m):
		if q.s.Overflow == RejectPublishDLX && q.s.DeadLetters {
			q.news = append(q.news, news{dead: m, reason: MaxLength})
		}
		q.told(done, false)
	case q.d != nil:
		q.append(m, done)
	default:
		q.place++
		it := q.item(m, q.place, 0)
		q.hold(it.cost())
		q.push(it)
		q.told(done, true)
	}
}

// hold counts what is in memory.
func (q *Queue) hold(bytes int64) {
	q.held += bytes
	if q.env.Held != nil {
		q.env.Held.Add(bytes)
	}
}

func (q *Queue) told(done Done, taken bool) {
	if done != nil {
		q.news = append(q.news, news{done: done, taken: taken})
	}
}

// full reports whether m would be too much.
func (q *Queue) full(m *Message) bool {
	n, bytes := int64(q.ready+1), q.bytes+int64(len(m.Body))
	if q.d != nil {
		n, bytes = n+int64(len(q.d.pending)), bytes+q.d.pendingBytes
	}
	return q.s.MaxLength != none && n > q.s.MaxLength || q.s.MaxBytes != none && bytes > q.s.MaxBytes
}

// item is m as it is in the queue. published is when, in milliseconds; 0: now.
func (q *Queue) item(m *Message, place uint64, published int64) item {
	it := item{m: m, place: place, size: int32(len(m.Body))}
	if q.lists != nil {
		it.priority = min(m.priority, uint8(q.s.MaxPriority))
	}
	ttl := q.s.MessageTTL
	if m.ttl != forever && (ttl == none || m.ttl < ttl) {
		ttl = m.ttl
	}
	if ttl != none {
		if published == 0 {
			published = q.env.Timers.now()
		}
		it.expires = published + ttl
	}
	return it
}

// at is the list of a priority.
func (q *Queue) at(priority uint8) *list {
	if q.lists == nil {
		return &q.list
	}
	return &q.lists[priority]
}

// top is the list that has the first message, nil if there is none.
func (q *Queue) top() *list {
	if q.ready == 0 {
		return nil
	}
	if q.lists == nil {
		return &q.list
	}
	for i := len(q.lists) - 1; i >= 0; i-- {
		if q.lists[i].len() > 0 {
			return &q.lists[i]
		}
	}
	return nil
}

// push puts a message at the end. It may be handed out once before it expires.
func (q *Queue) push(it item) {
	if q.ready == 0 {
		q.grace = it.place
	}
	q.count(&it, 1)
	q.at(it.priority).push(it)
}

func (q *Queue) count(it *item, n int) {
	q.ready += n
	q.bytes += int64(n) * int64(it.size)
	if it.expires == 0 {
		q.lasting += n
	}
}

// pop takes the first of a list.
func (q *Queue) pop(l *list) item {
	it := l.pop()
	q.count(&it, -1)
	return it
}

// Get takes the first message; ok is false if there is none. left is how many there are
// after it. It waits for a body that is not in memory. An error is ErrGone, of the log,
// or of ctx.
func (q *Queue) Get(ctx context.Context, noAck bool) (d Delivery, left int, ok bool, err error) {
	q.mu.Lock()
	q.used = q.env.Timers.now()
	for {
		if q.gone {
			q.unlock()
			return d, 0, false, ErrGone
		}
		q.expire()
		l := q.top()
		if l == nil {
			q.unlock()
			return d, 0, false, nil
		}
		if l.front().m != nil {
			q.ids++
			d = q.delivery(l.front(), q.ids)
			q.handOut(l, nil, noAck)
			q.expire()
			left = q.ready
			q.unlock()
			return d, left, true, nil
		}
		wait := q.d.wait()
		q.load(l)
		q.unlock()
		select {
		case err := <-wait:
			if err != nil {
				return d, 0, false, fmt.Errorf("reading a message of %s again: %w", q.s.what(), err)
			}
		case <-ctx.Done():
			return d, 0, false, ctx.Err()
		}
		q.mu.Lock()
	}
}

// delivery is what is handed out for it.
func (q *Queue) delivery(it *item, id uint64) Delivery {
	m := it.m
	if q.s.Type == Quorum {
		m = m.counted(it.returns)
	}
	return Delivery{Message: m, Redelivered: it.handed, ID: id}
}

// handOut takes the first message of l for s, or for who gets it; q.ids is its id.
func (q *Queue) handOut(l *list, s *Subscription, noAck bool) {
	it := q.pop(l)
	if q.d != nil {
		q.d.note.Handed = max(q.d.note.Handed, it.seq)
	}
	if noAck {
		q.finish(&it)
		return
	}
	if s != nil {
		s.has++
	}
	q.unacked.add(given{item: it, id: q.ids, sub: s})
}

// finish ends a message.
func (q *Queue) finish(it *item) {
	q.hold(-it.cost())
	if q.d != nil {
		q.d.forget(it)
		q.d.note.Done = append(q.d.note.Done, it.seq)
	}
}

// bury ends a message as a dead letter, if there is an exchange for them.
func (q *Queue) bury(it *item, why Reason) {
	if !q.s.DeadLetters {
		q.finish(it)
		return
	}
	q.hold(-it.cost())
	if q.d != nil {
		q.d.forget(it)
	}
	q.news = append(q.news, news{dead: it.m, seq: it.seq, reason: why})
}

// Settle settles messages that were handed out; ids that are unknown are passed over.
func (q *Queue) Settle(ids []uint64, how Settlement) {
	q.mu.Lock()
	defer q.unlock()
	if q.gone {
		return
	}
	for _, id := range ids {
		g, ok := q.unacked.take(id)
		if !ok {
			continue
		}
		if g.sub != nil {
			q.release(g.sub)
		}
		switch how {
		case Ack:
			q.finish(&g.item)
		case Reject:
			q.bury(&g.item, Rejected)
		case Requeue:
			q.putBack(&g.item)
		}
	}
}

// release has s be able to have one more.
func (q *Queue) release(s *Subscription) {
	s.has--
	q.link(s)
	for _, other := range s.credit.give() {
		q.news = append(q.news, news{wake: other})
	}
}

func (q *Queue) putBack(it *item) {
	it.returns++
	it.handed = true
	if q.s.DeliveryLimit != none && int64(it.returns) > q.s.DeliveryLimit {
		q.bury(it, DeliveryLimit)
		return
	}
	q.count(it, 1)
	q.at(it.priority).putBack(*it)
}

// Purge ends all messages that are ready, and says how many they were.
func (q *Queue) Purge() (n int, err error) {
	q.mu.Lock()
	defer q.unlock()
	if q.gone {
		return 0, ErrGone
	}
	q.expire()
	n = q.ready
	for l := q.top(); l != nil; l = q.top() {
		it := q.pop(l)
		q.finish(&it)
	}
	return n, nil
}

// Delete ends the queue with its log, and says how many messages were ready. Consumers
// are told. Errors are *frame.Error, and ErrGone.
func (q *Queue) Delete(ifUnused, ifEmpty bool) (n int, err error) {
	q.mu.Lock()
	defer q.unlock()
	q.expire()
	switch {
	case q.gone:
		return 0, ErrGone
	case ifUnused && len(q.subs) > 0:
		return 0, frame.ChannelError(frame.PreconditionFailed, "%s in use", q.s.what())
	case ifEmpty && q.ready > 0:
		return 0, frame.ChannelError(frame.PreconditionFailed, "%s not empty", q.s.what())
	}
	n = q.ready
	q.end()
	return n, nil
}

// end ends the queue: it is deleted.
func (q *Queue) end() {
	if q.d != nil {
		for i := range q.d.pending {
			q.told(q.d.pending[i].done, true)
		}
	}
	log := q.stop()
	if log != nil {
		log.Drop()
	}
	q.news = append(q.news, news{over: true})
}

// Close ends the queue here, and leaves its log for who opens it next. Consumers are told,
// and what waits for its confirm is refused.
func (q *Queue) Close() {
	q.mu.Lock()
	defer q.unlock()
	if q.gone {
		return
	}
	if q.d != nil {
		q.flush()
		for i := range q.d.pending {
			q.told(q.d.pending[i].done, false)
		}
	}
	q.stop()
}

// stop forgets everything, and has consumers told.
func (q *Queue) stop() (log Log) {
	q.gone = true
	for _, s := range q.subs {
		s.over = true
		s.credit.forget(s)
		q.news = append(q.news, news{gone: s.to})
	}
	for i := range q.unacked.all[q.unacked.head:] {
		if g := &q.unacked.all[q.unacked.head+i]; !g.done && g.sub != nil {
			for _, other := range g.sub.credit.give() {
				q.news = append(q.news, news{wake: other})
			}
		}
	}
	if q.d != nil {
		log = q.d.log
		q.d.leave()
	}
	q.list, q.lists, q.unacked, q.subs, q.groups, q.d = list{}, nil, unacked{}, nil, nil, nil
	q.ready, q.lasting, q.bytes = 0, 0, 0
	q.hold(-q.held)
	q.env.Timers.remove(q)
	return log
}
