// Package issuers has the authorities that managers of this program obtain certificates
// from.
package issuers

import (
	"context"
	"crypto/x509"
	"fmt"
	"time"

	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/private"
)

// All are the authorities, by their type in the configuration of managers.
func All() map[string]certmanager.OpenIssuer {
	return map[string]certmanager.OpenIssuer{"acme": openACME, "private": openPrivate}
}

func openPrivate(ctx context.Context, o certmanager.IssuerOptions) (certmanager.Issuer, error) {
	options := private.Options{Name: "fleetbus " + o.Settings.Name, Now: o.Now}
	if o.Settings.Life != "" {
		var err error
		if options.Life, err = time.ParseDuration(o.Settings.Life); err != nil {
			return nil, fmt.Errorf("reading the life of certificates: %w", err)
		}
	}
	secret, err := o.Keep(ctx, func(kept string) (string, error) {
		if kept != "" {
			return kept, nil
		}
		authority, err := private.New(options)
		if err != nil {
			return "", err
		}
		return authority.Marshal()
	})
	if err != nil {
		return nil, fmt.Errorf("keeping the authority: %w", err)
	}
	authority, err := private.Unmarshal(secret, options)
	if err != nil {
		return nil, err
	}
	return &keptAuthority{authority, o, options}, nil
}

// A keptAuthority is an authority of our own that remembers what it revoked.
type keptAuthority struct {
	*private.Authority
	o       certmanager.IssuerOptions
	options private.Options
}

// CRL lists what was revoked, by whatever manager.
func (a *keptAuthority) CRL(ctx context.Context) ([]byte, error) {
	var list []byte
	_, err := a.o.Keep(ctx, func(kept string) (string, error) {
		latest, err := private.Unmarshal(kept, a.options)
		if err == nil {
			list, err = latest.List()
		}
		return kept, err // what List counts, the clock does too
	})
	return list, err
}

// Revoke revokes a certificate, and keeps that.
func (a *keptAuthority) Revoke(ctx context.Context, leaf *x509.Certificate, reason certmanager.Reason) error {
	_, err := a.o.Keep(ctx, func(kept string) (string, error) {
		latest, err := private.Unmarshal(kept, a.options)
		if err != nil {
			return "", err
		}
		if err := latest.Revoke(ctx, leaf, reason); err != nil {
			return "", err
		}
		return latest.Marshal()
	})
	return err
}
