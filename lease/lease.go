// Package lease lets one of many do a thing, and another when that one is gone.
//
// A lease is a message with a time to live on a stream. Who writes it under the
// condition that there is none holds it, and goes on holding it by writing it
// again in time; nothing is ever decided by a read. A holder that cannot write
// any more, because it is cut off or was stopped, finds that out by its own
// monotonic clock before the stream lets the next one in, unless the clock of the
// stream's leader runs ahead: what a lease guards must bear to be done twice for a
// moment. A message that outlives its time, by an error of the engine, is written
// over by who has seen it unchanged for longer than that.
package lease

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	defaultTTL = 6 * time.Second
	// openTimeout bounds one attempt to find or make the stream, and firstTry the first
	// question whether there is one.
	openTimeout, firstTry = 5 * time.Second, 500 * time.Millisecond
	// silence is how many times a lease's time the engine may not answer.
	silence = 5

	// The engine's error codes that the client has no names for.
	noPeers             jetstream.ErrorCode = 10005 // not enough nodes
	replicasNeedCluster jetstream.ErrorCode = 10074 // and the engine is not in one
)

// ErrLost is the cause of the end of the context that Hold gives to do, when
// somebody else may hold the lease.
var ErrLost = errors.New("the lease was lost")

// ErrFree says that nobody holds a lease.
var ErrFree = errors.New("nobody holds the lease")

// Options say where leases are kept. The zero value is right for most.
type Options struct {
	// Stream is the name of the stream. Default "LEASES".
	Stream string
	// Prefix comes before every name to make its subject, with a dot between.
	// Default "lease".
	Prefix string
	// TTL is how long a lease outlives its holder, in whole seconds. It is renewed
	// three times as often. Default 6 s.
	TTL time.Duration
}

// Leases are the leases of one account. Open makes them. They are safe for
// concurrent use and have nothing to close.
type Leases struct {
	js      jetstream.JetStream
	stream  jetstream.Stream
	options Options
}

// A Record is what is known of a lease that is held.
type Record struct {
	// Holder has had it Since, by its own clock.
	Holder string    `json:"holder"`
	Since  time.Time `json:"since"`
	// Note is what the holder says of its work.
	Note json.RawMessage `json:"note,omitempty"`
	// Written is when it was last renewed, by the engine's clock.
	Written time.Time `json:"-"`
}

// Open finds the leases on js, or makes their stream: on three nodes where there
// are three. It gives up
// after 5 s; the caller tries again.
func Open(ctx context.Context, js jetstream.JetStream, o Options) (*Leases, error) {
	o.Stream, o.Prefix, o.TTL = cmp.Or(o.Stream, "LEASES"), cmp.Or(o.Prefix, "lease"), cmp.Or(o.TTL, defaultTTL)
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	stream, err := find(ctx, js, o.Stream)
	for _, replicas := range []int{3, 1} {
		if !errors.Is(err, jetstream.ErrStreamNotFound) && !lacksNodes(err) {
			break
		}
		stream, err = js.CreateStream(ctx, jetstream.StreamConfig{
			Name: o.Stream, Description: "who does what only one may do", Subjects: []string{o.Prefix + ".>"},
			Storage: jetstream.FileStorage, Replicas: replicas, MaxMsgsPerSubject: 1, AllowMsgTTL: true,
			Metadata: map[string]string{"fleetbus.replicas": "auto"},
		})
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		stream, err = js.Stream(ctx, o.Stream)
	}
	if err != nil {
		return nil, fmt.Errorf("opening leases %q: %w", o.Stream, err)
	}
	return &Leases{js: js, stream: stream, options: o}, nil
}

// find looks for the stream. What is asked of an engine without a leader is never answered,
// and the next leader does not know of it: it is asked again.
func find(ctx context.Context, js jetstream.JetStream, name string) (jetstream.Stream, error) {
	for limit := firstTry; ; limit *= 2 {
		try, cancel := context.WithTimeout(ctx, limit)
		stream, err := js.Stream(try, name)
		cancel()
		if ctx.Err() != nil || !errors.Is(err, context.DeadlineExceeded) {
			return stream, err
		}
	}
}

func lacksNodes(err error) bool {
	var refusal *jetstream.APIError
	return errors.As(err, &refusal) && (refusal.ErrorCode == noPeers || refusal.ErrorCode == replicasNeedCluster)
}

// Hold waits until holder has the lease, calls do with a context that ends when it
// may have been lost, and gives it back when do returns. note is asked, at each
// renewal, what others shall know of the work; it may be nil. Hold returns do's
// error, or ctx's if the lease was never had, or the engine's if that has not
// answered for five times the lease's time. The name is words joined by dots.
func (l *Leases) Hold(ctx context.Context, name, holder string, note func() any, do func(context.Context) error) error {
	h := &holding{Leases: l, name: name, record: Record{Holder: holder}, note: note}
	if err := h.acquire(ctx); err != nil {
		return fmt.Errorf("waiting for lease %q: %w", name, err)
	}
	held, lose := context.WithCancelCause(context.WithValue(ctx, key{}, h))
	defer lose(nil)
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.keep(held, lose)
	}()
	err := do(held)
	lost := errors.Is(context.Cause(held), ErrLost)
	lose(nil)
	<-done
	if !lost {
		h.release(context.WithoutCancel(ctx))
	}
	return err
}

// key is that of the holding in the context that Hold gives.
type key struct{}

