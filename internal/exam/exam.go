// Package exam is what a node does when the doctor asks it: it looks at its own machine,
// and whether it reaches the others.
package exam

import (
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/localcheck"
)

const (
	// lookTimeout bounds all of it: whoever asks waits five seconds.
	lookTimeout = 1500 * time.Millisecond
	// dialTimeout bounds one connection, dialsAtOnce how many are tried at a time.
	dialTimeout = time.Second
	dialsAtOnce = 32
	// fewNodes look at one another, all of them; of more each looks at the next peers by
	// name, so that every one is looked at by as many.
	fewNodes = 50
	peers    = 16
)

// Node has a node look at its machine and at the others of the fleet.
func Node(ctx context.Context, m localcheck.Machine, fleet []identity.Node) admin.Examination {
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	e := admin.Examination{Node: m.Node}
	var open sync.WaitGroup
	open.Go(func() { e.Results = m.Look(ctx) })
	e.Dials = dials(Peers(m.Node, fleet))
	queue := make(chan *admin.Dial)
	for range min(dialsAtOnce, len(e.Dials)) {
		open.Go(func() {
			for d := range queue {
				dial(ctx, d)
			}
		})
	}
	for i := range e.Dials {
		queue <- &e.Dials[i]
	}
	close(queue)
	open.Wait()
	return e
}

// Peers are those that the node of that name looks at.
func Peers(name string, fleet []identity.Node) []identity.Node {
	fleet = slices.DeleteFunc(slices.Clone(fleet), func(n identity.Node) bool { return n.Removed && n.Name != name })
	slices.SortFunc(fleet, func(a, b identity.Node) int { return strings.Compare(a.Name, b.Name) })
	own := slices.IndexFunc(fleet, func(n identity.Node) bool { return n.Name == name })
	if own >= 0 {
		fleet = append(fleet[own+1:len(fleet):len(fleet)], fleet[:own]...)
	}
	if len(fleet) >= fewNodes {
		fleet = fleet[:peers]
	}
	return fleet
}

// dials are the addresses that nodes advertise.
func dials(nodes []identity.Node) []admin.Dial {
	all := []admin.Dial{}
	for _, n := range nodes {
		for _, d := range []admin.Dial{{What: "cluster", Addr: n.ClusterAddr}, {What: "clients", Addr: n.ClientAddr}, {What: "leaf", Addr: n.LeafAddr}, {What: "gateway", Addr: n.GatewayAddr}} {
			if d.Node = n.Name; d.Addr != "" {
				all = append(all, d)
			}
		}
	}
	return all
}

func dial(ctx context.Context, d *admin.Dial) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	begin := time.Now()
	c, err := new(net.Dialer).DialContext(ctx, "tcp", d.Addr)
	if err == nil {
		d.Took = time.Since(begin)
		c.Close()
		return
	}
	var unknown *net.DNSError
	var op *net.OpError
	switch {
	case errors.As(err, &unknown):
		d.Error = "the name is not known there: " + unknown.Err
	case errors.Is(err, syscall.ECONNREFUSED):
		d.Refused = true
		d.Error = "connection refused: nobody listens there, or a firewall rejects"
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &op) && op.Timeout():
		d.Error = "no answer in a second: a firewall drops it, or the machine is away"
	case errors.As(err, &op):
		d.Error = op.Err.Error()
	default:
		d.Error = err.Error()
	}
}
