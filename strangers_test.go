package fleetbus_test

import (
	"bufio"
	"context"
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

// closeTimeout is how long a stranger may stay: the bound on the handshake, and
// what a busy machine adds.
const closeTimeout = 10 * time.Second

// impatient shortens the time that strangers have.
func impatient(o *fleetbus.Options) { o.Limits.HandshakeTimeout = time.Second }

// A door is a port as a stranger finds it.
type door struct {
	name, addr string
	// greets says that the server speaks first, in clear, before TLS.
	greets bool
	// line is in what the operator is told of a stranger.
	line string
}

func doors(s *fleetbustest.Server) []door {
	return []door{
		{name: "nats", addr: s.Addr("nats").String(), greets: true, line: "TLS handshake error"},
		{name: "lines", addr: s.Addr("lines").String(), line: "stranger refused"},
		{name: "cluster", addr: s.Addr("cluster").String(), line: "TLS route handshake error"},
	}
}

// knock connects, and returns when act is done.
func (d door) knock(t testing.TB, act func(net.Conn) error) error {
	t.Helper()
	conn, err := new(net.Dialer).DialContext(limited(t, closeTimeout), "tcp", d.addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(closeTimeout)); err != nil {
		t.Fatal(err)
	}
	if d.greets {
		if err := skipLine(conn); err != nil {
			return err
		}
	}
	return act(conn)
}

// skipLine reads no more than one line.
func skipLine(r io.Reader) error {
	for b := make([]byte, 1); b[0] != '\n'; {
		if _, err := r.Read(b); err != nil {
			return err
		}
	}
	return nil
}

// shake does a handshake and returns what the server says to it. A refused
// certificate shows in TLS 1.3 only when the client reads.
func shake(config *tls.Config) func(net.Conn) error {
	return func(conn net.Conn) error {
		secure := tls.Client(conn, config)
		if err := secure.Handshake(); err != nil {
			return err
		}
		_, err := secure.Read(make([]byte, 1))
		return err
	}
}

// raw sends bytes in clear and reads to the end.
func raw(text string) func(net.Conn) error {
	return func(conn net.Conn) error {
		if _, err := io.WriteString(conn, text); err != nil {
			return err
		}
		_, err := io.Copy(io.Discard, conn)
		return err
	}
}

// slow sends a handshake one byte a second.
func slow(conn net.Conn) error {
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	done := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, conn)
		done <- err
	}()
	for _, b := range []byte{0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3} {
		if _, err := conn.Write([]byte{b}); err != nil {
			return err
		}
		select {
		case err := <-done:
			return err
		case <-tick.C:
		}
	}
	return os.ErrDeadlineExceeded
}

// builtin reads the authority of a node.
func builtin(t testing.TB, s *fleetbustest.Server) *identity.Authority {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.Options.Dir, "authority.json"))
	if err != nil {
		t.Fatal(err)
	}
	a := new(identity.Authority)
	if err := a.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	return a
}

func request(t testing.TB) (*x509.CertificateRequest, crypto.Signer) {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	return csr, key
}

func chain(t testing.TB, text []byte, key crypto.Signer, err error) tls.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert
}

// userCertificate is of acme/alice, valid for a day from then.
func userCertificate(t testing.TB, a *identity.Authority, then time.Time) tls.Certificate {
	t.Helper()
	csr, key := request(t)
	text, err := a.SignUser(csr, "acme", "alice", 24*time.Hour, then)
	return chain(t, text, key, err)
}

// nodeCertificates are those of a node n9.
func nodeCertificates(t testing.TB, a *identity.Authority, then time.Time) (mesh, server tls.Certificate) {
	t.Helper()
	csr, key := request(t)
	meshPEM, serverPEM, err := a.SignNode(csr, "n9", []string{"127.0.0.1"}, 24*time.Hour, then)
	return chain(t, meshPEM, key, err), chain(t, serverPEM, key, err)
}

// showing shows a certificate whatever authorities the server asks for.
func showing(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify:   true, // the stranger trusts anybody
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}

