package fleetbus_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/provision/stranger"
)

// TestOpenAtSite has a site let in whoever is there without credentials: in the account of
// its link, and nowhere else, neither there nor at the hub.
func TestOpenAtSite(t *testing.T) {
	hub, _ := startHub(t)
	alice, eve := hub.Creds("acme", "alice"), hub.Creds("evil", "eve")
	o, err := joinSite(t, hub, "berlin", siteToken(t, hub, "acme", "berlin"))
	if err != nil {
		t.Fatal(err)
	}
	open := fleetbus.Listener{Name: "open", Addr: "127.0.0.1:0", Protocol: &stranger.Protocol{Open: true}, Plaintext: true, Account: "acme", Role: "client"}
	o.Listeners = append(o.Listeners, open)
	site := launchSite(t, o)
	waitSite(t, hub, "berlin", admin.SiteLinked)
	atHub, others := dial(t, hub, alice), dial(t, hub, eve)
	nc, err := nats.Connect("nats://"+site.Addr("open").String(), nats.NoReconnect(), nats.Timeout(time.Minute),
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	passes(t, nc, atHub, "machines.1")
	passes(t, atHub, nc, "orders.new")
	for _, to := range []*nats.Conn{atHub, others} {
		js, err := jetstream.New(to)
		if err == nil {
			_, err = js.CreateStream(limited(t, 20*time.Second), jetstream.StreamConfig{Name: "VAULT", Subjects: []string{"kept.>"}})
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	heard := hear(t, others, ">", "")
	mine, err := nc.SubscribeSync("secret.>")
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, subject := range []string{"kept.x", "time", "$SYS.REQ.SERVER.PING", "$SYS.ACCOUNT.x", "$FLEET.x", "$FLEETBUS.x", "admin.status"} {
		if err := errors.Join(nc.Publish(subject, nil), others.Publish("secret."+subject, nil)); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"$SYS.REQ.SERVER.PING", "$SYS.REQ.ACCOUNT.x.CONNZ", "admin.by.admin.status", "renew.x"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		m, err := nc.RequestWithContext(ctx, subject, nil)
		cancel()
		if err == nil {
			t.Errorf("%s is answered: %s", subject, m.Data)
		}
	}
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	// The hub's streams are asked for by who is at the hub.
	if _, err := js.Stream(limited(t, 20*time.Second), "VAULT"); err == nil {
		t.Error("it reads a stream of the hub")
	}
	passes(t, nc, atHub, "machines.end")
	if m, err := mine.NextMsg(100 * time.Millisecond); err == nil {
		t.Errorf("it hears %s of another account", m.Subject)
	}
	for {
		m, err := heard.NextMsg(100 * time.Millisecond)
		if err != nil {
			break
		}
		if m.Subject == "kept.x" || m.Subject == "time" {
			t.Errorf("another account hears %s", m.Subject)
		}
	}
	if info, err := hub.Admin().Account(limited(t, 20*time.Second), "evil"); err != nil || info.Name != "evil" {
		t.Errorf("the hub has %+v, %v", info, err)
	}
}
