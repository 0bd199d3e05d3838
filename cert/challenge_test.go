package cert_test

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/cert"
)

// TestHTTPChallenge: any target answers an authority, and says so to a manager once it
// does, and not before.
func TestHTTPChallenge(t *testing.T) {
	b := newBus(t)
	r := open(t, cert.Options{Key: b.target("lb1")}).run(t, b.server.ClientURL())
	waitFor(t, "its presence", func() bool { name, err := b.ask("", time.Second); return err == nil && name == "lb1" })
	early := b.asking("token-c1")
	b.publish(b.Challenge("c1", "http-01", "a.example"))
	if name, err := b.ask("token-c1", 200*time.Millisecond); !errors.Is(err, nats.ErrTimeout) {
		t.Errorf("%q says that it answers, and nobody has its handler: %v", name, err)
	}
	web := httptest.NewServer(r.ChallengeHandler())
	defer web.Close()
	msg, err := early.NextMsg(20 * time.Second)
	if err != nil || string(msg.Data) != "lb1" {
		t.Fatalf("who asked before the challenge came was not answered: %v", err)
	}
	if name, err := b.ask("token-c1", 20*time.Second); err != nil || name != "lb1" {
		t.Errorf("%q, %v", name, err)
	}
	get := func(method, path string) (int, string) {
		t.Helper()
		request := must(http.NewRequestWithContext(t.Context(), method, web.URL+path, nil))(t)
		response := must(web.Client().Do(request))(t)
		defer response.Body.Close()
		body := make([]byte, 100)
		n, _ := response.Body.Read(body)
		return response.StatusCode, string(body[:n])
	}
	if code, body := get("GET", "/.well-known/acme-challenge/token-c1"); code != 200 || body != "token-c1.thumbprint" {
		t.Errorf("%d %q", code, body)
	}
	for _, path := range []string{"/", "/token-c1", "/.well-known/acme-challenge/", "/.well-known/acme-challenge/token-c2", "/.well-known/acme-challenge/token-c1/"} {
		if code, _ := get("GET", path); code != 404 {
			t.Errorf("%s is answered with %d", path, code)
		}
	}
	if code, _ := get("POST", "/.well-known/acme-challenge/token-c1"); code != 405 {
		t.Errorf("a POST is answered with %d", code)
	}
	// Somebody who may append cannot take it back.
	b.publish(certEvent(cert.ChallengeSubject("web", "c1"), nil), b.Challenge("c3", "http-01", "a.example"))
	waitFor(t, "the next challenge", func() bool { code, _ := get("GET", "/.well-known/acme-challenge/token-c3"); return code == 200 })
	if code, _ := get("GET", "/.well-known/acme-challenge/token-c1"); code != 200 {
		t.Errorf("somebody took a challenge back: %d", code)
	}
	b.publish(b.TakeBack("c1"))
	waitFor(t, "the challenge to go", func() bool { code, _ := get("GET", "/.well-known/acme-challenge/token-c1"); return code == 404 })
	if _, err := b.ask("token-c1", 100*time.Millisecond); err == nil {
		t.Error("it says that it answers a challenge that is gone")
	}
}

// TestALPNChallenge: an authority that says acme-tls/1 gets the certificate of its
// challenge, and everybody else does not.
func TestALPNChallenge(t *testing.T) {
	b := newBus(t)
	r := open(t, cert.Options{Key: b.target("lb1")}).run(t, b.server.ClientURL())
	b.publish(b.Challenge("c1", "tls-alpn-01", "a.example"), b.Challenge("c2", "tls-alpn-01", "192.0.2.7"))
	for _, id := range []string{"c1", "c2"} {
		waitFor(t, "an answer to "+id, func() bool { name, err := b.ask("token-"+id, time.Second); return err == nil && name == "lb1" })
	}
	look := func(name string, protos ...string) (*x509.Certificate, error) {
		near, far := net.Pipe()
		defer near.Close()
		go func() {
			defer far.Close()
			_ = tls.Server(far, r.TLSConfig(&tls.Config{NextProtos: []string{"h2"}})).Handshake()
		}()
		client := tls.Client(near, &tls.Config{ServerName: name, NextProtos: protos, InsecureSkipVerify: true})
		if err := client.Handshake(); err != nil {
			return nil, err
		}
		if len(protos) == 1 && client.ConnectionState().NegotiatedProtocol != protos[0] {
			t.Errorf("the protocol is %q", client.ConnectionState().NegotiatedProtocol)
		}
		return client.ConnectionState().PeerCertificates[0], nil
	}
	for name, id := range map[string]string{"a.example": "c1", "A.Example": "c1", "7.2.0.192.in-addr.arpa": "c2"} {
		leaf, err := look(name, cert.ALPNProto)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		sum := sha256.Sum256([]byte("token-" + id + ".thumbprint"))
		found := false
		for _, e := range leaf.Extensions {
			if e.Id.Equal(asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 31}) {
				var value []byte
				_, err := asn1.Unmarshal(e.Value, &value)
				found = err == nil && e.Critical && string(value) == string(sum[:])
			}
		}
		if !found || len(leaf.DNSNames)+len(leaf.IPAddresses) != 1 {
			t.Errorf("%s: no certificate of RFC 8737: %v %v", name, leaf.DNSNames, leaf.Extensions)
		}
	}
	if _, err := look("b.example", cert.ALPNProto); err == nil {
		t.Error("a challenge that is not there is answered")
	}
	if _, err := look("a.example", "h2", cert.ALPNProto); err == nil {
		t.Error("somebody else got the certificate of a challenge")
	}
}
