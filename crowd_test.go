package fleetbus_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// TestConnectionsOfAUser holds one user to two connections on three nodes, by
// whatever it comes in, and others to none.
func TestConnectionsOfAUser(t *testing.T) {
	j := &journal{TB: t}
	nodes := fleetbustest.StartCluster(j, 3, withLines)
	s := nodes[0]
	addRole(t, s, identity.Role{Name: "pair", Limits: identity.Limits{Connections: 2}})
	request := admin.UserRequest{Name: "acme/alice", Role: "pair"}
	password, creds := s.Password(request), s.Creds("acme", "alice")
	var open []*nats.Conn
	for i, n := range nodes[:2] {
		connect := func() (*nats.Conn, error) { return n.Connect(creds, nats.NoReconnect()) }
		if i == 1 {
			connect = func() (*nats.Conn, error) { return byPassword(n, "acme/alice", password, nats.NoReconnect()) }
		}
		nc, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		open = append(open, nc)
	}
	for what, connect := range map[string]func(s *fleetbustest.Server) (*nats.Conn, error){
		"a creds file": func(s *fleetbustest.Server) (*nats.Conn, error) { return s.Connect(creds, nats.NoReconnect()) },
		"a password": func(s *fleetbustest.Server) (*nats.Conn, error) {
			return byPassword(s, "acme/alice", password, nats.NoReconnect())
		},
	} {
		third, err := connect(nodes[2])
		if err != nil {
			continue // closed before it knew that it was let in
		}
		defer third.Close()
		fleetbustest.Eventually(t, "a third connection by "+what+" closes", func() error {
			if !third.IsClosed() {
				return errors.New("it is open")
			}
			return nil
		})
	}
	if c, err := loginLines(limited(t, 10*time.Second), nodes[2].Addr("lines").String(), s.TLS(), "acme/alice", password); err == nil {
		c.Close()
		t.Error("a session beside two connections was let in")
	}
	for i, nc := range open {
		if err := nc.Flush(); err != nil {
			t.Errorf("connection %d of two was closed: %v", i+1, err)
		}
	}
	bob := s.Dial("acme", "bob")
	for range 3 {
		nc := s.Dial("acme", "bob")
		if err := nc.Flush(); err != nil {
			t.Error(err)
		}
	}
	if err := bob.Flush(); err != nil {
		t.Error(err)
	}
	j.await("client refused", "as many connections as the role allows")
	open[0].Close()
	fleetbustest.Eventually(t, "there is room for another", func() error {
		nc, err := nodes[2].Connect(creds, nats.NoReconnect())
		if err != nil {
			return err
		}
		t.Cleanup(nc.Close)
		info, err := s.Admin().User(limited(t, 10*time.Second), "acme/alice")
		if err == nil && (len(info.Connections) != 2 || nc.Flush() != nil) {
			err = fmt.Errorf("there are %d", len(info.Connections))
		}
		return err
	})
}

// TestHours has users of a role come in within its hours only, and go when they end.
func TestHours(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	now := time.Now().UTC()
	open, closed := identity.Hours{Spans: []string{now.Add(-time.Hour).Format("15:04") + "-" + now.Add(2*time.Hour).Format("15:04")}},
		identity.Hours{Spans: []string{now.Add(2*time.Hour).Format("15:04") + "-" + now.Add(3*time.Hour).Format("15:04")}, Zone: "UTC"}
	if _, err := s.Admin().AddRole(limited(t, 10*time.Second), identity.Role{Name: "day", Hours: identity.Hours{Spans: open.Spans, Zone: "Mars/Olympus"}}); err == nil {
		t.Error("hours in no zone")
	}
	addRole(t, s, identity.Role{Name: "day", Hours: open})
	request := admin.UserRequest{Name: "acme/alice", Role: "day"}
	password, creds := s.Password(request), s.Creds("acme", "alice")
	ways := map[string]func() (isClosed func() bool, err error){
		"creds": func() (func() bool, error) {
			nc, err := s.Connect(creds, nats.NoReconnect())
			if err != nil {
				return nil, err
			}
			t.Cleanup(nc.Close)
			return nc.IsClosed, nil
		},
		"password": func() (func() bool, error) {
			nc, err := byPassword(s, "acme/alice", password, nats.NoReconnect())
			if err != nil {
				return nil, err
			}
			t.Cleanup(nc.Close)
			return nc.IsClosed, nil
		},
		"session": func() (func() bool, error) {
			c, err := loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), s.TLS(), "acme/alice", password)
			if err != nil {
				return nil, err
			}
			t.Cleanup(func() { c.Close() })
			return func() bool { return c.Publish(limited(t, 10*time.Second), "x", "x") != nil }, nil
		},
	}
	var live []func() bool
	for way, connect := range ways {
		isClosed, err := connect()
		if err != nil {
			t.Fatalf("%s within the hours: %v", way, err)
		}
		live = append(live, isClosed)
	}
	addRole(t, s, identity.Role{Name: "day", Hours: closed})
	for i, isClosed := range live {
		fleetbustest.Eventually(t, "who came by another time goes", func() error {
			if !isClosed() {
				return fmt.Errorf("connection %d is open", i)
			}
			return nil
		})
	}
	for way, connect := range ways {
		if _, err := connect(); err == nil {
			t.Errorf("%s outside of the hours", way)
		}
	}
}

// TestManyConnections has a user with more connections than an answer tells of:
// the account counts all, and the user has the first of them.
func TestManyConnections(t *testing.T) {
	const all, told = 250, 200
	s := fleetbustest.Start(t, withLines)
	s.Creds("acme", "app")
	for range all {
		session, err := s.Session(t.Context(), identity.Principal{Account: "acme", Name: "app"})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(session.Close)
	}
	fleetbustest.Eventually(t, "all are counted", func() error {
		ctx := limited(t, time.Minute)
		account, err := s.Admin().Account(ctx, "acme")
		if err != nil {
			return err
		}
		user, err := s.Admin().User(ctx, "acme/app")
		if err == nil && (account.Connections != all || len(account.Errors) > 0 || len(user.Connections) != told || user.More != all-told) {
			err = fmt.Errorf("the account has %d, %v; the user %d and %d more", account.Connections, account.Errors, len(user.Connections), user.More)
		}
		return err
	})
}

// TestConnectionsLimitedLater has a role get a number of connections when its users have
// more already, on two nodes: who comes next is looked at with all that were there, and the
// last of them go.
func TestConnectionsLimitedLater(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3, withLines)
	s := nodes[0]
	role := identity.Role{Name: "some"}
	role.Permissions.Subscribe.Allow = []string{">"}
	addRole(t, s, role)
	s.Password(admin.UserRequest{Name: "acme/alice", Role: "some"})
	creds := s.Creds("acme", "alice")
	var open []*nats.Conn
	connect := func(n *fleetbustest.Server) {
		nc, err := n.Connect(creds, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(nc.Close)
		open = append(open, nc)
	}
	for i := range 3 {
		connect(nodes[i%2])
	}
	role.Limits.Connections = 2
	addRole(t, s, role)
	connect(nodes[2])
	fleetbustest.Eventually(t, "the first two are left", func() error {
		for i, nc := range open {
			if nc.IsClosed() != (i >= 2) {
				return fmt.Errorf("connection %d: closed %v", i, nc.IsClosed())
			}
		}
		return nil
	})
}
