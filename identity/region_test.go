package identity

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// someUser is what one of two regions may know of a user: what is of one revision and
// region is the same everywhere.
func someUser(r *rand.Rand) User {
	at := func(n int) time.Time { return time.Unix(int64(1000+n), 0) }
	u := User{Account: "acme", Name: "alice", Created: at(r.IntN(2)), Revision: uint64(r.IntN(3)), Region: []string{"eu", "us"}[r.IntN(2)]}
	u.Role = fmt.Sprint("role-", u.Created.Unix(), u.Revision, u.Region)
	u.Denials = uint64(r.IntN(3))
	if u.Denied = r.IntN(2) == 0; u.Denied {
		u.DeniedAt = at(r.IntN(3))
	}
	for i := range 3 {
		if r.IntN(2) == 0 {
			u.Keys = append(u.Keys, UserKey{Public: fmt.Sprint("key", i), Issued: at(r.IntN(3)), Expires: at(10 + r.IntN(3))})
			u.Certificates = append(u.Certificates, UserCertificate{SHA256: fmt.Sprint("sum", i), NotAfter: at(r.IntN(3)), Registered: r.IntN(2) == 0})
		}
	}
	if r.IntN(4) == 0 {
		return u.Gone()
	}
	return u
}

// TestMergeUsers merges what regions know in every order: all come to the same.
func TestMergeUsers(t *testing.T) {
	same := func(a, b User) bool {
		x, err1 := json.Marshal(a)
		y, err2 := json.Marshal(b)
		return err1 == nil && err2 == nil && string(x) == string(y)
	}
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		a, b, c := someUser(r), someUser(r), someUser(r)
		ab, ba := MergeUsers(a, b), MergeUsers(b, a)
		if !same(ab, ba) {
			t.Fatalf("the order counts:\n%+v\n%+v\n%#v\n%#v", a, b, ab, ba)
		}
		if again := MergeUsers(ab, b); !same(again, ab) {
			t.Fatalf("merging again changes something:\n%#v\n%#v", ab, again)
		}
		if x, y := MergeUsers(ab, c), MergeUsers(a, MergeUsers(b, c)); !same(x, y) {
			t.Fatalf("who merges first counts:\n%#v\n%#v\n%#v\n%#v\n%#v", a, b, c, x, y)
		}
	}
}

// TestMergeKeepsDenials has a denial, a removal and another key in one region outlive
// what the other wrote meanwhile.
func TestMergeKeepsDenials(t *testing.T) {
	made := time.Unix(1000, 0)
	alice := User{Account: "acme", Name: "alice", Role: "client", Created: made, Keys: []UserKey{{Public: "k1", Issued: made}}}
	denied := alice
	denied.Denied, denied.DeniedAt = true, made.Add(time.Hour)
	denied = denied.Stamped(alice, "eu")
	renewed := alice
	for range 5 {
		before := renewed
		renewed.Keys = append(slices.Clone(renewed.Keys), UserKey{Public: fmt.Sprint("more", len(renewed.Keys)), Issued: made})
		renewed = renewed.Stamped(before, "us")
	}
	both := MergeUsers(denied, renewed)
	if !both.Denied || len(both.Keys) != 6 || both.Revision != 5 {
		t.Errorf("denied here and renewed there: %#v", both)
	}
	allowed := both
	allowed.Denied, allowed.DeniedAt = false, time.Time{}
	if back := MergeUsers(denied, allowed.Stamped(both, "us")); back.Denied {
		t.Errorf("allowed after the denial was known: %#v", back)
	}
	gone := alice.Gone().Stamped(alice, "eu")
	if both := MergeUsers(renewed, gone); !both.Removed || len(both.Keys) != 6 {
		t.Errorf("removed here and renewed there: %#v", both)
	}
	anew := User{Account: "acme", Name: "alice", Role: "machine", Created: made}.Stamped(gone, "us")
	if both := MergeUsers(gone, anew); both.Removed || both.Role != "machine" {
		t.Errorf("made anew: %#v", both)
	}
	d := NewDirectory()
	for i, u := range []User{renewed, gone} {
		data, err := json.Marshal(u)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Apply(uint64(i+1), "user.acme.alice", data); err != nil {
			t.Fatal(err)
		}
	}
	if u, ok := d.User("acme", "alice"); ok || len(d.state.withdrawn) != 6 {
		t.Errorf("after a removal: %v %v, %d keys are void", u, ok, len(d.state.withdrawn))
	}
	if u, ok := d.UserRecord("acme", "alice"); !ok || !u.Removed {
		t.Errorf("what is remembered: %#v %v", u, ok)
	}
}

