package change

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/identity"
)

const (
	// defaultWindow and defaultBurst are those of PublisherOptions.
	defaultWindow = 100 * time.Millisecond
	defaultBurst  = 100
	// maxUnrecorded bounds the keys that wait to be recorded, and maxPrefixes the
	// prefixes that they become when there are more.
	maxUnrecorded = 4096
	maxPrefixes   = 64
	// recordRate and recordBurst bound the keys that are recorded, a second and at
	// once; what is more is recorded as the prefix of it.
	recordRate, recordBurst = 50, 200
	// recordBusy is the least pause after there was more: what is under way then has
	// the nodes for itself most of the time.
	recordBusy = 500 * time.Millisecond
	// recordTimeout bounds the wait for the history, and recordAgain the pause after
	// it did not take a notice.
	recordTimeout, recordAgain = 5 * time.Second, 500 * time.Millisecond
	// recordAtOnce is how many wait for the history's answer.
	recordAtOnce = 8
)

// ErrClosed says that a Publisher or a Watcher was closed.
var ErrClosed = errors.New("closed")

// PublisherOptions say how a Publisher announces. The zero value is right for
// most.
type PublisherOptions struct {
	// Name is the first part of the notices' origin. Default: the name of the
	// connection, or "publisher".
	Name string
	// Epoch of notices that have none.
	Epoch string
	// Window is how long changes of a key that was just announced wait to be
	// merged into one notice; the first goes out at once. Default 100 ms; a negative
	// Window merges nothing.
	Window time.Duration
	// Burst is how many keys a Window announces one by one. The others become one
	// Resync for each first part of their keys, when the Window ends. Default 100.
	Burst int
	// Opaque lets keys pass that look random, such as digests.
	Opaque bool
	// Widen announces a change whose key is refused as a Resync of the part of the
	// key before, in place of an error. The refusal is counted.
	Widen bool
	// Logger is told when the history does not take notices. Default: nobody is.
	Logger *slog.Logger
}

// A Publisher announces the changes of one source. NewPublisher makes one. It is
// safe for concurrent use, and never blocks on the network but in Flush.
type Publisher struct {
	nc      *nats.Conn
	js      jetstream.JetStream
	source  string
	origin  string
	options PublisherOptions
	log     *slog.Logger
	limit   *rate.Limiter
	busy    bool // the last time there was more to record than limit allows; of the recorder
	wake    chan struct{}
	done    chan struct{}
	running sync.WaitGroup

	mu     sync.Mutex
	closed bool
	// held are the keys that the window has seen, by the subject that keeps them,
	// and wide what its end will announce of the others.
	held map[string]*held
	wide map[string]Notice
	ends *time.Timer
	// unrecorded is what the history does not have yet, by the same subjects.
	unrecorded map[string]Notice
	hurry      bool
	// begun and whole count the passes of the recorder: those that began, and the
	// last after which nothing of an earlier one was left.
	begun, whole uint64
	changed      chan struct{} // closed, and made anew, after each pass
	stats        Stats
	progress     Progress
}

type held struct {
	notice Notice
	again  bool // changed since it was announced
}

// Stats count what a Publisher did.
type Stats struct {
	// Announced counts calls of Announce that were taken, Sent the notices that
	// went to the watchers, Recorded those that the history took.
	Announced, Sent, Recorded uint64
	// Refused counts the keys that looked like secrets, and Failed the notices that
	// the history did not take at first.
	Refused, Failed uint64
}

