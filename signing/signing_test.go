package signing

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

// account makes the public key of an account.
func account(t testing.TB) string {
	t.Helper()
	pair, err := nkeys.CreateAccount()
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// creds makes a creds file for the account.
func creds(t testing.TB, audience string) []byte {
	t.Helper()
	user, err1 := nkeys.CreateUser()
	issuer, err2 := nkeys.CreateAccount()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	public, err1 := user.PublicKey()
	seed, err2 := user.Seed()
	claims := jwt.NewUserClaims(public)
	claims.IssuerAccount = audience
	token, err3 := claims.Encode(issuer)
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	file, err := jwt.FormatUserConfig(token, seed)
	if err != nil {
		t.Fatal(err)
	}
	return file
}

// signers are one of each kind of key.
func signers(t testing.TB, audience string) map[string]*Signer {
	t.Helper()
	nkey, err := FromCreds(creds(t, audience))
	if err != nil {
		t.Fatal(err)
	}
	all := map[string]*Signer{"nkey": nkey}
	_, ed, err1 := ed25519.GenerateKey(rand.Reader)
	p256, err2 := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]crypto.Signer{"ed25519": ed, "p256": p256} {
		if all[name], err = New(key, audience); err != nil {
			t.Fatal(err)
		}
	}
	return all
}

// fresh accepts what is signed from now on.
func fresh(audience string, keys Keys) *Verifier {
	return NewVerifier(audience, keys, Options{Since: time.Now().Add(-time.Second)})
}

func TestEveryKeySigns(t *testing.T) {
	audience := account(t)
	for name, s := range signers(t, audience) {
		v := fresh(audience, KeyList{s.Key(): name})
		msg := &nats.Msg{Subject: "orders.new", Data: []byte("hello")}
		if err := s.Sign(msg); err != nil {
			t.Fatal(err)
		}
		text := msg.Header.Get(Header)
		if len(text) > maxHeader || strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' || r == '"' || r == ',' }) {
			t.Errorf("%s: %q cannot go everywhere", name, text)
		}
		if p, err := v.Verify(t.Context(), msg); err != nil || p.Name != name {
			t.Errorf("%s: %v, %v", name, p, err)
		}
		if _, err := v.Verify(t.Context(), msg); !errors.Is(err, ErrReplayed) {
			t.Errorf("%s: again: %v", name, err)
		}
	}
}

// TestWhatIsChanged changes everything that is signed, one at a time.
func TestWhatIsChanged(t *testing.T) {
	audience := account(t)
	for name, s := range signers(t, audience) {
		other := signers(t, audience)[name]
		v := fresh(audience, KeyList{s.Key(): "alice", other.Key(): "bob"})
		text, err := s.Text("orders.new", []byte("10"))
		if err != nil {
			t.Fatal(err)
		}
		sig, err := Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		for what, c := range map[string]struct {
			change  func(*Signature)
			subject string
			body    string
			want    error
		}{
			"nothing":   {nil, "orders.new", "10", nil},
			"subject":   {nil, "orders.old", "10", ErrBadSignature},
			"body":      {nil, "orders.new", "100", ErrBadSignature},
			"time":      {func(s *Signature) { s.Time = s.Time.Add(time.Millisecond) }, "orders.new", "10", ErrBadSignature},
			"nonce":     {func(s *Signature) { s.Nonce = strings.Repeat("A", 22) }, "orders.new", "10", ErrBadSignature},
			"key":       {func(s *Signature) { s.Key = other.Key() }, "orders.new", "10", ErrBadSignature},
			"nobody's":  {func(s *Signature) { s.Key = signers(t, audience)[name].Key() }, "orders.new", "10", ErrUnknownKey},
			"signature": {func(s *Signature) { s.Bytes[9] ^= 1 }, "orders.new", "10", ErrBadSignature},
			"length":    {func(s *Signature) { s.Bytes = s.Bytes[1:] }, "orders.new", "10", ErrBadSignature},
		} {
			changed := sig
			changed.Bytes = append([]byte(nil), sig.Bytes...)
			if c.change != nil {
				c.change(&changed)
			}
			_, _, err := v.Check(t.Context(), changed.String(), c.subject, sha256.Sum256([]byte(c.body)))
			if !errors.Is(err, c.want) || c.want == nil && err != nil {
				t.Errorf("%s, %s: got %v, want %v", name, what, err, c.want)
			}
		}
		elsewhere := fresh(account(t), KeyList{s.Key(): "alice"})
		if _, err := elsewhere.VerifyText(t.Context(), text, "orders.new", []byte("10")); !errors.Is(err, ErrBadSignature) {
			t.Errorf("%s, in another account: %v", name, err)
		}
	}
}

