package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/big"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// certHistory is how many events of a certificate its ledger keeps.
	certHistory = 32
	// polled is how often the targets of other designs look for certificates.
	polled = 10 * time.Second
	// certPatience bounds each wait for stores.
	certPatience = time.Minute
	// sweep is the pause between looks at what stores serve. Looks that are too many take
	// the processors that the stores need; time is as much too long as a pause.
	sweep = 5 * time.Millisecond
)

// A certEffort is how much of everything certificates are measured with.
type certEffort struct {
	rounds         int
	kept, calls    int // certificates of a target, and calls of each processor
	replayed       int // certificates, with certHistory events each
	stores, events int
	managers, due  int
	renewals       int
}

// A certHouse measures certificates.
type certHouse struct {
	*house
	effort certEffort
}

// Certificates measures what this project promises of certificates. It is as House is,
// without a peer.
func Certificates(ctx context.Context, o Options) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, certTimeout)
	defer cancel()
	h := &certHouse{
		&house{env: o.Env, progress: o.Progress, only: o.Only, alone: true},
		certEffort{rounds: 5, kept: 10_000, calls: 3_000_000, replayed: 3_125, stores: 1000, events: 20, managers: 8, due: 200, renewals: 1000},
	}
	if o.Quick {
		h.effort = certEffort{rounds: 1, kept: 500, calls: 100_000, replayed: 100, stores: 50, events: 2, managers: 2, due: 20, renewals: 50}
	}
	h.Conditions = append(h.Conditions,
		Condition{"nodes", "fleetbus serve, release build, one in a process of its own, over TLS; users with the roles that targets and managers have"},
		Condition{"certificates", "P-256, a private key for each, of one name and for 90 days, from an authority of our own, and sealed and signed as managers do"},
		Condition{"CertMagic", "no part of this program: go test -bench GetCertificate ./cert has its cache beside ours"},
		Condition{"Pebble", "no part of this program: go test -bench Managers ./certmanager has the managers at Pebble"})
	return h.measure(ctx, []part{
		{"finding certificates, from a snapshot", h.measureSnapshot},
		{"replaying a ledger", h.measureReplay},
		{"delivering to many stores", h.measureDelivery},
		{"renewing with many managers", h.measureManagers},
		{"renewing under handshakes", h.measureHandshakes},
	})
}

// dialAs connects a new user of that name and role, who stays connected.
func (s *system) dialAs(ctx context.Context, name, role string) (*nats.Conn, error) {
	nc, err := s.dial(ctx, s.urls, admin.UserCredentials(s.admin))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	user, err := s.enlist(ctx, admin.New(nc), name, role)
	if err != nil {
		return nil, err
	}
	return s.dial(ctx, s.urls, user)
}

// lazyFleet runs a node that does not sync each event, which is for ledgers whose
// writing is not measured.
func (h *certHouse) lazyFleet(ctx context.Context) (*system, error) {
	s, err := h.fleet(1)
	if err != nil {
		return nil, err
	}
	s.lines[0] = append(s.lines[0], "--store-lazy-sync")
	return s, s.run(ctx)
}

// A running store is up to date until it is stopped.
type running struct {
	*cert.Store
	stop func() error
}

func run(ctx context.Context, store *cert.Store, nc *nats.Conn) running {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- store.Run(ctx, nc) }()
	return running{store, sync.OnceValue(func() error {
		cancel()
		err := <-ended
		nc.Close()
		return err
	})}
}

// await looks every pause, until done says that it is.
func await(ctx context.Context, what string, pause time.Duration, done func() bool) error {
	deadline := time.After(certPatience)
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for %s: %w", what, context.Cause(ctx))
		case <-deadline:
			return fmt.Errorf("waiting for %s: not in %v", what, certPatience)
		case <-tick.C:
		}
	}
	return nil
}

// awaitAll waits until a store serves a generation of n certificates.
func awaitAll(ctx context.Context, store *cert.Store, n int, generation uint64) error {
	return await(ctx, fmt.Sprintf("a store to serve generation %d of %d certificates", generation, n), 20*time.Millisecond, func() bool {
		if c, err := store.GetCertificate(&tls.ClientHelloInfo{ServerName: host(n - 1)}); c == nil || err != nil {
			return false
		}
		all := store.Certificates()
		return len(all) == n && !slices.ContainsFunc(all, func(s cert.Status) bool { return s.Generation != generation })
	})
}

// oneNode starts a fleet of one.
func (h *certHouse) oneNode(ctx context.Context) (*system, error) { return h.startFleet(ctx, 1) }

