package identity

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

// fleetOf are the authorities of nodes that have the same secrets, and each its box.
type fleetOf struct {
	t     *testing.T
	nodes []*Authority
	boxes []keyPair
}

func newFleetOf(t *testing.T, nodes int) *fleetOf {
	t.Helper()
	f := &fleetOf{t: t, nodes: []*Authority{newAuthority(t)}}
	secrets := must[[]byte](t)(f.nodes[0].Marshal())
	for i := range nodes {
		if i > 0 {
			a := new(Authority)
			if err := a.Unmarshal(secrets); err != nil {
				t.Fatal(err)
			}
			f.nodes = append(f.nodes, a)
		}
		f.boxes = append(f.boxes, must[keyPair](t)(newKeyPair(nkeys.CreateCurveKeys())))
	}
	return f
}

func server(i int) string { return "n" + string(rune('1'+i)) }

func (f *fleetOf) public() map[string]string {
	all := map[string]string{}
	for i, box := range f.boxes {
		all[server(i)] = box.public
	}
	return all
}

// learn has a record arrive at every node as the ledger brings it.
func (f *fleetOf) learn(name string, record KeyRecord) {
	f.t.Helper()
	data := must[[]byte](f.t)(json.Marshal(record))
	for i, a := range f.nodes {
		var again KeyRecord
		if err := json.Unmarshal(data, &again); err != nil {
			f.t.Fatal(err)
		}
		if err := a.Learn(name, again, server(i), f.boxes[i]); err != nil {
			f.t.Fatal(err)
		}
	}
}

func (f *fleetOf) rotate(name, role string, before time.Time) KeyRecord {
	f.t.Helper()
	record := must[KeyRecord](f.t)(f.nodes[0].NextKey(name, role, before, f.public(), time.Now()))
	f.learn(name, record)
	return record
}

// signersOf are the keys that an account's token has for a role.
func signersOf(t *testing.T, a *Authority, account Account, role string) (all []string) {
	t.Helper()
	claims := claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, epoch())))
	for key, scope := range claims.SigningKeys {
		if s, ok := scope.(*jwt.UserScope); ok && s.Role == role {
			all = append(all, key)
		}
	}
	return all
}

func builtin(t *testing.T, name string) Role {
	t.Helper()
	i := slices.IndexFunc(BuiltinRoles(), func(r Role) bool { return r.Name == name })
	if i < 0 {
		t.Fatalf("there is no role %q", name)
	}
	return BuiltinRoles()[i]
}

func signerOf(t *testing.T, a *Authority, account Account, role Role) string {
	t.Helper()
	public, _ := newUserKey(t)
	return claimsOf[*jwt.UserClaims](t, must[string](t)(a.UserJWT(account, role, "bob", public, time.Time{}))).Issuer
}

