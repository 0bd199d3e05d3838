package identity

import (
	"bytes"
	"crypto/pbkdf2"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"
)

// A scramClient is the client's side. It remembers what it derived: under the race
// detector that takes seconds each time.
type scramClient map[string][]byte

// answer is its last message, and what the server has to say then.
func (c scramClient) answer(t testing.TB, bare, challenge, password string) (last, final string) {
	t.Helper()
	fields := map[string]string{}
	for _, f := range strings.Split(challenge, ",") {
		k, v, _ := strings.Cut(f, "=")
		fields[k] = v
	}
	salt, err := base64.StdEncoding.DecodeString(fields["s"])
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(fields["i"])
	if err != nil {
		t.Fatal(err)
	}
	from := fields["i"] + fields["s"] + password
	if c[from] == nil {
		if c[from], err = pbkdf2.Key(sha256.New, password, salt, n, sha256.Size); err != nil {
			t.Fatal(err)
		}
	}
	salted := c[from]
	key := mac(salted, "Client Key")
	stored := sha256.Sum256(key)
	without := "c=biws,r=" + fields["r"]
	all := bare + "," + challenge + "," + without
	subtle.XORBytes(key, key, mac(stored[:], all))
	return without + ",p=" + base64.StdEncoding.EncodeToString(key), "v=" + base64.StdEncoding.EncodeToString(mac(mac(salted, "Server Key"), all))
}

// TestScramVector is the example of RFC 7677, section 3.
func TestScramVector(t *testing.T) {
	salt, err := base64.StdEncoding.DecodeString("W22ZaJ0SNY7soEsUEjb6gQ==")
	if err != nil {
		t.Fatal(err)
	}
	v, err := newScram("pencil", salt, 4096)
	if err != nil {
		t.Fatal(err)
	}
	x, err := NewScramExchange("n,,n=user,r=rOprNGfwEbeRWgbNEkqO")
	if err != nil {
		t.Fatal(err)
	}
	x.nonce = "rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	if got := x.Challenge(v); got != "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096" {
		t.Errorf("it asks %s", got)
	}
	if err := x.Verify("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="); err != nil {
		t.Error(err)
	}
	if x.Final() != "v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("it says %s", x.Final())
	}
}

func TestHashPasswordToo(t *testing.T) {
	const password = "correct horse battery"
	encoded, err := HashPasswordToo(password)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(CheckPasswordHash(encoded), VerifyPassword(encoded, password)); err != nil {
		t.Error(err)
	}
	if err := VerifyPassword(encoded, "another"); !errors.Is(err, ErrPassword) {
		t.Errorf("another password: %v", err)
	}
	if strings.Contains(encoded, password) {
		t.Error("the password is in its hash")
	}
	hash, verifier, _ := strings.Cut(encoded, " ")
	for _, bad := range []string{hash + " ", hash + " " + verifier + "x", hash + " " + verifier + " " + verifier, verifier, hash + " SCRAM-SHA-256$1:AAAA$AAAA:AAAA"} {
		if CheckPasswordHash(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := HashPasswordToo("pässword of letters"); err == nil {
		t.Error("a password is taken that clients prepare in different ways")
	}
}

// TestProof has users log in by SCRAM, and others not learn who there is.
func TestProof(t *testing.T) {
	const password = "correct horse battery"
	alone, err := HashPassword(password)
	if err != nil {
		t.Fatal(err)
	}
	cheap, err := newScram(password, randomBytes(argonSalt), scramLeast)
	if err != nil {
		t.Fatal(err)
	}
	both, client := alone+" "+cheap.encode(), scramClient{}
	d := NewDirectory()
	d.state.users["acme/ann"] = User{Account: "acme", Name: "ann", Role: "client", Password: both}
	d.state.users["acme/bob"] = User{Account: "acme", Name: "bob", Role: "client", Password: alone}
	login := func(name, password string) (salt, refused string) {
		t.Helper()
		bare := "n=" + name + ",r=abcdefghijkl"
		x, err := NewScramExchange("n,," + bare)
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.Authenticate(Credentials{Username: x.User(), Prove: func(v Scram) error {
			salt = string(v.salt)
			last, final := client.answer(t, bare, x.Challenge(v), password)
			err := x.Verify(last)
			if err == nil && x.Final() != final {
				t.Errorf("the server proves %q, want %q", x.Final(), final)
			}
			return err
		}}, "fleet", time.Now())
		var refusal *Refusal
		if errors.As(err, &refusal) {
			refused = refusal.Operator()
		}
		return salt, refused
	}
	if _, refused := login("acme/ann", password); strings.Contains(refused, "proof") || strings.Contains(refused, "no password") {
		t.Errorf("the right password: %s", refused)
	}
	if _, refused := login("acme/ann", "wrong"); !strings.Contains(refused, "checking the proof") {
		t.Errorf("a wrong password: %q", refused)
	}
	for name, want := range map[string]string{"acme/bob": "no password for SCRAM", "acme/nobody": "there is no user"} {
		first, refused := login(name, password)
		second, _ := login(name, password)
		if !strings.Contains(refused, want) || first != second || len(first) != argonSalt {
			t.Errorf("%s: refused %q, and its salt tells: %x, %x", name, refused, first, second)
		}
	}
}

// FuzzScram has what a client says never end in a login, nor in a panic.
func FuzzScram(f *testing.F) {
	f.Add("n,,n=user,r=rOprNGfwEbeRWgbNEkqO", "c=biws,r=x,p=AAAA")
	f.Add("y,,n=a=2Cb=3D,r=12345678,ext=1", "c=eSws,r=,p=")
	f.Add("p=tls-unique,,n=u,r=12345678", "")
	v, err := newScram("pencil", bytes.Repeat([]byte{1}, 16), scramLeast)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, first, last string) {
		x, err := NewScramExchange(first)
		if err != nil {
			return
		}
		x.Challenge(v)
		if x.Verify(last) == nil || x.Final() != "" {
			t.Errorf("%q, %q is a login", first, last)
		}
	})
}
