package journal

import (
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"sort"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/sync/errgroup"

	"github.com/fleetbus/fleetbus/amqp/queue"
)

// notes is what was done with the messages of a queue: all before Low, those of Runs, each
// from one to another, and Done. Handed is the last that was handed out. What one says stays
// true, so that all that the stream has are taken together.
type notes struct {
	Low    uint64      `json:"low,omitempty"`
	Done   []uint64    `json:"done,omitempty"`
	Runs   [][2]uint64 `json:"runs,omitempty"`
	Handed uint64      `json:"handed,omitempty"`
}

// perNote is how many of Done or of Runs a note has at most.
const perNote = 10_000

// noted takes up a note that was stored.
func (j *Journal) noted(id string, data []byte) error {
	var n notes
	if err := json.Unmarshal(data, &n); err != nil {
		return fmt.Errorf("reading what was done with messages: %w", err)
	}
	all := j.notes[id]
	if all == nil {
		all = &notes{}
		j.notes[id] = all
	}
	all.Low, all.Handed = max(all.Low, n.Low), max(all.Handed, n.Handed)
	all.Done = append(all.Done, n.Done...)
	all.Runs = append(all.Runs, n.Runs...)
	return nil
}

// replayTimeout bounds the reading of one queue.
const replayTimeout = 5 * time.Minute

// manyNotes is how many notes of a queue are kept before they are written as one.
const manyNotes = 256

// kept is records of one message of the stream: n, from a number on.
type kept struct {
	first uint64
	n     int
}

// last is the number of the last of them.
func (k kept) last() uint64 { return k.first + uint64(k.n) - 1 }

// numbers are those of the records.
func (k kept) numbers() iter.Seq[uint64] {
	return func(yield func(uint64) bool) {
		for i := range uint64(k.n) {
			if !yield(k.first + i) {
				return
			}
		}
	}
}

// log is that of one queue. It implements queue.Log.
type log struct {
	j  *Journal
	id string

	mu      sync.Mutex
	all     []kept              // what is stored from floor on, in order
	floor   uint64              // all that is before it is done with
	done    map[uint64]struct{} // of all
	news    []uint64            // of done, what is not noted
	handed  uint64
	changed bool   // there is something to note
	noted   int    // how many notes are stored, since the last that stands alone
	alone   uint64 // the last that does
	purged  uint64 // no message before it is in the stream
	cleared uint64 // and no note
}

// Log is the log of a queue of that ID.
func (j *Journal) Log(id string) queue.Log { return &log{j: j, id: id, done: map[uint64]struct{}{}} }

func (l *log) messages() string { return l.j.o.Prefix + "m." + l.id }
func (l *log) notes() string    { return l.j.o.Prefix + "n." + l.id }

// A message of the stream has several records of a queue. A record is numbered by its message
// and its place there, and numbers are in the order of the queue.
const numberBits = 10

func number(seq uint64, place int) uint64 { return seq<<numberBits | uint64(place) }

// messageOf is the message of a record.
func messageOf(number uint64) uint64 { return number >> numberBits }

// records are those of a message.
func records(data []byte) (all [][]byte, err error) {
	for len(data) > 0 {
		size, n := binary.Uvarint(data)
		if n <= 0 || size > uint64(len(data)-n) || len(all) == most {
			return nil, queue.ErrRecord
		}
		all = append(all, data[n:n+int(size):n+int(size)])
		data = data[n+int(size):]
	}
	return all, nil
}

// Append implements queue.Log.
func (l *log) Append(r *queue.Record, q *queue.Queue, place uint64) {
	l.j.w.record(l, r.Append(nil), part{q, place})
}

// stored takes up that records are stored in a message, all of them before somebody can be
// done with one.
func (l *log) stored(seq uint64, parts []part, err error) {
	if err == nil {
		l.mu.Lock()
		l.all = append(l.all, kept{number(seq, 0), len(parts)})
		l.mu.Unlock()
	}
	for i, p := range parts {
		p.q.Stored(p.place, number(seq, i), err)
	}
}

// Note implements queue.Log.
func (l *log) Note(n queue.Note) {
	l.mu.Lock()
	for _, seq := range n.Done {
		l.done[seq] = struct{}{}
	}
	l.news = append(l.news, n.Done...)
	l.handed = max(l.handed, n.Handed)
	l.mu.Unlock()
	l.change()
}

// change has the log be written to soon.
func (l *log) change() {
	l.mu.Lock()
	l.changed = true
	l.mu.Unlock()
	l.j.mu.Lock()
	l.j.dirty[l] = struct{}{}
	l.j.mu.Unlock()
}

