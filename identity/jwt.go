package identity

import (
	"cmp"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// NewAccount makes the record of a new account. Its ID is new
// even if an account of that name existed before.
func (a *Authority) NewAccount(name string, limits Limits, now time.Time) (Account, error) {
	if err := CheckAccountName(name); err != nil {
		return Account{}, fmt.Errorf("making an account: %w", err)
	}
	if err := limits.Validate(); err != nil {
		return Account{}, fmt.Errorf("making account %q: %w", name, err)
	}
	return a.newAccount(name, randomHex(accountIDDigits), limits, now)
}

// SystemAccount makes the record of the engine's own account.
func (a *Authority) SystemAccount(now time.Time) (Account, error) {
	return a.newAccount(SystemName, a.own(systemID), Limits{}, now)
}

// FleetAccount makes the record of the fleet's account.
func (a *Authority) FleetAccount(now time.Time) (Account, error) {
	return a.newAccount(FleetName, a.own(fleetID), Limits{}, now)
}

// CalloutAccount makes the record of the account in which clients wait while
// they are authenticated.
func (a *Authority) CalloutAccount(now time.Time) (Account, error) {
	return a.newAccount(CalloutName, a.own(calloutID), Limits{}, now)
}

func (a *Authority) newAccount(name, id string, limits Limits, now time.Time) (Account, error) {
	key, err := a.accountKey(id)
	if err != nil {
		return Account{}, fmt.Errorf("making account %q: %w", name, err)
	}
	return Account{Name: name, ID: id, Public: key.public, Limits: limits, Created: now}, nil
}

// AccountJWT signs the account as the engine must see it: with its limits, a
// scoped signing key for each of roles that is AllowedIn it, and revoked, the
// public keys of users and the time up to which what was issued to them is void
// (see Directory.Revocations), and what crosses its border (see Directory.Flows).
// The same arguments give the same token in one process, and no other engine takes
// it: see EngineOperator. Directory.Issued is when it was issued.
//
// What a guest may is its hub's to say: its token is its terms, whatever else is
// given.
func (a *Authority) AccountJWT(account Account, roles []Role, revoked map[string]time.Time, flows Flows, issued time.Time) (string, error) {
	if account.Guest() {
		return a.guestJWT(account)
	}
	claims, err := a.accountClaims(account, roles, revoked)
	if err != nil {
		return "", fmt.Errorf("signing account %q: %w", account.Name, err)
	}
	claims.SigningKeys.Add(a.engine.session.public)
	if slices.ContainsFunc(roles, func(r Role) bool { return r.Name == RoleLeaf && r.AllowedIn(account.Name) }) {
		signers, err := a.roleSigners(account.ID, RoleLeaf, time.Now())
		if err != nil {
			return "", fmt.Errorf("signing account %q: %w", account.Name, err)
		}
		for _, key := range signers {
			claims.SigningKeys.Add(key.public)
		}
	}
	switch account.ID {
	case a.own(systemID), regionsID:
		claims.Limits.JetStreamLimits = jwt.JetStreamLimits{}
	case a.own(fleetID):
		claims.Exports.Add(renewExport(), adapterExport(), eventsExport())
	case a.own(calloutID):
		claims.Limits.JetStreamLimits = jwt.JetStreamLimits{}
		if claims.Authorization, err = a.calloutAuthorization(); err != nil {
			return "", fmt.Errorf("signing account %q: %w", account.Name, err)
		}
	}
	if !isSpecialAccount(account.Name) {
		renewal, err := a.renewImport(account.Public)
		if err != nil {
			return "", fmt.Errorf("signing account %q: %w", account.Name, err)
		}
		events, err := a.eventsImport(account.Name)
		if err != nil {
			return "", fmt.Errorf("signing account %q: %w", account.Name, err)
		}
		claims.Imports.Add(renewal, events)
	}
	for _, e := range flows.Exports {
		claims.Exports.Add(e.engineExport())
	}
	for _, f := range flows.Imports {
		in, err := a.engineImport(f)
		if err != nil {
			return "", fmt.Errorf("signing account %q: %w", account.Name, err)
		}
		claims.Imports.Add(in)
	}
	token, err := encode(claims, a.engine.signing, issued)
	if err != nil {
		return "", fmt.Errorf("signing account %q: %w", account.Name, err)
	}
	return token, nil
}

// accountClaims are what the engine knows of an account wherever it is: what each
// role may do there.
func (a *Authority) accountClaims(account Account, roles []Role, revoked map[string]time.Time) (*jwt.AccountClaims, error) {
	key, err := a.checkAccount(account)
	if err != nil {
		return nil, err
	}
	claims := jwt.NewAccountClaims(key.public)
	claims.Name = account.Name
	setAccountLimits(claims, account.Limits)
	for _, role := range roles {
		// What a link may do is in its own JWT.
		if !role.AllowedIn(account.Name) || role.Name == RoleLeaf {
			continue
		}
		scopes, err := a.roleScopes(account, role)
		if err != nil {
			return nil, err
		}
		for _, scope := range scopes {
			claims.SigningKeys.AddScopedSigner(scope)
		}
	}
	for public, at := range revoked {
		if !nkeys.IsValidPublicUserKey(public) {
			return nil, fmt.Errorf("%s is revoked, but is not the key of a user", quote(public))
		}
		claims.RevokeAt(public, at)
	}
	return claims, nil
}

// checkAccount returns the account's identity key if the record is one that this
// authority made. Of a guest there is only the public half.
func (a *Authority) checkAccount(account Account) (keyPair, error) {
	if account.Guest() {
		return keyPair{public: account.Public}, nil
	}
	if err := errors.Join(CheckName(account.Name), CheckName(account.ID), account.Limits.Validate()); err != nil {
		return keyPair{}, err
	}
	key, err := a.accountKey(account.ID)
	if err != nil {
		return keyPair{}, err
	}
	if account.Public != key.public {
		return keyPair{}, fmt.Errorf("its public key %s is not the one of the %s", quote(account.Public), a)
	}
	return key, nil
}

func setAccountLimits(claims *jwt.AccountClaims, l Limits) {
	claims.Limits.Conn = limit(l.Connections)
	claims.Limits.LeafNodeConn = limit(l.Leafs)
	claims.Limits.NatsLimits = natsLimits(l)
	claims.Limits.JetStreamLimits = jwt.JetStreamLimits{
		MemoryStorage: limit(l.Memory),
		DiskStorage:   limit(l.Storage),
		Streams:       limit(l.Streams),
		Consumer:      limit(l.Consumers),
	}
}

func natsLimits(l Limits) jwt.NatsLimits {
	return jwt.NatsLimits{Subs: limit(l.Subscriptions), Data: limit(l.Data), Payload: limit(l.Payload)}
}

// limit turns our word for unlimited into the engine's.
func limit(n int64) int64 { return cmp.Or(n, jwt.NoLimit) }

// roleScopes are the signing keys of a role that are good now: whoever one signs may
// do what the role allows at that time.
func (a *Authority) roleScopes(account Account, role Role) ([]*jwt.UserScope, error) {
	if err := role.Validate(); err != nil {
		return nil, err
	}
	signers, err := a.roleSigners(account.ID, role.Name, time.Now())
	if err != nil {
		return nil, err
	}
	all := make([]*jwt.UserScope, len(signers))
	for i, key := range signers {
		all[i] = roleScope(account, role)
		all[i].Key = key.public
	}
	return all, nil
}

// roleScope is what a role allows, without who signs for it.
func roleScope(account Account, role Role) *jwt.UserScope {
	scope := jwt.NewUserScope()
	scope.Role = role.Name
	scope.Template.Permissions = enginePermissions(account.Signing.permissions(role.In(account.Name)))
	if !isSpecialAccount(account.Name) {
		allowRenewal(&scope.Template.Permissions)
	}
	scope.Template.NatsLimits = natsLimits(role.Limits)
	scope.Template.Src = jwt.CIDRList(role.Networks)
	role.Hours.scope(&scope.Template.UserLimits)
	scope.Template.AllowedConnectionTypes = connectionTypes(role.Listeners)
	return scope
}

// enginePermissions turns our rules into the engine's. In those an empty list
// of what is allowed allows everything, which is denied here.
func enginePermissions(p Permissions) jwt.Permissions {
	p = p.clone()
	out := jwt.Permissions{Pub: enginePermission(p.Publish), Sub: enginePermission(p.Subscribe)}
	shorten(&out.Sub)
	if r := p.Replies; r != nil {
		// The engine takes an empty list beside it for nothing but replies.
		out.Resp = &jwt.ResponsePermission{MaxMsgs: r.Max, Expires: r.For}
	} else {
		shorten(&out.Pub)
	}
	return out
}

// shorten leaves out that everything is allowed, where it goes without saying: each
// connection keeps a tree of its own of what is allowed.
func shorten(p *jwt.Permission) {
	if slices.Contains(p.Allow, ">") && len(p.Deny) > 0 {
		p.Allow = nil
	}
}

func enginePermission(r Rule) jwt.Permission {
	if len(r.Allow) == 0 {
		return jwt.Permission{Deny: jwt.StringList{">"}}
	}
	out := jwt.Permission{Allow: r.Allow, Deny: r.Deny}
	if hidden := r.hidden(); hidden != "" {
		out.Deny = append(slices.Clone(out.Deny), hidden)
	}
	return out
}

// connectionTypes says by which of the engine's own ways in a creds file is
// accepted. Every listener that is not the engine's comes in through the server.
// Only who names it comes in as a leaf: what a server brings along is not one
// principal's.
func connectionTypes(listeners []string) jwt.StringList {
	if len(listeners) == 0 {
		return jwt.StringList{jwt.ConnectionTypeStandard, jwt.ConnectionTypeWebsocket, jwt.ConnectionTypeInProcess}
	}
	var types jwt.StringList
	for _, l := range listeners {
		switch l {
		case "nats":
			types.Add(jwt.ConnectionTypeStandard)
		case "websocket":
			types.Add(jwt.ConnectionTypeWebsocket)
		case "leaf":
			types.Add(jwt.ConnectionTypeLeafnode, jwt.ConnectionTypeLeafnodeWS)
		default:
			types.Add(jwt.ConnectionTypeInProcess)
		}
	}
	return types
}

// What begins the tags of a user JWT, by which the engine's connections are told
// apart.
const (
	// NameTag is before the principal's name. TagList.Add would change its case.
	NameTag = "name:"
	// KindTag is before its kind. Only the JWTs of sessions have it.
	KindTag = "kind:"
	// RoleTag is before the name of its role, in lower case in a session.
	RoleTag = "role:"
)

// UserJWT signs the JWT of a creds file: for the user of that name, who holds
// the private half of the nkey userPublic, under role. The engine looks the
// permissions up in the account, so that a change of the role reaches it. A zero
// expires means never.
func (a *Authority) UserJWT(account Account, role Role, name, userPublic string, expires time.Time) (string, error) {
	full := account.Name + "/" + name
	if err := errors.Join(CheckName(name), CheckName(role.Name)); err != nil {
		return "", fmt.Errorf("signing user %s: %w", quote(full), err)
	}
	if account.Guest() {
		return "", fmt.Errorf("signing user %q: the hub of account %q signs its creds files", full, account.Name)
	}
	if !role.AllowedIn(account.Name) {
		return "", fmt.Errorf("signing user %q: role %q cannot be had in this account", full, role.Name)
	}
	key, err := a.checkAccount(account)
	if err != nil {
		return "", fmt.Errorf("signing user %q: %w", full, err)
	}
	signer, err := a.roleKey(account.ID, role.Name)
	if err != nil {
		return "", fmt.Errorf("signing user %q: %w", full, err)
	}
	if !nkeys.IsValidPublicUserKey(userPublic) {
		return "", fmt.Errorf("signing user %q: %s is not the key of a user", full, quote(userPublic))
	}
	claims := jwt.NewUserClaims(userPublic)
	claims.SetScoped(true)
	claims.Name = name
	claims.IssuerAccount = key.public
	claims.Tags = jwt.TagList{NameTag + name, RoleTag + role.Name}
	claims.Expires = unix(expires)
	token, err := encode(claims, signer, time.Now())
	if err != nil {
		return "", fmt.Errorf("signing user %q: %w", full, err)
	}
	return token, nil
}

// SessionJWT signs the JWT of one session: for p, who holds the private half of
// the nkey userPublic. What p may do is in the JWT itself. With inProcess it is
// good for connections within a server only. It is good at the engine of this process.
func (a *Authority) SessionJWT(account Account, p Principal, userPublic string, inProcess bool, now time.Time) (string, error) {
	claims, err := a.sessionClaims(account, p, userPublic, now)
	if err != nil {
		return "", err
	}
	if inProcess {
		claims.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeInProcess}
	}
	token, err := a.signSession(account, claims, now)
	if err != nil {
		return "", fmt.Errorf("signing a session of %q: %w", p, err)
	}
	return token, nil
}

