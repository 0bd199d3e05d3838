package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/internal/await"
)

// realm is the least identity an engine needs: an operator, the system account
// and one more.
type realm struct {
	operator     string
	system, acme nkeys.KeyPair
	sign         nkeys.KeyPair // the operator's
	accounts     map[string]string
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func public(t testing.TB, kp nkeys.KeyPair) string { return must[string](t)(kp.PublicKey()) }

func newRealm(t testing.TB) *realm {
	op := must[nkeys.KeyPair](t)(nkeys.CreateOperator())
	sign := must[nkeys.KeyPair](t)(nkeys.CreateOperator())
	r := &realm{sign: sign, accounts: map[string]string{}}
	r.system = must[nkeys.KeyPair](t)(nkeys.CreateAccount())
	r.acme = must[nkeys.KeyPair](t)(nkeys.CreateAccount())
	oc := jwt.NewOperatorClaims(public(t, op))
	oc.SigningKeys.Add(public(t, sign))
	oc.SystemAccount = public(t, r.system)
	r.operator = must[string](t)(oc.Encode(op))
	for name, kp := range map[string]nkeys.KeyPair{"SYS": r.system, "acme": r.acme} {
		ac := jwt.NewAccountClaims(public(t, kp))
		ac.Name = name
		if name == "acme" {
			ac.Limits.JetStreamLimits = jwt.JetStreamLimits{MemoryStorage: -1, DiskStorage: -1, Streams: -1, Consumer: -1}
		}
		r.accounts[public(t, kp)] = must[string](t)(ac.Encode(sign))
	}
	return r
}

func (r *realm) auth(t testing.TB, account nkeys.KeyPair) func() []nats.Option {
	return func() []nats.Option {
		user, token := r.user(t, account, false)
		return []nats.Option{nats.UserJWT(
			func() (string, error) { return token, nil },
			func(nonce []byte) ([]byte, error) { return user.Sign(nonce) },
		)}
	}
}

func (r *realm) user(t testing.TB, account nkeys.KeyPair, bearer bool) (user nkeys.KeyPair, token string) {
	user = must[nkeys.KeyPair](t)(nkeys.CreateUser())
	uc := jwt.NewUserClaims(public(t, user))
	uc.Name, uc.BearerToken = "test", bearer
	return user, must[string](t)(uc.Encode(account))
}

func (r *realm) options(t testing.TB, name, dir string, routes ...string) Options {
	return Options{
		Name: name, Operator: r.operator, SystemAccount: public(t, r.system), Accounts: r.accounts,
		AccountDir: filepath.Join(dir, "accounts"), StoreDir: filepath.Join(dir, "store"),
		MaxFile: 1 << 30, MaxMemory: 64 << 20, MaxConnections: 1000, MaxPayload: 1 << 20,
		HandshakeTimeout: 2 * time.Second, Grace: time.Second, System: r.auth(t, r.system),
		Logger:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})),
		Clients: &Endpoint{Addr: "127.0.0.1:0"},
		Cluster: &Cluster{Endpoint: Endpoint{Addr: "127.0.0.1:0"}, Name: "c1", Routes: routes},
	}
}

func start(t testing.TB, o Options) *Broker {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	began := time.Now()
	b, err := Start(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%s started in %v, leader %q, members %+v", o.Name, time.Since(began), b.Leader(), b.Members())
	t.Cleanup(func() { b.Stop(false) })
	return b
}

func (r *realm) js(t testing.TB, b *Broker) jetstream.JetStream {
	t.Helper()
	nc := must[*nats.Conn](t)(b.Connect(r.auth(t, r.acme)()...))
	t.Cleanup(nc.Close)
	return must[jetstream.JetStream](t)(jetstream.New(nc))
}

// eventually waits until done returns nil. Each try has two seconds.
func eventually(t testing.TB, what string, done func(context.Context) error) {
	t.Helper()
	await.Nil(t, what, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return done(ctx)
	})
}

func (r *realm) sys(t testing.TB, b *Broker) *nats.Conn {
	nc := must[*nats.Conn](t)(b.Connect(r.auth(t, r.system)()...))
	t.Cleanup(nc.Close)
	return nc
}

// publish stores n messages, each once, however often it has to ask.
func publish(t testing.TB, js jetstream.JetStream, n int) {
	t.Helper()
	for i := range n {
		id := nats.NewInbox()
		eventually(t, "an answer", func(ctx context.Context) error {
			_, err := js.Publish(ctx, "events.x", fmt.Appendf(nil, "%d", i), jetstream.WithMsgID(id))
			return err
		})
	}
}