// rise has floor be as high as it can; mu is held.
func (l *log) rise() {
	for len(l.all) > 0 {
		k := &l.all[0]
		for at := range k.numbers() {
			if _, ok := l.done[at]; !ok {
				*k = kept{at, int(k.last() - at + 1)}
				return
			}
			delete(l.done, at)
			l.floor = at + 1
		}
		l.all = l.all[1:]
	}
	l.all = nil
}

// note writes what was done with messages.
func (l *log) note() {
	l.mu.Lock()
	if !l.changed {
		l.mu.Unlock()
		return
	}
	l.rise()
	n := notes{Low: l.floor, Handed: l.handed}
	alone := l.noted >= manyNotes || len(l.news) > perNote || len(l.done) == 0
	var runs [][2]uint64
	if alone {
		runs = l.runs()
	} else {
		for _, seq := range l.news {
			if seq >= l.floor {
				n.Done = append(n.Done, seq)
			}
		}
	}
	l.news, l.changed = nil, false
	l.noted++
	l.mu.Unlock()
	first := uint64(0) // of several, the message that the first is
	for {
		n.Runs = runs[:min(len(runs), perNote)]
		runs = runs[len(n.Runs):]
		last := len(runs) == 0
		data, err := json.Marshal(n)
		if err != nil { // numbers always can be written
			return
		}
		l.j.noting.Add(1)
		l.j.w.write(l.notes(), data, func(seq uint64, err error) {
			defer l.j.noting.Done()
			l.mu.Lock()
			if err == nil && first == 0 {
				first = seq
			}
			if err != nil {
				l.noted = manyNotes // what it said is in the next one
			} else if alone && last {
				l.noted, l.alone = 0, first
			}
			l.mu.Unlock()
			if err != nil && !errors.Is(err, ErrDeposed) && !errors.Is(err, ErrClosed) {
				l.j.o.Logger.Warn("what was done with AMQP messages could not be stored: it is tried again", "error", err)
				l.change()
			}
		})
		if last {
			return
		}
		n = notes{}
	}
}

// runs are the messages that are done with, as they follow one another in the queue; mu is
// held. Most are near the beginning of very many.
func (l *log) runs() (all [][2]uint64) {
	open, left := false, len(l.done)
	for _, k := range l.all {
		if left == 0 {
			break
		}
		for seq := range k.numbers() {
			if _, done := l.done[seq]; !done {
				open = false
				continue
			}
			left--
			if !open {
				all = append(all, [2]uint64{seq, seq})
			}
			all[len(all)-1][1], open = seq, true
		}
	}
	return all
}

// finished returns whether a message is done with.
func (n *notes) finished() func(seq uint64) bool {
	known := map[uint64]struct{}{}
	for _, seq := range n.Done {
		known[seq] = struct{}{}
	}
	slices.SortFunc(n.Runs, func(a, b [2]uint64) int { return cmp.Compare(a[0], b[0]) })
	var apart [][2]uint64
	for _, run := range n.Runs {
		if last := len(apart) - 1; last >= 0 && run[0] <= apart[last][1] {
			apart[last][1] = max(apart[last][1], run[1])
		} else {
			apart = append(apart, run)
		}
	}
	return func(seq uint64) bool {
		_, ok := known[seq]
		i := sort.Search(len(apart), func(i int) bool { return apart[i][1] >= seq })
		return ok || seq < n.Low || i < len(apart) && apart[i][0] <= seq
	}
}

// tidy takes out of the stream what is not needed any more, and reports whether something
// is left.
func (l *log) tidy(ctx context.Context) (left bool) {
	l.mu.Lock()
	// The first message of which something is needed.
	floor, alone := uint64(0), l.alone
	switch {
	case len(l.all) > 0:
		floor = messageOf(l.all[0].first)
	case l.floor > 0:
		floor = messageOf(l.floor-1) + 1
	}
	purge, clean := floor > l.purged, alone > l.cleared
	l.mu.Unlock()
	if purge && l.j.purge(ctx, l.messages(), floor) {
		l.mu.Lock()
		l.purged = floor
		l.mu.Unlock()
		purge = false
	}
	if clean && l.j.purge(ctx, l.notes(), alone) {
		l.mu.Lock()
		l.cleared = alone
		l.mu.Unlock()
		clean = false
	}
	return purge || clean
}

