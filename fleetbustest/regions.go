package fleetbustest

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// WithGateway gives a node a gateway.
func WithGateway(t testing.TB) func(*fleetbus.Options) {
	return func(o *fleetbus.Options) {
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "gateway", Addr: loopback.Addr(t), Protocol: fleetbus.Gateway()})
	}
}

// StartRegions starts a fleet of regions of these names, of one node each, and returns
// when all are linked. edit changes the options of each before.
func StartRegions(t testing.TB, names []string, edit ...func(*fleetbus.Options)) []*Server {
	t.Helper()
	named := func(o *fleetbus.Options) { o.Cluster.Name = names[0] }
	all := []*Server{Start(t, append([]func(*fleetbus.Options){named, WithGateway(t)}, edit...)...)}
	for _, name := range names[1:] {
		all = append(all, JoinRegion(t, all[0], name, edit...))
	}
	for _, s := range all {
		s.WaitRegions(len(names))
	}
	return all
}

// JoinRegion starts a region of one node. home is a node of the region that the fleet
// began with, and has a gateway.
func JoinRegion(t testing.TB, home *Server, name string, edit ...func(*fleetbus.Options)) *Server {
	t.Helper()
	o := Options(t, name+"-1")
	WithGateway(t)(&o)
	addr := o.Listeners[len(o.Listeners)-1].Addr
	for _, e := range edit {
		e(&o)
	}
	if err := joinRegion(t, home, o, name, addr); err != nil {
		t.Fatal(err)
	}
	admins := filepath.Join(o.Dir, "admin")
	return Launch(t, o, &fleetbus.Founded{AdminCreds: filepath.Join(admins, "admin.creds"), CA: filepath.Join(admins, "ca.pem")})
}

// WaitRegions waits until the node knows of n regions, and those are linked.
func (s *Server) WaitRegions(n int) {
	s.t.Helper()
	Eventually(s.t, "the regions are linked", func() error {
		ctx, cancel := context.WithTimeout(s.t.Context(), 10*time.Second)
		defer cancel()
		regions, err := s.Admin().Regions(ctx)
		if err == nil && len(regions) != n {
			err = errors.New("some are not known")
		}
		for _, r := range regions {
			if r.State != admin.RegionHere && (r.State != admin.RegionLinked || !r.Current) {
				err = fmt.Errorf("%+v", regions)
			}
		}
		return err
	})
}

// joinRegion makes the home of the first node of a region.
func joinRegion(t testing.TB, home *Server, o fleetbus.Options, name, addr string) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	var token admin.TokenReply
	Eventually(t, "the gateways are known", func() (err error) {
		token, err = home.Admin().AddToken(ctx, admin.TokenRequest{Kind: identity.KindRegion, Name: name})
		return err
	})
	client, err := enroll.Dial(ctx, enroll.Join{Host: home.Addr("nats").String(), Token: token.Text})
	if err != nil {
		return err
	}
	defer client.Close()
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		return err
	}
	public, err := key.PublicKey()
	if err != nil {
		return err
	}
	node := fleetbus.NodeRecord(o)
	node.GatewayAddr = addr
	reply, err := client.Region(ctx, enroll.RegionRequest{Node: node, Seal: public, Machine: "test", Version: fleetbus.Version()})
	if err != nil {
		return err
	}
	authority, err := identity.OpenAuthority(reply.Authority, reply.Sender, key)
	if err != nil {
		return err
	}
	return fleetbus.Enroll(o, reply, authority)
}