// NewPublisher returns a Publisher of the changes of source, over nc, which stays
// the caller's. ctx bounds only the call, which makes the account's history if
// there is none. Close ends it.
func NewPublisher(ctx context.Context, nc *nats.Conn, source string, o PublisherOptions) (*Publisher, error) {
	if err := identity.CheckName(source); err != nil {
		return nil, fmt.Errorf("publishing changes: %w: its source: %w", ErrInvalid, err)
	}
	if !isWord(o.Epoch) {
		return nil, fmt.Errorf("publishing changes of %q: %w: its epoch is not a word", source, ErrInvalid)
	}
	if _, err := openHistory(ctx, nc); err != nil {
		return nil, fmt.Errorf("publishing changes of %q: %w", source, err)
	}
	js, err := jetstream.New(nc, jetstream.WithPublishAsyncTimeout(recordTimeout), jetstream.WithPublishAsyncMaxPending(2*maxUnrecorded))
	if err != nil {
		return nil, fmt.Errorf("publishing changes of %q: %w", source, err)
	}
	if o.Window == 0 {
		o.Window = defaultWindow
	}
	if o.Burst <= 0 {
		o.Burst = defaultBurst
	}
	p := &Publisher{
		nc: nc, js: js, source: source, origin: newOrigin(nc, o.Name), options: o, log: o.Logger,
		limit: rate.NewLimiter(recordRate, recordBurst), wake: make(chan struct{}, 1), done: make(chan struct{}),
		held: map[string]*held{}, wide: map[string]Notice{}, unrecorded: map[string]Notice{}, changed: make(chan struct{}),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	p.running.Go(p.record)
	return p, nil
}

// process tells the origins of this process from those of all others.
var process = sync.OnceValue(rand.Text)

// connection identifies nc among the connections of all processes.
func connection(nc *nats.Conn) string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s %p", process(), nc)
	return fmt.Sprintf("%016x", h.Sum64())
}

// newOrigin names one Publisher: by a name, its connection, by which watchers know
// what is their own, and an id, because two on one connection count apart.
func newOrigin(nc *nats.Conn, name string) string {
	name = cmp.Or(name, nc.Opts.Name, "publisher")
	name = strings.Map(func(r rune) rune {
		if r < 0x80 && unescaped(byte(r)) {
			return r
		}
		return '-'
	}, name)
	return fmt.Sprintf("%.36s:%s:%.8s", name, connection(nc), rand.Text())
}

// announcedOver reports whether an origin is a Publisher on that connection.
func announcedOver(origin, connection string) bool {
	_, rest, _ := strings.Cut(origin, ":")
	id, _, _ := strings.Cut(rest, ":")
	return id == connection
}

// Origin is the origin of this Publisher's notices.
func (p *Publisher) Origin() string { return p.origin }

// Announce tells watchers that n's key changed. Source, Origin and Count are set
// here; Epoch and Time are, if they are empty. It returns at once, and Flush says
// when the notice is safe. The error wraps ErrInvalid, ErrSecret or ErrClosed; the
// notice then went nowhere.
//
// Announce after the commit. A change that is announced before it is committed is
// read before it is there.
func (p *Publisher) Announce(n Notice) error {
	n.Source, n.Origin = p.source, p.origin
	if n.Epoch == "" {
		n.Epoch = p.options.Epoch
	}
	if n.Time.IsZero() {
		n.Time = time.Now()
	}
	if err := n.check(); err != nil {
		return fmt.Errorf("announcing a change of %q: %w", p.source, err)
	}
	if err := checkSecret(n.Key, p.options.Opaque); err != nil {
		p.mu.Lock()
		p.stats.Refused++
		p.mu.Unlock()
		if !p.options.Widen {
			return fmt.Errorf("announcing a change of %q: %w", p.source, err)
		}
		n = p.safe(n)
	}
	n = fitting(n)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return fmt.Errorf("announcing a change of %q: %w", p.source, ErrClosed)
	}
	p.stats.Announced++
	p.take(n)
	return nil
}

// safe is n as a Resync of the longest part of its key that is no secret.
func (p *Publisher) safe(n Notice) Notice {
	n.Kind = Resync
	for len(n.Key) > 0 && checkSecret(n.Key, p.options.Opaque) != nil {
		n.Key = n.Key[:len(n.Key)-1]
	}
	return n
}

// fitting is n, as a Resync of a part of its key if the whole does not fit.
func fitting(n Notice) Notice {
	for len(n.Key) > 0 && len(n.Key.String()) > maxKey {
		n.Kind, n.Key = Resync, n.Key[:len(n.Key)-1]
	}
	return n
}

// take sends n, or holds it until the window ends.
func (p *Publisher) take(n Notice) {
	if p.options.Window < 0 {
		p.send(n)
		return
	}
	_, kept := n.subjects()
	if h, ok := p.held[kept]; ok {
		h.notice, h.again = newest(h.notice, n), true
		return
	}
	if len(p.held) >= p.options.Burst && n.Kind != Resync {
		widen(p.wide, n)
	} else {
		p.held[kept] = &held{notice: n}
		p.send(n)
	}
	if p.ends == nil {
		p.ends = time.AfterFunc(p.options.Window, p.endWindow)
	}
}

