package identity

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestBearer(t *testing.T) {
	now := time.Now()
	d := NewDirectory()
	text, hash, err := NewBearer("acme", "alice")
	if err != nil || !IsBearer(text) || CheckBearerHash(hash) != nil || strings.Contains(text, hash) {
		t.Fatal(hash, err)
	}
	user := User{Account: "acme", Name: "alice", Role: RoleClient, Bearer: &Bearer{SecretHash: hash, Created: now, Expires: now.Add(time.Hour)}}
	apply(t, d, "account.acme", Account{Name: "acme", ID: "1"})
	apply(t, d, "user.acme.alice", user)
	apply(t, d, "user.acme.bob", User{Account: "acme", Name: "bob", Role: RoleClient})
	try := func(c Credentials, at time.Time) (Principal, error) { return d.Authenticate(c, "fleet", at) }
	for _, name := range []string{"", "acme/alice"} {
		p, err := try(Credentials{Bearer: text, Username: name}, now)
		if err != nil || p.String() != "acme/alice" || !p.Expires.Equal(now.Add(time.Hour)) {
			t.Errorf("%+v %v", p, err)
		}
	}
	for what, c := range map[string]Credentials{
		"another's name":   {Bearer: text, Username: "acme/bob"},
		"another secret":   {Bearer: text[:len(text)-1] + string('a'+(text[len(text)-1]-'a'+1)%2)},
		"a short secret":   {Bearer: text[:len(text)-1]},
		"no token":         {Bearer: strings.Replace(text, "alice", "bob", 1)},
		"no user":          {Bearer: strings.Replace(text, "alice", "eve", 1)},
		"no form":          {Bearer: "fbb1.acme"},
		"a name like that": {Bearer: strings.Replace(text, "alice", "a b", 1)},
	} {
		if p, err := try(c, now); !errors.Is(err, ErrUnauthorized) {
			t.Errorf("%s: %+v %v", what, p, err)
		} else if strings.Contains(fmt.Sprintf("%v %+v", err, c), text[len(text)-16:]) {
			t.Errorf("%s: the secret is shown", what)
		}
	}
	if _, err := try(Credentials{Bearer: text}, now.Add(time.Hour)); !errors.Is(err, ErrTokenExpired) {
		t.Errorf("expired: %v", err)
	}
	user.Denied = true
	apply(t, d, "user.acme.alice", user)
	if _, err := try(Credentials{Bearer: text}, now); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("denied: %v", err)
	}
	if _, _, err := NewBearer("acme", "a b"); err == nil || CheckBearerHash("x") == nil {
		t.Error("a bad name, or a bad hash, is taken")
	}
}
