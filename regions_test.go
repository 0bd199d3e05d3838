package fleetbus_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// withGateway gives a node a gateway that others reach by a wire.
func withGateway(o *fleetbus.Options, w *wire) {
	o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "gateway", Addr: "127.0.0.1:0", Advertise: w.ln.Addr().String(), Protocol: fleetbus.Gateway()})
}

// A line is the network between two regions: both ways.
type line struct{ eu, us *wire }

func (l *line) cut() { l.eu.cut(); l.us.cut() }

func (l *line) heal(eu, us *fleetbustest.Server) {
	l.eu.join(eu.Addr("gateway").String())
	l.us.join(us.Addr("gateway").String())
}

// regionToken is a token for a region, once the fleet knows that it has gateways.
func regionToken(t *testing.T, s *fleetbustest.Server, name string) string {
	t.Helper()
	var reply admin.TokenReply
	fleetbustest.Eventually(t, "the gateways are known", func() (err error) {
		reply, err = s.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindRegion, Name: name})
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

// joinRegion makes the home of the first node of a region, with the options of a node.
func joinRegion(t *testing.T, s *fleetbustest.Server, o fleetbus.Options, token, addr string) error {
	t.Helper()
	client, err := enroll.Dial(limited(t, 10*time.Second), enroll.Join{Host: s.Addr("nats").String(), Token: token})
	if err != nil {
		return err
	}
	defer client.Close()
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	node := fleetbus.NodeRecord(o)
	node.GatewayAddr = addr
	reply, err := client.Region(limited(t, 20*time.Second), enroll.RegionRequest{Node: node, Seal: public, Machine: "test", Version: fleetbus.Version()})
	if err != nil {
		return err
	}
	authority, err := identity.OpenAuthority(reply.Authority, reply.Sender, key)
	if err != nil {
		t.Fatal(err)
	}
	return fleetbus.Enroll(o, reply, authority)
}

// startRegions starts a fleet of two regions, eu and us, of one node each.
func startRegions(t *testing.T) (eu, us *fleetbustest.Server, l *line) {
	t.Helper()
	l = &line{newWire(t), newWire(t)}
	eu = fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Cluster.Name = "eu"
		withGateway(o, l.eu)
	})
	l.eu.join(eu.Addr("gateway").String())
	return eu, addRegion(t, eu, "us", l.us), l
}

// addRegion starts one more region of one node, which others reach by a wire.
func addRegion(t *testing.T, s *fleetbustest.Server, name string, w *wire, edit ...func(*fleetbus.Options)) *fleetbustest.Server {
	t.Helper()
	o := fleetbustest.Options(t, name+"-1")
	withGateway(&o, w)
	for _, e := range edit {
		e(&o)
	}
	if err := joinRegion(t, s, o, regionToken(t, s, name), w.ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	added := launchSite(t, o)
	w.join(added.Addr("gateway").String())
	waitRegions(t, admin.RegionLinked, s, added)
	return added
}

// waitRegions waits until each of these nodes says that of its other region.
func waitRegions(t *testing.T, state string, of ...*fleetbustest.Server) {
	t.Helper()
	for _, s := range of {
		fleetbustest.Eventually(t, "the other region is "+state, func() error {
			all, err := s.Admin().Regions(limited(t, 10*time.Second))
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(r admin.Region) bool { return r.State != admin.RegionHere })
			if i < 0 || all[i].State != state || state == admin.RegionLinked && (!all[i].Current || len(all[i].Nodes) == 0) {
				return fmt.Errorf("%+v", all)
			}
			return nil
		})
	}
}