func messages(t testing.TB, js jetstream.JetStream) uint64 {
	var n uint64
	eventually(t, "an answer", func(ctx context.Context) error {
		s, err := js.Stream(ctx, "EVENTS")
		if err != nil {
			return err
		}
		n = s.CachedInfo().State.Msgs
		return nil
	})
	return n
}

func members(b *Broker, n int) func(context.Context) error {
	return func(context.Context) error {
		if m := b.Members(); len(m) != n || b.Leader() == "" {
			return fmt.Errorf("members %+v leader %q", m, b.Leader())
		}
		return nil
	}
}

func TestGrowShrinkReplace(t *testing.T) {
	r := newRealm(t)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	o := r.options(t, "n1", dirs[0])
	o.Cluster.Found = true
	n1 := start(t, o)
	js := r.js(t, n1)
	eventually(t, "an answer", func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})
		return err
	})
	publish(t, js, 50)
	n1.Stop(true)

	n1 = start(t, o)
	js = r.js(t, n1)
	if got := messages(t, js); got != 50 {
		t.Fatalf("after a restart there are %d messages, want 50", got)
	}

	n2 := start(t, r.options(t, "n2", dirs[1], n1.RouteAddr().String()))
	eventually(t, "two members", members(n1, 2))
	n3 := start(t, r.options(t, "n3", dirs[2], n1.RouteAddr().String()))
	eventually(t, "three members", members(n1, 3))
	eventually(t, "an answer", func(ctx context.Context) error {
		_, err := js.UpdateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: 3})
		return err
	})
	eventually(t, "three replicas", func(ctx context.Context) error {
		s, err := js.Stream(ctx, "EVENTS")
		if err != nil {
			return err
		}
		ci := s.CachedInfo().Cluster
		if ci == nil || len(ci.Replicas) != 2 || !ci.Replicas[0].Current || !ci.Replicas[1].Current {
			return fmt.Errorf("%+v", ci)
		}
		return nil
	})
	publish(t, js, 50)
	if got := messages(t, r.js(t, n3)); got != 100 {
		t.Fatalf("on n3 there are %d messages, want 100", got)
	}

	// n3 dies, is removed and comes back with an empty disk under its name.
	n3.Stop(false)
	eventually(t, "n3 removed", func(ctx context.Context) error {
		return RemoveMember(ctx, r.sys(t, n1), "n3")
	})
	eventually(t, "two members", members(n1, 2))
	n3 = start(t, r.options(t, "n3.2", t.TempDir(), n1.RouteAddr().String()))
	eventually(t, "three members again", members(n1, 3))
	eventually(t, "three replicas again", func(ctx context.Context) error {
		js := r.js(t, n3)
		s, err := js.Stream(ctx, "EVENTS")
		if err != nil {
			return err
		}
		ci := s.CachedInfo().Cluster
		if ci == nil || len(ci.Replicas) != 2 || !ci.Replicas[0].Current || !ci.Replicas[1].Current {
			return fmt.Errorf("%+v %+v", ci.Leader, ci.Replicas)
		}
		return nil
	})

	// Two die for good; the third is rescued.
	n1.Stop(false)
	n2.Stop(false)
	sys := r.sys(t, n3)
	eventually(t, "rescued", func(ctx context.Context) error {
		return Rescue(ctx, sys)
	})
	eventually(t, "leader after rescue", func(context.Context) error {
		if !n3.IsLeader() {
			return fmt.Errorf("leader %q", n3.Leader())
		}
		return nil
	})
	for _, name := range []string{"n1", "n2"} {
		eventually(t, "dead one removed", func(ctx context.Context) error {
			return RemoveMember(ctx, sys, name)
		})
	}
	eventually(t, "one member", members(n3, 1))
	js = r.js(t, n3)
	eventually(t, "an answer", func(ctx context.Context) error {
		_, err := js.UpdateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: 1})
		return err
	})
	publish(t, js, 1)
	if got := messages(t, js); got != 101 {
		t.Fatalf("after the rescue there are %d messages, want 101", got)
	}
}

