package nodetls

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/admission"
)

// gateways are the connections of other regions to this node, by the region's name.
type gateways struct {
	mu    sync.Mutex
	conns map[net.Conn]string
}

// add notes one, and forgets those that are closed.
func (g *gateways) add(conn net.Conn, region string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns == nil {
		g.conns = map[net.Conn]string{}
	}
	for old := range g.conns {
		if !open(old) {
			delete(g.conns, old)
		}
	}
	g.conns[conn] = region
}

// open reports whether conn has not been closed here. It does not touch its deadlines,
// which are somebody else's.
func open(conn net.Conn) bool {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := c.SyscallConn()
	return err == nil && raw.Control(func(uintptr) {}) == nil
}

// CloseGateways ends what another region has open to this node, and counts it.
func (c *Certificates) CloseGateways(region string) (closed int) {
	g := &c.gateways
	g.mu.Lock()
	defer g.mu.Unlock()
	for conn, of := range g.conns {
		if of == region {
			if open(conn) && conn.Close() == nil {
				closed++
			}
			delete(g.conns, conn)
		}
	}
	return closed
}

// ForGateways are the TLS settings between regions, in both directions.
func (c *Certificates) ForGateways() *tls.Config {
	own := func() *tls.Certificate {
		c.mu.RLock()
		defer c.mu.RUnlock()
		return c.gateway
	}
	accept, dial := mutual(own, func(cs tls.ConnectionState) error {
		_, err := c.verifyRegion(cs)
		return err
	})
	dial.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		admission.Watch(hello.Context(), hello.Conn)
		config := accept.Clone()
		config.VerifyConnection = func(cs tls.ConnectionState) error {
			region, err := c.verifyRegion(cs)
			if err != nil {
				return err
			}
			// One that is removed between the two is closed with the others, or seen here.
			c.gateways.add(hello.Conn, region)
			return c.Linked(region)
		}
		return config, nil
	}
	return dial
}

// verifyRegion says which other region the other end is of, or why it is of none.
func (c *Certificates) verifyRegion(cs tls.ConnectionState) (string, error) {
	leaf, err := c.meshLeaf(cs)
	if err != nil {
		return "", err
	}
	region, _, ok := identity.RegionFromCertificate(leaf, c.Authority.Fleet())
	switch {
	case !ok:
		return "", errors.New("verifying the peer: its certificate is not a gateway's of this fleet")
	case region == c.Region:
		return "", fmt.Errorf("verifying the peer: it calls itself %q, as this region does", region)
	}
	return region, c.Linked(region)
}