// TestStrangers knocks at every port as those who have no business there. Each is
// refused in bounded time, is told what TLS can tell, and is one line to the
// operator.
func TestStrangers(t *testing.T) {
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withLines, impatient)
	s.User(admin.UserRequest{Name: "acme/alice"})
	own := builtin(t, s)
	other, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	now, past, future := time.Now(), time.Now().Add(-72*time.Hour), time.Now().Add(72*time.Hour)
	mesh, server := nodeCertificates(t, own, now)
	oldMesh, _ := nodeCertificates(t, own, past)
	futureMesh, _ := nodeCertificates(t, own, future)
	otherMesh, _ := nodeCertificates(t, other, now)
	strangers := []struct {
		name  string
		act   func(net.Conn) error
		told  string // "" for who speaks no TLS
		doors string
	}{
		{"plain", raw("GET / HTTP/1.1\r\nHost: x\r\n\r\n"), "", "nats lines cluster"},
		{"plain NATS", raw("CONNECT {\"verbose\":true}\r\nPING\r\n"), "", "nats lines cluster"},
		{"garbage", raw(strings.Repeat("\xde\xad\xbe\xef", 1024)), "", "nats lines cluster"},
		{"silent", raw(""), "", "nats lines cluster"},
		{"slow", slow, "", "nats lines cluster"},
		{"TLS 1.2", shake(&tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}), "protocol version", "nats lines cluster"},
		{"another fleet's user", shake(showing(userCertificate(t, other, now))), "unknown certificate authority", "nats lines"},
		{"expired", shake(showing(userCertificate(t, own, past))), "expired certificate", "nats lines"},
		{"not yet valid", shake(showing(userCertificate(t, own, future))), "expired certificate", "nats lines"},
		{"server certificate", shake(showing(server)), "bad certificate", "nats lines cluster"},
		{"mesh certificate", shake(showing(mesh)), "unknown certificate authority", "nats lines"},
		{"no certificate", shake(&tls.Config{InsecureSkipVerify: true}), "certificate required", "cluster"},
		{"client certificate", shake(showing(userCertificate(t, own, now))), "bad certificate", "cluster"},
		{"another fleet's mesh", shake(showing(otherMesh)), "bad certificate", "cluster"},
		{"expired mesh", shake(showing(oldMesh)), "bad certificate", "cluster"},
		{"future mesh", shake(showing(futureMesh)), "bad certificate", "cluster"},
	}
	for _, d := range doors(s) {
		for _, stranger := range strangers {
			if !strings.Contains(stranger.doors, d.name) {
				continue
			}
			t.Run(d.name+"/"+stranger.name, func(t *testing.T) {
				before := len(j.lines(d.line))
				err := d.knock(t, stranger.act)
				if errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("the stranger was still there after %v", closeTimeout)
				}
				if stranger.told != "" && (err == nil || !strings.Contains(err.Error(), stranger.told)) {
					t.Errorf("the stranger was told %v, want %q", err, stranger.told)
				}
				if d.greets && stranger.told == "" {
					return // the engine takes it for the probe of a load balancer
				}
				fleetbustest.Eventually(t, "the operator's line", func() error {
					if n := len(j.lines(d.line)) - before; n != 1 {
						return fmt.Errorf("%d lines of %q", n, d.line)
					}
					return nil
				})
			})
		}
	}
}

// TestSilentAfterHandshake keeps a TLS connection open without a word.
func TestSilentAfterHandshake(t *testing.T) {
	s := fleetbustest.Start(t, withLines, impatient)
	for _, d := range doors(s)[:2] {
		err := d.knock(t, func(conn net.Conn) error {
			_, err := io.Copy(io.Discard, tls.Client(conn, named(s.TLS())))
			return err
		})
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: the stranger was still there after %v", d.name, closeTimeout)
		}
	}
}

// TestCertificateRequired refuses the handshake of who shows none, and keeps the
// certificate and the name together.
func TestCertificateRequired(t *testing.T) {
	s := fleetbustest.Start(t, withLines, func(o *fleetbus.Options) {
		for i := range o.Listeners {
			if o.Listeners[i].Name == "lines" {
				o.Listeners[i].ClientCertificate = fleetbus.CertificateRequired
			}
		}
	})
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	eve := s.TLS()
	eve.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "other/eve"})}
	alice := s.TLS()
	alice.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/alice"})}
	addr := s.Addr("lines").String()
	if _, err := loginLines(limited(t, 10*time.Second), addr, s.TLS(), "acme/alice", password); err == nil || !strings.Contains(err.Error(), "certificate required") {
		t.Errorf("without a certificate: %v", err)
	}
	if _, err := loginLines(limited(t, 10*time.Second), addr, eve, "acme/alice", password); err == nil || err.Error() != "unauthorized" {
		t.Errorf("with the certificate of another account: %v", err)
	}
	c, err := loginLines(limited(t, 10*time.Second), addr, alice, "acme/alice", password)
	if err != nil {
		t.Fatalf("with both: %v", err)
	}
	c.Close()
	if nc, err := byCertificate(s, eve.Certificates[0], nats.UserInfo("acme/alice", password)); err == nil {
		nc.Close()
		t.Error("NATS let in a user with the certificate of another account")
	}
}