// sessionClaims are what the JWT of a session says.
func (a *Authority) sessionClaims(account Account, p Principal, userPublic string, now time.Time) (*jwt.UserClaims, error) {
	if err := p.Validate(); err != nil {
		return nil, fmt.Errorf("signing a session of %s: %w", quote(p.String()), err)
	}
	if p.Account != account.Name {
		return nil, fmt.Errorf("signing a session of %q: its account is not %s", p, quote(account.Name))
	}
	if !p.Expires.IsZero() && !now.Before(p.Expires) {
		return nil, fmt.Errorf("signing a session of %q: it has expired", p)
	}
	if !nkeys.IsValidPublicUserKey(userPublic) {
		return nil, fmt.Errorf("signing a session of %q: %s is not the key of a user", p, quote(userPublic))
	}
	if _, err := a.checkAccount(account); err != nil {
		return nil, fmt.Errorf("signing a session of %q: %w", p, err)
	}
	claims := jwt.NewUserClaims(userPublic)
	claims.Name = p.Name
	claims.Permissions = enginePermissions(p.Signing.permissions(p.Permissions.Expand(p.Account, p.Name)))
	claims.NatsLimits = natsLimits(p.Limits)
	claims.Tags = jwt.TagList{NameTag + p.Name, KindTag + string(p.Kind)}
	if p.Role != "" {
		claims.Tags.Add(RoleTag + p.Role)
	}
	claims.Expires = unix(p.Expires)
	return claims, nil
}

