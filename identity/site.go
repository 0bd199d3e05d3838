package identity

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// A site is a fleet of its own that one account of another fleet, its hub, is a
// guest in. The hub signs what the engine must know of the account there, its
// terms: those of the hub's engine, but for the keys that sign sessions, of which
// the site has its own.

// RoleLeaf is the link of a site: it carries everything of its account but what
// protocols keep for themselves, and comes in by the leaf listener alone.
const RoleLeaf = "leaf"

// leafRole has credentials that outlive an outage of the link. A renewal that is
// asked for on one side is not for the other.
func leafRole() Role {
	p := LinkPermissions()
	p.Publish.Deny = append(p.Publish.Deny, certsAPI()...)
	return Role{Name: RoleLeaf, Builtin: true, Expires: 90 * 24 * time.Hour, Listeners: []string{"leaf"}, Permissions: p}
}

// LinkPrefix begins the subjects between a hub and its sites, in the account that
// is a guest there. They are the private subjects of two parts.
const LinkPrefix = Private + "site-"

// LinkPermissions are everything but what protocols keep for themselves: of the
// private subjects, those between a hub and its sites alone. A link has them, and
// the nodes at its ends.
func LinkPermissions() Permissions {
	all := Rule{Allow: []string{">", Private + "*"}, Deny: []string{"$SYS.>", RenewSubject, Private + "*.>"}}
	return Permissions{Publish: all, Subscribe: all.clone()}
}

// A Site is what the hub knows of a site, in the record of the user that its link
// is.
type Site struct {
	// Signer is the public key that signs sessions of the account at the site.
	Signer string `json:"signer"`
	// Fleet is the public key of the account in which the site answers what its
	// clients ask of a fleet.
	Fleet string `json:"fleet"`
	// Machine is the name of the host where it joined.
	Machine string `json:"machine,omitempty"`
	// Networks that its link may come from, such as 10.0.0.0/8. Empty: any.
	Networks []string `json:"networks,omitempty"`
	// Region that it is linked to, as Authority.Region has it.
	Region string `json:"region,omitempty"`
}

// Validate returns every problem of s, joined; nil if there is none.
func (s Site) Validate() error {
	var errs []error
	for _, key := range []string{s.Signer, s.Fleet} {
		if !nkeys.IsValidPublicAccountKey(key) {
			errs = append(errs, fmt.Errorf("%s is not the key of an account", quote(key)))
		}
	}
	if err := errors.Join(append(errs, checkNetworks(s.Networks))...); err != nil {
		return fmt.Errorf("checking a site: %w", err)
	}
	return nil
}

// SiteKeys are the public keys that this authority has as one of a site: of what
// signs sessions of a guest, and of the fleet's account.
func (a *Authority) SiteKeys() (signer, fleet string, err error) {
	s, err1 := a.guestKey()
	f, err2 := a.accountKey(a.own(fleetID))
	return s.public, f.public, errors.Join(err1, err2)
}

func (a *Authority) guestKey() (keyPair, error) {
	return a.derive(nkeys.PrefixByteAccount, "guest/session")
}

// SiteTerms signs the account as the engine of that site must see it. The
// arguments are those of AccountJWT.
func (a *Authority) SiteTerms(account Account, site Site, roles []Role, revoked map[string]time.Time, issued time.Time) (string, error) {
	if err := site.Validate(); err != nil {
		return "", fmt.Errorf("signing the terms of account %q: %w", account.Name, err)
	}
	claims, err := a.accountClaims(account, roles, revoked)
	if err != nil {
		return "", fmt.Errorf("signing the terms of account %q: %w", account.Name, err)
	}
	claims.SigningKeys.Add(site.Signer)
	if err := a.tellEnds(claims, account, roles); err != nil {
		return "", fmt.Errorf("signing the terms of account %q: %w", account.Name, err)
	}
	// What other accounts are asked for at the hub is asked there. Who wants a
	// renewal asks the site, whose engine knows who it is.
	claims.Imports.Add(renewTo(site.Fleet, account.Public))
	_, signer, err := a.operatorNow()
	if err != nil {
		return "", fmt.Errorf("signing the terms of account %q: %w", account.Name, err)
	}
	token, err := encode(claims, signer, issued)
	if err != nil {
		return "", fmt.Errorf("signing the terms of account %q: %w", account.Name, err)
	}
	return token, nil
}

// LeafJWT signs the credentials of a site's link: for the user of that name, who
// holds the private half of the nkey userPublic. What role allows is in the JWT
// itself, and where it may come from.
func (a *Authority) LeafJWT(account Account, role Role, name, userPublic string, site Site, expires time.Time) (string, error) {
	full := account.Name + "/" + name
	if err := errors.Join(CheckName(name), role.Validate(), site.Validate()); err != nil {
		return "", fmt.Errorf("signing the link of site %s: %w", quote(full), err)
	}
	if !nkeys.IsValidPublicUserKey(userPublic) {
		return "", fmt.Errorf("signing the link of site %q: %s is not the key of a user", full, quote(userPublic))
	}
	if _, err := a.checkAccount(account); err != nil {
		return "", fmt.Errorf("signing the link of site %q: %w", full, err)
	}
	claims := jwt.NewUserClaims(userPublic)
	claims.Name = name
	claims.Permissions = enginePermissions(role.Permissions.Expand(account.Name, name))
	claims.NatsLimits = natsLimits(role.Limits)
	claims.AllowedConnectionTypes = connectionTypes([]string{"leaf"})
	claims.Src = jwt.CIDRList(append(slices.Clone(role.Networks), site.Networks...))
	claims.Tags = jwt.TagList{NameTag + name, RoleTag + role.Name}
	claims.Expires = unix(expires)
	key, err := a.roleKey(account.ID, RoleLeaf)
	if err != nil {
		return "", fmt.Errorf("signing the link of site %q: %w", full, err)
	}
	claims.IssuerAccount = account.Public
	token, err := encode(claims, key, time.Now())
	if err != nil {
		return "", fmt.Errorf("signing the link of site %q: %w", full, err)
	}
	return token, nil
}