func TestStartFails(t *testing.T) {
	r := newRealm(t)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, edit := range map[string]func(*Options){
		"address already in use":           func(o *Options) { o.Clients.Addr = taken.Addr().String() },
		"listening on":                     func(o *Options) { o.Cluster.Addr = taken.Addr().String() },
		"decoding the operator":            func(o *Options) { o.Operator = "x" },
		"store":                            func(o *Options) { o.StoreDir = file },
		"looking into the store directory": func(o *Options) { o.StoreDir = filepath.Join(file, "x") },
		"t start JetStream":                func(o *Options) { o.Cluster, o.Clients, o.StoreDir = nil, nil, file },
		"clearing the account directory":   func(o *Options) { o.AccountDir = filepath.Join(file, "x") },
		"no answer":                        func(o *Options) { o.Cluster.TLS = &tls.Config{} },
		"configuring the engine":           func(o *Options) { o.SystemAccount = "A" },
	} {
		t.Run(want, func(t *testing.T) {
			before := runtime.NumGoroutine()
			o := r.options(t, "n1", t.TempDir())
			o.Logger = slog.New(slog.DiscardHandler)
			o.Cluster.Found = true
			edit(&o)
			ctx, cancel := context.WithTimeoutCause(t.Context(), 2*time.Second, errors.New("no answer"))
			defer cancel()
			if b, err := Start(ctx, o); err == nil {
				b.Stop(false)
				t.Error("it started")
			} else if !strings.Contains(err.Error(), want) {
				t.Errorf("the error is %q, want %q in it", err, want)
			}
			eventually(t, "nothing is left", func(context.Context) error {
				if n := runtime.NumGoroutine(); n > before+1 {
					return fmt.Errorf("%d goroutines, %d before", n, before)
				}
				return nil
			})
		})
	}
}

// TestFoundingInterrupted starts on what a founding leaves that was cut off.
func TestFoundingInterrupted(t *testing.T) {
	r := newRealm(t)
	dir := t.TempDir()
	o := r.options(t, "n1", dir)
	o.Cluster.Found = true
	if _, err := o.beginFounding(); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(o.StoreDir, "jetstream", "left"), 0o700); err != nil {
		t.Fatal(err)
	}
	b := start(t, o)
	if !b.IsLeader() || len(b.Members()) != 1 {
		t.Errorf("leader %q of %+v", b.Leader(), b.Members())
	}
	if _, err := os.Stat(filepath.Join(o.StoreDir, "jetstream", "left")); err == nil {
		t.Error("what the interrupted founding left is still there")
	}
}

// TestLocal opens no port and keeps its streams.
func TestLocal(t *testing.T) {
	r := newRealm(t)
	dir := t.TempDir()
	for want := range uint64(2) {
		o := r.options(t, "n1", dir)
		o.Cluster, o.Clients = nil, nil
		b := start(t, o)
		if b.Addr() != nil || b.RouteAddr() != nil {
			t.Errorf("it listens on %v and %v", b.Addr(), b.RouteAddr())
		}
		js := r.js(t, b)
		eventually(t, "a stream", func(ctx context.Context) error {
			_, err := js.CreateOrUpdateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}})
			return err
		})
		if got := messages(t, js); got != want {
			t.Errorf("there are %d messages, want %d", got, want)
		}
		publish(t, js, 1)
		b.Stop(true)
	}
}

// TestLateToken has the engine come with a token that it asked for before a newer one was
// stored: the newer one wins.
func TestLateToken(t *testing.T) {
	r := newRealm(t)
	b := start(t, r.options(t, "n1", t.TempDir()))
	public := public(t, r.acme)
	late, err := b.resolver.Fetch(public)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeAccountClaims(late)
	if err != nil {
		t.Fatal(err)
	}
	claims.Description = "newer"
	newer := must[string](t)(claims.Encode(r.sign))
	if err := b.StoreAccount(public, newer); err != nil {
		t.Fatal(err)
	}
	account, err := b.srv.LookupAccount(public)
	if err != nil {
		t.Fatal(err)
	}
	if err := updateAccount(b.srv, account, late); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the newer token is the engine's", func(context.Context) error {
		z, err := b.srv.Accountz(&server.AccountzOptions{Account: public})
		if err == nil && z.Account.Jwt != newer {
			err = errors.New("it is not")
		}
		return err
	})
}

// TestConnectionsOfStrangers lists connections while clients without a JWT come in: the
// engine writes into theirs what it does not guard.
func TestConnectionsOfStrangers(t *testing.T) {
	r := newRealm(t)
	o := r.options(t, "n1", t.TempDir())
	_, o.Sentinel = r.user(t, r.acme, true)
	b := start(t, o)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			if nc, err := nats.Connect("nats://"+b.Addr().String(), nats.UserInfo("some", "body")); err == nil {
				nc.Close()
			}
		}
	}()
	for listed := 0; ; listed++ {
		if _, err := b.Connections(""); err != nil {
			t.Fatal(err)
		}
		select {
		case <-done:
			t.Logf("listed %d times", listed)
			return
		default:
		}
	}
}
