package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func TestWhereabouts(t *testing.T) {
	for remote, want := range map[string]string{
		"192.0.2.7:4222":       "192-0-2-7",
		"192.0.2.7":            "192-0-2-7",
		"[2001:db8::7%eth0]:1": "2001-0db8-0000-0000-0000-0000-0000-0007",
		"::ffff:192.0.2.7":     "192-0-2-7",
	} {
		got, err := Whereabouts(remote)
		if got != want || err != nil {
			t.Errorf("%s is %q, %v", remote, got, err)
		}
		addr, err := WhereaboutsAddr(got)
		if err != nil || strings.Contains(remote, "192") != (addr == netip.MustParseAddr("192.0.2.7")) {
			t.Errorf("%s is %v, %v", got, addr, err)
		}
	}
	for _, bad := range []string{"", "host:1", "pipe", "a.b"} {
		if got, err := Whereabouts(bad); err == nil {
			t.Errorf("%q is %q", bad, got)
		}
		if got, err := WhereaboutsAddr(bad); err == nil {
			t.Errorf("%q is %v", bad, got)
		}
	}
}

// TestProvisionerJWT has a provisioner whom one node let in come to another.
func TestProvisionerJWT(t *testing.T) {
	now := time.Now()
	one, _, err := NewAuthority("corp", now)
	if err != nil {
		t.Fatal(err)
	}
	data, err := one.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var other Authority
	if err := other.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	account, err := one.NewAccount("strangers", Limits{}, now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKeyPair(nkeys.CreateUser())
	if err != nil {
		t.Fatal(err)
	}
	p := Provisioner("strangers", "provisioner-1", now.Add(time.Hour))
	token, err := one.ProvisionerJWT(account, p, key.public, now)
	if err != nil {
		t.Fatal(err)
	}
	user, err := jwt.DecodeUserClaims(token)
	if err != nil {
		t.Fatal(err)
	}
	terms, err := other.AccountJWT(account, BuiltinRoles(), nil, Flows{}, now)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeAccountClaims(terms)
	if err != nil || !claims.DidSign(user) {
		t.Errorf("the other node does not take it: %v", err)
	}
	if !slices.Equal(user.AllowedConnectionTypes, []string{jwt.ConnectionTypeStandard}) || len(user.Pub.Allow) == 0 || len(user.Sub.Allow) == 0 {
		t.Errorf("it may do more than a provisioner: %+v", user.User)
	}
	p.Expires = now.Add(-time.Second)
	if _, err := one.ProvisionerJWT(account, p, key.public, now); err == nil {
		t.Error("one that has expired is signed")
	}
}

func TestStranger(t *testing.T) {
	p, err := Stranger("provisioning", "abcdefghijkl", "[2001:db8::7]:1", epoch())
	if err != nil || p.Validate() != nil {
		t.Fatal(err, p.Validate())
	}
	const where = "2001-0db8-0000-0000-0000-0000-0000-0007"
	for subject, want := range map[string]bool{
		ProvisionHello + where: true, ProvisionAsk + "x." + where: true, ProvisionHello + "192-0-2-7": false,
		ProvisionAsk + "x.192-0-2-7": false, "orders": false, "$JS.API.INFO": false, RenewSubject: false,
	} {
		if p.Permissions.Publish.Allows(subject) != want {
			t.Errorf("that it may publish to %s is not %t", subject, want)
		}
	}
	if sub := p.Permissions.Subscribe; !sub.Allows("_INBOX.abcdefghijkl.1") || sub.Allows("_INBOX.abcdefghijkm.1") || sub.Allows(ProvisionHello+where) {
		t.Errorf("it may hear %v", sub)
	}
	for _, bad := range []string{"", "short", strings.Repeat("n", 24), "_bcdefghijkl", "abcdefghijkl.>"} {
		if _, err := Stranger("provisioning", bad, "[2001:db8::7]:1", epoch()); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("the name %q is good: %v", bad, err)
		}
	}
	if _, err := Stranger("provisioning", "abcdefghijkl", "pipe", epoch()); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("an address that is none is good: %v", err)
	}
}

// certs parses PEM.
func certs(t *testing.T, data []byte) (chain []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		chain = append(chain, must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes)))
	}
	return chain
}

// TestVerifyProvisioner has a provisioner believed by its own fleet's pin alone, and
// nobody else who has a certificate of the fleet believed to be one.
func TestVerifyProvisioner(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	csr := must[*x509.CertificateRequest](t)(NewCSR(must[*ecdsa.PrivateKey](t)(NewKey())))
	chain := certs(t, must[[]byte](t)(a.SignProvisioner(csr, "provisioning", "p1", time.Hour, epoch())))
	pin := a.Hash()[:PinLength]
	if err := VerifyProvisioner(pin, chain, epoch()); err != nil {
		t.Fatal(err)
	}
	if _, _, ok := PrincipalFromCertificate(chain[0], a.Fleet()); ok {
		t.Error("the certificate of a provisioner is a user's")
	}
	if _, err := chain[0].Verify(x509.VerifyOptions{Roots: a.ClientRoots(), CurrentTime: epoch(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err == nil {
		t.Error("somebody can come in by the certificate of a provisioner")
	}
	user := certs(t, must[[]byte](t)(a.SignUser(csr, "acme", "alice", time.Hour, epoch())))
	_, server, err := a.SignNode(csr, "eu-1", []string{"eu-1"}, time.Hour, epoch())
	if err != nil {
		t.Fatal(err)
	}
	foreign := certs(t, must[[]byte](t)(other.SignProvisioner(csr, "provisioning", "p1", time.Hour, epoch())))
	for what, bad := range map[string][]*x509.Certificate{
		"a user":                         slices.Concat(user, chain[1:]),
		"a node":                         certs(t, server),
		"another fleet":                  foreign,
		"another fleet, with our chain":  slices.Concat(foreign[:1], chain[1:]),
		"our certificate, another chain": slices.Concat(chain[:1], foreign[1:]),
		"nobody":                         nil,
		"a short chain":                  chain[:2],
	} {
		if err := VerifyProvisioner(pin, bad, epoch()); !errors.Is(err, ErrProvisioner) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if err := VerifyProvisioner(pin, chain, epoch().Add(2*time.Hour)); !errors.Is(err, ErrProvisionerClock) {
		t.Errorf("after its time: %v", err)
	}
	if err := VerifyProvisioner("beef", chain, epoch()); err == nil {
		t.Error("a pin that is none is one")
	}
	if err := VerifyUser(user[0], chain[1], a.Fleet(), "acme", "alice", epoch()); err != nil {
		t.Error(err)
	}
	for _, err := range []error{
		VerifyUser(user[0], foreign[1], a.Fleet(), "acme", "alice", epoch()),
		VerifyUser(user[0], chain[1], a.Fleet(), "acme", "bob", epoch()),
		VerifyUser(user[0], chain[1], "elsewhere", "acme", "alice", epoch()),
	} {
		if err == nil {
			t.Error("another's certificate is taken for one's own")
		}
	}
	if _, err := a.SignProvisioner(csr, "provisioning", "a b", time.Hour, epoch()); err == nil {
		t.Error("a provisioner may have any name")
	}
}
