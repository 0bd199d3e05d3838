package broker

import (
	"crypto/tls"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/fleetbus/fleetbus/identity"
)

// A Remote is the link of this server, which is a site's, to the fleet that one of
// its accounts is of.
type Remote struct {
	// Account is the public key of the account whose messages pass.
	Account string
	// Addrs are host:port of that fleet's listeners for sites.
	Addrs []string
	// Credentials is a creds file, which is read for each connection.
	Credentials string
	// TLS verifies that fleet's servers.
	TLS *tls.Config
}

// linkAgain is how long a link that is down waits before it is tried again, to
// which the engine adds up to as much.
const linkAgain = 500 * time.Millisecond

// leafServer adds what the options say of links with sites.
func (o *Options) leafServer(so *server.Options) (err error) {
	so.JetStreamDomain = o.Domain
	if o.Leafs != nil {
		l := &so.LeafNode
		if l.Host, l.Port, err = split(o.Leafs.Addr); err != nil {
			return err
		}
		l.Advertise = o.Leafs.Advertise
		l.TLSConfig = o.Leafs.TLS
		l.TLSTimeout, l.AuthTimeout = o.HandshakeTimeout.Seconds(), o.HandshakeTimeout.Seconds()
		// A stranger learns nothing before the handshake.
		l.TLSHandshakeFirst = true
	}
	r := o.Remote
	if r == nil {
		return nil
	}
	so.LeafNode.ReconnectInterval = linkAgain
	remote := &server.RemoteLeafOpts{
		LocalAccount: r.Account, Credentials: r.Credentials,
		TLS: true, TLSConfig: r.TLS, TLSTimeout: o.HandshakeTimeout.Seconds(), TLSHandshakeFirst: true,
		// Either side answers renewals, and keeps what its protocols keep.
		DenyImports: []string{identity.RenewSubject, identity.Private + "*.>"},
		DenyExports: []string{identity.RenewSubject, identity.Private + "*.>"},
	}
	for _, addr := range r.Addrs {
		remote.URLs = append(remote.URLs, &url.URL{Scheme: "tls", Host: addr})
	}
	so.LeafNode.Remotes = []*server.RemoteLeafOpts{remote}
	return nil
}

// LeafAddr is where sites connect; nil without Options.Leafs.
func (b *Broker) LeafAddr() net.Addr {
	if b.opts.Leafs == nil {
		return nil
	}
	addr, err := net.ResolveTCPAddr("tcp", b.opts.Leafs.Addr) // with the port that was free
	if err != nil {
		return nil
	}
	return addr
}

// A Leaf is a link of this server with a site, at either end.
type Leaf struct {
	// ID of the connection on this server.
	ID uint64
	// Server is what the other end's engine calls itself.
	Server string
	// Account is the public key of the account.
	Account string
	// Remote is the address of the other end.
	Remote string
	// RoundTrip is how long the engine's last question took.
	RoundTrip time.Duration
}

// Leafs lists the links with sites.
func (b *Broker) Leafs() []Leaf {
	z, err := b.srv.Leafz(&server.LeafzOptions{})
	if err != nil {
		return nil
	}
	var all []Leaf
	for _, l := range z.Leafs {
		rtt, _ := time.ParseDuration(l.RTT)
		all = append(all, Leaf{
			ID: l.ID, Server: l.Name, Account: l.Account, Remote: net.JoinHostPort(l.IP, strconv.Itoa(l.Port)), RoundTrip: rtt,
		})
	}
	return all
}
