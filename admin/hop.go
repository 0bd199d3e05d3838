package admin

import "time"

// A Hop is one leg of the ways that messages take.
type Hop struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Kind is "client", "route", "leaf" or "gateway".
	Kind string `json:"kind"`
	// RoundTrip there and back, as it was measured last; 0 if it was not yet.
	RoundTrip time.Duration `json:"round_trip_ns"`
	Answered  bool          `json:"answered"`
}

// Hops are those that the nodes know of: from each node that is up to each other
// one, and to the sites and clusters that it is linked to.
func (s Status) Hops() []Hop {
	hops := []Hop{}
	for _, n := range s.Nodes {
		if n.State != "up" {
			continue
		}
		for _, l := range n.Links {
			hops = append(hops, Hop{From: n.Name, To: l.Node, Kind: string(EventRoute), RoundTrip: l.RoundTrip, Answered: l.Answered})
		}
		for _, r := range n.Remotes {
			hops = append(hops, Hop{From: n.Name, To: r.Name, Kind: string(r.Kind), RoundTrip: r.RoundTrip, Answered: true})
		}
	}
	return hops
}
