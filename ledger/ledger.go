// Package ledger keeps what a fleet agrees on: an append-only stream of events,
// one subject per record, each event the whole new record.
//
// [Ledger.Append] writes under optimistic locking: it fails with [ErrConflict]
// when somebody was faster. A [Follower] folds the events, in order, into a
// [State], which is a plain Go value, and keeps a snapshot of it on disk, so
// that a node can start and serve while the quorum is away.
//
// Nothing is decided by a read, because a read can be stale: a write succeeds or
// it does not, and a state is known to be "as of event n". Who needs "at least
// n" waits for it with [Follower.Wait].
package ledger

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	// ErrConflict is returned by [Ledger.Append] when the subject's last event is
	// not the expected one. Nothing was written: look at the record again, decide
	// again.
	ErrConflict = errors.New("conflict: somebody was faster")

	// ErrUnknown is returned by [Ledger.Append], next to the error that ended it,
	// when the event may have been written, may be written a little later, or may
	// never be. Look at the record before deciding anything.
	ErrUnknown = errors.New("outcome unknown")

	// ErrBehind is returned by [Follower.Run] when the ledger ends before the
	// state does: the stream was lost and made anew, or restored from an older
	// copy. The state holds events that the fleet no longer agrees on, and
	// following on would miss as many. Remove the snapshot to follow from the
	// first event, or restore the stream. A new stream is told from the old one by an
	// id that [Open] gives it, however far it has grown; a snapshot that was written
	// without one takes the first that it meets.
	ErrBehind = errors.New("the ledger is behind the state")
)

// idKey is the id of a ledger among the metadata of its stream, where it outlives
// changes of its settings, moves and restored copies.
const idKey = "fleetbus.ledger"

const (
	firstAttempt   = 100 * time.Millisecond // the first attempt to append, or to read one event, by default
	appendTimeout  = 2 * time.Second        // a later one, at most
	requestTimeout = 5 * time.Second        // one request about the stream itself

	// settleTime is how long an expected version that the ledger does not have
	// is put down to a stale leader before it is called a conflict. Deposed
	// leaders were measured to answer for 0.3 s.
	settleTime = time.Second

	// The engine's error codes that the client has no names for.
	noPeers             jetstream.ErrorCode = 10005 // not enough nodes yet
	replicasNeedCluster jetstream.ErrorCode = 10074 // and the engine is not in one
	duplicateInProcess  jetstream.ErrorCode = 10158 // an event with that id is being stored
	memberChange        jetstream.ErrorCode = 10202 // the cluster is changing its members
)

// Options say which stream a ledger is, and how it is made when it is missing.
type Options struct {
	// Stream is the name of the stream. Default "FLEET".
	Stream string

	// Prefix comes before every subject, with a dot between. Default "ledger".
	Prefix string

	// Replicas is on how many nodes a new stream is kept. Default 1.
	Replicas int

	// OrOne makes a new stream on one node while there are fewer than Replicas. Default:
	// they are waited for.
	OrOne bool

	// Duplicates is how long the engine remembers the ids of events in a new
	// stream, to tell a repeated attempt from a new event. Append is right
	// without it, but answers sooner. Default 2 minutes.
	Duplicates time.Duration

	// Placement is the cluster that keeps a new stream. Default: that of the
	// connection.
	Placement string

	// History is how many events of a subject a new stream keeps. Default: all. The
	// last one is always kept, and it is the whole record.
	History int

	// Attempt is how long Append waits for an answer before it asks what became of the
	// event, and sends it again. Default 100 ms, for who wants to be through with an
	// election soon. Where very many append at once, what is only late costs less if it
	// is longer.
	Attempt time.Duration

	// MaxAge and MaxBytes bound what a new stream keeps: older events, or the oldest, are
	// gone then. Default: they are kept forever. A Follower needs all; who sets a bound
	// reads otherwise.
	MaxAge   time.Duration
	MaxBytes int64
	// Metadata is the new stream's, besides the ledger's id.
	Metadata map[string]string
}

