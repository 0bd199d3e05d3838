package target

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

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

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// withManagers runs managers of certificates that have no authority.
func withManagers(o *fleetbus.Options) {
	o.Accounts = []string{"acme"}
	o.CertManager = func(node string, key *cert.ManagerKey, log *slog.Logger) (fleetbus.Service, error) {
		return certmanager.New(certmanager.Options{Name: node, Logger: log, Key: func(context.Context) (*cert.ManagerKey, error) { return key, nil }})
	}
}

// join makes acme/lb-1 a target, which nobody invited into a group.
func join(t *testing.T, s *fleetbustest.Server) *Target {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "target")
	ctx := within(t)
	token := must(s.Admin().AddToken(ctx, admin.TokenRequest{Kind: identity.KindTarget, Account: "acme", Name: "lb-1"}))(t)
	var client *enroll.Client
	// A server that is slow to log in asks whether the client is still there, which the
	// library takes for an error.
	fleetbustest.Eventually(t, "a connection with the token", func() (err error) {
		client, err = enroll.Dial(ctx, enroll.Join{Host: s.Addr("nats").String(), Token: token.Text})
		return err
	})
	defer client.Close()
	key := must(nkeys.CreateUser())(t)
	reply := must(client.User(ctx, enroll.UserRequest{Key: must(key.PublicKey())(t)}))(t)
	creds := must(identity.CreateCreds(reply.JWT, must(key.Seed())(t)))(t)
	if err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	if err := write(CredsPath(dir), creds); err != nil {
		t.Fatal(err)
	}
	if Exists(dir) {
		t.Error("it is a target before it is written")
	}
	target := must(Write(dir, Settings{Name: reply.Name, Servers: []string{s.Addr("nats").String()}, Signer: reply.Signer}, reply.CA))(t)
	if !Exists(dir) || target.Enrolled() {
		t.Errorf("exists %v, enrolled %v", Exists(dir), target.Enrolled())
	}
	return target
}

func dial(s *fleetbustest.Server, t *Target) func(context.Context) (*nats.Conn, error) {
	return func(context.Context) (*nats.Conn, error) { return s.Connect(t.Creds()) }
}

// TestGroups has a target start before it is invited, between two invitations, and with
// the bus away.
func TestGroups(t *testing.T) {
	s := fleetbustest.Start(t, withManagers)
	target := join(t, s)
	admins := must(s.Connect(s.Founded().AdminCreds))(t)
	defer admins.Close()
	api := certmanager.NewAdminClient(admins, "acme")
	must(api.Targets(within(t), ""))(t) // managers start with the first request
	log := slog.New(slog.NewTextHandler(t.Output(), nil))

	nc := must(s.Connect(target.Creds()))(t)
	defer nc.Close()
	if err := target.Enroll(within(t), nc); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Fatalf("a target that nobody invited: %v", err)
	}
	pending := must(os.ReadFile(target.path(keyFile + ".new")))(t)
	started := make(chan error, 1)
	go func() { started <- target.AwaitGroup(within(t), log, dial(s, target)) }()
	must(api.AddTarget(within(t), "web", "lb-1"))(t)
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	key := must(target.Key())(t)
	secret := must(key.Seal.Bytes())(t)
	if !slices.Equal(key.Groups, []string{"web"}) || key.Account != "acme" || key.Name != "lb-1" || !slices.Equal(secret, pending) {
		t.Errorf("%v is in %q, and has the key it asked with: %v", key, key.Groups, slices.Equal(secret, pending))
	}
	if _, err := os.Stat(target.path(keyFile + ".new")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a copy of the key stays: %v", err)
	}

	// A group that comes later is taken at the next start.
	must(api.AddTarget(within(t), "mail", "lb-1"))(t)
	again := must(Open(target.Dir))(t)
	if err := again.AwaitGroup(within(t), log, dial(s, again)); err != nil {
		t.Fatal(err)
	}
	if key := must(again.Key())(t); !slices.Equal(key.Groups, []string{"mail", "web"}) || !slices.Equal(must(key.Seal.Bytes())(t), secret) {
		t.Errorf("it is in %q", key.Groups)
	}

	// The bus is away: it starts from what it has.
	s.Stop()
	away := must(Open(target.Dir))(t)
	if err := away.AwaitGroup(within(t), log, dial(s, away)); err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Open(must(away.Options(must(away.Key())(t), log))(t)); err != nil {
		t.Error(err)
	}
}

