// Package enroll is the joiner's half of enrollment: it reaches the fleet with a
// one-time token, checks that both can see each other, and exchanges a request
// for certificates and credentials. Keys are made where they are used; only
// public halves leave. It does not link the engine.
//
// A [Join] says who wants to join and where. [Join.Preflight] finds everything
// that stands in the way and changes nothing; [Dial] connects; [Client.Node],
// [Client.Leaf], [Client.Region] and [Client.User] exchange the token.
package enroll

import (
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// The subjects, in the fleet account, that the holder of a token may ask, each
// followed by "." and the ID of the token: its permissions name no other.
const (
	// PreflightSubject is asked of every node; each sends its PreflightReply.
	PreflightSubject = "preflight"
	// NodeSubject exchanges a token of kind node. The answer is an admin.Reply
	// with a NodeReply.
	NodeSubject = "enroll.node"
	// LeafSubject exchanges a token of kind leaf. The answer is an admin.Reply with
	// a LeafReply.
	LeafSubject = "enroll.leaf"
	// RegionSubject exchanges a token of kind gateway. The answer is an admin.Reply with
	// a NodeReply.
	RegionSubject = "enroll.gateway"
	// UserSubject exchanges a token of kind user or target. The answer is an
	// admin.Reply with a UserReply.
	UserSubject = "enroll.user"
)

// ServerName is the TLS server name by which a joiner asks for the certificate of
// the authority that its token knows, whose hash stands before it: see
// identity.TokenText.
const ServerName = "enroll.fleetbus.invalid"

// Preflight is what a joiner asks every node before anything changes.
type Preflight struct {
	// Name that the joiner wants, and Replace whether it takes the place of a
	// node of that name.
	Name    string `json:"name"`
	Replace bool   `json:"replace,omitempty"`
	// Version of its program.
	Version string `json:"version"`
	// Dial are host:port at the joiner that the nodes must reach; whoever dials
	// reads the Echo line there, which ends with "\n". The text itself is in Echo
	// without the end.
	Dial []string `json:"dial"`
	Echo string   `json:"echo"`
	// Time is the joiner's clock.
	Time time.Time `json:"time"`
}

// PreflightReply is one node's answer.
type PreflightReply struct {
	Node    string `json:"node"`
	Version string `json:"version"`
	// Time is its clock when the question came, before it dialed anything.
	Time time.Time `json:"time"`
	// Nodes is how many nodes will answer, itself included.
	Nodes int `json:"nodes"`
	// Cluster is the host:port of its routes, Clients that of its NATS listener.
	Cluster string `json:"cluster"`
	Clients string `json:"clients"`
	// Unreachable has, for each address of Dial that failed, the reason.
	Unreachable map[string]string `json:"unreachable,omitempty"`
	// NameTaken says that another node of that name exists, and what it is. A
	// joiner that asks to replace that node takes it for news, not for a problem.
	NameTaken string `json:"name_taken,omitempty"`
	// Refused says why a joiner of that version may not join.
	Refused string `json:"refused,omitempty"`
	// Token says why the token does not make a node of that name; nil if it does.
	Token *admin.Error `json:"token,omitempty"`
}

// NodeRequest exchanges a token of kind node.
type NodeRequest struct {
	Name      string `json:"name"`
	Replace   bool   `json:"replace,omitempty"`
	Version   string `json:"version"`
	Advertise string `json:"advertise"`
	// Clients and Cluster are host:port where others reach it.
	Clients string `json:"clients"`
	Cluster string `json:"cluster"`
	// Hosts are the names and addresses for its server certificate.
	Hosts []string `json:"hosts"`
	// CSR is the PEM request for its two certificates.
	CSR string `json:"csr"`
	// Seal is the public curve key to which the authority is sealed.
	Seal string `json:"seal"`
}

// NodeReply makes the joiner a node.
type NodeReply struct {
	Fleet   string `json:"fleet"`
	Cluster string `json:"cluster"`
	// Node is its record.
	Node identity.Node `json:"node"`
	// Mesh and Server are PEM chains.
	Mesh   string `json:"mesh"`
	Server string `json:"server"`
	// Authority is sealed to the request's key, by the curve key Sender.
	Authority []byte `json:"authority"`
	Sender    string `json:"sender"`
	// Snapshot is the fleet's state, and Sequence its last event.
	Snapshot []byte `json:"snapshot"`
	Sequence uint64 `json:"sequence"`
	// Nodes are all, the joiner included.
	Nodes []identity.Node `json:"nodes"`
	// Founder says that it is the first node of a region, which Cluster names, and Addrs
	// are then host:port of the gateways of the one that answers.
	Founder bool     `json:"founder,omitempty"`
	Addrs   []string `json:"addrs,omitempty"`
	// Warning is what the operator should know.
	Warning string `json:"warning,omitempty"`
}

// LeafRequest exchanges a token of kind leaf. Without a Key it changes nothing, and
// the answer says what the token is for.
type LeafRequest struct {
	// Key is the public user nkey of the link.
	Key string `json:"key,omitempty"`
	// Signer and Fleet are those of identity.Site.
	Signer string `json:"signer,omitempty"`
	Fleet  string `json:"fleet,omitempty"`
	// Machine is the name of the host, and Version that of its program.
	Machine string `json:"machine,omitempty"`
	Version string `json:"version"`
}

// LeafReply makes the joiner a site.
type LeafReply struct {
	// Fleet is the hub's name, Name the site's.
	Fleet string `json:"fleet"`
	Name  string `json:"name"`
	// Account that the site is of, with its terms if the token was exchanged.
	Account identity.Account `json:"account"`
	// Addrs are host:port of the listeners for sites.
	Addrs []string `json:"addrs"`
	// Operator is the JWT of the hub's operator, and CA the PEM authority that its
	// nodes are verified with.
	Operator string `json:"operator,omitempty"`
	CA       string `json:"ca,omitempty"`
	// JWT of the link, good until Expires.
	JWT     string    `json:"jwt,omitempty"`
	Expires time.Time `json:"expires,omitzero"`
}

// RegionRequest exchanges a token of kind gateway. Without a Seal it changes nothing,
// and the answer says what the token is for.
type RegionRequest struct {
	// Node is the record of the region's first node.
	Node identity.Node `json:"node"`
	// Seal is the public curve key to which the authority is sealed.
	Seal string `json:"seal,omitempty"`
	// Machine is the name of the host, and Version that of its program.
	Machine string `json:"machine,omitempty"`
	Version string `json:"version"`
}

// UserRequest exchanges a token of kind user or target.
type UserRequest struct {
	// Name is account/name; the token may already bind it.
	Name string `json:"name,omitempty"`
	// Key is a public user nkey, CSR a PEM certificate request; at least one.
	Key string `json:"key,omitempty"`
	CSR string `json:"csr,omitempty"`
}

// UserReply carries the credentials.
type UserReply struct {
	Name    string    `json:"name"`
	JWT     string    `json:"jwt,omitempty"`
	Chain   string    `json:"chain,omitempty"`
	CA      string    `json:"ca"`
	Servers []string  `json:"servers"`
	Expires time.Time `json:"expires"`
	// Signer signs the certificates that a target takes. Empty but for a target.
	Signer string `json:"signer,omitempty"`
}
