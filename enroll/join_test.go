package enroll

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// A fleet is an authority, one of its tokens, and a server that accepts it.
type fleet struct {
	authority *identity.Authority
	token     string
	addr      string
	server    *server.Server
}

// newAuthority makes a fleet without a server.
func newAuthority(t *testing.T) *fleet {
	t.Helper()
	authority, _, err := identity.NewAuthority("test", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, text, err := identity.NewToken(identity.KindNode, authority.Hash(), "", "", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return &fleet{authority: authority, token: text}
}

// newFleet makes a fleet with a server for localhost.
func newFleet(t *testing.T) *fleet {
	t.Helper()
	f := newAuthority(t)
	f.serve(t, f.tls(t, time.Now(), "localhost", "127.0.0.1"))
	return f
}

// tls makes the configuration of a node whose certificate was signed at now.
func (f *fleet) tls(t *testing.T, now time.Time, hosts ...string) *tls.Config {
	t.Helper()
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	_, chain, err := f.authority.SignNode(csr, "n1", hosts, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}}
}

// serve starts a server that accepts the token; without config, in plain text.
func (f *fleet) serve(t *testing.T, config *tls.Config) {
	t.Helper()
	srv, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true,
		Authorization: f.token, TLSConfig: config, TLSTimeout: 5, AuthTimeout: 5,
	})
	if err != nil {
		t.Fatal(err)
	}
	go srv.Start()
	t.Cleanup(func() { srv.Shutdown(); srv.WaitForShutdown() })
	if !srv.ReadyForConnections(10 * time.Second) {
		t.Fatal("the server does not start")
	}
	f.server, f.addr = srv, srv.Addr().String()
}

