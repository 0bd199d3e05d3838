package admin

import "time"

// How a link, or another one on its hub, stands.
const (
	// HubConnected reaches the hub.
	HubConnected = "connected"
	// HubNotConnected does not, or was not heard of for seconds.
	HubNotConnected = "not_connected"
	// HubUnknown says that the link that tells does not hear the hub itself, and
	// cannot tell.
	HubUnknown = "unknown"
	// HubStandby says that another node has the link, of those that may.
	HubStandby = "standby"
)

// A Hub is the link of one account of a node to a central broker.
type Hub struct {
	Account string `json:"account"`
	// Prefix is the topic below which everything is.
	Prefix string `json:"prefix"`
	// Server is the address that is connected, or the first one.
	Server string `json:"server"`
	// State is HubConnected, HubNotConnected or HubStandby, and Error why it is not, or why the
	// hub takes nothing.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	// Since is when it connected.
	Since time.Time `json:"since,omitzero"`
	// Queued counts what waits here to be handed on.
	Queued uint64 `json:"queued"`
	// Sent and Received count messages since the node started; Dropped those that
	// came and were known, Repeats how often some were missing and asked for again,
	// and Lost how often they could not be had.
	Sent     uint64 `json:"sent"`
	Received uint64 `json:"received"`
	Dropped  uint64 `json:"dropped"`
	Repeats  uint64 `json:"repeats"`
	Lost     uint64 `json:"lost"`
	// Peers are the links of other nodes, as far as this one hears them.
	Peers []HubPeer `json:"peers"`
	// Links are those of queues, if the broker is one of AMQP.
	Links []HubLink `json:"links,omitempty"`
}

// A HubLink carries the messages of one queue to an AMQP broker, or from there.
type HubLink struct {
	Name string `json:"name"`
	// State is HubConnected, HubNotConnected or HubStandby, and Error why.
	State string `json:"state"`
	Error string `json:"error,omitempty"`
	// Moved counts messages that are on the other side. Returned found no queue there, and
	// Refused no room: they are tried again. Again came marked as redelivered, Looped were
	// dropped because they came through this link, and Parked were put aside.
	Moved    uint64 `json:"moved"`
	Returned uint64 `json:"returned"`
	Refused  uint64 `json:"refused"`
	Again    uint64 `json:"again"`
	Looped   uint64 `json:"looped"`
	Parked   uint64 `json:"parked"`
	// Blocked says that the other side takes nothing for now.
	Blocked bool `json:"blocked,omitempty"`
}

// A HubPeer is the link of another node on the same hub.
type HubPeer struct {
	Node  string    `json:"node"`
	State string    `json:"state"`
	Heard time.Time `json:"heard"`
}
