package cert

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// heartbeat is how often the engine tells that it still delivers: there may be a
	// thousand stores.
	heartbeat = 5 * time.Second
	// gather is how long changes are gathered before they are served together, and
	// gatherReload before the program is told and looked at.
	gather       = 10 * time.Millisecond
	gatherReload = 100 * time.Millisecond
	// catchUp is how long a store waits for the rest of a ledger that it is behind.
	catchUp = 5 * time.Second
	// again is when what is refused is looked at again: its time may have come.
	again = time.Minute
	// firstPause and longestPause are between attempts at what failed.
	firstPause, longestPause = time.Second, 5 * time.Minute
)

// Options say whose certificates a [Store] serves, and how.
type Options struct {
	// Key is who the target is.
	Key *TargetKey
	// Dir is a directory of mode 0700 for snapshots, from which the store starts while
	// the bus is away. It is made if it is missing; no other process has it. Empty: there
	// are no snapshots.
	Dir string
	// Default is the name whose certificate clients get that ask for no name, or for one
	// that nobody has. Empty: they get none.
	Default string
	// Program serves the certificates. Nil: this program does, by GetCertificate.
	Program Program
	// Logger is told of what is refused and what fails. Nil: nobody is.
	Logger *slog.Logger
	// Now is the time, for tests. Nil: time.Now.
	Now func() time.Time
}

// A Store has the certificates of a target. Open makes one, Run keeps it up to date. It
// is safe for concurrent use.
type Store struct {
	o           Options
	log         *slog.Logger
	groups      map[string]*group // by name
	index       atomic.Pointer[index]
	answers     atomic.Pointer[answers]
	answersHTTP atomic.Bool  // somebody has the handler
	clock       atomic.Int64 // Unix seconds, while the store runs: a look at the clock costs more than all else
	answering   sync.Mutex   // answers are made one after another
	running     atomic.Bool
	emptied     bool // the program was given none; of who delivers alone

	work, told, write chan struct{} // one each: there is something to install, to deliver, to report

	mu        sync.Mutex
	certs     map[certKey]*certificate
	past      map[certKey]past // what a snapshot says was served, until it is looked at
	touched   map[certKey]bool // to be looked at
	untold    map[certKey]bool // to be given to the program, and probed
	unwritten map[certKey]bool // to be reported
	waiting   []question       // for challenges that are not here yet
}

type certKey struct{ group, id string }

// A certificate is what a store knows of one.
type certificate struct {
	served  *installed // nil: nothing
	refused error      // why that is not what is wanted; nil: it is
	wanted  uint64     // the generation that is
	seen    Seen       // the last handshake
	misses  bool       // it did not show what is served
}

// A Status is what a store serves of a certificate.
type Status struct {
	Group, ID string
	Names     []string
	// Generation that is served, since when, and its Serial, in hexadecimal. 0: none is.
	Generation          uint64
	Serial              string
	Since               time.Time
	NotBefore, NotAfter time.Time
	// Wanted is the generation that is to be served.
	Wanted uint64
	// Seen is the last handshake, as it was reported.
	Seen Seen
	// Err is why Wanted is not served. Nil: it is.
	Err error
}

