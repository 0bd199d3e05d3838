package bench

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/private"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// issuerName is the issuer's, and its type's.
	issuerName = "bench"
	// failEvery is which of an authority's answers are failures, where some are.
	failEvery = 20
	// hurry is how many times as fast the managers' wall clock runs, by which they
	// wait after a failure; what they agree on goes by another.
	hurry = 60
	// managersPatience bounds the work of managers.
	managersPatience = 3 * time.Minute
	// shakesPerSecond are the handshakes of clients under renewals, and shakeTimeout
	// is when one has failed.
	shakesPerSecond = 100
	shakeTimeout    = 5 * time.Second
)

// An office is an authority with orders, as those of ACME have, in four requests: order,
// challenge, finalize and download.
type office struct {
	*private.Authority
	fail int64 // every one of so many requests is not answered; 0: all are

	asked          atomic.Int64
	placed, signed atomic.Int64

	mu     sync.Mutex
	orders map[string]*certmanager.Issued // nil: it is pending
}

func (o *office) open(context.Context, certmanager.IssuerOptions) (certmanager.Issuer, error) {
	return o, nil
}

// ask is a request, which fails before it has an effect.
func (o *office) ask(step string) error {
	if n := o.asked.Add(1); o.fail > 0 && n%o.fail == 0 {
		return &certmanager.Problem{Step: step, Type: "urn:ietf:params:acme:error:serverInternal", Err: errors.New("it is unavailable just now")}
	}
	return nil
}

// Issue resumes an order or places one.
func (o *office) Issue(ctx context.Context, order certmanager.Order) (certmanager.Issued, error) {
	if !o.knows(order.State) {
		if err := o.ask("order"); err != nil {
			return certmanager.Issued{}, err
		}
		order.State = o.place()
		if err := order.Save(ctx, order.State); err != nil {
			return certmanager.Issued{}, err
		}
	}
	for _, step := range []string{"challenge", "finalize"} {
		if err := o.ask(step); err != nil {
			return certmanager.Issued{}, err
		}
	}
	issued, err := o.finalize(ctx, order)
	if err != nil {
		return certmanager.Issued{}, err
	}
	return issued, o.ask("finalize")
}

func (o *office) knows(id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, known := o.orders[id]
	return known
}

func (o *office) place() string {
	id := strconv.FormatInt(o.placed.Add(1), 10)
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.orders == nil {
		o.orders = map[string]*certmanager.Issued{}
	}
	o.orders[id] = nil
	return id
}

// finalize signs the certificate of an order, once.
func (o *office) finalize(ctx context.Context, order certmanager.Order) (certmanager.Issued, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if issued := o.orders[order.State]; issued != nil {
		return *issued, nil
	}
	issued, err := o.Authority.Issue(ctx, order)
	if err != nil {
		return issued, err
	}
	o.orders[order.State] = &issued
	o.signed.Add(1)
	return issued, nil
}

