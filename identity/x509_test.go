package identity

import (
	"crypto"
	//lint:ignore SA1019 a key that must be refused
	"crypto/dsa"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/url"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSignNode(t *testing.T) {
	a := newAuthority(t)
	now := epoch()
	csr := newCSR(t)
	csr.DNSNames = []string{"evil.example"} // not signed, and not looked at
	mesh, server, err := a.SignNode(csr, "n1", []string{"n1.example", "localhost", "192.0.2.1", "2001:db8::1"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	meshChain, serverChain := parsePEM(t, mesh), parsePEM(t, server)
	if len(meshChain) != 1 || len(serverChain) != 3 {
		t.Fatalf("there are %d and %d certificates", len(meshChain), len(serverChain))
	}
	for _, c := range []*x509.Certificate{meshChain[0], serverChain[0]} {
		if !c.NotBefore.Equal(now.Add(-5*time.Minute)) || !c.NotAfter.Equal(now.Add(time.Hour)) || c.IsCA {
			t.Errorf("a certificate holds from %s to %s", c.NotBefore, c.NotAfter)
		}
	}
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	if m := meshChain[0]; !reflect.DeepEqual(m.ExtKeyUsage, usages) || len(m.URIs) != 1 || m.URIs[0].String() != "spiffe://prod/node/n1" || len(m.DNSNames) > 0 {
		t.Errorf("the mesh certificate is for %v, %v, %v", m.ExtKeyUsage, m.URIs, m.DNSNames)
	}
	if node, ok := NodeFromCertificate(meshChain[0], "prod"); !ok || node != "n1" {
		t.Errorf("the mesh certificate is of %q", node)
	}
	if _, ok := NodeFromCertificate(meshChain[0], "test"); ok {
		t.Error("the mesh certificate is of every fleet")
	}
	if _, _, ok := PrincipalFromCertificate(meshChain[0], "prod"); ok {
		t.Error("the mesh certificate is of a user")
	}
	s := serverChain[0]
	if !reflect.DeepEqual(s.ExtKeyUsage, usages[:1]) || len(s.URIs) != 0 ||
		!reflect.DeepEqual(s.DNSNames, []string{"n1.example", "localhost"}) || len(s.IPAddresses) != 2 {
		t.Errorf("the server certificate is for %v, %v, %v, %v", s.ExtKeyUsage, s.URIs, s.DNSNames, s.IPAddresses)
	}
	if !slices.Equal(a.MeshPEM(), encodeCertificates(serverChain[2])) || !slices.Equal(a.ClientsPEM(), encodeCertificates(serverChain[1])) {
		t.Error("the server chain does not end with both authorities")
	}
	verify := func(c *x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage) error {
		_, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	for _, u := range usages {
		if err := verify(meshChain[0], a.MeshRoots(), u); err != nil {
			t.Error(err)
		}
		if verify(meshChain[0], a.ClientRoots(), u) == nil || verify(s, a.MeshRoots(), u) == nil {
			t.Error("one authority vouches for what the other signed")
		}
	}
	if err := verify(s, a.ClientRoots(), x509.ExtKeyUsageServerAuth); err != nil {
		t.Error(err)
	}
	if verify(s, a.ClientRoots(), x509.ExtKeyUsageClientAuth) == nil {
		t.Error("a server certificate passes for a client's")
	}
}

func TestSignUser(t *testing.T) {
	a := newAuthority(t)
	now := epoch()
	chain := parsePEM(t, must[[]byte](t)(a.SignUser(newCSR(t), "acme", "alice", 20*365*24*time.Hour, now)))
	if len(chain) != 1 {
		t.Fatalf("there are %d certificates", len(chain))
	}
	c := chain[0]
	if !reflect.DeepEqual(c.ExtKeyUsage, []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}) || len(c.URIs) != 1 || c.URIs[0].String() != "spiffe://prod/acme/alice" {
		t.Errorf("the certificate is for %v, %v", c.ExtKeyUsage, c.URIs)
	}
	if !c.NotAfter.Equal(a.clients.cert.NotAfter) {
		t.Errorf("the certificate ends at %s, its authority at %s", c.NotAfter, a.clients.cert.NotAfter)
	}
	if account, name, ok := PrincipalFromCertificate(c, "prod"); !ok || account != "acme" || name != "alice" {
		t.Errorf("the certificate is of %q, %q, %v", account, name, ok)
	}
	if _, ok := NodeFromCertificate(c, "prod"); ok {
		t.Error("a user's certificate is of a node")
	}
	after := a.clients.cert.NotAfter
	damaged := newCSR(t)
	damaged.Signature[len(damaged.Signature)-1] ^= 1
	for want, f := range map[string]func() error{
		"signing the certificate of a user": func() error { _, err := a.SignUser(newCSR(t), "a/b", "x", 1, now); return err },
		`account name "node" is kept`:       func() error { _, err := a.SignUser(newCSR(t), "node", "x", 1, now); return err },
		"its life of 0s is not positive":    func() error { _, err := a.SignUser(newCSR(t), "acme", "x", 0, now); return err },
		"clients authority\" has expired":   func() error { _, err := a.SignUser(newCSR(t), "acme", "x", 1, after); return err },
		"of a node: name is empty": func() error {
			_, _, err := a.SignNode(newCSR(t), "", []string{"h"}, 1, now)
			return err
		},
		"checking the certificate request": func() error { _, err := a.SignUser(damaged, "acme", "x", 1, now); return err },
		"has no host name or address": func() error {
			_, _, err := a.SignNode(newCSR(t), "n1", nil, 1, now)
			return err
		},
		"signing the mesh certificate of node \"n1\": its life": func() error {
			_, _, err := a.SignNode(newCSR(t), "n1", []string{"h"}, 0, now)
			return err
		},
		"signing the server certificate of node \"n1\": its authority": func() error {
			short := *a
			short.clients = must[*issuer](t)(newIssuer("short", now.Add(-authorityLife)))
			_, _, err := short.SignNode(newCSR(t), "n1", []string{"h"}, 1, now)
			return err
		},
	} {
		wantError(t, f(), want)
	}
}

func TestHosts(t *testing.T) {
	for _, bad := range []string{"", "*.example", "a..b", "a.b.", "a b", "x\n", "host:4222", "-a.example", "fe80::1%eth0", strings.Repeat("a.", 150) + "a"} {
		if _, _, err := splitHosts([]string{bad}); err == nil {
			t.Errorf("host %q is accepted", bad)
		}
	}
	dns, ips, err := splitHosts([]string{"a.example", "::1", "10.0.0.1", "b"})
	if err != nil || !slices.Equal(dns, []string{"a.example", "b"}) || len(ips) != 2 || !ips[0].Equal(net.IPv6loopback) {
		t.Errorf("the hosts are %q and %v: %v", dns, ips, err)
	}
}

func TestCheckCSR(t *testing.T) {
	key := func(k crypto.Signer, err error) *x509.CertificateRequest {
		if err != nil {
			t.Fatal(err)
		}
		return must[*x509.CertificateRequest](t)(NewCSR(k))
	}
	_, ed, err := ed25519.GenerateKey(rand.Reader)
	p224, err1 := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	p384, err2 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	rsa2048, err3 := rsa.GenerateKey(rand.Reader, 2048)
	for _, e := range []error{err1, err2, err3} {
		if e != nil {
			t.Fatal(e)
		}
	}
	for name, csr := range map[string]*x509.CertificateRequest{
		"P-256": newCSR(t), "P-384": key(p384, nil), "Ed25519": key(ed, err), "RSA": key(rsa2048, nil),
	} {
		if err := checkCSR(csr); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	damaged := newCSR(t)
	damaged.PublicKey = newCSR(t).PublicKey
	modulus := func(bits uint) *x509.CertificateRequest {
		n := new(big.Int).Lsh(big.NewInt(1), bits-1)
		return &x509.CertificateRequest{PublicKey: &rsa.PublicKey{N: n, E: 65537}}
	}
	for want, csr := range map[string]*x509.CertificateRequest{
		"weaker than P-256":                key(p224, nil),
		"RSA key has 1024 bits":            modulus(1024),
		"RSA key has 16384 bits":           modulus(16384),
		"not of ECDSA, Ed25519 or RSA":     {PublicKey: &dsa.PublicKey{}},
		"checking the certificate request": damaged,
	} {
		wantError(t, checkCSR(csr), want)
	}
	_, err = NewCSR(nil)
	wantError(t, err, "making a certificate request")
}

func TestPrincipalFromCertificateRefuses(t *testing.T) {
	for name, uris := range map[string][]string{
		"no URI":         nil,
		"two URIs":       {"spiffe://prod/acme/alice", "spiffe://prod/acme/bob"},
		"another fleet":  {"spiffe://test/acme/alice"},
		"fleet's prefix": {"spiffe://production/acme/alice"},
		"another scheme": {"https://prod/acme/alice"},
		"a port":         {"spiffe://prod:1/acme/alice"},
		"a user":         {"spiffe://u@prod/acme/alice"},
		"a query":        {"spiffe://prod/acme/alice?x"},
		"a fragment":     {"spiffe://prod/acme/alice#x"},
		"one segment":    {"spiffe://prod/acme"},
		"three segments": {"spiffe://prod/acme/alice/x"},
		"an escape":      {"spiffe://prod/acme/%61lice%20"},
		"a node":         {"spiffe://prod/node/n1"},
		"opaque":         {"spiffe:prod/acme/alice"},
	} {
		cert := &x509.Certificate{}
		for _, u := range uris {
			cert.URIs = append(cert.URIs, must[*url.URL](t)(url.Parse(u)))
		}
		if account, user, ok := PrincipalFromCertificate(cert, "prod"); ok || account+user != "" {
			t.Errorf("%s: the certificate is of %q, %q", name, account, user)
		}
	}
}

// TestHandshake has a user and a node meet over TLS, as a listener has them meet.
func TestHandshake(t *testing.T) {
	a := newAuthority(t)
	now := time.Now()
	nodeKey, userKey := must[*ecdsa.PrivateKey](t)(NewKey()), must[*ecdsa.PrivateKey](t)(NewKey())
	_, server, err := a.SignNode(must[*x509.CertificateRequest](t)(NewCSR(nodeKey)), "n1", []string{"n1.example"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	user := must[[]byte](t)(a.SignUser(must[*x509.CertificateRequest](t)(NewCSR(userKey)), "acme", "alice", time.Hour, now))
	pair := func(chain []byte, key crypto.Signer) tls.Certificate {
		c := tls.Certificate{PrivateKey: key}
		for _, cert := range parsePEM(t, chain) {
			c.Certificate = append(c.Certificate, cert.Raw)
		}
		return c
	}
	near, far := net.Pipe()
	deadline := time.Now().Add(30 * time.Second)
	for _, c := range []net.Conn{near, far} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
		defer c.Close()
	}
	listener := tls.Server(near, &tls.Config{
		MinVersion: tls.VersionTLS13, ClientAuth: tls.RequireAndVerifyClientCert,
		ClientCAs: a.ClientRoots(), Certificates: []tls.Certificate{pair(server, nodeKey)},
	})
	accepted := make(chan error, 1)
	go func() { accepted <- listener.Handshake() }()
	client := tls.Client(far, &tls.Config{
		MinVersion: tls.VersionTLS13, ServerName: "n1.example",
		RootCAs: a.ClientRoots(), Certificates: []tls.Certificate{pair(user, userKey)},
	})
	if err := client.Handshake(); err != nil {
		t.Fatal(err)
	}
	if err := <-accepted; err != nil {
		t.Fatal(err)
	}
	state := listener.ConnectionState()
	if account, name, ok := PrincipalFromCertificate(state.VerifiedChains[0][0], "prod"); !ok || account+"/"+name != "acme/alice" {
		t.Errorf("the client is %s/%s", account, name)
	}
	_, text, err := NewToken(KindNode, a.Hash(), "", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	token, err := ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if err := token.VerifyServer(client.ConnectionState().PeerCertificates, now); err != nil {
		t.Error(err)
	}
}

func TestSplitServer(t *testing.T) {
	for server, node := range map[string]string{"n1": "n1", "n1.2": "n1", "n1.10": "n1"} {
		if got, err := SplitServer(server); err != nil || got != node {
			t.Errorf("server %q is node %q, %v", server, got, err)
		}
		if n := (Node{Name: node}); server == "n1" && n.Server() != server {
			t.Errorf("node %q is server %q", node, n.Server())
		}
	}
	if n := (Node{Name: "n1", Incarnation: 2}); n.Server() != "n1.2" {
		t.Errorf("the second node is server %q", n.Server())
	}
	for _, server := range []string{"", "a/b", "n1.", "n1.1", "n1.02", "n1.x", ".2", "n1.2.3", "n1.-2"} {
		if node, err := SplitServer(server); err == nil {
			t.Errorf("server %q is node %q", server, node)
		}
	}
}
