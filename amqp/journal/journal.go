package journal

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/route"
)

// The engine's codes of a stream that is full, for good.
const (
	noResources jetstream.ErrorCode = 10023
	noStorage   jetstream.ErrorCode = 10047
	accountFull jetstream.ErrorCode = 10002
	noPeers     jetstream.ErrorCode = 10005
	needCluster jetstream.ErrorCode = 10074
)

const (
	// flushEvery is how long what was done with messages is gathered, and tidyEvery how
	// long what is not needed any more may stay.
	flushEvery, tidyEvery = 50 * time.Millisecond, time.Second
	// closeTimeout is how long a journal that is closed waits for what it writes.
	closeTimeout = 2 * time.Second
	// readAhead is how many messages are on their way when the stream is read.
	readAhead = 500
	// manyChanges is how many changes of the topology are read again before it is
	// written anew as a whole.
	manyChanges = 1000
)

// Options say where a journal is kept.
type Options struct {
	// Stream is the name of the stream. Default "AMQP".
	Stream string
	// Prefix is before its subjects. Default "amqp.".
	Prefix string
	// Metadata is that of a new stream.
	Metadata map[string]string
	// Logger is told what goes wrong. Default: nobody is.
	Logger *slog.Logger
	// Failed is told once, from any goroutine, that nothing can be written any more.
	Failed func(error)
	// Refused is told, from any goroutine, of what the stream does not take, for want of
	// room. Default: nobody is. It does not block.
	Refused func(error)
	// Room reports whether the disk takes anything at all: while it does not, nothing is
	// taken out of the stream. Default: it does.
	Room func() bool
}

// A Queue is a durable one.
type Queue struct {
	// ID is of its log.
	ID string `json:"id"`
	// Name, AutoDelete and Arguments are those of its declaration.
	Name       route.Name `json:"name"`
	AutoDelete bool       `json:"autoDelete,omitempty"`
	Arguments  []byte     `json:"arguments,omitempty"` // as on the wire
}

// Declaration is what declares q again.
func (q *Queue) Declaration() (*frame.QueueDeclare, error) {
	m := &frame.QueueDeclare{Queue: string(q.Name), Durable: true, AutoDelete: q.AutoDelete}
	if len(q.Arguments) > 0 {
		t, err := frame.DecodeTable(q.Arguments)
		if err != nil {
			return nil, fmt.Errorf("reading the arguments of queue %q: %w", q.Name, err)
		}
		m.Arguments = t
	}
	return m, nil
}

// A Change is one of what is durable. One of its parts is set.
type Change struct {
	Route   *route.Change `json:"route,omitempty"`
	Declare *Queue        `json:"declare,omitempty"`
	Delete  *route.Name   `json:"delete,omitempty"` // a queue, with what is bound to it
	// Whole is all there is, in place of what was before.
	Whole *whole `json:"whole,omitempty"`
}

type whole struct {
	Table  json.RawMessage `json:"table"`
	Queues []Queue         `json:"queues"`
}

// A Journal is open. It is safe for concurrent use.
type Journal struct {
	o      Options
	js     jetstream.JetStream
	stream jetstream.Stream
	w      *writer
	closed bool            // whoever had it before has noted all
	life   context.Context // of what nobody waits for; it does not end
	stop   context.CancelFunc
	group  sync.WaitGroup
	noting sync.WaitGroup // notes on their way

	mu     sync.Mutex
	dirty  map[*log]struct{}
	untidy map[*log]struct{}
	unread map[string]struct{} // queues that are not open yet, unless closed
	notes  map[string]*notes   // of queues that are not open yet
	counts map[string]uint64   // of messages, by subject, when it was opened
}

