package cert_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
)

// handshake is what a client gets that asks for name and trusts the test's authority.
func handshake(t testing.TB, config *tls.Config, name string, root *x509.Certificate) (*x509.Certificate, error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	done := make(chan error, 1)
	go func() {
		defer far.Close()
		done <- tls.Server(far, config).HandshakeContext(within(t, 20*time.Second))
	}()
	roots := x509.NewCertPool()
	roots.AddCert(root)
	client := tls.Client(near, &tls.Config{ServerName: name, RootCAs: roots})
	err := client.HandshakeContext(within(t, 20*time.Second))
	near.Close()
	<-done
	if err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

// TestStore takes a certificate through issue, renewal and removal, and a restart
// without the bus.
func TestStore(t *testing.T) {
	b := newBus(t)
	key, dir := b.target("lb1"), storeDir(t)
	r := open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	if got, err := r.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.org"}); got != nil || err != nil {
		t.Errorf("an empty store answered %v, %v", got, err)
	}
	first := b.Obtained(certtest.Request{ID: "a", Names: []string{"www.example.org", "*.example.org"}})
	b.publish(first)
	waitFor(t, "the first generation", func() bool { return r.generation("a") == 1 })
	leaf, err := handshake(t, r.TLSConfig(nil), "www.example.org", b.Root)
	if err != nil {
		t.Fatal(err)
	}
	waitFor(t, "its report", func() bool {
		seen := b.lastSeen("lb1", "a")
		return seen != nil && seen.Generation == 1 && seen.Serial == leaf.SerialNumber.Text(16) && seen.Error == "" && seen.Program == "go"
	})
	b.publish(b.Obtained(certtest.Request{ID: "a", Names: []string{"www.example.org", "*.example.org"}, Generation: 2}))
	waitFor(t, "the second generation", func() bool { return r.generation("a") == 2 })
	waitFor(t, "its report", func() bool { seen := b.lastSeen("lb1", "a"); return seen.Generation == 2 && seen.Error == "" })
	b.publish(first) // which anybody can do who may append
	waitFor(t, "the replay to be seen", func() bool { return strings.Contains(r.problem("a"), cert.ErrStale.Error()) })
	if r.generation("a") != 2 {
		t.Error("an older generation came back by a replay")
	}
	b.publish(b.Obtained(certtest.Request{ID: "b", Names: []string{"b.example"}}))
	waitFor(t, "another certificate", func() bool { return r.generation("b") == 1 })
	port, storage := portOf(b.server), b.server.StoreDir()
	stopServer(b.server)
	if _, err := handshake(t, r.TLSConfig(nil), "x.example.org", b.Root); err != nil {
		t.Errorf("without the bus: %v", err)
	}
	r.stop()

	again := open(t, cert.Options{Key: key, Dir: dir})
	if again.generation("a") != 2 || again.generation("b") != 1 {
		t.Fatalf("after a restart without the bus it serves %+v", again.Certificates())
	}
	if _, err := handshake(t, again.TLSConfig(nil), "x.example.org", b.Root); err != nil {
		t.Error(err)
	}
	if again.log.String() != "" {
		t.Errorf("it logged %s", again.log)
	}
	s := startServer(t, server.Options{Port: port, StoreDir: storage})
	later := busAt(t, s, b.Manager)
	again.run(t, s.ClientURL())
	later.publish(b.Record("a", cert.Record{Event: cert.Removed, Removed: true}))
	waitFor(t, "the removal", func() bool { return again.generation("a") == 0 })
	waitFor(t, "the report to go", func() bool { return later.lastSeen("lb1", "a") == nil })
	if got, _ := again.GetCertificate(&tls.ClientHelloInfo{ServerName: "www.example.org"}); got != nil {
		t.Error("what was removed is served")
	}
	later.publish(b.Obtained(certtest.Request{ID: "c", Names: []string{"c.example"}}))
	waitFor(t, "a certificate after it", func() bool { return again.generation("c") == 1 })
}
