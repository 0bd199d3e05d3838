package fleetbus_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// traffic is a client that publishes all the time to a subscriber elsewhere, and to a
// stream. Nothing of it may be lost.
type traffic struct {
	cut  atomic.Int64
	stop func() error
}

// keep stores a message once, also if the leader of its stream is gone with the answer.
func keep(t *testing.T, js jetstream.JetStream, id string) (err error) {
	for range 12 {
		if _, err = js.Publish(limited(t, 5*time.Second), "kept", nil, jetstream.WithMsgID(id)); !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
	}
	return err
}

func startTraffic(t *testing.T, from, to *fleetbustest.Server, creds, other string, replicas int) *traffic {
	t.Helper()
	f := &traffic{}
	connect := func(s *fleetbustest.Server, creds string) *nats.Conn {
		nc, err := s.Connect(creds, nats.DisconnectErrHandler(func(*nats.Conn, error) { f.cut.Add(1) }), nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	pub, sub := connect(from, creds), connect(to, other)
	js, err := jetstream.New(pub)
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: "KEPT", Subjects: []string{"kept"}, Replicas: replicas})
	var heard atomic.Int64
	if _, err := sub.Subscribe("live", func(*nats.Msg) { heard.Add(1) }); err != nil {
		t.Fatal(err)
	}
	passes(t, pub, sub, "ready")
	done := make(chan struct{})
	var group sync.WaitGroup
	var sent, kept int64
	var failed error
	group.Go(func() {
		for failed == nil {
			select {
			case <-done:
				failed = pub.FlushTimeout(time.Minute)
				return
			default:
			}
			if failed = pub.Publish("live", nil); failed == nil {
				sent++
				failed = keep(t, js, strconv.FormatInt(kept, 10))
				kept++
			}
		}
	})
	f.stop = sync.OnceValue(func() error {
		close(done)
		group.Wait()
		if failed != nil {
			return failed
		}
		stream, err := js.Stream(limited(t, time.Minute), "KEPT")
		if err != nil {
			return err
		}
		if n := stream.CachedInfo().State.Msgs; int64(n) != kept {
			return fmt.Errorf("%d of %d messages were kept", n, kept)
		}
		fleetbustest.Eventually(t, "all that was published is heard", func() error {
			if n := heard.Load(); n != sent {
				return fmt.Errorf("%d of %d", n, sent)
			}
			return nil
		})
		t.Logf("%d messages heard, %d kept", sent, kept)
		return nil
	})
	t.Cleanup(func() { _ = f.stop() })
	return f
}

// keyOfRole finds a key in a list.
func keyOfRole(t *testing.T, s *fleetbustest.Server, name, account, role string) admin.Key {
	t.Helper()
	keys, err := s.Admin().Keys(limited(t, time.Minute))
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(keys.Keys, func(k admin.Key) bool { return k.Name == name && k.Account == account && k.Role == role })
	if i < 0 {
		t.Fatalf("there is no key %s of %s/%s in %+v", name, account, role, keys.Keys)
	}
	return keys.Keys[i]
}

// rotate changes a key, once every node can be sealed to.
func rotate(t *testing.T, s *fleetbustest.Server, r admin.KeyRequest) (reply admin.KeyReply) {
	t.Helper()
	fleetbustest.Eventually(t, "the key is changed", func() (err error) {
		reply, err = s.Admin().RotateKey(limited(t, time.Minute), r)
		return err
	})
	return reply
}

// renewFile renews a creds file by its own right.
func renewFile(t *testing.T, nc *nats.Conn, file string) {
	t.Helper()
	reply, err := admin.Renew(limited(t, time.Minute), nc)
	if err != nil {
		t.Fatal(err)
	}
	writeCreds(t, reply.JWT, file)
}

