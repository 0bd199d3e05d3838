package queue

import (
	"context"
	"errors"
	"fmt"
)

// durable is what a queue with a log has beside the rest.
type durable struct {
	log Log
	// pending are those that are not known to be stored, in the order of their places,
	// which have no gaps.
	pending      []pending
	pendingBytes int64
	note         Note
	held         int64 // bytes of bodies in memory
	reading      bool
	retry        int64 // when to read again after an error; 0: at once
	waiting      []chan error
	flushes      []flush
	spare        []stored // of the inbox
}

// flush is somebody who waits for what was published up to a place.
type flush struct {
	place uint64
	done  chan struct{}
}

type pending struct {
	item
	done         Done
	stored, lost bool
	unknown      bool // if it is lost, it may be stored all the same
}

// stored is what a log said.
type stored struct {
	place, seq uint64
	err        error
}

const (
	// batch is how many messages are read again at once, before the last half of those
	// before them is handed out, and their bytes may be a part of the budget.
	batch     = 512
	batchPart = 4
	// retryAfter is how long nothing is read after an error, in milliseconds.
	retryAfter = 1000
)

// Open makes a queue of what its log has. What had been handed out comes as redelivered.
func Open(s *Settings, env *Env, log Log) (*Queue, error) {
	q := New(s, env)
	q.d = &durable{log: log}
	q.mu.Lock()
	defer q.unlock()
	handed, err := log.Replay(func(r *Record) error {
		q.place++
		it := q.item(r.Message, q.place, r.Published)
		it.seq = r.Seq
		q.keep(&it)
		q.hold(it.cost())
		q.push(it)
		return nil
	})
	q.grace = 0
	if err != nil {
		q.stop() // or its timer would delete what could not be read
		return nil, fmt.Errorf("reading the log of %s: %w", s.what(), err)
	}
	for i := range max(1, len(q.lists)) {
		l := q.at(uint8(i))
		l.handed = handed
		for j := range l.fresh {
			l.fresh[j].handed = l.fresh[j].seq <= handed
		}
	}
	return q, nil
}

// append has m stored.
func (q *Queue) append(m *Message, done Done) {
	q.place++
	now := q.env.Timers.now()
	it := q.item(m, q.place, now)
	q.d.pending = append(q.d.pending, pending{item: it, done: done})
	q.d.pendingBytes += int64(it.size)
	q.hold(it.cost())
	q.d.log.Append(&Record{Published: now, Message: m}, q, it.place)
}

// Stored is for a Log: what was appended with this place is stored as seq, or could not
// be. Who published what is ErrUnknown is told nothing. It does not wait, and may be called
// with any lock held.
func (q *Queue) Stored(place, seq uint64, err error) {
	q.inbox.mu.Lock()
	q.inbox.stored = append(q.inbox.stored, stored{place, seq, err})
	q.inbox.mu.Unlock()
	q.kick()
}

// settleStored takes up what the log said: what is stored goes into the queue, in the
// order in which it came.
func (q *Queue) settleStored(all []stored) {
	if q.d == nil {
		return
	}
	for _, s := range all {
		if len(q.d.pending) == 0 || s.place < q.d.pending[0].place || s.place > q.place {
			continue
		}
		p := &q.d.pending[s.place-q.d.pending[0].place]
		p.stored, p.seq, p.lost, p.unknown = true, s.seq, s.err != nil, errors.Is(s.err, ErrUnknown)
	}
	n := 0
	for n < len(q.d.pending) && q.d.pending[n].stored {
		p := &q.d.pending[n]
		q.d.pendingBytes -= int64(p.size)
		if !p.unknown {
			q.told(p.done, !p.lost)
		}
		q.hold(-p.cost())
		if !p.lost {
			q.keep(&p.item)
			q.hold(p.cost())
			q.push(p.item)
		}
		*p = pending{}
		n++
	}
	q.d.pending = q.d.pending[n:]
	if len(q.d.pending) == 0 {
		q.d.pending = nil
	}
	for len(q.d.flushes) > 0 && (len(q.d.pending) == 0 || q.d.pending[0].place > q.d.flushes[0].place) {
		close(q.d.flushes[0].done)
		q.d.flushes = q.d.flushes[1:]
	}
}

