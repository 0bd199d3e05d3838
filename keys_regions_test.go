package fleetbus_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// newestKey is the generation of a key that a node knows; of a role's, of all roles of
// the account if role is empty.
func newestKey(t *testing.T, s *fleetbustest.Server, r admin.KeyRequest) (id string) {
	t.Helper()
	var made time.Time
	for _, k := range must(s.Admin().Keys(limited(t, time.Minute)))(t).Keys {
		if k.Name == r.Name && k.Account == r.Account && (r.Role == "" || k.Role == r.Role) && k.Generation != "" && !k.Made.Before(made) {
			id, made = k.Generation, k.Made
		}
	}
	return id
}

// operatorRequest is for a new key of the operator, whose offline keys are where eu was
// made.
func operatorRequest(t *testing.T, at, eu *fleetbustest.Server) admin.KeyRequest {
	t.Helper()
	keys := must(at.Admin().Keys(limited(t, time.Minute)))(t)
	operator, seed, err := identity.NewOperatorKey(keys.Operator, offlineKeys(t, eu), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return admin.KeyRequest{Name: identity.KeyOperator, Operator: operator, Seed: must(identity.Seal(seed, keys.Boxes))(t)}
}

// waitKey waits until nodes know a generation of a key.
func waitKey(t *testing.T, r admin.KeyRequest, id string, at ...*fleetbustest.Server) {
	t.Helper()
	for _, s := range at {
		fleetbustest.Eventually(t, "the key is known", func() error {
			if known := newestKey(t, s, r); known != id {
				return fmt.Errorf("node %s knows generation %q of %s, not %q", s.Options.Name, known, r.Name, id)
			}
			return nil
		})
	}
}

// TestChangeKeysOfRegions changes every key of two regions under traffic between them,
// in either: nobody is cut off, nothing is lost, and what is old is good in both.
func TestChangeKeysOfRegions(t *testing.T) {
	eu, us, l := startRegions(t)
	alice, bob := eu.Creds("acme", "alice"), eu.Creds("acme", "bob")
	waitSame(t, eu, us, "acme")
	f := startTraffic(t, eu, us, alice, bob, 1)
	old := eu.TLS()
	for _, at := range []*fleetbustest.Server{eu, us} {
		for _, r := range []admin.KeyRequest{
			{Name: "role", Account: "acme", Role: "client"},
			{Name: "role", Account: "acme"},
			{Name: identity.KeyAuthority},
			{Name: identity.KeyRoutes},
			{Name: identity.KeyOperator},
		} {
			var reply admin.KeyReply
			before := newestKey(t, at, r)
			fleetbustest.Eventually(t, "the key is changed in both", func() (err error) {
				q := r
				if r.Name == identity.KeyOperator {
					q = operatorRequest(t, at, eu)
				}
				q.Known, q.Keep = before, time.Hour
				reply, err = at.Admin().RotateKey(limited(t, time.Minute), q)
				return err
			})
			names := []string{}
			for _, n := range reply.Nodes {
				names = append(names, n.Node)
			}
			if len(reply.Missing) > 0 || !slices.Contains(names, "us/us-1") || len(names) != 2 {
				t.Errorf("%s %s/%s was changed at %s, and not in %s", r.Name, r.Account, r.Role, names, reply.Missing)
			}
			id := newestKey(t, eu, r)
			if id == before {
				t.Errorf("%s is as before", r.Name)
			}
			waitKey(t, r, id, us)
		}
	}
	for _, s := range []*fleetbustest.Server{eu, us} {
		// Who has the first key, and knows the first authority alone, comes in anywhere.
		nc, err := nats.Connect(s.URL(), nats.Secure(old.Clone()), admin.UserCredentials(alice))
		if err != nil {
			t.Fatalf("in region %s: %v", s.Options.Name, err)
		}
		nc.Close()
	}
	if n := f.cut.Load(); n != 0 {
		t.Errorf("%d connections were cut", n)
	}
	if err := f.stop(); err != nil {
		t.Error(err)
	}

	// What one region signs by the new key is good in the other, and the old is not when
	// it is ended in either.
	nc := must(us.Connect(alice))(t)
	renewFile(t, nc, alice)
	nc.Close()
	must(eu.Connect(alice))(t).Close()
	r := admin.KeyRequest{Name: "role", Account: "acme", Role: "client"}
	r.Known = newestKey(t, us, r)
	cutAt := []chan struct{}{make(chan struct{}), make(chan struct{})}
	for i, s := range []*fleetbustest.Server{eu, us} {
		nc := must(s.Connect(bob, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { close(cutAt[i]) })))(t)
		t.Cleanup(nc.Close)
	}
	if reply := rotate(t, us, r); len(reply.Missing) > 0 {
		t.Errorf("the old key is not ended in %s", reply.Missing)
	}
	for i, s := range []*fleetbustest.Server{eu, us} {
		select {
		case <-cutAt[i]:
		case <-time.After(2 * time.Minute):
			t.Errorf("who came in by the old key is still in at %s", s.Options.Name)
		}
		if nc, err := s.Connect(bob); err == nil {
			nc.Close()
			t.Errorf("the old key lets in at %s", s.Options.Name)
		}
	}

	// The regions are linked anew by the newest routes, when all others have ended.
	routes := admin.KeyRequest{Name: identity.KeyRoutes, Known: newestKey(t, us, admin.KeyRequest{Name: identity.KeyRoutes})}
	rotate(t, us, routes)
	l.cut()
	waitRegions(t, admin.RegionAway, eu, us)
	l.heal(eu, us)
	waitRegions(t, admin.RegionLinked, eu, us)
}

