package change

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"log/slog"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

// Reason says why a watcher was told to look again.
type Reason string

// The reasons of a Resync.
const (
	// Started is the first notice of every watcher.
	Started Reason = "started"
	// Announced says that the source told so: it began anew, or too much changed at
	// once to be told one by one.
	Announced Reason = "announced"
	// Overflow says that the watcher was too slow, and forgot which keys changed.
	Overflow Reason = "overflow"
	// Missed says that notices were missed, and the history could not say which.
	Missed Reason = "missed"
	// EpochChanged says that the source counts its versions anew.
	EpochChanged Reason = "epoch_changed"
	// Unreadable says that a message came that is no notice.
	Unreadable Reason = "unreadable"
)

const (
	defaultPending   = 1024
	defaultReconcile = time.Minute
	defaultJitter    = time.Second
	// leastQueued is how many messages may wait, at least, until the watcher has
	// looked at them; else it is half of Pending.
	leastQueued = 64
	// early is when a watcher reconciles for the first time: what was announced
	// while the nodes learned of it is in the history by then.
	early = 2 * time.Second
	// remembered is of how many keys the last notice is known.
	remembered = 1024
	// mostLate is how many missed notices are read one by one.
	mostLate = 256
	// startAgain is the pause after a reconciliation that failed.
	startAgain = time.Second
)

// WatcherOptions say how a Watcher hears. The zero value is right for most.
type WatcherOptions struct {
	// Pending is how many changed keys wait for the reader; when there are more,
	// they become one Resync. Default 1024. Half as many messages may arrive in one
	// burst.
	Pending int
	// Reconcile is how often the watcher compares what it heard with the history.
	// Default one minute, and at once after a reconnect.
	Reconcile time.Duration
	// Jitter bounds a random pause before a Resync that all watchers get at the same
	// time, so that they do not all read at the same time. Default 1 s; negative:
	// none.
	Jitter time.Duration
	// Own delivers what was announced over the same connection, too.
	Own bool
	// Logger is told of interruptions. Default: nobody is.
	Logger *slog.Logger
}

// A Watcher hears of the changes of one source. NewWatcher makes one, and Close
// ends it. Next is for one goroutine at a time.
//
// Its first notice is a Resync. After it, every change of a wanted key leads to a
// notice of the key, or to a Resync of a part that holds it; but for a connection
// that is away, and then when it is back. The same change may lead to more than
// one. A reader that is slow is told of fewer, later ones, and nobody waits for
// it.
type Watcher struct {
	nc      *nats.Conn
	source  string
	wanted  pattern
	own     string
	options WatcherOptions
	log     *slog.Logger
	history *history
	subs    []*nats.Subscription
	status  chan nats.Status
	heard   chan *nats.Msg
	stop    context.CancelFunc
	running sync.WaitGroup

	// Of the goroutine that hears.
	words   words
	dropped int
	epoch   string
	seen    map[string]last // by the subject that the history keeps it on
	at      mark            // the history is known up to here
	known   time.Time       // when it was

	mu      sync.Mutex
	pending pending
	some    chan struct{} // has an element if something may be pending
	err     error         // why nothing will come any more
	ended   chan struct{}
}

// NewWatcher watches the keys of source that match pattern: the text of a key in
// which "*" stands for one part, and a last ">" for one or more; the empty
// pattern is all. It returns when everything that is announced from now on will
// be heard or found. nc stays the caller's. ctx bounds the call only.
func NewWatcher(ctx context.Context, nc *nats.Conn, source, pattern string, o WatcherOptions) (*Watcher, error) {
	wanted, err := parsePattern(pattern)
	if err != nil {
		return nil, fmt.Errorf("watching changes: %w", err)
	}
	if err := identity.CheckName(source); err != nil {
		return nil, fmt.Errorf("watching changes: %w: its source: %w", ErrInvalid, err)
	}
	if o.Pending <= 0 {
		o.Pending = defaultPending
	}
	if o.Reconcile <= 0 {
		o.Reconcile = defaultReconcile
	}
	if o.Jitter == 0 {
		o.Jitter = defaultJitter
	}
	w := &Watcher{
		nc: nc, source: source, wanted: wanted, own: connection(nc), options: o, log: o.Logger,
		heard: make(chan *nats.Msg, max(leastQueued, o.Pending/2)), some: make(chan struct{}, 1), ended: make(chan struct{}),
		seen: map[string]last{}, known: time.Now(),
	}
	if w.log == nil {
		w.log = slog.New(slog.DiscardHandler)
	}
	if w.history, err = openHistory(ctx, nc); err != nil {
		return nil, fmt.Errorf("watching changes of %q: %w", source, err)
	}
	if err := w.subscribe(ctx); err != nil {
		w.unsubscribe()
		return nil, fmt.Errorf("watching changes of %q: %w", source, err)
	}
	w.add(Notice{Source: source, Kind: Resync, Reason: Started, Time: time.Now()})
	running, stop := context.WithCancel(context.WithoutCancel(ctx))
	w.stop = stop
	w.running.Go(func() { w.run(running) })
	return w, nil
}

