package provision_test

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/provision"
)

// asking is a machine that asks in the background.
type asking struct {
	done chan struct{}
	stop context.CancelFunc
	id   *provision.Identity
	err  error

	mu   sync.Mutex
	last provision.Progress
}

func ask(t testing.TB, m provision.Machine) *asking {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	a := &asking{done: make(chan struct{}), stop: cancel}
	m.Progress = func(p provision.Progress) {
		a.mu.Lock()
		defer a.mu.Unlock()
		a.last = p
	}
	go func() {
		defer close(a.done)
		a.id, a.err = provision.Ask(ctx, m)
	}()
	t.Cleanup(func() {
		cancel()
		<-a.done
	})
	return a
}

func (a *asking) result() (*provision.Identity, error) {
	<-a.done
	return a.id, a.err
}

// says waits until the machine is told something.
func (a *asking) says(t testing.TB, text string) provision.Progress {
	t.Helper()
	var p provision.Progress
	await.Nil(t, "the machine is told "+text, func() error {
		a.mu.Lock()
		defer a.mu.Unlock()
		if p = a.last; !strings.Contains(p.Reason, text) {
			return fmt.Errorf("it is told %q", p.Reason)
		}
		return nil
	})
	return p
}

const waiting = `{"rules": [{"name": "doors", "names": ["door-*"], "proof": "none", "account": "acme"}]}`

// TestApproval has two machines of one name wait, of which a person knows one by its
// code, and a third be denied.
func TestApproval(t *testing.T) {
	p := newPlace(t)
	d := p.desk(waiting)
	machine := func(name string) provision.Machine {
		m := p.machine(name, "")
		m.Pin, m.Facts = d.Pin, map[string]string{"rack": "7"}
		return m
	}
	right, wrong, other := ask(t, machine("door-1")), ask(t, machine("door-1")), ask(t, machine("door-2"))
	code := right.says(t, "waits for a person").Code
	wrong.says(t, "waits for a person")
	denied := other.says(t, "waits for a person").Code
	if all := d.book.Requests(); len(all) != 3 || all[0].State != provision.Waiting || all[0].Facts["rack"] != "7" || all[0].Address != "127.0.0.1" {
		t.Errorf("those who wait are %+v", all)
	}
	id, err := provision.ParseCode(code)
	if err != nil {
		t.Fatal(err)
	}
	approve := func(r *provision.Request) error {
		r.State, r.Account, r.Role = provision.Approved, "acme", identity.RoleMachine
		return nil
	}
	if _, err := d.book.Decide(soon(t), id, approve); err != nil {
		t.Fatal(err)
	}
	if _, err := d.book.Decide(soon(t), id, approve); !errors.Is(err, provision.ErrSettled) && !errors.Is(err, provision.ErrNotFound) {
		t.Errorf("it is decided twice: %v", err)
	}
	identityOf, err := right.result()
	if err != nil {
		t.Fatal(err)
	}
	isMember(t, identityOf, "acme/door-1")
	if id, err = provision.ParseCode(denied); err != nil {
		t.Fatal(err)
	}
	_, err = d.book.Decide(soon(t), id, func(r *provision.Request) error {
		r.State, r.Reason = provision.Denied, "it stands in the wrong hall"
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.result(); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "wrong hall") {
		t.Errorf("who was denied is told %v", err)
	}
	// Somebody approves the other one of that name, too: it is another's name by now.
	code = wrong.last.Code
	if id, err = provision.ParseCode(code); err != nil {
		t.Fatal(err)
	}
	if _, err := d.book.Decide(soon(t), id, approve); err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.result(); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "another's name") {
		t.Errorf("who wants the name of another machine is told %v", err)
	}
	if keys := p.users("acme")["door-1"]; len(keys) != 1 {
		t.Errorf("door-1 has %d keys", len(keys))
	}
	if _, err := provision.Ask(soon(t), machine("window-1")); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "no rule") {
		t.Errorf("a machine that fits no rule is told %v", err)
	}
}

// TestNames has a machine ask for the name of a user that exists: it gets nothing, and
// its token can be used for something better.
func TestNames(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	p.Creds("acme", "alice")
	before := p.users("acme")
	text := d.token(t, "tills", "", 1)
	if _, err := provision.Ask(soon(t), p.machine("alice", text)); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "another's name") {
		t.Errorf("a machine takes the name of a user: %v", err)
	}
	if after := p.users("acme"); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the users were %v and are %v", before, after)
	}
	if _, err := provision.Ask(soon(t), p.machine("till-1", text)); err != nil {
		t.Errorf("the token is lost: %v", err)
	}
	bound := d.token(t, "tills", "till-2", 1)
	if _, err := provision.Ask(soon(t), p.machine("till-3", bound)); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "another name") {
		t.Errorf("a token of one machine is another's: %v", err)
	}
	if err := d.book.RevokeToken(soon(t), d.book.Tokens()[1].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := provision.Ask(soon(t), p.machine("till-2", bound)); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("a token that is revoked is good: %v", err)
	}
	if _, err := provision.Ask(soon(t), p.machine("till-4", d.token(t, "doors", "", 1))); !errors.Is(err, provision.ErrDenied) {
		t.Errorf("a token of another label is good: %v", err)
	}
}