// TestChangeKeysOfRegionCut changes keys while a region is cut off: who changes them is
// told, and the region has them when it is back.
func TestChangeKeysOfRegionCut(t *testing.T) {
	eu, us, l := startRegions(t)
	alice := eu.Creds("acme", "alice")
	waitSame(t, eu, us, "acme")
	role := admin.KeyRequest{Name: "role", Account: "acme", Role: "client", Keep: time.Hour}
	rotate(t, eu, role) // the boxes of us are known
	waitKey(t, role, newestKey(t, eu, role), us)
	l.cut()
	waitRegions(t, admin.RegionAway, eu, us)
	inUS := must(us.Connect(alice, nats.NoReconnect()))(t)
	defer inUS.Close()

	_, err := us.Admin().RotateKey(limited(t, time.Minute), admin.KeyRequest{Name: identity.KeyAuthority, Keep: time.Hour})
	if !errors.Is(err, &admin.Error{Code: admin.Unavailable}) {
		t.Errorf("a rotation while the home region is away: %v", err)
	}
	if _, err = eu.Admin().RotateKey(limited(t, time.Minute), admin.KeyRequest{Name: identity.KeyRoutes}); !errors.Is(err, &admin.Error{Code: admin.Conflict}) || !strings.Contains(err.Error(), "region us") {
		t.Errorf("the end of the routes while a region is away: %v", err)
	}
	role.Known = newestKey(t, eu, role)
	requests := []admin.KeyRequest{role, {Name: identity.KeyAuthority, Keep: time.Hour}, {Name: identity.KeyRoutes, Keep: time.Hour}, operatorRequest(t, eu, eu)}
	for _, r := range requests {
		reply := rotate(t, eu, r)
		if !slices.Contains(reply.Missing, "region us") {
			t.Errorf("%s was changed while us is away, and missing is %s", r.Name, reply.Missing)
		}
	}
	fleetbustest.Eventually(t, "a finding names the region", func() error {
		status := must(eu.Admin().Status(limited(t, time.Minute)))(t)
		if !slices.ContainsFunc(status.Findings, func(f doctor.Finding) bool {
			return f.Code == "KEY-ENDS" && f.Subject == identity.KeyRoutes && strings.Contains(f.Text, "region us")
		}) {
			return fmt.Errorf("%+v", status.Findings)
		}
		return nil
	})
	us.Stop()
	us = us.Restart()
	inUS = must(us.Connect(alice, nats.NoReconnect()))(t)
	l.heal(eu, us)
	waitRegions(t, admin.RegionLinked, eu, us)
	for _, r := range requests {
		waitKey(t, r, newestKey(t, eu, r), us)
	}
	if status := must(us.Admin().Status(limited(t, time.Minute)))(t); slices.ContainsFunc(status.Findings, func(f doctor.Finding) bool { return f.Code == "KEY-UNKNOWN" }) {
		t.Errorf("%+v", status.Findings)
	}
	if data := string(must(os.ReadFile(filepath.Join(us.Options.Dir, "admin", "ca.pem")))(t)); strings.Count(data, "BEGIN CERT") != 2 {
		t.Errorf("the file of the authorities of us has not two certificates:\n%s", data)
	}
	if !inUS.IsConnected() {
		t.Error("who came in by the old key was cut off")
	}
	renewFile(t, inUS, alice)
	must(eu.Connect(alice))(t).Close()
}

// TestChangeOwnKeysOfRegions changes the key of the administrators of one region: those
// of the other keep theirs.
func TestChangeOwnKeysOfRegions(t *testing.T) {
	eu, us, _ := startRegions(t)
	own := admin.KeyRequest{Name: "role", Account: identity.FleetName}
	before := newestKey(t, eu, own)
	rotate(t, us, own)
	if newestKey(t, us, own) == before || newestKey(t, eu, own) != before {
		t.Error("a region changes the key of the other's administrators")
	}
}
