// Package queuetest has a log for the tests of whoever uses queues, which can lose its
// power.
package queuetest

import (
	"errors"
	"slices"
	"sync"

	"github.com/fleetbus/fleetbus/amqp/queue"
)

// A Log is a queue.Log in memory. Its zero value is ready to use, and safe for concurrent
// use. What is appended is stored at the next Sync, or at once if Auto is set.
type Log struct {
	// Auto has messages be stored at once, and what is noted be kept at once.
	Auto bool

	mu      sync.Mutex
	seq     uint64
	waiting []waiting
	stored  []entry
	notes   []queue.Note
	done    map[uint64]bool
	handed  uint64
	fail    error
	dropped bool
	reads   int
	later   []func() // reads that are not answered yet
	hold    bool
}

type waiting struct {
	entry
	q     *queue.Queue
	place uint64
}

type entry struct {
	seq   uint64
	bytes []byte
}

// Append implements queue.Log.
func (l *Log) Append(r *queue.Record, q *queue.Queue, place uint64) {
	l.mu.Lock()
	l.waiting = append(l.waiting, waiting{entry{bytes: r.Append(nil)}, q, place})
	auto := l.Auto
	l.mu.Unlock()
	if auto {
		l.Sync()
	}
}

// Note implements queue.Log.
func (l *Log) Note(n queue.Note) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.notes = append(l.notes, n)
	if l.Auto {
		l.settle()
	}
}

// settle keeps what was noted.
func (l *Log) settle() {
	if l.done == nil {
		l.done = map[uint64]bool{}
	}
	for _, n := range l.notes {
		l.handed = max(l.handed, n.Handed)
		for _, seq := range n.Done {
			l.done[seq] = true
		}
	}
	l.notes = nil
}

// Sync stores what was appended, and keeps what was noted.
func (l *Log) Sync() {
	l.mu.Lock()
	all, fail := l.waiting, l.fail
	l.waiting = nil
	for i := range all {
		if fail == nil {
			l.seq++
			all[i].seq = l.seq
			l.stored = append(l.stored, all[i].entry)
		}
	}
	l.settle()
	l.mu.Unlock()
	for _, w := range all {
		w.q.Stored(w.place, w.seq, fail)
	}
}

// Fail has what is appended from now on not be stored, because of err; nil ends it.
func (l *Log) Fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.fail = err
}

// LosePower forgets what Sync has not kept. The queue that had the log is to be left alone
// from then on, and another opened.
func (l *Log) LosePower() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting, l.notes = nil, nil
	l.later = nil
}

// ErrRead is the error of reading while reads fail.
var ErrRead = errors.New("the log of the test cannot be read")

// Read implements queue.Log. Its answers come from another goroutine, or by Answer if Hold
// was called.
func (l *Log) Read(seqs []uint64, done func([]*queue.Message, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	if l.fail != nil {
		go done(nil, ErrRead)
		return
	}
	all := make([]*queue.Message, len(seqs))
	for i, seq := range seqs {
		at, ok := slices.BinarySearchFunc(l.stored, seq, func(e entry, seq uint64) int { return int(int64(e.seq) - int64(seq)) })
		if !ok || l.done[seq] {
			continue
		}
		r, err := queue.DecodeRecord(l.stored[at].bytes)
		if err != nil {
			go done(nil, err)
			return
		}
		all[i] = r.Message
	}
	if l.hold {
		l.later = append(l.later, func() { done(all, nil) })
		return
	}
	go done(all, nil)
}

// Hold has reads wait for Answer.
func (l *Log) Hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.hold = true
}

// Answer answers the reads that wait, and says how many they were.
func (l *Log) Answer() int {
	l.mu.Lock()
	all := l.later
	l.later = nil
	l.mu.Unlock()
	for _, answer := range all {
		answer()
	}
	return len(all)
}

// Reads is how often something was read again.
func (l *Log) Reads() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.reads
}

// Left is how many messages are stored and not done with.
func (l *Log) Left() (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.stored {
		if !l.done[e.seq] {
			n++
		}
	}
	return n
}

// Dropped reports whether the log was dropped.
func (l *Log) Dropped() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.dropped
}

// Replay implements queue.Log.
func (l *Log) Replay(each func(*queue.Record) error) (handed uint64, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range l.stored {
		if l.done[e.seq] {
			continue
		}
		r, err := queue.DecodeRecord(e.bytes)
		if err != nil {
			return 0, err
		}
		r.Seq = e.seq
		if err := each(r); err != nil {
			return 0, err
		}
	}
	return l.handed, nil
}

// Drop implements queue.Log.
func (l *Log) Drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropped = true
	l.waiting, l.stored, l.notes = nil, nil, nil
}