func dial(t *testing.T, s *fleetbustest.Server, creds string, opts ...nats.Option) *nats.Conn {
	t.Helper()
	nc, err := s.Connect(creds, append(opts, nats.NoReconnect())...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// TestRegions has two regions share accounts and users, messages and denials.
func TestRegions(t *testing.T) {
	eu, us, _ := startRegions(t)
	alice := eu.Creds("acme", "alice")
	bob := us.Creds("acme", "bob")
	inEU, inUS := dial(t, eu, alice), dial(t, us, alice)
	passes(t, inEU, inUS, "orders.new")
	passes(t, inUS, inEU, "orders.done")
	passes(t, dial(t, eu, bob), dial(t, us, bob), "orders.more")
}

// TestCopyAcross copies streams of another region that were made this moment, in accounts
// that had none before, by clients that come and go: neither what the copy asks for there
// nor the answer must be lost, for it would ask again after most of a minute.
func TestCopyAcross(t *testing.T) {
	const rounds = 20
	eu, us, _ := startRegions(t)
	creds := make([]string, rounds)
	ctx := limited(t, 2*time.Minute)
	at := func(s *fleetbustest.Server, i int, act func(jetstream.JetStream) error) {
		t.Helper()
		nc, err := s.Connect(creds[i], nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		js, err := jetstream.New(nc)
		if err != nil {
			t.Fatal(err)
		}
		if err := act(js); err != nil {
			t.Fatalf("account %d at %s: %v", i, s.Options.Name, err)
		}
	}
	for i := range creds {
		creds[i] = us.Creds(fmt.Sprint("acme", i), "alice")
		at(us, i, func(js jetstream.JetStream) error {
			_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}})
			return err
		})
		at(us, i, func(js jetstream.JetStream) error {
			_, err := js.Publish(ctx, "orders.new", []byte("one"))
			return err
		})
		at(eu, i, func(js jetstream.JetStream) error {
			_, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "COPY", Sources: []*jetstream.StreamSource{
				{Name: "ORDERS", External: &jetstream.ExternalStream{APIPrefix: "$JS.us.API"}},
			}})
			return err
		})
	}
	// It would ask again after this.
	limit := limited(t, 25*time.Second)
	for i := range creds {
		at(eu, i, func(js jetstream.JetStream) error {
			s, err := js.Stream(ctx, "COPY")
			if err != nil {
				return err
			}
			m, err := s.GetMsg(ctx, 1)
			for ; errors.Is(err, jetstream.ErrMsgNotFound) && limit.Err() == nil; m, err = s.GetMsg(ctx, 1) {
				time.Sleep(20 * time.Millisecond)
			}
			if err == nil && string(m.Data) != "one" {
				err = fmt.Errorf("the copy has %q", m.Data)
			}
			return err
		})
	}
}

