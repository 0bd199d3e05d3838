package identity

import (
	"fmt"
	"strings"

	"github.com/nats-io/jwt/v2"
)

const (
	// EventsPrefix is before <account>.<kind> in the subjects of events, in the
	// fleet's account.
	EventsPrefix = "events."
	// AccountEvents is before <kind> in the subjects of an account's events, in the
	// account itself. Nothing else that is private has as few tokens, so that a rule can
	// name them and no more.
	AccountEvents = Private
)

// eventsExport offers the events of accounts. Who has which is settled by the
// imports, which the authority signs, too.
func eventsExport() *jwt.Export {
	return &jwt.Export{Name: "events", Subject: EventsPrefix + "*.*", Type: jwt.Stream}
}

// eventsImport makes the events of that account AccountEvents in it.
func (a *Authority) eventsImport(account string) (*jwt.Import, error) {
	fleet, err := a.accountKey(a.own(fleetID))
	if err != nil {
		return nil, err
	}
	return &jwt.Import{
		Name: "events", Account: fleet.public, Subject: jwt.Subject(EventsPrefix + account + ".*"),
		LocalSubject: AccountEvents + "$1", Type: jwt.Stream,
	}, nil
}

// Claimed returns whom c says that it is from, be that true or not, for those who
// tell of a refusal. Both are empty if that is no name of an account of this fleet.
func (d *Directory) Claimed(c Credentials, fleet string) (account, name string) {
	known := func(account string) bool {
		_, ok := d.Account(account)
		return ok || account == FleetName || account == SystemName
	}
	if leaf := verifiedLeaf(c); leaf != nil {
		if account, name, found, err := d.certificateUser(leaf, fleet); err == nil && found && known(account) {
			return account, name
		}
	}
	account, name, err := SplitName(c.Username)
	if c.Bearer != "" {
		account, name, _, err = parseBearer(c.Bearer)
	}
	if err == nil && known(account) {
		return account, name
	}
	if text, err := ParseToken(c.Token); err == nil {
		if t, ok := d.Token(text.ID); ok {
			return FleetName, t.ID
		}
	}
	return "", ""
}

// ClaimedByJWT returns the public key of the account and the name of the user that
// a user's JWT says that it is of. It does not tell whether somebody of the fleet
// signed that.
func ClaimedByJWT(token string) (account, name string, err error) {
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return "", "", fmt.Errorf("reading a user's JWT: %w", err)
	}
	if err := CheckName(claims.Name); err != nil {
		return "", "", fmt.Errorf("reading a user's JWT: %w", err)
	}
	return claims.IssuerAccount, claims.Name, nil
}

// RoleOfJWT returns the role that a user's JWT names, as its holder may want to know
// it: it verifies nothing.
func RoleOfJWT(token string) (string, error) {
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return "", fmt.Errorf("reading a user's JWT: %w", err)
	}
	for _, tag := range claims.Tags {
		if role, ok := strings.CutPrefix(tag, RoleTag); ok {
			return role, nil
		}
	}
	return "", nil
}