// Flush returns when all that was published before is in the queue or cannot be stored. An
// error is that of ctx.
func (q *Queue) Flush(ctx context.Context) error {
	q.mu.Lock()
	if q.d == nil || len(q.d.pending) == 0 {
		q.unlock()
		return nil
	}
	f := flush{place: q.place, done: make(chan struct{})}
	q.d.flushes = append(q.d.flushes, f)
	q.unlock()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// keep keeps the body in memory, if there is room, and all that are before it are near.
func (q *Queue) keep(it *item) {
	if q.at(it.priority).distant > 0 || q.env.Budget > 0 && it.size > 0 && q.d.held+int64(it.size) > q.env.Budget && q.ready > 0 {
		it.m = nil
		return
	}
	q.d.held += int64(it.size)
}

// forget is keep's counterpart.
func (d *durable) forget(it *item) {
	if it.m != nil {
		d.held -= int64(it.size)
	}
}

// flush tells the log what was done.
func (q *Queue) flush() {
	if q.d == nil || len(q.d.note.Done) == 0 && q.d.note.Handed == 0 {
		return
	}
	n := q.d.note
	q.d.note = Note{}
	q.d.log.Note(n)
}

// readAhead reads what is next before its turn comes.
func (q *Queue) readAhead(l *list) {
	if i := l.head + batch/2; i < len(l.fresh) && l.fresh[i].m == nil && !q.d.reading && q.d.retry == 0 {
		q.load(l)
	}
}

// load reads the messages that are next in l.
func (q *Queue) load(l *list) {
	if q.d.reading || q.d.retry != 0 {
		if q.d.retry != 0 {
			q.d.wake(errRetry)
		}
		return
	}
	var seqs []uint64
	bytes := int64(0)
	for i := l.head; i < len(l.fresh) && len(seqs) < batch; i++ {
		it := &l.fresh[i]
		if it.m != nil {
			continue
		}
		if bytes += int64(it.size); len(seqs) > 0 && bytes > q.env.Budget/batchPart {
			break
		}
		seqs = append(seqs, it.seq)
	}
	q.d.reading = true
	priority := l.front().priority
	q.d.log.Read(seqs, func(all []*Message, err error) { q.loaded(priority, seqs, all, err) })
}

func (q *Queue) loaded(priority uint8, seqs []uint64, all []*Message, err error) {
	q.mu.Lock()
	defer q.unlock()
	if q.gone {
		return
	}
	q.d.reading = false
	defer func() { q.d.wake(err) }()
	if err != nil {
		q.d.retry = q.env.Timers.now() + retryAfter
		return
	}
	l := q.at(priority)
	for i, seq := range seqs {
		it := l.bySeq(seq)
		if it == nil || it.m != nil {
			continue
		}
		if i < len(all) && all[i] != nil {
			q.hold(-it.cost())
			it.m = all[i]
			q.hold(it.cost())
			q.d.held += int64(it.size)
			continue
		}
		// It is not there any more, so that nobody can have it.
		lost := *it
		q.remove(l, lost.seq)
		q.finish(&lost)
	}
}

// remove takes a message out of the middle.
func (q *Queue) remove(l *list, seq uint64) {
	for i := l.head; i < len(l.fresh); i++ {
		if l.fresh[i].seq == seq {
			q.count(&l.fresh[i], -1)
			l.fresh = append(l.fresh[:i], l.fresh[i+1:]...)
			l.approach()
			return
		}
	}
}

// wait is told when something was read.
func (d *durable) wait() <-chan error {
	c := make(chan error, 1)
	d.waiting = append(d.waiting, c)
	return c
}

func (d *durable) wake(err error) {
	for _, c := range d.waiting {
		c <- err
	}
	d.waiting = nil
}

// leave has nobody wait any more.
func (d *durable) leave() {
	d.wake(ErrGone)
	for _, f := range d.flushes {
		close(f.done)
	}
	d.flushes = nil
}