func TestClocks(t *testing.T) {
	audience := account(t)
	s := signers(t, audience)["nkey"]
	keys := KeyList{s.Key(): "alice"}
	now := time.Now()
	began := func(ago time.Duration) Options { return Options{Since: now.Add(-ago)} }
	for name, c := range map[string]struct {
		options Options
		signed  time.Duration // from now
		want    error
	}{
		"now":                       {began(time.Hour), 0, nil},
		"a slow clock":              {began(time.Hour), -119 * time.Second, nil},
		"too slow":                  {began(time.Hour), -121 * time.Second, ErrStale},
		"a fast clock":              {began(time.Hour), 4 * time.Second, nil},
		"too fast":                  {began(time.Hour), 6 * time.Second, ErrEarly},
		"a restart":                 {Options{}, 0, ErrStale},
		"by a fast clock before it": {Options{}, 4 * time.Second, ErrStale},
		"before who verifies":       {began(time.Second), -2 * time.Second, ErrStale},
		"stored":                    {Options{Stored: true}, -1000 * time.Hour, nil},
	} {
		v := NewVerifier(audience, keys, c.options)
		v.now = func() time.Time { return now }
		text, err := s.textAt("a", nil, now.Add(c.signed))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := v.VerifyText(t.Context(), text, "a", nil); !errors.Is(err, c.want) || c.want == nil && err != nil {
			t.Errorf("%s: got %v, want %v", name, err, c.want)
		}
	}
}

// TestRestart shows that whatever one verifier accepts at its end, none that is made
// after it does, whenever it comes.
func TestRestart(t *testing.T) {
	audience := account(t)
	s := signers(t, audience)["nkey"]
	keys := KeyList{s.Key(): "alice"}
	first := fresh(audience, keys)
	var accepted []string
	for ahead := -time.Second; ahead <= 5*time.Second; ahead += 500 * time.Millisecond {
		text, err := s.textAt("a", nil, time.Now().Add(ahead))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := first.VerifyText(t.Context(), text, "a", nil); err == nil {
			accepted = append(accepted, text)
		}
	}
	second := NewVerifier(audience, keys, Options{})
	for after := time.Duration(0); after < time.Minute; after += time.Second {
		second.now = func() time.Time { return time.Now().Add(after) }
		for _, text := range accepted {
			if _, err := second.VerifyText(t.Context(), text, "a", nil); err == nil {
				t.Fatalf("%s after the restart %q is accepted again", after, text)
			}
		}
	}
	if len(accepted) < 10 {
		t.Errorf("only %d were accepted at all", len(accepted))
	}
}

// TestOnce hands one message to a verifier many times at once.
func TestOnce(t *testing.T) {
	audience := account(t)
	s := signers(t, audience)["p256"]
	v := fresh(audience, KeyList{s.Key(): "alice"})
	text, err := s.Text("a", nil)
	if err != nil {
		t.Fatal(err)
	}
	var accepted atomic.Int32
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if _, err := v.VerifyText(t.Context(), text, "a", nil); err == nil {
				accepted.Add(1)
			}
		})
	}
	all.Wait()
	if n := accepted.Load(); n != 1 {
		t.Errorf("accepted %d times", n)
	}
}