// TestChanges pages through what the fleet agrees on, and leaves out what each region
// has for itself.
func TestChanges(t *testing.T) {
	d := NewDirectory()
	put := func(seq uint64, subject, data string) {
		t.Helper()
		if err := d.Apply(seq, subject, []byte(data)); err != nil {
			t.Fatal(err)
		}
	}
	put(0, "user.acme.b", `{"role":"client"}`)
	put(0, "user.acme.a", `{"role":"client"}`)
	put(0, "user.FLEET.admin", `{"role":"admin"}`)
	put(1, "account.acme", `{"id":"0123456789abcdef"}`)
	put(2, "node.n1", `{}`)
	put(3, "token.x", `{}`)
	put(4, "user.acme.a", `{"role":"machine"}`)
	put(5, "role.own", ``)
	put(6, "adapter.a", `{}`)
	want := []string{"user.acme.b", "account.acme", "user.acme.a", "role.own"}
	for _, most := range []int{1, 40, 1000} {
		var got []string
		after := Change{}
		for page := d.Changes(after, most); len(page) > 0; page = d.Changes(after, most) {
			for _, c := range page {
				got = append(got, c.Subject)
				after = c
			}
		}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("in pages of %d bytes: %v", most, got)
		}
	}
}

// TestRegionalRoles denies the engine's API by the name of a region, too, once there are
// gateways.
func TestRegionalRoles(t *testing.T) {
	d := NewDirectory()
	named := func() (denied [2]bool) {
		r, ok := d.Role(RoleClient)
		if !ok {
			t.Fatal("there is no such role")
		}
		for i, subject := range []string{"$JS.API.STREAM.DELETE.CERTS", "$JS.eu.API.STREAM.DELETE.CERTS"} {
			denied[i] = !r.Permissions.Publish.Allows(subject)
		}
		for _, same := range d.Roles() {
			if same.Name == r.Name && !reflect.DeepEqual(same, r) {
				t.Errorf("the role alone and among others: %+v, %+v", r, same)
			}
		}
		return denied
	}
	if got := named(); got != [2]bool{true, false} {
		t.Errorf("without gateways: %v", got)
	}
	if err := d.Apply(1, "node.n1", []byte(`{"gateway_addr":"127.0.0.1:7222"}`)); err != nil {
		t.Fatal(err)
	}
	if got := named(); got != [2]bool{true, true} {
		t.Errorf("with gateways: %v", got)
	}
}

// TestRegionAuthority has two regions of one fleet agree on accounts, and each have
// what a cluster has for itself.
func TestRegionAuthority(t *testing.T) {
	now := time.Now()
	first, _, err := NewAuthority("corp", now)
	if err != nil {
		t.Fatal(err)
	}
	us, err := first.InRegion("us")
	if err != nil {
		t.Fatal(err)
	}
	data, err := us.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again := new(Authority)
	if err := again.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	if again.Region() != "us" || again.Hash() != first.Hash() || again.Fleet() != "corp" {
		t.Errorf("read again: %v, region %q", again, again.Region())
	}
	operators := map[string]bool{}
	for _, a := range []*Authority{first, us} {
		claims, err := jwt.DecodeOperatorClaims(a.Operator())
		if err != nil {
			t.Fatal(err)
		}
		system, err := a.SystemAccount(now)
		if err != nil || claims.SystemAccount != system.Public {
			t.Errorf("region %q: the operator names engine's account %s, not %s: %v", a.Region(), claims.SystemAccount, system.Public, err)
		}
		operators[claims.Subject] = true
	}
	if len(operators) != 2 {
		t.Error("both have the same operator")
	}
	for _, c := range []struct {
		name string
		make func(*Authority) (Account, error)
		same bool
	}{
		{SystemName, func(a *Authority) (Account, error) { return a.SystemAccount(now) }, false},
		{FleetName, func(a *Authority) (Account, error) { return a.FleetAccount(now) }, false},
		{CalloutName, func(a *Authority) (Account, error) { return a.CalloutAccount(now) }, false},
		{RegionsName, func(a *Authority) (Account, error) { return a.RegionsAccount(now) }, true},
	} {
		a, err1 := c.make(first)
		b, err2 := c.make(us)
		if err1 != nil || err2 != nil || (a.Public == b.Public) != c.same {
			t.Errorf("account %s: %s and %s, %v, %v", c.name, a.Public, b.Public, err1, err2)
		}
	}
	acme, err := first.NewAccount("acme", Limits{}, now)
	if err != nil {
		t.Fatal(err)
	}
	operator, err := jwt.DecodeOperatorClaims(us.EngineOperator())
	if err != nil {
		t.Fatal(err)
	}
	token, err := us.AccountJWT(acme, BuiltinRoles(), nil, Flows{}, now)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeAccountClaims(token)
	if err != nil || !operator.DidSign(claims) || claims.Subject != acme.Public {
		t.Errorf("the account as region us signs it: %v, %v", claims, err)
	}
}

