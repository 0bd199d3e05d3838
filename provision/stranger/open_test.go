package stranger_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/provision/stranger"
)

// startOpen starts a node with a listener in clear that asks for nothing.
func startOpen(t *testing.T, role string) *fleetbustest.Server {
	t.Helper()
	return fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"floor", "acme"}
		o.Listeners = append(o.Listeners, fleetbus.Listener{
			Name: "open", Addr: "127.0.0.1:0", Protocol: &stranger.Protocol{Open: true}, Plaintext: true, Account: "floor", Role: role,
		})
	})
}

// anyone connects to it.
func anyone(s *fleetbustest.Server, opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("nats://"+s.Addr("open").String(), append([]nats.Option{
		nats.NoReconnect(), nats.Timeout(time.Minute), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
}

func soon(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// TestOpen has a client of NATS come in without credentials, or with any: it is in the
// account of the listener, with all that is there, and nothing else is to be had.
func TestOpen(t *testing.T) {
	s := startOpen(t, "client")
	alice := s.Creds("acme", "alice")
	inside, theirs := s.Dial("floor", "host"), s.Dial("acme", "alice")
	js, err := jetstream.New(theirs)
	if err == nil {
		_, err = js.CreateStream(soon(t), jetstream.StreamConfig{Name: "VAULT", Subjects: []string{"kept.>"}, AllowDirect: true})
	}
	if err == nil {
		_, err = js.Publish(soon(t), "kept.x", []byte("secret"))
	}
	if err != nil {
		t.Fatal(err)
	}
	heard, err := theirs.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := theirs.Subscribe("time", func(m *nats.Msg) { _ = m.Respond([]byte("secret")) }); err != nil {
		t.Fatal(err)
	}
	if err := theirs.Flush(); err != nil {
		t.Fatal(err)
	}
	for what, opts := range map[string][]nats.Option{
		"nothing":      nil,
		"a password":   {nats.UserInfo("acme/alice", "secret")},
		"a creds file": {nats.UserCredentials(alice)},
	} {
		nc, err := anyone(s, opts...)
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		got, err := inside.SubscribeSync("machine.>")
		if err == nil {
			err = inside.Flush()
		}
		if err == nil {
			err = nc.Publish("machine.1", []byte("here"))
		}
		if err != nil {
			t.Fatal(err)
		}
		if m, err := got.NextMsgWithContext(soon(t)); err != nil || string(m.Data) != "here" {
			t.Errorf("%s: its own account hears %v, %v", what, m, err)
		}
		_ = got.Unsubscribe()
		all, err := nc.SubscribeSync(">")
		if err != nil {
			t.Fatal(err)
		}
		for _, subject := range []string{"$SYS.>", "$SYS.ACCOUNT.*.CONNECT", identity.Private + ">"} {
			if _, err := nc.SubscribeSync(subject); err != nil {
				t.Fatal(err)
			}
		}
		for _, subject := range []string{"kept.x", "time", "$SYS.REQ.SERVER.PING", "$FLEET.renew", "$FLEETBUS.MQTT.msg.x", "admin.status", "ledger.user.floor.eve"} {
			if err := nc.Publish(subject, []byte("planted")); err != nil {
				t.Fatal(err)
			}
		}
		for _, subject := range []string{"time", "$SYS.REQ.SERVER.PING", "$SYS.REQ.USER.INFO.x", "$JS.API.STREAM.INFO.VAULT", "$JS.API.DIRECT.GET.VAULT", "admin.by.alice.status"} {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			m, err := nc.RequestWithContext(ctx, subject, nil)
			cancel()
			if err == nil && !strings.Contains(string(m.Data), "stream not found") {
				t.Errorf("%s: %s is answered: %s", what, subject, m.Data)
			}
		}
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.Stream(soon(t), "VAULT"); !errors.Is(err, jetstream.ErrStreamNotFound) {
			t.Errorf("%s: a stream of another account: %v", what, err)
		}
		if _, err := js.CreateOrUpdateStream(soon(t), jetstream.StreamConfig{Name: "OWN", Sources: []*jetstream.StreamSource{{Name: "VAULT"}}}); err != nil {
			t.Errorf("%s: a stream of its own: %v", what, err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		for {
			m, err := all.NextMsg(20 * time.Millisecond)
			if err != nil {
				break
			}
			if strings.Contains(string(m.Data), "secret") {
				t.Errorf("%s: it hears %s", what, m.Subject)
			}
		}
		nc.Close()
	}
	if err := theirs.Publish("end", []byte("end")); err != nil {
		t.Fatal(err)
	}
	for {
		m, err := heard.NextMsgWithContext(soon(t))
		if err != nil {
			t.Fatal(err)
		}
		if string(m.Data) == "planted" {
			t.Errorf("the other account hears %s", m.Subject)
		}
		if m.Subject == "end" {
			break
		}
	}
	if own, err := js.Stream(soon(t), "OWN"); err == nil {
		t.Errorf("the other account has the stream %v", own.CachedInfo().Config.Name)
	}
	if found := s.Check(soon(t)); !slices.ContainsFunc(found, func(f doctor.Finding) bool { return f.Code == "OPEN-LISTENER" }) {
		t.Errorf("it is no finding: %v", found)
	}
}

// TestOpenIsIsolated has the account of the listener exchange messages with another one:
// nobody comes in any more.
func TestOpenIsIsolated(t *testing.T) {
	s := startOpen(t, "client")
	nc, err := anyone(s)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if _, err := s.Admin().AddExport(soon(t), admin.ExportRequest{Account: "floor", Subject: "orders.>", To: []string{"acme"}}); err != nil {
		t.Fatal(err)
	}
	if nc, err := anyone(s); err == nil {
		nc.Close()
		t.Error("a stranger came in where messages leave the account")
	}
}

// TestOpenRole has the listener give a role that does not exist, and one that is bound to
// another listener.
func TestOpenRole(t *testing.T) {
	s := startOpen(t, "sensor")
	if nc, err := anyone(s); err == nil {
		nc.Close()
		t.Error("a stranger came in with a role that does not exist")
	}
	role := identity.Role{Name: "sensor", Permissions: identity.Permissions{Publish: identity.Rule{Allow: []string{"machine.>"}}}, Listeners: []string{"nats"}}
	add := func() {
		t.Helper()
		if _, err := s.Admin().AddRole(soon(t), role); err != nil {
			t.Fatal(err)
		}
	}
	add()
	if nc, err := anyone(s); err == nil {
		nc.Close()
		t.Error("a stranger came in with a role of another listener")
	}
	role.Listeners = nil
	add()
	host := s.Dial("floor", "host")
	heard, err := host.SubscribeSync(">")
	if err == nil {
		err = host.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	nc, err := anyone(s)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for _, subject := range []string{"orders", "machine.1"} {
		if err := nc.Publish(subject, nil); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := heard.NextMsgWithContext(soon(t)); err != nil || m.Subject != "machine.1" {
		t.Errorf("heard %v, %v: the role allows machine.1 alone", m, err)
	}
}
