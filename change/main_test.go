package change

import (
	"context"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) { await.Main(m) }

// patience is what a slow machine may need for anything.
const patience = 30 * time.Second

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// startServer starts an engine with o, on any port unless o names one.
func startServer(t testing.TB, o server.Options) *server.Server {
	t.Helper()
	o.Host, o.JetStream, o.NoLog, o.NoSigs = "127.0.0.1", true, true, true
	if o.Port == 0 {
		o.Port = loopback.Port(t)
	}
	if o.StoreDir == "" {
		o.StoreDir = t.TempDir()
	}
	s, err := server.NewServer(&o)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { stopServer(s) })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	return s
}

func stopServer(s *server.Server) {
	s.Shutdown()
	s.WaitForShutdown()
}

func connect(t testing.TB, url string, o ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect(url, append([]nats.Option{nats.MaxReconnects(-1), nats.ReconnectWait(10 * time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})}, o...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func publisher(t testing.TB, nc *nats.Conn, source string, o PublisherOptions) *Publisher {
	t.Helper()
	p, err := NewPublisher(within(t), nc, source, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Close)
	return p
}

// watch returns a watcher whose first resync was taken.
func watch(t testing.TB, nc *nats.Conn, source, pattern string, o WatcherOptions) *Watcher {
	t.Helper()
	if o.Jitter == 0 {
		o.Jitter = -1
	}
	w, err := NewWatcher(within(t), nc, source, pattern, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	if n := next(t, w); n.Kind != Resync || n.Reason != Started || n.Key != nil {
		t.Fatalf("the first notice is %+v", n)
	}
	return w
}

func next(t testing.TB, w *Watcher) Notice {
	t.Helper()
	n, err := w.Next(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func announce(t testing.TB, p *Publisher, kind Kind, version uint64, key ...string) {
	t.Helper()
	if err := p.Announce(Notice{Key: key, Kind: kind, Version: version}); err != nil {
		t.Fatal(err)
	}
}

func flush(t testing.TB, p *Publisher) {
	t.Helper()
	if err := p.Flush(within(t)); err != nil {
		t.Fatal(err)
	}
}