// staged starts a fleet, and who writes the ledger of certificates there. end ends both.
func staged(ctx context.Context, start func(context.Context) (*system, error)) (s *system, w *scribe, end func(), err error) {
	if s, err = start(ctx); err != nil {
		return nil, nil, nil, err
	}
	w, conn, err := s.newScribe(ctx)
	if err != nil {
		s.stop()
		return nil, nil, nil, err
	}
	end = func() {
		conn.Close()
		s.stop()
	}
	return s, w, end, nil
}

// measureSnapshot starts a store from a snapshot with its node down, and finds
// certificates in it.
func (h *certHouse) measureSnapshot(ctx context.Context) error {
	s, w, end, err := staged(ctx, h.lazyFleet)
	if err != nil {
		return err
	}
	defer end()
	key, err := w.target(ctx, "lb0")
	if err != nil {
		return err
	}
	if err := w.obtain(ctx, w.authority, h.effort.kept); err != nil {
		return err
	}
	o := cert.Options{Key: key, Dir: filepath.Join(s.dir, "certificates")}
	if err := s.fillSnapshot(ctx, o, h.effort.kept); err != nil {
		return err
	}
	s.children[0].stop()
	var store *cert.Store
	var seconds []float64
	for range h.effort.rounds {
		began := time.Now()
		if store, err = cert.Open(o); err != nil {
			return err
		}
		seconds = append(seconds, time.Since(began).Seconds())
		if n := len(store.Certificates()); n != h.effort.kept {
			return fmt.Errorf("starting from a snapshot: %d of %d certificates are served", n, h.effort.kept)
		}
	}
	median := percentile(seconds, 0.5)
	if err := h.measureGet(store); err != nil {
		return err
	}
	h.Figures = append(h.Figures, Figure{
		Name: fmt.Sprintf("start from a snapshot of %d, bus down", h.effort.kept), Unit: "s", Ours: median, Spread: []float64{seconds[0], seconds[len(seconds)-1]},
	}.atMost(2))
	h.Conditions = append(h.Conditions, Condition{"snapshot", fmt.Sprintf("written by a store that followed the node, which is gone then; median of %d, until all are served", h.effort.rounds)})
	return nil
}

// fillSnapshot runs a store until it serves n certificates, and lets it write its
// snapshot.
func (s *system) fillSnapshot(ctx context.Context, o cert.Options, n int) error {
	store, err := cert.Open(o)
	if err != nil {
		return err
	}
	nc, err := s.dialAs(ctx, o.Key.Name, identity.RoleTarget)
	if err != nil {
		return err
	}
	r := run(ctx, store, nc)
	return errors.Join(awaitAll(ctx, store, n, 1), r.stop())
}

// measureGet calls GetCertificate on all processors at once.
func (h *certHouse) measureGet(store *cert.Store) error {
	hellos := make([]*tls.ClientHelloInfo, h.effort.kept)
	for i := range hellos {
		hellos[i] = &tls.ClientHelloInfo{ServerName: host(i)}
	}
	processors := runtime.GOMAXPROCS(0)
	calls := float64(processors * h.effort.calls)
	var took, worked []float64
	least := 0.0
	for round := range h.effort.rounds {
		var before, after runtime.MemStats
		var all sync.WaitGroup
		missing := make([]bool, processors)
		runtime.ReadMemStats(&before)
		cpu, began := processorTime(), time.Now()
		for p := range processors {
			all.Go(func() {
				for i := range h.effort.calls {
					if c, err := store.GetCertificate(hellos[(i+p*len(hellos)/processors)%len(hellos)]); c == nil || err != nil {
						missing[p] = true
						return
					}
				}
			})
		}
		all.Wait()
		took = append(took, float64(time.Since(began).Nanoseconds())/calls)
		worked = append(worked, float64((processorTime()-cpu).Nanoseconds())/calls)
		runtime.ReadMemStats(&after)
		if slices.Contains(missing, true) {
			return errors.New("finding certificates: one is missing")
		}
		// What else the process does in the meantime is not in the least of all rounds.
		if n := float64(after.Mallocs-before.Mallocs) / calls; round == 0 || n < least {
			least = n
		}
	}
	median := percentile(took, 0.5)
	least = float64(int(least*1000)) / 1000
	h.Figures = append(h.Figures,
		Figure{Name: fmt.Sprintf("GetCertificate, %d certificates, parallel", h.effort.kept), Unit: "ns", Ours: median, Spread: []float64{took[0], took[len(took)-1]}}.atMost(100),
		Figure{Name: "GetCertificate, processor time of a call", Unit: "ns", Ours: percentile(worked, 0.5)},
		Figure{Name: "GetCertificate, allocations", Ours: least}.aim("0", least == 0))
	h.Conditions = append(h.Conditions, Condition{"GetCertificate", fmt.Sprintf("all names in turn, on %d processors at once; time that passed by calls of all of them, median of %d rounds of %d calls each; allocations to three digits", processors, h.effort.rounds, h.effort.calls)})
	return nil
}

