package identity

import (
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func TestNewAccount(t *testing.T) {
	a := newAuthority(t)
	now := epoch()
	first, second := newAccount(t, a, "acme"), newAccount(t, a, "acme")
	if len(first.ID) != 16 || !isHex(first.ID) || !nkeys.IsValidPublicAccountKey(first.Public) || !first.Created.Equal(now) {
		t.Errorf("the account is %+v", first)
	}
	if first.ID == second.ID || first.Public == second.Public {
		t.Error("an account that is created again is the one before")
	}
	_, err := a.NewAccount("SYS", Limits{}, now)
	wantError(t, err, "kept for the fleet itself")
	_, err = a.NewAccount("acme", Limits{Storage: -1}, now)
	wantError(t, err, `making account "acme": checking limits: storage is negative`)
}

func TestAccountJWT(t *testing.T) {
	a := newAuthority(t)
	account := newAccount(t, a, "acme")
	account.Limits = Limits{Connections: 1, Leafs: 9, Subscriptions: 2, Payload: 3, Data: 4, Storage: 5, Memory: 6, Streams: 7, Consumers: 8}
	custom := Role{
		Name:        "meter",
		Permissions: Permissions{Publish: Rule{Allow: []string{"meter.{{name()}}"}, Deny: []string{"meter.x"}}, Replies: &Replies{Max: 3, For: time.Second}},
		Limits:      Limits{Subscriptions: 10, Payload: 20, Data: 30, Connections: 40},
		Networks:    []string{"10.0.0.0/8"},
		Hours:       Hours{Spans: []string{"22:00-06:30"}, Zone: "Europe/Berlin"},
		Listeners:   []string{"nats", "websocket", "leaf", "mqtt", "amqp"},
	}
	revoked, _ := newUserKey(t)
	at := epoch().Add(-time.Minute)
	token := must[string](t)(a.AccountJWT(account, append(BuiltinRoles(), custom), map[string]time.Time{revoked: at}, Flows{}, epoch()))
	claims := claimsOf[*jwt.AccountClaims](t, token)
	operator := claimsOf[*jwt.OperatorClaims](t, a.EngineOperator())
	if !operator.DidSign(claims) {
		t.Error("the operator did not sign the account")
	}
	if claims.Subject != account.Public || claims.Name != "acme" {
		t.Errorf("the account is %q, %q", claims.Subject, claims.Name)
	}
	want := jwt.OperatorLimits{
		NatsLimits:      jwt.NatsLimits{Subs: 2, Payload: 3, Data: 4},
		AccountLimits:   jwt.AccountLimits{Imports: -1, Exports: -1, WildcardExports: true, Conn: 1, LeafNodeConn: 9},
		JetStreamLimits: jwt.JetStreamLimits{DiskStorage: 5, MemoryStorage: 6, Streams: 7, Consumer: 8},
	}
	claims.Limits.JetStreamTieredLimits = nil
	if !reflect.DeepEqual(claims.Limits, want) {
		t.Errorf("the limits are %+v, want %+v", claims.Limits, want)
	}
	if !claims.Revocations.IsRevoked(revoked, at) || claims.Revocations.IsRevoked(revoked, at.Add(time.Second)) {
		t.Errorf("the revocations are %v", claims.Revocations)
	}
	scopes := map[string]*jwt.UserScope{}
	plain := 0
	for _, s := range claims.SigningKeys {
		if scope, ok := s.(*jwt.UserScope); ok {
			scopes[scope.Role] = scope
		} else {
			plain++
		}
	}
	if plain != 2 || len(scopes) != len(BuiltinRoles())-2 || scopes["admin"] != nil || scopes["provisioner"] != nil || scopes["leaf"] != nil {
		t.Errorf("there are %d plain signing keys and scopes %v", plain, scopes)
	}
	meter := scopes["meter"].Template
	wantTemplate := jwt.UserPermissionLimits{
		Permissions: jwt.Permissions{
			Pub:  jwt.Permission{Allow: jwt.StringList{"meter.{{name()}}", RenewSubject}, Deny: jwt.StringList{"meter.x"}},
			Sub:  jwt.Permission{Deny: jwt.StringList{">"}},
			Resp: &jwt.ResponsePermission{MaxMsgs: 3, Expires: time.Second},
		},
		Limits: jwt.Limits{
			UserLimits: jwt.UserLimits{Src: jwt.CIDRList{"10.0.0.0/8"}, Times: []jwt.TimeRange{{Start: "22:00:00", End: "06:30:00"}}, Locale: "Europe/Berlin"},
			NatsLimits: jwt.NatsLimits{Subs: 10, Payload: 20, Data: 30},
		},
		AllowedConnectionTypes: jwt.StringList{"STANDARD", "WEBSOCKET", "LEAFNODE", "LEAFNODE_WS", "IN_PROCESS"},
	}
	if !reflect.DeepEqual(meter, wantTemplate) {
		t.Errorf("the scope is %+v, want %+v", meter, wantTemplate)
	}
	if c := scopes["client"].Template; len(c.AllowedConnectionTypes) != 3 || c.AllowedConnectionTypes.Contains("LEAFNODE") || c.Subs != -1 || c.Payload != -1 || len(c.Src) != 0 {
		t.Errorf("the scope of client is %+v", c)
	}
}

func TestAccountJWTOfTheFleet(t *testing.T) {
	a := newAuthority(t)
	now := epoch()
	system := must[Account](t)(a.SystemAccount(now))
	fleet := must[Account](t)(a.FleetAccount(now))
	callout := must[Account](t)(a.CalloutAccount(now))
	sign := func(account Account) *jwt.AccountClaims {
		return claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, epoch())))
	}
	if c := sign(system); c.Limits.IsJSEnabled() || len(c.SigningKeys) != 2 || c.HasExternalAuthorization() || c.Name != "SYS" {
		t.Errorf("the system account is %s", c)
	}
	if c := sign(fleet); !c.Limits.IsJSEnabled() || len(c.SigningKeys) != 5 || c.HasExternalAuthorization() || c.Name != "FLEET" {
		t.Errorf("the fleet account is %s", c)
	} else if !c.Limits.JetStreamLimits.IsUnlimited() || !c.Limits.NatsLimits.IsUnlimited() {
		t.Errorf("the fleet account has limits: %+v", c.Limits)
	}
	c := sign(callout)
	_, service, err := a.CalloutService()
	if err != nil {
		t.Fatal(err)
	}
	key := must[nkeys.KeyPair](t)(a.CalloutKey())
	want := jwt.ExternalAuthorization{
		AuthUsers:       jwt.StringList{must[string](t)(service.PublicKey())},
		AllowedAccounts: jwt.StringList{"*"},
		XKey:            must[string](t)(key.PublicKey()),
	}
	if c.Limits.IsJSEnabled() || len(c.SigningKeys) != 1 || !reflect.DeepEqual(c.Authorization, want) || c.Name != "CALLOUT" {
		t.Errorf("the callout account is %s", c)
	}
}

