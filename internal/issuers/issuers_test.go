package issuers

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"testing"

	"github.com/fleetbus/fleetbus/certmanager"
)

// TestRevokedByAnother has one manager revoke what another lists, from what is kept
// alone.
func TestRevokedByAnother(t *testing.T) {
	kept := ""
	open := func() certmanager.Issuer {
		return must[certmanager.Issuer](t)(openPrivate(t.Context(), certmanager.IssuerOptions{
			Settings: certmanager.IssuerSettings{Name: "private"},
			Keep: func(_ context.Context, change func(string) (string, error)) (string, error) {
				next, err := change(kept)
				if err == nil {
					kept = next
				}
				return kept, err
			},
		}))
	}
	one, other := open(), open()
	key := must[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	issued := must[certmanager.Issued](t)(one.Issue(t.Context(), certmanager.Order{Names: []string{"shop.internal"}, Key: key}))
	leaf := must[*x509.Certificate](t)(x509.ParseCertificate(issued.Chain[0]))
	block, _ := pem.Decode([]byte(other.(*keptAuthority).Root()))
	root := must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes))
	for i, a := range []certmanager.Issuer{one, other, open()} {
		list := must[*x509.RevocationList](t)(x509.ParseRevocationList(must[[]byte](t)(a.(*keptAuthority).CRL(t.Context()))))
		if err := list.CheckSignatureFrom(root); err != nil {
			t.Error(err)
		}
		if n := len(list.RevokedCertificateEntries); n != min(i, 1) {
			t.Fatalf("list %d has %d certificates", i, n)
		}
		if i > 0 && list.RevokedCertificateEntries[0].SerialNumber.Cmp(leaf.SerialNumber) != 0 {
			t.Error("another one is revoked")
		}
		if err := one.Revoke(t.Context(), leaf, certmanager.KeyCompromise); err != nil {
			t.Fatal(err)
		}
	}
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}
