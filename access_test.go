package fleetbus_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// A journal is a test that keeps what its servers log.
type journal struct {
	testing.TB
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Output() io.Writer { return io.MultiWriter(j.TB.Output(), j) }

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

// content is all of it.
func (j *journal) content() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

// lines are those logged that contain every one of parts.
func (j *journal) lines(parts ...string) []string {
	all := strings.Split(j.content(), "\n")
	return slices.DeleteFunc(all, func(l string) bool {
		return slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(l, p) })
	})
}

// await waits for a line that contains every one of parts.
func (j *journal) await(parts ...string) {
	j.Helper()
	fleetbustest.Eventually(j, fmt.Sprintf("a line with %q", parts), func() error {
		if len(j.lines(parts...)) == 0 {
			return errors.New("there is none")
		}
		return nil
	})
}

// addRole makes a role, with all permissions if it has none.
func addRole(t testing.TB, s *fleetbustest.Server, r identity.Role) {
	t.Helper()
	if r.Permissions.Empty() {
		everything := identity.Rule{Allow: []string{">"}}
		r.Permissions = identity.Permissions{Publish: everything, Subscribe: everything}
	}
	if _, err := s.Admin().AddRole(limited(t, 10*time.Second), r); err != nil {
		t.Fatal(err)
	}
}

// byPassword connects over NATS with a user's name and password.
func byPassword(s *fleetbustest.Server, user, password string, opts ...nats.Option) (*nats.Conn, error) {
	if _, name, err := identity.SplitName(user); err == nil {
		opts = append(opts, nats.CustomInboxPrefix(identity.Inbox(name)))
	}
	return nats.Connect(s.URL(), append([]nats.Option{nats.Secure(s.TLS()), nats.Timeout(20 * time.Second), nats.UserInfo(user, password)}, opts...)...)
}

// byCertificate connects over NATS with a client certificate.
func byCertificate(s *fleetbustest.Server, cert tls.Certificate, opts ...nats.Option) (*nats.Conn, error) {
	config := s.TLS()
	config.Certificates = []tls.Certificate{cert}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, err
	}
	if name := leaf.Subject.CommonName; identity.CheckName(name) == nil {
		opts = append(opts, nats.CustomInboxPrefix(identity.Inbox(name)))
	}
	return nats.Connect(s.URL(), append([]nats.Option{nats.Secure(config), nats.Timeout(20 * time.Second)}, opts...)...)
}

// TestRefusals compares what the refused are told, over both protocols, and what
// the operator is told of each.
func TestRefusals(t *testing.T) {
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withLines)
	api := s.Admin()
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	denied := s.Password(admin.UserRequest{Name: "acme/dan"})
	if _, err := api.DenyUser(limited(t, 10*time.Second), "acme/dan"); err != nil {
		t.Fatal(err)
	}
	addRole(t, s, identity.Role{Name: "inside", Networks: []string{"10.0.0.0/8"}})
	addRole(t, s, identity.Role{Name: "local", Networks: []string{"127.0.0.0/8"}})
	outside := s.Password(admin.UserRequest{Name: "acme/oscar", Role: "inside"})
	inside := s.Password(admin.UserRequest{Name: "acme/ines", Role: "local"})
	token, err := api.AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindUser, Account: "acme", Name: "new"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := api.RevokeToken(limited(t, 10*time.Second), token.ID); err != nil {
		t.Fatal(err)
	}
	addr := s.Addr("lines").String()
	for _, c := range []struct{ name, user, password, token, operator string }{
		{"wrong password", "acme/alice", "wrong", "", "wrong password"},
		{"unknown user", "acme/nobody", password, "", "there is no user"},
		{"unknown account", "nowhere/alice", password, "", "there is no user"},
		{"denied user", "acme/dan", denied, "", "is denied since"},
		{"another network", "acme/oscar", outside, "", "came from"},
		{"revoked token", "", "", token.Text, "token has been revoked"},
		{"damaged token", "", "", "fb1.none", "reading the token"},
	} {
		t.Run(c.name, func(t *testing.T) {
			opening := "LOGIN " + c.user + " " + c.password
			opts := []nats.Option{nats.Secure(s.TLS()), nats.Timeout(20 * time.Second)}
			if c.token != "" {
				opening, opts = "TOKEN "+c.token, append(opts, nats.Token(c.token))
			} else {
				opts = append(opts, nats.UserInfo(c.user, c.password))
			}
			before := len(j.lines("client refused", c.operator))
			if _, err := dialLines(limited(t, 10*time.Second), addr, s.TLS(), opening); err == nil || err.Error() != "unauthorized" {
				t.Errorf("the client was told %v", err)
			}
			if _, err := nats.Connect(s.URL(), opts...); err == nil || !strings.EqualFold(err.Error(), nats.ErrAuthorization.Error()) {
				t.Errorf("the NATS client was told %v", err)
			}
			if n := len(j.lines("client refused", c.operator)) - before; n != 2 {
				t.Errorf("the operator was told %d times in two refusals", n)
			}
		})
	}
	nc, err := byPassword(s, "acme/ines", inside)
	if err != nil {
		t.Fatalf("a user from an allowed network: %v", err)
	}
	nc.Close()
	creds := s.Creds("acme", "oscar")
	if nc, err := s.Connect(creds); err == nil {
		nc.Close()
		t.Error("a creds file was good from another network")
	}
}