// ServiceCredentials makes a fresh key and the JWT of a session of p with it,
// good for connections within a server only.
func (a *Authority) ServiceCredentials(account Account, p Principal, now time.Time) (token string, key nkeys.KeyPair, err error) {
	pair, err := newKeyPair(nkeys.CreateUser())
	if err != nil {
		return "", nil, fmt.Errorf("making the credentials of %q: %w", p, err)
	}
	token, err = a.SessionJWT(account, p, pair.public, true, now)
	if err != nil {
		return "", nil, err
	}
	return token, pair.KeyPair, nil
}

// signSession signs what the engine of this process takes: the JWT of a session,
// which no role limits.
func (a *Authority) signSession(account Account, claims *jwt.UserClaims, now time.Time) (string, error) {
	issuer, err := a.public(account)
	if err != nil {
		return "", err
	}
	claims.IssuerAccount = issuer
	return encode(claims, a.engine.session, now)
}

// public is the account's public key, which must be named beside that of who signs
// for it.
func (a *Authority) public(account Account) (string, error) {
	if account.Guest() {
		return account.Public, nil
	}
	key, err := a.accountKey(account.ID)
	return key.public, err
}

// CreateCreds returns the content of a NATS creds file: the JWT of a user and
// the seed of the key that it was issued to.
func CreateCreds(token string, seed []byte) ([]byte, error) {
	creds, err := jwt.FormatUserConfig(token, slices.Clone(seed))
	if err != nil {
		return nil, fmt.Errorf("making a creds file: %w", err)
	}
	return creds, nil
}

