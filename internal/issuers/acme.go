//go:build !lean

package issuers

import (
	"context"
	"fmt"

	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/acme"
	"github.com/fleetbus/fleetbus/certmanager/dns"
)

func openACME(ctx context.Context, o certmanager.IssuerOptions) (certmanager.Issuer, error) {
	providers := map[string]acme.Provider{}
	for _, d := range o.DNS {
		p, err := dns.New(d.Provider, d.Settings)
		if err != nil {
			return nil, fmt.Errorf("opening DNS provider %q: %w", d.Name, err)
		}
		providers[d.Name] = p
	}
	key, err := o.Keep(ctx, func(kept string) (string, error) {
		if kept != "" {
			return kept, nil
		}
		return acme.NewKey()
	})
	if err != nil {
		return nil, fmt.Errorf("keeping the account's key: %w", err)
	}
	c := acme.Config{
		Directory: o.Settings.Directory, Key: key, Mail: o.Settings.Email, Roots: o.Settings.CA, Profile: o.Settings.Profile, Providers: providers, Now: o.Now,
	}
	if o.Settings.EAB != nil {
		c.EAB = &acme.EAB{KeyID: o.Settings.EAB.KeyID, MAC: o.Settings.EAB.HMACKey}
	}
	return acme.New(c)
}
