package fleetbus

import (
	"encoding/json"
	"fmt"
	"testing"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// TestUsersPages lists more users than fit into a message: each page does, and together
// they are all, in order, whatever the accounts are called.
func TestUsersPages(t *testing.T) {
	d := identity.NewDirectory()
	put := func(subject string, v any) {
		data, err := json.Marshal(v)
		if err == nil {
			err = d.Apply(0, subject, data)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	authority, _, err := identity.NewAuthority("test", identity.Account{}.Created)
	if err != nil {
		t.Fatal(err)
	}
	var want []string
	for account, n := range map[string]int{"acme": 9000, "acme-b": 3, "b": 2} {
		put("account."+account, identity.Account{Name: account})
		for i := range n {
			name := fmt.Sprintf("u%05d", i)
			put(userSubject(account, name), identity.User{Role: identity.RoleMachine, Keys: []identity.UserKey{{Public: "U" + name}}})
		}
	}
	for _, account := range []string{"acme", "acme-b", "b"} {
		for _, u := range d.Users(account) {
			want = append(want, u.String())
		}
	}
	s := &Server{fleet: &fleet{directory: d, authority: authority}}
	var got []string
	pages := 0
	for r := (admin.UsersRequest{Pages: true}); ; pages++ {
		out, err := s.listUsers(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		page := out.([]identity.User)
		if len(page) == 0 {
			break
		}
		if text, err := json.Marshal(page); err != nil || len(text) > 2*usersPage {
			t.Fatalf("a page has %d bytes, %v", len(text), err)
		}
		for _, u := range page {
			got = append(got, u.String())
		}
		r.After = got[len(got)-1]
	}
	if fmt.Sprint(got) != fmt.Sprint(want) || pages < 2 {
		t.Errorf("%d of %d users on %d pages", len(got), len(want), pages)
	}
}
