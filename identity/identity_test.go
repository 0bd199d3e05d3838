package identity

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func TestCheckName(t *testing.T) {
	for name, want := range map[string]string{
		"a":                       "",
		"Node-7_x":                "",
		"0":                       "",
		strings.Repeat("n", 63):   "",
		"":                        "name is empty",
		strings.Repeat("n", 64):   `name "` + strings.Repeat("n", 64) + `" is 64 bytes long and 63 are allowed`,
		strings.Repeat("n", 1000): `name "` + strings.Repeat("n", 64) + `"... is 1000 bytes long and 63 are allowed`,
		"-a":                      `name "-a" does not start with a letter or digit`,
		"_a":                      `name "_a" does not start with a letter or digit`,
		".":                       `name "." does not start with a letter or digit`,
		"a.b":                     `name "a.b" has a character at byte 2 that is not a letter, digit, - or _`,
		"a/b":                     `name "a/b" has a character at byte 2 that is not a letter, digit, - or _`,
		"a>":                      `name "a>" has a character at byte 2 that is not a letter, digit, - or _`,
		"a*":                      `name "a*" has a character at byte 2 that is not a letter, digit, - or _`,
		"a\n\x1b[2J":              `name "a\n\x1b[2J" has a character at byte 2 that is not a letter, digit, - or _`,
		"ä":                       `name "\u00e4" does not start with a letter or digit`,
		"a\xff":                   `name "a\xff" has a character at byte 2 that is not a letter, digit, - or _`,
	} {
		if got := message(CheckName(name)); got != want {
			t.Errorf("CheckName(%q) is %q, want %q", name, got, want)
		}
	}
}

func TestSplitName(t *testing.T) {
	for full, want := range map[string]string{
		"acme/alice":  "",
		"alice":       `splitting "alice": it is not account/name`,
		"/alice":      `checking the account of "/alice": name is empty`,
		"acme/":       `checking the name of "acme/": name is empty`,
		"acme/a/lice": `checking the name of "acme/a/lice": name "a/lice" has a character at byte 2 that is not a letter, digit, - or _`,
	} {
		account, name, err := SplitName(full)
		if got := message(err); got != want {
			t.Errorf("SplitName(%q) is %q, want %q", full, got, want)
		}
		if err == nil && account+"/"+name != full {
			t.Errorf("SplitName(%q) is %q and %q", full, account, name)
		}
		if err != nil && account+name != "" {
			t.Errorf("SplitName(%q) fails and is %q and %q", full, account, name)
		}
	}
}

func TestCheckAccountName(t *testing.T) {
	for name, ok := range map[string]bool{
		"acme": true, "sys": true, "SYS": false, "FLEET": false, "CALLOUT": false, "node": false, "a b": false,
	} {
		if err := CheckAccountName(name); (err == nil) != ok {
			t.Errorf("CheckAccountName(%q) is %v", name, err)
		}
	}
}

// What follows is shared by the tests.

// epoch is a time at which nothing made by the tests has expired.
// began is when the tests did: they compare times of which tokens hold the seconds.
var began = time.Now().Truncate(time.Second)

func epoch() time.Time { return began }

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func wantError(t *testing.T, err error, part string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), part) {
		t.Errorf("the error is %v, want one with %q", err, part)
	}
}

// wantRefusal wants an error that tells the client nothing and the operator part.
func wantRefusal(t *testing.T, err error, part string) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) || !errors.Is(err, ErrUnauthorized) {
		t.Errorf("the error is %v, want a refusal", err)
		return
	}
	if r.Error() != "unauthorized" {
		t.Errorf("the client is told %q", r.Error())
	}
	if !strings.Contains(r.Operator(), part) {
		t.Errorf("the operator is told %q, want %q", r.Operator(), part)
	}
}

func must[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func newAuthority(t testing.TB) *Authority {
	t.Helper()
	a, _, err := NewAuthority("prod", epoch())
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func newAccount(t testing.TB, a *Authority, name string) Account {
	t.Helper()
	return must[Account](t)(a.NewAccount(name, Limits{}, epoch()))
}

func newUserKey(t testing.TB) (public string, seed []byte) {
	t.Helper()
	pair := must[nkeys.KeyPair](t)(nkeys.CreateUser())
	return must[string](t)(pair.PublicKey()), must[[]byte](t)(pair.Seed())
}

func newCSR(t testing.TB) *x509.CertificateRequest {
	t.Helper()
	return must[*x509.CertificateRequest](t)(NewCSR(must[*ecdsa.PrivateKey](t)(NewKey())))
}

func parsePEM(t testing.TB, data []byte) []*x509.Certificate {
	t.Helper()
	var certs []*x509.Certificate
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			return certs
		}
		certs = append(certs, must[*x509.Certificate](t)(x509.ParseCertificate(block.Bytes)))
		data = rest
	}
}

// claimsOf decodes a JWT and demands that the library finds nothing wrong.
func claimsOf[T jwt.Claims](t testing.TB, token string) T {
	t.Helper()
	claims, err := jwt.Decode(token)
	if err != nil {
		t.Fatal(err)
	}
	typed, ok := claims.(T)
	if !ok {
		t.Fatalf("the JWT is a %T", claims)
	}
	var problems jwt.ValidationResults
	claims.Validate(&problems)
	for _, p := range problems.Issues {
		t.Errorf("the JWT is not valid: %s", p.Description)
	}
	return typed
}

func toJSON(t testing.TB, v any) []byte {
	t.Helper()
	return must[[]byte](t)(json.Marshal(v))
}