// TestRace has many machines use a token of a few uses at once, at two provisioners:
// as many as it is for get an identity.
func TestRace(t *testing.T) {
	const uses, machines = 3, 12
	p := newPlace(t)
	d := p.desk(tills)
	p.desk(tills)
	text := d.token(t, "tills", "", uses)
	var all []*asking
	for n := range machines {
		all = append(all, ask(t, p.machine(fmt.Sprintf("till-%d", n), text)))
	}
	good := 0
	for _, a := range all {
		if _, err := a.result(); err == nil {
			good++
		} else if !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "has been used") {
			t.Errorf("a machine is told %v", err)
		}
	}
	if users := p.users("acme"); good != uses || len(users) != uses {
		t.Errorf("%d machines have an identity and there are %d users, by a token for %d", good, len(users), uses)
	}
}

// signClaim makes a JWT.
func signClaim(t testing.TB, key ed25519.PrivateKey, claims map[string]any) string {
	t.Helper()
	part := func(v any) string {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		return base64.RawURLEncoding.EncodeToString(data)
	}
	message := part(map[string]string{"alg": "EdDSA", "typ": "JWT"}) + "." + part(claims)
	return message + "." + base64.RawURLEncoding.EncodeToString(ed25519.Sign(key, []byte(message)))
}

// TestClaim has machines show what a factory says of them.
func TestClaim(t *testing.T) {
	p := newPlace(t)
	factory, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	d := p.desk(`{"keys": {"factory": "` + base64.StdEncoding.EncodeToString(factory) + `"},
		"rules": [{"name": "pumps", "proof": "claim", "key": "factory", "claims": {"model": "pump"}, "account": "acme"}]}`)
	soonEnough := time.Now().Add(time.Hour).Unix()
	machine := func(name string, key ed25519.PrivateKey, claims map[string]any) provision.Machine {
		m := p.machine(name, "")
		m.Pin, m.Claim = d.Pin, signClaim(t, key, claims)
		return m
	}
	good := machine("pump-1", private, map[string]any{"sub": "pump-1", "model": "pump", "exp": soonEnough, "aud": d.Fleet})
	id, err := provision.Ask(soon(t), good)
	if err != nil {
		t.Fatal(err)
	}
	isMember(t, id, "acme/pump-1")
	stolen := p.machine("pump-1", "")
	stolen.Pin, stolen.Claim = d.Pin, good.Claim
	for want, m := range map[string]provision.Machine{
		"used by another machine":     stolen,
		"nobody whom the rules trust": machine("pump-2", stranger, map[string]any{"model": "pump", "exp": soonEnough}),
		"has expired":                 machine("pump-2", private, map[string]any{"model": "pump", "exp": time.Now().Add(-time.Hour).Unix()}),
		"or does not say":             machine("pump-2", private, map[string]any{"model": "pump"}),
		"another name":                machine("pump-2", private, map[string]any{"sub": "pump-3", "model": "pump", "exp": soonEnough}),
		"another fleet":               machine("pump-2", private, map[string]any{"aud": []string{"elsewhere"}, "model": "pump", "exp": soonEnough}),
		"does not hold yet":           machine("pump-2", private, map[string]any{"nbf": soonEnough, "model": "pump", "exp": soonEnough}),
		"no rule":                     machine("pump-2", private, map[string]any{"model": "fan", "exp": soonEnough}),
	} {
		if _, err := provision.Ask(soon(t), m); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), want) {
			t.Errorf("a claim of which %q is to be said: %v", want, err)
		}
	}
	if users := p.users("acme"); len(users) != 1 {
		t.Errorf("the users are %v", users)
	}
}

// script writes a program.
func script(t testing.TB, text string) []string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return []string{path}
}

// TestExec has programs decide, and fail to.
func TestExec(t *testing.T) {
	q := provision.Question{ID: "id", Name: "door-1", Address: "192.0.2.7", Rule: "doors"}
	for text, want := range map[string]string{
		`cat >/dev/null; echo '{"decision":"approve","account":"acme"}'`:        "",
		`grep -q '"name":"door-1"' && echo '{"decision":"deny","reason":"no"}'`: "",
		`exec sleep 600`: "gave no answer",
		`sleep 600 & echo '{"decision":"approve"}'; wait`:  "gave no answer",
		`echo 'no such till' >&2; exit 3`:                  `exit status 3: it said "no such till"`,
		`echo hello`:                                       "no decision",
		`echo '{"decision":"approve","as":"root"}'`:        "no decision",
		`echo '{"decision":"approve"}{"decision":"deny"}'`: "more in its answer",
		`exit 0`:                   "no decision",
		`head -c 100000 /dev/zero`: "more than",
		`echo '{"decision":"approve"}' && kill -9 $$`: "killed",
	} {
		hook := provision.Exec(script(t, text), 3*time.Second)
		d, err := hook(t.Context(), q)
		if want == "" && (err != nil || d.Decision == "") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %+v, %v", text, d, err)
		}
	}
	if _, err := provision.Exec([]string{"/nonexistent"}, time.Second)(t.Context(), q); err == nil {
		t.Error("a program that is not there decides")
	}
}

