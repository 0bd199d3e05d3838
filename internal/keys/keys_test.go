package keys

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// open returns the ring of a node, which has a copy of the authority.
func open(t *testing.T, a *identity.Authority, d *identity.Directory, server string) *Ring {
	t.Helper()
	data, err := a.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	own := new(identity.Authority)
	if err := own.Unmarshal(data); err != nil {
		t.Fatal(err)
	}
	r, err := Open(filepath.Join(t.TempDir(), "box.nk"), os.WriteFile, own, d, "eu", server, nil)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func apply(t *testing.T, d *identity.Directory, subject string, record any) {
	t.Helper()
	data, err := json.Marshal(record)
	if err == nil {
		err = d.Apply(d.Seq()+1, subject, data)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// TestReseal has a node know a key that was changed by somebody who did not know of the
// node: another one of its region that has the key seals it anew.
func TestReseal(t *testing.T) {
	first, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	a, err := first.InRegion("us")
	if err != nil {
		t.Fatal(err)
	}
	d := identity.NewDirectory()
	one, two := open(t, a, d, "n1"), open(t, a, d, "n2")
	apply(t, d, "node.n1", identity.Node{Name: "n1", Box: one.Box()})
	record, err := one.Next(identity.KeyAuthority, admin.KeyRequest{Name: identity.KeyAuthority, Keep: time.Hour}, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if names := slices.Collect(maps.Keys(record.Sealed.For)); !slices.Equal(names, []string{"us/n1"}) {
		t.Errorf("it is sealed to %s", names)
	}
	apply(t, d, "key.authority", record)
	if names := one.Unsealed(); len(names) > 0 {
		t.Errorf("who has not learned of it yet seals %s", names)
	}
	if err := one.LearnAll(); err != nil {
		t.Fatal(err)
	}
	apply(t, d, "node.n2", identity.Node{Name: "n2", Box: two.Box()})
	if err := two.LearnAll(); err == nil || len(two.Lacking()) != 1 {
		t.Errorf("a node knows a key that is not sealed to it: %v, %+v", err, two.Lacking())
	}
	if names := two.Unsealed(); len(names) > 0 {
		t.Errorf("who does not have it seals %s", names)
	}
	if names := one.Unsealed(); !slices.Equal(names, []string{"authority"}) {
		t.Fatalf("what has to be sealed anew is %s", names)
	}
	record, ok, err := one.Reseal("authority")
	if !ok || err != nil {
		t.Fatal(ok, err)
	}
	apply(t, d, "key.authority", record)
	if err := two.LearnAll(); err != nil || len(two.Lacking()) != 0 {
		t.Errorf("%v, %+v", err, two.Lacking())
	}
	if names := one.Unsealed(); len(names) > 0 {
		t.Errorf("it is not done: %s", names)
	}
}

// TestRegionsNotKnown refuses to change a key that the nodes of another region would
// not have.
func TestRegionsNotKnown(t *testing.T) {
	a, _, err := identity.NewAuthority("fleet", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	d := identity.NewDirectory()
	r := open(t, a, d, "n1")
	apply(t, d, "node.n1", identity.Node{Name: "n1", Box: r.Box()})
	apply(t, d, "region.eu", identity.Region{Name: "eu", Joined: time.Unix(1, 0)})
	us := identity.Region{Name: "us", Joined: time.Unix(2, 0)}
	next := func() (identity.KeyRecord, error) {
		return r.Next(identity.KeyRoutes, admin.KeyRequest{Name: identity.KeyRoutes, Keep: time.Hour}, time.Now())
	}
	for _, boxes := range []map[string]string{nil, {"us/n1": ""}} {
		us.Boxes = boxes
		apply(t, d, "region.us", us)
		if _, err := next(); err == nil {
			t.Errorf("it is changed, with boxes %v", boxes)
		}
	}
	us.Boxes = map[string]string{"us/n1": r.Box()}
	apply(t, d, "region.us", us)
	if record, err := next(); err != nil || len(record.Sealed.For) != 2 {
		t.Errorf("%+v, %v", record.Sealed, err)
	}
}