// TestOwnAuthorityAtTheMesh tries certificates of the operator's authority, which
// is good for listeners only, whatever they are for.
func TestOwnAuthorityAtTheMesh(t *testing.T) {
	own := newAuthority(t)
	s, _ := startOwn(t, own)
	d := doors(s)[2]
	client, server := x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth
	for name, usages := range map[string][]x509.ExtKeyUsage{"client": {client}, "server": {server}, "node": {client, server}, "all": nil} {
		cert := own.issue(t, name, usages)
		if err := d.knock(t, shake(showing(cert))); err == nil || !strings.Contains(err.Error(), "bad certificate") {
			t.Errorf("a certificate for a %s came into the mesh: %v", name, err)
		}
	}
}

// TestClientCertificateAsServer has a stranger pose as a node with the
// certificate of a user.
func TestClientCertificateAsServer(t *testing.T) {
	s := fleetbustest.Start(t)
	cert := s.Certificate(admin.UserRequest{Name: "acme/alice"})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	posing := make(chan error, 1)
	go func() {
		conn, err := ln.Accept()
		if err != nil {
			posing <- err
			return
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, "INFO {\"server_id\":\"x\",\"tls_required\":true,\"proto\":1,\"max_payload\":1024}\r\n")
		secure := tls.Server(conn, &tls.Config{Certificates: []tls.Certificate{cert}})
		if err := secure.Handshake(); err != nil {
			posing <- err
			return
		}
		line, err := bufio.NewReader(secure).ReadString('\n')
		if err == nil {
			err = fmt.Errorf("it was sent %q", line)
		}
		posing <- err
	}()
	client, err := fleetbus.New(fleetbus.Options{
		Mode: fleetbus.Client, Dir: t.TempDir(), TLS: fleetbus.TLS{CA: []string{s.Founded().CA}},
		Client: fleetbus.ClientOptions{Endpoints: []string{ln.Addr().String()}, Creds: s.Creds("acme", "bob")},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Run(limited(t, 20*time.Second)); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("the client's server ended with: %v", err)
	}
	if err := <-posing; err == nil || strings.Contains(err.Error(), "it was sent") {
		t.Errorf("the stranger got on: %v", err)
	}
}

// TestSilentCrowd has hundreds stand silently at each port: a good client still
// gets in, and nothing of them is left.
func TestSilentCrowd(t *testing.T) {
	s := fleetbustest.Start(t, withLines, impatient)
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	for _, d := range doors(s) {
		t.Run(d.name, func(t *testing.T) {
			var crowd sync.WaitGroup
			var stayed sync.Map
			arrived := make(chan struct{}, 400)
			for i := range cap(arrived) {
				crowd.Go(func() {
					conn, err := new(net.Dialer).DialContext(t.Context(), "tcp", d.addr)
					arrived <- struct{}{}
					if err != nil {
						stayed.Store(i, err)
						return
					}
					defer conn.Close()
					_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
					if _, err := io.Copy(io.Discard, conn); errors.Is(err, os.ErrDeadlineExceeded) {
						stayed.Store(i, err)
					}
				})
			}
			for range cap(arrived) {
				<-arrived
			}
			began := time.Now()
			switch d.name {
			case "nats":
				// The time for a login is short here, and a password takes some.
				fleetbustest.Eventually(t, "a good client", func() error {
					nc, err := byPassword(s, "acme/alice", password, nats.Timeout(closeTimeout))
					if err == nil {
						nc.Close()
					}
					return err
				})
			case "lines":
				fleetbustest.Eventually(t, "a good client", func() error {
					c, err := loginLines(limited(t, closeTimeout), d.addr, s.TLS(), "acme/alice", password)
					if err == nil {
						c.Close()
					}
					return err
				})
			}
			t.Logf("a good client was in after %v", time.Since(began))
			crowd.Wait()
			stayed.Range(func(_, err any) bool {
				t.Errorf("one of the crowd: %v", err)
				return false
			})
		})
	}
}

// TestFlood makes more handshakes than the rate allows. Some are refused, and a
// good client gets in as soon as it is over.
func TestFlood(t *testing.T) {
	const rate, many = 5, 120 // a slow machine makes more than five in a second
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withLines, func(o *fleetbus.Options) { o.Limits.HandshakeRate = rate })
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	for _, d := range doors(s)[:2] {
		t.Run(d.name, func(t *testing.T) {
			var flood sync.WaitGroup
			told := make(chan error, many)
			for range cap(told) {
				flood.Go(func() {
					told <- d.knock(t, func(conn net.Conn) error { return tls.Client(conn, named(s.TLS())).Handshake() })
				})
			}
			flood.Wait()
			close(told)
			refused := 0
			for err := range told {
				if err != nil {
					refused++
				}
			}
			if refused == 0 || refused == cap(told) {
				t.Errorf("%d of %d were refused at a rate of %d", refused, cap(told), rate)
			}
			j.await("too many handshakes")
			fleetbustest.Eventually(t, "a good client", func() error {
				if d.name == "nats" {
					nc, err := byPassword(s, "acme/alice", password)
					if err == nil {
						nc.Close()
					}
					return err
				}
				ctx, cancel := context.WithTimeout(t.Context(), closeTimeout)
				defer cancel()
				c, err := loginLines(ctx, d.addr, s.TLS(), "acme/alice", password)
				if err == nil {
					c.Close()
				}
				return err
			})
		})
	}
}

