package broker

import (
	"context"
	"errors"
	"net"
	"net/url"
	_ "unsafe" // for go:linkname

	"github.com/nats-io/nats-server/v2/server"
)

// A Gateway links this server's cluster to others, each with an engine's group, and a
// system account, of its own.
type Gateway struct {
	Endpoint
	// Remotes are host:port of the gateways of other clusters, by the cluster's name.
	// Those that link to this one are found besides.
	Remotes map[string][]string
}

// gatewayRetries is how often a cluster that linked to this one is tried again after it
// is gone, about once a second: it comes by itself when it is back.
const gatewayRetries = 60

// gatewayServer adds what the options say of links with other clusters.
func (o *Options) gatewayServer(so *server.Options) (err error) {
	if o.Gateway == nil {
		return nil
	}
	g := &so.Gateway
	if g.Host, g.Port, err = split(o.Gateway.Addr); err != nil {
		return err
	}
	g.Name, g.Advertise, g.TLSConfig = o.Cluster.Name, o.Gateway.Advertise, o.Gateway.TLS
	g.TLSTimeout, g.AuthTimeout = o.HandshakeTimeout.Seconds(), o.HandshakeTimeout.Seconds()
	g.ConnectRetries = gatewayRetries
	for name, addrs := range o.Gateway.Remotes {
		remote := &server.RemoteGatewayOpts{Name: name}
		for _, addr := range addrs {
			remote.URLs = append(remote.URLs, &url.URL{Scheme: "nats", Host: addr})
		}
		if len(remote.URLs) > 0 {
			g.Gateways = append(g.Gateways, remote)
		}
	}
	// Streams and consumers of one name may be in both clusters. The older form of an
	// acknowledgement has nothing to tell them apart by, and passes to both.
	so.JetStreamDomain = o.Cluster.Name
	so.FeatureFlags = map[string]bool{server.FeatureFlagJsAckFormatV2: true}
	return nil
}

// foundAlone founds a cluster before it is linked to others: until it has elected, the
// engine counts the gateways that it is told of among its members, and they are none.
func foundAlone(ctx context.Context, o Options) error {
	o.Gateway, o.Clients, o.Leafs, o.Monitor = nil, nil, nil, ""
	b, err := Start(ctx, o)
	if err != nil {
		return err
	}
	b.Stop(false)
	return nil
}

// GatewayAddr is where other clusters connect; nil without Options.Gateway.
func (b *Broker) GatewayAddr() net.Addr {
	if addr := b.srv.GatewayAddr(); addr != nil {
		return addr
	}
	return nil
}

// Gateways names the clusters that this server has its own link to.
func (b *Broker) Gateways() []string {
	z, err := b.srv.Gatewayz(&server.GatewayzOptions{})
	if err != nil {
		return nil
	}
	var names []string
	for name, g := range z.OutboundGateways {
		if g.Connection != nil {
			names = append(names, name)
		}
	}
	return names
}

// HeardAcross reports whether somebody of another cluster hears subject, in the account
// with that public key, as far as this server has been told.
func (b *Broker) HeardAcross(public, subject string) bool {
	return hasGatewayInterest(b.srv, public, subject)
}

// hasGatewayInterest is what the engine itself asks before it sends something across.
// Without it, or with another signature, this package does not link, or its tests fail.
//
//go:linkname hasGatewayInterest github.com/nats-io/nats-server/v2/server.(*Server).hasGatewayInterest
func hasGatewayInterest(*server.Server, string, string) bool

// errGatewayAlone says that a gateway is of a cluster.
var errGatewayAlone = errors.New("a server without a cluster has no gateway")
