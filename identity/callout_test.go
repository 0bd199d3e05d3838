package identity

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nkeys"
)

func TestSentinel(t *testing.T) {
	a := newAuthority(t)
	callout := must[Account](t)(a.CalloutAccount(epoch()))
	s := claimsOf[*jwt.UserClaims](t, must[string](t)(a.Sentinel()))
	deny := jwt.Permission{Deny: jwt.StringList{">"}}
	if !s.BearerToken || s.Expires != 0 || s.IssuerAccount != callout.Public || !reflect.DeepEqual(s.Permissions, jwt.Permissions{Pub: deny, Sub: deny}) {
		t.Errorf("the sentinel is %s", s)
	}
	account := claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(callout, nil, nil, Flows{}, epoch())))
	if !account.DidSign(s) || account.Authorization.AuthUsers.Contains(s.Subject) {
		t.Error("the sentinel passes the callout by, or is not of its account")
	}
}

func TestCalloutService(t *testing.T) {
	a := newAuthority(t)
	token, key, err := a.CalloutService()
	if err != nil {
		t.Fatal(err)
	}
	user := claimsOf[*jwt.UserClaims](t, token)
	want := jwt.Permissions{
		Pub:  jwt.Permission{Deny: jwt.StringList{">"}},
		Sub:  jwt.Permission{Allow: jwt.StringList{"$SYS.REQ.USER.AUTH"}},
		Resp: &jwt.ResponsePermission{MaxMsgs: 1, Expires: time.Minute},
	}
	if user.Subject != must[string](t)(key.PublicKey()) || user.BearerToken || !reflect.DeepEqual(user.Permissions, want) {
		t.Errorf("the service is %s", user)
	}
}

// calloutQuestion is a request as the engine makes it.
func calloutQuestion(t *testing.T, user string, expires time.Time) (request *jwt.AuthorizationRequestClaims, token string) {
	t.Helper()
	server := must[nkeys.KeyPair](t)(nkeys.CreateServer())
	request = jwt.NewAuthorizationRequestClaims("subject")
	request.UserNkey = user
	request.Server = jwt.ServerID{Name: "n1", ID: must[string](t)(server.PublicKey())}
	request.ConnectOptions.Username = "acme/alice"
	request.Expires = expires.Unix()
	return request, must[string](t)(request.Encode(server))
}

func TestOpenCallout(t *testing.T) {
	a := newAuthority(t)
	key := must[nkeys.KeyPair](t)(a.CalloutKey())
	public := must[string](t)(key.PublicKey())
	server := must[nkeys.KeyPair](t)(nkeys.CreateCurveKeys())
	serverPublic := must[string](t)(server.PublicKey())
	user, _ := newUserKey(t)
	ask := func(token string) []byte { return must[[]byte](t)(server.Seal([]byte(token), public)) }

	_, good := calloutQuestion(t, user, time.Now().Add(time.Minute))
	req := must[*jwt.AuthorizationRequestClaims](t)(a.OpenCallout(ask(good), serverPublic))
	if req.UserNkey != user || req.ConnectOptions.Username != "acme/alice" || req.Server.Name != "n1" {
		t.Errorf("the request is %s", req)
	}
	_, late := calloutQuestion(t, user, time.Now().Add(-time.Minute))
	_, nobody := calloutQuestion(t, "nobody", time.Now().Add(time.Minute))
	for want, data := range map[string][]byte{
		"opening a callout request":                             []byte(good),
		"decoding a callout request":                            ask("eyJ"),
		"checking a callout request: claim is expired":          ask(late),
		`checking a callout request: User nkey "nobody" is not`: ask(nobody),
	} {
		_, err := a.OpenCallout(data, serverPublic)
		wantError(t, err, want)
	}
}

func TestCalloutResponse(t *testing.T) {
	a := newAuthority(t)
	now := epoch()
	callout := must[Account](t)(a.CalloutAccount(now))
	calloutClaims := claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(callout, nil, nil, Flows{}, epoch())))
	target := newAccount(t, a, "acme")
	targetClaims := claimsOf[*jwt.AccountClaims](t, must[string](t)(a.AccountJWT(target, nil, nil, Flows{}, epoch())))
	user, _ := newUserKey(t)
	req, _ := calloutQuestion(t, user, now.Add(time.Minute))
	p := Principal{Account: "acme", Name: "alice", Kind: KindUser, Expires: now.Add(time.Hour)}

	// What the engine checks of the answer.
	check := func(token string) *jwt.AuthorizationResponseClaims {
		r := claimsOf[*jwt.AuthorizationResponseClaims](t, token)
		if r.Subject != user || r.Audience != req.Server.ID || r.IssuerAccount != callout.Public || !calloutClaims.SigningKeys.Contains(r.Issuer) {
			t.Errorf("the answer is %s", r)
		}
		return r
	}
	r := check(must[string](t)(a.CalloutResponse(req, target, p, now)))
	session := claimsOf[*jwt.UserClaims](t, r.Jwt)
	if session.Subject != user || session.IssuerAccount != target.Public || !targetClaims.DidSign(session) || session.Name != "alice" ||
		session.Expires != p.Expires.Unix() || len(session.AllowedConnectionTypes) != 0 {
		t.Errorf("the session is %s", session)
	}
	if r := check(must[string](t)(a.CalloutRefusal(req, "user denied", now))); r.Error != "user denied" || r.Jwt != "" {
		t.Errorf("the refusal is %s", r)
	}
	if r := check(must[string](t)(a.CalloutRefusal(req, "", now))); !strings.Contains(r.Error, "unauthorized") {
		t.Errorf("the refusal is %s", r)
	}
	p.Account = "other"
	_, err := a.CalloutResponse(req, target, p, now)
	wantError(t, err, "answering a callout: signing a session")
}