// TestEveryWayIn connects one user by each credential, and finds the same
// principal with the same permissions.
func TestEveryWayIn(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	addRole(t, s, identity.Role{Name: "answering", Permissions: identity.Permissions{
		Publish:   identity.Rule{Allow: []string{"open.{{name()}}.>"}, Deny: []string{"open.alice.shut"}},
		Subscribe: identity.Rule{Allow: []string{"open.>"}, Deny: []string{"open.shut"}},
		Replies:   &identity.Replies{Max: 1, For: time.Minute},
	}})
	request := admin.UserRequest{Name: "acme/alice", Role: "answering"}
	password := s.Password(request)
	cert := s.Certificate(request)
	creds := s.Creds("acme", "alice")
	ways := map[string]func(opts ...nats.Option) (*nats.Conn, error){
		"creds":       func(opts ...nats.Option) (*nats.Conn, error) { return s.Connect(creds, opts...) },
		"certificate": func(opts ...nats.Option) (*nats.Conn, error) { return byCertificate(s, cert, opts...) },
		"password":    func(opts ...nats.Option) (*nats.Conn, error) { return byPassword(s, "acme/alice", password, opts...) },
		"certificate and name": func(opts ...nats.Option) (*nats.Conn, error) {
			return byCertificate(s, cert, append(opts, nats.UserInfo("acme/alice", ""))...)
		},
	}
	other := s.Dial("acme", "bob")
	for name, connect := range ways {
		t.Run(name, func(t *testing.T) {
			violations := make(chan error, 8)
			nc, err := connect(nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { violations <- err }))
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			for _, subject := range []string{"open.bob.x", "open.alice.shut", "other"} {
				if err := nc.Publish(subject, nil); err != nil {
					t.Fatal(err)
				}
				expectViolation(t, violations, "Publish", subject)
			}
			if _, err := nc.Subscribe("open.shut", func(*nats.Msg) {}); err != nil {
				t.Fatal(err)
			}
			expectViolation(t, violations, "Subscription", "open.shut")
			// It may answer, once, where it may not publish.
			if _, err := nc.Subscribe("open.ask", func(msg *nats.Msg) {
				_ = msg.Respond([]byte("first"))
				_ = msg.Respond([]byte("second"))
			}); err != nil {
				t.Fatal(err)
			}
			if err := nc.Flush(); err != nil {
				t.Fatal(err)
			}
			answer, err := other.Request("open.ask", nil, 5*time.Second)
			if err != nil || string(answer.Data) != "first" {
				t.Errorf("the answer is %v, %v", answer, err)
			}
			expectViolation(t, violations, "Publish", "_INBOX")
		})
	}
	if nc, err := byCertificate(s, cert, nats.UserInfo("acme/bob", password)); err == nil {
		nc.Close()
		t.Error("a certificate of one user came in by the name of another")
	}
}

