package certmanager

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"
)

// TestWrongChains holds all that an authority can answer wrongly against what is taken. What no
// client would take of it cert.TestServable has.
func TestWrongChains(t *testing.T) {
	now := time.Now()
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	key, rootKey := newKey(), newKey()
	sign := func(public crypto.PublicKey, parent *x509.Certificate, by crypto.Signer, edit ...func(*x509.Certificate)) *x509.Certificate {
		template := &x509.Certificate{
			SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: "web"}, DNSNames: []string{"example.org"},
			NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), BasicConstraintsValid: true, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		}
		for _, e := range edit {
			e(template)
		}
		if parent == nil {
			parent = template
		}
		der, err := x509.CreateCertificate(rand.Reader, template, parent, public, by)
		if err != nil {
			t.Fatal(err)
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	authority := func(c *x509.Certificate) {
		c.Subject.CommonName, c.DNSNames, c.IsCA, c.ExtKeyUsage, c.KeyUsage = "root", nil, true, nil, x509.KeyUsageCertSign
	}
	root := sign(rootKey.Public(), nil, rootKey, authority)
	strangeKey := newKey()
	strange := sign(strangeKey.Public(), nil, strangeKey, authority) // of the same name
	of := func(edit ...func(*x509.Certificate)) [][]byte {
		return [][]byte{sign(key.Public(), root, rootKey, edit...).Raw, root.Raw}
	}
	// The library makes no certificate that has an extension twice: one of the same length
	// becomes another.
	twice := of(func(c *x509.Certificate) {
		c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: []byte{5, 0}}, {Id: asn1.ObjectIdentifier{1, 2, 3, 5}, Value: []byte{5, 0}}}
	})
	twice[0] = []byte(strings.Replace(string(twice[0]), "\x06\x03\x2a\x03\x05", "\x06\x03\x2a\x03\x04", 1))
	for name, c := range map[string]struct {
		chain [][]byte
		want  string
	}{
		"right":                              {of(), ""},
		"expired":                            {of(func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) }), "is valid from"},
		"not yet valid":                      {of(func(c *x509.Certificate) { c.NotBefore, c.NotAfter = now.Add(3*time.Hour), now.Add(4*time.Hour) }), "is valid from"},
		"another authority of the same name": {[][]byte{of()[0], strange.Raw}, "not signed by the next"},
		"the authority itself":               {[][]byte{root.Raw}, "not of our key"},
		"an authority, by our key":           {of(authority, func(c *x509.Certificate) { c.Subject.CommonName, c.DNSNames = "x", []string{"example.org"} }), "that of an authority"},
		"for clients":                        {of(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }), "not for servers"},
		"another name":                       {of(func(c *x509.Certificate) { c.DNSNames = []string{"example.com"} }), `lacks the name "example.org"`},
		"a name in the subject alone":        {of(func(c *x509.Certificate) { c.DNSNames, c.Subject.CommonName = nil, "example.org" }), `lacks the name "example.org"`},
		"a name with a null":                 {of(func(c *x509.Certificate) { c.DNSNames = []string{"example.org\x00.evil.example"} }), ""},
		"another key":                        {[][]byte{sign(strangeKey.Public(), root, rootKey).Raw, root.Raw}, "not of our key"},
		"out of order":                       {[][]byte{root.Raw, of()[0]}, "not of our key"},
		"an extension twice":                 {twice, "duplicate"},
		"critical, and unknown": {of(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}}}
		}), "critical extension"},
		"too large": {of(func(c *x509.Certificate) {
			c.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Value: make([]byte, maxCertificate)}}
		}), "bytes"},
		"too many": {append(of(), make([][]byte, maxChain)...), "certificates"},
		"none":     {nil, "0 certificates"},
		"garbage":  {[][]byte{[]byte("garbage")}, "cannot be read"},
		"and more": {[][]byte{append(of()[0], 'x'), root.Raw}, "cannot be read"},
	} {
		certs, err := verifyChain(c.chain, key.Public(), []string{"example.org"}, now)
		if name == "a name with a null" {
			if err == nil {
				t.Errorf("%s: it is taken", name)
			}
			continue
		}
		if c.want == "" && (err != nil || len(certs) != 1) || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
}
