package certmanager

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

const (
	// What is accepted as a chain.
	maxChain       = 10
	maxCertificate = 64 << 10
	// skew is how far a manager's clock may be behind an authority's.
	skew = 2 * time.Hour
	// maxNames is what authorities accept in one certificate.
	maxNames = 100
)

// keyTypes are how the private keys of certificates are made.
func keyTypes() map[string]func() (crypto.Signer, error) {
	curve := func(c elliptic.Curve) func() (crypto.Signer, error) {
		return func() (crypto.Signer, error) { return ecdsa.GenerateKey(c, rand.Reader) }
	}
	bits := func(n int) func() (crypto.Signer, error) {
		return func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, n) }
	}
	return map[string]func() (crypto.Signer, error){
		"p256": curve(elliptic.P256()), "p384": curve(elliptic.P384()),
		"rsa2048": bits(2048), "rsa3072": bits(3072), "rsa4096": bits(4096),
	}
}

func newKey(keyType string) (crypto.Signer, error) {
	generate, ok := keyTypes()[keyType]
	if !ok {
		return nil, fmt.Errorf("making a key: there is no type %q", keyType)
	}
	key, err := generate()
	if err != nil {
		return nil, fmt.Errorf("making a key: %w", err)
	}
	return key, nil
}

func parseKey(pkcs8 []byte) (crypto.Signer, error) {
	key, err := x509.ParsePKCS8PrivateKey(pkcs8)
	if err != nil {
		return nil, errors.New("reading a private key: it is none") // the error must not quote it
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, errors.New("reading a private key: it cannot sign")
	}
	return signer, nil
}

// normalNames returns names as they stand in a Policy.
func normalNames(names []string) ([]string, error) {
	if len(names) == 0 || len(names) > maxNames {
		return nil, Problems{fmt.Sprintf("%d names were given; a certificate has 1 to %d", len(names), maxNames)}
	}
	var all []string
	var p Problems
	for _, name := range names {
		normal, err := normalName(name)
		switch {
		case err != nil:
			p.add("%q is no name for a certificate: %v", name, err)
		case !slices.Contains(all, normal):
			all = append(all, normal)
		}
	}
	if len(p) > 0 {
		return nil, p
	}
	return all, nil
}

func normalName(name string) (string, error) {
	if ip, err := netip.ParseAddr(name); err == nil && ip.Zone() == "" {
		return ip.Unmap().String(), nil
	}
	base, wildcard := strings.CutPrefix(strings.TrimSuffix(name, "."), "*.")
	ascii, err := cert.ToASCII(base)
	if err != nil {
		return "", fmt.Errorf("it is no DNS name: %w", err)
	}
	if wildcard {
		ascii = "*." + ascii
	}
	return ascii, checkName(ascii)
}

// verifyChain checks what an authority returned for key and names, and returns it
// parsed, without a root at its end.
func verifyChain(chain [][]byte, key crypto.PublicKey, names []string, now time.Time) ([]*x509.Certificate, error) {
	if len(chain) == 0 || len(chain) > maxChain {
		return nil, fmt.Errorf("the chain has %d certificates", len(chain))
	}
	var certs []*x509.Certificate
	for i, der := range chain {
		if len(der) > maxCertificate {
			return nil, fmt.Errorf("certificate %d of the chain has %d bytes", i+1, len(der))
		}
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("certificate %d of the chain cannot be read: %w", i+1, err)
		}
		certs = append(certs, c)
	}
	leaf := certs[0]
	if public, ok := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool }); !ok || !public.Equal(key) {
		return nil, errors.New("the certificate is not of our key")
	}
	has := LeafNames(leaf)
	for _, name := range names {
		if !slices.Contains(has, name) {
			return nil, fmt.Errorf("the certificate lacks the name %q", name)
		}
	}
	if leaf.NotBefore.After(now.Add(skew)) || !now.Before(leaf.NotAfter) {
		return nil, fmt.Errorf("the certificate is valid from %s to %s", leaf.NotBefore.Format(time.RFC3339), leaf.NotAfter.Format(time.RFC3339))
	}
	if err := cert.Servable(certs, now); err != nil {
		return nil, err
	}
	if last := certs[len(certs)-1]; len(certs) > 1 && bytes.Equal(last.RawIssuer, last.RawSubject) && last.CheckSignatureFrom(last) == nil {
		certs = certs[:len(certs)-1]
	}
	return certs, nil
}

// newBundle describes a verified chain. Generation, Reason, Issuer and Key are the
// caller's.
func newBundle(certs []*x509.Certificate, names []string) *cert.Bundle {
	leaf := certs[0]
	var chain []byte
	for _, c := range certs {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	sum, spki := sha256.Sum256(leaf.Raw), sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return &cert.Bundle{
		Names: names, NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter, Chain: string(chain),
		Serial: leaf.SerialNumber.Text(16), Leaf: hex.EncodeToString(sum[:]), SPKI: hex.EncodeToString(spki[:]),
	}
}

// parseChain reads the PEM of a chain.
func parseChain(text string) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		if len(certs) == maxChain {
			return nil, fmt.Errorf("reading a chain: it has more than %d certificates", maxChain)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("reading a chain: %w", err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, errors.New("reading a chain: there is no certificate in it")
	}
	return certs, nil
}
