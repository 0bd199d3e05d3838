package admin

import (
	"context"
	"time"
)

// How the link of a site stands.
const (
	// SiteLinked is linked to a node that answers.
	SiteLinked = "linked"
	// SiteAway is not, as far as the nodes that answer know.
	SiteAway = "away"
	// SiteDenied may not be.
	SiteDenied = "denied"
)

// A Site is a fleet of one node that one account is a guest in, as its hub knows it.
type Site struct {
	Account string `json:"account"`
	Name    string `json:"name"`
	// State is SiteLinked, SiteAway or SiteDenied.
	State string `json:"state"`
	// Node holds the link, and Remote is the site's address there. Since is when it
	// was linked, and RoundTrip how long a message took there and back.
	Node      string        `json:"node,omitempty"`
	Remote    string        `json:"remote,omitempty"`
	Since     time.Time     `json:"since,omitzero"`
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
	// Current says that the site has the newest terms of the account.
	Current bool `json:"current"`
	// Machine is the host where it joined, at Joined, and Networks are those that its
	// link may come from.
	Machine  string    `json:"machine,omitempty"`
	Joined   time.Time `json:"joined,omitzero"`
	Networks []string  `json:"networks,omitempty"`
}

// An Uplink is the link of a site to its hub, as the site knows it.
type Uplink struct {
	// Fleet is the hub's name, Account the one that is a guest here.
	Fleet   string `json:"fleet"`
	Account string `json:"account"`
	// State is SiteLinked or SiteAway, since Since.
	State string    `json:"state"`
	Since time.Time `json:"since,omitzero"`
	// Remote is the hub's address, and RoundTrip how long a message took there and
	// back.
	Remote    string        `json:"remote,omitempty"`
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
	// Terms is when the hub issued the terms of the account that hold here.
	Terms time.Time `json:"terms,omitzero"`
}

// Sites lists the sites of all accounts, sorted by account and name.
func (c *Client) Sites(ctx context.Context) ([]Site, error) {
	return call[[]Site](ctx, c, "leaf.ls", struct{}{})
}
