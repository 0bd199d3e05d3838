package certmanager

import (
	"bytes"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/ledger"
)

// TestMain fails if the tests leave a goroutine behind. One of Pebble's stays.
func TestMain(m *testing.M) {
	code := m.Run()
	deadline := time.Now().Add(20 * time.Second)
	left := ours()
	for ; len(left) > 0 && time.Now().Before(deadline); left = ours() {
		<-time.After(10 * time.Millisecond)
	}
	if len(left) > 0 {
		fmt.Fprintf(os.Stderr, "%d goroutines were left behind:\n%s\n", len(left), strings.Join(left, "\n\n"))
		code = 1
	}
	os.Exit(code)
}

// ours are the stacks of goroutines of this module and of the engine.
func ours() []string {
	buf := make([]byte, 1<<22)
	return slices.DeleteFunc(strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n"), func(g string) bool {
		return strings.Contains(g, "TestMain") || !strings.Contains(g, "nats-io/") && !strings.Contains(g, "fleetbus/")
	})
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// startEngine starts an engine, and returns where it listens.
func startEngine(t testing.TB) string {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, NoLog: true, NoSigs: true, StoreDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("the engine is not ready")
	}
	return s.ClientURL()
}

func dial(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	opts = append([]nats.Option{nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, opts...)
	nc, err := nats.Connect(url, opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// A clock is wrong by an offset.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += d
}

// An authority signs certificates, and counts what it is asked for.
type authority struct {
	now  func() time.Time
	life time.Duration
	key  *ecdsa.PrivateKey // of issuer
	root *x509.Certificate
	ca   *x509.Certificate // that root signed
	url  string            // of its revocation list

	mu      sync.Mutex
	at      func(step string, o Order) error // called at each step
	chain   func(chain [][]byte) [][]byte    // what becomes of one
	renewal func(leaf *x509.Certificate) (cert.Renewal, error)
	orders  map[string]*fakeOrder
	placed  map[string]int // orders, by first name
	issued  map[string]int
	revoked map[string]Reason // by serial
	asked   int
	opens   int
	forgets bool // it places an order anew, whatever is pending
	secret  string
}

type fakeOrder struct {
	names string
	chain [][]byte
}

func newAuthority(t testing.TB, now func() time.Time) *authority {
	t.Helper()
	certify := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		template := &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
			NotBefore: time.Now().Add(-20 * 365 * 24 * time.Hour), NotAfter: time.Now().Add(20 * 365 * 24 * time.Hour),
			KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte(name),
		}
		if parent == nil {
			parent, signer = template, key
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c, key
	}
	root, rootKey := certify("root of a test", nil, nil)
	ca, key := certify("authority of a test", root, rootKey)
	return &authority{now: now, life: 90 * 24 * time.Hour, key: key, root: root, ca: ca, orders: map[string]*fakeOrder{}, placed: map[string]int{}, issued: map[string]int{}, revoked: map[string]Reason{}}
}

// open is an OpenIssuer.
func (a *authority) open(ctx context.Context, o IssuerOptions) (Issuer, error) {
	secret, err := o.Keep(ctx, func(kept string) (string, error) { return cmp.Or(kept, "secret "+cert.NewID()), nil })
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.opens++
	if a.secret != "" && a.secret != secret {
		return nil, fmt.Errorf("the account's secret is %q, and was %q", secret, a.secret)
	}
	a.secret = secret
	return a, nil
}

func (a *authority) step(step string, o Order) error {
	a.mu.Lock()
	at := a.at
	a.mu.Unlock()
	if at != nil {
		return at(step, o)
	}
	return nil
}

// set changes what a does while it is in use.
func (a *authority) set(change func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	change()
}

// place returns a pending order for the same names, as large authorities do, or a new
// one.
func (a *authority) place(names []string) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := strings.Join(names, " ")
	for id, o := range a.orders {
		if o.names == all && o.chain == nil && !a.forgets {
			return id
		}
	}
	id := "order " + cert.NewID()
	a.orders[id] = &fakeOrder{names: all}
	a.placed[names[0]]++
	return id
}

