package demo

import (
	"context"
	"crypto/x509"

	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/internal/pebble"
)

// startAuthority starts an ACME authority that looks for the answers to challenges at a
// port of this machine.
func startAuthority(challenges string) (*authority, error) {
	p, err := pebble.Start(challenges)
	if err != nil {
		return nil, err
	}
	return &authority{
		name:     "Pebble over http-01",
		settings: certmanager.IssuerSettings{Name: "pebble", Type: "acme", Directory: p.Directory, Profile: p.Profile, CA: p.Trust},
		roots:    func(context.Context, *certmanager.Client) (*x509.CertPool, error) { return p.Roots, nil },
		close:    p.Close,
	}, nil
}