func writeCreds(t *testing.T, token, file string) {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := nkeys.ParseDecoratedNKey(data)
	if err != nil {
		t.Fatal(err)
	}
	creds, err := identity.RenewCreds(token, must(key.Seed())(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
}

// offlineKeys are the operator's, from where the fleet was made.
func offlineKeys(t *testing.T, s *fleetbustest.Server) identity.Offline {
	t.Helper()
	dir := s.Founded().Offline
	return identity.Offline{OperatorSeed: must(os.ReadFile(filepath.Join(dir, "operator.nk")))(t), SigningSeed: must(os.ReadFile(filepath.Join(dir, "signing.nk")))(t)}
}

// TestChangeKeys changes every key of a cluster under traffic: nobody is cut off, and
// nothing is lost, until what is old is ended.
func TestChangeKeys(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	alice, bob := nodes[0].Creds("acme", "alice"), nodes[0].Creds("acme", "bob")
	f := startTraffic(t, nodes[0], nodes[1], alice, bob, 3)
	oldest := nodes[0].TLS() // of one who knows the first authority alone

	rotate(t, nodes[0], admin.KeyRequest{Name: "role", Account: "acme", Role: "client", Keep: time.Hour})
	first := keyOfRole(t, nodes[1], "role", "acme", "client")
	if len(first.Old) != 1 || !slices.Equal(first.Old[0].Cut, []string{"acme/alice", "acme/bob"}) {
		t.Errorf("after the rotation the key is %+v", first)
	}
	// Somebody who does not know of it changes nothing.
	_, err := nodes[1].Admin().RotateKey(limited(t, time.Minute), admin.KeyRequest{Name: "role", Account: "acme", Role: "client", Keep: time.Hour})
	if !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("a second rotation of the same generation: %v", err)
	}

	// A node that is down meanwhile knows when it is back.
	nodes[2].Stop()
	rotate(t, nodes[1], admin.KeyRequest{Name: "role", Account: "acme", Known: first.Generation, Keep: time.Hour})
	for _, name := range []string{identity.KeyAuthority, identity.KeyRoutes} {
		rotate(t, nodes[0], admin.KeyRequest{Name: name, Keep: time.Hour})
	}
	keys := must(nodes[0].Admin().Keys(limited(t, time.Minute)))(t)
	operator, seed, err := identity.NewOperatorKey(keys.Operator, offlineKeys(t, nodes[0]), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, nodes[0], admin.KeyRequest{Name: identity.KeyOperator, Operator: operator, Seed: must(identity.Seal(seed, keys.Boxes))(t)})
	nodes[2] = nodes[2].Restart()
	fleetbustest.Eventually(t, "node n3 has caught up", func() error {
		status, err := nodes[0].Admin().Status(limited(t, time.Minute))
		if err != nil {
			return err
		}
		for _, n := range status.Nodes {
			if n.State != "up" || n.Applied != status.Sequence || len(n.Routes) != 2 {
				return fmt.Errorf("%+v", n)
			}
		}
		for _, finding := range status.Findings {
			if finding.Code == "KEY-UNKNOWN" {
				t.Errorf("%+v", finding)
			}
		}
		if !slices.ContainsFunc(status.Findings, func(f doctor.Finding) bool {
			return f.Code == "KEY-ENDS" && f.Subject == "acme/client" && strings.Contains(f.Text, "acme/alice, acme/bob")
		}) {
			return fmt.Errorf("no finding says who is cut off: %+v", status.Findings)
		}
		return nil
	})
	for _, s := range nodes {
		// Who has the old key, and knows the old authority alone, comes in anywhere.
		nc, err := nats.Connect(s.URL(), nats.Secure(oldest.Clone()), admin.UserCredentials(alice))
		if err != nil {
			t.Fatalf("at node %s: %v", s.Options.Name, err)
		}
		nc.Close()
	}
	if keyOfRole(t, nodes[2], "role", "acme", "client").Generation == first.Generation {
		t.Error("a rotation of the account leaves out a role")
	}
	if n := f.cut.Load(); n != 0 {
		t.Errorf("%d connections were cut", n)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}

	// A renewal is by the new key, however fresh the old credentials are.
	nc := must(nodes[2].Connect(alice))(t)
	renewFile(t, nc, alice)
	nc.Close()
	if old := keyOfRole(t, nodes[0], "role", "acme", "client").Old; len(old) != 2 || !slices.Equal(old[0].Cut, []string{"acme/bob"}) {
		t.Errorf("after a renewal the old keys are %+v", old)
	}
	roots := x509.NewCertPool()
	ca := must(os.ReadFile(nodes[0].Founded().CA))(t)
	if roots.AppendCertsFromPEM(ca); strings.Count(string(ca), "BEGIN CERT") != 2 {
		t.Errorf("the file of the authorities has not two certificates:\n%s", ca)
	}

	// Now: the old authority and the old key are good for nothing.
	newest := keyOfRole(t, nodes[0], identity.KeyAuthority, "", "").Generation
	rotate(t, nodes[0], admin.KeyRequest{Name: identity.KeyAuthority, Known: newest})
	if _, err := nats.Connect(nodes[1].URL(), nats.Secure(oldest.Clone()), admin.UserCredentials(alice)); err == nil {
		t.Error("a node shows the old authority's certificate")
	}
	cut := make(chan struct{})
	nc = must(nodes[1].Connect(alice, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(cut) })))(t)
	defer nc.Close()
	known := keyOfRole(t, nodes[1], "role", "acme", "client").Generation
	if closed := rotate(t, nodes[1], admin.KeyRequest{Name: "role", Account: "acme", Role: "client", Known: known}).Closed(); closed == 0 {
		t.Error("nobody is told of who was cut off")
	}
	select {
	case <-cut:
	case <-time.After(2 * time.Minute):
		t.Error("who came in by the old key is still in")
	}
	if _, err := nodes[2].Connect(alice); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the old key lets in: %v", err)
	}
	reply, err := nodes[2].Admin().AddUser(limited(t, time.Minute), admin.UserRequest{Name: "acme/alice", Key: keyOf(t, alice)})
	if err != nil {
		t.Fatal(err)
	}
	writeCreds(t, reply.JWT, alice)
	for _, s := range nodes {
		must(s.Connect(alice))(t).Close()
	}
}