// TestStreamsFromAfar uses a stream of another region in every way that a client has.
func TestStreamsFromAfar(t *testing.T) {
	eu, us, _ := startRegions(t)
	creds := us.Creds("acme", "alice")
	js, err := jetstream.NewWithDomain(dial(t, eu, creds), "us")
	if err != nil {
		t.Fatal(err)
	}
	ctx := limited(t, 2*time.Minute)
	fleetbustest.Eventually(t, "the account is known there", func() error {
		_, err := us.Admin().User(ctx, "acme/alice")
		return err
	})
	dial(t, us, creds).Close()
	var s jetstream.Stream
	fleetbustest.Eventually(t, "somebody answers, where one of the account was", func() (err error) {
		s, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.>"}, AllowDirect: true})
		return err
	})
	for i := range 3 {
		if _, err := js.Publish(ctx, fmt.Sprint("orders.", i), []byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := s.GetLastMsgForSubject(ctx, "orders.1"); err != nil || m.Sequence != 2 {
		t.Errorf("the second message: %+v, %v", m, err)
	}
	c, err := s.CreateConsumer(ctx, jetstream.ConsumerConfig{Durable: "c", AckPolicy: jetstream.AckExplicitPolicy})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		m, err := c.Next(jetstream.FetchMaxWait(20 * time.Second))
		if err != nil {
			t.Fatal(err)
		}
		if m.Subject() != fmt.Sprint("orders.", i) || len(m.Data()) != 1 {
			t.Errorf("message %d: %s %q", i, m.Subject(), m.Data())
		}
		if err := m.DoubleAck(ctx); err != nil {
			t.Errorf("acknowledging message %d: %v", i, err)
		}
	}
	if err := s.Purge(ctx); err != nil {
		t.Error(err)
	}
	if err := js.DeleteStream(ctx, "ORDERS"); err != nil {
		t.Error(err)
	}
}

// denied waits until a connection is closed, and a new one refused, at every one of
// these nodes.
func denied(t *testing.T, creds string, nc *nats.Conn, at ...*fleetbustest.Server) {
	t.Helper()
	fleetbustest.Eventually(t, "the connection is closed", func() error {
		if !nc.IsClosed() {
			return errors.New("it is open")
		}
		return nil
	})
	for _, s := range at {
		if nc, err := s.Connect(creds, nats.NoReconnect()); err == nil {
			nc.Close()
			t.Errorf("node %s lets in who is denied", s.Options.Name)
		}
	}
}

// TestRegionsCut has both regions serve while they are cut from each other, and agree
// when they are linked again: on denials and removals above all.
func TestRegionsCut(t *testing.T) {
	eu, us, l := startRegions(t)
	creds := map[string]string{}
	for _, name := range []string{"alice", "bob", "carol", "dave"} {
		creds[name] = eu.Creds("acme", name)
	}
	waitSame(t, eu, us, "acme")
	hers, his := dial(t, us, creds["alice"]), dial(t, eu, creds["bob"])
	carols := dial(t, us, creds["carol"])
	l.cut()
	waitRegions(t, admin.RegionAway, eu, us)
	for _, s := range []*fleetbustest.Server{eu, us} {
		nc := dial(t, s, creds["dave"])
		if err := errors.Join(nc.Publish("x", nil), nc.Flush()); err != nil {
			t.Errorf("cut off, node %s does not serve: %v", s.Options.Name, err)
		}
	}
	ctx := limited(t, time.Minute)
	spread, err := eu.Admin().DenyUser(ctx, "acme/alice")
	if err != nil || !slices.Contains(spread.Missing, "region us") {
		t.Errorf("a denial while us is away: %+v, %v", spread, err)
	}
	if _, err := us.Admin().DenyUser(ctx, "acme/bob"); err != nil {
		t.Errorf("a denial while eu is away: %v", err)
	}
	if _, err := eu.Admin().RemoveUser(ctx, "acme/carol"); err != nil {
		t.Error(err)
	}
	// A renewal there, which writes, does not undo it.
	if _, err := admin.Renew(ctx, carols); err != nil {
		t.Errorf("renewing while eu is away: %v", err)
	}
	us.MoreCreds("acme", "carol")
	erin := us.MoreCreds("acme", "erin")
	if _, err := us.Admin().AddAccount(ctx, admin.AccountRequest{Name: "other"}); !errors.Is(err, &admin.Error{Code: admin.Unavailable}) {
		t.Errorf("an account while the home region is away: %v", err)
	}
	if _, err := eu.Admin().AddAccount(ctx, admin.AccountRequest{Name: "other"}); err != nil {
		t.Error(err)
	}
	l.heal(eu, us)
	waitRegions(t, admin.RegionLinked, eu, us)
	denied(t, creds["alice"], hers, eu, us)
	denied(t, creds["bob"], his, eu, us)
	denied(t, creds["carol"], carols, eu, us)
	dial(t, eu, erin)
	waitSame(t, eu, us, "acme")
	if _, err := us.Admin().AddUser(ctx, admin.UserRequest{Name: "other/x"}); err != nil {
		t.Errorf("a user of an account that was made meanwhile: %v", err)
	}
	// Who is made anew is another one.
	back := us.Creds("acme", "carol")
	passes(t, dial(t, eu, back), dial(t, us, back), "orders.back")
	if _, err := us.Admin().AllowUser(ctx, "acme/alice"); err != nil {
		t.Fatal(err)
	}
	dial(t, eu, creds["alice"])
}

// waitSame waits until two nodes know the same users of an account.
func waitSame(t *testing.T, a, b *fleetbustest.Server, account string) {
	t.Helper()
	fleetbustest.Eventually(t, "both know the same users", func() error {
		x, err1 := a.Admin().Users(limited(t, 10*time.Second), account)
		y, err2 := b.Admin().Users(limited(t, 10*time.Second), account)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		p, err1 := json.Marshal(x)
		q, err2 := json.Marshal(y)
		if err := errors.Join(err1, err2); err != nil || !bytes.Equal(p, q) {
			return fmt.Errorf("%s\n%s\n%v", p, q, err)
		}
		return nil
	})
}

// TestRegionFlaps has a link go and come again and again: what was changed meanwhile is
// known everywhere in the end.
func TestRegionFlaps(t *testing.T) {
	eu, us, l := startRegions(t)
	eu.Creds("acme", "alice")
	ctx := limited(t, 2*time.Minute)
	for i := range 5 {
		l.cut()
		name := fmt.Sprintf("acme/u%d", i)
		if _, err := eu.Admin().AddUser(ctx, admin.UserRequest{Name: name}); err != nil {
			t.Fatal(err)
		}
		l.heal(eu, us)
		if _, err := us.Admin().AddUser(ctx, admin.UserRequest{Name: name + "-us"}); err != nil {
			t.Fatal(err)
		}
		if _, err := us.Admin().DenyUser(ctx, "acme/alice"); err != nil {
			t.Fatal(err)
		}
		if _, err := us.Admin().AllowUser(ctx, "acme/alice"); err != nil {
			t.Fatal(err)
		}
	}
	waitRegions(t, admin.RegionLinked, eu, us)
	waitSame(t, eu, us, "acme")
	if users, err := eu.Admin().Users(ctx, "acme"); err != nil || len(users) != 11 {
		t.Errorf("%d users, %v", len(users), err)
	}
}

// TestRegionRemoved ends a link for good, with one that can be told and one that
// cannot.
func TestRegionRemoved(t *testing.T) {
	for _, cut := range []bool{false, true} {
		t.Run(fmt.Sprintf("cut=%v", cut), func(t *testing.T) {
			eu, us, l := startRegions(t)
			alice := eu.Creds("acme", "alice")
			waitSame(t, eu, us, "acme")
			inEU, inUS := dial(t, eu, alice), dial(t, us, alice)
			passes(t, inEU, inUS, "orders.new")
			ctx := limited(t, time.Minute)
			if cut {
				l.cut()
				waitRegions(t, admin.RegionAway, us)
			}
			if _, err := us.Admin().RemoveRegion(ctx, "us"); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
				t.Errorf("a region removes itself: %v", err)
			}
			// Any region may: here the one that is not home, which so becomes it.
			if _, err := us.Admin().RemoveRegion(ctx, "eu"); err != nil {
				t.Fatal(err)
			}
			if cut {
				l.heal(eu, us)
			}
			if _, err := us.Admin().AddAccount(ctx, admin.AccountRequest{Name: "own"}); err != nil {
				t.Errorf("what is left is not the home region: %v", err)
			}
			fleetbustest.Eventually(t, "no message passes", func() error {
				sub, err := inUS.SubscribeSync("orders.>")
				if err != nil {
					return err
				}
				defer sub.Unsubscribe()
				if err := errors.Join(inUS.Flush(), inEU.Publish("orders.more", nil), inEU.Flush()); err != nil {
					return err
				}
				if _, err := sub.NextMsg(100 * time.Millisecond); err == nil {
					return errors.New("it does")
				}
				return nil
			})
			if accounts, err := eu.Admin().Accounts(ctx); err != nil || slices.ContainsFunc(accounts, func(a admin.AccountInfo) bool { return a.Name == "own" }) {
				t.Errorf("the other knows what was made after the end: %v", err)
			}
		})
	}
}