// processorTime is what all threads of this process needed.
func processorTime() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it fails for wrong arguments alone
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// measureReplay follows a ledger without a snapshot: first one with an event of each
// certificate, then one with as many as a ledger keeps.
func (h *certHouse) measureReplay(ctx context.Context) error {
	s, w, end, err := staged(ctx, h.lazyFleet)
	if err != nil {
		return err
	}
	defer end()
	key, err := w.target(ctx, "lb0")
	if err != nil {
		return err
	}
	n := h.effort.replayed
	if err := w.obtain(ctx, w.authority, n); err != nil {
		return err
	}
	_, live, err := s.replay(ctx, key, n, 1)
	if err != nil {
		return err
	}
	for i := range n { // what the ledger lets go is the first
		b, err := w.issue(ctx, w.authority, i, 2)
		if err != nil {
			return err
		}
		for range certHistory - 1 {
			if err := w.record(ctx, i, cert.Scheduled, b); err != nil {
				return err
			}
		}
	}
	if err := w.flush(ctx); err != nil {
		return err
	}
	worked := processorTime()
	took, full, err := s.replay(ctx, key, n, 2)
	worked = processorTime() - worked
	if err != nil {
		return err
	}
	const mebibyte = 1 << 20
	memory := Figure{Name: "the same, heap, beside that of one event each", Unit: "MiB", Ours: full / mebibyte, Peer: live / mebibyte, Ratio: full / live}
	h.Figures = append(h.Figures,
		Figure{Name: fmt.Sprintf("replay of %d events, no snapshot", n*certHistory), Unit: "s", Ours: took.Seconds()}.atMost(30),
		memory.aim("1.1 times or less", memory.Ratio <= 1.1))
	h.Conditions = append(h.Conditions, Condition{"replay", fmt.Sprintf("%d certificates, %d events each, as many as the ledger keeps; until the last generation of all is served, for which the store's process worked %.1f s; heap in use after it, after a collection, less that before", n, certHistory, worked.Seconds())})
	return nil
}

// replay is how long a store needs that knows nothing, until it serves a generation of n
// certificates, and what is in use of the heap then, in bytes.
func (s *system) replay(ctx context.Context, key *cert.TargetKey, n int, generation uint64) (time.Duration, float64, error) {
	user := fmt.Sprintf("%s-%d", key.Name, generation)
	nc, err := s.dialAs(ctx, key.Name, identity.RoleTarget)
	if err != nil {
		return 0, 0, err
	}
	before := heap()
	began := time.Now()
	store, err := cert.Open(cert.Options{Key: key, Dir: filepath.Join(s.dir, user)})
	if err != nil {
		nc.Close()
		return 0, 0, err
	}
	r := run(ctx, store, nc)
	err = awaitAll(ctx, store, n, generation)
	took := time.Since(began)
	after := heap()
	err = errors.Join(err, r.stop())
	runtime.KeepAlive(store)
	return took, after - before, err
}

