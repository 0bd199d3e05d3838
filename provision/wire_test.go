package provision

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
)

// A rig is both sides of the wire, without one.
type rig struct {
	t     testing.TB
	pin   string
	chain string
	sign  ed25519.PrivateKey
	seal  *cert.SealKey
	asker *asker
	token TokenText
	known Token
}

func check[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newRig(t testing.TB) *rig {
	t.Helper()
	authority, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, pin: authority.Hash()[:identity.PinLength], seal: check[*cert.SealKey](t)(cert.NewSealKey())}
	if _, r.sign, err = ed25519.GenerateKey(rand.Reader); err != nil {
		t.Fatal(err)
	}
	csr := check[*x509.CertificateRequest](t)(identity.NewCSR(r.sign))
	r.chain = string(check[[]byte](t)(authority.SignProvisioner(csr, "provisioning", "p1", time.Hour, time.Now())))
	known, text, err := NewToken(r.pin, "", "", 1, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	r.known, r.token = known, check[TokenText](t)(ParseToken(text))
	r.asker = check[*asker](t)(newAsker(Machine{Server: "127.0.0.1", Name: "till-1", Keys: check[*Keys](t)(NewKeys()), Token: text}))
	return r
}

// welcome is what a provisioner says to a hello with that nonce.
func (r *rig) welcome(nonce []byte) []byte {
	w := check[signed](r.t)(sign(r.sign, ofWelcome, welcome{Version: version, Nonce: nonce, Instance: "p1", Seal: r.seal.Public(), Fleet: "fleet"}))
	w.Chain = r.chain
	return check[[]byte](r.t)(json.Marshal(w))
}

func (r *rig) known1() *provisionerKey {
	nonce := make([]byte, nonceSize)
	return check[*provisionerKey](r.t)(openWelcome(r.welcome(nonce), r.pin, nonce, time.Now()))
}

// demand seals a petition of an ask that is edited.
func (r *rig) demand(edit func(*ask), editPetition func(*petition)) []byte {
	k := r.asker.Keys
	a := ask{Version: version, Nonce: make([]byte, nonceSize), Instance: "p1", Name: "till-1", Key: check[string](r.t)(k.user.PublicKey()), CSR: r.asker.csr, Seal: k.seal.Public()}
	if edit != nil {
		edit(&a)
	}
	var p petition
	p.Ask = check[[]byte](r.t)(json.Marshal(a))
	p.Signature = check[[]byte](r.t)(k.user.Sign(signable(ofAsk, p.Ask)))
	if editPetition != nil {
		editPetition(&p)
	}
	s := check[cert.Sealed](r.t)(cert.SealMessage(r.seal.Public(), toOpen+"p1", check[[]byte](r.t)(json.Marshal(p))))
	return check[[]byte](r.t)(json.Marshal(sealed{Version: version, Sealed: s}))
}

func csrOf(t testing.TB, key any) string {
	der := check[[]byte](t)(x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key))
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))
}