// CredsLife returns when the JWT in a creds file was issued, and when it expires; zero
// if it never does. It verifies no signature.
func CredsLife(creds []byte) (issued, expires time.Time, err error) {
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		return issued, expires, errors.New("reading a creds file: it has no JWT")
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return issued, expires, errors.New("reading a creds file: its JWT is not a user's")
	}
	if claims.Expires != 0 {
		expires = time.Unix(claims.Expires, 0)
	}
	return time.Unix(claims.IssuedAt, 0), expires, nil
}

// CredsUser returns the name of the user whose creds file it is, and the public half
// of its key. It verifies no signature.
func CredsUser(creds []byte) (name, public string, err error) {
	token, err := jwt.ParseDecoratedJWT(creds)
	if err != nil {
		return "", "", errors.New("reading a creds file: it has no JWT")
	}
	claims, err := jwt.DecodeUserClaims(token)
	if err != nil {
		return "", "", errors.New("reading a creds file: its JWT is not a user's")
	}
	return claims.Name, claims.Subject, nil
}

// CredsInbox returns the Inbox of the user whose creds file it is; what clients use by
// default if it is not one of ours. It verifies no signature.
func CredsInbox(creds []byte) string {
	if token, err := jwt.ParseDecoratedJWT(creds); err == nil {
		if claims, err := jwt.DecodeUserClaims(token); err == nil && CheckName(claims.Name) == nil {
			return Inbox(claims.Name)
		}
	}
	return "_INBOX"
}

