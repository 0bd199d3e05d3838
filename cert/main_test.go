package cert_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/ledger"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) { await.Main(m) }

// waitFor ends the test if ask does not say yes in time.
// Benchmarks, which do more at once, have longer.
func waitFor(t testing.TB, what string, ask func() bool) {
	t.Helper()
	patience := 30 * time.Second
	if _, ok := t.(*testing.B); ok {
		patience = 4 * time.Minute
	}
	if !await.True(patience, ask) {
		t.Fatalf("in vain for %s", what)
	}
}

// must is for calls whose failure ends the test.
func must[T any](value T, err error) func(testing.TB) T {
	return func(t testing.TB) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

// journal is a log that a test can read.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.text.String(), text)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

// startServer starts an engine, on any port unless o has one.
func startServer(t testing.TB, o server.Options) *server.Server {
	t.Helper()
	o.Host, o.JetStream, o.NoLog, o.NoSigs = "127.0.0.1", true, true, true
	o.JetStreamLimits.DefaultMaxConsumers = -1 // as a node of a fleet has it
	if o.Port == 0 {
		o.Port = loopback.Port(t)
	}
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	s := must(server.NewServer(&o))(t)
	s.Start()
	t.Cleanup(func() { stopServer(s) })
	if !s.ReadyForConnections(20 * time.Second) {
		t.Fatal("server not ready in 20 s")
	}
	return s
}

func stopServer(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func portOf(s *server.Server) int { return s.Addr().(*net.TCPAddr).Port }

func dial(t testing.TB, url string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc := must(nats.Connect(url, append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(10 * time.Millisecond), nats.ReconnectJitter(0, 0),
		nats.RetryOnFailedConnect(true), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, opts...)...))(t)
	t.Cleanup(nc.Close)
	return nc
}

// within is a context for what must not take longer than a slow machine needs.
func within(t testing.TB, patience time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// A bus has a ledger of certificates, and a manager that writes it.
type bus struct {
	*certtest.Manager
	t      testing.TB
	server *server.Server
	nc     *nats.Conn
	ledger *ledger.Ledger
}

func newBus(t testing.TB) *bus {
	t.Helper()
	return busAt(t, startServer(t, server.Options{}), certtest.New(t, "web"))
}

func busAt(t testing.TB, s *server.Server, m *certtest.Manager) *bus {
	t.Helper()
	nc := dial(t, s.ClientURL())
	js := must(jetstream.New(nc))(t)
	l := must(cert.OpenLedger(within(t, 30*time.Second), js))(t)
	must(cert.OpenReports(within(t, 30*time.Second), js))(t)
	ctx, cancel := context.WithCancel(context.Background())
	relayed := make(chan error, 1)
	go func() { relayed <- cert.Relay{}.Run(ctx, nc) }()
	t.Cleanup(func() {
		cancel()
		if err := <-relayed; err != nil {
			t.Error(err)
		}
	})
	return &bus{Manager: m, t: t, server: s, nc: nc, ledger: l}
}

// publish appends events, whatever was before.
func (b *bus) publish(events ...certtest.Event) {
	b.t.Helper()
	js := must(jetstream.New(b.nc))(b.t)
	for _, e := range events {
		prefix := cert.Prefix
		if cert.IsReport(e.Subject) {
			prefix = cert.ReportPrefix
		}
		must(js.Publish(within(b.t, 20*time.Second), prefix+"."+e.Subject, e.Data))(b.t)
	}
}

// target enrolls a target.
func (b *bus) target(name string) *cert.TargetKey {
	b.t.Helper()
	key, e := b.Target(name)
	b.publish(e)
	return key
}

// lastSeen is what the ledger has of a target's report; nil if there is none.
func (b *bus) lastSeen(target, id string) *cert.Seen {
	b.t.Helper()
	ctx := within(b.t, 20*time.Second)
	stream := must(must(jetstream.New(b.nc))(b.t).Stream(ctx, cert.ReportStream))(b.t)
	subject := cert.SeenSubject(b.Group, target, id)
	msg, err := stream.GetLastMsgForSubject(ctx, cert.ReportPrefix+"."+subject)
	if err != nil || len(msg.Data) == 0 {
		return nil
	}
	state := cert.NewState([]cert.Signer{b.Signer(target)}, nil)
	if err := state.Apply(msg.Sequence, subject, msg.Data); err != nil {
		b.t.Log(err)
	}
	seen, ok := state.Seen(b.Group, target, id)
	if !ok || seen.Generation == 0 && seen.Serial == "" { // it was removed
		return nil
	}
	return seen
}

// A runner is a store that runs.
type runner struct {
	*cert.Store
	inbox nats.Option
	log   *journal
	stop  func()
}

func storeDir(t testing.TB) string { return filepath.Join(t.TempDir(), "certs") }

// open opens a store. Its log is for the test.
func open(t testing.TB, o cert.Options) *runner {
	t.Helper()
	r := &runner{inbox: nats.CustomInboxPrefix(o.Key.Inbox()), log: &journal{}, stop: func() {}}
	if o.Logger == nil {
		o.Logger = r.log.logger()
	}
	r.Store = must(cert.Open(o))(t)
	return r
}

// run runs a store over a connection of its own, until it is stopped or the test ends.
func (r *runner) run(t testing.TB, url string) *runner {
	t.Helper()
	nc := dial(t, url, r.inbox)
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx, nc) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the store ended with %v", err)
		}
		nc.Close()
	})
	t.Cleanup(r.stop)
	return r
}

// generation is what the store serves of a certificate; 0 if nothing.
func (r *runner) generation(id string) uint64 {
	for _, c := range r.Certificates() {
		if c.ID == id {
			return c.Generation
		}
	}
	return 0
}

// problem is why the store does not serve what it should.
func (r *runner) problem(id string) string {
	for _, c := range r.Certificates() {
		if c.ID == id && c.Err != nil {
			return c.Err.Error()
		}
	}
	return ""
}

func certEvent(subject string, data []byte) certtest.Event {
	return certtest.Event{Subject: subject, Data: data}
}

// asking asks the targets for the challenge of a token, for who is there if that is empty.
func (b *bus) asking(token string) *nats.Subscription {
	b.t.Helper()
	inbox := b.nc.NewInbox()
	sub := must(b.nc.SubscribeSync(inbox))(b.t)
	b.t.Cleanup(func() { _ = sub.Unsubscribe() })
	if err := b.nc.PublishRequest(cert.AskSubject(b.Group), inbox, []byte(token)); err != nil {
		b.t.Fatal(err)
	}
	return sub
}

// ask asks, and returns who answered first.
func (b *bus) ask(token string, patience time.Duration) (string, error) {
	b.t.Helper()
	msg, err := b.asking(token).NextMsg(patience)
	if err != nil {
		return "", err
	}
	return string(msg.Data), nil
}