// Open returns a store that serves what its snapshots have: the bus is not needed. A
// snapshot that is damaged is logged and set aside. Nothing runs in the background, and
// there is nothing to close.
func Open(o Options) (*Store, error) {
	if o.Key == nil {
		return nil, errors.New("opening a store of certificates: it needs the key of a target")
	}
	if err := o.Key.validate(); err != nil {
		return nil, fmt.Errorf("opening a store of certificates: %w", err)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if err := makeDir(o.Dir); err != nil {
		return nil, fmt.Errorf("opening a store of certificates: %w", err)
	}
	s := &Store{
		o: o, log: o.Logger, groups: map[string]*group{},
		work: make(chan struct{}, 1), told: make(chan struct{}, 1), write: make(chan struct{}, 1),
		certs: map[certKey]*certificate{}, past: map[certKey]past{}, touched: map[certKey]bool{},
		untold: map[certKey]bool{}, unwritten: map[certKey]bool{},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.index.Store(newIndex(nil, ""))
	s.answers.Store(&answers{})
	for _, name := range o.Key.Groups {
		g, err := newGroup(s, name)
		if err != nil {
			return nil, err
		}
		s.groups[name] = g
		s.touchAll(g)
	}
	s.answer()
	s.install()
	return s, nil
}

func makeDir(dir string) error {
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(dir)
	if err == nil && info.Mode().Perm()&0o077 != 0 {
		err = fmt.Errorf("others can read %s, which has mode %04o: chmod 700 %s", dir, info.Mode().Perm(), dir)
	}
	return err
}

// GetCertificate is for tls.Config: it returns the certificate for the name that a
// client asks for, and nil if there is none. It takes no lock and opens nothing.
func (s *Store) GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	now := s.clock.Load()
	if now == 0 {
		now = s.o.Now().Unix()
	}
	if isChallenge(hello) {
		if c := s.answers.Load().certificate(hello.ServerName, now); c != nil {
			return c, nil
		}
	}
	// If it is nil, crypto/tls tells the client that the name is not known here.
	return s.index.Load().lookup(hello, now), nil
}

// isChallenge reports whether it is an authority that looks for a tls-alpn-01 challenge.
func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == ALPNProto
}

// Certificates returns what the store knows of, sorted by group and id.
func (s *Store) Certificates() []Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]Status, 0, len(s.certs))
	for key, c := range s.certs {
		status := Status{Group: key.group, ID: key.id, Wanted: c.wanted, Seen: c.seen, Err: c.refused}
		if i := c.served; i != nil {
			status.Names, status.Generation, status.Serial, status.Since = slices.Clone(i.names), i.generation, i.bundle.Serial, i.since
			status.NotBefore, status.NotAfter = i.tls.Leaf.NotBefore, i.tls.Leaf.NotAfter
		}
		all = append(all, status)
	}
	slices.SortFunc(all, func(a, b Status) int { return cmp.Or(cmp.Compare(a.Group, b.Group), cmp.Compare(a.ID, b.ID)) })
	return all
}

// Run keeps the store up to date by way of nc until ctx ends, and returns nil then. nc
// was made with the option nats.CustomInboxPrefix and the key's Inbox. What fails is
// tried again, and what is served goes on being served. Run fails if nc is closed, and if
// the store runs already.
func (s *Store) Run(ctx context.Context, nc *nats.Conn) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("running a store of certificates: it runs already")
	}
	defer s.running.Store(false)
	if nc.Opts.InboxPrefix != s.o.Key.Inbox() {
		return fmt.Errorf("running a store of certificates: the connection needs the option nats.CustomInboxPrefix(%q): a target hears nothing elsewhere", s.o.Key.Inbox())
	}
	js, err := jetstream.NewWithAPIPrefix(nc, readPrefix(s.o.Key.Name))
	if err != nil {
		return fmt.Errorf("running a store of certificates: %w", err)
	}
	parent := ctx
	ctx, cancel := context.WithCancelCause(parent)
	defer cancel(nil)
	stop, err := s.listen(nc)
	if err != nil {
		return fmt.Errorf("running a store of certificates: %w", err)
	}
	defer stop()
	var all sync.WaitGroup
	var caughtUp []<-chan struct{}
	for _, g := range s.groups {
		caughtUp = append(caughtUp, g.follower.CaughtUp())
	}
	all.Go(func() { s.keepInstalled(ctx, caughtUp) })
	all.Go(func() { s.keepDelivered(ctx) })
	all.Go(func() { s.keepTime(ctx) })
	l, err := openLedger(ctx, js, ledgerOptions(Stream, Prefix), longestPause)
	if err != nil {
		cancel(err)
	} else {
		for _, g := range s.groups {
			all.Go(func() {
				if err := g.run(ctx, l); err != nil {
					cancel(err)
				}
			})
		}
		all.Go(func() { s.keepReported(ctx, js) })
	}
	all.Wait()
	if parent.Err() != nil {
		return nil
	}
	return fmt.Errorf("running a store of certificates: %w", context.Cause(ctx))
}

