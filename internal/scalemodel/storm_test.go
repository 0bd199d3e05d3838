package scalemodel

import (
	"testing"
	"time"
)

// TestStorm has a storm end about as fast as the processors allow with places for
// handshakes; without, nodes work for clients that have given up.
func TestStorm(t *testing.T) {
	s := Storm{Clients: 6000, Nodes: 2, Processors: 2, Login: time.Millisecond, Refuse: 100 * time.Microsecond, RoundTrip: 5 * time.Millisecond, Gated: true}
	ideal := time.Duration(s.Clients/s.Nodes/s.Processors) * s.Login
	if gated := s.Run(1); gated.All < ideal || gated.All > 5*ideal || gated.Wasted > 0 {
		t.Errorf("with places %+v; if nothing is lost it is %v", gated, ideal)
	}
	s.Clients = 30_000
	s.Longest = 2 * time.Minute
	gated := s.Run(1)
	s.Gated = false
	if open := s.Run(1); gated.All == 0 || open.All > 0 || open.Wasted < s.Clients {
		t.Errorf("without places %+v, with places %+v", open, gated)
	}
	few := Storm{Clients: 100, Nodes: 2, Processors: 2, Login: time.Millisecond, RoundTrip: time.Millisecond, Gated: true}.Run(1)
	if few.Attempts > 0 || few.All == 0 || few.All > time.Second {
		t.Errorf("a few clients: %+v", few)
	}
}
