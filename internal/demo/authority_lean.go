//go:build lean

package demo

import (
	"context"
	"crypto/x509"
	"errors"

	"github.com/fleetbus/fleetbus/certmanager"
)

// startAuthority has the managers' own authority issue: the lean program has no other.
func startAuthority(string) (*authority, error) {
	return &authority{
		name:     "an authority of the account's own (the lean program has no ACME authority)",
		settings: certmanager.IssuerSettings{Name: "private", Type: "private"},
		roots: func(ctx context.Context, managers *certmanager.Client) (*x509.CertPool, error) {
			root, err := managers.Root(ctx, "")
			if err != nil {
				return nil, err
			}
			roots := x509.NewCertPool()
			if !roots.AppendCertsFromPEM([]byte(root.Root)) {
				return nil, errors.New("the authority has no root")
			}
			return roots, nil
		},
		close: func() error { return nil },
	}, nil
}
