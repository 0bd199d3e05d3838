// Package fleetbustest gives a test a real server: on free loopback ports, in the
// test's directory, with a clean-up that looks for what was left behind.
package fleetbustest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// startTimeout bounds the start of a server, stopTimeout its end.
const (
	startTimeout = 60 * time.Second
	stopTimeout  = 30 * time.Second
)

// Server is a running server of a test. Make it with Start or StartCluster.
type Server struct {
	*fleetbus.Server
	// Options it was made with; Options.Dir is its directory.
	Options fleetbus.Options

	t       testing.TB
	founded *fleetbus.Founded
	log     *logs
	cancel  context.CancelFunc
	done    chan error
}

// Start starts one node with a NATS listener on loopback. edit changes the
// options before.
func Start(t testing.TB, edit ...func(*fleetbus.Options)) *Server {
	t.Helper()
	return StartCluster(t, 1, edit...)[0]
}

// StartCluster starts n nodes of one fleet.
func StartCluster(t testing.TB, n int, edit ...func(*fleetbus.Options)) []*Server {
	t.Helper()
	audit(t)
	options := make([]fleetbus.Options, n)
	for i := range options {
		options[i] = Options(t, fmt.Sprintf("n%d", i+1))
		for _, e := range edit {
			e(&options[i])
		}
	}
	founded, err := fleetbus.InitCluster(options)
	if err != nil {
		t.Fatal(err)
	}
	servers := make([]*Server, n)
	for i, o := range options {
		servers[i] = launch(t, o, founded)
	}
	// One after the other, each would wait for those that are gone to take over what it
	// leads.
	t.Cleanup(func() {
		for _, s := range servers {
			s.cancel()
		}
	})
	for _, s := range servers {
		s.WaitReady()
	}
	return servers
}

// Options are those of a node with a NATS listener, on free loopback ports and in
// a directory of its own.
func Options(t testing.TB, name string) fleetbus.Options {
	t.Helper()
	return fleetbus.Options{
		Mode: fleetbus.Mesh, Name: name, Dir: filepath.Join(t.TempDir(), "data"), Advertise: "127.0.0.1",
		Listeners: []fleetbus.Listener{{Name: "nats", Addr: loopback.Addr(t), Protocol: fleetbus.NATS()}},
		Cluster:   fleetbus.Cluster{Addr: loopback.Addr(t)},
		Store:     fleetbus.Store{MaxFile: 1 << 30, MaxMemory: 256 << 20, Reserve: 1 << 20},
		Grace:     time.Second,
		// Verifying a password takes seconds on a machine that runs many tests at once.
		Limits: fleetbus.Limits{HandshakeTimeout: 15 * time.Second},
	}
}

// Launch starts a node whose home is made already, and waits until it is ready.
func Launch(t testing.TB, o fleetbus.Options, founded *fleetbus.Founded) *Server {
	t.Helper()
	s := launch(t, o, founded)
	s.WaitReady()
	return s
}

// Restart starts a server that was stopped again, with its options.
func (s *Server) Restart() *Server {
	s.t.Helper()
	return Launch(s.t, s.Options, s.founded)
}

func launch(t testing.TB, o fleetbus.Options, founded *fleetbus.Founded) *Server {
	t.Helper()
	s := &Server{Options: o, t: t, founded: founded, log: newLogs(t), done: make(chan error, 1)}
	o.Logger = slog.New(s.log).With("node", o.Name)
	var err error
	if s.Server, err = fleetbus.New(o); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	s.cancel = cancel
	go func() { s.done <- s.Run(ctx) }()
	t.Cleanup(func() {
		s.Stop()
		if errs := s.log.errors(); len(errs) > 0 {
			t.Errorf("node %s logged errors:\n%s", o.Name, strings.Join(errs, "\n"))
		}
	})
	return s
}

// WaitReady waits until the server is ready.
func (s *Server) WaitReady() {
	s.t.Helper()
	select {
	case <-s.Ready():
	case err := <-s.done:
		s.done <- err
		s.t.Fatalf("node %s did not start: %v", s.Options.Name, err)
	case <-time.After(startTimeout):
		s.t.Fatalf("node %s was not ready in %v", s.Options.Name, startTimeout)
	}
}

// Stop stops the server and waits for it. It may be called more than once.
func (s *Server) Stop() {
	s.t.Helper()
	s.cancel()
	select {
	case err := <-s.done:
		s.done <- err
		if err != nil {
			s.t.Errorf("node %s ended with: %v", s.Options.Name, err)
		}
	case <-time.After(stopTimeout):
		s.t.Fatalf("node %s did not stop in %v:\n%s", s.Options.Name, stopTimeout, stacks())
	}
}

// WaitStopped waits until the server has ended by itself, without an error.
func (s *Server) WaitStopped() {
	s.t.Helper()
	select {
	case err := <-s.done:
		s.done <- err
		if err != nil {
			s.t.Errorf("node %s ended with: %v", s.Options.Name, err)
		}
	case <-time.After(stopTimeout):
		s.t.Fatalf("node %s did not end in %v", s.Options.Name, stopTimeout)
	}
}

// ExpectError allows logged errors that contain text.
func (s *Server) ExpectError(text string) { s.log.expect(text) }

// URL is where NATS clients connect.
func (s *Server) URL() string { return "tls://" + s.Addr("nats").String() }

// TLS are settings that trust the fleet's authority.
func (s *Server) TLS() *tls.Config {
	s.t.Helper()
	pem, err := os.ReadFile(s.founded.CA)
	if err != nil {
		s.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}
}

// Founded is what was made with the fleet.
func (s *Server) Founded() *fleetbus.Founded { return s.founded }

