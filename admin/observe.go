package admin

import (
	"context"
	"time"
)

// ConnectionsRequest asks for live connections.
type ConnectionsRequest struct {
	// Account, if it is not empty, is the only one.
	Account string `json:"account,omitempty"`
	// Most of each node, the busiest. Default: 500; 5000 at most.
	Most int `json:"most,omitempty"`
}

// Connections are live connections, the busiest of each node.
type Connections struct {
	Time        time.Time    `json:"time"`
	Connections []ClientInfo `json:"connections"`
	// More counts those that are not among them, and Missing names the nodes that did
	// not answer.
	More    int      `json:"more"`
	Missing []string `json:"missing"`
}

// A ClientInfo is one live connection, of whom, and what it has carried.
type ClientInfo struct {
	Connection
	Account string `json:"account"`
	Name    string `json:"name"`
	// Listener that it came in by, if that is not the engine's.
	Listener string `json:"listener,omitempty"`
	// InMsgs and InBytes came in from the client, OutMsgs and OutBytes went out to it.
	InMsgs   int64 `json:"in_msgs"`
	OutMsgs  int64 `json:"out_msgs"`
	InBytes  int64 `json:"in_bytes"`
	OutBytes int64 `json:"out_bytes"`
	// Pending waits for the client to read, in bytes, and RoundTrip is the engine's last
	// measurement.
	Pending   int           `json:"pending,omitempty"`
	RoundTrip time.Duration `json:"round_trip_ns,omitempty"`
}

// Connections lists live connections.
func (c *Client) Connections(ctx context.Context, r ConnectionsRequest) (Connections, error) {
	return call[Connections](ctx, c, "connection.ls", r)
}

// CloseRequest asks that a connection end: one of Connections.
type CloseRequest struct {
	Node    string `json:"node"`
	ID      uint64 `json:"id"`
	Account string `json:"account"`
	Kind    string `json:"kind"`
}

// CloseConnection ends a connection; its client may come again. For who may not there
// is DenyUser.
func (c *Client) CloseConnection(ctx context.Context, r CloseRequest) (Applied, error) {
	return call[Applied](ctx, c, "connection.close", r)
}

// StreamsRequest asks for streams.
type StreamsRequest struct {
	// Account, if it is not empty, is the only one.
	Account string `json:"account,omitempty"`
}

// Streams are those that some node leads, as that node says.
type Streams struct {
	Streams []StreamInfo `json:"streams"`
	// More counts those that are not among them, and Missing names the nodes that did
	// not answer.
	More    int      `json:"more"`
	Missing []string `json:"missing"`
}

// StreamInfo is a stream, without what is in it.
type StreamInfo struct {
	Account  string   `json:"account"`
	Name     string   `json:"name"`
	Subjects []string `json:"subjects"`
	Storage  string   `json:"storage"`
	Messages uint64   `json:"messages"`
	Bytes    uint64   `json:"bytes"`
	MaxBytes int64    `json:"max_bytes,omitempty"`
	// MaxMessages is another limit. Refuses says that what is too much is refused, and not
	// the oldest dropped. Distinct counts the subjects of what is in it.
	MaxMessages int64     `json:"max_messages,omitempty"`
	Refuses     bool      `json:"refuses,omitempty"`
	Distinct    int       `json:"distinct_subjects,omitempty"`
	FirstSeq    uint64    `json:"first_sequence"`
	LastSeq     uint64    `json:"last_sequence"`
	Last        time.Time `json:"last,omitzero"`
	Replicas    int       `json:"replicas"`
	Leader      string    `json:"leader,omitempty"`
	Consumers   int       `json:"consumers"`
	// Copies are the other copies, and how far each is behind.
	Copies []Copy `json:"copies,omitempty"`
	// Readers are the consumers with the most that waits, 20 at most.
	Readers []ConsumerInfo `json:"readers,omitempty"`
}

// A Copy is a replica of a stream.
type Copy struct {
	Node    string `json:"node"`
	Current bool   `json:"current"`
	Offline bool   `json:"offline,omitempty"`
	Lag     uint64 `json:"lag,omitempty"`
}

// ConsumerInfo is a reader of a stream, and how far it is.
type ConsumerInfo struct {
	Name string `json:"name"`
	// Pending waits to be handed to it, AckPending to be acknowledged by it, and
	// Redelivered was handed to it again.
	Pending     uint64 `json:"pending"`
	AckPending  int    `json:"ack_pending"`
	Redelivered int    `json:"redelivered"`
	// Active is when it was last given a message, Created when it was made.
	Active  time.Time `json:"active,omitzero"`
	Created time.Time `json:"created,omitzero"`
	// Temporary is one that the engine removes when nobody reads by it.
	Temporary bool `json:"temporary,omitempty"`
}

// Streams lists the streams of accounts, and who reads them.
func (c *Client) Streams(ctx context.Context, r StreamsRequest) (Streams, error) {
	return call[Streams](ctx, c, "stream.ls", r)
}

// AccountsRequest asks for accounts.
type AccountsRequest struct {
	// Brief leaves out what only the engine knows: connections, streams and bytes. It is
	// for those who ask again and again.
	Brief bool `json:"brief,omitempty"`
}

// AccountsBrief lists the accounts as the fleet agrees on them, which costs next to
// nothing.
func (c *Client) AccountsBrief(ctx context.Context) ([]AccountInfo, error) {
	return call[[]AccountInfo](ctx, c, "account.ls", AccountsRequest{Brief: true})
}