func (a *authority) Issue(ctx context.Context, o Order) (Issued, error) {
	if err := errors.Join(ctx.Err(), a.step("begin", o)); err != nil {
		return Issued{}, err
	}
	a.mu.Lock()
	_, known := a.orders[o.State]
	a.mu.Unlock()
	if !known {
		if err := o.Placing(ctx, o.Unanswered); err != nil {
			return Issued{}, err
		}
		o.State = a.place(o.Names)
		if err := a.step("ordered", o); err != nil {
			return Issued{}, err
		}
		if err := o.Save(ctx, o.State); err != nil {
			return Issued{}, err
		}
	}
	o.Progress("ordered")
	if err := a.step("saved", o); err != nil {
		return Issued{}, err
	}
	for _, name := range o.Names {
		if m := o.Methods[name]; m.Type == "http-01" {
			cleanup, err := o.Present(ctx, cert.Challenge{Type: m.Type, Name: name, Token: cert.NewID(), KeyAuth: cert.NewID()})
			if err != nil {
				return Issued{}, &Problem{Step: "challenge", Err: err}
			}
			err = a.step("presented", o)
			cleanup(ctx)
			if err != nil {
				return Issued{}, err
			}
		}
	}
	if err := errors.Join(a.step("validated", o), ctx.Err()); err != nil {
		return Issued{}, err
	}
	chain, err := a.sign(o)
	if err != nil {
		return Issued{}, err
	}
	if err := a.step("finalized", o); err != nil {
		return Issued{}, err
	}
	return Issued{chain}, nil
}

func (a *authority) sign(o Order) ([][]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	order := a.orders[o.State]
	if order.chain == nil {
		chain, err := a.makeChain(o.Names, o.Key.Public())
		if err != nil {
			return nil, err
		}
		order.chain = chain
		a.issued[o.Names[0]]++
	}
	if a.chain != nil {
		return a.chain(order.chain), nil
	}
	return order.chain, nil
}

// makeChain signs a certificate.
func (a *authority) makeChain(names []string, public crypto.PublicKey) ([][]byte, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	if err != nil {
		return nil, err
	}
	now := a.now()
	template := &x509.Certificate{SerialNumber: serial, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(a.life), AuthorityKeyId: a.ca.SubjectKeyId}
	if a.url != "" {
		template.CRLDistributionPoints = []string{a.url}
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.ca, public, a.key)
	return [][]byte{der, a.ca.Raw, a.root.Raw}, err
}

func (a *authority) Renewal(_ context.Context, leaf *x509.Certificate) (cert.Renewal, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked++
	if a.renewal == nil {
		return cert.Renewal{}, ErrNoRenewal
	}
	return a.renewal(leaf)
}

func (a *authority) Revoke(_ context.Context, leaf *x509.Certificate, reason Reason) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.revoked[leaf.SerialNumber.Text(16)] = reason
	return nil
}

// counts are the orders placed and the certificates issued, of all names.
func (a *authority) counts() (placed, issued int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, n := range a.placed {
		placed += n
	}
	for _, n := range a.issued {
		issued += n
	}
	return placed, issued
}

// A world is an engine, an authority, and managers.
type world struct {
	t         testing.TB
	url       string
	key       *cert.ManagerKey
	clock     *clock
	authority *authority
	second    *authority
	nc        *nats.Conn
	state     *cert.State // that the test follows
	ledgers   *cert.Ledgers
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, url: startEngine(t), clock: &clock{}}
	var err error
	if w.key, err = cert.NewManagerKey("acme", []byte(strings.Repeat("s", 32))); err != nil {
		t.Fatal(err)
	}
	w.authority, w.second = newAuthority(t, w.clock.now), newAuthority(t, w.clock.now)
	w.nc = dial(t, w.url)
	w.state = cert.NewState([]cert.Signer{w.key.Signer()}, nil)
	w.ledgers = w.ledgersOf(w.state, nil)
	w.background(w.ledgers.Run)
	return w
}

// ledgersOf are the ledgers, to be followed into a state.
func (w *world) ledgersOf(state *cert.State, onEvent func(ledger.Event)) *cert.Ledgers {
	w.t.Helper()
	js, err := jetstream.New(w.nc)
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := cert.OpenLedgers(within(w.t), js, state, ledger.FollowOptions{OnEvent: onEvent})
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// onBus is the whole of a subject of the ledgers.
func onBus(subject string) string {
	if cert.IsReport(subject) {
		return cert.ReportPrefix + "." + subject
	}
	return cert.Prefix + "." + subject
}

// background runs do until the test, or what is returned, ends it.
func (w *world) background(do func(context.Context) error) (stop func()) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(w.t.Context()))
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
				w.t.Errorf("it ended with: %v", err)
			}
		case <-time.After(30 * time.Second):
			w.t.Error("it did not end in 30 s")
		}
	})
	w.t.Cleanup(stop)
	return stop
}

// options are those of a manager that is in a hurry.
func (w *world) options(name string) Options {
	return Options{
		Name: name, Key: func(context.Context) (*cert.ManagerKey, error) { return w.key, nil },
		Issuers: map[string]OpenIssuer{"fake": w.authority.open, "second": w.second.open},
		Logger:  slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo})),
		Every:   100 * time.Millisecond, Lease: 2 * time.Second, Answer: 400 * time.Millisecond, Wave: 20 * time.Second, Now: w.clock.now,
	}
}