// newest is what is left of two changes of a key, n the later one.
func newest(before, n Notice) Notice {
	if n.older(&before) {
		return before
	}
	return n
}

// widen adds to wide a Resync of the first part of n's key.
func widen(wide map[string]Notice, n Notice) {
	n.Kind, n.Key = Resync, n.Key[:min(1, len(n.Key))]
	if len(wide) >= maxPrefixes && wide[n.Key.String()].Kind == "" {
		clear(wide)
		n.Key = nil
	}
	if _, all := wide[""]; all {
		n.Key = nil
	}
	key := n.Key.String()
	if before, ok := wide[key]; ok {
		n = newest(before, n)
	}
	wide[key] = n
}

// endWindow announces what was held, and begins the next window with it.
func (p *Publisher) endWindow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ends = nil
	if p.closed {
		return
	}
	if p.held = p.settle(); len(p.held) > 0 {
		p.ends = time.AfterFunc(p.options.Window, p.endWindow)
	}
}

// settle announces what is held now, and returns those keys. The window goes on:
// who flushes often must not announce more.
func (p *Publisher) settle() map[string]*held {
	told := map[string]*held{}
	for kept, h := range p.held {
		if h.again {
			h.again = false
			p.send(h.notice)
			told[kept] = h
		}
	}
	for _, n := range p.wide {
		p.send(n)
	}
	clear(p.wide)
	return told
}

// send gives n to the watchers, and to the recorder.
func (p *Publisher) send(n Notice) {
	p.stats.Sent++
	n.Count = p.stats.Sent
	heard, kept := n.subjects()
	_ = p.nc.Publish(heard, n.encode()) // as in tell
	p.unrecorded[kept] = n
	if len(p.unrecorded) > maxUnrecorded {
		p.unrecorded = collapse(p.unrecorded)
	}
	if len(p.unrecorded) == 1 { // the recorder knows of the others
		p.wakeRecorder()
	}
}

func (p *Publisher) wakeRecorder() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// tell publishes n. A connection that is down keeps it, or loses it: what is not
// recorded is told again.
func (p *Publisher) tell(n Notice) {
	heard, _ := n.subjects()
	_ = p.nc.Publish(heard, n.encode())
}

// collapse makes resyncs of notices.
func collapse(notices map[string]Notice) map[string]Notice {
	wide := map[string]Notice{}
	for _, n := range notices {
		widen(wide, n)
	}
	kept := map[string]Notice{}
	for _, n := range wide {
		_, subject := n.subjects()
		kept[subject] = n
	}
	return kept
}

// record writes to the history what was sent, until Close.
func (p *Publisher) record() {
	reconnects := p.nc.Stats().Reconnects
	pause := time.NewTimer(0)
	defer pause.Stop()
	rest := time.Duration(0)
	for {
		select {
		case <-p.done:
			return
		case <-p.wake:
		}
		// A batch costs the history little more than one notice.
		p.mu.Lock()
		if !p.hurry && rest == 0 {
			rest = max(p.options.Window, defaultWindow/4)
			if p.busy {
				rest = max(rest, recordBusy)
			}
		}
		p.hurry = false
		p.mu.Unlock()
		pause.Reset(rest)
		for waiting := true; waiting; {
			select {
			case <-p.done:
				return
			case <-pause.C:
				waiting = false
			case <-p.wake:
				p.mu.Lock()
				waiting = !p.hurry || rest == recordAgain
				p.mu.Unlock()
			}
		}
		rest = 0
		if again := p.nc.Stats().Reconnects; again != reconnects {
			reconnects = again
			p.repeat()
		}
		if !p.pass() {
			rest = recordAgain
			p.wakeRecorder()
		}
	}
}

// repeat tells again what is not recorded: with a connection that broke, the
// copies for the watchers may have been lost.
func (p *Publisher) repeat() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range p.unrecorded {
		p.tell(n)
	}
}

