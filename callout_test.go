package fleetbus_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// TestCalloutLimits holds who came in by no creds file to the limits of its role,
// by refusing it: the engine would forget them.
func TestCalloutLimits(t *testing.T) {
	j := &journal{TB: t}
	s := fleetbustest.Start(j)
	addRole(t, s, identity.Role{Name: "small", Limits: identity.Limits{Subscriptions: 2}})
	request := admin.UserRequest{Name: "acme/alice", Role: "small"}
	password, cert := s.Password(request), s.Certificate(request)
	for how, connect := range map[string]func() (*nats.Conn, error){
		"password":    func() (*nats.Conn, error) { return byPassword(s, "acme/alice", password) },
		"certificate": func() (*nats.Conn, error) { return byCertificate(s, cert) },
	} {
		if nc, err := connect(); !errors.Is(err, nats.ErrAuthorization) {
			nc.Close()
			t.Errorf("by %s, with limits: %v", how, err)
		}
	}
	j.await("client refused", "acme/alice", "its role has limits")
}

// TestRoleReachesSessions narrows a role. Whoever has it may not go on doing what
// it allowed, and those who have another notice nothing.
func TestRoleReachesSessions(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	role := identity.Role{Name: "wide", Permissions: identity.Permissions{
		Publish: identity.Rule{Allow: []string{">"}}, Subscribe: identity.Rule{Allow: []string{"_INBOX.>"}},
	}}
	addRole(t, s, role)
	request := admin.UserRequest{Name: "acme/alice", Role: "wide"}
	password, cert := s.Password(request), s.Certificate(request)
	ways := map[string]func(opts ...nats.Option) (*nats.Conn, error){
		"creds":       func(opts ...nats.Option) (*nats.Conn, error) { return s.Connect(s.Creds("acme", "alice"), opts...) },
		"password":    func(opts ...nats.Option) (*nats.Conn, error) { return byPassword(s, "acme/alice", password, opts...) },
		"certificate": func(opts ...nats.Option) (*nats.Conn, error) { return byCertificate(s, cert, opts...) },
	}
	other, err := byPassword(s, "acme/bob", s.Password(admin.UserRequest{Name: "acme/bob"}), nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	ctx := limited(t, 30*time.Second)
	lines, err := loginLines(ctx, s.Addr("lines").String(), s.TLS(), "acme/alice", password)
	if err != nil {
		t.Fatal(err)
	}
	defer lines.Close()
	if err := lines.Publish(ctx, "secret", "x"); err != nil {
		t.Fatal(err)
	}
	violations := map[string]chan error{}
	open := map[string]*nats.Conn{}
	for how, connect := range ways {
		said := make(chan error, 64)
		nc, err := connect(nats.ReconnectWait(10*time.Millisecond), nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) {
			select {
			case said <- err:
			default:
			}
		}))
		if err != nil {
			t.Fatalf("%s: %v", how, err)
		}
		defer nc.Close()
		violations[how], open[how] = said, nc
	}
	if spread, err := s.Admin().AddRole(ctx, role); err != nil || spread.Changed {
		t.Errorf("the role as it is: %+v, %v", spread, err)
	}
	if err := lines.Publish(ctx, "secret", "x"); err != nil {
		t.Errorf("after the role was set as it is: %v", err)
	}
	role.Permissions.Publish.Deny = []string{"secret"}
	spread, err := s.Admin().AddRole(ctx, role)
	if err != nil || len(spread.Nodes) != 1 || spread.Nodes[0].Closed != 3 {
		t.Errorf("three sessions have the role; the change acted as %+v, %v", spread, err)
	}
	if _, _, err := lines.Receive(ctx); err == nil || ctx.Err() != nil {
		t.Errorf("the session goes on: %v", err)
	}
	for how, nc := range open {
		fleetbustest.Eventually(t, "a violation by "+how, func() error {
			if err := nc.Publish("secret", nil); err != nil {
				return err
			}
			_ = nc.FlushTimeout(time.Second)
			select {
			case err := <-violations[how]:
				if strings.Contains(err.Error(), "Permissions Violation") {
					return nil
				}
				return err
			default:
				return errors.New("there is none")
			}
		})
	}
	if err := other.Flush(); err != nil {
		t.Errorf("a user with another role: %v", err)
	}
}
