package grant_test

import (
	"errors"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/grant"
)

// TestGrant decides who gets a key, and with which role and life.
func TestGrant(t *testing.T) {
	authority, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	acme, err := authority.NewAccount("acme", identity.Limits{}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	directory := identity.NewDirectory()
	f := grant.Fleet{Authority: authority, Directory: directory, Account: func(name string) (identity.Account, bool) {
		return acme, name == acme.Name
	}}
	public, seed, err := identity.NewUserKey()
	if err != nil {
		t.Fatal(err)
	}
	g, err := grant.New(f, "acme", "app", admin.UserRequest{Name: "acme/app", Key: public, Expires: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	u, err := g.User(directory)
	if err != nil || u.Role != identity.RoleClient || len(u.Keys) != 1 || u.Keys[0].Public != public || !u.Keys[0].Expires.Equal(g.Now.Add(time.Hour)) {
		t.Errorf("the user is %+v, %v", u, err)
	}
	if !g.Fresh(u, public) {
		t.Error("a key that was issued now is not fresh")
	}
	var reply admin.UserReply
	if err := g.Issue(&reply); err != nil {
		t.Fatal(err)
	}
	if _, err := identity.CreateCreds(reply.JWT, seed); err != nil {
		t.Error(err)
	}
	for what, c := range map[string]struct {
		account string
		request admin.UserRequest
		code    admin.Code
	}{
		"no account":  {"nowhere", admin.UserRequest{Name: "nowhere/app", Key: public}, admin.NotFound},
		"no role":     {"acme", admin.UserRequest{Name: "acme/app", Role: "none", Key: public}, admin.NotFound},
		"no key":      {"acme", admin.UserRequest{Name: "acme/app", Key: "none"}, admin.Invalid},
		"no request":  {"acme", admin.UserRequest{Name: "acme/app", CSR: "none"}, admin.Invalid},
		"no password": {"acme", admin.UserRequest{Name: "acme/app", Password: "none"}, admin.Invalid},
	} {
		_, err := grant.New(f, c.account, "app", c.request)
		var refused *admin.Error
		if !errors.As(err, &refused) || refused.Code != c.code {
			t.Errorf("%s: %v", what, err)
		}
	}
}
