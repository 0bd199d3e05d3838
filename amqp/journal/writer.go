package journal

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/amqp/queue"
)

// ErrDeposed is the error of what is written after another journal was opened, or the
// stream is not what it was.
var ErrDeposed = errors.New("another node has opened the journal")

// ErrClosed is the error of what is not stored when the journal is closed. It may be all
// the same.
var ErrClosed = errors.New("the journal is closed")

// ErrTooLarge is the error of what is larger than any message may be.
var ErrTooLarge = errors.New("it is larger than the payload of a message may be")

// Largest is how many bytes one record in a journal may have.
func Largest(nc *nats.Conn) int64 { return nc.MaxPayload() - headers }

const (
	// headers is the room for what a message has beside its payload.
	headers = 512
	// window is how many messages are on their way to the stream at once, and
	// windowBytes how many bytes. What comes meanwhile for a queue goes together. narrow
	// is the window of one queue that has it for itself: fewer messages, of more
	// records, cost less and take as long.
	window, narrow, windowBytes = 8, 3, 8 << 20
	// most is how many records go together, and mostBytes how many bytes before another.
	most, mostBytes = 1 << numberBits, 128 << 10
	// tidyFrom is how many that are told are forgotten at once, at least.
	tidyFrom = 512
	// answerWait is how long an answer is waited for before the stream is asked what it
	// has.
	answerWait = time.Second
	// requestTimeout bounds one question to the engine, and again is how long it is
	// until the next one.
	requestTimeout, again = 5 * time.Second, 50 * time.Millisecond
	// refusedFor is how long it is until something is sent again that was refused.
	refusedFor = 250 * time.Millisecond
	// firstTry is how long the first of several questions waits for an answer.
	firstTry = 500 * time.Millisecond
	// idHeader has what tells the messages of journals apart.
	idHeader = "Id"
)

// The engine's codes that the client has no names for.
const (
	wrongLast    jetstream.ErrorCode = 10071
	wrongLastToo jetstream.ErrorCode = 10164
	tooMany      jetstream.ErrorCode = 10167
)

// A writer writes to one stream, in order, and nobody else does. It is safe for
// concurrent use.
type writer struct {
	nc     *nats.Conn
	stream jetstream.Stream
	run    string // tells this writer's messages from those of others
	inbox  string // for answers, with its dot
	sub    *nats.Subscription
	stop   context.CancelFunc
	ended  chan struct{}
	lost   chan struct{} // has room for one: the stream has to be asked
	failed func(error)   // is told once why nothing is written any more
	refuse func(error)   // is told what the stream does not take

	telling sync.Mutex // of done

	mu      sync.Mutex
	opening bool   // what others write is no reason to stop
	first   uint64 // that interrupt wrote
	base    uint64 // the last message that is known to be stored
	waiting []*writing
	open    map[string]*writing // of waiting, what more records of a queue can go with, by subject
	head    int                 // of waiting: before it are those that are told
	sent    int                 // of waiting, from head: on their way
	bytes   int                 // of those
	round   uint64
	silent  bool // nothing is sent until the stream was asked
	resting bool // and it is not asked at once
	ids     uint64
	err     error
}

// writing is a message on its way.
type writing struct {
	subject string
	data    []byte
	id      string
	asked   time.Time
	sends   int // how often it was sent
	done    func(seq uint64, err error)
	stored  bool

	// Of records:
	log   *log
	parts []part
}

// part is a record that goes with others, and the queue that waits for it.
type part struct {
	q     *queue.Queue
	place uint64
}

// tell says what became of it.
func (one *writing) tell(seq uint64, err error) {
	if one.log != nil {
		one.log.stored(seq, one.parts, err)
		return
	}
	one.done(seq, err)
}

