package attack

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// An issuer is somebody who signs certificates.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// authorities are those of a node, with the secrets in its directory.
func authorities(t testing.TB, dir string) (a *identity.Authority, mesh, clients issuer) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "authority.json"))
	if err != nil {
		t.Fatal(err)
	}
	a = new(identity.Authority)
	if err := a.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	var records struct {
		Mesh, Clients struct{ Certificate, Key []byte }
	}
	if err := json.Unmarshal(data, &records); err != nil {
		t.Fatal(err)
	}
	open := func(cert, key []byte) issuer {
		c, err := x509.ParseCertificate(cert)
		if err != nil {
			t.Fatal(err)
		}
		k, err := x509.ParsePKCS8PrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		return issuer{c, k.(crypto.Signer)}
	}
	return a, open(records.Mesh.Certificate, records.Mesh.Key), open(records.Clients.Certificate, records.Clients.Key)
}

// issue signs a certificate for a name in the fleet, for a client, an hour to come, unless
// edit says otherwise; over is the chain above the signer.
func (i issuer) issue(t testing.TB, name string, over [][]byte, edit ...func(*x509.Certificate)) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "alice"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, BasicConstraintsValid: true,
	}
	if name != "" {
		template.URIs = []*url.URL{{Scheme: "spiffe", Host: "fleet", Path: "/" + name}}
	}
	for _, e := range edit {
		e(template)
	}
	parent, signer := i.cert, i.key
	if parent == nil { // it signs itself
		parent, signer = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: append([][]byte{der}, over...), PrivateKey: key, Leaf: leaf}
}

// as is who signs by a certificate.
func as(c tls.Certificate) issuer { return issuer{c.Leaf, c.PrivateKey.(crypto.Signer)} }

// both has a certificate be for both ends, as those of nodes are.
func both(c *x509.Certificate) {
	c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
}

func server(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

func authority(c *x509.Certificate) {
	c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature, nil
}

func past(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
}

func future(c *x509.Certificate) {
	c.NotBefore, c.NotAfter = time.Now().Add(time.Hour), time.Now().Add(2*time.Hour)
}

// chainOf is a certificate in PEM with its key.
func chainOf(t testing.TB, text []byte, key crypto.Signer, err error) tls.Certificate {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	cert := tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if cert.Leaf, err = x509.ParseCertificate(cert.Certificate[0]); err != nil {
		t.Fatal(err)
	}
	return cert
}

// showing shows a certificate whatever authorities the server asks for.
func showing(cert tls.Certificate) *tls.Config {
	return &tls.Config{
		InsecureSkipVerify:   true, // the stranger trusts anybody
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &cert, nil },
	}
}