// TestHook has a hook decide, after it failed to: nobody is denied for that.
func TestHook(t *testing.T) {
	p := newPlace(t)
	var mu sync.Mutex
	answers := []string{"fail", "garbage", "nowhere", "fleet", "approve"}
	var asked []provision.Question
	d := p.desk(`{"rules": [{"name": "all", "proof": "none", "decide": "hook", "role": "machine"}]}`, func(o *provision.Provisioner) {
		o.Hook = func(_ context.Context, q provision.Question) (provision.Decision, error) {
			mu.Lock()
			defer mu.Unlock()
			asked = append(asked, q)
			answer := answers[0]
			if len(answers) > 1 {
				answers = answers[1:]
			}
			switch answer {
			case "fail":
				return provision.Decision{}, errors.New("it is out of order")
			case "garbage":
				return provision.Decision{Decision: "maybe"}, nil
			case "nowhere":
				return provision.Decision{Decision: provision.Approve}, nil
			case "fleet":
				return provision.Decision{Decision: provision.Approve, Account: identity.FleetName, Role: identity.RoleAdmin}, nil
			}
			return provision.Decision{Decision: provision.Approve, Account: "acme", Role: identity.RoleClient}, nil
		}
	})
	m := p.machine("door-1", "")
	m.Pin = d.Pin
	a := ask(t, m)
	id, err := a.result()
	if err != nil {
		t.Fatal(err)
	}
	if id.Account != "acme" || id.Role != identity.RoleClient || len(asked) != 5 || asked[0].Name != "door-1" || asked[0].Code == "" {
		t.Errorf("the identity is %+v, after the questions %+v", id, asked)
	}
}

// TestKilled has provisioners be killed in the middle of requests, and others go on:
// every machine has one identity.
func TestKilled(t *testing.T) {
	p := newPlace(t)
	first := p.desk(tills)
	text := first.token(t, "tills", "", 40)
	var all []*asking
	keys := map[string]string{}
	for n := range 40 {
		m := p.machine(fmt.Sprintf("till-%d", n), text)
		keys[m.Name] = public(m.Keys)
		all = append(all, ask(t, m))
		if n%10 == 9 {
			await.Nil(t, "some are granted", func() error {
				if len(first.book.Requests()) < n/2 {
					return errors.New("none yet")
				}
				return nil
			})
			next := p.desk(tills)
			first.stop()
			first.stop = func() {}
			first = next
		}
	}
	for _, a := range all {
		if _, err := a.result(); err != nil {
			t.Error(err)
		}
	}
	users := p.users("acme")
	for name, key := range keys {
		if got := users[name]; len(got) != 1 || got[0] != key {
			t.Errorf("%s has the keys %v and not %s", name, got, key)
		}
	}
	if tokens := first.book.Tokens(); len(users) != 40 || tokens[0].Used != 40 {
		t.Errorf("there are %d users, and the token has been used %d times", len(users), tokens[0].Used)
	}
}

// TestLeast has a provisioner without an administrator's credentials do its work, and
// nothing else.
func TestLeast(t *testing.T) {
	p := newPlace(t)
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := key.Seed()
	if err != nil {
		t.Fatal(err)
	}
	keyPublic, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := p.admin.AddUser(soon(t), admin.UserRequest{Name: "FLEET/desk", Role: identity.RoleProvisioner, Key: keyPublic})
	if err != nil {
		t.Fatal(err)
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "desk.creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	nc, err := p.Connect(file, nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	c := admin.New(nc)
	d := p.deskBy(c, tills)
	if _, err := provision.Ask(soon(t), p.machine("till-1", d.token(t, "tills", "", 1))); err != nil {
		t.Fatal(err)
	}
	p.Creds("acme", "alice")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := c.Users(ctx, "acme"); err == nil {
		t.Error("a provisioner may list users")
	}
	for want, r := range map[string]admin.ProvisionRequest{
		"another's name":        {Name: "acme/alice", Role: "client", Key: public(newKeys(t)), CSR: "x"},
		"in account":            {Name: "FLEET/eve", Role: "admin", Key: public(newKeys(t)), CSR: "x"},
		"no machine gets":       {Name: "acme/eve", Role: "certmanager", Key: public(newKeys(t)), CSR: "x"},
		"a certificate request": {Name: "acme/eve", Role: "client", Key: public(newKeys(t))},
	} {
		if _, err := c.Provision(soon(t), r); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("a provisioner may have %+v made: %v", r, err)
		}
	}
}