// subscribe hears from now on, and then learns where the history ends: what comes
// between is heard or found.
func (w *Watcher) subscribe(ctx context.Context) error {
	for _, subject := range []string{heardAt(w.source, w.wanted.String()), heardAt(w.source, "")} {
		sub, err := w.nc.ChanSubscribe(subject, w.heard)
		if err != nil {
			return fmt.Errorf("subscribing to %q: %w", subject, err)
		}
		w.subs = append(w.subs, sub)
	}
	w.status = w.nc.StatusChanged(nats.CONNECTED, nats.CLOSED)
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	if err := w.nc.FlushWithContext(ctx); err != nil {
		return err
	}
	var err error
	w.at, err = w.history.end(ctx)
	return err
}

func (w *Watcher) unsubscribe() {
	for _, sub := range w.subs {
		_ = sub.Unsubscribe()
	}
	if w.status != nil {
		w.nc.RemoveStatusListener(w.status)
	}
}

// run hears and reconciles until ctx is done.
func (w *Watcher) run(ctx context.Context) {
	defer w.unsubscribe()
	compare := time.NewTimer(min(early, w.options.Reconcile))
	defer compare.Stop()
	results := make(chan found, 1)
	busy, settling := false, true
	begin := func() {
		busy = true
		at, known := w.at, w.known
		w.running.Go(func() { results <- w.compare(ctx, at, known) })
	}
	for {
		select {
		case <-ctx.Done():
			w.end(ErrClosed)
			return
		case msg := <-w.heard:
			w.hear(msg)
			for range len(w.heard) {
				w.hear(<-w.heard)
			}
			w.countDropped()
		case status, ok := <-w.status:
			if !ok || status == nats.CLOSED {
				w.end(nats.ErrConnectionClosed)
				return
			}
			settling = true
			compare.Reset(rand.N(100 * time.Millisecond))
		case <-compare.C:
			if !busy {
				begin()
			}
		case r := <-results:
			busy = false
			switch {
			case !w.reconciled(r):
				compare.Reset(startAgain)
			case settling:
				settling = false
				compare.Reset(min(early, w.options.Reconcile))
			default:
				compare.Reset(w.options.Reconcile - rand.N(w.options.Reconcile/10+1))
			}
		}
		// Once for all that came together: each time may wake the reader.
		select {
		case w.some <- struct{}{}:
		default:
		}
	}
}

// countDropped asks whether messages found no place in the queue.
func (w *Watcher) countDropped() {
	dropped := 0
	for _, sub := range w.subs {
		n, _ := sub.Dropped()
		dropped += n
	}
	if dropped != w.dropped {
		w.dropped = dropped
		w.resync(nil, Overflow)
	}
}

// hear takes one message.
func (w *Watcher) hear(msg *nats.Msg) {
	n, err := read(msg.Subject, msg.Data, &w.words)
	if err != nil {
		w.unreadable(msg.Subject, err)
		return
	}
	w.take(n)
}

// unreadable makes a resync of a message that is none: something changed, and it
// is not known what.
func (w *Watcher) unreadable(subject string, err error) {
	w.log.Warn("a message is no notice", "source", w.source, "error", err)
	_, rest, _ := strings.Cut(subject, ".")
	_, text, _ := strings.Cut(rest, ".")
	key, err := ParseKey(text)
	if err != nil {
		key = nil
	}
	w.resync(key, Unreadable)
}

// take adds a notice, heard or found, if it is news.
func (w *Watcher) take(n Notice) {
	if !w.options.Own && announcedOver(n.Origin, w.own) {
		return
	}
	if n.Kind == Resync {
		if !w.wanted.touches(n.Key) {
			return
		}
		n.Reason = Announced
	}
	if n.Epoch != "" && !n.Late {
		if w.epoch != "" && n.Epoch != w.epoch {
			clear(w.seen)
			w.resync(nil, EpochChanged)
		}
		w.epoch = n.Epoch
	}
	_, kept := n.subjects()
	if before, ok := w.seen[kept]; ok && n.Epoch == before.epoch && before.has(&n) {
		return
	}
	if len(w.seen) >= remembered {
		clear(w.seen)
	}
	w.seen[kept] = last{epoch: n.Epoch, version: n.Version, origin: n.Origin, count: n.Count}
	w.add(n)
}