// TestMemory fills one: it refuses, and forgets nothing that could come again.
func TestMemory(t *testing.T) {
	const limit = 40
	m := NewMemory(limit, time.Minute)
	now := time.Now()
	use := func(key, n byte) Use { return Use{ID: [16]byte{key, n}, Key: [8]byte{key}} }
	for n := range byte(limit/keyShare + 1) {
		want := error(nil)
		if n == limit/keyShare {
			want = ErrFull
		}
		if err := m.Use(use(1, n), now); !errors.Is(err, want) || want == nil && err != nil {
			t.Fatalf("use %d of a key: %v", n, err)
		}
	}
	for key := range byte(8) {
		for n := range byte(limit / keyShare) {
			_ = m.Use(use(key, n), now)
		}
	}
	if m.Len() != limit {
		t.Fatalf("it has %d of %d", m.Len(), limit)
	}
	if err := m.Use(use(9, 0), now); !errors.Is(err, ErrFull) {
		t.Errorf("a full memory: %v", err)
	}
	if err := m.Use(use(1, 0), now.Add(time.Minute)); !errors.Is(err, ErrReplayed) {
		t.Errorf("a minute later: %v", err)
	}
	if err := m.Use(use(1, 0), now.Add(2*time.Minute)); err != nil {
		t.Errorf("two minutes later: %v", err)
	}
	if err := m.Use(use(1, 0), now.Add(time.Hour)); err != nil || m.Len() != 1 {
		t.Errorf("an hour later: %v, %d", err, m.Len())
	}
}

func TestSecondHeaderAndNone(t *testing.T) {
	audience := account(t)
	s := signers(t, audience)["nkey"]
	v := fresh(audience, KeyList{s.Key(): "alice"})
	msg := &nats.Msg{Subject: "a"}
	if _, err := v.Verify(t.Context(), msg); !errors.Is(err, ErrUnsigned) {
		t.Errorf("unsigned: %v", err)
	}
	if err := s.Sign(msg); err != nil {
		t.Fatal(err)
	}
	msg.Header.Add(Header, msg.Header.Get(Header))
	if _, err := v.Verify(t.Context(), msg); !errors.Is(err, ErrMalformed) {
		t.Errorf("two: %v", err)
	}
}

func TestExpiredKey(t *testing.T) {
	audience := account(t)
	s := signers(t, audience)["nkey"]
	v := fresh(audience, ended{})
	text, _ := s.Text("a", nil)
	if _, err := v.VerifyText(t.Context(), text, "a", nil); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("got %v", err)
	}
}

type ended struct{}

func (ended) Find(context.Context, string) (Principal, error) {
	return Principal{Name: "alice", Expires: time.Now().Add(-time.Second)}, nil
}

func TestKeysThatCannotSign(t *testing.T) {
	audience := account(t)
	p384, err1 := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	long, err2 := rsa.GenerateKey(rand.Reader, 2048)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	for _, key := range []crypto.Signer{p384, long} {
		if _, err := New(key, audience); err == nil {
			t.Errorf("%T signs", key)
		}
	}
	p256, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(p256, "acme"); err == nil {
		t.Error("an audience that is no key is taken")
	}
}

// The test vector of docs/signing.md: who writes this in another language has the same
// bytes. The seed is of this vector alone.
const (
	vectorSeed     = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	vectorAudience = "AAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3QPZV"
	vectorSubject  = "orders.new"
	vectorBody     = `{"id":7}`
)

