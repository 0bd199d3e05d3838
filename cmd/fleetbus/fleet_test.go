package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/broker"
)

// A testFleet is a real engine with real identities, in front of which a test
// plays the administrative service.
type testFleet struct {
	authority *identity.Authority
	accounts  map[string]identity.Account
	broker    *broker.Broker
	// dir is a data directory as a running server has it.
	dir    string
	server string

	mu       sync.Mutex
	answers  map[string]func(request []byte) admin.Reply
	requests map[string]json.RawMessage
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

func writeFile(t testing.TB, path string, data []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func newTestFleet(t *testing.T) *testFleet {
	now := time.Now()
	f := &testFleet{dir: filepath.Join(t.TempDir(), "data"), answers: map[string]func([]byte) admin.Reply{}, requests: map[string]json.RawMessage{}}
	var err error
	if f.authority, _, err = identity.NewAuthority("test", now); err != nil {
		t.Fatal(err)
	}
	f.accounts = map[string]identity.Account{
		identity.SystemName: must[identity.Account](t)(f.authority.SystemAccount(now)),
		identity.FleetName:  must[identity.Account](t)(f.authority.FleetAccount(now)),
		"acme":              must[identity.Account](t)(f.authority.NewAccount("acme", identity.Limits{}, now)),
	}
	tokens := map[string]string{}
	for _, account := range f.accounts {
		tokens[account.Public] = must[string](t)(f.authority.AccountJWT(account, identity.BuiltinRoles(), nil, identity.Flows{}, now))
	}
	stores := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	f.broker, err = broker.Start(ctx, broker.Options{
		Name: "n1", Operator: f.authority.EngineOperator(), SystemAccount: f.accounts[identity.SystemName].Public, Accounts: tokens,
		AccountDir: filepath.Join(stores, "accounts"), StoreDir: filepath.Join(stores, "store"),
		MaxFile: 1 << 30, MaxMemory: 64 << 20, MaxConnections: 1000, MaxPayload: 1 << 20,
		HandshakeTimeout: 5 * time.Second, Grace: time.Second,
		System:  func() []nats.Option { return f.service(t, identity.SystemName) },
		Logger:  slog.New(slog.DiscardHandler),
		Clients: &broker.Endpoint{Addr: "127.0.0.1:0", TLS: f.tls(t)},
		Cluster: &broker.Cluster{Endpoint: broker.Endpoint{Addr: "127.0.0.1:0"}, Name: "c1", Found: true},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.broker.Stop(false) })
	f.server = f.broker.Addr().String()

	nc := must[*nats.Conn](t)(f.broker.Connect(f.service(t, identity.FleetName)...))
	t.Cleanup(nc.Close)
	must[*nats.Subscription](t)(nc.Subscribe(admin.Prefix+">", f.answer))
	if err := nc.FlushTimeout(10 * time.Second); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(f.dir, "admin", "admin.creds"), f.creds(t, identity.FleetName, identity.RoleAdmin))
	writeFile(t, filepath.Join(f.dir, "admin", "ca.pem"), f.authority.ClientsPEM())
	writeFile(t, filepath.Join(f.dir, "run.json"), fmt.Appendf(nil, `{"pid":1,"listeners":{"nats":%q}}`, f.server))
	return f
}

// tls is the listener's configuration.
func (f *testFleet) tls(t *testing.T) *tls.Config {
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := f.authority.SignNode(must[*x509.CertificateRequest](t)(identity.NewCSR(key)), "n1", []string{"127.0.0.1"}, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	der := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(key))
	cert := must[tls.Certificate](t)(tls.X509KeyPair(chain, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: f.authority.ClientRoots(),
	}
}

// service authenticates a connection that may do everything in an account.
func (f *testFleet) service(t *testing.T, account string) []nats.Option {
	all := identity.Rule{Allow: []string{">"}}
	token, key, err := f.authority.ServiceCredentials(f.accounts[account], identity.Principal{
		Account: account, Name: "service", Kind: identity.KindService, Permissions: identity.Permissions{Publish: all, Subscribe: all},
	}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return []nats.Option{nats.UserJWT(func() (string, error) { return token, nil }, key.Sign)}
}

// creds are those of a user with a built-in role.
func (f *testFleet) creds(t *testing.T, account, role string) []byte {
	key := must[nkeys.KeyPair](t)(nkeys.CreateUser())
	token := must[string](t)(f.userJWT(account, role, must[string](t)(key.PublicKey())))
	return must[[]byte](t)(identity.CreateCreds(token, must[[]byte](t)(key.Seed())))
}

func (f *testFleet) userJWT(account, role, public string) (string, error) {
	for _, r := range identity.BuiltinRoles() {
		if r.Name == role {
			return f.authority.UserJWT(f.accounts[account], r, "user", public, time.Now().Add(time.Hour))
		}
	}
	return "", fmt.Errorf("no role %q", role)
}

// answer plays the administrative service.
func (f *testFleet) answer(msg *nats.Msg) {
	_, name := admin.ParseSubject(msg.Subject)
	f.mu.Lock()
	f.requests[name] = msg.Data
	answer, ok := f.answers[name]
	f.mu.Unlock()
	reply := admin.Reply{Error: admin.Errorf(admin.NotFound, "fleetbus account ls", "no such thing")}
	if ok {
		reply = answer(msg.Data)
	}
	// What a test answers with can be encoded, and a lost answer fails the test.
	data, _ := json.Marshal(reply)
	_ = msg.Respond(data)
}

// answerWith makes v, or an *admin.Error, the answer to the request of that name.
func (f *testFleet) answerWith(t *testing.T, name string, v any) {
	reply := admin.Reply{}
	if refused, ok := v.(*admin.Error); ok {
		reply.Error = refused
	} else {
		reply.Data = must[[]byte](t)(json.Marshal(v))
	}
	f.answerBy(name, func([]byte) admin.Reply { return reply })
}

// answerBy makes answer answer the request of that name.
func (f *testFleet) answerBy(name string, answer func(request []byte) admin.Reply) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[name] = answer
}

// asked decodes the last request of that name.
func asked[T any](t *testing.T, f *testFleet, name string) (v T) {
	t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := json.Unmarshal(f.requests[name], &v); err != nil {
		t.Fatalf("request %q: %v", name, err)
	}
	return v
}

// run runs one command line on the machine of the node.
func (f *testFleet) run(t *testing.T, stdin string, env []string, args ...string) (code command.ExitCode, stdout, stderr string) {
	t.Helper()
	a, out, errs := testApp(stdin, append(env, "FLEETBUS_DATA_DIR="+f.dir)...)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	code = run(ctx, a, args)
	return code, out.String(), errs.String()
}

// pipe is a stream on which a test waits for a text.
type pipe struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	more chan struct{}
}

func newPipe() *pipe { return &pipe{more: make(chan struct{}, 1)} }

func (p *pipe) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case p.more <- struct{}{}:
	default:
	}
	return p.buf.Write(data)
}