// TestAccountJWTIsOne signs the same state twice, and the next one.
func TestAccountJWTIsOne(t *testing.T) {
	a := newAuthority(t)
	account := newAccount(t, a, "acme")
	d := NewDirectory()
	first := must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, d.Issued(account)))
	if again := must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, d.Issued(account))); again != first {
		t.Errorf("the same account is signed as\n%s and as\n%s", first, again)
	}
	if err := d.Apply(1, "role.x", []byte("{}")); err != nil {
		t.Fatal(err)
	}
	next := must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, d.Issued(account)))
	if b, n := claimsOf[*jwt.AccountClaims](t, first).IssuedAt, claimsOf[*jwt.AccountClaims](t, next).IssuedAt; n != b+1 {
		t.Errorf("the account was issued at %d after %d", n, b)
	}
}

func TestDeleteAccountsJWT(t *testing.T) {
	a := newAuthority(t)
	account := newAccount(t, a, "acme")
	claims := must[*jwt.GenericClaims](t)(jwt.DecodeGeneric(must[string](t)(a.DeleteAccountsJWT(account.Public))))
	if claims.Issuer != claims.Subject || !reflect.DeepEqual(claims.Data["accounts"], []any{account.Public}) {
		t.Errorf("the order is %s", claims)
	}
}

func TestAccountJWTRefuses(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	good := newAccount(t, a, "acme")
	with := func(change func(*Account)) Account {
		b := good
		change(&b)
		return b
	}
	for want, c := range map[string]struct {
		account Account
		roles   []Role
		revoked map[string]time.Time
	}{
		"name is empty":                  {account: with(func(b *Account) { b.Name = "" })},
		`name "x/y"`:                     {account: with(func(b *Account) { b.ID = "x/y" })},
		"payload is negative":            {account: with(func(b *Account) { b.Limits.Payload = -1 })},
		"is not the one of the auth":     {account: newAccount(t, other, "acme")},
		`checking role "bad"`:            {account: good, roles: []Role{{Name: "bad", Expires: -1}}},
		`"*" is revoked, but is not the`: {account: good, revoked: map[string]time.Time{"*": epoch()}},
	} {
		_, err := a.AccountJWT(c.account, c.roles, c.revoked, Flows{}, epoch())
		wantError(t, err, want)
		wantError(t, err, "signing account")
	}
}

