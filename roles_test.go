package fleetbus_test

import (
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// dialRole connects as a new user of a role, and tells what it is denied.
func dialRole(t *testing.T, s *fleetbustest.Server, account, name, role string) (*nats.Conn, <-chan error) {
	t.Helper()
	s.User(admin.UserRequest{Name: account + "/" + name, Role: role})
	denied := make(chan error, 100)
	return s.Dial(account, name, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { denied <- err })), denied
}

// TestInboxes has users of the roles that may not hear everything listen where others of
// these roles hear what they are answered.
func TestInboxes(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) { o.Accounts = []string{"acme"} })
	for _, role := range []string{identity.RoleAdmin, identity.RoleCertManager, identity.RoleMachine, identity.RoleTarget} {
		var nc *nats.Conn
		var denied <-chan error
		if role == identity.RoleAdmin {
			errs := make(chan error, 100)
			nc, denied = must(s.Connect(s.Founded().AdminCreds, nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { errs <- err })))(t), errs
			defer nc.Close()
		} else {
			nc, denied = dialRole(t, s, "acme", "own-"+role, role)
		}
		for _, subject := range []string{"_INBOX.>", "_INBOX.*.>", "_INBOX.m2.x", "_INBOX.+certmanager.>", "_INBOX.own.>", ">"} {
			must(nc.SubscribeSync(subject))(t)
			must(0, nc.Flush())(t)
			expectViolation(t, denied, "Subscription", subject)
		}
		if role != identity.RoleAdmin {
			renewedKey(t, nc) // its own inbox is open to it
			continue
		}
		if _, err := admin.New(nc).Users(limited(t, 10*time.Second), "acme"); err != nil {
			t.Error(err)
		}
	}
}

// TestMachinesAndClients: no machine acts as a client or as another machine, and no
// client as a machine.
func TestMachinesAndClients(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) { o.Accounts = []string{"acme"} })
	machine, machineDenied := dialRole(t, s, "acme", "m1", identity.RoleMachine)
	client, clientDenied := dialRole(t, s, "acme", "app", identity.RoleClient)
	heard := must(client.SubscribeSync(">"))(t)
	must(0, client.Flush())(t)
	for _, subject := range []string{"machine.m1.in.x", "machine.m2.out.x", "machine.m1.outer", "machines.x", "orders.new", "$JS.API.INFO", "_INBOX.app.x"} {
		must(0, machine.Publish(subject, []byte("forged")))(t)
		must(0, machine.Flush())(t)
		expectViolation(t, machineDenied, "Publish", subject)
	}
	for _, subject := range []string{"machine.m1.out.x", "machine.m2.>", "machine.*.in.>", "orders.>"} {
		must(machine.SubscribeSync(subject))(t)
		must(0, machine.Flush())(t)
		expectViolation(t, machineDenied, "Subscription", subject)
	}
	for _, subject := range []string{"machine.m1.out.x", "machine.m2.out.x.y"} {
		must(0, client.Publish(subject, []byte("forged")))(t)
		must(0, client.Flush())(t)
		expectViolation(t, clientDenied, "Publish", subject)
	}

	// What each may do.
	told := must(machine.SubscribeSync("machines.>"))(t)
	must(machine.Subscribe("machine.m1.in.ask", func(msg *nats.Msg) { _ = msg.Respond([]byte("answered")) }))(t)
	must(0, machine.Flush())(t)
	must(0, client.Publish("machines.all", []byte("hello")))(t)
	if msg := must(told.NextMsg(10 * time.Second))(t); string(msg.Data) != "hello" {
		t.Errorf("the machine heard %q", msg.Data)
	}
	if msg := must(client.Request("machine.m1.in.ask", nil, 10*time.Second))(t); string(msg.Data) != "answered" {
		t.Errorf("the machine answered %q", msg.Data)
	}
	must(0, machine.Publish("machine.m1.out.x", []byte("true")))(t)
	for {
		msg := must(heard.NextMsg(10 * time.Second))(t)
		if string(msg.Data) == "forged" {
			t.Errorf("a forged message was heard at %q", msg.Subject)
		}
		if msg.Subject == "machine.m1.out.x" {
			break
		}
	}
	if problem := machine.LastError(); problem != nil && !strings.Contains(problem.Error(), "ermissions") {
		t.Error(problem)
	}
}
