package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// fleet is a Directory with an account acme and a user in every situation.
func fleetDirectory(t *testing.T) *Directory {
	t.Helper()
	d := NewDirectory()
	apply(t, d, "account.acme", Account{})
	apply(t, d, "account.FLEET", Account{})
	apply(t, d, "role.inside", Role{Listeners: []string{"nats", "mqtt"}, Networks: []string{"10.0.0.0/8"}, Limits: Limits{Payload: 9}})
	apply(t, d, "role.broken", Role{Permissions: Permissions{Publish: Rule{Allow: []string{"a..b"}}}})
	password := cheapHash("hunter2")
	for name, u := range map[string]User{
		"acme.alice":   {Role: "client", Password: password},
		"acme.keyless": {Role: "client"},
		"acme.brief":   {Role: "client", Password: password, Expires: time.Minute, Kind: KindLeaf},
		"acme.inside":  {Role: "inside", Password: password},
		"acme.broken":  {Role: "broken", Password: password},
		"acme.denied":  {Role: "client", Password: password, Denied: true, DeniedAt: time.Unix(0, 0)},
		"acme.lost":    {Role: "nothing", Password: password},
		"acme.boss":    {Role: "admin", Password: password},
		"FLEET.boss":   {Role: "admin", Password: password},
		"FLEET.spy":    {Role: "client", Password: password},
		"gone.alice":   {Role: "client", Password: password},
		"acme.damaged": {Role: "client", Password: "$argon2id$damaged"},
	} {
		apply(t, d, "user."+name, u)
	}
	return d
}

func TestAuthenticatePassword(t *testing.T) {
	d := fleetDirectory(t)
	now := epoch()
	login := func(username string) Credentials {
		return Credentials{Username: username, Password: "hunter2", Listener: "nats", Remote: "10.1.2.3:99"}
	}
	p := must[Principal](t)(d.Authenticate(login("acme/alice"), "prod", now))
	client, _ := d.Role("client")
	want := Principal{
		Account: "acme", Name: "alice", Kind: KindUser, Role: "client",
		Permissions: client.Permissions, Expires: now.Add(24 * time.Hour),
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("the principal is %+v, want %+v", p, want)
	}
	if p := must[Principal](t)(d.Authenticate(login("acme/brief"), "prod", now)); p.Kind != KindLeaf || !p.Expires.Equal(now.Add(time.Minute)) {
		t.Errorf("the principal is %+v", p)
	}
	p = must[Principal](t)(d.Authenticate(login("acme/inside"), "prod", now))
	want = Principal{
		Account: "acme", Name: "inside", Kind: KindUser, Role: "inside", Limits: Limits{Payload: 9},
		Listeners: []string{"nats", "mqtt"}, Networks: []string{"10.0.0.0/8"},
	}
	if !reflect.DeepEqual(p, want) {
		t.Errorf("the principal is %+v, want %+v", p, want)
	}
	if p := must[Principal](t)(d.Authenticate(login("FLEET/boss"), "prod", now)); p.Role != "admin" {
		t.Errorf("the principal is %+v", p)
	}

	with := func(c Credentials, change func(*Credentials)) Credentials {
		change(&c)
		return c
	}
	for want, c := range map[string]Credentials{
		"no credentials were presented":        {Listener: "nats"},
		`there is no user "acme/nobody"`:       login("acme/nobody"),
		`splitting "alice": it is not account`: login("alice"),
		`checking the password of "acme/alice": wrong password`: with(login("acme/alice"), func(c *Credentials) {
			c.Password = "hunter3"
		}),
		`password of "acme/alice": wrong`:                    with(login("acme/alice"), func(c *Credentials) { c.Password = "" }),
		`user "acme/keyless" has no password`:                login("acme/keyless"),
		`of "acme/damaged": verifying a password: the hash`:  login("acme/damaged"),
		`user "acme/denied" is denied since 1970-01-01T00:0`: login("acme/denied"),
		`password of "acme/denied": wrong password`: with(login("acme/denied"), func(c *Credentials) {
			c.Password = "hunter3"
		}),
		`there is no account "gone"`:         login("gone/alice"),
		`role "nothing", which does not`:     login("acme/lost"),
		`role "admin", which cannot be had`:  login("acme/boss"),
		`role "client", which cannot be had`: login("FLEET/spy"),
		`checking user "acme/broken"`:        login("acme/broken"),
		`by listener "amqp", which role "in`: with(login("acme/inside"), func(c *Credentials) { c.Listener = "amqp" }),
		`from "192.0.2.1:9", which role "in`: with(login("acme/inside"), func(c *Credentials) { c.Remote = "192.0.2.1:9" }),
		`came from "pipe", which role`:       with(login("acme/inside"), func(c *Credentials) { c.Remote = "pipe" }),
	} {
		p, err := d.Authenticate(c, "prod", now)
		wantRefusal(t, err, want)
		if p.Account != "" || strings.Contains(err.(*Refusal).Operator(), "hunter") {
			t.Errorf("%s: %+v, %v", want, p, err)
		}
	}
}