// TestRegionNames refuses a second region of one name, whoever makes it.
func TestRegionNames(t *testing.T) {
	eu, us, _ := startRegions(t)
	ctx := limited(t, time.Minute)
	token := func(s *fleetbustest.Server, name string) error {
		_, err := s.Admin().AddToken(ctx, admin.TokenRequest{Kind: identity.KindRegion, Name: name})
		return err
	}
	for _, name := range []string{"us", "eu"} {
		if err := token(eu, name); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
			t.Errorf("a token for another region %q: %v", name, err)
		}
	}
	if err := token(us, "ap"); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("a token from a region that is not home: %v", err)
	}
	// Two tokens for one name: who comes second is refused.
	first, second := regionToken(t, eu, "ap"), regionToken(t, eu, "ap")
	o := fleetbustest.Options(t, "ap-1")
	if err := joinRegion(t, eu, o, first, "127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	if err := joinRegion(t, eu, fleetbustest.Options(t, "ap-2"), second, "127.0.0.1:1"); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("a second region of one name: %v", err)
	}
	if err := joinRegion(t, eu, fleetbustest.Options(t, "ap-3"), first, "127.0.0.1:1"); !errors.Is(err, &admin.Error{Code: admin.Denied}) {
		t.Errorf("a token that was used: %v", err)
	}
}