// openLedger waits for a ledger as long as it takes. The error is ctx's, or that of a
// closed connection.
func openLedger(ctx context.Context, js jetstream.JetStream, o ledger.Options, longest time.Duration) (*ledger.Ledger, error) {
	for n := 0; ; n++ {
		l, err := ledger.Open(ctx, js, o)
		switch {
		case err == nil, ctx.Err() != nil:
			return l, err
		case js.Conn().IsClosed():
			return nil, nats.ErrConnectionClosed
		}
		if pause(ctx, n, longest) != nil {
			return nil, ctx.Err()
		}
	}
}

// run follows the group.
func (g *group) run(ctx context.Context, l *ledger.Ledger) error {
	for n := 0; ; n++ {
		err := g.runOnce(ctx, l)
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, nats.ErrConnectionClosed) {
			return err
		}
		g.store.log.Error("certificates are not followed", "group", g.name, "error", err)
		if errors.Is(err, ledger.ErrBehind) {
			// The ledger was restored from an older copy, or made anew.
			if err := g.rewind(); err != nil {
				g.store.log.Error("certificates are not followed", "group", g.name, "error", err)
			}
		}
		if pause(ctx, n, longestPause) != nil {
			return nil
		}
	}
}

// runOnce follows the group until that fails, and completes it when it has caught up.
func (g *group) runOnce(ctx context.Context, l *ledger.Ledger) error {
	ctx, cancel := context.WithCancel(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer cancel()
	watch.Go(func() {
		select {
		case <-ctx.Done():
		case <-g.follower.CaughtUp():
			g.complete()
		}
	})
	return g.follower.Run(ctx, l)
}

// pause waits before attempt n is repeated: longer each time, up to longest.
func pause(ctx context.Context, n int, longest time.Duration) error {
	timer := time.NewTimer(min(pauseOf(n), longest))
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

func pauseOf(n int) time.Duration { return min(firstPause<<min(n, 16), longestPause) }

// poke says on a channel of one that there is something to do.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// touch has the store look at a certificate.
func (s *Store) touch(key certKey) {
	s.mu.Lock()
	s.touched[key] = true
	s.mu.Unlock()
	poke(s.work)
}

// touchAll has the store look at all certificates of a group.
func (s *Store) touchAll(g *group) {
	ids := g.ids()
	s.mu.Lock()
	for _, id := range ids {
		s.touched[certKey{g.name, id}] = true
	}
	s.mu.Unlock()
	poke(s.work)
}

// resume remembers what was served when a snapshot was written.
func (s *Store) resume(group string, all []past) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range all {
		s.past[certKey{group, p.id}] = p
		s.touched[certKey{group, p.id}] = true
	}
}

// servedOf are the certificates of a group that are served.
func (s *Store) servedOf(group string) []*installed {
	s.mu.Lock()
	defer s.mu.Unlock()
	var all []*installed
	for key, c := range s.certs {
		if key.group == group && c.served != nil {
			all = append(all, c.served)
		}
	}
	slices.SortFunc(all, func(a, b *installed) int { return cmp.Compare(a.id, b.id) })
	return all
}

// keepTime keeps the clock, until ctx ends.
func (s *Store) keepTime(ctx context.Context) {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	defer s.clock.Store(0)
	for {
		s.clock.Store(s.o.Now().Unix())
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// keepInstalled installs what was touched, until ctx ends.
func (s *Store) keepInstalled(ctx context.Context, caughtUp []<-chan struct{}) {
	wait, cancel := context.WithTimeout(ctx, catchUp)
	for _, c := range caughtUp { // not the past of a ledger, event by event
		select {
		case <-c:
		case <-wait.Done():
		}
	}
	cancel()
	poke(s.work)
	tick := time.NewTicker(again)
	defer tick.Stop()
	for took := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.touchRefused()
		case <-s.work:
			timer := time.NewTimer(max(gather, took)) // who is late anyway gathers more
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
		}
		began := time.Now()
		s.install()
		took = time.Since(began)
	}
}

// touchRefused has the store look at what it refused.
func (s *Store) touchRefused() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, c := range s.certs {
		if c.refused != nil {
			s.touched[key] = true
		}
	}
}

