package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// consumeTimeout bounds each request for a consumer; who lost one asks again.
	consumeTimeout = 500 * time.Millisecond

	abandoned = 30 * time.Second // after which the engine forgets a consumer left behind

	// behindTime is how long the ledger must look shorter than the state before
	// it is: a deposed leader, which can look so too, steps down in that time.
	behindTime = 12 * time.Second

	// saveAgain is how long after a failure a snapshot is tried again, if no
	// events come.
	saveAgain = time.Minute
)

var errDisconnected = errors.New("connection lost")

// A State is what events are folded into. A [Follower] calls Apply, Marshal and
// Unmarshal from one goroutine at a time; a State that others read meanwhile
// locks itself.
type State interface {
	// Apply takes event seq: data is the whole new record of subject, and empty
	// if the record was removed. Events come in order, each once. An error is
	// logged, and the event counts as applied: a State keeps what it does not
	// understand out of the way of what follows.
	Apply(seq uint64, subject string, data []byte) error

	// Seq is the last event that was applied, 0 before the first. It is asked
	// once, by NewFollower, when there is no snapshot to tell.
	Seq() uint64

	// Marshal returns the whole state, for a snapshot.
	Marshal() ([]byte, error)

	// Unmarshal replaces the state by a marshaled one. If it fails, the state is
	// as it was.
	Unmarshal([]byte) error
}

// FollowOptions say how a [Follower] keeps its snapshot and whom it tells.
type FollowOptions struct {
	// Snapshot is the path of the snapshot. Default: none is kept.
	Snapshot string

	// Filter are the subjects that are followed, without the ledger's prefix; "*" and
	// a last ">" are wildcards, and no two may overlap. Default: all. The state is then
	// as of the last event that passed.
	Filter []string

	// Heartbeat is how often the engine tells that it still delivers. After two that are
	// missing the follower asks anew. Default 500 ms; where there are very many
	// followers, they cost less if it is longer.
	Heartbeat time.Duration

	// Every is after how many events a snapshot is written. Default 64.
	Every int

	// Interval is how long after an event a snapshot is written at the latest, unless
	// writing it takes long: no more than a tenth of the time is spent on that.
	// Default 1 s.
	Interval time.Duration

	// Logger is told of interruptions, of events that could not be applied and
	// of snapshots that could not be read or written. Default: nobody is.
	Logger *slog.Logger

	// OnEvent is called with each event after it was applied, in order, from the
	// goroutine of Run. It must not wait for the follower.
	OnEvent func(Event)
}

// A Follower folds the events of a ledger into a [State]. [NewFollower] makes
// one. Its methods are safe for concurrent use, but only one Run at a time.
type Follower struct {
	state    State
	options  FollowOptions
	log      *slog.Logger
	behind   time.Duration // behindTime, but in tests
	caughtUp chan struct{}

	// Of Run alone.
	seen    bool      // the ledger was seen once
	target  uint64    // its last event then
	caught  bool      // caughtUp is closed
	unsaved int       // events applied since the last snapshot
	due     time.Time // when to write the next one, if unsaved is not 0
	rest    time.Time // when the next one may be written, for what the last one took

	ledger string // the id of what the state is of; empty: it is not known yet

	mu      sync.Mutex
	seq     uint64
	changed chan struct{} // closed, and made anew, when seq changes
}

// NewFollower returns a follower into state. If there is a snapshot, state is
// loaded from it: it can be used before, or without, a Run. A corrupt snapshot is
// logged, renamed to the same path with ".corrupt-" and the Unix time after it,
// and state is left as it was. An error means that the file could not be read at
// all.
func NewFollower(state State, o FollowOptions) (*Follower, error) {
	if o.Every <= 0 {
		o.Every = 64
	}
	if o.Interval <= 0 {
		o.Interval = time.Second
	}
	if o.Heartbeat <= 0 {
		o.Heartbeat = 500 * time.Millisecond
	}
	f := &Follower{
		state:    state,
		options:  o,
		log:      o.Logger,
		behind:   behindTime,
		caughtUp: make(chan struct{}),
		changed:  make(chan struct{}),
	}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.load(); err != nil {
		return nil, err
	}
	return f, nil
}

// load takes state and sequence from the snapshot, if there is a good one.
func (f *Follower) load() error {
	f.seq = f.state.Seq()
	if f.options.Snapshot == "" {
		return nil
	}
	seq, ledger, payload, err := readSnapshot(f.options.Snapshot)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err == nil:
		if err = f.state.Unmarshal(payload); err == nil {
			f.seq, f.ledger = seq, ledger
			return nil
		}
	case !errors.Is(err, ErrCorrupt):
		return err
	}
	aside := fmt.Sprintf("%s.corrupt-%d", f.options.Snapshot, time.Now().Unix())
	f.log.Error("snapshot set aside", "path", f.options.Snapshot, "aside", aside, "error", err)
	if err := os.Rename(f.options.Snapshot, aside); err != nil {
		f.log.Error("snapshot could not be set aside", "path", f.options.Snapshot, "error", err)
	}
	return nil
}

