package hub

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/change"
)

const (
	// Stream is the name of the queue of what goes to the hub, one in an account.
	Stream = "HUB"
	// Bucket is the name of the bucket that says how far the queue came.
	Bucket = "HUB"

	stateKey = "state"
	// originKey is the stream's metadata that names it among all others.
	originKey = "fleetbus.origin"

	openTimeout    = 30 * time.Second
	requestTimeout = 5 * time.Second
)

// A queue is the engine's stream of what passes, from here and from the hub, and the
// record of how far it was handed on.
type queue struct {
	js     jetstream.JetStream
	stream jetstream.Stream
	kv     jetstream.KeyValue
	// origin names the stream: the node, and an id that is made with it.
	origin string
}

// A record is what outlives the process.
type record struct {
	// Done is up to where in the stream all is handed on, and Last the last message
	// of this node's among it.
	Done uint64 `json:"done"`
	Last uint64 `json:"last"`
	// Have is the last message of every other origin that is in the engine.
	Have map[string]uint64 `json:"have"`
	// Peers are the other links, by origin.
	Peers map[string]peer `json:"peers"`
	// Sources are whose changes came from the hub.
	Sources map[string]bool `json:"sources,omitempty"`
}

// openQueue opens the stream, and makes it if it is missing.
func openQueue(ctx context.Context, nc *nats.Conn, o *Options) (q *queue, r record, err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	if err := change.OpenHistory(ctx, nc); err != nil {
		return nil, r, err
	}
	q = &queue{}
	if q.js, err = jetstream.New(nc, jetstream.WithPublishAsyncTimeout(openTimeout), jetstream.WithPublishAsyncMaxPending(4*receiveMaximum)); err != nil {
		return nil, r, err
	}
	if err := q.open(ctx, o); err != nil {
		return nil, r, fmt.Errorf("opening stream %q of account %q: %w", Stream, o.Account, err)
	}
	q.kv, err = q.js.KeyValue(ctx, Bucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		q.kv, err = q.js.CreateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: Bucket, Description: "how far the hub's queue came", Storage: jetstream.FileStorage})
	}
	if err != nil {
		return nil, r, fmt.Errorf("opening bucket %q of account %q: %w", Bucket, o.Account, err)
	}
	if r, err = q.load(ctx); err != nil {
		return nil, r, err
	}
	return q, r, nil
}

func (q *queue) open(ctx context.Context, o *Options) error {
	config := jetstream.StreamConfig{Name: Stream, Metadata: map[string]string{}}
	var err error
	q.stream, err = q.js.Stream(ctx, Stream)
	switch {
	case err == nil:
		config = q.stream.CachedInfo().Config
	case !errors.Is(err, jetstream.ErrStreamNotFound):
		return err
	}
	if config.Metadata[originKey] == "" {
		config.Metadata = map[string]string{originKey: o.Node + ":" + strings.ToLower(rand.Text()[:12])}
	}
	q.origin = config.Metadata[originKey]
	config.Description = "what goes to the hub, and what came from it"
	config.Storage, config.Discard, config.MaxBytes = jetstream.FileStorage, jetstream.DiscardNew, o.Queue
	if config.Subjects, config.Sources, err = q.covered(ctx, o, config.Sources); err != nil {
		return err
	}
	q.stream, err = q.js.CreateOrUpdateStream(ctx, config)
	return err
}

// covered parts what passes into the subjects that are the queue's own, and those
// that another stream of the account keeps, from which it has copies: a subject has
// one stream.
func (q *queue) covered(ctx context.Context, o *Options, known []*jetstream.StreamSource) (subjects []string, sources []*jetstream.StreamSource, err error) {
	for _, wanted := range o.passing() {
		names := q.js.StreamNames(ctx, jetstream.WithStreamListSubject(wanted))
		own := true
		for name := range names.Name() {
			if name == Stream {
				continue
			}
			own = false
			other, err := q.js.Stream(ctx, name)
			if err != nil {
				return nil, nil, err
			}
			if !slices.ContainsFunc(other.CachedInfo().Config.Subjects, func(s string) bool { return matches(s, wanted) }) {
				return nil, nil, fmt.Errorf("stream %q keeps a part of subject %q, and a subject has one stream: name in hub.subjects what the stream keeps, and the rest apart", name, wanted)
			}
			source := &jetstream.StreamSource{Name: name, FilterSubject: wanted}
			if i := slices.IndexFunc(known, func(k *jetstream.StreamSource) bool { return k.Name == name && k.FilterSubject == wanted }); i >= 0 {
				source = known[i]
			} else {
				now := time.Now()
				source.OptStartTime = &now
			}
			sources = append(sources, source)
		}
		if err := names.Err(); err != nil {
			return nil, nil, err
		}
		if own {
			subjects = append(subjects, wanted)
		}
	}
	return subjects, sources, nil
}

