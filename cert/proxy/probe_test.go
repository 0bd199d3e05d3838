package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

// listen hands every connection to serve until the test ends.
func listen(t testing.TB, serve func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() {
		ln.Close()
		<-done
	})
	go func() {
		defer close(done)
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				serve(conn)
			}()
		}
	}()
	return ln.Addr().String()
}

// serving is a server that shows what current returns.
func serving(t testing.TB, current func(name string) proxy.Pair) string {
	t.Helper()
	config := &tls.Config{GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		p := current(hello.ServerName)
		c, err := tls.X509KeyPair(p.Chain, p.Key)
		return &c, err
	}}
	return listen(t, func(conn net.Conn) {
		_ = tls.Server(conn, config).Handshake() // the client says how it went
	})
}

func TestProbe(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	addr := serving(t, func(string) proxy.Pair { return a })
	leaf, err := proxy.Probe(t.Context(), addr, "other.test")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := proxy.Serial(leaf), leafSerial(t, a); got != want || len(got)%2 != 0 {
		t.Errorf("the serial is %q, want %q", got, want)
	}

	// A server that says nothing, one that says far too much, and none.
	silent := listen(t, func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := proxy.Probe(ctx, silent, "a.test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("of a silent server: %v", err)
	}
	// Empty warnings, for ever: records that a handshake skips.
	noisy := listen(t, func(conn net.Conn) {
		for {
			if _, err := conn.Write([]byte("\x16\x03\x03\x40\x00" + strings.Repeat("\x0b", 0x4000))); err != nil {
				return
			}
		}
	})
	if _, err := proxy.Probe(t.Context(), noisy, "a.test"); err == nil {
		t.Error("a server of nonsense has a certificate")
	}
	plain := listen(t, func(conn net.Conn) { _, _ = io.WriteString(conn, "220 ready\r\n") })
	if _, err := proxy.Probe(t.Context(), plain, "a.test"); err == nil {
		t.Error("a server without TLS has a certificate")
	}
}

func TestVerify(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test", "*.a.test", "127.0.0.1"), proxytest.Pair(t, "b", "b.test", "a.test")
	old := proxytest.Pair(t, "b", "b.test")
	good := serving(t, func(name string) proxy.Pair {
		if name == "b.test" {
			return b
		}
		return a
	})
	behind := serving(t, func(name string) proxy.Pair {
		if name == "b.test" {
			return old
		}
		return a
	})
	seen, err := proxy.Verify(t.Context(), []string{good}, []proxy.Pair{a, b})
	if err != nil || len(seen) != 5 {
		t.Fatalf("seen: %v, %v", seen, err)
	}
	for _, s := range seen {
		if s.Err != nil {
			t.Errorf("%s: %v", s.Name, s.Err)
		}
	}
	closed := listen(t, func(net.Conn) {})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	seen, err = proxy.Verify(ctx, []string{good, behind, closed}, []proxy.Pair{a, b})
	if err != nil || len(seen) != 15 {
		t.Fatalf("seen: %v, %v", seen, err)
	}
	for _, s := range seen {
		switch {
		case s.Addr == closed:
			if s.Err == nil || s.Serial != "" {
				t.Errorf("where nobody serves: %+v", s)
			}
		case s.Addr == behind && s.Name == "b.test":
			if s.ID != "b" || s.Serial != leafSerial(t, old) || s.Latest != leafSerial(t, b) || s.Err == nil || !strings.Contains(s.Err.Error(), s.Serial) {
				t.Errorf("where an old one is served: %+v", s)
			}
		case s.Err != nil:
			t.Errorf("%s at %s: %v", s.Name, s.Addr, s.Err)
		}
	}
	if _, err := proxy.Verify(t.Context(), nil, []proxy.Pair{{ID: "x"}}); err == nil {
		t.Error("no certificate was verified")
	}
}

// FuzzPair demands that what is taken has names that mean nothing to a configuration.
func FuzzPair(f *testing.F) {
	a := proxytest.Pair(f, "a", "a.test", "*.b.test", "::1")
	f.Add("a", a.Chain, a.Key)
	f.Add("../a", a.Key, a.Chain)
	f.Add("", []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), []byte(nil))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, id string, chain, key []byte) {
		pair := proxy.Pair{ID: id, Chain: chain, Key: key}
		for _, kind := range proxy.Kinds() {
			if kind == "caddy" {
				continue
			}
			p := open(t, proxy.Options{Kind: kind, Dir: dir, Config: dir + "/config"})
			snippet, err := p.Snippet([]proxy.Pair{pair})
			if _, bad := pair.Leaf(); bad != nil {
				if err == nil && kind != "traefik" {
					t.Errorf("%s has a snippet for what is wrong: %v", kind, bad)
				}
				continue
			}
			plan, err2 := p.Plan([]proxy.Pair{pair})
			if err != nil || err2 != nil {
				t.Errorf("%s: %v, %v", kind, err, err2)
			}
			for _, change := range plan {
				snippet += change.String()
			}
			if strings.Contains(snippet, "..") || strings.Contains(snippet, "PRIVATE KEY") {
				t.Errorf("%s: %q", kind, snippet)
			}
		}
	})
}