func TestRotateRoles(t *testing.T) {
	f := newFleetOf(t, 2)
	account, other := newAccount(t, f.nodes[0], "acme"), newAccount(t, f.nodes[0], "other")
	client, machine := builtin(t, "client"), builtin(t, RoleMachine)
	old, oldMachine := signerOf(t, f.nodes[0], account, client), signerOf(t, f.nodes[0], account, machine)
	soon := time.Now().Add(time.Hour)
	record := f.rotate(RoleKeys(account), "client", soon)
	if text := string(must[[]byte](t)(json.Marshal(record))); strings.Contains(text, "secret") {
		t.Errorf("the record shows a secret: %s", text)
	}
	next := signerOf(t, f.nodes[0], account, client)
	for _, a := range f.nodes {
		if got := signersOf(t, a, account, "client"); len(got) != 2 || !slices.Contains(got, old) || !slices.Contains(got, next) {
			t.Errorf("role client is signed for by %v, want %q and %q", got, old, next)
		}
		if got := signerOf(t, a, account, client); got != next || got == old {
			t.Errorf("%q signs for role client", got)
		}
		if signerOf(t, a, account, machine) != oldMachine || len(signersOf(t, a, other, "client")) != 1 {
			t.Error("another role's key or another account's is another one, too")
		}
	}

	// The whole account: the role's own generation is followed by one of all.
	f.rotate(RoleKeys(account), "", soon.Add(time.Hour))
	for _, a := range f.nodes {
		if n, m := len(signersOf(t, a, account, "client")), len(signersOf(t, a, account, "machine")); n != 3 || m != 2 {
			t.Errorf("%d keys sign for client and %d for machine", n, m)
		}
	}
	if ends := f.nodes[1].KeyEnds(RoleKeys(account), "client"); !ends[""].Equal(soon) || len(ends) != 3 || !ends[f.nodes[1].KeyNewest(RoleKeys(account), "client").ID].IsZero() {
		t.Errorf("the keys of client end at %v", ends)
	}

	// Now: nothing of before is good, whatever was promised, and what is good for
	// nothing is left out of the next record.
	state := f.nodes[0].KeyState(time.Now())
	f.rotate(RoleKeys(account), "", time.Now())
	if got := signersOf(t, f.nodes[1], account, "client"); !slices.Equal(got, []string{signerOf(t, f.nodes[0], account, client)}) {
		t.Errorf("role client is signed for by %v", got)
	}
	if f.nodes[0].KeyState(time.Now()) == state {
		t.Error("the state of the keys is as before")
	}
	if record = f.rotate(RoleKeys(account), "", soon); len(record.Generations) != 2 {
		t.Errorf("the record has %d generations", len(record.Generations))
	}

	// Who joins, or starts again, knows the same.
	again := new(Authority)
	if err := again.Unmarshal(must[[]byte](t)(f.nodes[1].Marshal())); err != nil {
		t.Fatal(err)
	}
	if again.KeyState(soon) != f.nodes[1].KeyState(soon) || signerOf(t, again, account, client) != signerOf(t, f.nodes[0], account, client) {
		t.Error("a joiner has other keys")
	}
}

func TestKeyStateTellsTime(t *testing.T) {
	f := newFleetOf(t, 1)
	now := time.Now()
	f.rotate(KeyAuthority, "", now.Add(time.Hour))
	a := f.nodes[0]
	states := []string{a.KeyState(now), a.KeyState(now.Add(time.Hour - 10*time.Second)), a.KeyState(now.Add(time.Hour))}
	if slices.Sort(states); len(slices.Compact(states)) != 3 {
		t.Error("the end of an authority, or what comes shortly before it, changes nothing")
	}
}

func TestLearnRefuses(t *testing.T) {
	f := newFleetOf(t, 2)
	account := newAccount(t, f.nodes[0], "acme")
	name := RoleKeys(account)
	record := must[KeyRecord](t)(f.nodes[0].NextKey(name, "", time.Now(), f.public(), time.Now()))
	state := f.nodes[0].KeyState(time.Now())
	wantError(t, f.nodes[0].Learn(name, record, "n3", f.boxes[0]), "its secret is not sealed to this node")
	wantError(t, f.nodes[0].Learn(name, record, "n2", f.boxes[0]), "what is sealed to this node cannot be opened")
	wantError(t, f.nodes[0].Learn("x", record, "n1", f.boxes[0]), "there is no key")
	damaged := record
	damaged.Sealed.For = map[string][]byte{"n1": record.Sealed.For["n1"][:20]}
	wantError(t, f.nodes[0].Learn(name, damaged, "n1", f.boxes[0]), "cannot be opened")
	cert := must[KeyRecord](t)(f.nodes[0].NextKey(KeyRoutes, "", time.Now(), f.public(), time.Now()))
	swapped := must[KeyRecord](t)(f.nodes[0].NextKey(KeyRoutes, "", time.Now(), f.public(), time.Now()))
	swapped.Generations[0].ID = cert.Generations[0].ID
	swapped.Sealed = cert.Sealed
	wantError(t, f.nodes[0].Learn(KeyRoutes, swapped, "n1", f.boxes[0]), "do not make an authority")
	if f.nodes[0].KeyState(time.Now()) != state {
		t.Error("something was learned")
	}
}