// purge takes what is on a subject before a message out of the stream; 0: all. It does so when
// there is room, and reports whether it did.
func (j *Journal) purge(ctx context.Context, subject string, before uint64) bool {
	if !j.o.Room() {
		return false
	}
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	options := []jetstream.StreamPurgeOpt{jetstream.WithPurgeSubject(subject)}
	if before > 0 {
		options = append(options, jetstream.WithPurgeSequence(before))
	}
	err := j.stream.Purge(ctx, options...)
	if err != nil {
		j.o.Logger.Debug("what AMQP does not need any more was not removed: it is tried again", "error", err)
	}
	return err == nil
}

// readers is how many messages of the stream are read again at the same time.
const readers = 16

// Read implements queue.Log.
func (l *log) Read(seqs []uint64, done func([]*queue.Message, error)) {
	go func() {
		ctx, cancel := context.WithTimeout(l.j.life, 2*requestTimeout)
		defer cancel()
		all := make([]*queue.Message, len(seqs))
		var g errgroup.Group
		g.SetLimit(readers)
		for from := 0; from < len(seqs); {
			to := from + 1 // those of one message
			for to < len(seqs) && messageOf(seqs[to]) == messageOf(seqs[from]) {
				to++
			}
			some, into := seqs[from:to], all[from:to]
			g.Go(func() error { return l.j.readAgain(ctx, some, into) })
			from = to
		}
		if err := g.Wait(); err != nil {
			done(nil, err)
			return
		}
		done(all, nil)
	}()
}

// readAgain reads records of one message of the stream into all; what is not there is nil.
func (j *Journal) readAgain(ctx context.Context, seqs []uint64, all []*queue.Message) error {
	at := messageOf(seqs[0])
	msg, err := j.stream.GetMsg(ctx, at)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return nil
	}
	var there [][]byte
	if err == nil {
		there, err = records(msg.Data)
	}
	for i, seq := range seqs {
		place := int(seq - number(at, 0))
		if err != nil || place >= len(there) {
			break
		}
		var r *queue.Record
		if r, err = queue.DecodeRecord(there[place]); err == nil {
			all[i] = r.Message
		}
	}
	if err != nil {
		return fmt.Errorf("reading message %d again: %w", at, err)
	}
	return nil
}

// Replay implements queue.Log.
func (l *log) Replay(each func(*queue.Record) error) (handed uint64, err error) {
	l.j.mu.Lock()
	n := l.j.notes[l.id]
	delete(l.j.notes, l.id)
	count := l.j.counts[l.messages()]
	l.j.mu.Unlock()
	if n == nil {
		n = &notes{}
	}
	finished := n.finished()
	l.floor, l.handed, l.noted = n.Low, n.Handed, manyNotes
	if count > 0 {
		ctx, cancel := context.WithTimeout(l.j.life, replayTimeout)
		defer cancel()
		err = l.j.read(ctx, []string{l.messages()}, func(msg jetstream.Msg, seq uint64) error {
			all, err := records(msg.Data())
			if err != nil {
				return fmt.Errorf("message %d of the stream: %w", seq, err)
			}
			for i, one := range all {
				at := number(seq, i)
				if at < l.floor {
					continue
				}
				if last := len(l.all) - 1; last >= 0 && l.all[last].last()+1 == at {
					l.all[last].n++
				} else {
					l.all = append(l.all, kept{at, 1})
				}
				if finished(at) {
					l.done[at] = struct{}{}
					continue
				}
				r, err := queue.DecodeRecord(one)
				if err != nil {
					return fmt.Errorf("message %d of the stream: %w", seq, err)
				}
				r.Seq = at
				if err := each(r); err != nil {
					return err
				}
			}
			return nil
		})
	}
	if err != nil || l.j.closed {
		return n.Handed, err
	}
	// Who had it may have handed out what it did not note. That is noted now: the next owner
	// is to know, too, if this one hands out nothing of it and closes the journal.
	if n := len(l.all); n > 0 {
		l.handed = max(l.handed, l.all[n-1].last())
		l.change()
	}
	l.j.mu.Lock()
	delete(l.j.unread, l.id)
	l.j.mu.Unlock()
	return math.MaxUint64, nil
}

// Drop implements queue.Log.
func (l *log) Drop() {
	l.j.group.Go(func() {
		ctx, cancel := context.WithTimeout(l.j.life, requestTimeout)
		defer cancel()
		// What is left of it after all goes when the journal is opened the next time.
		_ = l.j.purge(ctx, l.messages(), 0) && l.j.purge(ctx, l.notes(), 0)
	})
}