// heap is what is in use of it, in bytes.
func heap() float64 {
	runtime.GC()
	runtime.GC() // what a finalizer frees
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// measureDelivery takes the time from an obtained event to the last store of many that
// serves it.
func (h *certHouse) measureDelivery(ctx context.Context) (err error) {
	s, w, end, err := staged(ctx, h.oneNode)
	if err != nil {
		return err
	}
	defer end()
	if err := w.obtain(ctx, w.authority, 1); err != nil {
		return err
	}
	stores, err := h.subscribe(ctx, s, w)
	defer func() {
		for _, r := range stores {
			err = errors.Join(err, r.stop())
		}
	}()
	if err != nil {
		return err
	}
	state, stop, err := follow(ctx, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	reported := func(generation uint64) error {
		done := 0 // the reports of as many are there
		return await(ctx, "the reports of all stores", sweep, func() bool {
			for ; done < len(stores); done++ {
				if seen, ok := state.Seen(benchGroup, target(done), certID(0)); !ok || seen.Generation != generation || seen.Error != "" {
					return false
				}
			}
			return true
		})
	}
	if err := reported(1); err != nil {
		return err
	}
	var took, seen []time.Duration
	var worked time.Duration
	for i := range h.effort.events {
		generation := uint64(i + 2)
		before := processorTime()
		times, began, err := w.deliver(ctx, stores, generation)
		if err != nil {
			return err
		}
		took, worked = append(took, times...), worked+processorTime()-before
		if err := reported(generation); err != nil {
			return err
		}
		seen = append(seen, time.Since(began))
	}
	p99 := percentile(took, 0.99)
	f := Figure{
		Name: fmt.Sprintf("obtained to served by %d stores, p99", len(stores)), Unit: "ms", Ours: milliseconds(p99), Peer: milliseconds(polled * 99 / 100),
		Spread: []float64{milliseconds(percentile(took, 0.5)), milliseconds(took[len(took)-1])},
	}
	f.Ratio = f.Ours / f.Peer
	h.Figures = append(h.Figures, f.atMost(500),
		Figure{Name: "obtained to seen serving and reported by all, p50", Unit: "ms", Ours: milliseconds(percentile(seen, 0.5))})
	h.Conditions = append(h.Conditions, Condition{"delivery", fmt.Sprintf("%d events, one after another, from before the append, which is synced; stores without snapshots, all in this process, each with a connection and a user of its own; for which it worked %.0f ms an event; looked at every %v; p50 and the last of all as spread. Peer is no measurement: it is the p99 of targets that look every %v", h.effort.events, milliseconds(worked)/float64(h.effort.events), sweep, polled)})
	return nil
}

func target(i int) string { return "lb" + strconv.Itoa(i) }

// subscribe runs the stores of as many targets. It returns those that run even if it
// fails.
func (h *certHouse) subscribe(ctx context.Context, s *system, w *scribe) ([]running, error) {
	nc, err := s.dial(ctx, s.urls, admin.UserCredentials(s.admin))
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	api := admin.New(nc)
	keys := make([]*cert.TargetKey, h.effort.stores)
	users := make([]nats.Option, len(keys))
	for i := range keys {
		if keys[i], err = w.target(ctx, target(i)); err != nil {
			return nil, err
		}
		if users[i], err = s.enlist(ctx, api, target(i), identity.RoleTarget); err != nil {
			return nil, err
		}
	}
	if err := w.flush(ctx); err != nil {
		return nil, err
	}
	pace := rate.NewLimiter(handshakes, 1)
	var all []running
	for i, key := range keys {
		store, err := cert.Open(cert.Options{Key: key})
		if err != nil {
			return all, err
		}
		if err := pace.Wait(ctx); err != nil {
			return all, err
		}
		nc, err := s.dial(ctx, s.urls, users[i])
		if err != nil {
			return all, err
		}
		all = append(all, run(ctx, store, nc))
	}
	return all, nil
}

// follow follows the ledgers.
func follow(ctx context.Context, w *scribe) (*cert.State, func() error, error) {
	state := cert.NewState([]cert.Signer{w.key.Signer()}, nil)
	ledgers, err := cert.OpenLedgers(ctx, w.js, state, ledger.FollowOptions{})
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan error, 1)
	go func() { ended <- ledgers.Run(ctx) }()
	return state, func() error {
		cancel()
		return <-ended
	}, nil
}

// deliver writes a generation of the first certificate, and returns when it did and how
// long each store took to serve it.
func (w *scribe) deliver(ctx context.Context, stores []running, generation uint64) ([]time.Duration, time.Time, error) {
	b, err := w.issue(ctx, w.authority, 0, generation)
	if err != nil {
		return nil, time.Time{}, err
	}
	began := time.Now()
	if err := w.record(ctx, 0, cert.Obtained, b); err != nil {
		return nil, began, err
	}
	serial, ok := new(big.Int).SetString(b.Serial, 16)
	if !ok {
		return nil, began, fmt.Errorf("delivering certificate %s: its serial number is none: %q", certID(0), b.Serial)
	}
	hello := &tls.ClientHelloInfo{ServerName: host(0)}
	var took []time.Duration
	waiting := slices.Clone(stores)
	err = await(ctx, "all stores to serve a certificate", sweep, func() bool {
		waiting = slices.DeleteFunc(waiting, func(r running) bool {
			c, err := r.GetCertificate(hello)
			if err != nil || c == nil || c.Leaf.SerialNumber.Cmp(serial) != 0 {
				return false
			}
			took = append(took, time.Since(began))
			return true
		})
		return len(waiting) == 0
	})
	return took, began, errors.Join(err, w.flush(ctx))
}