// pass records what is there to record, and reports whether all of it is.
func (p *Publisher) pass() bool {
	p.mu.Lock()
	batch := p.unrecorded
	p.unrecorded = map[string]Notice{}
	p.begun++
	number := p.begun
	p.mu.Unlock()

	failed, err := p.store(p.limited(batch))

	p.mu.Lock()
	defer p.mu.Unlock()
	p.stats.Recorded += uint64(len(batch) - min(len(batch), len(failed)))
	if len(failed) > 0 {
		p.log.Warn("changes are not recorded yet", "source", p.source, "notices", len(failed), "error", err)
		p.stats.Failed += uint64(len(failed))
	} else {
		p.whole = number
	}
	for kept, n := range failed {
		// The watchers may not have heard of it either.
		p.tell(n)
		if _, newer := p.unrecorded[kept]; !newer {
			p.unrecorded[kept] = n
		}
	}
	close(p.changed)
	p.changed = make(chan struct{})
	return len(failed) == 0
}

// limited is batch, with resyncs in place of what is more than the history shall
// take.
func (p *Publisher) limited(batch map[string]Notice) map[string]Notice {
	p.busy = !p.limit.AllowN(time.Now(), len(batch))
	if p.busy {
		return collapse(batch)
	}
	return batch
}

// store asks the history to keep every notice of batch, and returns those that it
// did not, and a reason. Only a few are under way at a time: the nodes that store
// them hand on the notices of others, too.
func (p *Publisher) store(batch map[string]Notice) (failed map[string]Notice, err error) {
	type asked struct {
		kept   string
		future jetstream.PubAckFuture
	}
	failed = map[string]Notice{}
	var under []asked
	settle := func() bool {
		a := under[0]
		under = under[1:]
		select {
		case <-a.future.Ok():
		case e := <-a.future.Err():
			failed[a.kept], err = batch[a.kept], e
		case <-p.done:
			return false
		}
		return true
	}
	for kept, n := range batch {
		if len(under) == recordAtOnce && !settle() {
			return maps.Clone(batch), ErrClosed
		}
		future, e := p.js.PublishMsgAsync(&nats.Msg{Subject: kept, Data: n.encode()})
		if e != nil {
			failed[kept], err = n, e
			continue
		}
		under = append(under, asked{kept, future})
	}
	for len(under) > 0 {
		if !settle() {
			return maps.Clone(batch), ErrClosed
		}
	}
	return failed, err
}

// Flush returns when everything that was announced before is recorded: no watcher
// will miss it, but for a loss of the history itself, of which they are told. What
// is held is announced at once. It returns ctx's error if ctx ends first.
func (p *Publisher) Flush(ctx context.Context) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("recording changes of %q: %w", p.source, ErrClosed)
	}
	p.settle()
	need := p.begun + 1
	if len(p.unrecorded) == 0 {
		need = p.begun // what is under way, or nothing
	}
	p.hurry = true
	p.mu.Unlock()
	p.wakeRecorder()
	for {
		p.mu.Lock()
		done, changed := p.whole >= need, p.changed
		p.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-p.done:
			return fmt.Errorf("recording changes of %q: %w", p.source, ErrClosed)
		case <-ctx.Done():
			return fmt.Errorf("recording changes of %q: %w", p.source, ctx.Err())
		}
	}
}

// Close ends the Publisher. What Flush has not confirmed may never be recorded.
func (p *Publisher) Close() {
	p.mu.Lock()
	again := p.closed
	p.closed = true
	if p.ends != nil {
		p.ends.Stop()
	}
	p.mu.Unlock()
	if !again {
		close(p.done)
	}
	p.running.Wait()
}

// Stats counts what was done until now.
func (p *Publisher) Stats() Stats {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.stats
}

// Report is how a Source says where it stands.
func (p *Publisher) Report(at Progress) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.progress = at
}

// Progress is what was reported last.
func (p *Publisher) Progress() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.progress
}

// Announce announces one change over nc, and returns when it is recorded. For
// more than one make a Publisher.
func Announce(ctx context.Context, nc *nats.Conn, source string, n Notice) error {
	p, err := NewPublisher(ctx, nc, source, PublisherOptions{Window: -1})
	if err != nil {
		return err
	}
	defer p.Close()
	if err := p.Announce(n); err != nil {
		return err
	}
	return p.Flush(ctx)
}