func TestAuthenticateWaits(t *testing.T) {
	d := fleetDirectory(t)
	var wg sync.WaitGroup
	for range 4 * maxPasswords {
		wg.Go(func() {
			c := Credentials{Username: "acme/alice", Password: "hunter2"}
			if _, err := d.Authenticate(c, "prod", epoch()); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if len(d.passwords) != 0 {
		t.Error("a place is not given back")
	}
}

func TestAuthenticateCertificate(t *testing.T) {
	now := epoch()
	a, own := newAuthority(t), newAuthority(t)
	d := fleetDirectory(t)
	issue := func(from *Authority, account, name string) *x509.Certificate {
		return parsePEM(t, must[[]byte](t)(from.SignUser(newCSR(t), account, name, time.Hour, now)))[0]
	}
	show := func(c *x509.Certificate) Credentials {
		return Credentials{
			TLS:      &tls.ConnectionState{PeerCertificates: []*x509.Certificate{c}, VerifiedChains: [][]*x509.Certificate{{c}}},
			Listener: "nats", Remote: "10.1.2.3:99",
		}
	}
	alice := issue(a, "acme", "alice")
	p := must[Principal](t)(d.Authenticate(show(alice), "prod", now))
	if p.String() != "acme/alice" || p.Role != "client" || !p.Expires.Equal(alice.NotAfter) {
		t.Errorf("the principal is %+v", p)
	}
	named := show(alice)
	named.Username = "acme/alice"
	if _, err := d.Authenticate(named, "prod", now); err != nil {
		t.Error(err)
	}
	if p := must[Principal](t)(d.Authenticate(show(issue(a, "acme", "inside")), "prod", now)); !p.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("without a life, the session ends at %s", p.Expires)
	}
	if p := must[Principal](t)(d.Authenticate(show(issue(a, "acme", "brief")), "prod", now)); !p.Expires.Equal(now.Add(time.Minute)) {
		t.Errorf("with a short life, the session ends at %s", p.Expires)
	}

	// A certificate of another authority, registered for a user.
	foreign, shared := issue(own, "any", "thing"), issue(own, "any", "thing")
	foreign.URIs, shared.URIs = nil, nil
	registered := func(c ...*x509.Certificate) User {
		u := User{Role: "client"}
		for _, c := range c {
			u.Certificates = append(u.Certificates, UserCertificate{SHA256: KeyHash(c), Registered: true})
		}
		return u
	}
	wantRefused := func(c Credentials, part string) {
		t.Helper()
		_, err := d.Authenticate(c, "prod", now)
		wantRefusal(t, err, part)
	}
	wantRefused(show(foreign), "is of no user")
	apply(t, d, "user.acme.robot", registered(foreign, shared))
	if p := must[Principal](t)(d.Authenticate(show(foreign), "prod", now)); p.String() != "acme/robot" {
		t.Errorf("the principal is %q", p)
	}
	apply(t, d, "user.acme.twin", registered(shared))
	wantRefused(show(shared), "is registered for 2 users")
	apply(t, d, "user.acme.twin", nil)
	if _, err := d.Authenticate(show(shared), "prod", now); err != nil {
		t.Error(err)
	}
	issued := registered(foreign)
	issued.Certificates[0].Registered = false
	apply(t, d, "user.acme.robot", issued)
	wantRefused(show(foreign), "is of no user")

	mismatch := show(alice)
	mismatch.Username = "acme/bob"
	wantRefused(mismatch, `of "acme/alice" and the username is "acme/bob"`)
	wantRefused(show(issue(a, "acme", "denied")), "is denied")
	wantRefused(show(issue(a, "acme", "nobody")), `there is no user "acme/nobody"`)
	wantRefused(show(issue(a, "gone", "alice")), `there is no account "gone"`)
	unverified := show(alice)
	unverified.TLS.VerifiedChains = nil
	wantRefused(unverified, "is of no user")
	unverified.TLS.VerifiedChains = [][]*x509.Certificate{{}}
	wantRefused(unverified, "is of no user")
	if _, err := d.Authenticate(show(alice), "test", now); err == nil {
		t.Error("the certificate of another fleet is accepted")
	}
	if _, err := d.Authenticate(show(alice), "prod", now.Add(2*time.Hour)); err == nil || !strings.Contains(err.(*Refusal).Operator(), "expired at") {
		t.Errorf("an expired certificate: %v", err)
	}

	// A certificate of nobody leaves the other ways open.
	both := show(foreign)
	both.Username, both.Password = "acme/alice", "hunter2"
	if p := must[Principal](t)(d.Authenticate(both, "prod", now)); p.String() != "acme/alice" {
		t.Errorf("the principal is %q", p)
	}
}

func TestAuthenticateToken(t *testing.T) {
	d := fleetDirectory(t)
	now := epoch()
	record, text, err := NewToken(KindNode, testHash, "", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	_, unknown, err := NewToken(KindNode, testHash, "", "", time.Hour, now)
	if err != nil {
		t.Fatal(err)
	}
	apply(t, d, "token."+record.ID, record)
	p := must[Principal](t)(d.Authenticate(Credentials{Token: text}, "prod", now))
	want := Principal{
		Account: "FLEET", Name: record.ID, Kind: KindToken, Expires: p.Expires,
		Permissions: Permissions{
			Publish:   Rule{Allow: []string{"enroll.*." + record.ID, "preflight." + record.ID}},
			Subscribe: Rule{Allow: []string{"_INBOX." + record.ID + ".>"}},
		},
	}
	if !reflect.DeepEqual(p, want) || !p.Expires.Equal(record.Expires) {
		t.Errorf("the principal is %+v, want %+v", p, want)
	}
	if err := p.Validate(); err != nil {
		t.Error(err)
	}
	refused := func(token, part string, cause error, at time.Time) {
		t.Helper()
		_, err := d.Authenticate(Credentials{Token: token}, "prod", at)
		wantRefusal(t, err, part)
		if cause != nil && !errors.Is(err, cause) {
			t.Errorf("the cause is not %v", cause)
		}
		if strings.Contains(err.(*Refusal).Operator(), text[len(text)-32:]) {
			t.Error("the refusal shows the secret")
		}
	}
	refused("x", "reading the token", nil, now)
	refused(unknown, "there is no token", nil, now)
	refused(text[:len(text)-32]+strings.Repeat("a", 32), "wrong secret", ErrTokenSecret, now)
	refused(text, "has expired", ErrTokenExpired, now.Add(time.Hour))
	record.Used = true
	apply(t, d, "token."+record.ID, record)
	// Who has the secret of a used token is told so by the enrollment itself.
	if p := must[Principal](t)(d.Authenticate(Credentials{Token: text}, "prod", now)); p.Name != record.ID {
		t.Errorf("the principal is %+v", p)
	}
	record.Revoked = true
	apply(t, d, "token."+record.ID, record)
	refused(text, "has been revoked", ErrTokenRevoked, now)
}