// gatewayCertificate is one that an authority signed for a gateway of a region.
func gatewayCertificate(t *testing.T, a *identity.Authority, region string, then time.Time) tls.Certificate {
	t.Helper()
	csr, key := request(t)
	text, err := a.SignGateway(csr, region, "n9", 24*time.Hour, then)
	return chain(t, text, key, err)
}

// TestStrangersAtTheGateway knocks where regions are linked: each stranger is refused
// in bounded time, and is one line to the operator.
func TestStrangersAtTheGateway(t *testing.T) {
	j := &journal{TB: t}
	w := newWire(t)
	s := fleetbustest.Start(j, impatient, func(o *fleetbus.Options) {
		o.Cluster.Name = "eu"
		withGateway(o, w)
	})
	// One region that is known and not linked, and one that is removed.
	for _, name := range []string{"us", "ap"} {
		if err := joinRegion(t, s, fleetbustest.Options(t, name), regionToken(t, s, name), "127.0.0.1:1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Admin().RemoveRegion(limited(t, time.Minute), "ap"); err != nil {
		t.Fatal(err)
	}
	own := builtin(t, s)
	other, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	now, past := time.Now(), time.Now().Add(-72*time.Hour)
	mesh, server := nodeCertificates(t, own, now)
	d := door{name: "gateway", addr: s.Addr("gateway").String(), line: "TLS gateway handshake error"}
	for _, stranger := range []struct {
		name string
		act  func(net.Conn) error
		told string
	}{
		{"plain", raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), ""},
		{"plain NATS", raw("CONNECT {\"gateway\":\"us\"}\r\nPING\r\n"), ""},
		{"silent", raw(""), ""},
		{"TLS 1.2", shake(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}), "protocol version"},
		{"no certificate", shake(&tls.Config{InsecureSkipVerify: true}), "certificate required"},
		{"client certificate", shake(showing(userCertificate(t, own, now))), "bad certificate"},
		{"server certificate", shake(showing(server)), "bad certificate"},
		{"a node's", shake(showing(mesh)), "bad certificate"},
		{"another fleet's", shake(showing(gatewayCertificate(t, other, "us", now))), "bad certificate"},
		{"expired", shake(showing(gatewayCertificate(t, own, "us", past))), "bad certificate"},
		{"of a region that nobody knows", shake(showing(gatewayCertificate(t, own, "sa", now))), "bad certificate"},
		{"of a region of the same name", shake(showing(gatewayCertificate(t, own, "eu", now))), "bad certificate"},
		{"of a region that was removed", shake(showing(gatewayCertificate(t, own, "ap", now))), "bad certificate"},
	} {
		t.Run(stranger.name, func(t *testing.T) {
			before := len(j.lines(d.line))
			err := d.knock(t, stranger.act)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatalf("the stranger was still there after %v", closeTimeout)
			}
			if stranger.told != "" && (err == nil || !strings.Contains(err.Error(), stranger.told)) {
				t.Errorf("the stranger was told %v, want %q", err, stranger.told)
			}
			fleetbustest.Eventually(t, "the operator's line", func() error {
				if n := len(j.lines(d.line)) - before; n != 1 {
					return fmt.Errorf("%d lines of %q", n, d.line)
				}
				return nil
			})
		})
	}
	// Who is of the region comes in, and gets the engine's greeting.
	if err := d.knock(t, shake(showing(gatewayCertificate(t, own, "us", now)))); err != nil {
		t.Errorf("a gateway of region us: %v", err)
	}
	// Its certificate opens no other port.
	for _, port := range []door{{addr: s.Addr("cluster").String()}, {addr: s.Addr("nats").String(), greets: true}} {
		if err := port.knock(t, shake(showing(gatewayCertificate(t, own, "us", now)))); err == nil {
			t.Errorf("the certificate of a gateway opens %s", port.addr)
		}
	}
}

