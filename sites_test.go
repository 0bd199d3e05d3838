package fleetbus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// A wire is the network between a hub and its sites, which can be cut.
type wire struct {
	ln net.Listener

	mu    sync.Mutex
	to    string // "" while it is cut
	conns []net.Conn
}

func newWire(t *testing.T) *wire {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{ln: ln}
	t.Cleanup(func() { ln.Close(); w.cut() })
	go func() {
		for {
			near, err := ln.Accept()
			if err != nil {
				return
			}
			w.mu.Lock()
			to := w.to
			w.mu.Unlock()
			far, err := net.Dial("tcp", to)
			if to == "" || err != nil {
				near.Close()
				continue
			}
			w.mu.Lock()
			w.conns = append(w.conns, near, far)
			w.mu.Unlock()
			go func() { io.Copy(near, far); near.Close() }()
			go func() { io.Copy(far, near); far.Close() }()
		}
	}()
	return w
}

func (w *wire) join(to string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.to = to
}

func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
	w.to, w.conns = "", nil
}

// startHub starts a node with a listener for sites, behind a wire.
func startHub(t *testing.T) (*fleetbustest.Server, *wire) {
	t.Helper()
	w := newWire(t)
	hub := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "leaf", Addr: "127.0.0.1:0", Advertise: w.ln.Addr().String(), Protocol: fleetbus.Leaf()})
	})
	w.join(hub.Addr("leaf").String())
	hub.Creds("acme", "admin")
	return hub, w
}

// siteToken is a token for a site, once the hub knows that it has a listener.
func siteToken(t *testing.T, hub *fleetbustest.Server, account, name string, networks ...string) string {
	t.Helper()
	var reply admin.TokenReply
	fleetbustest.Eventually(t, "the listener for sites is known", func() (err error) {
		reply, err = hub.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindLeaf, Account: account, Name: name, Networks: networks})
		if errors.Is(err, &admin.Error{Code: admin.Unavailable}) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		return nil
	})
	return reply.Text
}

// joinSite makes the home of a site, with the options of a node.
func joinSite(t *testing.T, hub *fleetbustest.Server, name, token string) (fleetbus.Options, error) {
	t.Helper()
	o := fleetbustest.Options(t, name)
	client, err := enroll.Dial(limited(t, 10*time.Second), enroll.Join{Host: hub.Addr("nats").String(), Token: token})
	if err != nil {
		return o, err
	}
	defer client.Close()
	_, err = fleetbus.EnrollSite(o, name, func(r enroll.LeafRequest) (enroll.LeafReply, error) {
		return client.Leaf(limited(t, 10*time.Second), r)
	})
	return o, err
}

func launchSite(t *testing.T, o fleetbus.Options) *fleetbustest.Server {
	t.Helper()
	return fleetbustest.Launch(t, o, &fleetbus.Founded{
		AdminCreds: filepath.Join(o.Dir, "admin", "admin.creds"), CA: filepath.Join(o.Dir, "admin", "ca.pem"),
	})
}

// startSite joins a site of account acme to hub and starts it.
func startSite(t *testing.T, hub *fleetbustest.Server, name string) *fleetbustest.Server {
	t.Helper()
	o, err := joinSite(t, hub, name, siteToken(t, hub, "acme", name))
	if err != nil {
		t.Fatal(err)
	}
	site := launchSite(t, o)
	waitSite(t, hub, name, admin.SiteLinked)
	return site
}

// waitSite waits until the hub says that of a site of account acme.
func waitSite(t *testing.T, hub *fleetbustest.Server, name, state string) (site admin.Site) {
	t.Helper()
	fleetbustest.Eventually(t, "site "+name+" is "+state, func() error {
		all, err := hub.Admin().Sites(limited(t, 10*time.Second))
		if err != nil {
			return err
		}
		for _, site = range all {
			if site.Name == name && site.State == state && (site.Current || state != admin.SiteLinked) {
				return nil
			}
		}
		return fmt.Errorf("%+v", all)
	})
	return site
}

// passes waits until a message of subject goes from one connection to another.
func passes(t *testing.T, from, to *nats.Conn, subject string) {
	t.Helper()
	sub, err := to.SubscribeSync(subject)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Unsubscribe()
	fleetbustest.Eventually(t, "a message of "+subject+" passes", func() error {
		if err := errors.Join(to.Flush(), from.Publish(subject, nil)); err != nil {
			return err
		}
		_, err := sub.NextMsg(50 * time.Millisecond)
		return err
	})
}

