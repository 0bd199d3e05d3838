package fleetbus_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// connectAs connects by a creds file as a user who is made for it.
func connectAs(t *testing.T, s *fleetbustest.Server, name, role string, opts ...nats.Option) (*nats.Conn, error) {
	t.Helper()
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := s.Admin().AddUser(limited(t, 10*time.Second), admin.UserRequest{Name: name, Role: role, Key: public})
	if err != nil {
		return nil, err
	}
	nc, err := nats.Connect(s.URL(), append([]nats.Option{
		nats.Secure(s.TLS()), nats.UserJWT(func() (string, error) { return reply.JWT, nil }, key.Sign), nats.NoReconnect(),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
	if err == nil {
		t.Cleanup(nc.Close)
	}
	return nc, err
}

// TestAuditorOfTheSystem hears who comes and goes in every account, and can do
// nothing else in the engine's own.
func TestAuditorOfTheSystem(t *testing.T) {
	s := fleetbustest.Start(t)
	eve, err := connectAs(t, s, "SYS/eve", "")
	if err != nil {
		t.Fatal(err)
	}
	events := hear(t, eve, "$SYS.ACCOUNT.*.CONNECT", "")
	alice := s.Dial("acme", "alice")
	var event struct {
		Client struct {
			Account string   `json:"acc"`
			Tags    []string `json:"tags"`
		} `json:"client"`
	}
	for strings.Join(event.Client.Tags, " ") != "name:alice role:client" {
		msg, err := events.NextMsgWithContext(limited(t, 10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal(msg.Data, &event); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"$SYS.REQ.SERVER.PING", "$SYS.REQ.CLAIMS.LIST", "$SYS.REQ.ACCOUNT.PING.STATZ", "$SYS.REQ.SERVER." + "x.KICK"} {
		if msg, err := eve.Request(subject, nil, 300*time.Millisecond); err == nil {
			t.Errorf("an auditor asked for %s: %s", subject, msg.Data)
		}
	}
	for _, subject := range []string{">", "$SYS.>", "$SYS.REQ.>", "_INBOX.>"} {
		sub := hear(t, eve, subject, "")
		if err := alice.Flush(); err != nil {
			t.Fatal(err)
		}
		silent(t, eve, sub, subject)
	}
	if _, err := connectAs(t, s, "SYS/mallory", "client"); err == nil {
		t.Error("a client of the engine's account")
	}
	if spread, err := s.Admin().DenyUser(limited(t, 10*time.Second), "SYS/eve"); err != nil || spread.Closed() != 1 {
		t.Errorf("the denial closed %+v: %v", spread, err)
	}
	fleetbustest.Eventually(t, "a denied auditor is out", func() error {
		if !eve.IsClosed() {
			return errors.New("it is in")
		}
		return nil
	})
}

// TestMetricsRole reads what its account uses, and nothing of what is in it.
func TestMetricsRole(t *testing.T) {
	s := fleetbustest.Start(t)
	alice := s.Dial("acme", "alice")
	m, err := connectAs(t, s, "acme/meter", identity.RoleMetrics, nats.CustomInboxPrefix("_INBOX.meter"))
	if err != nil {
		t.Fatal(err)
	}
	answer, err := m.Request("$SYS.REQ.ACCOUNT.PING.STATZ", nil, 10*time.Second)
	var stats struct {
		Data struct {
			Accounts []struct {
				Account string `json:"acc"`
				Conns   int    `json:"conns"`
			} `json:"account_statz"`
		} `json:"data"`
	}
	if err == nil {
		err = json.Unmarshal(answer.Data, &stats)
	}
	acme, err2 := s.Admin().Account(limited(t, 10*time.Second), "acme")
	if err := errors.Join(err, err2); err != nil || len(stats.Data.Accounts) != 1 || stats.Data.Accounts[0].Account != acme.Public || stats.Data.Accounts[0].Conns < 2 {
		t.Errorf("the metrics are %+v: %v", stats, err)
	}
	if answer, err := m.Request("$JS.API.STREAM.LIST", nil, 10*time.Second); err != nil || !strings.Contains(string(answer.Data), `"streams"`) {
		t.Errorf("the streams are %v: %v", answer, err)
	}
	heard := hear(t, alice, ">", "")
	sub := hear(t, m, "orders.>", "")
	if err := errors.Join(m.Publish("orders.x", nil), m.Flush(), alice.Publish("orders.y", nil)); err != nil {
		t.Fatal(err)
	}
	if msg, err := heard.NextMsgWithContext(limited(t, 10*time.Second)); err != nil || msg.Subject != "orders.y" {
		t.Errorf("alice heard %+v: %v", msg, err)
	}
	silent(t, m, sub, "metrics")
	for _, subject := range []string{"$JS.API.STREAM.CREATE.X", "$JS.API.STREAM.DELETE.X", "$JS.API.STREAM.MSG.GET.X"} {
		if _, err := m.Request(subject, []byte("{}"), 300*time.Millisecond); err == nil {
			t.Errorf("metrics asked for %s", subject)
		}
	}
}

// TestLeafIsNoClient has nobody given the credentials of a site's link but a site.
func TestLeafIsNoClient(t *testing.T) {
	s := fleetbustest.Start(t)
	s.Creds("acme", "alice")
	if _, err := connectAs(t, s, "acme/berlin", identity.RoleLeaf); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Errorf("a user has the role of a site's link: %v", err)
	}
}