// TestKeyEnds has a key end by itself: who has renewed comes back, who has not is
// refused, and nobody is cut off before.
func TestKeyEnds(t *testing.T) {
	s := fleetbustest.Start(t)
	alice, bob := s.Creds("acme", "alice"), s.Creds("acme", "bob")
	type event struct {
		name string
		at   time.Time
	}
	cut := make(chan event, 10)
	back := make(chan event, 10)
	connect := func(name, creds string) *nats.Conn {
		nc, err := s.Connect(creds, nats.MaxReconnects(-1), nats.ReconnectWait(20*time.Millisecond),
			nats.DisconnectErrHandler(func(*nats.Conn, error) { cut <- event{name, time.Now()} }),
			nats.ReconnectHandler(func(*nats.Conn) { back <- event{name, time.Now()} }),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
			nats.IgnoreAuthErrorAbort())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	a := connect("alice", alice)
	connect("bob", bob)
	reply := rotate(t, s, admin.KeyRequest{Name: "role", Account: "acme", Role: "client", Keep: 3 * time.Second})
	if len(reply.Keys) != 1 || len(reply.Keys[0].Old) != 1 {
		t.Fatalf("what was changed is %+v", reply.Keys)
	}
	end := reply.Keys[0].Old[0].Until
	renewFile(t, a, alice)
	for range 2 {
		select {
		case ev := <-cut:
			if ev.at.Before(end) {
				t.Errorf("%s was cut off %v before the end", ev.name, end.Sub(ev.at))
			}
		case <-time.After(2 * time.Minute):
			t.Fatal("who came in by the old key is still in")
		}
	}
	select {
	case ev := <-back:
		if ev.name != "alice" {
			t.Errorf("%s is back by the old key", ev.name)
		}
	case <-time.After(2 * time.Minute):
		t.Error("who has renewed is not back")
	}
	if _, err := s.Connect(bob); !errors.Is(err, nats.ErrAuthorization) {
		t.Errorf("the old key lets in: %v", err)
	}
}

// TestChangeOwnKeys has the keys of the fleet's own administrators end: what lies in the
// data directory goes on to be good.
func TestChangeOwnKeys(t *testing.T) {
	s := fleetbustest.Start(t)
	before := must(os.ReadFile(s.Founded().AdminCreds))(t)
	rotate(t, s, admin.KeyRequest{Name: "role", Account: identity.FleetName})
	fleetbustest.Eventually(t, "the admin's file is renewed", func() error {
		if string(must(os.ReadFile(s.Founded().AdminCreds))(t)) == string(before) {
			return errors.New("it is as before")
		}
		return nil
	})
	old := filepath.Join(t.TempDir(), "old.creds")
	if err := os.WriteFile(old, before, 0o600); err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "the old file is refused", func() error {
		nc, err := s.Connect(old)
		if err == nil {
			nc.Close()
			return errors.New("it is good")
		}
		return nil
	})
	if _, err := s.Admin().Status(limited(t, time.Minute)); err != nil {
		t.Error(err)
	}
}

