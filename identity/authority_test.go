package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func TestNewAuthority(t *testing.T) {
	now := epoch()
	a, offline, err := NewAuthority("prod", now)
	if err != nil {
		t.Fatal(err)
	}
	if a.Fleet() != "prod" {
		t.Errorf("the fleet is %q", a.Fleet())
	}
	operator := claimsOf[*jwt.OperatorClaims](t, a.Operator())
	system := must[Account](t)(a.SystemAccount(now))
	if !operator.StrictSigningKeyUsage || operator.SystemAccount != system.Public || operator.Name != "prod" || operator.IssuedAt != now.Unix() {
		t.Errorf("the operator is %s", operator)
	}
	root := must[nkeys.KeyPair](t)(nkeys.FromSeed(offline.OperatorSeed))
	spare := must[nkeys.KeyPair](t)(nkeys.FromSeed(offline.SigningSeed))
	want := []string{must[string](t)(a.signing.PublicKey()), must[string](t)(spare.PublicKey())}
	if !reflect.DeepEqual([]string(operator.SigningKeys), want) {
		t.Errorf("the signing keys are %q, want %q", operator.SigningKeys, want)
	}
	if rootPublic := must[string](t)(root.PublicKey()); operator.Subject != rootPublic || operator.Issuer != rootPublic {
		t.Errorf("the operator is %q by %q", operator.Subject, operator.Issuer)
	}
	data := must[[]byte](t)(a.Marshal())
	for name, seed := range map[string][]byte{"identity": offline.OperatorSeed, "second signing key": offline.SigningSeed} {
		if bytes.Contains(data, seed) {
			t.Errorf("the operator's %s is not offline", name)
		}
	}
	_, _, err = NewAuthority("a b", now)
	wantError(t, err, `making an authority: name "a b"`)
}

func TestAuthorityMarshal(t *testing.T) {
	a := newAuthority(t)
	data := must[[]byte](t)(a.Marshal())
	b := new(Authority)
	if err := b.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	if again := must[[]byte](t)(b.Marshal()); !bytes.Equal(again, data) {
		t.Errorf("the authority is %s, then %s", data, again)
	}
	if a.Hash() != b.Hash() || len(a.Hash()) != 64 {
		t.Errorf("the hash is %q, then %q", a.Hash(), b.Hash())
	}
	account := newAccount(t, a, "acme")
	if _, err := b.AccountJWT(account, nil, nil, Flows{}, epoch()); err != nil {
		t.Errorf("an authority does not know its account again: %v", err)
	}
	if newAuthority(t).Hash() == a.Hash() {
		t.Error("two authorities have one hash")
	}
}

func TestUnmarshalAuthorityRefuses(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	_, foreign, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	foreignKey := must[[]byte](t)(x509.MarshalPKCS8PrivateKey(foreign))
	curve := must[nkeys.KeyPair](t)(nkeys.CreateCurveKeys())
	leaf := must[[]byte](t)(a.SignUser(newCSR(t), "acme", "alice", time.Hour, epoch()))
	record := func(i *issuer) issuerRecord {
		return must[issuerRecord](t)(i.record())
	}
	for want, damage := range map[string]func(*authorityRecord){
		"name is empty":                          func(r *authorityRecord) { r.Fleet = "" },
		"master secret has 31 bytes, not 32":     func(r *authorityRecord) { r.Master = r.Master[1:] },
		"decoding the operator":                  func(r *authorityRecord) { r.Operator = "x" },
		"decoding the signing key":               func(r *authorityRecord) { r.SigningSeed = "x" },
		"of prod: its signing key is not one of": func(r *authorityRecord) { r.SigningSeed = string(must[[]byte](t)(curve.Seed())) },
		"signing key is not one of the operator": func(r *authorityRecord) {
			r.SigningSeed = string(must[[]byte](t)(other.signing.Seed()))
		},
		"mesh authority of the authority of prod: reading its certificate": func(r *authorityRecord) { r.Mesh.Certificate = nil },
		"mesh authority of the authority of prod: reading its key":         func(r *authorityRecord) { r.Mesh.Key = nil },
		"clients authority of the authority of prod: its certificate and key": func(r *authorityRecord) {
			r.Clients.Key = record(other.clients).Key
		},
		"its certificate and key do not make an authority": func(r *authorityRecord) { r.Clients.Key = foreignKey },
		"clients authority of the authority of prod: its certificate": func(r *authorityRecord) {
			r.Clients.Certificate = parsePEM(t, leaf)[0].Raw
		},
	} {
		var r authorityRecord
		if err := json.Unmarshal(must[[]byte](t)(a.Marshal()), &r); err != nil {
			t.Fatal(err)
		}
		damage(&r)
		b := new(Authority)
		wantError(t, b.Unmarshal(toJSON(t, r)), want)
		if b.Fleet() != "" || b.master != nil {
			t.Errorf("%s: a damaged authority was taken over", want)
		}
	}
	wantError(t, new(Authority).Unmarshal([]byte("{")), "decoding an authority")
	joiner := must[nkeys.KeyPair](t)(nkeys.CreateCurveKeys())
	damaged := must[[]byte](t)(curve.Seal([]byte("{"), must[string](t)(joiner.PublicKey())))
	_, err = OpenAuthority(damaged, must[string](t)(curve.PublicKey()), joiner)
	wantError(t, err, "decoding an authority")
}