// TestDenialAcross denies users who have a connection to every node of a cluster, to
// another region, and to a site, and tells how long it takes until the last is closed.
func TestDenialAcross(t *testing.T) {
	const users = 16
	w, leaf := newWire(t), newWire(t)
	eu := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		o.Cluster.Name = "eu"
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "gateway", Addr: loopback.Addr(t), Protocol: fleetbus.Gateway()})
		if o.Name == "n1" {
			o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "leaf", Addr: "127.0.0.1:0", Advertise: leaf.ln.Addr().String(), Protocol: fleetbus.Leaf()})
		}
	})
	leaf.join(eu[0].Addr("leaf").String())
	eu[0].Creds("acme", "admin")
	us := addRegion(t, eu[0], "us", w)
	all := append(eu, us, startSite(t, eu[0], "berlin"))
	type end struct {
		node string
		at   time.Time
	}
	closed := make([]chan end, users)
	quiet := nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})
	for i := range closed {
		closed[i] = make(chan end, len(all))
		creds := eu[0].MoreCreds("acme", fmt.Sprint("u", i))
		for _, s := range all {
			dial(t, s, creds, quiet, nats.ClosedHandler(func(*nats.Conn) { closed[i] <- end{s.Options.Name, time.Now()} }))
		}
	}
	for _, from := range []*fleetbustest.Server{eu[1], us} {
		api := from.Admin()
		took := map[string][]time.Duration{}
		for i := range closed {
			if i%2 == 0 == (from == us) {
				continue
			}
			ctx := limited(t, 2*time.Minute)
			began := time.Now()
			spread, err := api.DenyUser(ctx, fmt.Sprint("acme/u", i))
			if err != nil || len(spread.Missing) > 0 || len(spread.Nodes) != 4 {
				t.Fatalf("a denial: %+v, %v", spread, err)
			}
			last := time.Duration(0)
			for range all {
				select {
				case e := <-closed[i]:
					took[e.node] = append(took[e.node], e.at.Sub(began))
					last = max(last, e.at.Sub(began))
				case <-ctx.Done():
					t.Fatal("a connection was not closed")
				}
			}
			took["all"] = append(took["all"], last)
		}
		for _, name := range slices.Sorted(maps.Keys(took)) {
			d := took[name]
			slices.Sort(d)
			t.Logf("denied at %s: %d users, closed at %s: p50 %v, p99 %v", from.Options.Name, len(d), name,
				d[len(d)/2].Round(10*time.Microsecond), d[len(d)*99/100].Round(10*time.Microsecond))
		}
	}
}