// client connects as a node would.
func (f *fleet) client(t *testing.T) *nats.Conn {
	t.Helper()
	nc, err := nats.Connect("tls://"+f.addr, nats.Token(f.token),
		nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: f.authority.ClientRoots()}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// answer has f answer the token's holder; nil is no answer.
func (f *fleet) answer(t *testing.T, subject string, handle func(*nats.Msg) any) {
	t.Helper()
	subject, err := f.join().subject(subject)
	if err != nil {
		t.Fatal(err)
	}
	nc := f.client(t)
	_, err = nc.Subscribe(subject, func(m *nats.Msg) {
		reply := handle(m)
		if reply == nil {
			return
		}
		body, err := json.Marshal(reply)
		if err != nil {
			t.Error(err)
		}
		if err := m.Respond(body); err != nil && !errors.Is(err, nats.ErrConnectionClosed) {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
}

func data(t *testing.T, v any) *admin.Reply {
	t.Helper()
	body, err := json.Marshal(v)
	if err != nil {
		t.Error(err)
	}
	return &admin.Reply{Data: body}
}

func (f *fleet) join() Join { return Join{Host: f.addr, Token: f.token, Timeout: 5 * time.Second} }

func (f *fleet) dial(t *testing.T, j Join) *Client {
	t.Helper()
	c, err := Dial(testContext(t), j)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestExchange(t *testing.T) {
	f := newFleet(t)
	want := NodeReply{Fleet: "test", Authority: []byte{1, 2}, Nodes: []identity.Node{{Name: "n1"}, {Name: "n2"}}}
	f.answer(t, NodeSubject, func(m *nats.Msg) any {
		var r NodeRequest
		if err := json.Unmarshal(m.Data, &r); err != nil || r.Name != "n2" || r.CSR != "pem" {
			t.Errorf("got request %s: %v", m.Data, err)
		}
		token, err := identity.ParseToken(f.token)
		if err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(m.Reply, token.InboxPrefix()+".") {
			t.Errorf("the reply goes to %q, where other joiners may listen", m.Reply)
		}
		return data(t, want)
	})
	f.answer(t, UserSubject, func(*nats.Msg) any { return data(t, UserReply{Name: "acme/alice"}) })

	c := f.dial(t, f.join())
	got, err := c.Node(testContext(t), NodeRequest{Name: "n2", CSR: "pem"})
	if err != nil || got.Fleet != "test" || len(got.Nodes) != 2 || len(got.Authority) != 2 {
		t.Fatalf("got %+v, %v", got, err)
	}
	user, err := c.User(testContext(t), UserRequest{})
	if err != nil || user.Name != "acme/alice" {
		t.Fatalf("got %+v, %v", user, err)
	}
}

func TestExchangeByNameAndWithoutPort(t *testing.T) {
	f := newFleet(t)
	j := f.join()
	_, port, _ := net.SplitHostPort(f.addr)
	j.Host = "localhost:" + port
	f.dial(t, j)
}

// TestExchangeAgain loses the first request, has the second told to come back,
// and answers the third.
func TestExchangeAgain(t *testing.T) {
	f := newFleet(t)
	var n atomic.Int32
	f.answer(t, NodeSubject, func(*nats.Msg) any {
		switch n.Add(1) {
		case 1:
			return nil
		case 2:
			return &admin.Reply{Error: admin.Errorf(admin.Unavailable, "", "no quorum")}
		}
		return data(t, NodeReply{Fleet: "test"})
	})
	j := f.join()
	j.Timeout = time.Second
	got, err := f.dial(t, j).Node(testContext(t), NodeRequest{})
	if err != nil || got.Fleet != "test" {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// TestExchangeReconnects drops the connection before it answers.
func TestExchangeReconnects(t *testing.T) {
	f := newFleet(t)
	var n atomic.Int32
	f.answer(t, NodeSubject, func(*nats.Msg) any {
		if n.Add(1) == 1 {
			connections, err := f.server.Connz(nil)
			if err != nil {
				t.Error(err)
				return nil
			}
			for _, c := range connections.Conns {
				if c.Name == "fleetbus join" {
					if err := f.server.DisconnectClientByID(c.Cid); err != nil {
						t.Error(err)
					}
				}
			}
			return nil
		}
		return data(t, NodeReply{Fleet: "test"})
	})
	got, err := f.dial(t, f.join()).Node(testContext(t), NodeRequest{})
	if err != nil || got.Fleet != "test" || n.Load() != 2 {
		t.Fatalf("got %+v, %v after %d requests", got, err, n.Load())
	}
}

func TestExchangeRefused(t *testing.T) {
	f := newFleet(t)
	var n atomic.Int32
	refusal := admin.Errorf(admin.Conflict, "use --replace", "n2 exists")
	f.answer(t, NodeSubject, func(*nats.Msg) any { n.Add(1); return &admin.Reply{Error: refusal} })
	_, err := f.dial(t, f.join()).Node(testContext(t), NodeRequest{})
	var got *admin.Error
	if !errors.As(err, &got) || *got != *refusal || n.Load() != 1 {
		t.Fatalf("got %v after %d requests", err, n.Load())
	}
}

func TestExchangeUnanswered(t *testing.T) {
	f := newFleet(t)
	c := f.dial(t, f.join())
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := c.Node(ctx, NodeRequest{}); !errors.Is(err, nats.ErrNoResponders) || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
}

func TestExchangeDamaged(t *testing.T) {
	for _, body := range []string{"", "x", "[]", "{}", `{"data":null}`, `{"data":7}`, `{"error":7}`} {
		if _, err := open[NodeReply]([]byte(body)); err == nil || !strings.HasPrefix(err.Error(), "reading the answer: ") {
			t.Errorf("%q: got %v", body, err)
		}
	}
}

// stranger listens and does to each connection what handle does.
func stranger(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			defer conn.Close()
			handle(conn)
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

// closed is where nobody listens: a port that is given to nobody who asks for
// any.
const closed = "127.0.0.1:1"

func TestDialRefuses(t *testing.T) {
	f := newFleet(t)
	other := newAuthority(t)
	serve := func(config *tls.Config) func(*testing.T, *Join) {
		return func(t *testing.T, j *Join) {
			g := &fleet{authority: f.authority, token: f.token}
			g.serve(t, config)
			j.Host = g.addr
		}
	}
	forged := other.tls(t, time.Now(), "127.0.0.1")
	genuine := f.tls(t, time.Now(), "127.0.0.1").Certificates[0].Certificate
	forged.Certificates[0].Certificate = append(forged.Certificates[0].Certificate[:1:1], genuine[1:]...)
	alone := f.tls(t, time.Now(), "127.0.0.1")
	alone.Certificates[0].Certificate = alone.Certificates[0].Certificate[:1]

	for _, test := range []struct {
		name string
		set  func(*testing.T, *Join)
		is   error
		text string
		fix  string
	}{
		{"no token", func(_ *testing.T, j *Join) { j.Token = "" }, nil, "parsing a token", ""},
		{"garbage for a token", func(_ *testing.T, j *Join) { j.Token = "fb1.\x00.." }, nil, "parsing a token", ""},
		{"no host", func(_ *testing.T, j *Join) { j.Host = "" }, nil, `reading host ""`, ""},
		{"port closed", func(_ *testing.T, j *Join) { j.Host = closed }, nil, "connection refused", ""},
		{"silence", func(t *testing.T, j *Join) {
			j.Host, j.Timeout = stranger(t, func(net.Conn) {}), 100*time.Millisecond
		}, context.DeadlineExceeded, "no answer within 100ms", "NATS listener"},
		{"another protocol", func(t *testing.T, j *Join) {
			j.Host = stranger(t, func(c net.Conn) { c.Write([]byte("SSH-2.0-OpenSSH_9.2\r\n")) })
		}, nil, "connecting to", ""},
		{"a closed door", func(t *testing.T, j *Join) { j.Host = stranger(t, func(c net.Conn) { c.Close() }) }, nil, "connecting to", ""},
		{"plain text", serve(nil), nats.ErrSecureConnWanted, "secure", "TLS"},
		{"another authority", serve(other.tls(t, time.Now(), "127.0.0.1")), ErrAuthority, "another authority (a reinstalled first node?)", "token add"},
		{"the authority's certificates behind a forged one", serve(forged), ErrAuthority, "another authority", "token add"},
		{"no authority's certificates", serve(alone), ErrAuthority, "another authority", "token add"},
		{"expired", serve(f.tls(t, time.Now().Add(-48*time.Hour), "127.0.0.1")), ErrClock, "it is ", "clock"},
		{"another token", func(t *testing.T, j *Join) {
			var err error
			_, j.Token, err = identity.NewToken(identity.KindNode, f.authority.Hash(), "", "", time.Hour, time.Now())
			if err != nil {
				t.Fatal(err)
			}
		}, ErrRefused, "used, expired, revoked or unknown", "token add"},
		{"a token of another fleet", func(_ *testing.T, j *Join) { j.Token = other.token }, ErrAuthority, "another authority", "token add"},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := f.join()
			test.set(t, &j)
			_, err := Dial(testContext(t), j)
			var hinted *Error
			if !errors.As(err, &hinted) {
				t.Fatalf("got %v", err)
			}
			if test.is != nil && !errors.Is(err, test.is) || !strings.Contains(err.Error(), test.text) || !strings.Contains(hinted.Fix, test.fix) {
				t.Errorf("got %q with fix %q", err, hinted.Fix)
			}
			if secret := j.Token[strings.LastIndex(j.Token, ".")+1:]; secret != "" && strings.Contains(err.Error()+hinted.Fix, secret) {
				t.Errorf("the error shows the token: %q", err)
			}
		})
	}
}

// TestDialOldTLS offers nothing newer than TLS 1.2.
func TestDialOldTLS(t *testing.T) {
	f := newAuthority(t)
	config := f.tls(t, time.Now(), "127.0.0.1")
	config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	f.serve(t, config)
	if _, err := Dial(testContext(t), f.join()); !errors.Is(err, nats.ErrTLS) {
		t.Errorf("got %v", err)
	}
}

func TestDialAnotherName(t *testing.T) {
	f := newAuthority(t)
	f.serve(t, f.tls(t, time.Now(), "eu-1.example.net", "192.0.2.1"))
	j := f.join()
	f.dial(t, j) // by address, which is not compared
	_, port, _ := net.SplitHostPort(f.addr)
	j.Host = net.JoinHostPort("localhost", port)
	_, err := Dial(testContext(t), j)
	var name *HostError
	var hinted *Error
	if !errors.As(err, &name) || !errors.As(err, &hinted) {
		t.Fatalf("got %v", err)
	}
	if name.Host != "localhost" || strings.Join(name.Names, " ") != "eu-1.example.net 192.0.2.1" || hinted.Fix != "join by eu-1.example.net" {
		t.Errorf("got %q with fix %q", err, hinted.Fix)
	}
}

// TestDialCanceled gives up on a silent stranger when the context does.
func TestDialCanceled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	f := newAuthority(t)
	j := f.join()
	j.Host, j.Timeout = stranger(t, func(net.Conn) { cancel() }), time.Hour
	if _, err := Dial(ctx, j); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

// TestVerifyUsage gives a certificate of the right authority that is a client's.
func TestVerifyUsage(t *testing.T) {
	f := newAuthority(t)
	token, err := identity.ParseToken(f.token)
	if err != nil {
		t.Fatal(err)
	}
	var chain []*x509.Certificate
	for _, der := range f.tls(t, time.Now(), "localhost").Certificates[0].Certificate {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		chain = append(chain, cert)
	}
	if err := verify(token, chain, "localhost", time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := verify(token, chain, "localhost", time.Now().Add(-time.Hour)); !errors.Is(err, ErrClock) {
		t.Errorf("before its time: got %v", err)
	}
	key, err := identity.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := f.authority.SignUser(csr, "acme", "mallory", time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(raw)
	if chain[0], err = x509.ParseCertificate(block.Bytes); err != nil {
		t.Fatal(err)
	}
	var invalid x509.CertificateInvalidError
	if err := verify(token, chain, "localhost", time.Now()); !errors.As(err, &invalid) || invalid.Reason != x509.IncompatibleUsage {
		t.Errorf("a client's certificate: got %v", err)
	}
	if err := verify(token, nil, "localhost", time.Now()); !errors.Is(err, ErrAuthority) {
		t.Errorf("no certificate: got %v", err)
	}
}

func TestAddress(t *testing.T) {
	for in, want := range map[string]string{
		"eu-1":         "eu-1:4222",
		"eu-1:5222":    "eu-1:5222",
		"192.0.2.1":    "192.0.2.1:4222",
		"2001:db8::1":  "[2001:db8::1]:4222",
		"[::1]":        "[::1]:4222",
		"[::1]:5222":   "[::1]:5222",
		"":             "",
		":4222":        "",
		"eu-1:":        "",
		"eu-1:0":       "",
		"eu-1:nats":    "",
		"eu-1:65536":   "",
		"tls://eu-1:1": "",
	} {
		host, port, err := Join{Host: in}.address()
		switch {
		case want == "" && err == nil:
			t.Errorf("%q: got %q and %q", in, host, port)
		case want != "" && net.JoinHostPort(host, port) != want:
			t.Errorf("%q: got %q and %q, %v", in, host, port, err)
		}
	}
}
