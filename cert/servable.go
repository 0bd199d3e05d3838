package cert

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"
)

// ahead is how far an authority's clock may be ahead when it makes another.
const ahead = 2 * time.Hour

// leastRSA and leastECDSA are the bits of keys that clients of today take.
const leastRSA, leastECDSA = 2048, 256

// Servable says why clients would not take a chain, the leaf first, whatever root they trust;
// nil if nothing speaks against it. It does not look at names, nor at when the leaf is valid.
func Servable(chain []*x509.Certificate, now time.Time) error {
	if len(chain) == 0 {
		return errors.New("the chain is empty")
	}
	leaf := chain[0]
	usages := len(leaf.ExtKeyUsage) + len(leaf.UnknownExtKeyUsage)
	switch {
	case leaf.IsCA && !selfSigned(leaf):
		return errors.New("the certificate is that of an authority")
	case usages > 0 && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) && !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageAny):
		return errors.New("the certificate is not for servers")
	}
	for i, c := range chain {
		what := fmt.Sprintf("certificate %d of the chain", i+1)
		if len(c.UnhandledCriticalExtensions) > 0 {
			return fmt.Errorf("%s has a critical extension %v that clients do not know", what, c.UnhandledCriticalExtensions[0])
		}
		switch key := c.PublicKey.(type) {
		case *rsa.PublicKey:
			if bits := key.N.BitLen(); bits < leastRSA {
				return fmt.Errorf("%s has an RSA key of %d bits, and clients take %d and more", what, bits, leastRSA)
			}
		case *ecdsa.PublicKey:
			if bits := key.Params().BitSize; bits < leastECDSA {
				return fmt.Errorf("%s has an ECDSA key of %d bits, and clients take %d and more", what, bits, leastECDSA)
			}
		}
		switch c.SignatureAlgorithm {
		case x509.MD2WithRSA, x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1:
			if !selfSigned(c) { // nobody looks at that of a root
				return fmt.Errorf("%s is signed by %v, which clients do not take", what, c.SignatureAlgorithm)
			}
		}
		if i == 0 {
			continue
		}
		if now.Add(ahead).Before(c.NotBefore) || !now.Before(c.NotAfter) {
			return fmt.Errorf("%s is valid from %s to %s", what, c.NotBefore.UTC().Format(time.RFC3339), c.NotAfter.UTC().Format(time.RFC3339))
		}
		if err := chain[i-1].CheckSignatureFrom(c); err != nil {
			return fmt.Errorf("certificate %d of the chain is not signed by the next: %w", i, err)
		}
	}
	return nil
}

// selfSigned reports whether a certificate says that it signed itself.
func selfSigned(c *x509.Certificate) bool { return bytes.Equal(c.RawIssuer, c.RawSubject) }
