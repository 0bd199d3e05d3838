package admin

import (
	"context"
	"time"
)

// TopRequest asks how much goes on.
type TopRequest struct {
	// Interval that the nodes measure for. Default: 1s; at most 10s.
	Interval time.Duration `json:"interval_ns,omitempty"`
	// Account, if it is not empty, is the only one; with Users its users are told
	// apart.
	Account string `json:"account,omitempty"`
	Users   bool   `json:"users,omitempty"`
}

// A Rate is what goes on in an account, or at one of its users: connections, and in
// a second the messages and bytes that come in from clients, and go out to them. What
// nodes send one another is not counted.
type Rate struct {
	// Name of the account, or account/name of the user.
	Name        string  `json:"name"`
	Connections int     `json:"connections"`
	InMsgs      float64 `json:"in_msgs"`
	OutMsgs     float64 `json:"out_msgs"`
	InBytes     float64 `json:"in_bytes"`
	OutBytes    float64 `json:"out_bytes"`
}

// Add adds what o has.
func (r *Rate) Add(o Rate) {
	r.Connections += o.Connections
	r.InMsgs += o.InMsgs
	r.OutMsgs += o.OutMsgs
	r.InBytes += o.InBytes
	r.OutBytes += o.OutBytes
}

// Top is how much goes on in a fleet.
type Top struct {
	Time time.Time `json:"time"`
	// Rates are the busiest, the busiest first, of all nodes together. Others are
	// those that are not among them.
	Rates  []Rate `json:"rates"`
	Others Rate   `json:"others"`
	// Missing names the nodes that did not answer, and Errors what the others could
	// not tell.
	Missing []string `json:"missing"`
	Errors  []string `json:"errors"`
}

// Top measures how much goes on, for the interval that it was asked for.
func (c *Client) Top(ctx context.Context, r TopRequest) (Top, error) {
	return call[Top](ctx, c, "top", r)
}