// named are settings for a connection that is there already.
func named(config *tls.Config) *tls.Config {
	config.ServerName = "127.0.0.1"
	return config
}

// TestGuessers has many guess passwords at once: who has a certificate gets in.
func TestGuessers(t *testing.T) {
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withLines)
	cert := s.Certificate(admin.UserRequest{Name: "acme/alice"})
	var guessers sync.WaitGroup
	defer guessers.Wait()
	enough, stop := context.WithCancel(t.Context())
	defer stop()
	for range 100 {
		guessers.Go(func() {
			for enough.Err() == nil {
				if nc, err := byPassword(s, "acme/alice", "guess", nats.Timeout(closeTimeout)); err == nil {
					nc.Close()
					t.Error("a guesser got in")
				}
			}
		})
	}
	j.await("too many passwords are being verified")
	stop()
	fleetbustest.Eventually(t, "a client with a certificate", func() error {
		nc, err := byCertificate(s, cert)
		if err == nil {
			nc.Close()
		}
		return err
	})
}

// TestGuessersGiveUp has hundreds guess by a protocol that is no engine's, each for a moment:
// who is gone is not verified, and who comes then does not wait for that.
func TestGuessersGiveUp(t *testing.T) {
	s := fleetbustest.Start(t)
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	login := s.LoginBy("web")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	const many = 400
	told := make(chan error, many)
	for range many {
		go func() {
			_, err := login(ctx, identity.Credentials{Username: "acme/alice", Password: "guess", Remote: "192.0.2.1:1"})
			told <- err
		}()
	}
	gaveUp := 0
	for range many {
		if err := <-told; err == nil {
			t.Error("a guesser got in")
		} else if !errors.Is(err, identity.ErrUnauthorized) {
			gaveUp++
		}
	}
	if gaveUp < many/2 {
		t.Errorf("%d of %d were given up, and the others verified after they had gone", gaveUp, many)
	}
	session, err := login(limited(t, closeTimeout), identity.Credentials{Username: "acme/alice", Password: password, Remote: "192.0.2.1:1"})
	if err != nil {
		t.Fatal(err)
	}
	session.Close()
}

// TestGuessersElsewhere has a thousand guess passwords from one address, and wait: most are told to
// come again, the operator once, and who comes from another address waits with those who are left.
func TestGuessersElsewhere(t *testing.T) {
	j := &journal{TB: t}
	s := fleetbustest.Start(j)
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	login := s.LoginBy("web")
	ctx, giveUp := context.WithCancel(t.Context())
	defer giveUp()
	const many, most = 1000, strangers.Most/4 + 2
	var refused, guessed atomic.Int32
	var all sync.WaitGroup
	for range many {
		all.Go(func() {
			switch _, err := login(ctx, identity.Credentials{Username: "acme/alice", Password: "guess", Remote: "192.0.2.1:1"}); {
			case errors.Is(err, identity.ErrUnauthorized):
				guessed.Add(1)
			case errors.Is(err, strangers.ErrQueue):
				refused.Add(1)
			default:
				t.Errorf("a guesser is told %v", err)
			}
		})
	}
	// All are there when all but those who wait are told.
	await(t, "those who are too many are told to come again", func() bool { return refused.Load()+guessed.Load() >= many-most })
	// They give up, so that the test does not verify all those who wait.
	late := time.AfterFunc(time.Second, giveUp)
	defer late.Stop()
	session, err := login(limited(t, time.Minute), identity.Credentials{Username: "acme/alice", Password: password, Remote: "192.0.2.2:1"})
	if err != nil {
		t.Fatalf("who came from elsewhere: %v", err)
	}
	defer session.Close()
	all.Wait()
	if n := strings.Count(j.content(), strangers.ErrQueue.Error()); n != 1 {
		t.Errorf("the operator is told %d times", n)
	}
}