// manage runs n managers with connections of their own, who know one issuer, and
// configures them. The caller stops them, even if it fails.
func (s *system) manage(ctx context.Context, w *scribe, n int, o *office, now func() time.Time) (stop func() error, err error) {
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	stop = func() error {
		cancel()
		all.Wait()
		return errors.Join(errs...)
	}
	var nc *nats.Conn
	for i := range n {
		name := "manager" + strconv.Itoa(i)
		m, err := certmanager.New(certmanager.Options{
			Name: name, Key: func(context.Context) (*cert.ManagerKey, error) { return w.key, nil },
			Issuers: map[string]certmanager.OpenIssuer{issuerName: o.open}, Every: time.Second, Lease: 30 * time.Second, Now: now,
		})
		if err != nil {
			return stop, err
		}
		if nc, err = s.dialAs(ctx, name, identity.RoleCertManager); err != nil {
			return stop, err
		}
		conn := nc
		all.Go(func() {
			defer conn.Close()
			if err := m.Run(ctx, conn); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	settings, err := json.Marshal(certmanager.Settings{
		Issuers: []certmanager.IssuerSettings{{Name: issuerName, Type: issuerName, PerHour: 1_000_000}},
	})
	if err != nil {
		return stop, err
	}
	client := certmanager.NewClient(nc)
	client.Signer = w.key.Signer()
	return stop, s.eventually(ctx, "configuring managers", adminTimeout, func(ctx context.Context) error {
		_, err := client.UpdateConfig(ctx, settings)
		return err
	})
}

// renewed waits until n certificates are renewed, and returns how many are when it has
// waited long enough.
func renewed(ctx context.Context, state *cert.State, n int) int {
	ctx, cancel := context.WithTimeout(ctx, managersPatience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		done := 0
		for i := range n {
			if r, ok := state.Record(benchGroup, certID(i)); ok && r.Current != nil && r.Current.Generation > 1 {
				done++
			}
		}
		if done == n {
			return done
		}
		select {
		case <-ctx.Done():
			return done
		case <-tick.C:
		}
	}
}

// measureManagers has many managers renew the same certificates, at an authority that
// often fails.
func (h *certHouse) measureManagers(ctx context.Context) (err error) {
	s, w, end, err := staged(ctx, h.oneNode)
	if err != nil {
		return err
	}
	defer end()
	if err := w.obtain(ctx, w.old, h.effort.due); err != nil {
		return err
	}
	state, unfollow, err := follow(ctx, w)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, unfollow()) }()
	began := time.Now()
	now := func() time.Time { return began.Add(hurry * time.Since(began)) }
	authority, err := w.clocked(now)
	if err != nil {
		return err
	}
	o := &office{Authority: authority, fail: failEvery}
	stop, err := s.manage(ctx, w, h.effort.managers, o, now)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	done := renewed(ctx, state, h.effort.due)
	took := time.Since(began).Round(100 * time.Millisecond)
	placed, signed := o.placed.Load(), o.signed.Load()
	f := Figure{Name: fmt.Sprintf("%d managers, %d due: orders for each certificate issued", h.effort.managers, h.effort.due), Ours: float64(placed) / float64(max(1, signed))}
	missed := h.effort.due - done
	h.Figures = append(h.Figures, f.aim("1.00", placed == signed && signed == int64(h.effort.due)),
		Figure{Name: "the same, certificates not renewed", Ours: float64(missed)}.aim("0", missed == 0))
	h.Conditions = append(h.Conditions, Condition{"managers", fmt.Sprintf("at an authority in this process that does not speak ACME, with orders that can be resumed, one of its answers in %d a failure: %d answers, %d orders, %d certificates, in %v; the clock of pauses after failures %d times as fast", failEvery, o.asked.Load(), placed, signed, took, hurry)})
	return nil
}

// measureHandshakes renews certificates while clients connect to who serves them.
func (h *certHouse) measureHandshakes(ctx context.Context) (err error) {
	s, w, end, err := staged(ctx, h.oneNode)
	if err != nil {
		return err
	}
	defer end()
	n := h.effort.renewals
	if err := w.obtain(ctx, w.old, n); err != nil {
		return err
	}
	key, err := w.target(ctx, "lb0")
	if err != nil {
		return err
	}
	store, err := cert.Open(cert.Options{Key: key})
	if err != nil {
		return err
	}
	nc, err := s.dialAs(ctx, key.Name, identity.RoleTarget)
	if err != nil {
		return err
	}
	r := run(ctx, store, nc)
	defer func() { err = errors.Join(err, r.stop()) }()
	if err := awaitAll(ctx, store, n, 1); err != nil {
		return err
	}
	crowd, err := w.shake(ctx, store, n)
	if err != nil {
		return err
	}
	defer crowd.stop()
	began := time.Now()
	stop, err := s.manage(ctx, w, 2, &office{Authority: w.authority}, nil)
	defer func() { err = errors.Join(err, stop()) }()
	if err != nil {
		return err
	}
	if err := awaitAll(ctx, store, n, 2); err != nil {
		return err
	}
	took := time.Since(began)
	crowd.stop()
	failed, done := crowd.failed.Load(), crowd.done.Load()
	if done == 0 {
		return errors.New("renewing under handshakes: there was none")
	}
	h.Figures = append(h.Figures,
		Figure{Name: fmt.Sprintf("%d renewals under handshakes, failed handshakes", n), Ours: float64(failed)}.aim("0", failed == 0))
	about := fmt.Sprintf("%d of clients that verify the certificate of a random name, %.0f a second, TLS 1.3, none resumed; two managers renew all at once, in %.1f s", done, float64(done)/took.Seconds(), took.Seconds())
	if first := crowd.first.Load(); first != nil {
		about += "; the first failure: " + *first
	}
	h.Conditions = append(h.Conditions, Condition{"handshakes", about})
	return nil
}

// A crowd are clients who connect again and again.
type crowd struct {
	done, failed atomic.Int64
	first        atomic.Pointer[string] // failure
	stop         func()
}

// shake begins handshakes for random names of n certificates with a server that has
// those of a store.
func (w *scribe) shake(ctx context.Context, store *cert.Store, n int) (*crowd, error) {
	roots, err := w.roots()
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listening for handshakes: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	var all sync.WaitGroup
	c := &crowd{stop: sync.OnceFunc(func() {
		cancel()
		all.Wait()
	})}
	shaken := context.WithoutCancel(ctx) // those that began are waited for
	all.Go(func() { serveHandshakes(shaken, ln, store, &all) })
	all.Go(func() {
		defer ln.Close()
		var clients sync.WaitGroup
		defer clients.Wait()
		tick := time.NewTicker(time.Second / shakesPerSecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			clients.Go(func() {
				c.connect(shaken, ln.Addr().String(), &tls.Config{RootCAs: roots, ServerName: host(rand.IntN(n)), MinVersion: tls.VersionTLS13})
			})
		}
	})
	return c, nil
}

// serveHandshakes shakes hands with all who come, until ln is closed.
func serveHandshakes(ctx context.Context, ln net.Listener, store *cert.Store, all *sync.WaitGroup) {
	config := &tls.Config{GetCertificate: store.GetCertificate, MinVersion: tls.VersionTLS13}
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		all.Go(func() {
			defer conn.Close()
			ctx, cancel := context.WithTimeout(ctx, shakeTimeout)
			defer cancel()
			// Its client counts a failure. It closes first.
			if tls.Server(conn, config).HandshakeContext(ctx) == nil {
				_ = conn.SetDeadline(time.Now().Add(shakeTimeout))
				_, _ = conn.Read(make([]byte, 64))
			}
		})
	}
}

// connect is one handshake.
func (c *crowd) connect(ctx context.Context, addr string, config *tls.Config) {
	ctx, cancel := context.WithTimeout(ctx, shakeTimeout)
	defer cancel()
	c.done.Add(1)
	d := tls.Dialer{Config: config}
	conn, err := d.DialContext(ctx, "tcp", addr)
	if err != nil {
		text := err.Error()
		c.first.CompareAndSwap(nil, &text)
		c.failed.Add(1)
		return
	}
	_ = conn.Close()
}