func TestUserJWT(t *testing.T) {
	a := newAuthority(t)
	account := newAccount(t, a, "acme")
	roles := BuiltinRoles()
	client := roles[slices.IndexFunc(roles, func(r Role) bool { return r.Name == RoleClient })]
	public, seed := newUserKey(t)
	expires := epoch().Add(time.Hour)
	token := must[string](t)(a.UserJWT(account, client, "alice", public, expires))
	user := claimsOf[*jwt.UserClaims](t, token)
	if user.Subject != public || user.Name != "alice" || user.IssuerAccount != account.Public || user.Expires != expires.Unix() ||
		!reflect.DeepEqual(user.Tags, jwt.TagList{"name:alice", "role:client"}) {
		t.Errorf("the user is %s", user)
	}
	// The engine's own checks of a scoped user.
	c := claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(account, roles, nil, Flows{}, epoch())))
	scope, ok := c.SigningKeys.GetScope(user.Issuer)
	if !ok || !c.DidSign(user) {
		t.Fatal("the account did not sign the user")
	}
	if err := scope.ValidateScopedSigner(user); err != nil {
		t.Error(err)
	}
	if u := claimsOf[*jwt.UserClaims](t, must[string](t)(a.UserJWT(account, client, "alice", public, time.Time{}))); u.Expires != 0 {
		t.Errorf("a user that never expires does at %d", u.Expires)
	}

	creds := must[[]byte](t)(CreateCreds(token, seed))
	if got := must[string](t)(jwt.ParseDecoratedJWT(creds)); got != token {
		t.Errorf("the creds file has the JWT %q", got)
	}
	pair := must[nkeys.KeyPair](t)(jwt.ParseDecoratedUserNKey(creds))
	if got := must[string](t)(pair.PublicKey()); got != public {
		t.Errorf("the creds file has the key %q", got)
	}
	_, otherSeed := newUserKey(t)
	_, err := CreateCreds(token, otherSeed)
	wantError(t, err, "making a creds file")

	for want, f := range map[string]func() (string, error){
		`user "acme/a b": name "a b"`: func() (string, error) { return a.UserJWT(account, client, "a b", public, expires) },
		"name is empty":               func() (string, error) { return a.UserJWT(account, Role{}, "alice", public, expires) },
		`role "admin" cannot be had in this account`: func() (string, error) {
			return a.UserJWT(account, Role{Name: RoleAdmin}, "alice", public, expires)
		},
		"its public key": func() (string, error) {
			return newAuthority(t).UserJWT(account, client, "alice", public, expires)
		},
		"is not the key of a user": func() (string, error) {
			return a.UserJWT(account, client, "alice", account.Public, expires)
		},
	} {
		_, err := f()
		wantError(t, err, want)
		wantError(t, err, "signing user")
	}
}

func TestSessionJWT(t *testing.T) {
	a := newAuthority(t)
	now := epoch()
	account := newAccount(t, a, "acme")
	public, _ := newUserKey(t)
	p := Principal{
		Account: "acme", Name: "alice", Kind: KindUser, Role: "client",
		Permissions: Permissions{
			Publish: Rule{Allow: []string{"{{account-name()}}.{{name()}}"}, Deny: []string{"x"}},
			Replies: &Replies{Max: 1},
		},
		Limits:  Limits{Subscriptions: 1, Payload: 2},
		Expires: now.Add(time.Hour),
	}
	user := claimsOf[*jwt.UserClaims](t, must[string](t)(a.SessionJWT(account, p, public, true, now)))
	want := jwt.UserPermissionLimits{
		Permissions: jwt.Permissions{
			Pub:  jwt.Permission{Allow: jwt.StringList{"acme.alice"}, Deny: jwt.StringList{"x"}},
			Sub:  jwt.Permission{Deny: jwt.StringList{">"}},
			Resp: &jwt.ResponsePermission{MaxMsgs: 1},
		},
		Limits:                 jwt.Limits{NatsLimits: jwt.NatsLimits{Subs: 1, Payload: 2, Data: -1}},
		AllowedConnectionTypes: jwt.StringList{"IN_PROCESS"},
	}
	if !reflect.DeepEqual(user.UserPermissionLimits, want) {
		t.Errorf("the session may %+v, want %+v", user.UserPermissionLimits, want)
	}
	if user.Subject != public || user.Name != "alice" || user.IssuerAccount != account.Public ||
		user.Expires != p.Expires.Unix() || user.IssuedAt != now.Unix() ||
		!reflect.DeepEqual(user.Tags, jwt.TagList{"name:alice", "kind:user", "role:client"}) {
		t.Errorf("the session is %s", user)
	}
	c := claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(account, nil, nil, Flows{}, epoch())))
	if scope, ok := c.SigningKeys.GetScope(user.Issuer); !ok || scope != nil {
		t.Errorf("the session is signed by a key with scope %v", scope)
	}
	p.Role, p.Expires = "", time.Time{}
	outside := claimsOf[*jwt.UserClaims](t, must[string](t)(a.SessionJWT(account, p, public, false, now)))
	if len(outside.AllowedConnectionTypes) != 0 || outside.Expires != 0 || !reflect.DeepEqual(outside.Tags, jwt.TagList{"name:alice", "kind:user"}) {
		t.Errorf("the session is %s", outside)
	}

	with := func(change func(*Principal)) Principal {
		q := p
		change(&q)
		return q
	}
	for want, f := range map[string]func() (string, error){
		`session of "acme/a b"`: func() (string, error) {
			return a.SessionJWT(account, with(func(q *Principal) { q.Name = "a b" }), public, true, now)
		},
		`its account is not "acme"`: func() (string, error) {
			return a.SessionJWT(account, with(func(q *Principal) { q.Account = "other" }), public, true, now)
		},
		"it has expired": func() (string, error) {
			return a.SessionJWT(account, with(func(q *Principal) { q.Expires = now }), public, true, now)
		},
		"is not the key of a user": func() (string, error) { return a.SessionJWT(account, p, account.Public, true, now) },
		"its public key":           func() (string, error) { return newAuthority(t).SessionJWT(account, p, public, true, now) },
	} {
		_, err := f()
		wantError(t, err, want)
		wantError(t, err, "signing a session")
	}
}