// install looks at what was touched, and serves what it finds good.
func (s *Store) install() {
	now := s.o.Now()
	s.mu.Lock()
	keys := make([]certKey, 0, len(s.touched))
	before := make([]*installed, 0, len(s.touched))
	olds := make([]past, 0, len(s.touched))
	for key := range s.touched {
		var served *installed
		if c := s.certs[key]; c != nil {
			served = c.served
		}
		keys, before, olds = append(keys, key), append(before, served), append(olds, s.past[key])
		delete(s.past, key)
	}
	clear(s.touched)
	s.mu.Unlock()
	if len(keys) == 0 {
		return
	}
	after, errs := make([]*installed, len(keys)), make([]error, len(keys))
	var workers sync.WaitGroup
	n := min(runtime.GOMAXPROCS(0), len(keys))
	for w := range n {
		workers.Go(func() {
			for i := w; i < len(keys); i += n {
				g, served := s.groups[keys[i].group], before[i]
				if served == nil && olds[i].id != "" {
					if served, errs[i] = g.restore(olds[i], now); errs[i] != nil {
						s.log.Warn("certificate is not served any more", "group", g.name, "id", keys[i].id, "error", errs[i])
					}
				}
				after[i], errs[i] = g.evaluate(keys[i].id, served, now)
			}
		})
	}
	workers.Wait()
	s.commit(keys, after, errs)
}

// commit makes what was found good what is served, all at once.
func (s *Store) commit(keys []certKey, after []*installed, errs []error) {
	s.mu.Lock()
	changed := false
	for i, key := range keys {
		c, next, err := s.certs[key], after[i], errs[i]
		if c == nil {
			c = &certificate{}
		}
		news := text(err) != text(c.refused)
		if event := (unbelieved{}); err != nil && news && !errors.As(err, &event) { // that was logged when it came
			s.log.Error("certificate refused", "group", key.group, "id", key.id, "error", err)
		}
		moved := c.served != next && (c.served == nil || next == nil || c.served.tls != next.tls)
		if moved || news {
			s.untold[key] = true
		}
		changed = changed || moved
		c.served, c.refused, c.wanted = next, err, s.groups[key.group].wants(key.id)
		if s.certs[key] = c; next == nil && (err == nil || c.wanted == 0) {
			delete(s.certs, key) // nothing was obtained yet, or it was removed
		}
	}
	if changed {
		s.reindex()
	}
	due := len(s.untold) > 0
	s.mu.Unlock()
	if due {
		poke(s.told)
	}
}

func text(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// reindex makes the index of what is served. s.mu is held.
func (s *Store) reindex() {
	all := make([]*installed, 0, len(s.certs))
	for _, c := range s.certs {
		if c.served != nil {
			all = append(all, c.served)
		}
	}
	s.index.Store(newIndex(all, s.o.Default))
}

// wants is the generation of a certificate that is to be served; 0 if none is.
func (g *group) wants(id string) uint64 {
	if r, ok := g.state.Record(g.name, id); ok {
		if b := wanted(r, g.store.o.Key.Name); b != nil {
			return b.Generation
		}
	}
	return 0
}