func expectViolation(t *testing.T, violations <-chan error, what, subject string) {
	t.Helper()
	select {
	case err := <-violations:
		if text := strings.ToLower(err.Error()); !strings.Contains(text, strings.ToLower(what)) || !strings.Contains(text, strings.ToLower(subject)) {
			t.Errorf("the violation is %v; want %s of %s", err, what, subject)
		}
	case <-time.After(5 * time.Second):
		t.Errorf("no violation of %s of %s", what, subject)
	}
}

// TestAdminsByAnyCredential lets admins in by certificate and password.
func TestAdminsByAnyCredential(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	password := s.Password(admin.UserRequest{Name: "FLEET/ann"})
	cert := s.Certificate(admin.UserRequest{Name: "FLEET/ann"})
	for how, connect := range map[string]func() (*nats.Conn, error){
		"password":    func() (*nats.Conn, error) { return byPassword(s, "FLEET/ann", password) },
		"certificate": func() (*nats.Conn, error) { return byCertificate(s, cert) },
	} {
		nc, err := connect()
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		defer nc.Close()
		if _, err := admin.New(nc).Status(limited(t, 10*time.Second)); err != nil {
			t.Errorf("%s: %v", how, err)
		}
		// An admin asks; it reads and writes nothing by itself.
		heard, err := nc.SubscribeSync("ledger.>")
		if err != nil {
			t.Fatal(err)
		}
		if err := nc.Flush(); err != nil {
			t.Fatal(err)
		}
		s.User(admin.UserRequest{Name: "acme/" + how})
		if msg, err := heard.NextMsg(time.Millisecond); err == nil {
			t.Errorf("%s: an admin heard %q", how, msg.Subject)
		}
	}
}

// TestLimits holds every way in to what the role and the account allow.
func TestLimits(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	addRole(t, s, identity.Role{Name: "small", Limits: identity.Limits{Subscriptions: 2, Payload: 64}})
	request := admin.UserRequest{Name: "acme/alice", Role: "small"}
	password := s.Password(request)
	creds := s.Creds("acme", "alice")

	t.Run("creds", func(t *testing.T) {
		nc, err := s.Connect(creds, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		if err := nc.Publish("x", make([]byte, 65)); err == nil {
			err = nc.Flush()
			if err == nil {
				t.Error("65 bytes went through a limit of 64")
			}
		}
	})
	t.Run("session", func(t *testing.T) {
		c, err := loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), s.TLS(), "acme/alice", password)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ctx := limited(t, 10*time.Second)
		for i := range 3 {
			if err := c.Subscribe(ctx, fmt.Sprintf("x.%d", i)); (err == nil) != (i < 2) {
				t.Errorf("subscription %d of 2 allowed: %v", i+1, err)
			}
		}
		c, err = loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), s.TLS(), "acme/alice", password)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Publish(ctx, "x", strings.Repeat("x", 65)); err == nil {
			t.Error("65 bytes went through a limit of 64")
		}
	})
	t.Run("connections", func(t *testing.T) {
		if _, err := s.Admin().AddAccount(limited(t, 10*time.Second), admin.AccountRequest{Name: "few", Limits: identity.Limits{Connections: 2, Payload: 64}}); err != nil {
			t.Fatal(err)
		}
		password := s.Password(admin.UserRequest{Name: "few/alice"})
		first, err := byPassword(s, "few/alice", password, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		second, err := loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), s.TLS(), "few/alice", password)
		if err != nil {
			t.Fatal(err)
		}
		defer second.Close()
		if nc, err := byPassword(s, "few/alice", password); err == nil {
			nc.Close()
			t.Error("a third connection of two was let in")
		}
		if c, err := loginLines(limited(t, 20*time.Second), s.Addr("lines").String(), s.TLS(), "few/alice", password); err == nil {
			c.Close()
			t.Error("a third session of two was let in")
		}
		// The account's payload holds for those too whom the callout let in.
		if err := first.Publish("x", make([]byte, 65)); err == nil && first.Flush() == nil {
			t.Error("65 bytes went through an account's limit of 64")
		}
	})
}