// TestAwaitGroupEnds has the start of a target that is in no group interrupted.
func TestAwaitGroupEnds(t *testing.T) {
	target := &Target{Settings: Settings{Name: "acme/lb-1"}, Dir: t.TempDir()}
	ctx, cancel := context.WithCancel(t.Context())
	away := errors.New("the bus is away")
	err := target.AwaitGroup(ctx, slog.New(slog.DiscardHandler), func(context.Context) (*nats.Conn, error) {
		cancel()
		return nil, away
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestRenewCreds renews credentials once half of their life is over, and not before.
func TestRenewCreds(t *testing.T) {
	s := fleetbustest.Start(t, withManagers)
	target := join(t, s)
	nc := must(s.Connect(target.Creds()))(t)
	defer nc.Close()
	first := must(os.ReadFile(target.Creds()))(t)
	issued, expires, err := identity.CredsLife(first)
	if err != nil {
		t.Fatal(err)
	}
	half := issued.Add(expires.Sub(issued) / 2)
	if err := target.renew(within(t), nc, half.Add(-time.Minute)); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(must(os.ReadFile(target.Creds()))(t), first) {
		t.Error("they were renewed in their first half")
	}
	var second []byte
	// What is issued in one second is the same.
	fleetbustest.Eventually(t, "other credentials", func() error {
		err := target.renew(within(t), nc, half.Add(time.Minute))
		if second = must(os.ReadFile(target.Creds()))(t); err == nil && slices.Equal(second, first) {
			err = errors.New("they are the same")
		}
		return err
	})
	if info := must(os.Stat(target.Creds()))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("their mode is %v", info.Mode())
	}
	must(s.Connect(target.Creds()))(t).Close()
	// Without the bus they stay what they are, and nothing is wrong.
	nc.Close()
	if err := target.renew(within(t), nc, half.Add(time.Minute)); err != nil || !slices.Equal(must(os.ReadFile(target.Creds()))(t), second) {
		t.Errorf("%v", err)
	}
}

// TestOpenDamaged opens directories that are none of a target, or are damaged.
func TestOpenDamaged(t *testing.T) {
	if _, err := Open(t.TempDir()); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("an empty directory: %v", err)
	}
	for text, want := range map[string]string{
		``:                   "unexpected end",
		`{"name": "acme/lb`:  "unexpected end",
		`[]`:                 "cannot unmarshal",
		`{"name": "acme"}`:   "acme",
		`{"name": "acme/a"}`: "no servers",
		`{"name": "acme/a", "servers": ["x:1"], "proxy": {"Kind": "apache", "Dir": "/x"}}`: "apache",
		`{"name": "acme/a", "servers": ["x:1"], "proxy": {"Kind": "nginx", "Dir": "x"}}`:   "absolute",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, settingsFile), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := Open(dir)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
}

func TestPrepare(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "target")
	if err := Prepare(dir); err != nil {
		t.Fatal(err)
	}
	if info := must(os.Stat(dir))(t); info.Mode().Perm()&0o066 != 0 {
		t.Errorf("others see what is in it: %v", info.Mode())
	}
}

// TestChoose chooses among programs of different users.
func TestChoose(t *testing.T) {
	run := func(pid int, kind, user, config, unit string) proxy.Found {
		return proxy.Found{Options: proxy.Options{Kind: kind, Config: config, Reload: proxy.Reload{Unit: unit}}, PID: pid, User: user}
	}
	nginx, mine := run(1, "nginx", "root", "", "nginx.service"), run(2, "nginx", "root", "/etc/mine.conf", "")
	haproxy, theirs := run(3, "haproxy", "root", "/etc/haproxy/haproxy.cfg", ""), run(4, "haproxy", "no-such-user", "/tmp/haproxy.cfg", "")
	caddy, cron := run(5, "caddy", "caddy", "", "caddy.service"), run(6, "caddy", "no-such-user", "", "cron.service")
	idle := run(0, "envoy", "", "", "")
	for _, c := range []struct {
		what           string
		said           proxy.Options
		found          []proxy.Found
		own, strangers []int
	}{
		{"nothing runs", proxy.Options{}, []proxy.Found{idle}, nil, nil},
		{"one runs", proxy.Options{}, []proxy.Found{nginx, idle}, []int{1}, nil},
		{"several run", proxy.Options{}, []proxy.Found{nginx, mine, haproxy}, []int{1, 2, 3}, nil},
		{"one of its kind", proxy.Options{Kind: "haproxy"}, []proxy.Found{nginx, haproxy}, []int{3}, nil},
		{"by its configuration", proxy.Options{Kind: "nginx", Config: "/etc/mine.conf"}, []proxy.Found{nginx, mine}, []int{2}, nil},
		{"by one that is not seen", proxy.Options{Kind: "nginx", Config: "/etc/nginx/nginx.conf"}, []proxy.Found{nginx, mine}, []int{1}, nil},
		{"a stranger's", proxy.Options{Kind: "haproxy"}, []proxy.Found{theirs}, nil, []int{4}},
		{"ours and a stranger's", proxy.Options{Kind: "haproxy"}, []proxy.Found{haproxy, theirs}, []int{3}, []int{4}},
		{"a stranger's that is named", proxy.Options{Kind: "haproxy", Config: "/tmp/haproxy.cfg"}, []proxy.Found{haproxy, theirs}, []int{4}, nil},
		{"a service's own user", proxy.Options{}, []proxy.Found{caddy, cron}, []int{5}, []int{6}},
		{"one that is installed", proxy.Options{Kind: "envoy"}, []proxy.Found{nginx, idle}, []int{0}, nil},
	} {
		own, strangers := Choose(c.said, c.found)
		if got := pids(own); !slices.Equal(got, c.own) {
			t.Errorf("%s: of ours %v, want %v", c.what, got, c.own)
		}
		if got := pids(strangers); !slices.Equal(got, c.strangers) {
			t.Errorf("%s: of strangers %v, want %v", c.what, got, c.strangers)
		}
	}
	if got := Describe(mine); got != "nginx of user root (process 2, /etc/mine.conf)" {
		t.Error(got)
	}
}

func pids(all []proxy.Found) []int {
	var out []int
	for _, f := range all {
		out = append(out, f.PID)
	}
	return out
}
