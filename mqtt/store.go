package mqtt

import (
	"encoding/json"
	"errors"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// storeTimeout is how long it is tried to write something. The engine has a new
	// leader for a stream within 10 seconds, if a quorum lives.
	storeTimeout = 20 * time.Second
	// answerWait is after how long without an answer it is written once more.
	answerWait = 3 * time.Second
)

// A writer writes to one stream, in order. A leader that dies takes with it what
// it was sent, and until there is another nobody takes anything: then what has no
// answer is written again, in the order of the first time, which is why only one
// is tried until that has an answer. What was stored, and its answer lost, is
// stored twice if it has no message identifier. It is safe for concurrent use.
type writer struct {
	conn  *nats.Conn
	inbox string // for answers

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]*writing
	first   uint64 // nothing before it waits
	silent  bool   // nobody takes anything: what comes waits
	closed  bool
}

// writing is a message on its way to a stream.
type writing struct {
	msg *nats.Msg
	// owner has more on its way, that must not be written if this cannot be.
	owner any
	done  func(seq uint64, again bool, err error)
	asked time.Time // when it was sent last
	lost  bool      // nobody has it
	until time.Time
}

// errUnanswered says that nobody knows whether something was stored.
var errUnanswered = errors.New("the engine did not answer")

func newWriter(conn *nats.Conn) (*writer, error) {
	w := &writer{conn: conn, inbox: nats.NewInbox() + ".", waiting: map[uint64]*writing{}}
	_, err := conn.Subscribe(w.inbox+"*", w.answered)
	return w, err
}

// write writes msg. done is called once, and must not block. Its error is
// errUnanswered, or the engine's refusal; again says that the stream had the
// message already.
func (w *writer) write(msg *nats.Msg, owner any, done func(seq uint64, again bool, err error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		go done(0, false, errUnanswered) // the caller may hold what done wants
		return
	}
	now := time.Now()
	one := &writing{msg: msg, owner: owner, done: done, lost: true, until: now.Add(storeTimeout)}
	msg.Reply = w.inbox + strconv.FormatUint(w.next, 36)
	w.waiting[w.next] = one
	w.next++
	if !w.silent {
		w.send(one, now)
	}
}

// send asks the engine to store one. mu is held: what goes out is in order.
func (w *writer) send(one *writing, now time.Time) {
	one.asked, one.lost = now, false
	if w.conn.PublishMsg(one.msg) != nil {
		w.silent, one.lost = true, true
	}
}

// answered hears the engine.
func (w *writer) answered(msg *nats.Msg) {
	n, err := strconv.ParseUint(strings.TrimPrefix(msg.Subject, w.inbox), 36, 64)
	if err != nil {
		return
	}
	var ack struct {
		Seq       uint64              `json:"seq"`
		Duplicate bool                `json:"duplicate"`
		Error     *jetstream.APIError `json:"error"`
	}
	if len(msg.Data) == 0 { // nobody heard it
		err = nats.ErrNoResponders
	} else if err = json.Unmarshal(msg.Data, &ack); err == nil && ack.Error != nil {
		err = ack.Error
	}
	if one := w.settle(n, err); one != nil {
		one.done(ack.Seq, ack.Duplicate, err)
	}
}

// settle takes n from what waits, if err is final.
func (w *writer) settle(n uint64, err error) *writing {
	w.mu.Lock()
	defer w.mu.Unlock()
	one := w.waiting[n]
	if one == nil {
		return nil
	}
	if errors.Is(err, nats.ErrNoResponders) || refused(err, notAvailable, notLeader, inProcess, tooMany) {
		w.silent, one.lost = true, true
		return nil
	}
	first := n == w.oldest()
	delete(w.waiting, n)
	if w.silent && first {
		w.silent = false
		now := time.Now()
		for _, n := range w.numbers() {
			w.send(w.waiting[n], now)
		}
	}
	return one
}

// numbers are those of what waits, in order; mu is held.
func (w *writer) numbers() []uint64 {
	numbers := make([]uint64, 0, len(w.waiting))
	for n := range w.waiting {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return numbers
}

// oldest is the number of what has waited longest; mu is held.
func (w *writer) oldest() uint64 {
	for w.first < w.next && w.waiting[w.first] == nil {
		w.first++
	}
	return w.first
}

// tick sends again what has no answer, and gives up what waits for too long. Call
// it a few times a second.
func (w *writer) tick(now time.Time) {
	w.mu.Lock()
	late := w.overdue(now)
	if one := w.waiting[w.oldest()]; one == nil {
		w.silent = false
	} else if one.lost || now.Sub(one.asked) > answerWait {
		w.silent = true
		w.send(one, now)
	}
	w.mu.Unlock()
	for _, one := range late {
		one.done(0, false, errUnanswered)
	}
}

// overdue takes from what waits that which waits for too long, and what else its
// owner has; mu is held.
func (w *writer) overdue(now time.Time) (late []*writing) {
	owners := map[any]bool{}
	take := func(n uint64) {
		late = append(late, w.waiting[n])
		delete(w.waiting, n)
	}
	for w.oldest() < w.next && !now.Before(w.waiting[w.first].until) {
		if owner := w.waiting[w.first].owner; owner != nil {
			owners[owner] = true
		}
		take(w.first)
	}
	if len(owners) > 0 {
		for _, n := range w.numbers() {
			if owners[w.waiting[n].owner] {
				take(n)
			}
		}
	}
	return late
}

// drop gives up what its owner has on its way. Who wants it after all writes it
// elsewhere: it must not be written here after that.
func (w *writer) drop(owner any) {
	w.mu.Lock()
	var dropped []*writing
	for _, n := range w.numbers() {
		if one := w.waiting[n]; one.owner == owner {
			dropped = append(dropped, one)
			delete(w.waiting, n)
		}
	}
	w.mu.Unlock()
	for _, one := range dropped {
		one.done(0, false, errUnanswered)
	}
}

// close gives up everything.
func (w *writer) close() {
	w.mu.Lock()
	w.closed = true
	late := w.overdue(time.Now().Add(2 * storeTimeout))
	w.mu.Unlock()
	for _, one := range late {
		one.done(0, false, errUnanswered)
	}
}