// TestDemands has machines ask for what they cannot have.
func TestDemands(t *testing.T) {
	r := newRig(t)
	good := r.demand(nil, nil)
	d, err := openDemand(good, "p1", r.seal)
	if err != nil || d.ID != r.asker.id {
		t.Fatal(d, err)
	}
	weak := check[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 1024))
	curve := check[*ecdsa.PrivateKey](t)(ecdsa.GenerateKey(elliptic.P224(), rand.Reader))
	other := check[nkeys.KeyPair](t)(nkeys.CreateUser())
	account := check[nkeys.KeyPair](t)(nkeys.CreateAccount())
	huge := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: make([]byte, maxCSR)}))
	damaged := []byte(r.asker.csr)
	damaged[len(damaged)/2] ^= 1
	for want, bad := range map[string][]byte{
		"2048 to 8192":        r.demand(func(a *ask) { a.CSR = csrOf(t, weak) }, nil),
		"P-256 and up":        r.demand(func(a *ask) { a.CSR = csrOf(t, curve) }, nil),
		"certificate request": r.demand(func(a *ask) { a.CSR = string(damaged) }, nil),
		"bytes and 8192":      r.demand(func(a *ask) { a.CSR = huge }, nil),
		"not PEM":             r.demand(func(a *ask) { a.CSR += a.CSR }, nil),
		"not signed by its":   r.demand(func(a *ask) { a.Key = check[string](t)(other.PublicKey()) }, nil),
		"public user nkey":    r.demand(func(a *ask) { a.Key = check[string](t)(account.PublicKey()) }, nil),
		"name cannot be one":  r.demand(func(a *ask) { a.Name = "a.b>" }, nil),
		"name is empty":       r.demand(func(a *ask) { a.Name = "" }, nil),
		"another provisioner": r.demand(func(a *ask) { a.Instance = "p2" }, nil),
		"another version":     r.demand(func(a *ask) { a.Nonce = nil }, nil),
		"facts":               r.demand(func(a *ask) { a.Facts = many() }, nil),
		"longer than":         r.demand(func(a *ask) { a.Facts = map[string]string{"x": strings.Repeat("y", maxFact+1)} }, nil),
		"not signed by":       r.demand(nil, func(p *petition) { p.Ask = bytes.Replace(p.Ask, []byte("till-1"), []byte("till-2"), 1) }),
		"its claim has":       r.demand(nil, func(p *petition) { p.Claim = strings.Repeat("x", maxClaim+1) }),
		"bytes and 32768":     bytes.Repeat([]byte("x"), maxMessage+1),
		"not understood":      []byte("hello"),
		"of version 0":        []byte("{}"),
		"another key":         []byte(`{"v":1,"sealed":{"alg":"hpke-mlkem768-x25519","to":"x","ciphertext":"AAAA"}}`),
	} {
		if _, err := openDemand(bad, "p1", r.seal); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("of what is %q is said: %v", want, err)
		}
	}
	// What is sealed to one instance is not for another that has the key.
	if _, err := openDemand(good, "p2", r.seal); err == nil {
		t.Error("a request is good at another instance")
	}
}

func many() map[string]string {
	facts := map[string]string{}
	for n := range maxFacts + 1 {
		facts[fmt.Sprint(n)] = ""
	}
	return facts
}