// jwtHeader is the only one that the engine accepts.
const jwtHeader = `{"typ":"JWT","alg":"ed25519-nkey"}`

// encode signs claims as issued at that time. The library's own Encode always
// takes the time from the clock; it is called to fill in the rest. The ID is its
// hash of the standard claims.
func encode(claims jwt.Claims, key nkeys.KeyPair, issued time.Time) (string, error) {
	if _, err := claims.Encode(key); err != nil {
		return "", err
	}
	standard := claims.Claims()
	standard.IssuedAt = issued.Unix()
	standard.ID = ""
	data, err := json.Marshal(standard)
	if err != nil {
		return "", err
	}
	sum := sha512.Sum512_256(data)
	standard.ID = base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:])
	payload, err := json.Marshal(claims)
	if err != nil {
		return "", err
	}
	signed := base64.RawURLEncoding.EncodeToString([]byte(jwtHeader)) + "." + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := key.Sign([]byte(signed))
	if err != nil {
		return "", err
	}
	return signed + "." + base64.RawURLEncoding.EncodeToString(signature), nil
}

// unix is the time as a JWT has it, in which 0 is never.
func unix(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.Unix()
}

// DeleteAccountsJWT signs the order to forget accounts, by their public keys, as
// the engine of this process takes it.
func (a *Authority) DeleteAccountsJWT(publics ...string) (string, error) {
	claims := jwt.NewGenericClaims(a.engine.signing.public)
	claims.Data["accounts"] = publics
	token, err := claims.Encode(a.engine.signing)
	if err != nil {
		return "", fmt.Errorf("signing the end of accounts: %w", err)
	}
	return token, nil
}
