package identity

import (
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Kind says what sort of thing connects.
type Kind string

const (
	// KindUser is a person, an application or a machine of a customer.
	KindUser Kind = "user"
	// KindNode is a member of the cluster.
	KindNode Kind = "node"
	// KindService runs inside a server.
	KindService Kind = "service"
	// KindLeaf is a site that is linked to the fleet.
	KindLeaf Kind = "leaf"
	// KindRegion is a region that joins the fleet.
	KindRegion Kind = "gateway"
	// KindTarget is what serves certificates that are delivered to it, such as a load
	// balancer.
	KindTarget Kind = "target"
	// KindToken is a stranger with an enrollment token, who may only enroll.
	KindToken Kind = "token"
	// KindStranger is a machine that nobody knows, which may only ask for an identity.
	KindStranger Kind = "stranger"
)

// Validate says that k is none of the kinds above; nil if it is one.
func (k Kind) Validate() error {
	switch k {
	case KindUser, KindNode, KindService, KindLeaf, KindRegion, KindTarget, KindToken, KindStranger:
		return nil
	}
	return fmt.Errorf("kind %s is not user, node, service, leaf, target, token or stranger", quote(string(k)))
}

// A Principal is who connects, once authenticated, and what it may do. Get one
// from Directory.Authenticate, or fill one in for a service of your own. It is a
// plain value; its slices must not be changed once it is shared.
type Principal struct {
	// Account and Name together identify the principal in its fleet.
	Account string `json:"account"`
	Name    string `json:"name"`
	// Kind of principal.
	Kind Kind `json:"kind"`
	// Role that Permissions and Limits came from; empty if from none.
	Role string `json:"role,omitempty"`
	// Permissions within Account.
	Permissions Permissions `json:"permissions"`
	// Limits of each connection: Subscriptions, Payload and Data count. Connections
	// is how many the principal may have.
	Limits Limits `json:"limits,omitzero"`
	// Listeners that the principal may come in by. Empty: any.
	Listeners []string `json:"listeners,omitempty"`
	// Networks that it may come from, such as 10.0.0.0/8. Empty: any.
	Networks []string `json:"networks,omitempty"`
	// Signing of its account, if it is a user of one.
	Signing Signing `json:"signing,omitempty"`
	// Expires is when its sessions end. Zero: never.
	Expires time.Time `json:"expires,omitzero"`
}

// String returns the full name, such as "acme/alice".
func (p Principal) String() string { return p.Account + "/" + p.Name }

// Inbox begins the subjects where p hears replies: a role that may not read everything
// lets it read those of no other. No user has the name that a service has there.
func (p Principal) Inbox() string {
	if p.Kind == KindService {
		return Inbox("+" + p.Name)
	}
	return Inbox(p.Name)
}

// Inbox begins the subjects where the user of that name hears replies. It is what the
// option nats.CustomInboxPrefix takes.
func Inbox(name string) string { return "_INBOX." + name }

// LogValue is the full name: the rest can be looked up.
func (p Principal) LogValue() slog.Value { return slog.StringValue(p.String()) }

// Validate returns every problem of p, joined; nil if there is none.
func (p Principal) Validate() error {
	_, _, err := SplitName(p.String())
	return errors.Join(err, p.Kind.Validate(), p.Permissions.Validate(), p.Limits.Validate(), checkNetworks(p.Networks))
}