// last is what is remembered of the last notice of a key.
type last struct {
	epoch, origin  string
	version, count uint64
}

// has reports whether n tells nothing new: it is older, or the same once more.
func (l last) has(n *Notice) bool {
	return n.Version > 0 && n.Version < l.version || n.Count > 0 && n.Origin == l.origin && n.Count <= l.count
}

func (w *Watcher) resync(key Key, reason Reason) {
	w.add(Notice{Source: w.source, Key: key, Kind: Resync, Epoch: w.epoch, Reason: reason, Time: time.Now()})
}

// found is what a reconciliation brought.
type found struct {
	notices []Notice
	end     mark
	when    time.Time
	// lost says that the history cannot tell what was missed.
	lost bool
	err  error
}

// compare reads what the history has after at, which was known then.
func (w *Watcher) compare(ctx context.Context, at mark, known time.Time) found {
	f := found{when: time.Now()}
	if f.end, f.err = w.history.end(ctx); f.err != nil || f.end.is(at) {
		return f
	}
	if !f.end.made.Equal(at.made) || f.end.seq < at.seq || time.Since(known) > window-time.Minute {
		f.lost = true
		return f
	}
	var texts words
	for _, subject := range []string{"*." + w.source + "." + w.wanted.String(), keptSubject + w.source + "." + anyKey + ".>"} {
		f.err = w.history.since(ctx, subject, at.seq, mostLate, func(subject string, payload []byte) {
			n, err := read(subject, payload, &texts)
			if err != nil {
				n = Notice{Source: w.source, Kind: Resync}
			}
			n.Late = true
			f.notices = append(f.notices, n)
		})
		if errors.Is(f.err, errMany) {
			f.lost, f.err = true, nil
		}
		if f.err != nil || f.lost {
			break
		}
	}
	return f
}

// reconciled takes what was found, and reports whether all is known now.
func (w *Watcher) reconciled(f found) bool {
	if f.err != nil {
		w.log.Info("changes could not be compared with the history yet", "source", w.source, "error", f.err)
		return false
	}
	if f.lost {
		w.resync(nil, Missed)
	}
	for _, n := range f.notices {
		w.take(n)
	}
	w.at, w.known = f.end, f.when
	return true
}

// add makes n pending.
func (w *Watcher) add(n Notice) {
	var not time.Time
	fleetwide := n.Reason == Announced || n.Reason == EpochChanged
	if fleetwide && w.options.Jitter > 0 {
		not = time.Now().Add(rand.N(w.options.Jitter))
	}
	w.mu.Lock()
	w.pending.add(n, w.options.Pending, not)
	w.mu.Unlock()
}

func (w *Watcher) end(err error) {
	w.mu.Lock()
	w.err = err
	w.mu.Unlock()
	close(w.ended)
}

// Next waits for the next notice. The error is ctx's, or wraps ErrClosed or
// nats.ErrConnectionClosed, after which nothing will come.
func (w *Watcher) Next(ctx context.Context) (Notice, error) {
	for {
		w.mu.Lock()
		n, wait, ok := w.pending.next(time.Now())
		w.mu.Unlock()
		if ok {
			return n, nil
		}
		var due <-chan time.Time
		if wait > 0 {
			due = time.After(wait)
		}
		select {
		case <-w.some:
		case <-due:
		case <-ctx.Done():
			return Notice{}, fmt.Errorf("waiting for a change of %q: %w", w.source, ctx.Err())
		case <-w.ended:
			w.mu.Lock()
			err := w.err
			w.mu.Unlock()
			return Notice{}, fmt.Errorf("waiting for a change of %q: %w", w.source, err)
		}
	}
}

// Close ends the Watcher, and waits until nothing of it runs.
func (w *Watcher) Close() {
	w.stop()
	w.running.Wait()
}

// Watch yields the notices of the keys of source that match pattern, the first of
// them a Resync, until the loop or ctx ends; an error is the last thing that it
// yields, if the connection was closed. NewWatcher takes options.
func Watch(ctx context.Context, nc *nats.Conn, source, pattern string) iter.Seq2[Notice, error] {
	return func(yield func(Notice, error) bool) {
		w, err := NewWatcher(ctx, nc, source, pattern, WatcherOptions{})
		if err != nil {
			yield(Notice{}, err)
			return
		}
		defer w.Close()
		for {
			n, err := w.Next(ctx)
			if ctx.Err() != nil {
				return
			}
			if !yield(n, err) || err != nil {
				return
			}
		}
	}
}