func TestSeal(t *testing.T) {
	a := newAuthority(t)
	joiner := must[nkeys.KeyPair](t)(nkeys.CreateCurveKeys())
	joinerPublic := must[string](t)(joiner.PublicKey())
	sender := must[string](t)(a.SealPublic())
	sealed := must[[]byte](t)(a.SealTo(joinerPublic))
	b := must[*Authority](t)(OpenAuthority(sealed, sender, joiner))
	if b.Hash() != a.Hash() {
		t.Error("another authority was opened")
	}
	if bytes.Contains(sealed, a.master) || bytes.Contains(sealed, []byte("signing_seed")) {
		t.Error("a sealed authority can be read")
	}
	stranger := must[nkeys.KeyPair](t)(nkeys.CreateCurveKeys())
	if _, err := OpenAuthority(sealed, sender, stranger); err == nil {
		t.Error("a stranger opened the authority")
	}
	if _, err := OpenAuthority(sealed, must[string](t)(stranger.PublicKey()), joiner); err == nil {
		t.Error("the authority of a stranger was opened")
	}
	sealed[len(sealed)-1] ^= 1
	_, err := OpenAuthority(sealed, sender, joiner)
	wantError(t, err, "opening a sealed authority")
	_, err = a.SealTo("nobody")
	wantError(t, err, `sealing the authority of prod to "nobody"`)
	if callout := must[nkeys.KeyPair](t)(a.CalloutKey()); must[string](t)(callout.PublicKey()) == sender {
		t.Error("one key serves two purposes")
	}
}

func TestDerivedKeysDiffer(t *testing.T) {
	a, other := newAuthority(t), newAuthority(t)
	seen := map[string]string{}
	add := func(what string, key keyPair, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if before, ok := seen[key.public]; ok {
			t.Errorf("%s has the key of %s", what, before)
		}
		seen[key.public] = what
	}
	for name, a := range map[string]*Authority{"a": a, "other": other} {
		for _, id := range []string{"x", "y"} {
			key, err := a.accountKey(id)
			add(name+" account "+id, key, err)
			key, err = a.roleKey(id, RoleLeaf)
			add(name+" link "+id, key, err)
			for _, role := range []string{"session", "client"} {
				key, err = a.roleKey(id, role)
				add(name+" role "+role+" of "+id, key, err)
			}
		}
	}
	first, err := a.roleKey("x", "client")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := a.roleKey("x", "client"); err != nil || again.public != first.public {
		t.Errorf("a key is derived once as %q and then as %q: %v", first.public, again.public, err)
	}
	if !strings.HasPrefix(first.public, "A") {
		t.Errorf("the key of a role is %q", first.public)
	}
}

// TestEnginesDiffer has what one process tells its engine worth nothing at another's,
// although both have the same secrets.
func TestEnginesDiffer(t *testing.T) {
	a, again := newAuthority(t), new(Authority)
	if err := again.Unmarshal(must[[]byte](t)(a.Marshal())); err != nil {
		t.Fatal(err)
	}
	if a.EngineOperator() == again.EngineOperator() || a.Operator() != again.Operator() {
		t.Error("two processes have one engine's operator, or not one fleet's")
	}
	account, at := newAccount(t, a, "acme"), epoch()
	token := must[string](t)(a.AccountJWT(account, BuiltinRoles(), nil, Flows{}, at))
	theirs := claimsOf[*jwt.OperatorClaims](t, again.EngineOperator())
	if theirs.DidSign(claimsOf[*jwt.AccountClaims](t, token)) {
		t.Error("another engine takes the account")
	}

	adopted := must[string](t)(again.Adopt(account.Public, token))
	claims := claimsOf[*jwt.AccountClaims](t, adopted)
	if !theirs.DidSign(claims) || claims.IssuedAt != at.Unix() {
		t.Errorf("what was adopted is of %s, issued at %d", claims.Issuer, claims.IssuedAt)
	}
	if keys := claims.SigningKeys; keys.Contains(a.engine.session.public) || !keys.Contains(again.engine.session.public) {
		t.Error("the sessions of the other node are good here, or ours are not")
	}
	if same := must[string](t)(again.Adopt(account.Public, adopted)); same != adopted {
		t.Error("its own token is signed anew")
	}
	_, err := again.Adopt(newAccount(t, a, "other").Public, token)
	wantError(t, err, "it is another one")
	_, err = again.Adopt(account.Public, "x")
	wantError(t, err, "adopting account")
}