// Run follows l, from the event after the state's last one, until ctx ends; then
// it writes a last snapshot and returns nil. Lost connections, elections and a
// missing quorum are waited out: the state stays as of the last event seen. Run
// fails only when waiting is of no use: with [ErrBehind], or with
// [nats.ErrConnectionClosed].
func (f *Follower) Run(ctx context.Context, l *Ledger) error {
	defer f.save()
	var behindSince time.Time
	for n := 0; ; n++ {
		connected, err := f.follow(ctx, l)
		if ctx.Err() != nil {
			return nil
		}
		f.save()
		if l.js.Conn().IsClosed() {
			return fmt.Errorf("following ledger %q: %w", l.name, nats.ErrConnectionClosed)
		}
		switch {
		case !errors.Is(err, ErrBehind):
			behindSince = time.Time{}
		case behindSince.IsZero():
			behindSince = time.Now()
		case time.Since(behindSince) >= f.behind:
			return fmt.Errorf("following ledger %q: %w", l.name, err)
		}
		if connected {
			n = 0
		}
		if n == 0 { // the first of a row of failures speaks for all
			f.log.Warn("ledger interrupted", "stream", l.name, "error", err)
		}
		if pause(ctx, n) != nil {
			return nil
		}
	}
}

// follow applies events until something goes wrong. It repairs nothing: each call
// has a consumer of its own that starts after the last event applied, so that
// whatever was lost on the way to an old one is delivered again. connected tells
// that it had one.
func (f *Follower) follow(ctx context.Context, l *Ledger) (connected bool, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	status := l.js.Conn().StatusChanged(nats.RECONNECTING, nats.CLOSED)
	defer l.js.Conn().RemoveStatusListener(status)
	go func() { // ends when the listener is removed
		if _, ok := <-status; ok {
			cancel(errDisconnected)
		}
	}()

	messages, err := f.consume(ctx, l)
	if err != nil {
		return false, err
	}
	defer messages.Stop()
	for expected := uint64(1); ; expected++ {
		msg, err := f.next(ctx, messages)
		if ctx.Err() != nil {
			return true, context.Cause(ctx)
		}
		if err != nil {
			return true, err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return true, err
		}
		switch {
		case meta.Stream != l.name: // somebody had the engine deliver it here
			return true, fmt.Errorf("delivery %d is of stream %q", expected, meta.Stream)
		case meta.Sequence.Consumer != expected:
			return true, fmt.Errorf("delivery %d was lost", expected)
		}
		f.apply(Event{
			Seq:     meta.Sequence.Stream,
			Subject: strings.TrimPrefix(msg.Subject(), l.prefix),
			Time:    meta.Timestamp,
			Data:    msg.Data(),
		})
	}
}

// consume starts a consumer after the last event applied.
func (f *Follower) consume(ctx context.Context, l *Ledger) (jetstream.MessagesContext, error) {
	info, err := request(ctx, func(ctx context.Context) (*jetstream.StreamInfo, error) { return l.stream.Info(ctx) })
	if err != nil {
		return nil, err
	}
	seq := f.position()
	if err := f.recognize(info.Config.Metadata[idKey], seq); err != nil {
		return nil, err
	}
	if info.State.LastSeq < seq {
		return nil, fmt.Errorf("%w: it ends at event %d, the state is as of %d", ErrBehind, info.State.LastSeq, seq)
	}
	target := info.State.LastSeq
	if !f.seen && len(f.options.Filter) > 0 {
		if target, err = f.last(ctx, l); err != nil {
			return nil, err
		}
	}
	config := jetstream.ConsumerConfig{
		DeliverPolicy:     jetstream.DeliverByStartSequencePolicy,
		OptStartSeq:       seq + 1,
		AckPolicy:         jetstream.AckNonePolicy,
		InactiveThreshold: abandoned,
		Replicas:          1,
		MemoryStorage:     true,
	}
	for _, subject := range f.options.Filter {
		config.FilterSubjects = append(config.FilterSubjects, l.prefix+subject)
	}
	consumer, err := request(ctx, func(ctx context.Context) (jetstream.Consumer, error) { return l.stream.CreateConsumer(ctx, config) })
	if err != nil {
		return nil, err
	}
	messages, err := consumer.Messages(
		jetstream.PullHeartbeat(f.options.Heartbeat),
		jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return nil, err
	}
	if !f.seen {
		f.seen, f.target = true, target
		f.catchUp(seq)
	}
	return messages, nil
}

