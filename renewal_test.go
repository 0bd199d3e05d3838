package fleetbus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// keyOf is the public key of a creds file.
func keyOf(t *testing.T, creds string) string {
	t.Helper()
	data, err := os.ReadFile(creds)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := nkeys.ParseDecoratedNKey(data)
	if err != nil {
		t.Fatal(err)
	}
	public, err := pair.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// renewedKey is the key that a renewal over nc is for.
func renewedKey(t *testing.T, nc *nats.Conn) string {
	t.Helper()
	reply, err := admin.Renew(limited(t, 10*time.Second), nc)
	if err != nil {
		t.Fatal(err)
	}
	claims, err := jwt.DecodeUserClaims(reply.JWT)
	if err != nil {
		t.Fatal(err)
	}
	return claims.Subject
}

func TestRenew(t *testing.T) {
	s := fleetbustest.Start(t)
	alice, bob := s.Creds("acme", "alice"), s.Creds("acme", "bob")
	connect := func(creds string) *nats.Conn {
		nc, err := s.Connect(creds, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		return nc
	}
	nc := connect(alice)
	before, err := s.Admin().User(limited(t, 10*time.Second), "acme/alice")
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if got := renewedKey(t, nc); got != keyOf(t, alice) {
			t.Errorf("the renewal is for the key %s, not %s", got, keyOf(t, alice))
		}
	}
	after, err := s.Admin().User(limited(t, 10*time.Second), "acme/alice")
	if err != nil || !after.Keys[0].Expires.Equal(before.Keys[0].Expires) {
		t.Errorf("a fresh key was written again: %+v, %v", after.Keys, err)
	}

	// Who may publish nothing else may do this.
	for _, role := range []string{"machine", "auditor"} {
		s.User(admin.UserRequest{Name: "acme/" + role, Role: role})
		creds := s.Creds("acme", role)
		if got := renewedKey(t, connect(creds)); got != keyOf(t, creds) {
			t.Errorf("the renewal of a %s is for another key", role)
		}
	}

	// Nobody is renewed in the name of another.
	forged := nats.NewMsg(identity.RenewSubject)
	forged.Header.Set(identity.RenewInfoHeader, fmt.Sprintf(`{"acc":%q,"user":%q}`, "A", keyOf(t, alice)))
	answer, err := connect(bob).RequestMsgWithContext(limited(t, 10*time.Second), forged)
	if err != nil {
		t.Fatal(err)
	}
	var reply admin.Reply
	var renewed admin.UserReply
	if err := errors.Join(json.Unmarshal(answer.Data, &reply), json.Unmarshal(reply.Data, &renewed)); err != nil || renewed.User.Name != "bob" {
		t.Errorf("who claims to be alice is told %s, %v", answer.Data, err)
	}
	acme, err := s.Admin().Account(limited(t, 10*time.Second), "acme")
	if err != nil {
		t.Fatal(err)
	}
	stranger := connect(s.Creds("other", "eve"))
	if msg, err := stranger.RequestWithContext(limited(t, 10*time.Second), "renew."+acme.Public, nil); !errors.Is(err, nats.ErrNoResponders) {
		t.Errorf("a request from another account was answered: %v, %v", msg, err)
	}
	byName, err := byPassword(s, "acme/carol", s.Password(admin.UserRequest{Name: "acme/carol"}))
	if err != nil {
		t.Fatal(err)
	}
	defer byName.Close()
	if _, err := admin.Renew(limited(t, 10*time.Second), byName); !errors.Is(err, &admin.Error{Code: admin.Denied}) {
		t.Errorf("a password was renewed: %v", err)
	}
}

// TestRenewBeforeTheEnd renews credentials that are about to end, over another
// node than the one that made them.
func TestRenewBeforeTheEnd(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3)
	key, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nodes[0].Admin().AddAccount(limited(t, 10*time.Second), admin.AccountRequest{Name: "acme"}); err != nil {
		t.Fatal(err)
	}
	first, err := nodes[0].Admin().AddUser(limited(t, 10*time.Second), admin.UserRequest{Name: "acme/alice", Key: public, Expires: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	sign := nats.UserJWT(func() (string, error) { return first.JWT, nil }, key.Sign)
	nc, err := nats.Connect(nodes[1].URL(), nats.Secure(nodes[1].TLS()), sign, nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	var last admin.UserReply
	fleetbustest.Eventually(t, "the credentials last longer", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if last, err = admin.Renew(ctx, nc); err != nil {
			return err
		}
		if !last.Expires.After(first.Expires) {
			return errors.New("they do not")
		}
		return nil
	})
	if err := nc.Flush(); err != nil {
		t.Errorf("the connection that renewed: %v", err)
	}
	again, err := nats.Connect(nodes[2].URL(), nats.Secure(nodes[2].TLS()),
		nats.UserJWT(func() (string, error) { return last.JWT, nil }, key.Sign))
	if err != nil {
		t.Fatal(err)
	}
	again.Close()
	// What was renewed is denied as what was made.
	if _, err := nodes[0].Admin().DenyUser(limited(t, 10*time.Second), "acme/alice"); err != nil {
		t.Fatal(err)
	}
	if _, err := admin.Renew(limited(t, time.Second), nc); err == nil {
		t.Error("a denied user was renewed")
	}
}