// TestTokenProof has a token prove a request, and nothing but that one.
func TestTokenProof(t *testing.T) {
	r := newRig(t)
	k := r.known1()
	d := check[*demand](t)(openDemand(check[[]byte](t)(r.asker.request(k)), "p1", r.seal))
	if err := r.known.check(d, time.Now()); err != nil {
		t.Fatal(err)
	}
	again := check[*demand](t)(openDemand(r.demand(func(a *ask) { a.Facts = map[string]string{"other": ""} }, func(p *petition) { p.Token, p.TokenSignature = d.Token, d.TokenSignature }), "p1", r.seal))
	if err := r.known.check(again, time.Now()); !errors.Is(err, errTokenForged) {
		t.Errorf("the proof of one request is good for another: %v", err)
	}
	other, _, err := NewToken(r.pin, "", "", 1, time.Hour, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := other.check(d, time.Now()); !errors.Is(err, errTokenForged) {
		t.Errorf("another token proves it: %v", err)
	}
	if err := r.known.check(d, time.Now().Add(2*time.Hour)); !errors.Is(err, errTokenExpired) {
		t.Errorf("after its time: %v", err)
	}
	for _, bad := range []string{"", "fb1.a.b.c", "fbp1." + r.pin + ".0123456789abcdef.x", "fbp1.x.0123456789abcdef.x", "fbp1." + r.pin + ".x.x"} {
		if _, err := ParseToken(bad); err == nil || bad != "" && strings.Contains(err.Error(), bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	secret := tokenText.EncodeToString(r.token.key.Seed())
	if s := fmt.Sprintf("%v %+v %#v %s %q", r.token, r.token, r.token, r.token, r.token); strings.Contains(s, secret) || strings.Contains(s, fmt.Sprint(r.token.key[:4])) {
		t.Errorf("a token prints its secret: %s", s)
	}
	keys := r.asker.Keys
	if s := fmt.Sprintf("%v %+v %#v", keys, keys, keys); strings.Contains(s, string(check[[]byte](t)(keys.user.Seed()))) || !strings.HasPrefix(s, "keys of U") {
		t.Errorf("keys print their secrets: %s", s)
	}
	for _, bad := range []func() (Token, string, error){
		func() (Token, string, error) { return NewToken("x", "", "", 1, time.Hour, time.Now()) },
		func() (Token, string, error) { return NewToken(r.pin, "a b", "", 1, time.Hour, time.Now()) },
		func() (Token, string, error) { return NewToken(r.pin, "", "", 0, time.Hour, time.Now()) },
		func() (Token, string, error) { return NewToken(r.pin, "", "x", 2, time.Hour, time.Now()) },
		func() (Token, string, error) { return NewToken(r.pin, "", "", 1, 0, time.Now()) },
	} {
		if _, _, err := bad(); err == nil {
			t.Error("a token is made that cannot be one")
		}
	}
}

// TestAnswers has answers be for one request, and for nobody else.
func TestAnswers(t *testing.T) {
	r := newRig(t)
	k := r.known1()
	request := check[[]byte](t)(r.asker.request(k))
	d := check[*demand](t)(openDemand(request, "p1", r.seal))
	reply := check[[]byte](t)(answerTo(r.sign, request, d, verdict{State: Pending, Reason: "wait"}, ""))
	if v, err := k.openAnswer(reply, request, r.asker.Keys.seal); err != nil || v.State != Pending || v.Reason != "wait" {
		t.Fatal(v, err)
	}
	other := check[[]byte](t)(r.asker.request(k))
	if _, err := k.openAnswer(reply, other, r.asker.Keys.seal); !errors.Is(err, errForged) {
		t.Errorf("an answer is good for another request: %v", err)
	}
	if _, err := k.openAnswer(reply, request, check[*Keys](t)(NewKeys()).seal); !errors.Is(err, errForged) {
		t.Errorf("an answer can be opened by another machine: %v", err)
	}
	_, forger, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	forged := check[[]byte](t)(answerTo(forger, request, d, verdict{State: Denied}, ""))
	if _, err := k.openAnswer(forged, request, r.asker.Keys.seal); !errors.Is(err, errForged) {
		t.Errorf("somebody else answers: %v", err)
	}
	var unreadable *unreadableError
	if _, err := k.openAnswer(check[[]byte](t)(answerTo(r.sign, request, nil, verdict{}, "no")), request, r.asker.Keys.seal); !errors.As(err, &unreadable) {
		t.Errorf("what could not be read is %v", err)
	}
	nonce := make([]byte, nonceSize)
	w := r.welcome(nonce)
	nonce[0]++
	if _, err := openWelcome(w, r.pin, nonce, time.Now()); !errors.Is(err, errForged) {
		t.Errorf("a welcome is good for another hello: %v", err)
	}
	// A welcome is no answer, whatever its body.
	var s signed
	if err := json.Unmarshal(w, &s); err != nil {
		t.Fatal(err)
	}
	if _, err := k.openAnswer(w, request, r.asker.Keys.seal); !errors.Is(err, errForged) {
		t.Errorf("a welcome is an answer: %v", err)
	}
	// Each bit of a welcome and of an answer counts, or is the same in other letters.
	nonce[0]--
	for i := 0; i < len(w); i += 7 {
		bad := bytes.Clone(w)
		bad[i] ^= 1 << (i % 7)
		if k2, err := openWelcome(bad, r.pin, nonce, time.Now()); err == nil && !bytes.Equal(k2.Seal, k.Seal) {
			t.Errorf("a welcome with another key is taken, at byte %d", i)
		}
	}
	for i := range reply {
		bad := bytes.Clone(reply)
		bad[i] ^= 1 << (i % 7)
		if v, err := k.openAnswer(bad, request, r.asker.Keys.seal); err == nil && v.Reason != "wait" {
			t.Errorf("another answer is taken, at byte %d: %+v", i, v)
		}
	}
}

// TestGrants has a machine refuse what is not an identity of its own.
func TestGrants(t *testing.T) {
	r := newRig(t)
	k := r.known1()
	r.asker.ca = k.ca
	for name, g := range map[string]*grant{
		"nothing":         nil,
		"another name":    {Name: "till-2", Account: "acme"},
		"no account":      {Name: "till-1", Account: "FLEET"},
		"no certificate":  {Name: "till-1", Account: "acme"},
		"another's":       {Name: "till-1", Account: "acme", Chain: r.chain},
		"a broken one":    {Name: "till-1", Account: "acme", Chain: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"},
		"more than three": {Name: "till-1", Account: "acme", Chain: r.chain + r.chain},
	} {
		if id, err := r.asker.accept(g, time.Now()); err == nil {
			t.Errorf("%s is taken: %+v", name, id)
		}
	}
}

func TestCode(t *testing.T) {
	r := newRig(t)
	code := Code(r.asker.id)
	if id, err := ParseCode(strings.ToUpper(code)); err != nil || id != r.asker.id || strings.Count(code, "-") != 4 {
		t.Errorf("the code %s is %s, %v", code, id, err)
	}
	if id, err := ParseCode(r.asker.id); err != nil || id != r.asker.id {
		t.Errorf("the id is %s, %v", id, err)
	}
	for _, bad := range []string{"", "abcd", strings.Repeat("1", 20), strings.Repeat("a", 21)} {
		if _, err := ParseCode(bad); err == nil {
			t.Errorf("%q is a code", bad)
		}
	}
	if requestID("a", "b", nil) == requestID("ab", "", nil) {
		t.Error("two requests have one id")
	}
}

// TestRules has the first rule decide that fits.
func TestRules(t *testing.T) {
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, ok := private.Public().(ed25519.PublicKey)
	if !ok {
		t.Fatal("no key")
	}
	text := `{"keys": {"factory": "` + base64.StdEncoding.EncodeToString(public) + `"}, "rules": [
		{"name": "tills", "names": ["till-*"], "networks": ["10.0.0.0/8"], "proof": "token", "token": "tills", "account": "acme"},
		{"name": "pumps", "proof": "claim", "key": "factory", "claims": {"model": "pump", "sites": "berlin"}, "account": "acme", "decide": "hook"},
		{"name": "bad", "names": ["bad-*"], "proof": "none", "decide": "deny"},
		{"proof": "none", "networks": ["192.0.2.0/24"]}]}`
	rules, err := ParseRules(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	token := func(label string) proof { return proof{kind: ProofToken, token: Token{Label: label}} }
	claims := func(all map[string]any) proof { return proof{kind: ProofClaim, claim: claim{By: "factory", All: all}} }
	for _, c := range []struct {
		name, from string
		proof      proof
		want       string
	}{
		{"till-1", "10.1.2.3", token("tills"), "tills"},
		{"till-1", "10.1.2.3", token("doors"), ""},
		{"till-1", "192.0.2.7", token("tills"), "4"},
		{"pump-1", "10.1.2.3", claims(map[string]any{"model": "pump", "sites": []any{"rome", "berlin"}}), "pumps"},
		{"pump-1", "10.1.2.3", claims(map[string]any{"model": "pump", "sites": []any{"rome"}}), ""},
		{"pump-1", "10.1.2.3", claims(map[string]any{"model": 7.0}), ""},
		{"bad-1", "10.1.2.3", proof{kind: ProofNone}, "bad"},
		{"bad-1", "192.0.2.7", token("tills"), "bad"},
		{"x", "192.0.2.7", proof{kind: ProofNone}, "4"},
		{"x", "2001:db8::1", proof{kind: ProofNone}, ""},
	} {
		got := rules.match(c.name, netip.MustParseAddr(c.from), c.proof)
		if got == nil && c.want != "" || got != nil && got.Name != c.want {
			t.Errorf("%s from %s with %s is decided by %+v and not by %q", c.name, c.from, c.proof, got, c.want)
		}
	}
	if r := rules.Rules[3]; r.Decide != Wait || r.Role != "machine" || rules.Rules[0].Decide != Approve {
		t.Errorf("the defaults are %+v", rules.Rules)
	}
	for want, bad := range map[string]string{
		"there is no rule":   `{}`,
		"unknown field":      `{"rules": [{"proff": "none"}]}`,
		"proof":              `{"rules": [{"proof": "love"}]}`,
		"is not a pattern":   `{"rules": [{"proof": "none", "names": ["["]}]}`,
		"is not a network":   `{"rules": [{"proof": "none", "networks": ["here"]}]}`,
		"whoever comes":      `{"rules": [{"proof": "none", "decide": "approve", "account": "acme"}]}`,
		"it is missing":      `{"rules": [{"proof": "token"}]}`,
		"decide":             `{"rules": [{"proof": "token", "decide": "perhaps"}]}`,
		"no machine gets":    `{"rules": [{"proof": "token", "account": "FLEET"}]}`,
		"gets the role":      `{"rules": [{"proof": "token", "account": "acme", "role": "admin"}]}`,
		"is negative":        `{"rules": [{"proof": "token", "account": "acme", "per_minute": -1}]}`,
		"there is no key":    `{"rules": [{"proof": "claim", "key": "x", "account": "acme"}]}`,
		"without keys":       `{"rules": [{"proof": "claim", "account": "acme"}]}`,
		"is for proof":       `{"rules": [{"proof": "none", "token": "x"}]}`,
		"keys.factory":       `{"keys": {"factory": "x"}, "rules": [{"proof": "none"}]}`,
		"reading rules":      `[`,
		"have more than":     strings.Repeat(" ", maxRules+1),
		"neither of Ed25519": `{"keys": {"k": "` + strings.ReplaceAll(pemOf(t), "\n", `\n`) + `"}, "rules": [{"proof": "none"}]}`,
	} {
		if _, err := ParseRules(strings.NewReader(bad)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("of rules of which %q is to be said: %v", want, err)
		}
	}
}

func pemOf(t testing.TB) string {
	key := check[*rsa.PrivateKey](t)(rsa.GenerateKey(rand.Reader, 2048))
	der := check[[]byte](t)(x509.MarshalPKIXPublicKey(&key.PublicKey))
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

// TestTurns has a rule decide so many requests in a minute, also when it is read again.
func TestTurns(t *testing.T) {
	const text = `{"rules": [{"name": "tills", "proof": "token", "account": "acme", "per_minute": 60}]}`
	read := func() *Rules { return check[*Rules](t)(ParseRules(strings.NewReader(text))) }
	var live Live
	if live.get().match("x", netip.MustParseAddr("10.0.0.1"), proof{kind: ProofToken}) != nil {
		t.Error("without rules somebody gets in")
	}
	live.Set(read())
	now := time.Now()
	if w := live.get().Rules[0].wait(now); w != 0 {
		t.Errorf("the first waits %v", w)
	}
	live.Set(read())
	for range 3 {
		if w := live.get().Rules[0].wait(now); w < 500*time.Millisecond || w > time.Second {
			t.Errorf("the next waits %v", w)
		}
	}
	if w := live.get().Rules[0].wait(now.Add(time.Second)); w != 0 {
		t.Errorf("after a second it waits %v", w)
	}
}

// TestQueue has those who ask little not wait for who asks a lot.
func TestQueue(t *testing.T) {
	q := newQueue[int]()
	for n := range maxQueuedEach {
		if !q.put("flood", n) {
			t.Fatal("there is no room")
		}
	}
	if q.put("flood", 0) {
		t.Error("one address takes all of the room")
	}
	q.put("other", 1000)
	q.put("third", 2000)
	var got []int
	for range 5 {
		v, ok := q.take(t.Context())
		if !ok {
			t.Fatal("there is nothing")
		}
		got = append(got, v)
	}
	if fmt.Sprint(got) != "[0 1000 2000 1 2]" {
		t.Errorf("the turns are %v", got)
	}
	for n := range maxQueued {
		q.put(fmt.Sprint(n), n)
	}
	if q.all != maxQueued || q.put("late", 0) {
		t.Errorf("%d wait", q.all)
	}
	ctx, cancel := context.WithCancel(t.Context())
	for range maxQueued {
		if _, ok := q.take(ctx); !ok {
			t.Fatal("something was lost")
		}
	}
	cancel()
	if _, ok := q.take(ctx); ok || len(q.of) > 0 || len(q.turns) > 0 {
		t.Error("something is left")
	}
}

// FuzzDemand has a provisioner read anything, sealed as it has to be or not.
func FuzzDemand(f *testing.F) {
	r := newRig(f)
	f.Add(r.demand(nil, nil), false)
	a := check[[]byte](f)(json.Marshal(petition{Ask: []byte(`{"v":1,"name":"x","key":"U","csr":"","seal":""}`), Claim: "a.b.c"}))
	f.Add(a, true)
	f.Add([]byte(`{"v":1}`), false)
	f.Fuzz(func(t *testing.T, data []byte, inside bool) {
		if inside {
			s, err := cert.SealMessage(r.seal.Public(), toOpen+"p1", data)
			if err != nil {
				t.Fatal(err)
			}
			data = check[[]byte](t)(json.Marshal(sealed{Version: version, Sealed: s}))
		}
		d, err := openDemand(data, "p1", r.seal)
		if err == nil && (identity.CheckName(d.Name) != nil || d.csr == nil || len(d.ID) != idLength) {
			t.Errorf("a request is good: %+v", d)
		}
	})
}

// FuzzAnswer has a machine read anything: nothing but what was signed is believed.
func FuzzAnswer(f *testing.F) {
	r := newRig(f)
	k := r.known1()
	nonce := make([]byte, nonceSize)
	request := check[[]byte](f)(r.asker.request(k))
	d := check[*demand](f)(openDemand(request, "p1", r.seal))
	f.Add(r.welcome(nonce))
	f.Add(check[[]byte](f)(answerTo(r.sign, request, d, verdict{State: Pending, Reason: "wait"}, "")))
	f.Add([]byte(`{"body":"e30=","sig":"","chain":"-----BEGIN CERTIFICATE-----"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if k2, err := openWelcome(data, r.pin, nonce, time.Now()); err == nil && !bytes.Equal(k2.Seal, r.seal.Public()) {
			t.Error("a welcome is believed that nobody said")
		}
		if v, err := k.openAnswer(data, request, r.asker.Keys.seal); err == nil && v.Reason != "wait" {
			t.Errorf("an answer is believed that nobody gave: %+v", v)
		}
	})
}

// FuzzClaim has a provisioner read any JWT.
func FuzzClaim(f *testing.F) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	keys := map[string]any{"k": public}
	part := base64.RawURLEncoding.EncodeToString
	message := part([]byte(`{"alg":"EdDSA"}`)) + "." + part([]byte(`{"exp":4000000000,"aud":["fleet"],"sub":"x"}`))
	good := message + "." + part(ed25519.Sign(private, []byte(message)))
	f.Add(good)
	f.Add("a.b.c")
	f.Add(part([]byte(`{"alg":"none"}`)) + "." + part([]byte(`{}`)) + ".")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := openClaim(text, keys, "x", "fleet", time.Now()); err == nil && !strings.HasPrefix(text, message) {
			t.Errorf("%s is believed: %+v", text, c)
		}
	})
}

// FuzzRules has anything be rules.
func FuzzRules(f *testing.F) {
	f.Add(`{"rules": [{"proof": "none", "names": ["a*"], "networks": ["10.0.0.0/8"]}]}`)
	f.Fuzz(func(t *testing.T, text string) {
		if rules, err := ParseRules(strings.NewReader(text)); err == nil {
			rules.match("a", netip.MustParseAddr("10.0.0.1"), proof{kind: ProofNone})
		}
	})
}
