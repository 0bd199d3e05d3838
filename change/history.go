package change

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// History is the name of the stream that keeps the last notice of every key, in
// each account.
const History = "CHANGES"

const (
	// window is how long the history keeps a notice: a watcher that was away longer
	// gets a Resync.
	window = 10 * time.Minute
	// historyBytes bounds the history, and smallHistoryBytes that of an account whose
	// own limit leaves no room for it. When it is full, what is announced is not
	// recorded, and its publisher knows.
	historyBytes, smallHistoryBytes = 64 << 20, 4 << 20
	// requestTimeout bounds one request about the history. While a leader is being
	// elected, or a link is new, a request is lost without a trace: the first
	// attempts to open it are short. openTimeout bounds all of them.
	requestTimeout = 5 * time.Second
	firstAttempt   = 250 * time.Millisecond
	openTimeout    = 30 * time.Second

	// The engine's error codes that the client has no names for.
	noPeers             jetstream.ErrorCode = 10005 // not enough nodes
	replicasNeedCluster jetstream.ErrorCode = 10074 // and the engine is not in one
	noResources         jetstream.ErrorCode = 10023 // not enough of anything
	noStorage           jetstream.ErrorCode = 10047 // the account's limit
)

// history is an account's stream of notices.
type history struct {
	js     jetstream.JetStream
	stream jetstream.Stream
}

// openHistory opens the history of nc's account, and makes it if it is missing:
// on three nodes where there are three.
func openHistory(ctx context.Context, nc *nats.Conn) (*history, error) {
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, fmt.Errorf("opening the history of changes: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	h := &history{js: js}
	for n := 0; ; n++ {
		attempt, cancel := context.WithTimeout(ctx, min(firstAttempt<<min(n, 10), requestTimeout))
		err = h.open(attempt)
		cancel()
		if err == nil {
			return h, nil
		}
		// An account that is new to a node seems to have no streams, for a moment.
		early := n < 20 && errors.Is(err, jetstream.ErrJetStreamNotEnabled)
		if early {
			select {
			case <-ctx.Done():
			case <-time.After(firstAttempt / 5):
			}
		}
		if ctx.Err() != nil || !early && !passing(err) {
			return nil, fmt.Errorf("opening the history of changes, stream %q of this account: %w", History, err)
		}
	}
}

// passing reports whether an error may be over at the next attempt.
func passing(err error) bool {
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		return true // another made it a moment ago, and not every node knows
	}
	var refusal *jetstream.APIError
	if errors.As(err, &refusal) {
		return refusal.Code >= 500 && !refused(err, noResources, noStorage)
	}
	return errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout)
}

// open tries once.
func (h *history) open(ctx context.Context) (err error) {
	h.stream, err = h.js.Stream(ctx, History)
	for _, size := range []int64{historyBytes, smallHistoryBytes} {
		for _, replicas := range []int{3, 1} {
			if errors.Is(err, jetstream.ErrStreamNotFound) || refused(err, noPeers, replicasNeedCluster, noResources, noStorage) {
				h.stream, err = h.js.CreateStream(ctx, historyConfig(replicas, size))
			}
		}
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		h.stream, err = h.js.Stream(ctx, History)
	}
	return err
}

// refused reports whether the engine refused something for one of reasons.
func refused(err error, reasons ...jetstream.ErrorCode) bool {
	var refusal *jetstream.APIError
	return errors.As(err, &refusal) && slices.Contains(reasons, refusal.ErrorCode)
}

func historyConfig(replicas int, size int64) jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              History,
		Description:       "the last notice of every key that changed",
		Subjects:          []string{announceSubject + ">", keptSubject + ">"},
		Storage:           jetstream.FileStorage,
		Replicas:          replicas,
		MaxMsgsPerSubject: 1,
		MaxMsgSize:        2 * maxNotice,
		MaxAge:            window,
		MaxBytes:          size,
		Discard:           jetstream.DiscardNew,
		Duplicates:        time.Minute,
		RePublish:         &jetstream.RePublish{Source: announceSubject + ">", Destination: heardSubject + ">"},
		Metadata:          map[string]string{"fleetbus.replicas": "auto"},
	}
}

// mark is a place in the history.
type mark struct {
	made time.Time // when the stream was made: another one is another history
	seq  uint64
}

// is reports whether two marks are the same place.
func (m mark) is(o mark) bool { return m.made.Equal(o.made) && m.seq == o.seq }

// end is where the history ends, as its leader knows.
func (h *history) end(ctx context.Context) (mark, error) {
	info, err := h.info(ctx, 2*firstAttempt)
	if err != nil && passing(err) && ctx.Err() == nil {
		info, err = h.info(ctx, requestTimeout)
	}
	if err != nil {
		return mark{}, fmt.Errorf("asking for the end of the history: %w", err)
	}
	return mark{made: info.Created, seq: info.State.LastSeq}, nil
}

func (h *history) info(ctx context.Context, patience time.Duration) (*jetstream.StreamInfo, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return h.stream.Info(ctx)
}

// errMany says that more was missed than is worth reading one by one.
var errMany = errors.New("too much was missed")

// since calls found for every notice on subject after seq, from the leader, but
// for more than most of them.
func (h *history) since(ctx context.Context, subject string, seq uint64, most int, found func(subject string, payload []byte)) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	for range most {
		msg, err := h.stream.GetMsg(ctx, seq+1, jetstream.WithGetMsgSubject(subject))
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("reading the history: %w", err)
		}
		found(msg.Subject, msg.Data)
		seq = msg.Sequence
	}
	return errMany
}
