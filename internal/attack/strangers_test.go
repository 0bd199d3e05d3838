package attack

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// withMonitor opens the engine's own port, too.
func withMonitor(t testing.TB) func(*fleetbus.Options) {
	return func(o *fleetbus.Options) { o.Monitor = loopback.Addr(t) }
}

// impatient shortens the time that strangers have for a handshake to what it is by default.
func impatient(o *fleetbus.Options) { o.Limits.HandshakeTimeout = 2 * time.Second }

// begin goes to where TLS begins.
func begin(l Listener, conn net.Conn) error {
	if !l.Greets {
		return nil
	}
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := conn.Read(b); err != nil {
			return err
		}
	}
	return nil
}

// secured goes to where TLS is done, if there is some.
func secured(l Listener, conn net.Conn, protocols ...string) (net.Conn, error) {
	if err := begin(l, conn); err != nil || l.Clear {
		return conn, err
	}
	secure := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, NextProtos: protocols})
	return secure, secure.Handshake()
}

// said is what is said when TLS is done.
func said(what func(l Listener) []byte) func(Listener, net.Conn) error {
	return func(l Listener, conn net.Conn) error {
		secure, err := secured(l, conn)
		if err == nil {
			_, err = secure.Write(what(l))
		}
		return err
	}
}

// knock connects, and says what became of act; patience is how long it may take.
func knock(s *fleetbustest.Server, l Listener, patience time.Duration, act func(net.Conn) error) error {
	conn, err := net.DialTimeout("tcp", s.Addr(l.Name).String(), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(patience))
	return act(conn)
}

// shake does a handshake and returns what the server says to it. A refused certificate
// shows in TLS 1.3 only when the client reads.
func shake(l Listener, config *tls.Config) func(net.Conn) error {
	return func(conn net.Conn) error {
		if err := begin(l, conn); err != nil {
			return err
		}
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			return err
		}
		if err := secure.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			return err
		}
		_, err := secure.Read(make([]byte, 1))
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil // it is in
		}
		return err
	}
}

// TestAttackListenersAreKnown finds a row for every protocol that the settings have.
func TestAttackListenersAreKnown(t *testing.T) {
	settings, err := os.ReadFile("../config/options.go")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(settings), "map[string]protocol{")
	table, _, found := strings.Cut(table, "\n\t}\n")
	if !found {
		t.Fatal("the table of protocols is not where it was")
	}
	known := map[string]bool{}
	for _, l := range Listeners() {
		known[l.Setting] = true
	}
	lines := 0
	for line := range strings.Lines(table) {
		_, rest, ok := strings.Cut(line, `"`)
		name, _, _ := strings.Cut(rest, `"`)
		if !ok {
			continue
		}
		lines++
		if !known[name] {
			t.Errorf("protocol %q has no row in Listeners: nobody attacks it", name)
		}
	}
	if lines != len(known)-1 {
		t.Errorf("the settings have %d protocols, and the table %d", lines, len(known)-1)
	}
	s := fleetbustest.Start(t, withEverything, withMonitor(t))
	for _, l := range Listeners() {
		if s.Addr(l.Name) == nil {
			t.Errorf("a node with everything has no listener %q", l.Name)
		}
	}
}

