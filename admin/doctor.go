package admin

import (
	"context"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
)

// ExamineRequest asks nodes to look at themselves and at one another.
type ExamineRequest struct {
	// Nodes are those that are asked. None: all; of a large fleet ask for 50 at a time.
	Nodes []string `json:"nodes,omitempty"`
}

// Examinations are what nodes found, in the order of their names.
type Examinations struct {
	Nodes []Examination `json:"nodes"`
	// Missing names the nodes that did not answer.
	Missing []string `json:"missing"`
}

// An Examination is what one node found of its own machine and of its peers.
type Examination struct {
	Node string `json:"node"`
	// Results are of its machine.
	Results []doctor.Result `json:"results"`
	// Dials are the connections that it tried to open to others.
	Dials []Dial `json:"dials"`
	// Leaderless are the streams, account/name, of which it has a copy and knows no
	// leader.
	Leaderless []string `json:"leaderless,omitempty"`
}

// A Dial is one node's attempt to open a connection to an address of another.
type Dial struct {
	Node string `json:"node"`
	// What the address is for: "cluster", "clients", "leaf" or "gateway".
	What string `json:"what"`
	Addr string `json:"addr"`
	// Error is why it did not come about; empty if it did, and then Took is how long.
	Error string        `json:"error,omitempty"`
	Took  time.Duration `json:"took_ns,omitempty"`
	// Refused says that the machine answered, and said no: nobody listens there, or a
	// firewall rejects. Older nodes do not tell it.
	Refused bool `json:"refused,omitempty"`
}

// Examine has nodes look at their own machines, and open a connection to each address of
// the others. It takes up to two seconds, and five if one does not answer.
func (c *Client) Examine(ctx context.Context, r ExamineRequest) (Examinations, error) {
	return call[Examinations](ctx, c, "doctor.ls", r)
}