// newWriter writes behind the message last. It is opening until it is fenced.
func newWriter(ctx context.Context, nc *nats.Conn, stream jetstream.Stream, run string, last uint64, failed, refused func(error)) (*writer, error) {
	ctx, stop := context.WithCancel(ctx)
	w := &writer{
		nc: nc, stream: stream, run: run, inbox: nc.NewRespInbox() + ".", base: last, opening: true, stop: stop,
		ended: make(chan struct{}), lost: make(chan struct{}, 1), open: map[string]*writing{}, failed: failed, refuse: refused,
	}
	var err error
	if w.sub, err = nc.Subscribe(w.inbox+"*", w.answered); err != nil {
		stop()
		return nil, fmt.Errorf("listening for answers: %w", err)
	}
	go w.watch(ctx)
	return w, nil
}

// close gives up what is not known to be stored.
func (w *writer) close() {
	w.end(ErrClosed)
	w.stop()
	<-w.ended
	_ = w.sub.Unsubscribe()
}

// write stores data. done is called once, and may not block; it may be called before
// write returns. Those of what is stored are called in the order of the calls.
func (w *writer) write(subject string, data []byte, done func(seq uint64, err error)) {
	w.mu.Lock()
	err := w.err
	if int64(len(data)) > Largest(w.nc) {
		err = ErrTooLarge
	}
	if err != nil {
		w.mu.Unlock()
		done(0, err)
		return
	}
	w.add(&writing{subject: subject, data: data, done: done})
	w.mu.Unlock()
}

// add has one be sent; mu is held.
func (w *writer) add(one *writing) {
	w.ids++
	one.id = w.run + strconv.FormatUint(w.ids, 36)
	w.waiting = append(w.waiting, one)
	w.send()
}

// record stores a record of l, with those of the same queue that wait already. The queue is
// told as write tells.
func (w *writer) record(l *log, record []byte, p part) {
	w.mu.Lock()
	err := w.err
	if int64(len(record)) > Largest(w.nc)-binary.MaxVarintLen64 {
		err = ErrTooLarge
	}
	if err != nil {
		w.mu.Unlock()
		p.q.Stored(p.place, 0, err)
		return
	}
	defer w.mu.Unlock()
	subject := l.messages()
	if one := w.open[subject]; one != nil && len(one.parts) < most && len(one.data)+len(record) < mostBytes {
		one.data = append(binary.AppendUvarint(one.data, uint64(len(record))), record...)
		one.parts = append(one.parts, p)
		return
	}
	one := &writing{subject: subject, log: l, parts: []part{p}}
	one.data = append(binary.AppendUvarint(make([]byte, 0, len(record)+3), uint64(len(record))), record...)
	w.open[subject] = one
	w.add(one)
}

// send sends what there is room for; mu is held, so that it goes out in order.
func (w *writer) send() {
	now := time.Now()
	for !w.silent && w.room() && w.bytes < windowBytes {
		one := w.waiting[w.head+w.sent]
		if w.open[one.subject] == one {
			delete(w.open, one.subject)
		}
		before := w.base + uint64(w.sent)
		one.asked = now
		msg := &nats.Msg{Subject: one.subject, Data: one.data, Header: nats.Header{
			idHeader:                        {one.id},
			jetstream.ExpectedLastSeqHeader: {strconv.FormatUint(before, 10)},
		}}
		msg.Reply = w.inbox + strconv.FormatUint(w.round, 36) + "-" + strconv.FormatUint(before+1, 36)
		if w.nc.PublishMsg(msg) != nil {
			w.doubt()
			return
		}
		w.sent++
		one.sends++
		w.bytes += len(one.data)
	}
}

// room reports whether the next that waits can be sent now; mu is held. If it waits alone,
// more of its queue can join it.
func (w *writer) room() bool {
	waits := len(w.waiting) - w.head - w.sent
	return waits > 0 && w.sent < narrow || waits > 1 && w.sent < window
}

// doubt has the stream be asked what it has; mu is held.
func (w *writer) doubt() {
	if w.silent {
		return
	}
	w.silent = true
	w.round++
	select {
	case w.lost <- struct{}{}:
	default:
	}
}

// answer is what the engine says.
type answer struct {
	Seq   uint64              `json:"seq"`
	Error *jetstream.APIError `json:"error"`
}