// TestAttackSilence has many at each listener say nothing, half of a handshake, a byte at a
// time, or nothing after it, all at once: each is gone in time.
func TestAttackSilence(t *testing.T) {
	const each = 20
	s := fleetbustest.Start(t, withEverything, impatient, withMonitor(t))
	drip := func(conn net.Conn, text string) error {
		tick := time.NewTicker(200 * time.Millisecond)
		defer tick.Stop()
		gone := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, conn)
			gone <- err
		}()
		for i := 0; ; i++ {
			if _, err := conn.Write([]byte{text[i%len(text)]}); err != nil {
				return err
			}
			select {
			case err := <-gone:
				return err
			case <-tick.C:
			}
		}
	}
	until := func(conn net.Conn) error {
		_, err := io.Copy(io.Discard, conn)
		return err
	}
	after := func(l Listener, act func(net.Conn) error) func(net.Conn) error {
		return func(conn net.Conn) error {
			secure, err := secured(l, conn)
			if err != nil {
				return err
			}
			return act(secure)
		}
	}
	ways := []struct {
		name string
		most time.Duration // that it may take
		way  func(Listener) func(net.Conn) error
	}{
		{"nothing said", 4 * time.Second, func(Listener) func(net.Conn) error { return until }},
		{"half a hello", 4 * time.Second, func(l Listener) func(net.Conn) error {
			return func(conn net.Conn) error {
				if err := begin(l, conn); err != nil {
					return err
				}
				if _, err := conn.Write([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3}); err != nil {
					return err
				}
				return until(conn)
			}
		}},
		{"a handshake a byte at a time", 4 * time.Second, func(l Listener) func(net.Conn) error {
			return func(conn net.Conn) error {
				if err := begin(l, conn); err != nil {
					return err
				}
				return drip(conn, string([]byte{22, 3, 1, 0x40, 0, 1, 0, 0x3f, 0xfc, 3, 3})+strings.Repeat("\x00", 1000))
			}
		}},
		{"TLS, and nothing said", 13 * time.Second, func(l Listener) func(net.Conn) error { return after(l, until) }},
		{"TLS, and a byte at a time", 13 * time.Second, func(l Listener) func(net.Conn) error {
			begins := map[string]string{"mqtt": "\x10\xff\x7f\x00\x04MQTT\x05\x02\x00\x00", "amqp": frame.ProtocolHeader + "\x01\x00\x00\x00\x00\x3f\x00"}
			text, ok := begins[l.Name]
			if !ok {
				text = "GET / HTTP/1.1\r\nHost: x\r\nX: "
			}
			if l.Name == "nats" || l.Name == "leaf" || l.Name == "provision" || l.Name == "open" {
				text = `CONNECT {"name":"`
			}
			return after(l, func(conn net.Conn) error { return drip(conn, text+strings.Repeat("a", 1<<16)) })
		}},
	}
	var all sync.WaitGroup
	for _, l := range Listeners() {
		for _, w := range ways {
			if l.Clear && w.most < 10*time.Second || !l.Clear && l.Asks != "" && w.most > 10*time.Second {
				continue // there is no handshake, or nothing after it for strangers
			}
			all.Go(func() {
				var crowd sync.WaitGroup
				var mu sync.Mutex
				var longest time.Duration
				stayed := 0
				for range each {
					crowd.Go(func() {
						began := time.Now()
						err := knock(s, l, 40*time.Second, w.way(l))
						took := time.Since(began)
						mu.Lock()
						defer mu.Unlock()
						longest = max(longest, took)
						if errors.Is(err, os.ErrDeadlineExceeded) {
							stayed++
						}
					})
				}
				crowd.Wait()
				t.Logf("figure: %s | %s | %d at once, the last gone after %.1f s", l.Name, w.name, each, longest.Seconds())
				most := w.most
				if l.Name == "monitor" {
					most = 41 * time.Second // the engine's, on loopback alone, knows no end
				} else if stayed > 0 || longest > most+slack {
					t.Errorf("%s, %s: %d stayed, the longest for %v, and may for %v", l.Name, w.name, stayed, longest, most)
				}
			})
		}
	}
	all.Wait()
	// The others come in as ever.
	nc, err := s.Connect(s.Creds("acme", "good"))
	if err != nil {
		t.Fatalf("a good client: %v", err)
	}
	nc.Close()
}

// slack is what a busy machine adds.
const slack = 20 * time.Second

