package identity

import (
	"cmp"
	"crypto/x509"
	"errors"
	"slices"
	"time"
)

// decoy is verified in place of the password of a user who has none, so that the
// time of a refusal does not tell whether there is such a user. Its cost is the
// one of HashPassword; no password is known for it, and none would be accepted.
const decoy = "$argon2id$v=19$m=19456,t=2,p=1$AAAAAAAAAAAAAAAAAAAAAA$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// Authenticate returns who presented c to a listener of that fleet at that time,
// and what it may do. In this order:
//
//   - a login link, for whom the node that made it vouches
//   - a verified client certificate that names a user of the fleet, or whose key
//     is registered for one. A username beside it must be the same user's.
//   - a bearer token. A username beside it must be the same user's.
//   - a username, account/name, and its password
//   - an enrollment token, whose principal may only enroll
//
// An error is always a *Refusal: its text is for the client, its Operator for
// the log. A token's error is found in it with errors.Is. A user is refused who
// is denied, who comes from a network, by a listener or at a time that its role does
// not allow, or whose role cannot be had in its account. A session ends with the
// hours of its role.
//
// Authenticate may take as long as a few passwords take to verify, because two
// are verified at once and the others wait.
func (d *Directory) Authenticate(c Credentials, fleet string, now time.Time) (Principal, error) {
	if c.Link != "" {
		account, name, err := SplitName(c.Vouched)
		if err != nil {
			return Principal{}, refuse("the login link is not of this node, was used, or has expired")
		}
		return d.principal(c, account, name, now)
	}
	if leaf := verifiedLeaf(c); leaf != nil {
		account, name, found, err := d.certificateUser(leaf, fleet)
		if err != nil {
			return Principal{}, err
		}
		if found {
			return d.authenticateCertificate(c, leaf, account, name, now)
		}
	}
	switch {
	case c.Bearer != "":
		return d.authenticateBearer(c, now)
	case c.Prove != nil:
		return d.authenticateProof(c, now)
	case c.Username != "":
		return d.authenticatePassword(c, now)
	case c.Token != "":
		return d.authenticateToken(c, now)
	case c.TLS != nil && len(c.TLS.PeerCertificates) > 0:
		return Principal{}, refuse("the certificate of %s is of no user", quote(c.TLS.PeerCertificates[0].Subject.String()))
	}
	return Principal{}, refuse("no credentials were presented")
}

// verifiedLeaf is the client's certificate if its listener verified it.
func verifiedLeaf(c Credentials) *x509.Certificate {
	if c.TLS == nil || len(c.TLS.VerifiedChains) == 0 || len(c.TLS.VerifiedChains[0]) == 0 {
		return nil
	}
	return c.TLS.VerifiedChains[0][0]
}

// certificateUser says which user a certificate leads to.
func (d *Directory) certificateUser(leaf *x509.Certificate, fleet string) (account, name string, found bool, err error) {
	if account, name, ok := PrincipalFromCertificate(leaf, fleet); ok {
		return account, name, true, nil
	}
	d.mu.RLock()
	defer d.mu.RUnlock()
	holders := d.state.holders[KeyHash(leaf)]
	if len(holders) > 1 {
		return "", "", false, refuse("the certificate with key %s is registered for %d users", KeyHash(leaf), len(holders))
	}
	for full := range holders {
		u := d.state.users[full]
		return u.Account, u.Name, true, nil
	}
	return "", "", false, nil
}

func (d *Directory) authenticateCertificate(c Credentials, leaf *x509.Certificate, account, name string, now time.Time) (Principal, error) {
	full := account + "/" + name
	if c.Username != "" && c.Username != full {
		return Principal{}, refuse("the certificate is of %q and the username is %s", full, quote(c.Username))
	}
	if now.After(leaf.NotAfter) {
		return Principal{}, refuse("the certificate of %q expired at %s", full, leaf.NotAfter.UTC().Format(time.RFC3339))
	}
	p, err := d.principal(c, account, name, now)
	if err != nil {
		return Principal{}, err
	}
	if p.Expires.IsZero() || leaf.NotAfter.Before(p.Expires) {
		p.Expires = leaf.NotAfter
	}
	return p, nil
}

func (d *Directory) authenticatePassword(c Credentials, now time.Time) (Principal, error) {
	account, name, err := SplitName(c.Username)
	user, exists := User{}, false
	if err == nil {
		user, exists = d.User(account, name)
	}
	encoded := user.Password
	if encoded == "" {
		encoded = decoy
	}
	d.passwords <- struct{}{}
	verified := VerifyPassword(encoded, c.Password)
	<-d.passwords
	switch {
	case err != nil:
		return Principal{}, refuse("reading the username: %w", err)
	case !exists:
		return Principal{}, refuse("there is no user %q", c.Username)
	case user.Password == "":
		return Principal{}, refuse("user %q has no password", c.Username)
	case verified != nil:
		return Principal{}, refuse("checking the password of %q: %w", c.Username, verified)
	}
	return d.principal(c, account, name, now)
}

