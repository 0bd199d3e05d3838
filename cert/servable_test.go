package cert_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
)

// A signer is who signs certificates.
type signer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// sign makes a certificate for bank.example, or what edit makes of it.
func (s signer) sign(t *testing.T, key crypto.Signer, edit ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "bank"}, DNSNames: []string{"bank.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, e := range edit {
		e(template)
	}
	parent := s
	if s.cert == nil {
		parent = signer{template, key}
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, parent.cert, key.Public(), parent.key))(t)))(t)
}

func ca(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.IsCA, c.ExtKeyUsage, c.KeyUsage = name, nil, true, nil, x509.KeyUsageCertSign
	}
}

// wrongChains are chains for a key that no client takes, and why.
func wrongChains(t *testing.T, key crypto.Signer) map[string]struct {
	chain []*x509.Certificate
	want  string
} {
	t.Helper()
	newKey := func() *ecdsa.PrivateKey { return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t) }
	rootKey, middleKey, otherKey := newKey(), newKey(), newKey()
	root := signer{signer{}.sign(t, rootKey, ca("root")), rootKey}
	other := signer{signer{}.sign(t, otherKey, ca("root")), otherKey}
	middle := signer{root.sign(t, middleKey, ca("middle")), middleKey}
	leaf := middle.sign(t, key)
	weak := must(rsa.GenerateKey(rand.Reader, 1024))(t)
	weakCA := signer{root.sign(t, weak, ca("weak")), weak}
	old := signer{root.sign(t, middleKey, ca("middle"), func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}), middleKey}
	future := signer{root.sign(t, middleKey, ca("middle"), func(c *x509.Certificate) {
		c.NotBefore, c.NotAfter = time.Now().Add(3*time.Hour), time.Now().Add(4*time.Hour)
	}), middleKey}
	noCA := signer{root.sign(t, middleKey), middleKey}
	type row = struct {
		chain []*x509.Certificate
		want  string
	}
	chain := func(all ...*x509.Certificate) []*x509.Certificate { return all }
	return map[string]row{
		"right":                {chain(leaf, middle.cert), ""},
		"right, with its root": {chain(leaf, middle.cert, root.cert), ""},
		"of an authority":      {chain(middle.sign(t, key, func(c *x509.Certificate) { c.IsCA, c.KeyUsage = true, x509.KeyUsageCertSign }), middle.cert), "that of an authority"},
		"for clients":          {chain(middle.sign(t, key, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), middle.cert), "not for servers"},
		"for something of its own": {chain(middle.sign(t, key, func(c *x509.Certificate) {
			c.ExtKeyUsage, c.UnknownExtKeyUsage = nil, []asn1.ObjectIdentifier{{1, 2, 3}}
		}), middle.cert), "not for servers"},
		"critical, and unknown":              {chain(middle.sign(t, key, critical), middle.cert), "critical extension 1.2.3.4"},
		"below one that is critical":         {chain(leaf, root.sign(t, middleKey, ca("middle"), critical)), "critical extension 1.2.3.4"},
		"another authority of the same name": {chain(leaf, middle.cert, other.cert), "not signed by the next"},
		"another root in between":            {chain(leaf, other.cert), "not signed by the next"},
		"out of order":                       {chain(leaf, root.cert, middle.cert), "not signed by the next"},
		"without the one in between":         {chain(leaf, root.cert), "not signed by the next"},
		"twice":                              {chain(leaf, leaf, middle.cert), "not signed by the next"},
		"below one that has expired":         {chain(old.sign(t, key), old.cert), "certificate 2 of the chain is valid from"},
		"below one that is not valid yet":    {chain(future.sign(t, key), future.cert), "certificate 2 of the chain is valid from"},
		"below one that may not sign":        {chain(noCA.sign(t, key), noCA.cert), "not signed by the next"},
		"below a key of 1024 bits":           {chain(weakCA.sign(t, key), weakCA.cert), "RSA key of 1024 bits"},
		"nothing":                            {nil, "is empty"},
	}
}

func critical(c *x509.Certificate) {
	c.ExtraExtensions = append(c.ExtraExtensions, pkix.Extension{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}})
}

// TestServable holds each wrong chain against what clients take.
func TestServable(t *testing.T) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	for name, c := range wrongChains(t, key) {
		if err := cert.Servable(c.chain, time.Now()); c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	for _, weak := range []crypto.Signer{must(rsa.GenerateKey(rand.Reader, 1024))(t), must(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))(t)} {
		leaf := signer{}.sign(t, weak)
		if err := cert.Servable([]*x509.Certificate{leaf}, time.Now()); err == nil || !strings.Contains(err.Error(), "key of ") {
			t.Errorf("a weak key: %v", err)
		}
	}
	// The library signs nothing by these any more.
	leaf := *signer{}.sign(t, key)
	leaf.RawIssuer = []byte("another")
	for _, a := range []x509.SignatureAlgorithm{x509.SHA1WithRSA, x509.MD5WithRSA, x509.ECDSAWithSHA1} {
		leaf.SignatureAlgorithm = a
		if err := cert.Servable([]*x509.Certificate{&leaf}, time.Now()); err == nil || !strings.Contains(err.Error(), "is signed by") {
			t.Errorf("%v: %v", a, err)
		}
	}
	// Who signed for itself, as openssl req -x509 does, is its own authority.
	own := signer{}.sign(t, key, func(c *x509.Certificate) { c.IsCA = true })
	if err := cert.Servable([]*x509.Certificate{own}, time.Now()); err != nil {
		t.Error(err)
	}
}

// TestWrongDelivery has a manager deliver each wrong chain to a target, signed and sealed as it
// should be: the one before goes on.
func TestWrongDelivery(t *testing.T) {
	m := certtest.New(t, "web")
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	for name, c := range wrongChains(t, key) {
		if len(c.chain) == 0 {
			continue
		}
		t.Run(name, func(t *testing.T) {
			f := newFeed(t, m, cert.Options{})
			good := m.Issue(certtest.Request{ID: "bank", Names: []string{"bank.example"}})
			if err := f.take(m.Record("bank", cert.Record{Current: good})); err != nil || f.serial("bank.example") != good.Serial {
				t.Fatalf("%v\n%s", err, f.log)
			}
			b := m.Bundle(certtest.Request{ID: "bank", Names: []string{"bank.example"}, Generation: 2, Key: key}, c.chain[0])
			b.Chain = ""
			for _, one := range c.chain {
				b.Chain += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: one.Raw}))
			}
			if err := m.Secret.Seal("bank", b, must(x509.MarshalPKCS8PrivateKey(key))(t)); err != nil {
				t.Fatal(err)
			}
			_ = f.take(m.Record("bank", cert.Record{Event: cert.Obtained, Current: b}))
			want, problem := good.Serial, f.problem("bank")
			if c.want == "" {
				want = b.Serial
			}
			if got := f.serial("bank.example"); got != want || !strings.Contains(problem, c.want) || c.want == "" && problem != "" {
				t.Errorf("%s is served, and not %s: %q", got, want, problem)
			}
		})
	}
}