func TestServiceCredentials(t *testing.T) {
	a := newAuthority(t)
	account := newAccount(t, a, "acme")
	p := Principal{Account: "acme", Name: "watcher", Kind: KindService}
	token, key, err := a.ServiceCredentials(account, p, epoch())
	if err != nil {
		t.Fatal(err)
	}
	user := claimsOf[*jwt.UserClaims](t, token)
	if user.Subject != must[string](t)(key.PublicKey()) || !reflect.DeepEqual(user.AllowedConnectionTypes, jwt.StringList{"IN_PROCESS"}) {
		t.Errorf("the service is %s", user)
	}
	p.Kind = ""
	if _, key, err := a.ServiceCredentials(account, p, epoch()); err == nil || key != nil {
		t.Errorf("a principal of no kind has credentials: %v", err)
	}
}

func TestEncodeRefuses(t *testing.T) {
	user := must[nkeys.KeyPair](t)(nkeys.CreateUser())
	_, err := encode(jwt.NewAccountClaims(newAccount(t, newAuthority(t), "acme").Public), user, epoch())
	wantError(t, err, "prefixes")
}

// TestAccountJWTSize keeps an account with the built-in roles small: every node
// keeps it, and makes it anew with each event of the account.
func TestAccountJWTSize(t *testing.T) {
	a := newAuthority(t)
	token := must[string](t)(a.AccountJWT(newAccount(t, a, "acme"), BuiltinRoles(), nil, Flows{}, epoch()))
	if len(token) > 5632 || strings.Count(token, ".") != 2 {
		t.Errorf("the JWT has %d bytes", len(token))
	}
}

// Everything is allowed by what is denied alone, except where the engine would take
// that for replies and nothing else.
func TestEnginePermissions(t *testing.T) {
	all := Rule{Allow: []string{">"}, Deny: []string{"a"}}
	denied := jwt.StringList{"a", Private + ">"}
	for _, row := range []struct {
		name    string
		p       Permissions
		pub     jwt.Permission
		renewal jwt.StringList // what may be published with the renewal added
	}{
		{"everything", Permissions{Publish: all, Subscribe: all}, jwt.Permission{Deny: denied}, nil},
		{"with replies", Permissions{Publish: all, Subscribe: all, Replies: &Replies{Max: 1}},
			jwt.Permission{Allow: jwt.StringList{">"}, Deny: denied}, jwt.StringList{">", RenewSubject}},
		{"nothing", Permissions{Subscribe: all}, jwt.Permission{Deny: jwt.StringList{">"}}, jwt.StringList{RenewSubject}},
	} {
		got := enginePermissions(row.p)
		if !reflect.DeepEqual(got.Pub, row.pub) || !reflect.DeepEqual(got.Sub, jwt.Permission{Deny: denied}) {
			t.Errorf("%s: the engine is told %+v", row.name, got)
		}
		allowRenewal(&got)
		if !reflect.DeepEqual(got.Pub.Allow, row.renewal) {
			t.Errorf("%s: with renewal the engine is told %+v", row.name, got.Pub)
		}
	}
}
