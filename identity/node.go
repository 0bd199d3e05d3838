package identity

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// A Node is a member of the cluster. It is a record of the ledger.
type Node struct {
	// Name of the node, unique in the fleet.
	Name string `json:"name"`
	// Incarnation grows when a node is replaced by another of its name, or joins
	// again after it was removed, because the engine remembers who was. The first
	// is 1.
	Incarnation int `json:"incarnation,omitempty"`
	// Advertise is the host name or address under which others reach the node.
	Advertise string `json:"advertise,omitempty"`
	// ClientAddr and ClusterAddr are the host:port for clients and for nodes.
	ClientAddr  string `json:"client_addr,omitempty"`
	ClusterAddr string `json:"cluster_addr,omitempty"`
	// LeafAddr is the host:port for sites. Empty: there is no listener for them.
	LeafAddr string `json:"leaf_addr,omitempty"`
	// GatewayAddr is the host:port for other regions. Empty: they are not linked to it.
	GatewayAddr string `json:"gateway_addr,omitempty"`
	// Version of fleetbus that the node runs.
	Version string `json:"version,omitempty"`
	// Key is the node's public nkey.
	Key string `json:"key,omitempty"`
	// Box is the public curve nkey that the fleet's new secrets are sealed to. Empty:
	// the node has not said yet.
	Box string `json:"box,omitempty"`
	// Audit is the public nkey that the node's journal of the audit is signed by, and
	// AuditBefore are those that it, or others of its name, had before.
	Audit       string   `json:"audit,omitempty"`
	AuditBefore []string `json:"audit_before,omitempty"`
	// Joined is when the node became a member.
	Joined time.Time `json:"joined,omitzero"`
	// Removed is true once the node is no member any more, RemovedAt since when.
	Removed   bool      `json:"removed,omitempty"`
	RemovedAt time.Time `json:"removed_at,omitzero"`
}

// SplitServer returns the name of the node that the engine, or a mesh
// certificate, calls server. It fails if server is what no Node.Server returns.
func SplitServer(server string) (node string, err error) {
	node, incarnation, found := strings.Cut(server, ".")
	if err := CheckName(node); err != nil {
		return "", err
	}
	if n, err := strconv.Atoi(incarnation); found && (err != nil || n < 2 || strconv.Itoa(n) != incarnation) {
		return "", fmt.Errorf("incarnation %s of node %q is not a number from 2 on", quote(incarnation), node)
	}
	return node, nil
}

// Server is the node as the engine and its mesh certificate call it: its name,
// and from the second incarnation on "." and the number.
func (n Node) Server() string {
	if n.Incarnation < 2 {
		return n.Name
	}
	return fmt.Sprintf("%s.%d", n.Name, n.Incarnation)
}