// TestAttackDowngrade asks each listener for less than TLS 1.3, or for none.
func TestAttackDowngrade(t *testing.T) {
	s := fleetbustest.Start(t, withEverything, impatient)
	tried := 0
	for _, l := range Listeners() {
		if l.Clear {
			continue
		}
		for _, version := range []uint16{tls.VersionTLS10, tls.VersionTLS11, tls.VersionTLS12} {
			tried++
			err := knock(s, l, 20*time.Second, shake(l, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: version}))
			if err == nil || !strings.Contains(err.Error(), "protocol version") {
				t.Errorf("%s speaks %s: %v", l.Name, tls.VersionName(version), err)
			}
		}
		for name, text := range map[string]string{
			"NATS":        "CONNECT {\"verbose\":true,\"tls_required\":false}\r\nPING\r\n",
			"NATS route":  "INFO {\"server_id\":\"x\",\"name\":\"x\",\"cluster\":\"eu\"}\r\nPING\r\n",
			"HTTP":        "GET /livez HTTP/1.1\r\nHost: x\r\n\r\n",
			"HTTP/2":      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
			"MQTT":        "\x10\x12\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x05hello",
			"AMQP":        frame.ProtocolHeader,
			"SSL 2":       "\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10\x01\x00\x80",
			"PROXY":       "PROXY TCP4 127.0.0.1 127.0.0.1 1 1\r\nGET / HTTP/1.1\r\n\r\n",
			"an alert":    "\x15\x03\x03\x00\x02\x01\x00",
			"early data":  "\x17\x03\x03\x00\x10" + strings.Repeat("x", 16),
			"change spec": strings.Repeat("\x14\x03\x03\x00\x01\x01", 64),
		} {
			tried++
			var heard []byte
			err := knock(s, l, 20*time.Second, func(conn net.Conn) error {
				if err := begin(l, conn); err != nil {
					return err
				}
				if _, err := io.WriteString(conn, text); err != nil {
					return nil
				}
				var err error
				heard, err = io.ReadAll(conn)
				return err
			})
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("%s: who speaks %s in clear stays", l.Name, name)
			}
			// An alert of TLS is all that may come, and the engine's word that it is secure here.
			alert := len(heard) == 7 && heard[0] == 21
			if len(heard) > 0 && !alert && !strings.HasPrefix(string(heard), "-ERR 'Secure Connection - TLS Required'") {
				t.Errorf("%s answers who speaks %s in clear: %q", l.Name, name, heard)
			}
		}
	}
	t.Logf("figure: every listener | downgrade | %d tries, none answered", tried)
}