// TestGatewayCertificate keeps the certificates of gateways and of routes apart.
func TestGatewayCertificate(t *testing.T) {
	now := time.Now()
	a, _, err := NewAuthority("corp", now)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	csr, err := NewCSR(key)
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.SignGateway(csr, "us", "n1.2", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	gateway := parsePEM(t, chain)[0]
	if region, node, ok := RegionFromCertificate(gateway, "corp"); !ok || region != "us" || node != "n1.2" {
		t.Errorf("of a gateway: %q %q %v", region, node, ok)
	}
	if _, _, ok := RegionFromCertificate(gateway, "other"); ok {
		t.Error("another fleet takes it for its own")
	}
	if node, ok := NodeFromCertificate(gateway, "corp"); ok {
		t.Errorf("a gateway's is taken for that of node %q", node)
	}
	if account, name, ok := PrincipalFromCertificate(gateway, "corp"); ok {
		t.Errorf("a gateway's is taken for that of %s/%s", account, name)
	}
	mesh, _, err := a.SignNode(csr, "n1", []string{"localhost"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	if region, _, ok := RegionFromCertificate(parsePEM(t, mesh)[0], "corp"); ok {
		t.Errorf("a node's is taken for that of region %q", region)
	}
}

// TestRegionalKeys has regions share the records of keys, but for those of the accounts
// that each has for itself.
func TestRegionalKeys(t *testing.T) {
	for subject, want := range map[string]bool{
		"key.authority": false, "key.routes": false, "key.operator": false, "key.account.39c39ef575431a81": false,
		"key.account.fleet": true, "key.account.fleet-us": true, "key.account.system": true, "key.account.fleet-00000000": true,
	} {
		if got := Regional(subject); got != want {
			t.Errorf("Regional(%q) is %t", subject, got)
		}
	}
}

// TestOperatorOfRegion changes the operator's key in two regions: sites of each take it
// from the identity that they know.
func TestOperatorOfRegion(t *testing.T) {
	now := time.Now()
	first, offline, err := NewAuthority("fleet", now)
	if err != nil {
		t.Fatal(err)
	}
	us, err := first.InRegion("us")
	if err != nil {
		t.Fatal(err)
	}
	data, err := us.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	us = new(Authority)
	if err := us.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	if us.RootOperator() != first.Operator() || us.Operator() == first.Operator() {
		t.Fatal("a region does not know the operator of the first, or has it for its own")
	}
	for range 2 { // the second time in the region alone
		before, beforeUS := first.Operator(), us.Operator()
		operator, seed, err := NewOperatorKey(us.RootOperator(), offline, now)
		if err != nil {
			t.Fatal(err)
		}
		box, err := newKeyPair(nkeys.CreateCurveKeys())
		if err != nil {
			t.Fatal(err)
		}
		record, err := us.NextOperator(operator, seed, map[string]string{"n1": box.public, us.SealName("n1"): box.public}, now)
		if err != nil {
			t.Fatal(err)
		}
		for name, a := range map[string]*Authority{"n1": first, us.SealName("n1"): us} {
			if err := a.Learn(KeyOperator, record, name, box); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(Succeeds(first.Operator(), before), Succeeds(us.Operator(), beforeUS)); err != nil {
			t.Error(err)
		}
		text, key, err := us.operatorNow()
		if err != nil || text != us.Operator() {
			t.Fatal("the operator that signs is another than the one that is told", err)
		}
		signing, err := key.Seed()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := operatorKey(us.Operator(), signing); err != nil {
			t.Error(err)
		}
		now = now.Add(time.Minute)
	}
}
