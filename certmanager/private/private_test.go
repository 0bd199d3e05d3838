package private

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
)

func newAuthority(t *testing.T, o Options) *Authority {
	t.Helper()
	a, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func roots(a *Authority) *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(a.Root()))
	return pool
}

func issue(t *testing.T, a *Authority, names ...string) (*x509.Certificate, error) {
	t.Helper()
	issued, err := a.Issue(t.Context(), certmanager.Order{Names: names, Key: certmanagertest.NewKey(t, "p256")})
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(issued.Chain[0])
}

func revoked(t *testing.T, a *Authority, leaf *x509.Certificate) bool {
	t.Helper()
	der, err := a.List()
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(der)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(a.root); err != nil {
		t.Fatal(err)
	}
	for _, e := range list.RevokedCertificateEntries {
		if e.SerialNumber.Cmp(leaf.SerialNumber) == 0 {
			return true
		}
	}
	return false
}

func TestContract(t *testing.T) {
	a := newAuthority(t, Options{})
	certmanagertest.TestIssuer(t, certmanagertest.IssuerContract{
		Issuer: func(*testing.T) certmanager.Issuer { return a }, Domain: "corp.test", Roots: roots(a),
		Revoked: func(leaf *x509.Certificate) bool { return revoked(t, a, leaf) },
	})
}

func TestSecret(t *testing.T) {
	a := newAuthority(t, Options{Name: "corp", Domains: []string{"corp.test"}})
	leaf, err := issue(t, a, "www.corp.test")
	if err != nil {
		t.Fatal(err)
	}
	if err := a.Revoke(t.Context(), leaf, certmanager.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	text, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b, err := Unmarshal(text, Options{Life: 7 * 24 * time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if b.Root() != a.Root() || !revoked(t, b, leaf) || b.String() != "private authority corp" {
		t.Error("the authority is another one after it was read")
	}
	short, err := issue(t, b, "*.corp.test")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := short.Verify(x509.VerifyOptions{DNSName: "a.corp.test", Roots: roots(a)}); err != nil {
		t.Error(err)
	}
	if life := short.NotAfter.Sub(short.NotBefore); life != 7*24*time.Hour+backdate {
		t.Errorf("the certificate is valid for %v", life)
	}
	if shown := fmt.Sprintf("%v %+v %#v %s", a, a, a, a); strings.Contains(shown, "PRIVATE") || strings.Contains(shown, "Curve") {
		t.Errorf("it shows its key: %s", shown)
	}
	for _, damaged := range []string{"", "{}", text[:len(text)/2], strings.Replace(text, "MIG", "MIH", 1), strings.ReplaceAll(text, "CERTIFICATE", "TRUSTED")} {
		if _, err := Unmarshal(damaged, Options{}); err == nil {
			t.Errorf("it was read though it is damaged: %.40s", damaged)
		} else if strings.Contains(err.Error(), "MIG") {
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

func TestDomains(t *testing.T) {
	a := newAuthority(t, Options{Domains: []string{"corp.test", "lan.example"}})
	for name, allowed := range map[string]bool{
		"corp.test": true, "a.b.corp.test": true, "*.lan.example": true, "evilcorp.test": false, "test": false, "10.0.0.1": false, "*.test": false,
	} {
		_, err := issue(t, a, name)
		if (err == nil) != allowed {
			t.Errorf("%s: got %v, allowed %v", name, err, allowed)
		}
	}
	// The root itself says so, to those who verify.
	any := &Authority{o: a.o, root: a.root, key: a.key}
	any.o.Domains = nil
	for _, name := range []string{"bank.example", "10.0.0.1", "fd00::1"} {
		leaf, err := issue(t, any, name)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: name, Roots: roots(a)}); err == nil {
			t.Errorf("%s is believed though the root is not for it", name)
		}
	}
	for _, o := range []Options{{Domains: []string{"*.corp.test"}}, {Domains: []string{"10.0.0.1"}}, {Domains: []string{"UP"}}, {Life: time.Minute}, {Life: 1000 * time.Hour * 24}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v: an authority was made", o)
		}
	}
}

func TestTime(t *testing.T) {
	now := time.Now()
	a := newAuthority(t, Options{Now: func() time.Time { return now }})
	leaf, err := issue(t, a, "corp.test", "10.0.0.1", "fd00::1")
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"corp.test", "10.0.0.1", "fd00::1"} {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: host, Roots: roots(a)}); err != nil {
			t.Error(err)
		}
	}
	if leaf.Subject.CommonName != "" || leaf.SerialNumber.BitLen() < 64 {
		t.Errorf("the common name is %q and the serial number has %d bits", leaf.Subject.CommonName, leaf.SerialNumber.BitLen())
	}
	if err := a.Revoke(t.Context(), leaf, certmanager.Superseded); err != nil {
		t.Fatal(err)
	}
	other := newAuthority(t, Options{})
	if err := other.Revoke(t.Context(), leaf, certmanager.Superseded); err == nil {
		t.Error("an authority revoked what it has not issued")
	}
	now = now.Add(31 * 24 * time.Hour)
	if !revoked(t, a, leaf) {
		t.Error("a certificate left the list before the last list that has to have it")
	}
	now = now.Add(listLife)
	if revoked(t, a, leaf) {
		t.Error("a certificate that expired is still on the list")
	}
	now = now.AddDate(10, 0, -60)
	_, err = issue(t, a, "corp.test")
	var p *certmanager.Problem
	if !errors.As(err, &p) || !p.Permanent {
		t.Errorf("a root that ends before the certificate: got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := a.Issue(ctx, certmanager.Order{}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: got %v", err)
	}
}
