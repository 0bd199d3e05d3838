package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/fleetbustest"
)

// TestKilledRestore kills a restore at any instant. The same command again makes the node, or
// goes on with its streams: everything is there once, and who was denied stays denied.
func TestKilledRestore(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	n1, addr := m.found()
	m.must("account", "add", "acme", "--data-dir", "n1")
	m.must("user", "add", "acme/alice", "--data-dir", "n1", "--out", "alice.creds", "--ca-out", "ca.pem")
	m.must("user", "add", "acme/mallory", "--data-dir", "n1", "--out", "mallory.creds")
	m.must("user", "deny", "acme/mallory", "--data-dir", "n1")
	file := func(name string) string { return filepath.Join(m.dir, name) }
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must[[]byte](t)(os.ReadFile(file("ca.pem"))))
	connect := func(addr, creds string) (*nats.Conn, error) {
		return nats.Connect("tls://"+addr, nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}), nats.UserCredentials(file(creds)))
	}
	nc := must[*nats.Conn](t)(connect(addr, "alice.creds"))
	defer nc.Close()
	js := must[jetstream.JetStream](t)(jetstream.New(nc))
	const messages = 300
	for _, name := range []string{"ORDERS", "EVENTS", "MORE"} {
		fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: name, Subjects: []string{name + ".>"}})
		for i := range messages {
			if _, err := js.Publish(t.Context(), name+".x", fmt.Appendf(nil, "%d %s", i, strings.Repeat("x", 2000))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := os.WriteFile(file("passphrase"), []byte("a passphrase that is long enough\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m.must("backup", "fleet.backup", "--passphrase-file", "passphrase", "--data-dir", "n1")
	n1.kill()

	restore := func(name string) []string {
		return m.node(name, "restore", "fleet.backup", "--passphrase-file", "passphrase")
	}
	d := pace(func() { m.must(restore("first")...) })
	cut, whole := 0, 0
	for i, at := range instants(t, 4, d) {
		name := "r" + strconv.Itoa(i)
		args := restore(name)
		m.killed(at, args...)
		if code, output := m.run(args...); code == 0 {
			cut++
		} else if strings.Contains(output, "serve") && m.holds(name) {
			whole++
		} else {
			t.Fatalf("restore after restore was killed after %v of %v: exit code %d\n%s", at, d, code, output)
		}
		p := m.serve(name)
		nc := must[*nats.Conn](t)(connect(args[5], "alice.creds"))
		js := must[jetstream.JetStream](t)(jetstream.New(nc))
		for _, stream := range []string{"ORDERS", "EVENTS", "MORE"} {
			s := must[jetstream.Stream](t)(js.Stream(t.Context(), stream))
			if n := s.CachedInfo().State.Msgs; n != messages {
				t.Errorf("round %d, killed after %v of %v: %s has %d messages", i, at.Round(time.Millisecond), d.Round(time.Millisecond), stream, n)
			}
			last := must[*jetstream.RawStreamMsg](t)(s.GetLastMsgForSubject(t.Context(), stream+".x"))
			if !strings.HasPrefix(string(last.Data), strconv.Itoa(messages-1)+" ") {
				t.Errorf("the last message of %s is %.10q", stream, last.Data)
			}
		}
		nc.Close()
		if nc, err := connect(args[5], "mallory.creds"); err == nil {
			nc.Close()
			t.Error("who was denied is let in")
		}
		p.kill()
	}
	t.Logf("%d were cut off, %d were done", cut, whole)
}