// guestJWT is the token of a guest: its terms, as the engine of this process takes
// them.
func (a *Authority) guestJWT(account Account) (string, error) {
	claims, err := account.terms()
	if err != nil {
		return "", err
	}
	signer, err := a.guestKey()
	if err != nil {
		return "", err
	}
	delete(claims.SigningKeys, signer.public)
	for key, end := range takeEnds(claims) {
		if !good(end, time.Now()) {
			delete(claims.SigningKeys, key)
		}
	}
	claims.SigningKeys.Add(a.engine.session.public)
	token, err := encode(claims, a.engine.signing, time.Unix(claims.IssuedAt, 0))
	if err != nil {
		return "", fmt.Errorf("signing account %q: %w", account.Name, err)
	}
	return token, nil
}

// endTag begins a tag in terms: a key that signs for a role, ":", and the second when
// it is good no more.
const endTag = "until:"

// tellEnds puts into the terms of a site until when keys are good, for the time in
// which it cannot be told.
func (a *Authority) tellEnds(claims *jwt.AccountClaims, account Account, roles []Role) error {
	for _, role := range roles {
		signers, err := a.roleSigners(account.ID, role.Name, time.Now())
		if err != nil {
			return err
		}
		for _, key := range signers {
			if _, ok := claims.SigningKeys[key.public]; ok && !key.end.IsZero() {
				claims.Tags = append(claims.Tags, fmt.Sprintf("%s%s:%d", endTag, key.public, key.end.Unix()))
			}
		}
	}
	return nil
}

// takeEnds removes them again.
func takeEnds(claims *jwt.AccountClaims) map[string]time.Time {
	all := map[string]time.Time{}
	claims.Tags = slices.DeleteFunc(claims.Tags, func(tag string) bool {
		rest, ok := strings.CutPrefix(tag, endTag)
		key, at, _ := strings.Cut(rest, ":")
		if seconds, err := strconv.ParseInt(at, 10, 64); ok && err == nil {
			all[key] = time.Unix(seconds, 0)
		}
		return ok
	})
	return all
}

// TermsState tells apart what the terms of a guest say at one time and at another, as
// KeyState does for the fleet's own.
func (a Account) TermsState(now time.Time) string {
	claims, err := a.terms()
	if err != nil {
		return ""
	}
	ended := 0
	for _, end := range takeEnds(claims) {
		if !good(end, now) {
			ended++
		}
	}
	return strconv.Itoa(ended)
}

// Guest reports whether the account is another fleet's, whose terms it has.
func (a Account) Guest() bool { return a.Terms != "" }

// terms decodes Terms.
func (a Account) terms() (*jwt.AccountClaims, error) {
	claims, err := jwt.DecodeAccountClaims(a.Terms)
	if err != nil {
		return nil, fmt.Errorf("reading the terms of account %s: %w", quote(a.Name), err)
	}
	return claims, nil
}

// TermsIssued is when the terms of a guest were issued; zero if they cannot be
// read.
func (a Account) TermsIssued() time.Time {
	claims, err := a.terms()
	if err != nil {
		return time.Time{}
	}
	return time.Unix(claims.IssuedAt, 0)
}

// Revokes reports whether the terms of a guest shut the holder of a creds file
// out, by its public key.
func (a Account) Revokes(userPublic string) bool {
	claims, err := a.terms()
	return err == nil && claims.Revocations[userPublic] > 0
}

// CheckGuest returns nil if account is a guest here by terms that the operator of
// its hub, whose JWT that is, signed for this site.
func (a *Authority) CheckGuest(account Account, operator string) error {
	hub, err := jwt.DecodeOperatorClaims(operator)
	if err != nil {
		return fmt.Errorf("reading the operator of the hub: %w", err)
	}
	claims, err := account.terms()
	if err != nil {
		return err
	}
	signer, err := a.guestKey()
	if err != nil {
		return err
	}
	switch {
	case CheckAccountName(account.Name) != nil || CheckName(account.ID) != nil:
		return fmt.Errorf("checking the terms of account %s: the account has no valid name", quote(account.Name))
	case !hub.DidSign(claims):
		return fmt.Errorf("checking the terms of account %q: the hub's operator has not signed them", account.Name)
	case claims.Subject != account.Public:
		return fmt.Errorf("checking the terms of account %q: they are another account's", account.Name)
	case !slices.Contains(claims.SigningKeys.Keys(), signer.public):
		return fmt.Errorf("checking the terms of account %q: they are for another site", account.Name)
	}
	return account.Limits.Validate()
}

// RenewCreds is CreateCreds after it was checked that token was issued to the key
// with that seed.
func RenewCreds(token string, seed []byte) ([]byte, error) {
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return nil, fmt.Errorf("reading a JWT: %w", err)
	}
	key, err := nkeys.FromSeed(seed)
	if err != nil {
		return nil, errors.New("reading a key: it is none")
	}
	defer key.Wipe()
	if public, err := key.PublicKey(); err != nil || public != claims.Subject {
		return nil, errors.New("reading a JWT: it is another key's")
	}
	return CreateCreds(token, seed)
}

// CheckNetworks says what is wrong with networks such as 10.0.0.0/8; nil if
// nothing.
func CheckNetworks(networks []string) error { return checkNetworks(networks) }
