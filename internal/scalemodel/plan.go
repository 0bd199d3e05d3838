package scalemodel

import (
	"fmt"
	"strings"
	"time"
)

// Costs are what one node was measured to take.
type Costs struct {
	// Node is the memory of a node without clients, in MiB. The others are in KiB: Client
	// of a connected client with one subscription, Peer of one that is connected to another
	// node of the cluster, and User of one that the ledger has, connected or not.
	Node, Client, Peer, User float64
	// Snapshot is what a user takes in the snapshot of the ledger, in KiB.
	Snapshot float64
	// Login and Deliver are the time that a processor takes for one login, and for one
	// delivery of a broadcast.
	Login, Deliver time.Duration
}

// Measured are the figures of docs/scale.md.
func Measured() Costs {
	return Costs{Node: 110, Client: 55, Peer: 1, User: 1.24, Snapshot: 0.49, Login: 1300 * time.Microsecond, Deliver: 25 * time.Microsecond}
}

// A Shape is a way to put devices together.
type Shape struct {
	Name string
	// Nodes of each cluster, one of which may be lost, and PerNode the clients of each
	// that is left then. Nodes of 1 are sites: each has a ledger of its own and a link to a hub.
	Nodes, PerNode int
	// Shared says that all clusters have one ledger, and are linked by gateways.
	Shared bool
}

// Shapes are those of docs/scale.md.
func Shapes() []Shape {
	return []Shape{
		{"clusters of 3, gateways", 3, 50_000, true},
		{"clusters of 5, gateways", 5, 50_000, true},
		{"sites of 1, hub of 3", 1, 50_000, false},
	}
}

// processors of each node.
const processors = 4

// hubNodes are those that the links of sites are shared by.
const hubNodes = 3

// A Size is what a number of devices takes in a shape.
type Size struct {
	Shape
	Devices         int
	Clusters, Total int // nodes in all, those of the hub among them
	// Memory of a node at the worst, when another is lost, in GiB: Clients, those of Others
	// in the cluster, and Users.
	Memory, Clients, Others, Users float64
	// Snapshot of the ledger on each node, in GiB.
	Snapshot float64
	// Links to a node: routes and gateways, or those of sites to a node of the hub.
	Links int
	// Broadcast is how long the processors of a node take to tell all of its clients.
	Broadcast time.Duration
	// storm is of the clients of a node that died, which come to the others, or, of a site,
	// come back to it.
	storm Storm
}

// Of computes what devices take in a shape.
func (c Costs) Of(devices int, s Shape) Size {
	const kib, mib = 1.0 / (1 << 20), 1.0 / (1 << 10) // in GiB
	left := max(1, s.Nodes-1)
	perCluster := min(devices, s.PerNode*left)
	perNode := (perCluster + left - 1) / left
	z := Size{Shape: s, Devices: devices, Clusters: (devices + perCluster - 1) / perCluster}
	z.Total = z.Clusters * s.Nodes
	known := perCluster
	if s.Shared {
		known = devices
		z.Links = s.Nodes - 1 + z.Clusters - 1
	} else {
		z.Total += hubNodes
		z.Links = (z.Clusters + hubNodes - 2) / (hubNodes - 1) // when one of them is lost
	}
	z.Clients = float64(perNode) * c.Client * kib
	z.Others = float64(perCluster-perNode) * c.Peer * kib
	z.Users = float64(known) * c.User * kib
	z.Memory = c.Node*mib + z.Clients + z.Others + z.Users
	z.Snapshot = float64(known) * c.Snapshot * kib
	z.Broadcast = time.Duration(perNode) * c.Deliver / processors
	z.storm = Storm{
		Clients: perCluster / s.Nodes, Nodes: left, Processors: processors, Login: c.Login, Refuse: c.Login / 10,
		RoundTrip: 20 * time.Millisecond, PerSecond: 500, Gated: true,
	}
	return z
}

// Table has the sizes of all shapes for some numbers of devices, as docs/scale.md has it.
func Table(c Costs, devices ...int) string {
	var b strings.Builder
	b.WriteString("| devices | shape | nodes | memory of a node: all = clients + others' + users | snapshot | links of a node | broadcast | storm |\n|---|---|---|---|---|---|---|---|\n")
	storms := map[Storm]Outcome{} // many are alike
	for _, n := range devices {
		for _, s := range Shapes() {
			z := c.Of(n, s)
			if _, ok := storms[z.storm]; !ok {
				storms[z.storm] = z.storm.Run(1)
			}
			fmt.Fprintf(&b, "| %d | %s | %d | %.1f = %.1f + %.1f + %.1f GiB | %.2f GiB | %d | %.1f s | %.0f s |\n",
				n, s.Name, z.Total, z.Memory, z.Clients, z.Others, z.Users, z.Snapshot, z.Links, z.Broadcast.Seconds(), storms[z.storm].All.Seconds())
		}
	}
	return b.String()
}

// Storms are those that docs/scale.md tells of.
func Storms(c Costs) []Storm {
	all := []Storm{
		{Clients: 50_000, Nodes: 2, Processors: 2, PerSecond: 500},
		{Clients: 50_000, Nodes: 2, Processors: 8, PerSecond: 5000},
		{Clients: 50_000, Nodes: 4, Processors: 4, PerSecond: 500},
	}
	for i := range all {
		all[i].Login, all[i].Refuse, all[i].RoundTrip, all[i].Gated = c.Login, c.Login/10, 20*time.Millisecond, true
	}
	return all
}

// Row is how long the storm lasts, as a row of the table in docs/scale.md.
func (s Storm) Row() string {
	o := s.Run(1)
	return fmt.Sprintf("| %d | %d | %d | %d | %.0f s | %.0f s | %.1f | %d |\n", s.Clients, s.Nodes, s.Processors, s.PerSecond,
		o.Half.Seconds(), o.All.Seconds(), 1+float64(o.Attempts)/float64(s.Clients), o.Wasted)
}