func FuzzLearn(f *testing.F) {
	a, _, err := NewAuthority("prod", epoch())
	if err != nil {
		f.Fatal(err)
	}
	box, err := newKeyPair(nkeys.CreateCurveKeys())
	if err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{KeyAuthority, KeyRoutes, "account.x"} {
		record, err := a.NextKey(name, "", epoch(), map[string]string{"n1": box.public}, epoch())
		if err != nil {
			f.Fatal(err)
		}
		data, err := json.Marshal(record)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(name, data)
	}
	f.Fuzz(func(t *testing.T, name string, data []byte) {
		var record KeyRecord
		if json.Unmarshal(data, &record) != nil {
			return
		}
		if a.Learn(name, record, "n1", box) == nil {
			a.KeyState(time.Now())
			a.MeshRoots()
		}
	})
}

// chainOf parses PEM certificates.
func chainOf(t *testing.T, data []byte) (all []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		all = append(all, must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes)))
	}
	return all
}

func TestRotateAuthority(t *testing.T) {
	f := newFleetOf(t, 2)
	now := time.Now()
	csr := newCSR(t)
	verify := func(roots *x509.CertPool, cert *x509.Certificate, usage x509.ExtKeyUsage) error {
		_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: cert.NotBefore.Add(backdate), KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	before := f.nodes[0].ClientRoots()
	oldUser := chainOf(t, must[[]byte](t)(f.nodes[0].SignUser(csr, "acme", "bob", time.Hour, now)))[0]
	_, oldToken, err := NewToken(KindNode, f.nodes[0].Hash(), "", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	f.rotate(KeyAuthority, "", now.Add(time.Hour))
	_, newToken, err := NewToken(KindNode, f.nodes[1].Hash(), "", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	show := func(at time.Time) *x509.Certificate {
		_, server, err := f.nodes[1].SignNode(csr, "n2", []string{"localhost"}, time.Hour, at)
		if err != nil {
			t.Fatal(err)
		}
		return chainOf(t, server)[0]
	}
	// Who knows the old one alone is shown the old one, until shortly before its end;
	// who knows both takes either.
	if n := len(chainOf(t, f.nodes[1].ClientsPEM())); n != 2 {
		t.Errorf("clients are told of %d authorities", n)
	}
	if err := verify(before, show(now), x509.ExtKeyUsageServerAuth); err != nil {
		t.Errorf("a client that knows the old authority: %v", err)
	}
	later := show(now.Add(time.Hour - 10*time.Second))
	if verify(before, later, x509.ExtKeyUsageServerAuth) == nil || verify(f.nodes[0].ClientRoots(), later, x509.ExtKeyUsageServerAuth) != nil {
		t.Error("shortly before its end, listeners show the old authority's certificate")
	}
	newUser := chainOf(t, must[[]byte](t)(f.nodes[1].SignUser(csr, "acme", "bob", time.Hour, now)))[0]
	if verify(before, newUser, x509.ExtKeyUsageClientAuth) == nil {
		t.Error("the old authority signs for users")
	}
	for _, cert := range []*x509.Certificate{oldUser, newUser} {
		if err := verify(f.nodes[0].ClientRoots(), cert, x509.ExtKeyUsageClientAuth); err != nil {
			t.Error(err)
		}
	}
	joiners := must[map[string][]byte](t)(f.nodes[0].SignJoiners(csr, "n1", []string{"localhost"}, time.Hour, now))
	for _, text := range []string{oldToken, newToken} {
		token := must[TokenText](t)(ParseToken(text))
		if err := token.VerifyServer(chainOf(t, joiners[token.AuthorityHash]), now); err != nil {
			t.Error(err)
		}
	}

	f.rotate(KeyAuthority, "", now)
	if roots := f.nodes[1].ClientRoots(); verify(roots, oldUser, x509.ExtKeyUsageClientAuth) == nil || verify(roots, newUser, x509.ExtKeyUsageClientAuth) == nil {
		t.Error("an authority that is good no more is trusted")
	}
	if n := len(chainOf(t, f.nodes[1].ClientsPEM())); n != 1 {
		t.Errorf("clients are told of %d authorities", n)
	}
	if n := len(chainOf(t, f.nodes[1].MeshPEM())); n != 1 {
		t.Errorf("nodes trust %d authorities of routes, but the clients' was changed", n)
	}
}

func TestRotateOperator(t *testing.T) {
	a, offline, err := NewAuthority("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	f := newFleetOf(t, 1)
	f.nodes[0] = a
	known := a.Operator()
	next, seed, err := NewOperatorKey(known, offline, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	record := must[KeyRecord](t)(a.NextOperator(next, seed, f.public(), time.Now()))
	f.learn(KeyOperator, record)
	if a.Operator() != next {
		t.Error("the operator is as before")
	}
	site := newAuthority(t)
	account, _ := newGuest(t, a, site)
	wantError(t, site.CheckGuest(account, known), "has not signed")
	if err := site.CheckGuest(account, next); err != nil {
		t.Error(err)
	}
	if err := Succeeds(next, known); err != nil {
		t.Error(err)
	}
	wantError(t, Succeeds(known, next), "no newer")
	wantError(t, Succeeds(newAuthority(t).Operator(), known), "the identity")
	wantError(t, Succeeds("x", known), "reading the operator")
	if err := Succeeds(next, next); err != ErrSameOperator {
		t.Error(err)
	}
	_, other, err := NewAuthority("prod", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = NewOperatorKey(next, other, time.Now())
	wantError(t, err, "the identity is another operator's")
	_, err = a.NextOperator(next, offline.OperatorSeed, nil, time.Now())
	wantError(t, err, "its signing key is not one of the operator")
	// Again at once: the later counts.
	again, _, err := NewOperatorKey(next, offline, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := Succeeds(again, next); err != nil {
		t.Error(err)
	}
}

// TestTermsEnd has a site that is told nothing any more refuse what an old key signed,
// when its time is over.
func TestTermsEnd(t *testing.T) {
	f := newFleetOf(t, 1)
	hub, site := f.nodes[0], newAuthority(t)
	account, s := newGuest(t, hub, site)
	own := account
	own.Terms = ""
	old := signerOf(t, hub, own, builtin(t, "client"))
	end := time.Now().Add(time.Hour)
	f.rotate(RoleKeys(own), "", end)
	account.Terms = must[string](t)(hub.SiteTerms(own, s, BuiltinRoles(), nil, epoch()))
	if account.TermsState(end.Add(-time.Minute)) == account.TermsState(end) {
		t.Error("the end of a key does not change the state of the terms")
	}
	atSite := func() *jwt.AccountClaims {
		return claimsOf[*jwt.AccountClaims](t, must[string](t)(site.AccountJWT(account, nil, nil, Flows{}, epoch())))
	}
	if claims := atSite(); !claims.SigningKeys.Contains(old) || len(claims.Tags) != 0 {
		t.Errorf("the old key is not good at the site before its end; tags %v", claims.Tags)
	}
	// The same terms, later.
	terms := claimsOf[*jwt.AccountClaims](t, account.Terms)
	for i, tag := range terms.Tags {
		terms.Tags[i] = tag[:strings.LastIndex(tag, ":")+1] + strconv.FormatInt(time.Now().Unix(), 10)
	}
	account.Terms = must[string](t)(encode(terms, hub.signing, epoch()))
	if claims := atSite(); claims.SigningKeys.Contains(old) || !claims.SigningKeys.Contains(signerOf(t, hub, own, builtin(t, "client"))) || len(claims.Tags) != 0 {
		t.Error("the old key is good at the site after its end, or the new one is not")
	}
}