// Open opens the journal on a connection, and makes its stream if it is missing: on three
// nodes where there are three. Whoever had it open cannot write any more. table, which
// is new, gets the exchanges and bindings that are durable; queues are those that are.
func Open(ctx context.Context, nc *nats.Conn, o Options, table *route.Table) (j *Journal, queues []Queue, err error) {
	o.Stream, o.Prefix = cmp.Or(o.Stream, "AMQP"), cmp.Or(o.Prefix, "amqp.")
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Failed == nil {
		o.Failed = func(error) {}
	}
	if o.Refused == nil {
		o.Refused = func(error) {}
	}
	if o.Room == nil {
		o.Room = func() bool { return true }
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, nil, fmt.Errorf("opening the journal: %w", err)
	}
	j = &Journal{o: o, js: js, life: context.WithoutCancel(ctx), dirty: map[*log]struct{}{}, untidy: map[*log]struct{}{}, unread: map[string]struct{}{}, notes: map[string]*notes{}}
	info, err := j.find(ctx)
	if err == nil {
		j.w, err = newWriter(j.life, nc, j.stream, nuid.Next(), info.State.LastSeq, o.Failed, o.Refused)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("opening the journal, stream %q: %w", o.Stream, err)
	}
	if err = j.w.fence(ctx, o.Prefix+"f"); err == nil {
		err = j.wasClosed(ctx)
	}
	if err == nil {
		queues, err = j.replay(ctx, table)
	}
	for _, q := range queues {
		j.unread[q.ID] = struct{}{}
	}
	if err != nil {
		j.w.close()
		return nil, nil, fmt.Errorf("opening the journal, stream %q: %w", o.Stream, err)
	}
	ctx, j.stop = context.WithCancel(j.life)
	j.group.Go(func() { j.run(ctx) })
	return j, queues, nil
}

// find opens the stream.
func (j *Journal) find(ctx context.Context) (info *jetstream.StreamInfo, err error) {
	err = insistAfter(ctx, firstTry, func(ctx context.Context) error {
		stream, err := j.js.Stream(ctx, j.o.Stream)
		for _, replicas := range []int{3, 1} {
			var refusal *jetstream.APIError
			lacks := errors.As(err, &refusal) && (refusal.ErrorCode == noPeers || refusal.ErrorCode == needCluster)
			if !errors.Is(err, jetstream.ErrStreamNotFound) && !lacks {
				break
			}
			stream, err = j.js.CreateStream(ctx, jetstream.StreamConfig{
				Name: j.o.Stream, Description: "what is durable of AMQP", Subjects: []string{j.o.Prefix + ">"}, Storage: jetstream.FileStorage,
				Replicas: replicas, Discard: jetstream.DiscardNew, AllowDirect: false, Metadata: j.o.Metadata, Duplicates: 100 * time.Millisecond,
			})
		}
		if err == nil {
			j.stream = stream
			info, err = stream.Info(ctx)
		}
		return err
	})
	return info, err
}

// insist asks the engine until it answers, and returns its answer. Without a leader there is
// none.
func insist(ctx context.Context, ask func(context.Context) error) error {
	return insistAfter(ctx, requestTimeout, ask)
}

// insistAfter is insist for what the engine answers in less than limit, mostly: it is asked
// again then, and after twice as long. The next leader does not know what the one before was
// asked.
func insistAfter(ctx context.Context, limit time.Duration, ask func(context.Context) error) error {
	for ; ; limit = min(2*limit, requestTimeout) {
		try, cancel := context.WithTimeout(ctx, limit)
		err := ask(try)
		cancel()
		var refusal *jetstream.APIError
		silent := errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) || errors.Is(err, nats.ErrNoResponders) ||
			errors.Is(err, jetstream.ErrNoHeartbeat) || errors.Is(err, jetstream.ErrConsumerDeleted) || errors.Is(err, jetstream.ErrOrderedConsumerReset)
		if !silent && (!errors.As(err, &refusal) || !passing(refusal)) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(again):
		}
	}
}

// Close writes what is gathered, and gives up what is not stored in a moment. The queues
// that have its logs are closed before.
func (j *Journal) Close() {
	j.stop()
	j.group.Wait()
	ctx, cancel := context.WithTimeout(j.life, closeTimeout)
	defer cancel()
	noted := make(chan bool, 1)
	go func() { noted <- j.noteAll(ctx) }()
	select {
	case all := <-noted:
		if all {
			// It is stored behind all else. If it is not, messages come as redelivered.
			_, _ = j.w.wrote(ctx, j.closing(), nil)
		}
		j.w.close()
	case <-ctx.Done():
		j.w.close()
		<-noted
	}
}

// noteAll returns when all that was done is noted, or cannot be, and reports whether it is,
// for all queues that there are.
func (j *Journal) noteAll(ctx context.Context) bool {
	for ctx.Err() == nil {
		j.flush()
		j.noting.Wait()
		j.mu.Lock()
		done, all := len(j.dirty) == 0, j.closed || len(j.unread) == 0
		j.mu.Unlock()
		if done {
			return all
		}
		select {
		case <-ctx.Done():
		case <-time.After(again):
		}
	}
	return false
}