// TestEnrolledUser comes in with a token, and with what it got for it; the token
// is good for one.
func TestEnrolledUser(t *testing.T) {
	s := fleetbustest.Start(t)
	s.User(admin.UserRequest{Name: "acme/someone"})
	token, err := s.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindUser, Account: "acme", Name: "mia"})
	if err != nil {
		t.Fatal(err)
	}
	join := enroll.Join{Host: s.Addr("nats").String(), Token: token.Text, Timeout: 10 * time.Second}
	redeem := func() (enroll.UserReply, crypto.Signer, error) {
		client, err := enroll.Dial(limited(t, 10*time.Second), join)
		if err != nil {
			return enroll.UserReply{}, nil, err
		}
		defer client.Close()
		key, err := identity.NewKey()
		if err != nil {
			t.Fatal(err)
		}
		csr, err := identity.NewCSR(key)
		if err != nil {
			t.Fatal(err)
		}
		text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})
		seed, err := nkeys.CreateUser()
		if err != nil {
			t.Fatal(err)
		}
		public, err := seed.PublicKey()
		if err != nil {
			t.Fatal(err)
		}
		reply, err := client.User(limited(t, 10*time.Second), enroll.UserRequest{Key: public, CSR: string(text)})
		return reply, key, err
	}
	reply, key, err := redeem()
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode([]byte(reply.Chain))
	nc, err := byCertificate(s, tls.Certificate{Certificate: [][]byte{block.Bytes}, PrivateKey: key})
	if err != nil {
		t.Fatalf("with the enrolled certificate: %v", err)
	}
	nc.Close()
	if _, _, err := redeem(); err == nil {
		t.Error("a token was good for two certificates")
	}
	// The token is no way into an account.
	nc, err = nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.Token(token.Text), nats.CustomInboxPrefix("_INBOX."+token.ID))
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request(admin.Prefix+"user.ls", []byte(`{}`), 200*time.Millisecond); err == nil {
		t.Error("the holder of a token used the administrative API")
	}
}