// TestChangeKeysOfSite has a site go on while the keys of its hub are changed, and end
// an old key by itself while it is away.
func TestChangeKeysOfSite(t *testing.T) {
	hub, w := startHub(t)
	site := startSite(t, hub, "berlin")
	alice, bob := hub.Creds("acme", "alice"), hub.Creds("acme", "bob")
	var cut atomic.Int64
	atSite := must(site.Connect(alice, nats.DisconnectErrHandler(func(*nats.Conn, error) { cut.Add(1) })))(t)
	defer atSite.Close()
	atHub := must(hub.Connect(bob))(t)
	defer atHub.Close()
	passes(t, atSite, atHub, "up")

	keys := must(hub.Admin().Keys(limited(t, time.Minute)))(t)
	operator, seed, err := identity.NewOperatorKey(keys.Operator, offlineKeys(t, hub), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	rotate(t, hub, admin.KeyRequest{Name: identity.KeyOperator, Operator: operator, Seed: must(identity.Seal(seed, keys.Boxes))(t)})
	rotate(t, hub, admin.KeyRequest{Name: identity.KeyAuthority, Keep: time.Hour})
	rotate(t, hub, admin.KeyRequest{Name: "role", Account: "acme", Keep: time.Hour})
	fleetbustest.Eventually(t, "the site knows the hub's new keys", func() error {
		data := string(must(os.ReadFile(filepath.Join(site.Options.Dir, "site.json")))(t))
		if !strings.Contains(data, operator) || strings.Count(data, "BEGIN CERT") != 2 {
			return errors.New("it does not")
		}
		for _, old := range keyOfRole(t, hub, "role", "acme", "leaf").Old {
			if len(old.Cut) > 0 {
				return fmt.Errorf("its link has the old key: %v", old.Cut)
			}
		}
		return nil
	})
	waitSite(t, hub, "berlin", admin.SiteLinked)
	passes(t, atHub, atSite, "down")
	if n := cut.Load(); n != 0 {
		t.Errorf("who is at the site was cut off %d times", n)
	}

	// The link is made anew by the newest of all, when the old has ended.
	link := filepath.Join(site.Options.Dir, "link.creds")
	before := string(must(os.ReadFile(link))(t))
	for _, name := range []string{identity.KeyAuthority, "role"} {
		r := admin.KeyRequest{Name: name, Known: keyOfRole(t, hub, identity.KeyAuthority, "", "").Generation, Keep: 15 * time.Second} // until all is known, on a busy machine
		if name == "role" {
			r.Account, r.Known = "acme", keyOfRole(t, hub, "role", "acme", "client").Generation
		}
		rotate(t, hub, r)
	}
	fleetbustest.Eventually(t, "the site has the newest", func() error {
		if string(must(os.ReadFile(link))(t)) == before {
			return errors.New("its link has the key of before")
		}
		return nil
	})
	waitSite(t, hub, "berlin", admin.SiteLinked) // and has been told when the old ends
	w.cut()
	waitSite(t, hub, "berlin", admin.SiteAway)
	fleetbustest.Eventually(t, "the old key ends at the site that is away", func() error {
		nc, err := site.Connect(bob)
		if err == nil {
			nc.Close()
			return errors.New("it is good")
		}
		return nil
	})
	w.join(hub.Addr("leaf").String())
	waitSite(t, hub, "berlin", admin.SiteLinked)
}

// TestAuthorityEndsSessions has who came in by a certificate of an old authority closed
// with it.
func TestAuthorityEndsSessions(t *testing.T) {
	s := fleetbustest.Start(t)
	s.Creds("acme", "admin")
	key := must(identity.NewKey())(t)
	csr := must(identity.NewCSR(key))(t)
	issue := func() nats.Option {
		reply, err := s.Admin().AddUser(limited(t, time.Minute), admin.UserRequest{
			Name: "acme/press", CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw}))})
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode([]byte(reply.Chain))
		config := s.TLS()
		config.Certificates = []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}
		return nats.Secure(config)
	}
	cut := make(chan struct{})
	old := issue()
	nc := must(nats.Connect(s.URL(), old, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(cut) })))(t)
	defer nc.Close()
	rotate(t, s, admin.KeyRequest{Name: identity.KeyAuthority, Keep: time.Hour})
	k := keyOfRole(t, s, identity.KeyAuthority, "", "")
	if len(k.Old) != 1 || !slices.Contains(k.Old[0].Cut, "acme/press") {
		t.Errorf("those with an old certificate are %+v", k.Old)
	}
	must(nats.Connect(s.URL(), old))(t).Close()
	if !nc.IsConnected() {
		t.Error("the session was closed before the end")
	}
	rotate(t, s, admin.KeyRequest{Name: identity.KeyAuthority, Known: k.Generation})
	select {
	case <-cut:
	case <-time.After(2 * time.Minute):
		t.Error("who came in by the old authority is still in")
	}
	if _, err := nats.Connect(s.URL(), old); err == nil {
		t.Error("a certificate of the old authority lets in")
	}
	must(nats.Connect(s.URL(), issue()))(t).Close()
}
