package provision_test

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/provision"
	"github.com/fleetbus/fleetbus/provision/stranger"
)

func TestMain(m *testing.M) { await.Main(m) }

const account = "provisioning"

// tills gives whoever has a token of that label, and comes from here, an identity.
const tills = `{"rules": [{"name": "tills", "proof": "token", "token": "tills", "networks": ["127.0.0.0/8"], "account": "acme"}]}`

// A place is a fleet of one node, with a listener in clear for machines that nobody
// knows.
type place struct {
	*fleetbustest.Server
	t     testing.TB
	admin *admin.Client
}

func newPlace(t testing.TB, edit ...func(*fleetbus.Options)) *place {
	t.Helper()
	all := append([]func(*fleetbus.Options){func(o *fleetbus.Options) {
		o.Accounts = []string{account, "acme"}
		o.Listeners = append(o.Listeners, fleetbus.Listener{
			Name: "provision", Addr: "127.0.0.1:0", Protocol: &stranger.Protocol{}, Plaintext: true, Account: account,
		})
	}}, edit...)
	p := &place{Server: fleetbustest.Start(t, all...), t: t}
	p.admin = p.Admin()
	return p
}

// addr is where machines ask.
func (p *place) addr() string { return p.Addr("provision").String() }

// A desk is a provisioner that runs.
type desk struct {
	*provision.Station
	book *provision.Book
	live *provision.Live
	stop func()
}

// desk starts a provisioner with rules, by an administrator.
func (p *place) desk(rules string, edit ...func(*provision.Provisioner)) *desk {
	p.t.Helper()
	return p.deskBy(p.admin, rules, edit...)
}

func (p *place) deskBy(c *admin.Client, rules string, edit ...func(*provision.Provisioner)) *desk {
	t := p.t
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 2*time.Minute)
	defer cancel()
	station, err := provision.Join(ctx, c, account)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(p.URL(), append(station.Options(), nats.Secure(p.TLS()), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
		t.Errorf("the provisioner is told: %v", err)
	}))...)
	if err != nil {
		t.Fatal(err)
	}
	book, err := provision.OpenBook(ctx, nc, station.Replicas)
	if err != nil {
		t.Fatal(err)
	}
	d := &desk{Station: station, book: book, live: new(provision.Live)}
	d.set(t, rules)
	one := &provision.Provisioner{Station: station, Rules: d.live, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
	for _, e := range edit {
		e(one)
	}
	running, end := context.WithCancel(context.WithoutCancel(t.Context()))
	ready, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		if err := one.Run(running, nc, book, func() { close(ready) }); err != nil {
			t.Errorf("provisioning: %v", err)
		}
	}()
	d.stop = func() {
		end()
		<-done
		book.Close()
		nc.Close()
	}
	t.Cleanup(func() { d.stop() })
	select {
	case <-ready:
	case <-done:
		t.Fatal("the provisioner ended at once")
	}
	return d
}

func (d *desk) set(t testing.TB, rules string) {
	t.Helper()
	parsed, err := provision.ParseRules(strings.NewReader(rules))
	if err != nil {
		t.Fatal(err)
	}
	d.live.Set(parsed)
}

// token makes one, and returns its text.
func (d *desk) token(t testing.TB, label, name string, uses int) string {
	t.Helper()
	token, text, err := provision.NewToken(d.Pin, label, name, uses, time.Hour, time.Now())
	if err == nil {
		err = d.book.AddToken(t.Context(), token)
	}
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func newKeys(t testing.TB) *provision.Keys {
	t.Helper()
	k, err := provision.NewKeys()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// machine is one that asks with a token.
func (p *place) machine(name, token string) provision.Machine {
	return provision.Machine{Server: p.addr(), Name: name, Keys: newKeys(p.t), Token: token, Progress: func(g provision.Progress) {
		p.t.Logf("%s: %+v", name, g)
	}}
}

func soon(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// isMember fails unless the machine comes in as itself, over TLS, and may do what a
// machine may.
func isMember(t testing.TB, id *provision.Identity, full string) {
	t.Helper()
	if got := id.Account + "/" + id.Name; got != full {
		t.Errorf("the identity is of %s, not of %s", got, full)
	}
	nc, err := id.Connect(soon(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if err := nc.Publish("machine."+id.Name+".out.hello", nil); err != nil || nc.Flush() != nil || nc.LastError() != nil {
		t.Errorf("the machine may not speak: %v, %v", err, nc.LastError())
	}
}

// TestToken has a machine with a token get an identity over a connection in clear, and
// nobody else by that token.
func TestToken(t *testing.T) {
	p := newPlace(t)
	d := p.desk(tills)
	text := d.token(t, "tills", "", 1)
	m := p.machine("till-1", text)
	id, err := provision.Ask(soon(t), m)
	if err != nil {
		t.Fatal(err)
	}
	isMember(t, id, "acme/till-1")
	// The same request has the same answer, and the token is used once.
	if again, err := provision.Ask(soon(t), m); err != nil || again.Account+"/"+again.Name != "acme/till-1" {
		t.Errorf("asked again: %v, %v", again, err)
	}
	if _, err := provision.Ask(soon(t), p.machine("till-2", text)); !errors.Is(err, provision.ErrDenied) || !strings.Contains(err.Error(), "token has been used") {
		t.Errorf("the token is good twice: %v", err)
	}
	if all := d.book.Tokens(); len(all) != 1 || all[0].Used != 1 {
		t.Errorf("the tokens are %+v", all)
	}
}