// request makes one for a consumer.
func request[T any](ctx context.Context, do func(context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, consumeTimeout)
	defer cancel()
	return do(ctx)
}

// recognize fails if the ledger of an id is another one than the state is of. Which that
// is, a state without events does not know, nor one of an old snapshot.
func (f *Follower) recognize(id string, seq uint64) error {
	switch {
	case id == "" || id == f.ledger || strings.ContainsFunc(id, isSpaceOrControl): // nobody else's says anything
		return nil
	case f.ledger != "" && seq > 0:
		return fmt.Errorf("%w: it was made anew, and the state is of another", ErrBehind)
	}
	f.ledger = id
	if seq > 0 && f.unsaved == 0 { // a snapshot that has none gets it
		f.unsaved, f.due = 1, time.Now()
	}
	return nil
}

// next waits for the next message, and writes snapshots that fall due meanwhile.
func (f *Follower) next(ctx context.Context, messages jetstream.MessagesContext) (jetstream.Msg, error) {
	for f.unsaved > 0 {
		untilDue, cancel := context.WithDeadline(ctx, f.due)
		msg, err := messages.Next(jetstream.NextContext(untilDue))
		cancel()
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return msg, err
		}
		f.save()
	}
	return messages.Next(jetstream.NextContext(ctx))
}

// last is the last event that passes the filter. How many a consumer has ahead does not
// tell it: a copy of the ledger that is behind itself has none.
func (f *Follower) last(ctx context.Context, l *Ledger) (uint64, error) {
	seqs, errs := make([]uint64, len(f.options.Filter)), make([]error, len(f.options.Filter))
	var all sync.WaitGroup
	for i, subject := range f.options.Filter { // at once: the leader may be far away
		all.Go(func() {
			msg, err := request(ctx, func(ctx context.Context) (*jetstream.RawStreamMsg, error) {
				return l.stream.GetLastMsgForSubject(ctx, l.prefix+subject)
			})
			switch {
			case err == nil:
				seqs[i] = msg.Sequence
			case !errors.Is(err, jetstream.ErrMsgNotFound):
				errs[i] = err
			}
		})
	}
	all.Wait()
	return slices.Max(seqs), errors.Join(errs...)
}

// catchUp closes caughtUp if the state is as of event seq and the ledger ended there, or
// before, when it was first seen.
func (f *Follower) catchUp(seq uint64) {
	if !f.caught && seq >= f.target {
		f.caught = true
		close(f.caughtUp)
	}
}

// apply folds one event into the state and tells everybody.
func (f *Follower) apply(e Event) {
	if err := f.state.Apply(e.Seq, e.Subject, e.Data); err != nil {
		f.log.Error("ledger event not applied", "sequence", e.Seq, "subject", e.Subject, "error", err)
	}
	if f.options.OnEvent != nil {
		f.options.OnEvent(e)
	}
	f.mu.Lock()
	f.seq = e.Seq
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	f.catchUp(e.Seq)

	if f.unsaved++; f.unsaved == 1 {
		f.due = time.Now().Add(f.options.Interval)
		if f.due.Before(f.rest) {
			f.due = f.rest
		}
	}
	if f.unsaved%f.options.Every == 0 && f.caught && time.Now().After(f.rest) { // not while catching up
		f.save()
	}
}

// save writes the snapshot, if there is something new to write.
func (f *Follower) save() {
	if f.unsaved == 0 {
		return
	}
	if f.options.Snapshot == "" {
		f.unsaved = 0
		return
	}
	began := time.Now()
	defer func() { f.rest = time.Now().Add(9 * time.Since(began)) }()
	payload, err := f.state.Marshal()
	if err == nil {
		err = writeSnapshot(f.options.Snapshot, f.position(), f.ledger, payload)
	}
	if err != nil {
		f.log.Error("snapshot not written", "path", f.options.Snapshot, "error", err)
		f.due = time.Now().Add(saveAgain)
		return
	}
	f.unsaved = 0
}

// position is the last event applied.
func (f *Follower) position() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.seq
}

// Wait returns when event seq, and all before it, were applied and OnEvent has
// returned. It returns ctx's error if ctx ends first.
func (f *Follower) Wait(ctx context.Context, seq uint64) error {
	for {
		f.mu.Lock()
		at, changed := f.seq, f.changed
		f.mu.Unlock()
		if at >= seq {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for event %d at event %d: %w", seq, at, ctx.Err())
		case <-changed:
		}
	}
}

// CaughtUp is closed once everything was applied that was in the ledger when Run
// first saw it. The state is then as fresh as that moment, and followed since.
func (f *Follower) CaughtUp() <-chan struct{} { return f.caughtUp }