// wrongCertificates are those that end in the handshake, those that the clients' authority
// has signed for nobody that there is, and the right one of a user.
func wrongCertificates(t testing.TB, s, strange *fleetbustest.Server) (all, nobody map[string]tls.Certificate, right tls.Certificate) {
	t.Helper()
	a, mesh, clients := authorities(t, s.Options.Dir)
	other, otherMesh, otherClients := authorities(t, strange.Options.Dir)
	now := time.Now()
	key := newKey(t)
	csr, err := identity.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	meshPEM, serverPEM, err := a.SignNode(csr, "n9", []string{"127.0.0.1"}, time.Hour, now)
	node, listener := chainOf(t, meshPEM, key, err), chainOf(t, serverPEM, key, err)
	gatePEM, err := a.SignGateway(csr, "us", "n9", time.Hour, now)
	gate := chainOf(t, gatePEM, key, err)
	userPEM, err := a.SignUser(csr, "acme", "alice", time.Hour, now)
	user := chainOf(t, userPEM, key, err)
	otherPEM, err := other.SignUser(csr, "acme", "alice", time.Hour, now)
	otherUser := chainOf(t, otherPEM, key, err)
	below := func(i issuer, name string, edit ...func(*x509.Certificate)) tls.Certificate {
		middle := i.issue(t, "", nil, authority, func(c *x509.Certificate) { c.Subject.CommonName = "middle" })
		return as(middle).issue(t, name, [][]byte{middle.Certificate[0]}, edit...)
	}
	mismatch := user
	mismatch.PrivateKey = newKey(t)
	meshMismatch := node
	meshMismatch.PrivateKey = newKey(t)
	all = map[string]tls.Certificate{
		"user, expired":                            clients.issue(t, "acme/alice", nil, past),
		"user, not yet valid":                      clients.issue(t, "acme/alice", nil, future),
		"user, of another fleet":                   otherUser,
		"user, another fleet of the same name":     otherClients.issue(t, "acme/alice", nil),
		"user, self-signed":                        issuer{}.issue(t, "acme/alice", nil),
		"user, self-signed as an authority":        issuer{}.issue(t, "acme/alice", nil, authority),
		"user, the key of another":                 mismatch,
		"user, for a server":                       clients.issue(t, "acme/alice", nil, server),
		"user, of a user that signs":               as(user).issue(t, "acme/bob", [][]byte{user.Certificate[0]}),
		"user, below an authority of authorities":  below(clients, "acme/alice"),
		"user, of the mesh":                        mesh.issue(t, "acme/alice", nil),
		"server certificate of a node":             listener,
		"node, expired":                            mesh.issue(t, "node/n1.x", nil, both, past),
		"node, not yet valid":                      mesh.issue(t, "node/n1.x", nil, both, future),
		"node, another of its name":                mesh.issue(t, "node/n1.another", nil, both),
		"node, of another fleet":                   otherMesh.issue(t, "node/n1", nil, both),
		"node, self-signed":                        issuer{}.issue(t, "node/n1", nil, both),
		"node, the key of another":                 meshMismatch,
		"node, for a client alone":                 mesh.issue(t, "node/n1", nil),
		"node, for a server alone":                 mesh.issue(t, "node/n1", nil, server),
		"node, of a user that signs":               as(user).issue(t, "node/n1", [][]byte{user.Certificate[0]}, both),
		"node, below an authority of authorities":  below(mesh, "node/n1", both),
		"node, without a name":                     mesh.issue(t, "", nil, both),
		"node, a name that is a path":              mesh.issue(t, "node/../node/n1", nil, both),
		"gateway, of a region that nobody knows":   gate,
		"gateway, self-signed":                     issuer{}.issue(t, "region/us/n9", nil, both),
		"user, of a mesh that names it and a node": mesh.issue(t, "acme/alice", nil, both),
	}
	// The clients' authority has signed these, and they are of nobody.
	nobody = map[string]tls.Certificate{
		"node, of the clients' authority":    clients.issue(t, "node/n1", nil, both),
		"gateway, of the clients' authority": clients.issue(t, "region/us/n9", nil, both),
		"user, of another fleet's name":      clients.issue(t, "", nil, func(c *x509.Certificate) { c.URIs = []*url.URL{{Scheme: "spiffe", Host: "other", Path: "/acme/alice"}} }),
		"user, that there is not":            clients.issue(t, "acme/nobody", nil),
		"user, of an account that is not":    clients.issue(t, "none/alice", nil),
		"user, a name that is a path":        clients.issue(t, "acme/../acme/alice", nil),
		"user, a name in two places": clients.issue(t, "acme/alice", nil, func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "fleet", Path: "/acme/bob"})
		}),
		"user, in the common name alone": clients.issue(t, "", nil, func(c *x509.Certificate) { c.Subject.CommonName = "acme/alice" }),
		"user, no name":                  clients.issue(t, "", nil),
	}
	return all, nobody, user
}

// TestAttackCertificates shows every wrong certificate at every listener: none gets further
// than the handshake.
func TestAttackCertificates(t *testing.T) {
	strange := fleetbustest.Start(t)
	strange.Stop()
	s := fleetbustest.Start(t, withEverything)
	s.User(admin.UserRequest{Name: "acme/alice"})
	wrong, nobody, right := wrongCertificates(t, s, strange)
	refused := 0
	for _, l := range Listeners() {
		if l.Clear {
			continue
		}
		if l.Name == "leaf" {
			continue // it asks for none: a site signs a nonce
		}
		for name, cert := range wrong {
			err := knock(s, l, 30*time.Second, shake(l, showing(cert)))
			var alert tls.AlertError
			told := err != nil && (errors.As(err, &alert) || strings.Contains(err.Error(), "remote error: tls"))
			if !told {
				t.Errorf("%s: %s: %v", l.Name, name, err)
			}
			refused++
		}
		if l.Asks != "" {
			for name, cert := range nobody {
				if err := knock(s, l, 30*time.Second, shake(l, showing(cert))); err == nil {
					t.Errorf("%s: %s is in", l.Name, name)
				}
				refused++
			}
		} else {
			if err := knock(s, l, 30*time.Second, shake(l, showing(right))); err != nil {
				t.Errorf("%s: the right one: %v", l.Name, err)
			}
		}
	}
	t.Logf("figure: every listener | certificates | %d shown, each refused in the handshake", refused)
}