// TestSite has a site work with its hub, without it, and with it again.
func TestSite(t *testing.T) {
	hub, w := startHub(t)
	alice, bob := hub.Creds("acme", "alice"), hub.Creds("acme", "bob")
	site := startSite(t, hub, "berlin")
	connect := func(s *fleetbustest.Server, creds string) *nats.Conn {
		t.Helper()
		nc, err := s.Connect(creds, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	atHub, atSite, bobAtSite := connect(hub, alice), connect(site, alice), connect(site, bob)
	passes(t, atHub, atSite, "orders.new")
	passes(t, atSite, atHub, "orders.done")

	// Streams of the site have its domain, and the hub has what they have.
	here, err := jetstream.New(atSite)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := here.CreateStream(limited(t, 10*time.Second), jetstream.StreamConfig{Name: "READINGS", Subjects: []string{"readings.>"}}); err != nil {
		t.Fatal(err)
	}
	there, err := jetstream.New(atHub)
	if err != nil {
		t.Fatal(err)
	}
	all, err := there.CreateStream(limited(t, 10*time.Second), jetstream.StreamConfig{Name: "ALL", Sources: []*jetstream.StreamSource{{Name: "READINGS", Domain: "berlin"}}})
	if err != nil {
		t.Fatal(err)
	}
	publish := func(n int) {
		t.Helper()
		for range n {
			if _, err := here.Publish(limited(t, 10*time.Second), "readings.a", nil); err != nil {
				t.Fatal(err)
			}
		}
	}
	arrive := func(n uint64) {
		t.Helper()
		began := time.Now()
		fleetbustest.Eventually(t, "the hub has what the site has", func() error {
			info, err := all.Info(limited(t, 10*time.Second))
			if err == nil && info.State.Msgs != n {
				err = fmt.Errorf("%d of %d messages", info.State.Msgs, n)
			}
			return err
		})
		t.Logf("the hub had all %d messages after %v", n, time.Since(began))
	}
	publish(10)
	arrive(10)

	// A denial closes at the site, while it is linked, and once it is again.
	denied := func(nc *nats.Conn, name string) {
		t.Helper()
		began := time.Now()
		if _, err := hub.Admin().DenyUser(limited(t, 10*time.Second), "acme/"+name); err != nil {
			t.Fatal(err)
		}
		fleetbustest.Eventually(t, "the denied user is closed at the site", func() error {
			if !nc.IsClosed() {
				return errors.New("connected")
			}
			return nil
		})
		t.Logf("%s was closed after %v", name, time.Since(began))
	}
	carol := connect(site, hub.Creds("acme", "carol"))
	denied(carol, "carol")

	w.cut()
	waitSite(t, hub, "berlin", admin.SiteAway)
	if _, err := hub.Admin().DenyUser(limited(t, 10*time.Second), "acme/bob"); err != nil {
		t.Fatal(err)
	}
	publish(10)
	if err := bobAtSite.Flush(); err != nil {
		t.Errorf("a site that is cut off closed its users: %v", err)
	}
	connect(site, alice).Close()
	began := time.Now()
	w.join(hub.Addr("leaf").String())
	fleetbustest.Eventually(t, "the denial reaches the site", func() error {
		if bobAtSite.IsClosed() {
			return nil
		}
		return errors.New("bob is connected")
	})
	t.Logf("linked again, and bob closed, after %v", time.Since(began))
	if _, err := site.Connect(bob); err == nil {
		t.Error("a denied user of the hub came in at the site")
	}
	arrive(20)

	// The site starts and works without its hub.
	w.cut()
	site.Stop()
	site = site.Restart()
	atSite = connect(site, alice)
	if here, err = jetstream.New(atSite); err != nil {
		t.Fatal(err)
	}
	publish(10)
	if _, err := site.Connect(bob); err == nil {
		t.Error("a denied user of the hub came in at a site that does not reach it")
	}
	w.join(hub.Addr("leaf").String())
	arrive(30)
	waitSite(t, hub, "berlin", admin.SiteLinked)

	// A renewal that is asked for at the site is for who asked.
	renewed, err := admin.Renew(limited(t, 10*time.Second), atSite)
	if err != nil || renewed.User.Name != "alice" {
		t.Errorf("alice's renewal at the site: %+v, %v", renewed.User, err)
	}
}

// limitedFor keeps context imported for helpers below.
var _ = context.Canceled
var _ = strings.Contains