func (q *queue) load(ctx context.Context) (r record, err error) {
	entry, err := q.kv.Get(ctx, stateKey)
	if err == nil {
		err = json.Unmarshal(entry.Value(), &r)
	}
	if err != nil && !errors.Is(err, jetstream.ErrKeyNotFound) {
		return r, fmt.Errorf("reading how far the hub's queue came: %w", err)
	}
	if r.Have == nil {
		r.Have = map[string]uint64{}
	}
	if r.Peers == nil {
		r.Peers = map[string]peer{}
	}
	if r.Sources == nil {
		r.Sources = map[string]bool{}
	}
	// Another stream than the one that the record is of begins anew.
	if state := q.stream.CachedInfo().State; r.Done > state.LastSeq {
		r.Done, r.Last = 0, 0
	}
	return r, nil
}

// recovered is how far before its last message the queue may lack changes that the
// history has: both are written at the same time, and only the history's writing is
// waited for.
const recovered = time.Minute

// recover brings into the queue the changes that the history got shortly before the
// node died, or since. Most are there twice then, which watchers notice.
func (q *queue) recover(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	state := q.stream.CachedInfo().State
	if state.LastSeq == 0 {
		return nil
	}
	history, err := q.js.Stream(ctx, change.History)
	if err != nil {
		return fmt.Errorf("reading the history of changes: %w", err)
	}
	from := state.LastTime.Add(-recovered)
	consumer, err := history.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{DeliverPolicy: jetstream.DeliverByStartTimePolicy, OptStartTime: &from})
	if err != nil {
		return fmt.Errorf("reading the history of changes: %w", err)
	}
	messages, err := consumer.Messages()
	if err != nil {
		return fmt.Errorf("reading the history of changes: %w", err)
	}
	defer messages.Stop()
	defer context.AfterFunc(ctx, messages.Stop)()
	for left := consumer.CachedInfo().NumPending; left > 0; {
		msg, err := messages.Next()
		if err != nil {
			return fmt.Errorf("reading the history of changes: %w", err)
		}
		meta, err := msg.Metadata()
		if err != nil {
			return fmt.Errorf("reading the history of changes: %w", err)
		}
		left = min(left-1, meta.NumPending)
		if msg.Headers().Get(OriginHeader) != "" {
			continue
		}
		if _, err := q.js.Publish(ctx, change.HeardAt(msg.Subject()), msg.Data()); err != nil {
			return fmt.Errorf("bringing changes into the hub's queue: %w", err)
		}
	}
	return nil
}

func (q *queue) save(ctx context.Context, r []byte) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if _, err := q.kv.Put(ctx, stateKey, r); err != nil {
		return fmt.Errorf("writing how far the hub's queue came: %w", err)
	}
	return nil
}

// state is the stream's now.
func (q *queue) state(ctx context.Context) (jetstream.StreamState, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	info, err := q.stream.Info(ctx)
	if err != nil {
		return jetstream.StreamState{}, fmt.Errorf("looking at the hub's queue: %w", err)
	}
	return info.State, nil
}

// forget removes everything up to seq.
func (q *queue) forget(ctx context.Context, seq uint64) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := q.stream.Purge(ctx, jetstream.WithPurgeSequence(seq+1)); err != nil {
		return fmt.Errorf("shortening the hub's queue: %w", err)
	}
	return nil
}

// passing are the subjects that pass.
func (o *Options) passing() []string { return append([]string{change.Heard}, o.Subjects...) }

// passes reports whether a subject is among them.
func (o *Options) passes(subject string) bool {
	return slices.ContainsFunc(o.passing(), func(p string) bool { return matches(p, subject) })
}

// matches reports whether pattern takes a subject, or all that another pattern takes.
func matches(pattern, subject string) bool {
	for {
		p, pattern2, morePattern := strings.Cut(pattern, ".")
		s, subject2, moreSubject := strings.Cut(subject, ".")
		switch {
		case p == ">":
			return true
		case s == ">", p != "*" && p != s, morePattern != moreSubject:
			return false
		case !morePattern:
			return true
		}
		pattern, subject = pattern2, subject2
	}
}
