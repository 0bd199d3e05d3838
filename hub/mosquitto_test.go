package hub

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// patience is how long a slow machine may need for anything.
const patience = 2 * time.Minute

// mosquittoPath finds the broker, which is not in everybody's PATH.
func mosquittoPath(t testing.TB) string {
	t.Helper()
	for _, name := range []string{"mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto"} {
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("there is no mosquitto here: apt-get install mosquitto")
	return ""
}

// hubPKI are the files of a hub's authority, its server and a client.
type hubPKI struct{ ca, cert, key, clientCert, clientKey string }

func pki(t testing.TB) hubPKI {
	t.Helper()
	dir := t.TempDir()
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	issue := func(name string, parent *x509.Certificate, signer *ecdsa.PrivateKey) (string, string, *x509.Certificate, *ecdsa.PrivateKey) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		c := &x509.Certificate{
			SerialNumber: big.NewInt(mrand.Int64()), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
			DNSNames: []string{"localhost", name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
			ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		}
		if parent == nil {
			c.IsCA, c.BasicConstraintsValid, c.KeyUsage = true, true, x509.KeyUsageCertSign
			parent, signer = c, key
		}
		der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		if c, err = x509.ParseCertificate(der); err != nil {
			t.Fatal(err)
		}
		private, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return write(name+".pem", "CERTIFICATE", der), write(name+".key", "EC PRIVATE KEY", private), c, key
	}
	var p hubPKI
	var ca *x509.Certificate
	var caKey *ecdsa.PrivateKey
	p.ca, _, ca, caKey = issue("authority", nil, nil)
	p.cert, p.key, _, _ = issue("broker", ca, caKey)
	p.clientCert, p.clientKey, _, _ = issue("client", ca, caKey)
	return p
}

// mosquitto is a broker that a test starts, kills and starts again.
type mosquitto struct {
	t    testing.TB
	addr string
	conf string
	pki  hubPKI
	url  string

	mu  sync.Mutex
	cmd *exec.Cmd
}

// startMosquitto starts a broker with mutual TLS, or without TLS, and more settings.
func startMosquitto(t testing.TB, tls bool, settings ...string) *mosquitto {
	t.Helper()
	mosquittoPath(t)
	m := &mosquitto{t: t, addr: loopback.Addr(t), conf: filepath.Join(t.TempDir(), "mosquitto.conf")}
	_, port, _ := net.SplitHostPort(m.addr)
	lines := []string{"listener " + port + " 127.0.0.1", "log_dest stderr", "log_type error", "log_type warning", "log_type notice"}
	m.url = "mqtt://" + m.addr
	if tls {
		m.pki = pki(t)
		m.url = "mqtts://" + m.addr
		lines = append(lines, "cafile "+m.pki.ca, "certfile "+m.pki.cert, "keyfile "+m.pki.key, "require_certificate true", "use_identity_as_username true")
	}
	if os.Getuid() == 0 {
		lines = append(lines, "user root") // it may read what the test wrote
	}
	if !strings.Contains(strings.Join(settings, "\n"), "allow_anonymous") {
		lines = append(lines, "allow_anonymous true")
	}
	if err := os.WriteFile(m.conf, []byte(strings.Join(append(lines, settings...), "\n")+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		m.kill()
		if log, err := os.ReadFile(m.conf + ".log"); err == nil && t.Failed() {
			t.Logf("mosquitto said, at its end:\n%s", log[max(0, len(log)-3<<10):])
		}
	})
	m.start()
	return m
}

// start starts it, and waits until it accepts.
func (m *mosquitto) start() {
	m.t.Helper()
	m.mu.Lock()
	defer m.mu.Unlock()
	log, err := os.OpenFile(m.conf+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		m.t.Fatal(err)
	}
	defer log.Close()
	m.cmd = exec.Command(mosquittoPath(m.t), "-c", m.conf)
	m.cmd.Stderr, m.cmd.Stdout = log, log
	if err := m.cmd.Start(); err != nil {
		m.t.Fatal(err)
	}
	await.Nil(m.t, "mosquitto listens", func() error {
		conn, err := net.DialTimeout("tcp", m.addr, time.Second)
		if err == nil {
			conn.Close()
		}
		return err
	})
}

// kill ends it as a crash would.
func (m *mosquitto) kill() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.cmd != nil {
		_ = m.cmd.Process.Kill()
		_ = m.cmd.Wait() // it was killed
		m.cmd = nil
	}
}

// hangup has it read its lists again.
func (m *mosquitto) hangup() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.cmd.Process.Signal(syscall.SIGHUP); err != nil {
		m.t.Error(err)
	}
}

// node is an engine of its own with a link.
type node struct {
	t    testing.TB
	name string
	bus  *changetest.Bus
	o    Options
	link *Link

	stop context.CancelFunc
	done chan error
}

func (m *mosquitto) options(name string) Options {
	return Options{Servers: []string{m.url}, CA: m.pki.ca, Cert: m.pki.clientCert, Key: m.pki.clientKey, Node: name, Account: "acme", Subjects: []string{"orders.>"}}
}

func startNode(t testing.TB, o Options) *node {
	t.Helper()
	n := &node{t: t, name: o.Node, bus: changetest.Start(t), o: o}
	n.run()
	return n
}

// run runs the link until the test ends, or halt.
func (n *node) run() {
	n.t.Helper()
	link, err := New(n.o)
	if err != nil {
		n.t.Fatal(err)
	}
	link.Logger = slog.New(slog.NewTextHandler(n.t.Output(), nil)).With("node", n.name)
	n.link = link
	ctx, cancel := context.WithCancel(context.Background())
	nc, done := n.bus.Connect(), make(chan error, 1)
	go func() { done <- link.Run(ctx, nc) }()
	n.stop, n.done = cancel, done
	n.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				n.t.Errorf("the link of %s ended with %v", n.name, err)
			}
			done <- nil
		case <-time.After(patience):
			n.t.Errorf("the link of %s did not end", n.name)
		}
	})
}

// halt ends the link, as the end of its node does.
func (n *node) halt() {
	n.t.Helper()
	n.stop()
	if err := <-n.done; err != nil {
		n.t.Errorf("the link of %s ended with %v", n.name, err)
	}
	n.done <- nil
}

func (n *node) connected() error {
	if h := n.link.Hub(); h.State != "connected" {
		return fmt.Errorf("%s is %s: %s", n.name, h.State, h.Error)
	}
	return nil
}

// met waits until the nodes hear one another.
func met(t testing.TB, nodes ...*node) {
	t.Helper()
	for _, n := range nodes {
		await.Nil(t, n.name+" hears the others", func() error {
			near := 0
			for _, p := range n.link.Hub().Peers {
				if p.State == "connected" {
					near++
				}
			}
			if near < len(nodes)-1 {
				return fmt.Errorf("%+v", n.link.Hub())
			}
			return nil
		})
	}
}

// listener is what one node's clients hear.
type listener struct {
	mu   sync.Mutex
	msgs []*nats.Msg
}

func (n *node) listen(subject string) *listener {
	n.t.Helper()
	l := &listener{}
	nc := n.bus.Connect()
	if _, err := nc.Subscribe(subject, func(m *nats.Msg) {
		l.mu.Lock()
		l.msgs = append(l.msgs, m)
		l.mu.Unlock()
	}); err != nil {
		n.t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		n.t.Fatal(err)
	}
	return l
}

func (l *listener) payloads() (all []string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, m := range l.msgs {
		all = append(all, string(m.Data))
	}
	return all
}
