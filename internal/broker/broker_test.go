package broker

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"
)

// realm is the least identity an engine needs: an operator, the system account
// and one more.
type realm struct {
	operator     string
	system, acme nkeys.KeyPair
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
	r := &realm{accounts: map[string]string{}}
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
		user := must[nkeys.KeyPair](t)(nkeys.CreateUser())
		uc := jwt.NewUserClaims(public(t, user))
		uc.Name = "test"
		token := must[string](t)(uc.Encode(account))
		return []nats.Option{nats.UserJWT(
			func() (string, error) { return token, nil },
			func(nonce []byte) ([]byte, error) { return user.Sign(nonce) },
		)}
	}
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

func eventually(t testing.TB, what string, done func() error) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	began := time.Now()
	for {
		err := done()
		if err == nil {
			t.Logf("%s: %v", what, time.Since(began))
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func (r *realm) sys(t testing.TB, b *Broker) *nats.Conn {
	nc := must[*nats.Conn](t)(b.Connect(r.auth(t, r.system)()...))
	t.Cleanup(nc.Close)
	return nc
}

func publish(t testing.TB, js jetstream.JetStream, n int) {
	t.Helper()
	for i := range n {
		eventually1(t, func(ctx context.Context) error {
			_, err := js.Publish(ctx, "events.x", fmt.Appendf(nil, "%d", i))
			return err
		})
	}
}

func eventually1(t testing.TB, do func(context.Context) error) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		err := do(ctx)
		cancel()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

func messages(t testing.TB, js jetstream.JetStream) uint64 {
	var n uint64
	eventually1(t, func(ctx context.Context) error {
		s, err := js.Stream(ctx, "EVENTS")
		if err != nil {
			return err
		}
		n = s.CachedInfo().State.Msgs
		return nil
	})
	return n
}

func members(b *Broker, n int) func() error {
	return func() error {
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
	eventually1(t, func(ctx context.Context) error {
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
	eventually1(t, func(ctx context.Context) error {
		_, err := js.UpdateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: 3})
		return err
	})
	eventually(t, "three replicas", func() error {
		s, err := js.Stream(t.Context(), "EVENTS")
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
	eventually(t, "n3 removed", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		return RemoveMember(ctx, r.sys(t, n1), "n3")
	})
	eventually(t, "two members", members(n1, 2))
	n3 = start(t, r.options(t, "n3.2", t.TempDir(), n1.RouteAddr().String()))
	eventually(t, "three members again", members(n1, 3))
	eventually(t, "three replicas again", func() error {
		js := r.js(t, n3)
		s, err := js.Stream(t.Context(), "EVENTS")
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
	eventually(t, "rescued", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		return Rescue(ctx, sys)
	})
	eventually(t, "leader after rescue", func() error {
		if !n3.IsLeader() {
			return fmt.Errorf("leader %q", n3.Leader())
		}
		return nil
	})
	for _, name := range []string{"n1", "n2"} {
		eventually(t, "dead one removed", func() error {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			return RemoveMember(ctx, sys, name)
		})
	}
	eventually(t, "one member", members(n3, 1))
	js = r.js(t, n3)
	eventually1(t, func(ctx context.Context) error {
		_, err := js.UpdateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: 1})
		return err
	})
	publish(t, js, 1)
	if got := messages(t, js); got != 101 {
		t.Fatalf("after the rescue there are %d messages, want 101", got)
	}
}