// closing is the subject of the last message of a journal that was closed.
func (j *Journal) closing() string { return j.o.Prefix + "c" }

// wasClosed learns whether whoever had the journal closed it, or is gone without a word.
func (j *Journal) wasClosed(ctx context.Context) error {
	if j.closed = j.w.first == 1; j.closed { // nobody had it
		return nil
	}
	err := insist(ctx, func(ctx context.Context) error {
		msg, err := j.stream.GetMsg(ctx, j.w.first-1)
		j.closed = err == nil && msg.Subject == j.closing()
		return err
	})
	if err != nil && !errors.Is(err, jetstream.ErrMsgNotFound) {
		return fmt.Errorf("reading the end of the stream: %w", err)
	}
	return nil
}

// Record stores a change behind those before, and returns when it is stored.
func (j *Journal) Record(ctx context.Context, c Change) error {
	done := make(chan error, 1)
	j.Write(c, func(err error) { done <- err })
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("storing a change of AMQP's topology: %w", ctx.Err())
	}
}

// Write is Record that does not wait: done is called once, from any goroutine, also before
// Write returns, and may not block.
func (j *Journal) Write(c Change, done func(error)) {
	data, err := json.Marshal(c)
	if err != nil {
		done(fmt.Errorf("storing a change of AMQP's topology: %w", err))
		return
	}
	j.w.write(j.o.Prefix+"t", data, func(_ uint64, err error) {
		if err != nil {
			err = fmt.Errorf("storing a change of AMQP's topology: %w", err)
		}
		done(err)
	})
}

// replay reads what is durable but for messages.
func (j *Journal) replay(ctx context.Context, table *route.Table) ([]Queue, error) {
	changes := 0
	var all []Queue
	remove := func(name string) {
		for i := range all {
			if string(all[i].Name) == name {
				all = append(all[:i], all[i+1:]...)
				return
			}
		}
	}
	err := j.read(ctx, []string{j.o.Prefix + "t", j.o.Prefix + "n.*"}, func(msg jetstream.Msg, _ uint64) error {
		if id, ok := strings.CutPrefix(msg.Subject(), j.o.Prefix+"n."); ok {
			return j.noted(id, msg.Data())
		}
		changes++
		var c Change
		if err := json.Unmarshal(msg.Data(), &c); err != nil {
			return fmt.Errorf("reading a change: %w", err)
		}
		switch {
		case c.Whole != nil:
			all = c.Whole.Queues
			return table.UnmarshalJSON(c.Whole.Table)
		case c.Declare != nil:
			remove(string(c.Declare.Name))
			all = append(all, *c.Declare)
		case c.Delete != nil:
			remove(string(*c.Delete))
			table.DropQueue(string(*c.Delete))
		case c.Route != nil:
			// It was applied before it was written: one that is refused now was then.
			if _, _, err := table.Apply(*c.Route); err != nil {
				if _, refused := errors.AsType[*frame.Error](err); !refused {
					return err
				}
			}
		default:
			return errors.New("a change that this version does not know: upgrade this node")
		}
		return nil
	})
	if err == nil && changes > manyChanges {
		err = j.whole(ctx, table, all)
	}
	for _, subject := range []string{j.o.Prefix + "f", j.closing()} {
		if err == nil {
			err = insist(ctx, func(ctx context.Context) error { return j.stream.Purge(ctx, jetstream.WithPurgeSubject(subject)) })
		}
	}
	if err == nil {
		err = j.count(ctx, all)
	}
	return all, err
}

// whole writes the topology anew, in place of all its changes.
func (j *Journal) whole(ctx context.Context, table *route.Table, all []Queue) error {
	text, err := table.MarshalJSON()
	if err != nil {
		return err
	}
	data, err := json.Marshal(Change{Whole: &whole{Table: text, Queues: all}})
	if err != nil {
		return err
	}
	seq, err := j.w.wrote(ctx, j.o.Prefix+"t", data)
	if err != nil {
		return err
	}
	return insist(ctx, func(ctx context.Context) error {
		return j.stream.Purge(ctx, jetstream.WithPurgeSubject(j.o.Prefix+"t"), jetstream.WithPurgeSequence(seq))
	})
}

