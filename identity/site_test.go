package identity

import (
	"errors"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
)

// newGuest makes an account of hub that is a guest at site.
func newGuest(t *testing.T, hub, site *Authority) (Account, Site) {
	t.Helper()
	account := newAccount(t, hub, "acme")
	s := Site{Machine: "host", Networks: []string{"10.1.0.0/16"}}
	var err error
	if s.Signer, s.Fleet, err = site.SiteKeys(); err != nil {
		t.Fatal(err)
	}
	account.Terms = must[string](t)(hub.SiteTerms(account, s, BuiltinRoles(), nil, epoch()))
	return account, s
}

func TestSiteTerms(t *testing.T) {
	hub, site := newAuthority(t), newAuthority(t)
	account, s := newGuest(t, hub, site)
	if err := site.CheckGuest(account, hub.Operator()); err != nil {
		t.Error(err)
	}
	terms := claimsOf[*jwt.AccountClaims](t, account.Terms)
	own := account
	own.Terms = ""
	ofHub := claimsOf[*jwt.AccountClaims](t, must[string](t)(hub.AccountJWT(own, BuiltinRoles(), nil, Flows{}, epoch())))
	keys := func(c *jwt.AccountClaims) []string {
		all := c.SigningKeys.Keys()
		slices.Sort(all)
		return slices.DeleteFunc(all, func(key string) bool { return key == s.Signer })
	}
	if slices.Contains(ofHub.SigningKeys.Keys(), s.Signer) || len(keys(terms)) != len(keys(ofHub))-2 {
		t.Error("the terms of the site differ by more than who signs sessions and links")
	}
	if len(terms.Imports) != 1 || terms.Imports[0].Account != s.Fleet || len(terms.Exports) != 0 {
		t.Errorf("the site imports %v and exports %v", terms.Imports, terms.Exports)
	}
	atSite := claimsOf[*jwt.AccountClaims](t, must[string](t)(site.AccountJWT(account, BuiltinRoles(), nil, Flows{}, time.Now())))
	if !slices.Equal(keys(terms), slices.DeleteFunc(keys(atSite), func(key string) bool { return key == site.engine.session.public })) ||
		slices.Contains(atSite.SigningKeys.Keys(), s.Signer) || atSite.IssuedAt != terms.IssuedAt || !reflect.DeepEqual(atSite.Imports, terms.Imports) {
		t.Error("the token of a guest is not its terms")
	}
	if !account.Guest() || own.Guest() || !account.TermsIssued().Equal(epoch()) {
		t.Errorf("the terms were issued at %v", account.TermsIssued())
	}

	// What the site lets in is signed by a key that only its engine believes.
	p := Principal{Account: "acme", Name: "bob", Kind: KindUser}
	public, _ := newUserKey(t)
	session := claimsOf[*jwt.UserClaims](t, must[string](t)(site.SessionJWT(account, p, public, false, epoch())))
	if session.Issuer != site.engine.session.public || session.IssuerAccount != account.Public {
		t.Errorf("a session at the site is signed by %s for account %s", session.Issuer, session.IssuerAccount)
	}
	role := BuiltinRoles()[0]
	_, err := site.UserJWT(account, role, "bob", public, time.Time{})
	wantError(t, err, "the hub of account")

	revoked := account
	revoked.Terms = must[string](t)(hub.SiteTerms(own, s, nil, map[string]time.Time{public: epoch()}, epoch()))
	if !revoked.Revokes(public) || account.Revokes(public) {
		t.Error("who is denied is not told by the terms")
	}
}

func TestCheckGuest(t *testing.T) {
	hub, site, other := newAuthority(t), newAuthority(t), newAuthority(t)
	account, _ := newGuest(t, hub, site)
	elsewhere, _ := newGuest(t, hub, other)
	renamed, swapped, damaged := account, account, account
	renamed.Name, swapped.Public, damaged.Terms = FleetName, elsewhere.Public, "x"+account.Terms
	for want, err := range map[string]error{
		"has no valid name":     site.CheckGuest(renamed, hub.Operator()),
		"another account's":     site.CheckGuest(swapped, hub.Operator()),
		"for another site":      site.CheckGuest(elsewhere, hub.Operator()),
		"has not signed":        site.CheckGuest(account, other.Operator()),
		"reading the operator":  site.CheckGuest(account, "none"),
		"reading the terms":     site.CheckGuest(damaged, hub.Operator()),
		"not the key of an acc": Site{Signer: account.Public, Fleet: "x"}.Validate(),
		"checking networks":     Site{Signer: account.Public, Fleet: account.Public, Networks: []string{"here"}}.Validate(),
	} {
		wantError(t, err, want)
	}
}

func TestLeafJWT(t *testing.T) {
	hub, site := newAuthority(t), newAuthority(t)
	account, s := newGuest(t, hub, site)
	account.Terms = ""
	public, seed := newUserKey(t)
	token := must[string](t)(hub.LeafJWT(account, leafRole(), "berlin", public, s, epoch().Add(time.Hour)))
	link := claimsOf[*jwt.UserClaims](t, token)
	if !reflect.DeepEqual(link.AllowedConnectionTypes, jwt.StringList{"LEAFNODE", "LEAFNODE_WS"}) || !reflect.DeepEqual(link.Src, jwt.CIDRList(s.Networks)) {
		t.Errorf("the link may be %v from %v", link.AllowedConnectionTypes, link.Src)
	}
	for what, p := range map[string]jwt.Permission{"publish": link.Pub, "subscribe": link.Sub} {
		for _, subject := range []string{"$SYS.>", RenewSubject, Private + "*.>"} {
			if !p.Deny.Contains(subject) {
				t.Errorf("the link may %s %s", what, subject)
			}
		}
	}
	rule := LinkPermissions().Publish
	for subject, want := range map[string]bool{LinkPrefix + "berlin-who": true, "orders.new": true, Private + "MQTT.x": false, Private + "certs.g.x": false, Private + "certreports.report.x": false, "$SYS.x": false} {
		if rule.Allows(subject) != want {
			t.Errorf("a link may publish %s: %v", subject, !want)
		}
	}
	if _, err := RenewCreds(token, seed); err != nil {
		t.Error(err)
	}
	_, other := newUserKey(t)
	_, err := RenewCreds(token, other)
	wantError(t, err, "another key's")
	_, err = hub.LeafJWT(account, leafRole(), "berlin", account.Public, s, time.Time{})
	wantError(t, err, "not the key of a user")
}

// FuzzCheckGuest hands a site terms that its hub did not sign.
func FuzzCheckGuest(f *testing.F) {
	hub, _, err1 := NewAuthority("hub", epoch())
	site, _, err2 := NewAuthority("berlin", epoch())
	account, err3 := hub.NewAccount("acme", Limits{}, epoch())
	signer, fleet, err4 := site.SiteKeys()
	good, err5 := hub.SiteTerms(account, Site{Signer: signer, Fleet: fleet}, nil, nil, epoch())
	if err := errors.Join(err1, err2, err3, err4, err5); err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(site.Operator())
	f.Add(good[:len(good)/2])
	f.Fuzz(func(t *testing.T, terms string) {
		account.Terms = terms
		if err := site.CheckGuest(account, hub.Operator()); err == nil && terms != good {
			t.Errorf("terms that the hub did not sign were taken: %q", terms)
		}
		account.TermsIssued()
		account.Revokes(signer)
	})
}