func TestVector(t *testing.T) {
	seed, err := hex.DecodeString(vectorSeed)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := nkeys.FromRawSeed(nkeys.PrefixByteUser, seed)
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	s := Signature{Key: public, Time: time.UnixMilli(1790000000123), Nonce: "AAECAwQFBgcICQoLDA0ODw"}
	b := s.signed(vectorAudience, vectorSubject, sha256.Sum256([]byte(vectorBody)))
	if s.Bytes, err = pair.Sign(b); err != nil {
		t.Fatal(err)
	}
	const signed = "00000015666c6565746275732e7369676e61747572652e763100000038414142324342353736504842425051354f444f52525a324c59434d57505a475747434e324b444b3744584f494d5a41534b55593351505a560000000a6f72646572732e6e65770000000d313739303030303030303132330000001641414543417751464267634943516f4c4441304f447700000020a3c90e3b7448d23d9eacebd0ebf15cae100e21f9b2c688f3f9d238edcd26d67f"
	const text = "v1;key=UAB2CB576PHBBPQ5ODORRZ2LYCMWPZGWGCN2KDK7DXOIMZASKUY3RLKK;time=1790000000123;nonce=AAECAwQFBgcICQoLDA0ODw;sig=GfBKEpPMV_qVkDMI9i_zB2lXOex2WYhP5RY1AKwykhZnVdKoORu7DgbeKBQZ4WvIayizR144z3Rtnlez5e8RAQ"
	if hex.EncodeToString(b) != signed || s.String() != text {
		t.Errorf("the bytes are\n%x\nand the header\n%s", b, s)
	}
}

func FuzzParse(f *testing.F) {
	audience := account(f)
	for _, s := range signers(f, audience) {
		text, err := s.Text("a", []byte("b"))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
		f.Add(text[:len(text)/2])
		f.Add(strings.Replace(text, "time=", "time=0", 1))
	}
	f.Add("v1;key=;time=;nonce=;sig=")
	f.Add(fmt.Sprintf("v1;key=U;time=%d;nonce=AAAAAAAAAAAAAAAAAAAAAA;sig=", uint64(1)<<53))
	v := NewVerifier(audience, everybody{}, Options{Stored: true})
	f.Fuzz(func(t *testing.T, text string) {
		s, err := Parse(text)
		if err != nil {
			if Reason(err) != "malformed" && Reason(err) != "unsigned" {
				t.Errorf("Parse says %v", err)
			}
			return
		}
		if s.String() != text {
			t.Errorf("%q is also written %q", text, s)
		}
		if _, _, err := v.Check(t.Context(), text, "another", sha256.Sum256(nil)); Reason(err) == "other" {
			t.Errorf("%q for what nobody signed: %v", text, err)
		}
		_, _ = KeyHash(s.Key)
	})
}

// everybody knows everybody.
type everybody struct{}

func (everybody) Find(context.Context, string) (Principal, error) { return Principal{Name: "any"}, nil }

func BenchmarkVerify(b *testing.B) {
	audience := account(b)
	body := make([]byte, 256)
	for name, s := range signers(b, audience) {
		b.Run(name, func(b *testing.B) {
			v := fresh(audience, KeyList{s.Key(): name})
			text, err := s.Text("orders.new", body)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if _, _, err := v.Check(b.Context(), text, "orders.new", sha256.Sum256(body)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// TestPythonVector has the example in Python make the vector's bytes.
func TestPythonVector(t *testing.T) {
	const python = "/usr/bin/python3"
	if err := exec.CommandContext(t.Context(), python, "-c", "import cryptography").Run(); err != nil {
		t.Skipf("%s has no module cryptography: install python3-cryptography", python)
	}
	raw, err := hex.DecodeString(vectorSeed)
	if err != nil {
		t.Fatal(err)
	}
	pair, err1 := nkeys.FromRawSeed(nkeys.PrefixByteUser, raw)
	seed, err2 := pair.Seed()
	public, err3 := pair.PublicKey()
	if err := errors.Join(err1, err2, err3); err != nil {
		t.Fatal(err)
	}
	out, err := exec.CommandContext(t.Context(), python, "-B", "testdata/vector.py", string(seed), vectorAudience).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	text := strings.TrimSpace(string(out))
	v := NewVerifier(vectorAudience, KeyList{public: "vector"}, Options{Stored: true})
	if p, err := v.VerifyText(t.Context(), text, vectorSubject, []byte(vectorBody)); err != nil || p.Name != "vector" {
		t.Errorf("%q: %v, %v", text, p, err)
	}
	if !strings.Contains(text, "time=1790000000123;nonce=AAECAwQFBgcICQoLDA0ODw;sig=GfBKEpPMV_") {
		t.Errorf("it is not the vector's: %q", text)
	}
}