// authenticateProof is authenticatePassword by SCRAM, which costs the client what it does not
// cost here.
func (d *Directory) authenticateProof(c Credentials, now time.Time) (Principal, error) {
	account, name, err := SplitName(c.Username)
	user, exists := User{}, false
	if err == nil {
		user, exists = d.User(account, name)
	}
	verifier, has := d.scramOf(user, c.Username)
	proved := c.Prove(verifier)
	switch {
	case err != nil:
		return Principal{}, refuse("reading the username: %w", err)
	case !exists:
		return Principal{}, refuse("there is no user %q", c.Username)
	case !has:
		return Principal{}, refuse("user %q has no password for SCRAM: give it one with --scram", c.Username)
	case proved != nil:
		return Principal{}, refuse("checking the proof of %q: %w", c.Username, proved)
	}
	return d.principal(c, account, name, now)
}

func (d *Directory) authenticateToken(c Credentials, now time.Time) (Principal, error) {
	text, err := ParseToken(c.Token)
	if err != nil {
		return Principal{}, refuse("reading the token: %w", err)
	}
	t, ok := d.Token(text.ID)
	if !ok {
		return Principal{}, refuse("there is no token %q", text.ID)
	}
	// Who was cut off while enrolling comes in again with a used token, and is
	// told of its use if it was somebody else's.
	if err := t.Check(text.Secret, t.Kind, now); err != nil && !errors.Is(err, ErrTokenUsed) {
		return Principal{}, refuse("checking token %q: %w", t.ID, err)
	}
	return Principal{
		Account: FleetName,
		Name:    t.ID,
		Kind:    KindToken,
		Permissions: Permissions{
			Publish:   Rule{Allow: []string{"enroll.*." + t.ID, "preflight." + t.ID}},
			Subscribe: Rule{Allow: []string{tokenInbox(t.ID) + ".>"}},
		},
		Expires: t.Expires,
	}, nil
}

// principal is the user as it may come in now, whatever proved that it is one.
func (d *Directory) principal(c Credentials, account, name string, now time.Time) (Principal, error) {
	d.mu.RLock()
	user, isUser := d.state.users[account+"/"+name]
	record, isAccount := d.state.accounts[account]
	isAccount = isAccount || account == FleetName || account == SystemName
	role, isRole := d.state.role(user.Role)
	d.mu.RUnlock()
	p := Principal{Account: account, Name: name}
	switch {
	case !isUser:
		return Principal{}, refuse("there is no user %q", p)
	case !isAccount:
		return Principal{}, refuse("there is no account %q", account)
	case user.Denied:
		return Principal{}, refuse("user %q is denied since %s", p, user.DeniedAt.UTC().Format(time.RFC3339))
	case !isRole:
		return Principal{}, refuse("user %q has role %s, which does not exist", p, quote(user.Role))
	}
	p, err := role.principal(c, user.Kind, account, name, user.Life(role), now)
	p.Signing = record.Signing
	return p, err
}

// principal is who has the role in an account and comes in with c now, for that long.
// life 0 has no end.
func (r Role) principal(c Credentials, kind Kind, account, name string, life time.Duration, now time.Time) (Principal, error) {
	p := Principal{
		Account:   account,
		Name:      name,
		Kind:      cmp.Or(kind, KindUser),
		Role:      r.Name,
		Limits:    r.Limits,
		Listeners: r.Listeners,
		Networks:  r.Networks,
	}
	switch {
	case !r.AllowedIn(account):
		return Principal{}, refuse("user %q has role %q, which cannot be had in its account", p, r.Name)
	case len(r.Listeners) > 0 && !slices.Contains(r.Listeners, c.Listener):
		return Principal{}, refuse("user %q came in by listener %s, which role %q does not allow", p, quote(c.Listener), r.Name)
	case len(r.Networks) > 0 && !networksContain(r.Networks, c.Remote):
		return Principal{}, refuse("user %q came from %s, which role %q does not allow", p, quote(c.Remote), r.Name)
	}
	until, open, err := r.Hours.Open(now)
	switch {
	case err != nil:
		return Principal{}, refuse("user %q has a role with hours: %w", p, err)
	case !open:
		return Principal{}, refuse("user %q came outside of the hours of role %q", p, r.Name)
	}
	p.Permissions = r.In(account).Expand(account, name)
	if life > 0 {
		p.Expires = now.Add(life)
	}
	if !until.IsZero() && (p.Expires.IsZero() || until.Before(p.Expires)) {
		p.Expires = until
	}
	if err := p.Validate(); err != nil {
		return Principal{}, refuse("checking user %q: %w", p, err)
	}
	return p, nil
}
