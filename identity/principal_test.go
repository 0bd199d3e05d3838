package identity

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
)

func TestPrincipal(t *testing.T) {
	p := Principal{Account: "acme", Name: "alice", Kind: KindUser}
	if p.String() != "acme/alice" || p.LogValue().String() != "acme/alice" {
		t.Errorf("the principal is %q and logs %q", p, p.LogValue())
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	err := Principal{
		Account: "a b", Name: "x", Kind: "robot",
		Permissions: Permissions{Publish: Rule{Allow: []string{"a b"}}},
		Limits:      Limits{Data: -1},
		Networks:    []string{"nowhere"},
	}.Validate()
	for _, part := range []string{"account", `kind "robot" is not`, "publish.allow", "data is negative", "nowhere"} {
		wantError(t, err, part)
	}
	for _, k := range []Kind{KindUser, KindNode, KindService, KindLeaf, KindTarget, KindToken} {
		if err := k.Validate(); err != nil {
			t.Error(err)
		}
	}
}

func TestUserLife(t *testing.T) {
	role := Role{Expires: 2}
	if got := (User{Expires: 1}).Life(role); got != 1 {
		t.Errorf("a user's own life is %d", got)
	}
	if got := (User{}).Life(role); got != 2 {
		t.Errorf("the role's life is %d", got)
	}
}

// TestSecretsAreNotPrinted prints everything that holds a secret in every way.
func TestSecretsAreNotPrinted(t *testing.T) {
	a, offline, err := NewAuthority("prod", epoch())
	if err != nil {
		t.Fatal(err)
	}
	_, token, err := NewToken(KindNode, a.Hash(), "", "", 1, epoch())
	if err != nil {
		t.Fatal(err)
	}
	text, err := ParseToken(token)
	if err != nil {
		t.Fatal(err)
	}
	seed := string(must[[]byte](t)(a.signing.Seed()))
	const hidden = "hunter2hunter2"
	secrets := []string{
		hidden, text.Secret, seed, string(a.master),
		string(offline.OperatorSeed), string(offline.SigningSeed),
	}
	for _, s := range secrets[:] {
		secrets = append(secrets, fmt.Sprintf("%x", s), fmt.Sprintf("%X", s), strings.Trim(fmt.Sprint([]byte(s)), "[]"))
	}
	credentials := Credentials{
		TLS:      &tls.ConnectionState{PeerCertificates: []*x509.Certificate{a.clients.cert}},
		Username: "acme/alice", Password: hidden, Token: token, Listener: "nats", Remote: "10.0.0.1:99",
	}
	user := User{Account: "acme", Name: "alice", Password: hidden}
	for _, v := range []any{credentials, &credentials, user, &user, text, &text, offline, &offline, a, struct{ A any }{a}} {
		var printed bytes.Buffer
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%t"} {
			fmt.Fprintf(&printed, verb+"\n", v)
		}
		logTo := []slog.Handler{slog.NewTextHandler(&printed, nil), slog.NewJSONHandler(&printed, nil)}
		for _, h := range logTo {
			slog.New(h).Info("login", "value", v, slog.Group("in", "value", v))
		}
		if s, ok := v.(fmt.Stringer); ok {
			printed.WriteString(s.String())
		}
		if g, ok := v.(fmt.GoStringer); ok {
			printed.WriteString(g.GoString())
		}
		for _, secret := range secrets {
			if bytes.Contains(printed.Bytes(), []byte(secret)) {
				t.Errorf("%T prints a secret: %s", v, &printed)
			}
		}
	}
	for _, v := range []any{credentials, text, a} {
		data := must[[]byte](t)(json.Marshal(v))
		for _, secret := range secrets {
			if bytes.Contains(data, []byte(secret)) {
				t.Errorf("%T encodes a secret: %s", v, data)
			}
		}
	}
	var none *Authority
	if got := fmt.Sprint(none); got != "no authority" {
		t.Errorf("a nil authority prints %q", got)
	}
}

func TestCredentialsString(t *testing.T) {
	want := `certificate, username "acme/alice", password, token from "10.0.0.1:99" on "nats"`
	got := Credentials{
		TLS:      &tls.ConnectionState{PeerCertificates: []*x509.Certificate{{}}},
		Username: "acme/alice", Password: "p", Token: "t", Listener: "nats", Remote: "10.0.0.1:99",
	}.String()
	if got != want {
		t.Errorf("the credentials are %s, want %s", got, want)
	}
	if got, want := (Credentials{}).String(), `nothing from "" on ""`; got != want {
		t.Errorf("no credentials are %s, want %s", got, want)
	}
}

func TestRefusal(t *testing.T) {
	err := error(refuse("checking token %q: %w", "x", ErrTokenUsed))
	if !errors.Is(err, ErrTokenUsed) || errors.Is(err, ErrTokenExpired) {
		t.Error("the cause of a refusal is not found")
	}
	wantRefusal(t, err, `checking token "x": token has been used`)
	wantRefusal(t, refuse("because"), "because")
	wantRefusal(t, &Refusal{Reason: "made elsewhere"}, "made elsewhere")
}