// A Ledger appends events to a stream. [Open] makes one. It is safe for
// concurrent use and has nothing to close.
type Ledger struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	name   string
	prefix string        // with its dot
	first  time.Duration // the first attempt to append
}

// An Event is one new record, or the removal of one.
type Event struct {
	Seq     uint64    // its place in the ledger, from 1; the version of its subject
	Subject string    // without the ledger's prefix
	Time    time.Time // when the engine stored it, by the engine's clock
	Data    []byte    // the whole record; empty if it was removed
}

// Open returns the ledger on js that o describes. It makes the stream if it is
// missing: on disk, forever unless History says otherwise, with no way to delete or
// purge events. It leaves an
// existing stream as it is, and fails if that one does not carry the ledger's
// subjects. It tries until ctx ends, so that a node can open its ledger before
// there is a quorum; the error then wraps ctx's and says what was in the way.
func Open(ctx context.Context, js jetstream.JetStream, o Options) (*Ledger, error) {
	l := &Ledger{
		js:     js,
		name:   cmp.Or(o.Stream, "FLEET"),
		prefix: cmp.Or(o.Prefix, "ledger") + ".",
		first:  cmp.Or(o.Attempt, firstAttempt),
	}
	config := jetstream.StreamConfig{
		Name:       l.name,
		Subjects:   []string{l.prefix + ">"},
		Storage:    jetstream.FileStorage,
		Retention:  jetstream.LimitsPolicy,
		Replicas:   max(o.Replicas, 1),
		Duplicates: cmp.Or(o.Duplicates, 2*time.Minute),
		DenyDelete: true,
		DenyPurge:  true,
		Metadata:   map[string]string{idKey: rand.Text()},
	}
	maps.Copy(config.Metadata, o.Metadata)
	config.MaxAge, config.Duplicates = o.MaxAge, cmp.Or(min(o.MaxAge, config.Duplicates), config.Duplicates)
	if o.MaxBytes > 0 {
		config.MaxBytes = o.MaxBytes
	}
	if o.History > 0 {
		config.MaxMsgsPerSubject = int64(o.History)
	}
	if o.Placement != "" {
		config.Placement = &jetstream.Placement{Cluster: o.Placement}
	}
	err := retry(ctx, func(ctx context.Context) (err error) {
		l.stream, err = js.Stream(ctx, l.name)
		if !errors.Is(err, jetstream.ErrStreamNotFound) {
			return err
		}
		l.stream, err = js.CreateStream(ctx, config)
		if o.OrOne && lacksNodes(err) {
			one := config
			one.Replicas = 1
			l.stream, err = js.CreateStream(ctx, one)
		}
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) { // made by another node just now
			if l.stream, err = js.Stream(ctx, l.name); errors.Is(err, jetstream.ErrStreamNotFound) {
				err = errors.New("another node is making it") // and who was asked does not know of it yet
			}
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("opening ledger %q: %w", l.name, err)
	}
	if has := l.stream.CachedInfo().Config.Subjects; !slices.Contains(has, config.Subjects[0]) {
		return nil, fmt.Errorf("opening ledger %q: the stream carries %q, not %q", l.name, has, config.Subjects[0])
	}
	return l, nil
}

// SetReplicas changes on how many nodes the stream is kept. It returns when the
// engine has agreed; new replicas fill up after that. It tries until ctx ends.
func (l *Ledger) SetReplicas(ctx context.Context, n int) error {
	err := retry(ctx, func(ctx context.Context) error {
		info, err := l.stream.Info(ctx)
		if err != nil || info.Config.Replicas == n {
			return err
		}
		info.Config.Replicas = n
		_, err = l.js.UpdateStream(ctx, info.Config)
		return err
	})
	if err != nil {
		return fmt.Errorf("setting replicas of ledger %q to %d: %w", l.name, n, err)
	}
	return nil
}

// Now is the time by the clock that events bear: the engine's, as the stream's leader has
// it. Whoever asks gets the same, whatever its own clock says, but for half of how long
// the answer took.
func (l *Ledger) Now(ctx context.Context) (time.Time, error) {
	began := time.Now()
	info, err := l.stream.Info(ctx)
	if err != nil {
		return time.Time{}, fmt.Errorf("asking ledger %q for the time: %w", l.name, err)
	}
	return info.TimeStamp.Add(time.Since(began) / 2), nil
}

// Last is the last event of the ledger, as the stream's leader has it.
func (l *Ledger) Last(ctx context.Context) (uint64, error) {
	info, err := l.stream.Info(ctx)
	if err != nil {
		return 0, fmt.Errorf("asking ledger %q for its last event: %w", l.name, err)
	}
	return info.State.LastSeq, nil
}

// Append writes data as the whole new record of subject, if the subject's last
// event is still expect; 0 means that the subject has no event yet. Empty data
// removes the record; the removal is an event like any other. Append returns the
// event's place in the ledger, which is the subject's new version.
//
// It tries until it knows, or until ctx ends: give ctx a deadline, and no less
// than 10 s to live through an election. The error wraps [ErrConflict] if
// somebody was faster. It wraps [ErrUnknown], next to ctx's error or
// [nats.ErrConnectionClosed], if the event may have been written all the same.
// With any other error nothing was written.
func (l *Ledger) Append(ctx context.Context, subject string, expect uint64, data []byte) (uint64, error) {
	if err := errors.Join(checkSubject(subject), ctx.Err()); err != nil {
		return 0, fmt.Errorf("appending to %q: %w", subject, err)
	}
	id := rand.Text()
	msg := &nats.Msg{Subject: l.prefix + subject, Data: data, Header: nats.Header{
		jetstream.MsgIDHeader:               {id},
		jetstream.ExpectedStreamHeader:      {l.name},
		jetstream.ExpectedLastSubjSeqHeader: {strconv.FormatUint(expect, 10)},
	}}
	version, unknown, err := l.decide(ctx, msg, id, expect)
	if err != nil && unknown {
		return 0, fmt.Errorf("appending to %q after event %d: %w: %w", subject, expect, ErrUnknown, err)
	}
	if err != nil {
		return 0, fmt.Errorf("appending to %q after event %d: %w", subject, expect, err)
	}
	return version, nil
}

// decide sends msg, always with the same id, until it is stored or can no longer
// be. What settles an attempt without an answer, and a refusal that may answer an
// earlier attempt of our own or come from a stale leader, is the event that
// follows expect on the subject: once there, it is there for good, and whose id
// it bears has won. unknown is true if msg may have been stored despite err.
func (l *Ledger) decide(ctx context.Context, msg *nats.Msg, id string, expect uint64) (version uint64, unknown bool, err error) {
	var refused time.Time // since when every answer was a refusal
	for n := 0; ; n++ {
		version, err := l.publish(ctx, msg, n)
		conflict := isConflict(err)
		switch {
		case err == nil:
			return version, false, nil
		case conflict, isBusy(err), errors.Is(err, jetstream.ErrNoStreamResponse): // not stored by this attempt
		case isFinal(err):
			return 0, unknown || errors.Is(err, nats.ErrConnectionClosed), err
		default:
			unknown = true
		}
		if next, err := l.next(ctx, msg.Subject, expect, n); err == nil {
			if next.Header.Get(jetstream.MsgIDHeader) == id {
				return next.Sequence, false, nil
			}
			return 0, false, fmt.Errorf("%w: event %d was next", ErrConflict, next.Sequence)
		}
		switch {
		case !conflict:
			refused = time.Time{}
		case refused.IsZero():
			refused = time.Now()
		case !unknown && time.Since(refused) > settleTime:
			return 0, false, fmt.Errorf("%w: %w", ErrConflict, err)
		}
		if end := pause(ctx, n); end != nil {
			return 0, unknown, because(end, err)
		}
	}
}

// attemptTime bounds the nth attempt. While a leader is being elected a request
// is lost without a trace, and the first ones should not cost much; repeating
// one is harmless.
func (l *Ledger) attemptTime(n int) time.Duration {
	return min(l.first<<min(n, 10), max(l.first, appendTimeout))
}

// publish makes the nth attempt to store msg.
func (l *Ledger) publish(ctx context.Context, msg *nats.Msg, n int) (uint64, error) {
	ctx, cancel := context.WithTimeout(ctx, l.attemptTime(n))
	defer cancel()
	ack, err := l.js.PublishMsg(ctx, msg, jetstream.WithRetryAttempts(0))
	if err != nil {
		return 0, err
	}
	return ack.Sequence, nil
}

// next reads the first event of subject after event seq, from the stream's leader.
func (l *Ledger) next(ctx context.Context, subject string, seq uint64, n int) (*jetstream.RawStreamMsg, error) {
	ctx, cancel := context.WithTimeout(ctx, l.attemptTime(n))
	defer cancel()
	return l.stream.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(subject))
}