// answered hears the engine.
func (w *writer) answered(msg *nats.Msg) {
	w.telling.Lock()
	defer w.telling.Unlock()
	round, at, ok := strings.Cut(strings.TrimPrefix(msg.Subject, w.inbox), "-")
	r, err1 := strconv.ParseUint(round, 36, 64)
	seq, err2 := strconv.ParseUint(at, 36, 64)
	if !ok || err1 != nil || err2 != nil {
		return
	}
	var a answer
	err := errors.New("nobody has the stream")
	if len(msg.Data) > 0 {
		err = json.Unmarshal(msg.Data, &a)
	}
	w.mu.Lock()
	i := w.head + int(seq-w.base) - 1
	if r != w.round || w.silent || seq <= w.base || i >= w.head+w.sent {
		w.mu.Unlock()
		return
	}
	switch {
	case err != nil, a.Error != nil && passing(a.Error), a.Error == nil && a.Seq != seq:
		w.doubt()
		w.mu.Unlock()
		return
	case a.Error != nil && w.waiting[i].sends > 1 && full(a.Error):
		// What was sent before may be stored by whoever leads the stream next.
		w.resting = true
		w.doubt()
		w.mu.Unlock()
		w.refuse(fmt.Errorf("the stream does not take it now: %w", a.Error))
		return
	case a.Error != nil:
		// It is refused for good, and what was sent behind it expects it to be there.
		one := w.waiting[i]
		w.waiting = append(w.waiting[:i], w.waiting[i+1:]...)
		w.sent--
		w.bytes -= len(one.data)
		w.doubt()
		w.mu.Unlock()
		err := fmt.Errorf("the stream does not take it: %w", a.Error)
		w.refuse(err)
		one.tell(0, err)
		return
	}
	w.waiting[i].stored = true
	w.settle()
}

// passing reports whether the engine may say something else the next time, or the reason
// is not with this message.
func passing(e *jetstream.APIError) bool {
	switch e.ErrorCode {
	case wrongLast, wrongLastToo, tooMany:
		return true
	}
	return e.Code >= 500 && !full(e)
}

// full reports whether the node that leads the stream has no room: another may have it.
func full(e *jetstream.APIError) bool {
	switch e.ErrorCode {
	case noResources, noStorage, accountFull:
		return true
	}
	return false
}

// settle tells those that are stored and have nothing before them that is not. mu is
// held, and given back.
func (w *writer) settle() {
	first, base := w.head, w.base
	for w.head < len(w.waiting) && w.waiting[w.head].stored {
		w.bytes -= len(w.waiting[w.head].data)
		w.head++
		w.sent--
		w.base++
	}
	told := w.waiting[first:w.head:w.head]
	if w.head == len(w.waiting) {
		w.waiting, w.head = nil, 0
	} else if w.head > tidyFrom && w.head > len(w.waiting)/2 {
		w.waiting, w.head = append([]*writing(nil), w.waiting[w.head:]...), 0
	}
	w.send()
	w.mu.Unlock()
	for i, one := range told {
		one.tell(base+uint64(i)+1, nil)
	}
}

// watch asks the stream what it has when that is not certain.
func (w *writer) watch(ctx context.Context) {
	defer close(w.ended)
	tick := time.NewTicker(answerWait / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			w.mu.Lock()
			if w.sent > 0 && now.Sub(w.waiting[w.head].asked) > answerWait {
				w.doubt()
			}
			w.mu.Unlock()
		case <-w.lost:
		}
		if w.rests() {
			select {
			case <-ctx.Done():
				return
			case <-time.After(refusedFor):
			}
		}
		for limit := firstTry; w.uncertain() && ctx.Err() == nil; limit = min(2*limit, requestTimeout) {
			if err := w.ask(ctx, limit); errors.Is(err, ErrDeposed) {
				w.end(err)
				return
			} else if err == nil {
				break
			}
			select {
			case <-ctx.Done():
			case <-time.After(again):
			}
		}
	}
}

// rests reports whether what was refused is to be sent again only after a while.
func (w *writer) rests() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	rests := w.resting
	w.resting = false
	return rests
}