func (w *world) new(o Options) *Manager {
	w.t.Helper()
	m, err := New(o)
	if err != nil {
		w.t.Fatal(err)
	}
	return m
}

// run runs a manager over a connection of its own.
func (w *world) run(o Options, opts ...nats.Option) (m *Manager, stop func()) {
	w.t.Helper()
	m = w.new(o)
	return m, w.start(m, dial(w.t, w.url, opts...))
}

func (s *session) passedAt() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.lastPass
}

const fakeConfig = `{"issuers":[{"name":"fake","type":"fake","per_hour":1000000}]}`

// configure writes a configuration as an earlier manager could have.
func (w *world) configure(text string) {
	w.t.Helper()
	var s Settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		w.t.Fatal(err)
	}
	before, _ := w.state.Config()
	c, err := sealSettings(w.key, before, &s)
	if err != nil {
		w.t.Fatal(err)
	}
	w.write(cert.ConfigSubject, c)
}

// write writes a record.
func (w *world) write(subject string, record any) {
	w.t.Helper()
	data, err := w.key.Sign(subject, record)
	if err != nil {
		w.t.Fatal(err)
	}
	w.append(subject, data)
}

func (w *world) append(subject string, data []byte) {
	w.t.Helper()
	seq, err := w.ledgers.Append(within(w.t), subject, w.state.Version(subject), data)
	if err == nil {
		err = w.ledgers.Wait(within(w.t), subject, seq)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// request writes a certificate that nobody has worked on yet.
func (w *world) request(group string, names ...string) string {
	w.t.Helper()
	id := cert.NewID()
	w.write(cert.CertSubject(group, id), &cert.Record{Version: 1, ID: id, Group: group, Event: cert.Requested, Revision: 1, At: w.clock.now(), Policy: cert.Policy{Names: names}})
	return id
}

func (w *world) client() *Client {
	c := NewClient(w.nc)
	c.Signer = w.key.Signer()
	return c
}

// record waits until the record of a certificate is as it should.
func (w *world) record(group, id, what string, good func(r *cert.Record) bool) *cert.Record {
	w.t.Helper()
	var found *cert.Record
	await.Nil(w.t, what, func() error {
		r, ok := w.state.Record(group, id)
		if ok && good(r) {
			found = r
			return nil
		}
		text, _ := json.Marshal(r)
		return fmt.Errorf("the record is %.600s", text)
	})
	return found
}

// current waits until nothing is rolled out, and so many targets were seen serving a
// certificate, as the managers see it.
func (w *world) current(id string, n int) {
	w.t.Helper()
	await.Nil(w.t, "targets serve it", func() error {
		status, err := w.client().Status(within(w.t), StatusRequest{ID: id})
		if err == nil && (status.Certificates[0].Current != n || status.Certificates[0].Wave != nil) {
			err = fmt.Errorf("%s, %+v", status.Certificates[0].Line(), status.Certificates[0].Wave)
		}
		return err
	})
}

func generation(n uint64) func(*cert.Record) bool {
	return func(r *cert.Record) bool { return r.Current != nil && r.Current.Generation == n && r.Next == nil }
}

// A target serves certificates of a group, really: it opens every key.
type target struct {
	w     *world
	name  string
	group string
	key   *cert.SealKey
	nc    *nats.Conn
	state *cert.State
	poke  chan struct{}
	stop  func()

	ledgers *cert.Ledgers

	mu      sync.Mutex
	deaf    bool                                   // it answers nobody
	mute    bool                                   // it installs nothing
	silent  bool                                   // it takes over no challenge
	refuse  func(id string, b *cert.Bundle) string // why it does not serve
	served  map[string][]uint64                    // generations, by id
	serving map[string]uint64                      // now
}

// target enrolls a target and runs it.
func (w *world) target(group, name string) *target {
	w.t.Helper()
	if _, err := w.client().AddTarget(within(w.t), group, name); err != nil {
		w.t.Fatal(err)
	}
	key, err := cert.NewSealKey()
	if err != nil {
		w.t.Fatal(err)
	}
	g := &target{w: w, name: name, group: group, key: key, nc: dial(w.t, w.url), served: map[string][]uint64{}, serving: map[string]uint64{}, poke: make(chan struct{}, 1)}
	reply, err := g.enroll()
	if err != nil {
		w.t.Fatal(err)
	}
	g.state = cert.NewState(reply.Signers, nil)
	g.ledgers = w.ledgersOf(g.state, func(ledger.Event) {
		select {
		case g.poke <- struct{}{}:
		default:
		}
	})
	g.stop = w.background(g.run)
	return g
}

// own is what the target signs its reports with.
func (g *target) own() *cert.TargetKey { return &cert.TargetKey{Name: g.name, Seal: g.key} }

func (g *target) enroll() (enrollment, error) {
	var e enrollment
	signer, err := g.own().Signer()
	if err != nil {
		return e, err
	}
	body, err := json.Marshal(targetKeys{g.key.Public(), signer})
	if err != nil {
		return e, err
	}
	answers, err := cert.Ask(g.nc, []cert.Signer{g.w.key.Signer()}, cert.EnrollSubject(g.name), body)
	if err != nil {
		return e, err
	}
	defer answers.Close()
	data, err := answers.Next(within(g.w.t))
	if err != nil {
		return e, err
	}
	var r reply
	if err := json.Unmarshal(data, &r); err != nil {
		return e, err
	}
	if r.Error != nil {
		return e, r.Error
	}
	return e, json.Unmarshal(r.Data, &e)
}

func (g *target) set(change func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change()
}

func (g *target) run(ctx context.Context) error {
	sub, err := g.nc.Subscribe(cert.AskSubject(g.group), func(m *nats.Msg) {
		g.mu.Lock()
		defer g.mu.Unlock()
		token := string(m.Data)
		if token != "" && g.silent {
			return
		}
		known := slices.ContainsFunc(g.state.Challenges(g.group), func(c *cert.Challenge) bool { return c.Token == token })
		if !g.deaf && (token == "" || known) {
			_ = m.Respond([]byte(g.name))
		}
	})
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }()
	followed := make(chan error, 1)
	go func() { followed <- g.ledgers.Run(ctx) }()
	for ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-g.poke:
			for _, r := range g.state.Records(g.group) {
				if err := g.install(ctx, r); err != nil && ctx.Err() == nil {
					g.w.t.Errorf("target %s: %v", g.name, err)
				}
			}
		}
	}
	return <-followed
}