// An authority is a certificate authority of the operator's own.
type authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{dir: t.TempDir(), key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "own authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.write(t, "ca.pem", "CERTIFICATE", der)
	return a
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(t testing.TB, name, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(a.path(name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// issue makes a certificate, valid from an hour ago for an hour to come, unless
// edit says otherwise.
func (a *authority) issue(t testing.TB, name string, usage []x509.ExtKeyUsage, edit ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usage, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	for _, e := range edit {
		e(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// serve makes a node use certificates of this authority.
func (a *authority) serve(t testing.TB) func(*fleetbus.Options) {
	t.Helper()
	cert := a.issue(t, "node", []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth})
	a.write(t, "node.pem", "CERTIFICATE", cert.Certificate[0])
	der, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, "node.key", "PRIVATE KEY", der)
	return func(o *fleetbus.Options) {
		o.TLS = fleetbus.TLS{Cert: a.path("node.pem"), Key: a.path("node.key"), CA: []string{a.path("ca.pem")}}
	}
}

// TestOwnAuthority registers certificates of the operator's authority, made by
// crypto/x509 and by openssl, for users.
func TestOwnAuthority(t *testing.T) {
	own := newAuthority(t)
	s, api := startOwn(t, own)
	if _, err := api.AddAccount(limited(t, 10*time.Second), admin.AccountRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	made := map[string]func(*testing.T) tls.Certificate{
		"x509": func(t *testing.T) tls.Certificate {
			return own.issue(t, "alice", []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth})
		},
		"openssl": own.openssl,
	}
	for name, mk := range made {
		t.Run(name, func(t *testing.T) {
			cert := mk(t)
			config := own.trusted(cert)
			if nc, err := nats.Connect(s.URL(), nats.Secure(config)); err == nil {
				nc.Close()
				t.Fatal("a certificate was let in that is registered for nobody")
			}
			text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Certificate[0]})
			if _, err := api.AddUser(limited(t, 10*time.Second), admin.UserRequest{Name: "acme/" + name, Certificate: string(text)}); err != nil {
				t.Fatal(err)
			}
			nc, err := nats.Connect(s.URL(), nats.Secure(config), nats.NoReconnect())
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			c, err := loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), config, "", "")
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Subscribe(limited(t, 10*time.Second), "hello"); err != nil {
				t.Fatal(err)
			}
			if err := nc.Publish("hello", []byte("you")); err != nil {
				t.Fatal(err)
			}
			if _, text, err := c.Receive(limited(t, 10*time.Second)); err != nil || text != "you" {
				t.Errorf("received %q, %v", text, err)
			}
			spread, err := api.DenyUser(limited(t, 10*time.Second), "acme/"+name)
			if err != nil || spread.Closed() != 2 {
				t.Errorf("the denial acted as %+v, %v", spread, err)
			}
			if nc, err := nats.Connect(s.URL(), nats.Secure(config)); err == nil {
				nc.Close()
				t.Error("the certificate of a denied user was let in")
			}
		})
	}
}

// startOwn starts a node with certificates of own, which fleetbustest's clients
// do not trust.
func startOwn(t testing.TB, own *authority) (*fleetbustest.Server, *admin.Client) {
	t.Helper()
	s := fleetbustest.Start(t, withLines, own.serve(t))
	nc, err := nats.Connect(s.URL(), nats.Secure(own.trusted()), admin.UserCredentials(s.Founded().AdminCreds))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return s, admin.New(nc)
}

// trusted are settings that trust the authority and show certs.
func (a *authority) trusted(certs ...tls.Certificate) *tls.Config {
	roots := x509.NewCertPool()
	roots.AddCert(a.cert)
	return &tls.Config{RootCAs: roots, Certificates: certs, MinVersion: tls.VersionTLS12}
}

// openssl has the program make a key and a request, and signs it.
func (a *authority) openssl(t *testing.T) tls.Certificate {
	program, err := exec.LookPath("openssl")
	if err != nil {
		t.Skip("openssl is not installed")
	}
	a.saveKey(t)
	run := func(args ...string) {
		t.Helper()
		if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
			t.Fatalf("openssl %q: %v\n%s", args, err, out)
		}
	}
	if err := os.WriteFile(a.path("ext"), []byte("extendedKeyUsage=clientAuth\nkeyUsage=digitalSignature\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	run("req", "-newkey", "rsa:2048", "-nodes", "-keyout", a.path("user.key"), "-subj", "/CN=bob", "-out", a.path("user.csr"))
	run("x509", "-req", "-in", a.path("user.csr"), "-CA", a.path("ca.pem"), "-CAkey", a.path("ca.key"), "-CAcreateserial",
		"-days", "1", "-extfile", a.path("ext"), "-out", a.path("user.pem"))
	cert, err := tls.LoadX509KeyPair(a.path("user.pem"), a.path("user.key"))
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (a *authority) saveKey(t testing.TB) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		t.Fatal(err)
	}
	a.write(t, "ca.key", "PRIVATE KEY", der)
}

// TestDenialRacesWithLogin denies a user while it logs in by every credential,
// many times. Whoever got in before the denial is out after it.
func TestDenialRacesWithLogin(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	api := s.Admin()
	user := "acme/alice"
	cert := s.Certificate(admin.UserRequest{Name: user})
	creds := s.Creds("acme", "alice")
	config := s.TLS()
	config.Certificates = []tls.Certificate{cert}
	addr := s.Addr("lines").String()
	for range 40 {
		var racers sync.WaitGroup
		begin := make(chan struct{})
		type entry struct {
			how   string
			alive func() bool
			close func()
		}
		open := make(chan entry, 64)
		ctx := limited(t, 2*time.Minute) // longer than anything below waits
		for range 4 {
			racers.Go(func() {
				<-begin
				if c, err := loginLines(ctx, addr, config, "", ""); err == nil {
					open <- entry{"a session", func() bool {
						//lint:ignore SA4000 the first write to a closed connection can succeed
						return c.Publish(ctx, "alive", "") == nil && c.Publish(ctx, "alive", "") == nil
					}, func() { c.Close() }}
				}
			})
			for how, connect := range map[string]func() (*nats.Conn, error){
				"a certificate": func() (*nats.Conn, error) { return byCertificate(s, cert, nats.NoReconnect()) },
				"a creds file":  func() (*nats.Conn, error) { return s.Connect(creds, nats.NoReconnect()) },
			} {
				racers.Go(func() {
					<-begin
					if nc, err := connect(); err == nil {
						open <- entry{how, func() bool { return nc.Flush() == nil }, nc.Close}
					}
				})
			}
		}
		racers.Go(func() {
			<-begin
			if _, err := api.DenyUser(ctx, user); err != nil {
				t.Error(err)
			}
		})
		close(begin)
		racers.Wait()
		close(open)
		for e := range open {
			// The engine itself may still be letting in who was faster.
			fleetbustest.Eventually(t, "what came in by "+e.how+" ends", func() error {
				if e.alive() {
					return errors.New("it is alive")
				}
				return nil
			})
			e.close()
		}
		// The engine forgets a connection a moment after its client has lost it.
		fleetbustest.Eventually(t, "no connection of the user is left", func() error {
			info, err := api.User(ctx, user)
			if err == nil && len(info.Connections) > 0 {
				err = fmt.Errorf("the user is %+v", info)
			}
			return err
		})
		if _, err := api.AllowUser(ctx, user); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSecretsStayHidden plants canaries, and looks for them in what is logged,
// answered, and carried in the accounts that the fleet keeps for itself. The
// account of the callout lets nobody in but the callout.
func TestSecretsStayHidden(t *testing.T) {
	const canary = "canary-7f3a9c"
	j := &journal{TB: t}
	s := fleetbustest.Start(j, withLines)
	overheard := &journal{TB: t}
	for _, account := range []string{identity.FleetName, identity.SystemName} {
		session, err := s.Session(t.Context(), everywhere(account))
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		if _, err := session.Subscribe(">", func(msg *nats.Msg) {
			fmt.Fprintf(overheard, "%s %v %s\n", msg.Subject, msg.Header, msg.Data)
		}); err != nil {
			t.Fatal(err)
		}
		if err := session.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	hash, err := identity.HashPassword(canary)
	if err != nil {
		t.Fatal(err)
	}
	s.User(admin.UserRequest{Name: "acme/alice", Password: hash})
	token, err := s.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindUser, Account: "acme", Name: "bob"})
	if err != nil {
		t.Fatal(err)
	}
	secret := token.Text[strings.LastIndexByte(token.Text, '.')+1:]
	var told []string
	tell := func(err error) {
		if err != nil {
			told = append(told, err.Error())
		}
	}
	addr := s.Addr("lines").String()
	for _, user := range []string{"acme/alice", "acme/nobody", "not a name", canary} {
		for _, password := range []string{canary, canary + "-wrong"} {
			nc, err := byPassword(s, user, password)
			tell(err)
			if err == nil {
				nc.Close()
			}
			c, err := loginLines(limited(t, 10*time.Second), addr, s.TLS(), strings.ReplaceAll(user, canary, "x/y"), password)
			tell(err)
			if err == nil {
				c.Close()
			}
		}
	}
	for _, text := range []string{token.Text, "fb1." + secret, token.Text + "x"} {
		nc, err := nats.Connect(s.URL(), nats.Secure(s.TLS()), nats.Token(text))
		tell(err)
		if err == nil {
			nc.Close()
		}
		c, err := dialLines(limited(t, 10*time.Second), addr, s.TLS(), "TOKEN "+text)
		tell(err)
		if err == nil {
			c.Close()
		}
	}
	s.Stop()
	for where, text := range map[string]string{"the log": j.content(), "an error": strings.Join(told, "\n"), "the bus": overheard.content()} {
		for _, line := range strings.Split(text, "\n") {
			// The name of a user is no secret, even if it is the canary. The one answer
			// to whoever asked for the token has it.
			if strings.Contains(line, canary) && !strings.Contains(line, `"`+canary+`"`) && !strings.Contains(line, `\"`+canary+`\"`) {
				t.Errorf("%s has the password: %s", where, line)
			}
			if strings.Contains(line, secret) && !(strings.HasPrefix(line, "_INBOX.") && where == "the bus") {
				t.Errorf("%s has the token: %s", where, line)
			}
		}
	}
	for _, event := range []string{"ledger.user.acme.alice", "$SYS.ACCOUNT."} {
		if !strings.Contains(overheard.content(), event) {
			t.Errorf("%q was not overheard, and the test proves little", event)
		}
	}
}

// everywhere is a principal who may read everything in an account.
func everywhere(account string) identity.Principal {
	all := identity.Rule{Allow: []string{">"}}
	return identity.Principal{Account: account, Name: "spy", Permissions: identity.Permissions{Publish: all, Subscribe: all}}
}
