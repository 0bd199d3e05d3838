package cert_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
	"github.com/fleetbus/fleetbus/ledger"
)

// restart starts the engine of a bus again at its address, with what it stored unless
// that is lost.
func (b *bus) restart(lost bool) *bus {
	b.t.Helper()
	o := server.Options{Port: portOf(b.server), StoreDir: b.server.StoreDir()}
	if lost {
		o.StoreDir = b.t.TempDir()
	}
	stopServer(b.server)
	return busAt(b.t, startServer(b.t, o), b.Manager)
}

// TestBusAway: a store that runs before there is a bus, and while it goes and comes,
// serves what it has, takes what came meanwhile and reports what it could not.
func TestBusAway(t *testing.T) {
	b := newBus(t)
	key, dir := b.target("lb1"), storeDir(t)
	b.publish(b.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}}))
	r := open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	waitFor(t, "the first report", func() bool { return b.lastSeen("lb1", "a") != nil })
	b = b.restart(false)
	b.publish(b.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 2}))
	waitFor(t, "the second generation", func() bool { return r.generation("a") == 2 })
	waitFor(t, "its report", func() bool { return b.lastSeen("lb1", "a").Generation == 2 })
	r.stop()

	// It begins while there is no bus.
	port, storage := portOf(b.server), b.server.StoreDir()
	stopServer(b.server)
	again := open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	if again.generation("a") != 2 {
		t.Error("it needs the bus")
	}
	b = busAt(t, startServer(t, server.Options{Port: port, StoreDir: storage}), b.Manager)
	b.publish(b.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 3}))
	waitFor(t, "the third report", func() bool { return b.lastSeen("lb1", "a").Generation == 3 })

	// Somebody else wrote its report: the store that this one takes the place of, and one
	// who may not.
	subject := cert.SeenSubject("web", "lb1", "a")
	b.publish(certEvent(subject, must(key.Sign(subject, cert.Seen{Version: 1, Target: "lb1", ID: "a", Generation: 1, At: time.Now()}))(t)))
	b.publish(certEvent(subject, []byte(`{"v":1,"target":"lb1","id":"a","generation":1}`)))
	b.publish(b.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 4}))
	waitFor(t, "the fourth report", func() bool {
		seen := b.lastSeen("lb1", "a")
		return seen != nil && seen.Generation == 4
	})
}

// TestLedgerLost: when the ledger was made anew, what is served is served on, what is in
// it is taken, and nothing that is older.
func TestLedgerLost(t *testing.T) {
	b := newBus(t)
	key, dir := b.target("lb1"), storeDir(t)
	first := b.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}})
	second := b.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 2})
	b.publish(first, second, b.Obtained(certtest.Request{ID: "b", Names: []string{"b.example"}}))
	r := open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	waitFor(t, "the certificates", func() bool { return r.generation("a") == 2 && r.generation("b") == 1 })
	waitFor(t, "the reports", func() bool { // they would make the new ledger longer
		a := b.lastSeen("lb1", "a")
		return a != nil && a.Generation == 2 && b.lastSeen("lb1", "b") != nil
	})
	b = b.restart(true)
	c := b.Obtained(certtest.Request{ID: "c", Names: []string{"c.example"}})
	b.publish(first, c) // as an older copy has it
	waitFor(t, "what is in the new ledger", func() bool { return r.generation("c") == 1 })
	if r.generation("a") != 2 || r.generation("b") != 1 {
		t.Errorf("it serves %+v", r.Certificates())
	}
	b.publish(second)
	waitFor(t, "the old one to be forgotten", func() bool { return r.problem("a") == "" })
	r.stop()
	again := open(t, cert.Options{Key: key, Dir: dir})
	if again.generation("a") != 2 || again.generation("b") != 1 || again.generation("c") != 1 {
		t.Errorf("after a restart it serves %+v", again.Certificates())
	}
}

// TestFollowsOn: after a restart a store follows from where it was, and the ledger keeps
// a bounded past.
func TestFollowsOn(t *testing.T) {
	b := newBus(t)
	key, dir := b.target("lb1"), storeDir(t)
	bundle := b.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	for range 100 {
		b.publish(b.Record("a", cert.Record{Event: cert.Scheduled, Current: bundle}))
	}
	r := open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	waitFor(t, "the certificate", func() bool { return b.lastSeen("lb1", "a") != nil })
	r.stop()
	path := must(filepath.Glob(filepath.Join(dir, "*.certs")))(t)[0]
	seq, _, err := ledger.ReadSnapshot(path)
	if err != nil || seq != 101 {
		t.Errorf("the snapshot is as of event %d: %v", seq, err)
	}
	if info := must(os.Stat(path))(t); info.Mode().Perm() != 0o600 {
		t.Errorf("the snapshot has mode %04o", info.Mode().Perm())
	}
	stream := must(must(jetstream.New(b.nc))(t).Stream(t.Context(), cert.Stream))(t)
	if n := must(stream.Info(t.Context()))(t).State.Msgs; n > 40 {
		t.Errorf("the ledger has %d events of two subjects", n)
	}
	open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	waitFor(t, "it to follow on", func() bool {
		found := false
		for c := range stream.ListConsumers(t.Context()).Info() {
			found = found || len(c.Config.FilterSubjects) == 3 && c.Config.OptStartSeq == 102
		}
		return found
	})
}

// TestRunEnds: Run returns nil when it is told to, and says why when the connection was
// closed. There is one Run at a time.
func TestRunEnds(t *testing.T) {
	b := newBus(t)
	r := open(t, cert.Options{Key: b.target("lb1")})
	nc := dial(t, b.server.ClientURL(), r.inbox)
	ended := make(chan error, 1)
	go func() { ended <- r.Run(t.Context(), nc) }()
	waitFor(t, "its presence", func() bool { _, err := b.ask("", 100*time.Millisecond); return err == nil })
	if err := r.Run(t.Context(), nc); err == nil || !strings.Contains(err.Error(), "runs already") {
		t.Errorf("a second Run: %v", err)
	}
	nc.Close()
	if err := <-ended; !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("when the connection was closed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Run(ctx, dial(t, b.server.ClientURL(), r.inbox)); err != nil {
		t.Error(err)
	}
}

// TestOpen refuses what would not work, and says why.
func TestOpen(t *testing.T) {
	key, _ := certtest.New(t, "web").Target("lb1")
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := cert.Open(cert.Options{Key: key, Dir: dir}); err == nil || !strings.Contains(err.Error(), "chmod 700") {
		t.Errorf("a directory that others read: %v", err)
	}
	if _, err := cert.Open(cert.Options{}); err == nil {
		t.Error("a store without a key was opened")
	}
	broken := *key
	broken.Groups = []string{"a.b"}
	if _, err := cert.Open(cert.Options{Key: &broken}); err == nil {
		t.Error("a store with a broken key was opened")
	}
}