// read calls each for what the stream has now of some subjects, in its order.
func (j *Journal) read(ctx context.Context, subjects []string, each func(msg jetstream.Msg, seq uint64) error) error {
	last := uint64(0)
	err := insist(ctx, func(context.Context) error { // its time is for each answer, and not for all
		return j.readFrom(ctx, subjects, last+1, func(msg jetstream.Msg, seq uint64) error {
			last = seq
			return each(msg, seq)
		})
	})
	if err != nil {
		return fmt.Errorf("reading the stream: %w", err)
	}
	return nil
}

// readFrom is read, from a message on.
func (j *Journal) readFrom(ctx context.Context, subjects []string, from uint64, each func(msg jetstream.Msg, seq uint64) error) error {
	within := func() (context.Context, context.CancelFunc) { return context.WithTimeout(ctx, requestTimeout) }
	try, cancel := within()
	defer cancel()
	consumer, err := j.stream.OrderedConsumer(try, jetstream.OrderedConsumerConfig{
		FilterSubjects: subjects, DeliverPolicy: jetstream.DeliverByStartSequencePolicy, OptStartSeq: from,
	})
	if err != nil {
		return err
	}
	info, err := consumer.Info(try)
	if err != nil {
		return err
	}
	defer func() {
		// The engine removes it by itself, if later.
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), requestTimeout)
		defer cancel()
		_ = j.stream.DeleteConsumer(try, info.Name)
	}()
	left := info.NumPending
	if left == 0 {
		return nil
	}
	all, err := consumer.Messages(jetstream.PullMaxMessages(readAhead))
	if err != nil {
		return err
	}
	defer all.Stop()
	for left > 0 {
		try, cancel := within()
		msg, err := all.Next(jetstream.NextContext(try))
		cancel()
		if err != nil {
			return err
		}
		meta, err := msg.Metadata()
		if err != nil {
			return err
		}
		if err := each(msg, meta.Sequence.Stream); err != nil {
			return err
		}
		left = meta.NumPending
	}
	return nil
}

// count counts the messages of queues, and removes those of queues that are no more.
func (j *Journal) count(ctx context.Context, queues []Queue) error {
	var info *jetstream.StreamInfo
	err := insist(ctx, func(ctx context.Context) (err error) {
		info, err = j.stream.Info(ctx, jetstream.WithSubjectFilter(j.o.Prefix+">"))
		return err
	})
	if err != nil {
		return fmt.Errorf("counting messages: %w", err)
	}
	j.counts = info.State.Subjects
	known := map[string]bool{}
	for _, q := range queues {
		known[q.ID] = true
	}
	for subject := range j.counts {
		kind, id, ok := strings.Cut(strings.TrimPrefix(subject, j.o.Prefix), ".")
		if ok && (kind == "m" || kind == "n") && !known[id] {
			j.purge(ctx, subject, 0)
			delete(j.notes, id)
		}
	}
	return nil
}

// run writes what is gathered, and removes what is not needed, until ctx is done.
func (j *Journal) run(ctx context.Context) {
	flush, tidy := time.NewTicker(flushEvery), time.NewTicker(tidyEvery)
	defer flush.Stop()
	defer tidy.Stop()
	for {
		select {
		case <-ctx.Done():
			j.flush()
			return
		case <-flush.C:
			j.flush()
		case <-tidy.C:
			j.tidy(ctx)
		}
	}
}

// flush notes what was done.
func (j *Journal) flush() {
	for _, l := range j.take(&j.dirty) {
		l.note()
		j.mu.Lock()
		j.untidy[l] = struct{}{}
		j.mu.Unlock()
	}
}

// tidy removes what is not needed any more.
func (j *Journal) tidy(ctx context.Context) {
	for _, l := range j.take(&j.untidy) {
		if l.tidy(ctx) {
			j.mu.Lock()
			j.untidy[l] = struct{}{}
			j.mu.Unlock()
		}
		if ctx.Err() != nil {
			return
		}
	}
}

// take empties a set of logs.
func (j *Journal) take(from *map[*log]struct{}) []*log {
	j.mu.Lock()
	defer j.mu.Unlock()
	all := slices.Collect(maps.Keys(*from))
	clear(*from)
	return all
}
