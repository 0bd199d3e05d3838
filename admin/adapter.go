package admin

import (
	"context"

	"github.com/fleetbus/fleetbus/identity"
)

// The headers of a message that an adapter has stored. A client's own of these
// names, and those by which it would ask the engine for something, are taken away.
const (
	// AdapterAccount and AdapterSender are the names of who sent the message, as the
	// engine says it.
	AdapterAccount = "Fleetbus-Account"
	AdapterSender  = "Fleetbus-Sender"
	// AdapterSubject is the subject in that account, AdapterTime when a node took
	// the message, in RFC 3339.
	AdapterSubject = "Fleetbus-Subject"
	AdapterTime    = "Fleetbus-Time"
)

// AdapterPrefix is before the adapter's name, the account, and the subject in it,
// in the subject of a message that is stored.
const AdapterPrefix = "adapter."

// Busy answers a request that cannot be taken now: it may be sent again.
const Busy Code = "busy"

// Stored is the data of the Reply to a request that an adapter has stored.
type Stored struct {
	Stream   string `json:"stream"`
	Sequence uint64 `json:"seq"`
	// Duplicate says that a message of that sender with the same Nats-Msg-Id was
	// there already.
	Duplicate bool `json:"duplicate,omitempty"`
}

// AdapterRequest asks for an adapter.
type AdapterRequest struct {
	Name string `json:"name"`
	// From are the accounts, Subject what is taken of each.
	From    []string `json:"from"`
	Subject string   `json:"subject"`
	// To is the account of Stream, which is made if it is missing.
	To     string `json:"to"`
	Stream string `json:"stream"`
}

// AdapterInfo is an adapter and what it did on each node.
type AdapterInfo struct {
	identity.Adapter
	Nodes []AdapterCount `json:"nodes"`
	// Missing are nodes that did not answer, and Waiting accounts where something
	// else is in the way.
	Missing []string `json:"missing"`
	Waiting []string `json:"waiting"`
}

// AdapterCount counts, since the node began, messages that came, that are stored,
// that were refused, and that the stream has not acknowledged yet.
type AdapterCount struct {
	Node     string `json:"node"`
	Received uint64 `json:"received"`
	Stored   uint64 `json:"stored"`
	Refused  uint64 `json:"refused"`
	Pending  uint64 `json:"pending"`
}

// AddAdapter makes an adapter, or sets one that exists.
func (c *Client) AddAdapter(ctx context.Context, r AdapterRequest) (Spread, error) {
	return call[Spread](ctx, c, "adapter.add", r)
}

// Adapters lists the adapters.
func (c *Client) Adapters(ctx context.Context) ([]AdapterInfo, error) {
	return call[[]AdapterInfo](ctx, c, "adapter.ls", struct{}{})
}

// RemoveAdapter removes an adapter; its stream stays.
func (c *Client) RemoveAdapter(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "adapter.rm", Name{name})
}
