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
	// requestTimeout bounds one request about the history.
	requestTimeout = 5 * time.Second

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
	ctx, cancel := context.WithTimeout(ctx, 2*requestTimeout)
	defer cancel()
	h := &history{js: js}
	h.stream, err = js.Stream(ctx, History)
	for _, size := range []int64{historyBytes, smallHistoryBytes} {
		for _, replicas := range []int{3, 1} {
			if errors.Is(err, jetstream.ErrStreamNotFound) || refused(err, noPeers, replicasNeedCluster, noResources, noStorage) {
				h.stream, err = js.CreateStream(ctx, historyConfig(replicas, size))
			}
		}
	}
	if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
		h.stream, err = js.Stream(ctx, History)
	}
	if err != nil {
		return nil, fmt.Errorf("opening the history of changes, stream %q of this account: %w", History, err)
	}
	return h, nil
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
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := h.stream.Info(ctx)
	if err != nil {
		return mark{}, fmt.Errorf("asking for the end of the history: %w", err)
	}
	return mark{made: info.Created, seq: info.State.LastSeq}, nil
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
