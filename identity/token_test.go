package identity

import (
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"
)

var testHash = strings.Repeat("0123456789abcdef", 4)

func TestToken(t *testing.T) {
	now := epoch()
	token, text, err := NewToken(KindUser, testHash, "acme", "alice", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	if parsed.AuthorityHash != testHash[:32] || parsed.ID != token.ID || len(parsed.Secret) != 32 {
		t.Errorf("the token %q is parsed as %q, %q, %q", text, parsed.AuthorityHash, parsed.ID, parsed.Secret)
	}
	if parsed.InboxPrefix() != "_INBOX."+token.ID {
		t.Errorf("the inbox prefix is %q", parsed.InboxPrefix())
	}
	if token.Account != "acme" || token.Name != "alice" || token.Kind != KindUser || !token.Created.Equal(now) || !token.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("the token is %+v", token)
	}
	if strings.Contains(string(toJSON(t, token)), parsed.Secret) {
		t.Error("the record holds the secret")
	}
	if err := token.Check(parsed.Secret, KindUser, now); err != nil {
		t.Error(err)
	}
	used, revoked, all := token, token, token
	used.Used, revoked.Revoked, all.Used, all.Revoked = true, true, true, true
	for name, c := range map[string]struct {
		token  Token
		secret string
		kind   Kind
		at     time.Time
		want   error
	}{
		"secret":        {token, strings.Repeat("a", 32), KindUser, now, ErrTokenSecret},
		"no secret":     {token, "", KindUser, now, ErrTokenSecret},
		"secret first":  {all, "", KindUser, now, ErrTokenSecret},
		"used":          {used, parsed.Secret, KindUser, now, ErrTokenUsed},
		"revoked":       {revoked, parsed.Secret, KindUser, now, ErrTokenRevoked},
		"revoked first": {all, parsed.Secret, KindUser, now, ErrTokenRevoked},
		"expired":       {token, parsed.Secret, KindUser, now.Add(time.Hour), ErrTokenExpired},
		"just in time":  {token, parsed.Secret, KindUser, now.Add(time.Hour - 1), nil},
		"kind":          {token, parsed.Secret, KindNode, now, ErrTokenKind},
		"empty record":  {Token{}, "", "", now, ErrTokenSecret},
	} {
		if err := c.token.Check(c.secret, c.kind, c.at); !errors.Is(err, c.want) {
			t.Errorf("%s: the error is %v, want %v", name, err, c.want)
		}
	}
}

func TestNewTokenRefuses(t *testing.T) {
	now := epoch()
	for want, c := range map[string]struct {
		kind                Kind
		hash, account, name string
		life                time.Duration
	}{
		"a node is in no account":             {KindNode, testHash, "acme", "", 1},
		"checking the user":                   {KindUser, testHash, "acme", "", 1}, // it would be any user's
		"checking the account":                {KindTarget, testHash, "", "", 1},
		"only a user, node, leaf, gateway or": {KindToken, testHash, "acme", "", 1},
		`for a "service"`:                     {KindService, testHash, "acme", "", 1},
		`name "a b"`:                          {KindLeaf, testHash, "acme", "a b", 1},
		`"0123" is not an authority's`:        {KindTarget, "0123", "acme", "", 1},
		`is not an authority's hash`:          {KindNode, strings.ToUpper(testHash), "", "", 1},
		"its life of 0s":                      {KindNode, testHash, "", "", 0},
	} {
		_, text, err := NewToken(c.kind, c.hash, c.account, c.name, c.life, now)
		wantError(t, err, want)
		if text != "" {
			t.Errorf("%s: there is a text", want)
		}
	}
}

func TestParseTokenRefuses(t *testing.T) {
	_, text, err := NewToken(KindNode, testHash, "", "", time.Hour, epoch())
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(text, ".")
	for want, bad := range map[string]string{
		"form":                                       "",
		"does not have the form fb1":                 "fb2." + strings.Join(parts[1:], "."),
		"<authority>.<id>.<secret>":                  text + ".x",
		"authority is not 32 hexadecimal digits":     strings.Replace(text, parts[1], parts[1][1:], 1),
		"authority is not 32 hexadecimal":            strings.Replace(text, parts[1], strings.ToUpper(parts[1]), 1),
		"id is not 16 hexadecimal digits":            strings.Replace(text, parts[2], parts[2][1:], 1),
		"id is not 16 hexadecimal":                   strings.Replace(text, parts[2], "x"+parts[2][1:], 1),
		"secret is damaged":                          text[:len(text)-1],
		"its secret is damaged":                      text[:len(text)-1] + "1",
		"parsing a token: its secret is damaged":     text[:len(text)-1] + "\n",
		"parsing a token: it does not have the form": strings.Repeat("x", 1<<16),
	} {
		parsed, err := ParseToken(bad)
		wantError(t, err, want)
		if parsed.Secret != "" || err != nil && strings.Contains(err.Error(), parts[3][:31]) {
			t.Errorf("the error shows the secret: %v", err)
		}
	}
}

func TestVerifyServer(t *testing.T) {
	now := epoch()
	a, other := newAuthority(t), newAuthority(t)
	_, text, err := NewToken(KindNode, a.Hash(), "", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	token, err := ParseToken(text)
	if err != nil {
		t.Fatal(err)
	}
	_, server, err := a.SignNode(newCSR(t), "n1", []string{"n1.example"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	_, foreign, err := other.SignNode(newCSR(t), "n1", []string{"n1.example"}, time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	user, err := a.SignUser(newCSR(t), "acme", "alice", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	chain, foreignChain, userChain := parsePEM(t, server), parsePEM(t, foreign), parsePEM(t, user)
	if err := token.VerifyServer(chain, now); err != nil {
		t.Error(err)
	}
	wantError(t, token.VerifyServer(chain[:1], now), "it showed 1 certificates")
	wantError(t, token.VerifyServer(foreignChain, now), "of another fleet")
	// The authority's certificates are public: anybody can show them.
	for name, leaf := range map[string]*x509.Certificate{"foreign": foreignChain[0], "a user's": userChain[0]} {
		if token.VerifyServer([]*x509.Certificate{leaf, chain[1], chain[2]}, now) == nil {
			t.Errorf("a %s certificate passes for a server", name)
		}
	}
	if token.VerifyServer(chain, now.Add(2*time.Hour)) == nil {
		t.Error("an expired certificate passes")
	}
}

func FuzzParseToken(f *testing.F) {
	_, text, err := NewToken(KindNode, testHash, "", "", time.Hour, epoch())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add("")
	f.Add("fb1...")
	f.Add("fb1.é.\x00.")
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := ParseToken(text)
		if err != nil {
			return
		}
		if again := strings.Join([]string{"fb1", parsed.AuthorityHash, parsed.ID, parsed.Secret}, "."); again != text {
			t.Errorf("%q is read as %q", text, again)
		}
	})
}
