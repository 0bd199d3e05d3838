package broker

import (
	"net"
	"net/url"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// TestLinks has two clusters that are linked by gateways, and a site at one of them.
func TestLinks(t *testing.T) {
	start := func(o *server.Options) *server.Server {
		t.Helper()
		o.Host, o.Port, o.NoSigs, o.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
		o.Accounts, o.SystemAccount = []*server.Account{server.NewAccount("SYS")}, "SYS"
		srv, err := server.NewServer(o)
		if err != nil {
			t.Fatal(err)
		}
		srv.Start()
		t.Cleanup(func() {
			srv.Shutdown()
			srv.WaitForShutdown()
		})
		if !srv.ReadyForConnections(10 * time.Second) {
			t.Fatal("it is not ready")
		}
		return srv
	}
	gateway := func(name string, remotes ...*server.RemoteGatewayOpts) server.GatewayOpts {
		return server.GatewayOpts{Name: name, Host: "127.0.0.1", Port: server.RANDOM_PORT, Gateways: remotes}
	}
	at := func(scheme string, addr net.Addr) []*url.URL {
		return []*url.URL{{Scheme: scheme, Host: addr.String()}}
	}
	east := start(&server.Options{ServerName: "e1", Gateway: gateway("east"), Cluster: server.ClusterOpts{Name: "east", Host: "127.0.0.1", Port: server.RANDOM_PORT},
		LeafNode: server.LeafNodeOpts{Host: "127.0.0.1", Port: freePort(t)}})
	remote := &server.RemoteGatewayOpts{Name: "east", URLs: at("nats", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: east.GatewayAddr().Port})}
	start(&server.Options{ServerName: "w1", Gateway: gateway("west", remote)})
	start(&server.Options{ServerName: "e2", Gateway: gateway("east"), Cluster: server.ClusterOpts{Name: "east", Host: "127.0.0.1", Port: server.RANDOM_PORT},
		Routes: at("nats-route", east.ClusterAddr())})
	hub := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: leafPort(t, east)}
	start(&server.Options{ServerName: "berlin", LeafNode: server.LeafNodeOpts{Remotes: []*server.RemoteLeafOpts{{URLs: at("nats-leaf", hub)}}}})

	deadline := time.After(20 * time.Second)
	for {
		all := links(east)
		kinds := map[string]string{}
		for _, l := range all {
			if l.RoundTrip > 0 && l.Remote != "" && len(l.IDs) > 0 {
				kinds[l.Kind] = l.Name
			}
		}
		if len(all) == 3 && kinds[RouteLink] == "e2" && kinds[LeafLink] == "berlin" && kinds[GatewayLink] == "west" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("the links are %+v", all)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func freePort(t *testing.T) int {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().(*net.TCPAddr).Port
}

// leafPort is where a server takes sites in.
func leafPort(t *testing.T, srv *server.Server) int {
	t.Helper()
	z, err := srv.Varz(nil)
	if err != nil {
		t.Fatal(err)
	}
	return z.LeafNode.Port
}