// refused tells whether the engine refused something for one of reasons.
func refused(err error, reasons ...jetstream.ErrorCode) bool {
	var refusal *jetstream.APIError
	return errors.As(err, &refusal) && slices.Contains(reasons, refusal.ErrorCode)
}

// isConflict tells whether the engine refused an event because of its expected version.
func isConflict(err error) bool { return refused(err, jetstream.JSErrCodeStreamWrongLastSequence) }

// isBusy tells whether the engine refused an event because another for its subject is
// being stored, which may be a copy of the same.
func isBusy(err error) bool { return refused(err, jetstream.JSErrCodeStreamWrongLastSequenceConstant) }

// lacksNodes tells whether there are not enough nodes for the copies of a stream.
func lacksNodes(err error) bool { return refused(err, noPeers, replicasNeedCluster) }

// isFinal tells whether trying again is of no use.
func isFinal(err error) bool {
	var refusal *jetstream.APIError
	if errors.As(err, &refusal) {
		switch refusal.ErrorCode {
		case noPeers, memberChange, duplicateInProcess:
			return false
		case replicasNeedCluster:
			return true
		}
		return refusal.Code < 500
	}
	return errors.Is(err, nats.ErrConnectionClosed) ||
		errors.Is(err, nats.ErrConnectionDraining) ||
		errors.Is(err, nats.ErrMaxPayload) ||
		errors.Is(err, nats.ErrHeadersNotSupported) ||
		errors.Is(err, jetstream.ErrInvalidStreamName)
}