// Holds returns what reports whether the lease is held at this very moment that ctx, which
// Hold gave to do, is for; of another context none is. A process that stood still learns by it
// at once that the lease is over, and by the end of ctx only in a moment: who must not act
// after another may have begun asks just before. It is safe for concurrent use.
func Holds(ctx context.Context) func() bool {
	left := Left(ctx)
	return func() bool { return left() > 0 }
}

// Left is as Holds, and returns what tells for how long the lease is held at least; nothing
// is left of one that is over.
func Left(ctx context.Context) func() time.Duration {
	h, ok := ctx.Value(key{}).(*holding)
	if !ok {
		return func() time.Duration { return 0 }
	}
	return func() time.Duration { return max(time.Until(*h.until.Load()), 0) }
}

// holding is one attempt to have and keep a lease. It belongs to one goroutine, but for until.
type holding struct {
	*Leases
	name   string
	record Record
	note   func() any
	seq    uint64                    // of the message that holds it
	until  atomic.Pointer[time.Time] // it is ours, by the monotonic clock
}

// acquire tries until the lease is ours. Who waits does so about as long as a
// renewal takes.
func (h *holding) acquire(ctx context.Context) error {
	answered := time.Now()
	var other uint64 // the message of who has it, and since when it is known
	var known time.Time
	for {
		h.record.Since = time.Now()
		h.seq = 0
		if other != 0 && time.Since(known) > h.options.TTL*3/2 {
			h.seq = other // nobody renewed it, and it did not go
		}
		err := h.write(ctx)
		if err == nil {
			return nil
		}
		if isConflict(err) {
			var seq uint64
			if seq, err = h.last(ctx); err == nil && seq != other {
				other, known = seq, time.Now()
			}
		}
		if err == nil {
			answered = time.Now()
		} else if time.Since(answered) > silence*h.options.TTL {
			return err
		}
		if err := sleep(ctx, h.options.TTL/4+rand.N(h.options.TTL/8)); err != nil {
			return err
		}
	}
}

// last is the message that holds the lease, 0 if there is none any more.
func (h *holding) last(ctx context.Context) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, h.options.TTL/3)
	defer cancel()
	msg, err := h.stream.GetLastMsgForSubject(ctx, h.subject())
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return msg.Sequence, nil
}

func (h *holding) subject() string { return h.options.Prefix + "." + h.name }

// keep renews the lease until ctx is done; when it could not in time, it ends ctx.
func (h *holding) keep(ctx context.Context, lose context.CancelCauseFunc) {
	for sleep(ctx, h.options.TTL/3) == nil {
		err := h.write(ctx)
		switch {
		case ctx.Err() != nil:
		case isConflict(err), time.Until(*h.until.Load()) < h.options.TTL/4:
			lose(fmt.Errorf("%w: %w", ErrLost, err))
		}
	}
}

// write makes or renews the message, for as long as the lease may be ours.
func (h *holding) write(ctx context.Context) error {
	if h.note != nil {
		data, err := json.Marshal(h.note())
		if err != nil {
			return fmt.Errorf("encoding the note of lease %q: %w", h.name, err)
		}
		h.record.Note = data
	}
	seq, began, err := h.publish(ctx, h.options.TTL)
	if err != nil {
		return err
	}
	until := began.Add(h.options.TTL)
	h.seq = seq
	h.until.Store(&until)
	return nil
}

func (h *holding) publish(ctx context.Context, ttl time.Duration) (seq uint64, began time.Time, err error) {
	data, err := json.Marshal(h.record)
	if err != nil {
		return 0, began, fmt.Errorf("encoding lease %q: %w", h.name, err)
	}
	msg := &nats.Msg{Subject: h.subject(), Data: data, Header: nats.Header{
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(h.seq, 10)},
		jetstream.MsgTTLHeader:              {strconv.Itoa(int(max(ttl, time.Second).Seconds()))},
	}}
	ctx, cancel := context.WithTimeout(ctx, h.options.TTL/3)
	defer cancel()
	began = time.Now()
	ack, err := h.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if err != nil {
		return 0, began, err
	}
	return ack.Sequence, began, nil
}

// release lets the next one in, a second from now. Whoever cannot be told waits
// for the lease to expire.
func (h *holding) release(ctx context.Context) {
	if h.note != nil {
		if data, err := json.Marshal(h.note()); err == nil {
			h.record.Note = data
		}
	}
	if over := time.Now().Add(time.Second); over.Before(*h.until.Load()) {
		h.until.Store(&over)
	}
	_, _, _ = h.publish(ctx, time.Second)
}

func isConflict(err error) bool {
	var refusal *jetstream.APIError
	return errors.As(err, &refusal) &&
		(refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
			refusal.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant)
}

// sleep waits for d; it returns ctx's error if ctx ends first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}

// Look tells who holds a lease, as far as the stream's leader knows; the error
// wraps ErrFree if nobody does. It is for people to read: who acts on it acts on
// the past.
func (l *Leases) Look(ctx context.Context, name string) (Record, error) {
	msg, err := l.stream.GetLastMsgForSubject(ctx, l.options.Prefix+"."+name)
	if errors.Is(err, jetstream.ErrMsgNotFound) {
		return Record{}, fmt.Errorf("looking at lease %q: %w", name, ErrFree)
	}
	if err != nil {
		return Record{}, fmt.Errorf("looking at lease %q: %w", name, err)
	}
	r := Record{Written: msg.Time}
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return Record{}, fmt.Errorf("reading lease %q: %w", name, err)
	}
	return r, nil
}
