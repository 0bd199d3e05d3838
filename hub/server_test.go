package hub

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// binding is a link as a configuration makes it.
func binding(t *testing.T, o Options) fleetbus.ServiceBinding {
	t.Helper()
	link, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	all := identity.Rule{Allow: []string{">"}}
	return fleetbus.ServiceBinding{Name: "hub " + o.Account, Service: link,
		Principal: identity.Principal{Account: o.Account, Name: "hub", Kind: identity.KindService, Permissions: identity.Permissions{Publish: all, Subscribe: all}}}
}

// TestServers has three servers in hub mode: what one announces the others hear, also
// what it announces while the hub is away and it is started again.
func TestServers(t *testing.T) {
	m := startMosquitto(t, true)
	var servers []*fleetbustest.Server
	hubMode := func(name string) func(*fleetbus.Options) {
		return func(o *fleetbus.Options) {
			o.Mode, o.Name, o.Cluster, o.Accounts = fleetbus.Hub, name, fleetbus.Cluster{}, []string{"acme"}
			o.Services = []fleetbus.ServiceBinding{binding(t, m.options(name))}
		}
	}
	servers = append(servers, fleetbustest.Start(t, hubMode("n1")))
	for _, name := range []string{"n2", "n3"} { // each is a fleet of its own
		o := fleetbustest.Options(t, name)
		hubMode(name)(&o)
		founded, err := fleetbus.Init(o)
		if err != nil {
			t.Fatal(err)
		}
		servers = append(servers, fleetbustest.Launch(t, o, founded))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	state := func(s *fleetbustest.Server) string {
		status, err := s.Admin().Status(ctx)
		if err != nil {
			t.Fatal(err)
		}
		text := ""
		for _, h := range status.Nodes[0].Hubs {
			text += h.Account + " " + h.State
			for _, p := range h.Peers {
				text += " " + p.Node + " " + p.State
			}
		}
		return text
	}
	want := func(s *fleetbustest.Server, text string) {
		t.Helper()
		fleetbustest.Eventually(t, text, func() error {
			if got := state(s); got != text {
				return fmt.Errorf("%s says %q", s.Options.Name, got)
			}
			return nil
		})
	}
	want(servers[0], "acme connected n2 connected n3 connected")
	want(servers[1], "acme connected n1 connected n3 connected")
	want(servers[2], "acme connected n1 connected n2 connected")
	for _, s := range servers {
		if found := s.Problems(); len(found) > 0 {
			t.Errorf("%+v", found)
		}
	}
	watcher, err := change.NewWatcher(ctx, servers[1].Dial("acme", "watcher"), "crm", "", change.WatcherOptions{Jitter: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	next := func(key string) {
		t.Helper()
		for {
			n, err := watcher.Next(ctx)
			if err != nil {
				t.Fatalf("waiting for %q: %v", key, err)
			}
			if n.Key.String() == key {
				return
			}
		}
	}
	announce := func(s *fleetbustest.Server, key string) {
		t.Helper()
		if err := change.Announce(ctx, s.Dial("acme", "announcer"), "crm", change.Notice{Key: change.Key{key}, Kind: change.Update}); err != nil {
			t.Fatal(err)
		}
	}
	announce(servers[0], "first")
	next("first")
	m.kill()
	want(servers[1], "acme not_connected n1 unknown n3 unknown")
	found := servers[1].Problems()
	if len(found) != 1 || found[0].Code != "HUB-NOT-CONNECTED" || !strings.Contains(found[0].Fix, "start the hub") {
		t.Errorf("%+v", found)
	}
	announce(servers[0], "second")
	servers[0].Stop()
	m.start()
	// A Link belongs to one server.
	servers[0].Options.Services = []fleetbus.ServiceBinding{binding(t, m.options("n1"))}
	servers[0] = servers[0].Restart()
	next("second")
	want(servers[2], "acme connected n1 connected n2 connected")
	servers[0].Stop()
	want(servers[2], "acme connected n1 not_connected n2 connected")
}

// TestModes says which combinations a server refuses.
func TestModes(t *testing.T) {
	o := Options{Servers: []string{"mqtts://127.0.0.1"}, Node: "n1", Account: "acme"}
	one := []fleetbus.ServiceBinding{binding(t, o)}
	nats := []fleetbus.Listener{{Name: "nats", Addr: "127.0.0.1:0", Protocol: fleetbus.NATS()}}
	for what, c := range map[string]struct {
		o    fleetbus.Options
		want string
	}{
		"a hub":                {fleetbus.Options{Mode: fleetbus.Hub, Services: one, Listeners: nats}, ""},
		"no hub":               {fleetbus.Options{Mode: fleetbus.Hub}, "needs a hub"},
		"hub and routes":       {fleetbus.Options{Mode: fleetbus.Hub, Services: one, Cluster: fleetbus.Cluster{Routes: []string{"eu-2:6222"}}}, "not both"},
		"hub and mesh":         {fleetbus.Options{Mode: fleetbus.Mesh, Services: one}, "not both"},
		"hub and mesh unnamed": {fleetbus.Options{Services: one, Listeners: nats}, "not both"},
		"hub and client":       {fleetbus.Options{Mode: fleetbus.Client, Services: one, Client: fleetbus.ClientOptions{Endpoints: []string{"eu:4222"}}}, "not both"},
		"two hubs":             {fleetbus.Options{Mode: fleetbus.Hub, Services: append(one[:1:1], binding(t, o))}, "two hubs"},
		"a hub without a port": {fleetbus.Options{Mode: fleetbus.Local, Services: one}, ""},
	} {
		err := c.o.Validate()
		if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", what, err)
		}
	}
}