func (p *pipe) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.buf.String()
}

// wait returns once text has been written.
func (p *pipe) wait(t *testing.T, text string) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for !strings.Contains(p.String(), text) {
		select {
		case <-p.more:
		case <-deadline:
			t.Fatalf("waiting for %q, got %q", text, p.String())
		}
	}
}

// A running command line.
type running struct {
	stdout, stderr *pipe
	cancel         context.CancelFunc
	done           chan command.ExitCode
}

// start begins a command line with the credentials of a user.
func (f *testFleet) start(t *testing.T, creds string, args ...string) *running {
	a, _, _ := testApp("", "FLEETBUS_DATA_DIR="+f.dir, "FLEETBUS_CREDS="+creds)
	r := &running{stdout: newPipe(), stderr: newPipe(), done: make(chan command.ExitCode, 1)}
	a.Stdout, a.Stderr = r.stdout, r.stderr
	var ctx context.Context
	ctx, r.cancel = context.WithCancel(t.Context())
	t.Cleanup(r.cancel)
	go func() { r.done <- run(ctx, a, args) }()
	return r
}

// end waits until it has ended, and returns its exit code.
func (r *running) end(t *testing.T) command.ExitCode {
	t.Helper()
	select {
	case code := <-r.done:
		return code
	case <-time.After(30 * time.Second):
		t.Fatalf("the command does not end; it wrote %q", r.stderr)
		return command.ExitFailed
	}
}
