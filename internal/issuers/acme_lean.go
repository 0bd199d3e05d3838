//go:build lean

package issuers

import (
	"context"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/certmanager"
)

// openACME says how to get a program that can: the clients of ACME and of the providers of
// DNS are large, and few nodes of a fleet are managers.
func openACME(context.Context, certmanager.IssuerOptions) (certmanager.Issuer, error) {
	return nil, admin.Errorf(admin.Invalid, "make build TAGS=, and run that on the managers", "this is the lean program, which is built without ACME")
}