func (w *writer) uncertain() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.silent && w.err == nil
}

// ask learns what of that which waits is stored, and has the rest sent again. It gives up
// after limit, because without a leader there is no answer.
func (w *writer) ask(ctx context.Context, limit time.Duration) error {
	try, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	info, err := w.stream.Info(try)
	if err != nil {
		return fmt.Errorf("asking for the end of the stream: %w", err)
	}
	last := info.State.LastSeq
	w.mu.Lock()
	base := w.base
	from := base + 1
	if w.opening { // what is stored twice does no harm, and others may write faster than it is read
		from = last + 1
	}
	w.mu.Unlock()
	if last < base {
		return ErrDeposed
	}
	there := map[string]uint64{} // by id
	for seq := from; seq <= last; seq++ {
		msg, err := w.stream.GetMsg(try, seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // others have removed it already
		}
		if err != nil {
			return fmt.Errorf("asking for message %d: %w", seq, err)
		}
		there[msg.Header.Get(idHeader)] = seq
	}
	w.telling.Lock()
	defer w.telling.Unlock()
	w.mu.Lock()
	var stored []*writing
	var rest []*writing
	for _, one := range w.waiting[w.head:] {
		if _, ok := there[one.id]; ok {
			stored = append(stored, one)
		} else {
			rest = append(rest, one)
		}
	}
	if !w.opening && uint64(len(stored)) != last-base {
		w.mu.Unlock()
		return ErrDeposed
	}
	w.base, w.waiting, w.head, w.sent, w.bytes, w.silent = last, rest, 0, 0, 0, false
	w.send()
	w.mu.Unlock()
	for _, one := range stored {
		one.tell(there[one.id], nil)
	}
	return nil
}

// end has nothing be written any more, and says why.
func (w *writer) end(err error) {
	w.mu.Lock()
	if w.err != nil {
		w.mu.Unlock()
		return
	}
	w.err, w.silent = err, true
	rest := w.waiting[w.head:]
	w.waiting, w.head, w.sent = nil, 0, 0
	clear(w.open)
	w.mu.Unlock()
	w.telling.Lock()
	for _, one := range rest {
		one.tell(0, fmt.Errorf("%w: %w", queue.ErrUnknown, err))
	}
	w.telling.Unlock()
	if !errors.Is(err, ErrClosed) {
		w.failed(err)
	}
}

// fence returns when nothing that another writer has on its way can be stored any more:
// all of it expects an end of the stream that there is no more. From then on a message of
// another has w write no more.
func (w *writer) fence(ctx context.Context, subject string) error {
	if err := w.interrupt(ctx, subject); err != nil {
		return err
	}
	stored := make(chan error, window+1)
	for range window + 1 {
		w.write(subject, nil, func(_ uint64, err error) { stored <- err })
	}
	for range window + 1 {
		select {
		case err := <-stored:
			if err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.opening = false
	return nil
}

// interrupt writes whatever the end of the stream is. A writer that is busy finds that
// message where its own was to be, and stops.
func (w *writer) interrupt(ctx context.Context, subject string) error {
	for {
		try, cancel := context.WithTimeout(ctx, answerWait)
		msg, err := w.nc.RequestWithContext(try, subject, nil)
		cancel()
		var a answer
		if err == nil {
			err = json.Unmarshal(msg.Data, &a)
		}
		switch {
		case err == nil && a.Error == nil:
			w.mu.Lock()
			w.first, w.base = a.Seq, max(w.base, a.Seq)
			w.mu.Unlock()
			return nil
		case err == nil && !passing(a.Error):
			return fmt.Errorf("writing to the stream: %w", a.Error)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(again):
		}
	}
}

// wrote writes, and returns when it is stored.
func (w *writer) wrote(ctx context.Context, subject string, data []byte) (uint64, error) {
	type result struct {
		seq uint64
		err error
	}
	done := make(chan result, 1)
	w.write(subject, data, func(seq uint64, err error) { done <- result{seq, err} })
	select {
	case r := <-done:
		return r.seq, r.err
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