// retry calls f, with a time-out of its own, until it succeeds, fails for good or
// ctx ends.
func retry(ctx context.Context, f func(context.Context) error) error {
	for n := 0; ; n++ {
		attempt, cancel := context.WithTimeout(ctx, requestTimeout)
		err := f(attempt)
		cancel()
		if err == nil || isFinal(err) {
			return err
		}
		if end := pause(ctx, n); end != nil {
			return because(end, err)
		}
	}
}

// pause waits before attempt n is repeated: longer each time, up to two seconds,
// and never all writers at once. It returns ctx's error if ctx ends first.
func pause(ctx context.Context, n int) error {
	longest := min(50*time.Millisecond<<min(n, 10), 2*time.Second)
	timer := time.NewTimer(longest/2 + mathrand.N(longest/2))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// because is end, a context's error, with err, which was in the way until then.
func because(end, err error) error {
	if errors.Is(err, end) {
		return err
	}
	return fmt.Errorf("%w: %w", end, err)
}

// checkSubject refuses what is not the subject of one record.
func checkSubject(subject string) error {
	for token := range strings.SplitSeq(subject, ".") {
		if token == "" || token == "*" || token == ">" || strings.ContainsFunc(token, isSpaceOrControl) {
			return errors.New("the subject must be words joined by dots, without wildcards and spaces")
		}
	}
	return nil
}

func isSpaceOrControl(r rune) bool { return r <= ' ' || r == 0x7f }