// install serves what r has for this target, and says so.
func (g *target) install(ctx context.Context, r *cert.Record) error {
	g.mu.Lock()
	deaf, refuse, now := g.deaf || g.mute, g.refuse, g.serving[r.ID]
	g.mu.Unlock()
	b := expected(r, g.name)
	if b == nil || deaf || b.Generation == now {
		return nil
	}
	t, ok := g.state.Target(g.group, g.name)
	if !ok || t.Removed || !bytes.Equal(t.Public, g.key.Public()) { // of the past
		return nil
	}
	sealed, ok := t.Keys[b.KeyGeneration()]
	if !ok {
		return nil // it comes
	}
	key, err := g.key.OpenKey(g.group, b.KeyGeneration(), g.name, sealed)
	if err != nil {
		return err
	}
	pkcs8, err := key.Open(r.ID, b)
	if err != nil {
		return err
	}
	signer, err := parseKey(pkcs8)
	if err != nil {
		return err
	}
	chain, err := parseChain(b.Chain)
	if err != nil {
		return err
	}
	if !signer.Public().(*ecdsa.PublicKey).Equal(chain[0].PublicKey) {
		return errors.New("the key is not the certificate's")
	}
	seen := cert.Seen{Version: 1, Target: g.name, ID: r.ID, Generation: b.Generation, Serial: b.Serial, At: time.Now()}
	if refuse != nil {
		seen.Error = refuse(r.ID, b)
	}
	g.set(func() {
		g.serving[r.ID] = b.Generation
		if seen.Error == "" {
			g.served[r.ID] = append(g.served[r.ID], b.Generation)
		}
	})
	subject := cert.SeenSubject(g.group, g.name, r.ID)
	data, err := g.own().Sign(subject, seen)
	if err != nil {
		return err
	}
	for {
		_, err := g.ledgers.Append(ctx, subject, g.state.Version(subject), data)
		if !errors.Is(err, ledger.ErrConflict) {
			return err
		}
	}
}

func (g *target) history(id string) []uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.served[id])
}

// follow tells of each record of a certificate, in order, until it is stopped.
func (w *world) follow(tell func(*cert.Record)) (stop func()) {
	state := cert.NewState([]cert.Signer{w.key.Signer()}, nil)
	ledgers := w.ledgersOf(state, func(e ledger.Event) {
		if words := strings.Split(e.Subject, "."); len(words) == 4 && words[2] == "cert" {
			if r, ok := state.Record(words[1], words[3]); ok {
				tell(r)
			}
		}
	})
	end := w.background(ledgers.Run)
	return func() {
		if err := ledgers.Wait(within(w.t), cert.ConfigSubject, w.state.Seq()); err != nil {
			w.t.Error(err)
		}
		end()
	}
}
