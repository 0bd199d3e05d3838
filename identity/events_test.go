package identity

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/nats-io/jwt/v2"
)

// TestEventsFlow looks at what lets an account have its events, and them alone.
func TestEventsFlow(t *testing.T) {
	a := newAuthority(t)
	fleet := must[Account](t)(a.FleetAccount(epoch()))
	account := newAccount(t, a, "acme")
	claims := func(account Account) *jwt.AccountClaims {
		return claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, epoch())))
	}
	exports, imports := claims(fleet).Exports, claims(account).Imports
	var problems jwt.ValidationResults
	claims(account).Validate(&problems)
	claims(fleet).Validate(&problems)
	if !problems.IsEmpty() {
		t.Errorf("the terms have problems: %+v", problems.Issues)
	}
	if i := slices.IndexFunc(exports, func(e *jwt.Export) bool { return e.Name == "events" }); i < 0 || exports[i].Subject != "events.*.*" || exports[i].Type != jwt.Stream {
		t.Errorf("the exports are %+v", claims(fleet))
	}
	if i := slices.IndexFunc(imports, func(i *jwt.Import) bool { return i.Name == "events" }); i < 0 || imports[i].Subject != "events.acme.*" ||
		imports[i].LocalSubject != "$FLEETBUS.$1" || imports[i].Account != fleet.Public {
		t.Errorf("the imports are %+v", claims(account))
	}
	if n := len(claims(must[Account](t)(a.SystemAccount(epoch()))).Imports); n != 0 {
		t.Errorf("the system account has %d imports", n)
	}
	// Who may everything has to name them, here as in the engine.
	for _, tt := range []struct {
		allow         []string
		events, other bool
	}{
		{[]string{">"}, false, false}, {[]string{"*.>"}, false, false}, {[]string{">", Private + "*"}, true, false}, {[]string{">", Private + "denied"}, true, false},
		{[]string{Private + "*"}, true, false}, {[]string{">", Private + ">"}, true, true}, {[]string{">", Private + "*", Private + "x.y"}, true, true},
	} {
		rule := Rule{Allow: tt.allow}
		if events, other := rule.Allows(AccountEvents+"denied"), rule.Allows(Private+"x.y"); events != tt.events || other != tt.other {
			t.Errorf("%q allows events: %v, and what else is private: %v", tt.allow, events, other)
		}
		deny := enginePermission(rule).Deny
		engine := func(subject string) bool {
			covering := func(list []string) bool {
				return slices.ContainsFunc(list, func(p string) bool { return covers(p, subject) })
			}
			return covering(tt.allow) && !covering(deny)
		}
		if engine(AccountEvents+"denied") != tt.events || engine(Private+"x.y") != tt.other {
			t.Errorf("%q is for the engine to deny %q", tt.allow, deny)
		}
	}
	for _, r := range BuiltinRoles() {
		if got := r.Permissions.Subscribe.Allows(AccountEvents + "connect"); got != (r.Name == RoleAuditor || r.Name == RoleLeaf) {
			t.Errorf("role %q may see events: %v", r.Name, got)
		}
		// The link of a site has what is private and of two parts.
		if r.Permissions.Publish.Allows(AccountEvents+"connect") != (r.Name == RoleLeaf) || r.Permissions.Publish.Allows(EventsPrefix+"acme.connect") && !r.AllowedIn("acme") {
			t.Errorf("role %q may make events up", r.Name)
		}
		if r.Name == RoleAuditor && r.Permissions.Subscribe.Allows(Private+"certs.x") {
			t.Error("an auditor may see private subjects")
		}
	}
}

func TestClaimed(t *testing.T) {
	a := newAuthority(t)
	d := NewDirectory()
	account := newAccount(t, a, "acme")
	if err := d.Apply(1, "account.acme", must[[]byte](t)(json.Marshal(account))); err != nil {
		t.Fatal(err)
	}
	text, _, err := NewBearer("acme", "mia")
	if err != nil {
		t.Fatal(err)
	}
	for want, c := range map[string]Credentials{
		"acme/alice": {Username: "acme/alice", Password: "x"},
		"acme/mia":   {Bearer: text, Username: "other/bob"},
		"/":          {Username: "none/alice"},
		"FLEET/root": {Username: "FLEET/root"},
		"SYS/eve":    {Username: "SYS/eve"},
	} {
		if account, name := d.Claimed(c, "test"); account+"/"+name != want {
			t.Errorf("%v is of %s/%s, not %s", c, account, name, want)
		}
	}
	if account, name := d.Claimed(Credentials{Username: "what?", Token: "fb1.no"}, "test"); account != "" || name != "" {
		t.Errorf("nobody is %s/%s", account, name)
	}
	key, _ := newUserKey(t)
	for _, r := range BuiltinRoles() {
		if r.Name != RoleAuditor {
			continue
		}
		token := must[string](t)(a.UserJWT(account, r, "eve", key, epoch()))
		public, name, err := ClaimedByJWT(token)
		if role, err2 := RoleOfJWT(token); err != nil || err2 != nil || public != account.Public || name != "eve" || role != RoleAuditor {
			t.Errorf("the JWT is of %q, %q, %q: %v, %v", public, name, role, err, err2)
		}
	}
	if _, _, err := ClaimedByJWT("damaged"); err == nil {
		t.Error("a damaged JWT is somebody's")
	}
}