// Connect connects over TLS with a creds file.
func (s *Server) Connect(creds string, opts ...nats.Option) (*nats.Conn, error) {
	s.t.Helper()
	for trust := s.TLS(); ; {
		nc, err := nats.Connect(s.URL(), append([]nats.Option{nats.Secure(trust), admin.UserCredentials(creds), nats.Timeout(startTimeout)}, opts...)...)
		// The authority may have been replaced since it was read.
		if now := s.TLS(); err != nil && !now.RootCAs.Equal(trust.RootCAs) {
			trust = now
			continue
		}
		return nc, err
	}
}

// Admin is the administrative API, as the admin that was made with the fleet.
func (s *Server) Admin() *admin.Client {
	s.t.Helper()
	nc, err := s.Connect(s.founded.AdminCreds)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return admin.New(nc)
}

// Creds makes account/name, and the account, if they are missing, and returns the
// path of a creds file of it.
func (s *Server) Creds(account, name string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), startTimeout)
	defer cancel()
	if _, err := s.Admin().AddAccount(ctx, admin.AccountRequest{Name: account}); err != nil {
		s.t.Fatal(err)
	}
	return s.MoreCreds(account, name)
}

// MoreCreds is Creds for an account that exists.
func (s *Server) MoreCreds(account, name string) string {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), startTimeout)
	defer cancel()
	public, seed, err := identity.NewUserKey()
	if err != nil {
		s.t.Fatal(err)
	}
	reply, err := s.Admin().AddUser(ctx, admin.UserRequest{Name: account + "/" + name, Key: public})
	if err != nil {
		s.t.Fatal(err)
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		s.t.Fatal(err)
	}
	path := filepath.Join(s.t.TempDir(), account+"-"+name+".creds")
	if err := os.WriteFile(path, creds, 0o600); err != nil {
		s.t.Fatal(err)
	}
	return path
}

// Dial connects as account/name, which is made if it is missing.
func (s *Server) Dial(account, name string, opts ...nats.Option) *nats.Conn {
	s.t.Helper()
	nc, err := s.Connect(s.Creds(account, name), opts...)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(nc.Close)
	return nc
}

// Stream makes a stream, as soon as the nodes that it is to be on can: an account that is
// new is not known to all of them at once.
func Stream(t testing.TB, js jetstream.JetStream, config jetstream.StreamConfig) (stream jetstream.Stream) {
	t.Helper()
	Eventually(t, "stream "+config.Name+" is made", func() (err error) {
		try, cancel := context.WithTimeout(t.Context(), 5*time.Second) // without a leader there is no answer
		defer cancel()
		stream, err = js.CreateStream(try, config)
		return err
	})
	return stream
}

// Problems are the findings of severity Problem.
func (s *Server) Problems() []doctor.Finding {
	ctx, cancel := context.WithTimeout(s.t.Context(), startTimeout)
	defer cancel()
	return slices.DeleteFunc(s.Check(ctx), func(f doctor.Finding) bool { return f.Severity != doctor.Problem })
}

// audit fails the test if it ends with more goroutines of this module or the
// engine than it began with.
func audit(t testing.TB) {
	before := ours()
	t.Cleanup(func() {
		deadline := time.Now().Add(10 * time.Second)
		for {
			left := ours()
			if len(left) <= len(before) {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%d goroutines were left behind, %d before:\n%s", len(left), len(before), strings.Join(left, "\n\n"))
				return
			}
			runtime.Gosched()
			<-time.After(20 * time.Millisecond)
		}
	})
}

// ours are the stacks of goroutines that a server starts, but for those in which the
// engine waits half a minute for the stream that another is to copy, whatever ends.
func ours() []string {
	var all []string
	for _, g := range strings.Split(stacks(), "\n\n") {
		if strings.Contains(g, "setupMirrorConsumer.func") || strings.Contains(g, "trySetupSourceConsumer.func") {
			continue
		}
		if strings.Contains(g, "nats-io/") || strings.Contains(g, "fleetbus.") && !strings.Contains(g, "testing.tRunner") {
			all = append(all, g)
		}
	}
	return all
}

func stacks() string {
	buf := make([]byte, 1<<22)
	return string(buf[:runtime.Stack(buf, true)])
}

// logs is a slog.Handler that keeps errors and passes the rest to the test.
type logs struct {
	slog.Handler
	shared *logsShared
}

type logsShared struct {
	mu      sync.Mutex
	errs    []string
	allowed []string
}

func newLogs(t testing.TB) *logs {
	return &logs{Handler: slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}), shared: &logsShared{}}
}

// Handle keeps an error and passes the line on.
func (l *logs) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool { text += " " + a.String(); return true })
		l.shared.mu.Lock()
		l.shared.errs = append(l.shared.errs, text)
		l.shared.mu.Unlock()
	}
	return l.Handler.Handle(ctx, r)
}

// WithAttrs keeps the errors together.
func (l *logs) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &logs{Handler: l.Handler.WithAttrs(attrs), shared: l.shared}
}

// WithGroup keeps the errors together.
func (l *logs) WithGroup(name string) slog.Handler {
	return &logs{Handler: l.Handler.WithGroup(name), shared: l.shared}
}

func (l *logs) expect(text string) {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	l.shared.allowed = append(l.shared.allowed, text)
}

func (l *logs) errors() []string {
	l.shared.mu.Lock()
	defer l.shared.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(l.shared.errs), func(e string) bool {
		return slices.ContainsFunc(l.shared.allowed, func(a string) bool { return strings.Contains(e, a) })
	})
}

// Eventually waits until done returns nil, for a minute at most.
func Eventually(t testing.TB, what string, done func() error) {
	t.Helper()
	await.Nil(t, what, done)
}
