package ledger

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) { await.Main(m) }

// within is a context for what must not take longer than a slow machine needs.
func within(t testing.TB, patience time.Duration) context.Context {
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

func connect(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond),
		nats.ReconnectJitter(0, 0), nats.RetryOnFailedConnect(true), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

func open(t testing.TB, url string, o Options) *Ledger {
	t.Helper()
	l, err := Open(within(t, 40*time.Second), connect(t, url), o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustAppend(t testing.TB, l *Ledger, subject string, expect uint64, data string) uint64 {
	t.Helper()
	version, err := l.Append(within(t, 20*time.Second), subject, expect, []byte(data))
	if err != nil {
		t.Fatal(err)
	}
	return version
}

// events reads the whole ledger.
func events(t testing.TB, l *Ledger) []Event {
	t.Helper()
	ctx := within(t, 40*time.Second)
	info, err := l.stream.Info(ctx)
	if err != nil {
		t.Fatal(err)
	}
	var all []Event
	for seq := uint64(1); seq <= info.State.LastSeq; seq++ {
		msg, err := l.stream.GetMsg(ctx, seq)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, Event{seq, strings.TrimPrefix(msg.Subject, l.prefix), msg.Time, msg.Data})
	}
	return all
}

type record struct {
	Version uint64
	Data    string
}

// table is a State: the records by subject.
type table struct {
	mu   sync.Mutex
	Last uint64
	Rows map[string]record
}

func (s *table) Apply(seq uint64, subject string, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if seq <= s.Last {
		return fmt.Errorf("event %d after event %d", seq, s.Last)
	}
	s.Last = seq
	if s.Rows == nil {
		s.Rows = make(map[string]record)
	}
	switch string(data) {
	case "":
		delete(s.Rows, subject)
	case "bad":
		return errors.New("bad record")
	default:
		s.Rows[subject] = record{seq, string(data)}
	}
	return nil
}

func (s *table) Seq() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.Last
}

func (s *table) Marshal() ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return json.Marshal(map[string]any{"Last": s.Last, "Rows": s.Rows})
}

func (s *table) Unmarshal(data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var loaded struct {
		Last uint64
		Rows map[string]record
	}
	if err := json.Unmarshal(data, &loaded); err != nil {
		return err
	}
	s.Last, s.Rows = loaded.Last, loaded.Rows
	return nil
}

func (s *table) rows() map[string]record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.Rows)
}

// following is a follower that runs.
type following struct {
	*Follower
	state *table
	stop  func() error // ends Run and returns its error
}

// fataler is what testing.TB and rapid.T have in common.
type fataler interface {
	Helper()
	Fatal(...any)
}

func follow(t fataler, l *Ledger, o FollowOptions) *following {
	t.Helper()
	state := &table{}
	f, err := NewFollower(state, o)
	if err != nil {
		t.Fatal(err)
	}
	return run(f, state, l)
}

func run(f *Follower, state *table, l *Ledger) *following {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- f.Run(ctx, l) }()
	return &following{f, state, sync.OnceValue(func() error { cancel(); return <-ended })}
}

// proxy stands between clients and one server, and spoils their connections.
type proxy struct {
	listener net.Listener
	target   string
	delay    atomic.Int64  // of every byte on its way, in nanoseconds
	accepted chan struct{} // closed when no more are accepted
	running  sync.WaitGroup
	mu       sync.Mutex
	links    map[*link]struct{}
}

// link is one connection of a client to the server.
type link struct {
	client, server net.Conn
	deaf           atomic.Bool // what the client says is dropped
	mute           atomic.Bool // what the server says is dropped
}

func startProxy(t testing.TB, s *server.Server) *proxy {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{listener: listener, target: s.Addr().String(), accepted: make(chan struct{}), links: make(map[*link]struct{})}
	p.running.Go(p.accept)
	t.Cleanup(p.close)
	return p
}

func (p *proxy) url() string { return "nats://" + p.listener.Addr().String() }

func (p *proxy) accept() {
	defer close(p.accepted)
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		upstream, err := net.Dial("tcp", p.target)
		if err != nil {
			client.Close()
			continue
		}
		l := &link{client: client, server: upstream}
		p.mu.Lock()
		p.links[l] = struct{}{}
		p.mu.Unlock()
		p.running.Go(func() { p.forward(l.server, l.client, &l.deaf) })
		p.running.Go(func() { p.forward(l.client, l.server, &l.mute) })
	}
}

// forward copies bytes until either end is closed, but for those to drop.
func (p *proxy) forward(to, from net.Conn, drop *atomic.Bool) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		if drop.Load() {
			continue
		}
		time.Sleep(time.Duration(p.delay.Load()))
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}

// each does something to all connections there are; later ones are whole.
func (p *proxy) each(do func(*link)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for l := range p.links {
		do(l)
	}
}

func (p *proxy) mute() { p.each(func(l *link) { l.mute.Store(true) }) }
func (p *proxy) deaf() { p.each(func(l *link) { l.deaf.Store(true) }) }

func (p *proxy) cut() {
	p.each(func(l *link) {
		l.client.Close()
		l.server.Close()
		delete(p.links, l)
	})
}

// close ends the proxy and all its connections.
func (p *proxy) close() {
	p.listener.Close()
	<-p.accepted // no link is added after that
	p.cut()
	p.running.Wait()
}
