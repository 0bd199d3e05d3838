package admin

import (
	"context"
	"time"
)

// How another region stands.
const (
	// RegionLinked answers.
	RegionLinked = "linked"
	// RegionAway does not.
	RegionAway = "away"
	// RegionHere is the one that was asked.
	RegionHere = "here"
)

// A RegionLink is another region as the node knows it that asks it for what is new.
type RegionLink struct {
	Name string `json:"name"`
	// State is RegionLinked or RegionAway, since Since.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	// Current says that all that is new there is known here, up to its event
	// Sequence.
	Current  bool   `json:"current"`
	Sequence uint64 `json:"sequence"`
	// RoundTrip is how long the last question took.
	RoundTrip time.Duration `json:"round_trip_ns"`
}

// A Region is one cluster of a fleet that has several.
type Region struct {
	RegionLink
	// Home says that accounts, roles, and what crosses between accounts, are changed
	// there.
	Home bool `json:"home"`
	// Addrs are host:port of its gateways, and Joined is when it became a region.
	Addrs  []string  `json:"addrs"`
	Joined time.Time `json:"joined,omitzero"`
	// Machine is the host where it joined.
	Machine string `json:"machine,omitempty"`
	// Servers are host:port where its NATS clients connect. Nodes are its nodes, as it
	// says. Both are empty if it is away.
	Servers []string   `json:"servers,omitempty"`
	Nodes   []NodeInfo `json:"nodes,omitempty"`
}

// Regions lists the regions of the fleet, sorted by name; none if it has one cluster.
func (c *Client) Regions(ctx context.Context) ([]Region, error) {
	return call[[]Region](ctx, c, "gateway.ls", struct{}{})
}

// RemoveRegion ends the links with a region for good, on both sides if it can be
// reached. What it has it keeps.
func (c *Client) RemoveRegion(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "gateway.rm", Name{name})
}
