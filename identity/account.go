package identity

import (
	"fmt"
	"time"
)

// The names of the accounts that every fleet has for itself.
const (
	// SystemName is the engine's own account.
	SystemName = "SYS"
	// FleetName is the account of the ledger and of administration.
	FleetName = "FLEET"
	// CalloutName is the account in which clients wait while they are
	// authenticated. Nobody stays there.
	CalloutName = "CALLOUT"
)

// The IDs of those accounts in the first region, which their keys are derived from.
const (
	systemID  = "system"
	fleetID   = "fleet"
	calloutID = "callout"
	// accountIDDigits are those of any other's, at random.
	accountIDDigits = 16
)

// nodeSegment takes the place of the account in the names of nodes, in
// certificates, so that no account can have it.
const nodeSegment = "node"

// An Account isolates subjects: what is published in one is not seen in another.
// Make one with Authority.NewAccount, and sign it with Authority.AccountJWT.
type Account struct {
	// Name of the account, unique in the fleet.
	Name string `json:"name"`
	// ID is 16 random hexadecimal digits, new whenever an account is created, so
	// that credentials of a removed account do not open its successor.
	ID string `json:"id"`
	// Public is the account's public nkey, by which the engine knows it.
	Public string `json:"public"`
	// Limits of the account, over all its connections.
	Limits Limits `json:"limits,omitzero"`
	// Created is when the account was made.
	Created time.Time `json:"created,omitzero"`
	// Terms are the engine's token of an account that is a guest here, as its own
	// fleet signed it. Empty for an account of this fleet.
	Terms string `json:"terms,omitempty"`
	// Signing says whether what its users publish must be signed.
	Signing Signing `json:"signing,omitempty"`
}

// CheckAccountName says what is wrong with name as the name of a new account:
// what CheckName says, or that the fleet keeps the name for itself.
func CheckAccountName(name string) error {
	switch name {
	case SystemName, FleetName, CalloutName, RegionsName, nodeSegment, regionSegment:
		return fmt.Errorf("name %q is kept for the fleet itself", name)
	}
	return CheckName(name)
}

func isSpecialAccount(name string) bool {
	return name == SystemName || name == FleetName || name == CalloutName || name == RegionsName
}
