package broker

import (
	"cmp"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// The kinds of links.
const (
	// RouteLink is to another server of the cluster.
	RouteLink = "route"
	// LeafLink is to the server of a site, or from there to its hub.
	LeafLink = "leaf"
	// GatewayLink is to another cluster.
	GatewayLink = "gateway"
)

// A Link is this server's connection to another one, or its several connections.
type Link struct {
	// Kind is RouteLink, LeafLink or GatewayLink.
	Kind string
	// Name of the server at the other end, or of its cluster for a gateway.
	Name string
	// Account is the public key of the account that a leaf link is of.
	Account string
	// Remote is the other end's address.
	Remote string
	// RoundTrip is the engine's last measurement; 0 is none yet.
	RoundTrip time.Duration
	// Pending is how many bytes wait to be sent.
	Pending int64
	// Bytes that it has carried, both ways.
	Bytes uint64
	// IDs of the connections, which no others had before.
	IDs []uint64
}

// Links lists this server's links, sorted by kind, name and account.
func (b *Broker) Links() []Link {
	return slices.DeleteFunc(links(b.srv), func(l Link) bool { return l.Name == b.opts.Name+neighborSuffix })
}

func links(srv *server.Server) []Link {
	var all []Link
	add := func(kind, name, account, host string, port int, rtt string, pending int, id uint64, in, out int64) {
		i := slices.IndexFunc(all, func(l Link) bool { return l.Kind == kind && l.Name == name && l.Account == account })
		if i < 0 {
			i = len(all)
			all = append(all, Link{Kind: kind, Name: name, Account: account, Remote: net.JoinHostPort(host, strconv.Itoa(port))})
		}
		l := &all[i]
		l.IDs = append(l.IDs, id)
		l.Pending += int64(pending)
		l.Bytes += uint64(in) + uint64(out)
		// What is not known yet is no text of a duration, or 0.
		if d, err := time.ParseDuration(rtt); err == nil && d > 0 && (l.RoundTrip == 0 || d < l.RoundTrip) {
			l.RoundTrip = d
		}
	}
	// The engine's functions fail for none of these options.
	if z, err := srv.Routez(&server.RoutezOptions{}); err == nil {
		for _, r := range z.Routes {
			add(RouteLink, r.RemoteName, "", r.IP, r.Port, r.RTT, r.Pending, r.Rid, r.InBytes, r.OutBytes)
		}
	}
	if z, err := srv.Leafz(&server.LeafzOptions{}); err == nil {
		for _, l := range z.Leafs {
			add(LeafLink, l.Name, l.Account, l.IP, l.Port, l.RTT, 0, l.ID, l.InBytes, l.OutBytes)
		}
	}
	// Both clusters have a connection to the other; its own is the one that a
	// server speaks on.
	if z, err := srv.Gatewayz(&server.GatewayzOptions{}); err == nil {
		for name, g := range z.OutboundGateways {
			if c := g.Connection; c != nil {
				add(GatewayLink, name, "", c.IP, c.Port, c.RTT, c.Pending, c.Cid, c.InBytes, c.OutBytes)
			}
		}
	}
	slices.SortFunc(all, func(a, b Link) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Account, b.Account))
	})
	return all
}
