package identity

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/jwt/v2"
)

const (
	// RenewSubject is what the holder of a creds file asks, in its own account, for
	// a new JWT of the same key. Every role allows it; who may not receive replies
	// is renewed by an administrator.
	RenewSubject = "$FLEET.renew"
	// renewPrefix is before the public key of the account that the request comes
	// from, in the fleet's account, where the engine puts it.
	renewPrefix = "renew."
	// RenewRequests are the requests as the fleet's account sees them.
	RenewRequests = renewPrefix + "*"
	// RenewInfoHeader is where the engine says which client a request is from.
	RenewInfoHeader = "Nats-Request-Info"
)

// renewExport lets every account ask, under its own key alone.
func renewExport() *jwt.Export {
	return &jwt.Export{
		Name: "renew", Subject: RenewRequests, Type: jwt.Service, ResponseType: jwt.ResponseTypeSingleton,
		AccountTokenPosition: uint(strings.Count(RenewRequests, ".") + 1),
	}
}

// renewImport makes RenewSubject of the account with that public key a request
// to the fleet, with the client's key in it.
func (a *Authority) renewImport(public string) (*jwt.Import, error) {
	fleet, err := a.accountKey(a.own(fleetID))
	if err != nil {
		return nil, err
	}
	return renewTo(fleet.public, public), nil
}

// renewTo is renewImport for any fleet's account.
func renewTo(fleet, public string) *jwt.Import {
	return &jwt.Import{
		Name: "renew", Account: fleet, Subject: jwt.Subject(renewPrefix + public),
		LocalSubject: RenewSubject, Type: jwt.Service, Share: true,
	}
}

// allowRenewal adds RenewSubject to what may be published.
func allowRenewal(p *jwt.Permissions) {
	if len(p.Pub.Allow) == 0 {
		if !slices.Contains(p.Pub.Deny, ">") {
			return // everything else is allowed
		}
		p.Pub.Deny = nil
	}
	p.Pub.Allow.Add(RenewSubject)
}

// RenewalFrom returns the public keys of the account and of the user that a
// renewal was asked from, by its subject in the fleet's account and the content of
// RenewInfoHeader. Both are the engine's word, not the client's.
func RenewalFrom(subject, info string) (account, user string, err error) {
	account = strings.TrimPrefix(subject, renewPrefix)
	var from struct {
		Account string `json:"acc"`
		User    string `json:"user"`
	}
	if err := json.Unmarshal([]byte(info), &from); err != nil {
		return "", "", fmt.Errorf("reading who asks for a renewal: %w", err)
	}
	if from.Account != account || from.User == "" {
		return "", "", fmt.Errorf("reading who asks for a renewal: the account %s is not the one of %s", quote(account), quote(from.Account))
	}
	return account, from.User, nil
}
