package fleetbus_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// withGateway gives a node a gateway that others reach by a wire.
func withGateway(o *fleetbus.Options, w *wire) {
	o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "gateway", Addr: "127.0.0.1:0", Advertise: w.ln.Addr().String(), Protocol: fleetbus.Gateway()})
}

// A line is the network between two regions: both ways.
type line struct{ eu, us *wire }

func (l *line) cut() { l.eu.cut(); l.us.cut() }

func (l *line) heal(eu, us *fleetbustest.Server) {
	l.eu.join(eu.Addr("gateway").String())
	l.us.join(us.Addr("gateway").String())
}

// regionToken is a token for a region, once the fleet knows that it has gateways.
func regionToken(t *testing.T, s *fleetbustest.Server, name string) string {
	t.Helper()
	var reply admin.TokenReply
	fleetbustest.Eventually(t, "the gateways are known", func() (err error) {
		reply, err = s.Admin().AddToken(limited(t, 10*time.Second), admin.TokenRequest{Kind: identity.KindRegion, Name: name})
		if errors.Is(err, &admin.Error{Code: admin.Unavailable}) {
			return err
		}
		if err != nil {
			t.Fatal(err)
		}
		return nil
	})
	return reply.Text
}

// joinRegion makes the home of the first node of a region, with the options of a node.
func joinRegion(t *testing.T, s *fleetbustest.Server, o fleetbus.Options, token string, addrs ...string) error {
	t.Helper()
	client, err := enroll.Dial(limited(t, 10*time.Second), enroll.Join{Host: s.Addr("nats").String(), Token: token})
	if err != nil {
		return err
	}
	defer client.Close()
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	reply, err := client.Region(limited(t, 20*time.Second), enroll.RegionRequest{Seal: public, Addrs: addrs, Machine: "test", Version: fleetbus.Version()})
	if err != nil {
		return err
	}
	authority, err := identity.OpenAuthority(reply.Authority, reply.Sender, key)
	if err != nil {
		t.Fatal(err)
	}
	return fleetbus.EnrollRegion(o, reply, authority)
}

// startRegions starts a fleet of two regions, eu and us, of one node each.
func startRegions(t *testing.T) (eu, us *fleetbustest.Server, l *line) {
	t.Helper()
	l = &line{newWire(t), newWire(t)}
	eu = fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Cluster.Name = "eu"
		withGateway(o, l.eu)
	})
	l.eu.join(eu.Addr("gateway").String())
	o := fleetbustest.Options(t, "us-1")
	withGateway(&o, l.us)
	if err := joinRegion(t, eu, o, regionToken(t, eu, "us"), l.us.ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	us = launchSite(t, o)
	l.us.join(us.Addr("gateway").String())
	waitRegions(t, admin.RegionLinked, eu, us)
	return eu, us, l
}

// waitRegions waits until each of these nodes says that of its other region.
func waitRegions(t *testing.T, state string, of ...*fleetbustest.Server) {
	t.Helper()
	for _, s := range of {
		fleetbustest.Eventually(t, "the other region is "+state, func() error {
			all, err := s.Admin().Regions(limited(t, 10*time.Second))
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(r admin.Region) bool { return r.State != admin.RegionHere })
			if i < 0 || all[i].State != state || state == admin.RegionLinked && (!all[i].Current || len(all[i].Nodes) == 0) {
				return fmt.Errorf("%+v", all)
			}
			return nil
		})
	}
}

func dial(t *testing.T, s *fleetbustest.Server, creds string) *nats.Conn {
	t.Helper()
	nc, err := s.Connect(creds, nats.NoReconnect())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

// TestRegions has two regions share accounts and users, messages and denials.
func TestRegions(t *testing.T) {
	eu, us, _ := startRegions(t)
	alice := eu.Creds("acme", "alice")
	bob := us.Creds("acme", "bob")
	inEU, inUS := dial(t, eu, alice), dial(t, us, alice)
	passes(t, inEU, inUS, "orders.new")
	passes(t, inUS, inEU, "orders.done")
	passes(t, dial(t, eu, bob), dial(t, us, bob), "orders.more")
}
