package admin

import (
	"context"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// ProvisionerRequest asks to answer strangers in an account.
type ProvisionerRequest struct {
	Account string `json:"account"`
	// Key is the public user nkey of the connection, and CSR a PEM request for the
	// certificate that machines know the provisioner by.
	Key string `json:"key"`
	CSR string `json:"csr"`
}

// ProvisionerReply makes who asked a provisioner, until Expires.
type ProvisionerReply struct {
	Fleet string `json:"fleet"`
	// Name of the provisioner in the account, and the JWT of its key there.
	Name string `json:"name"`
	JWT  string `json:"jwt"`
	// Chain is its certificate and the fleet's authorities, in PEM.
	Chain   string    `json:"chain"`
	Expires time.Time `json:"expires"`
	// Replicas is on how many nodes to keep what provisioners agree on.
	Replicas int `json:"replicas"`
	// Servers are the NATS listeners of the nodes.
	Servers []string `json:"servers"`
}

// Provisioner makes the holder of r's keys a provisioner, for an hour. It is asked by
// a user of role admin or provisioner.
func (c *Client) Provisioner(ctx context.Context, r ProvisionerRequest) (ProvisionerReply, error) {
	return call[ProvisionerReply](ctx, c, "provision.open", r)
}

// ProvisionRequest asks for the identity of a machine.
type ProvisionRequest struct {
	// Name is account/name, Role what it may do. Key is its public user nkey, CSR the
	// PEM request for its certificate.
	Name string `json:"name"`
	Role string `json:"role"`
	Key  string `json:"key"`
	CSR  string `json:"csr"`
}

// Provision gives a machine its identity. Who has that key has it already, and gets
// the same identity again; a name that is another's is a Conflict. It is asked by
// a user of role admin or provisioner.
func (c *Client) Provision(ctx context.Context, r ProvisionRequest) (UserReply, error) {
	return call[UserReply](ctx, c, "provision.machine", r)
}

// Provisionable says why a machine may not have that role in that account; nil if
// it may.
func Provisionable(account, role string) *Error {
	if err := identity.CheckAccountName(account); err != nil {
		return Errorf(Denied, "choose an account of machines", "no machine gets an identity in account %q", account)
	}
	switch role {
	case identity.RoleLeaf, identity.RoleTarget, identity.RoleCertManager, identity.RoleAdmin, identity.RoleProvisioner:
		return Errorf(Denied, "choose another role", "no machine gets the role %q", role)
	}
	return nil
}

// TellProvision has a node tell of a request of a machine, as an event of the kind
// EventProvision. It is asked by a user of role admin or provisioner.
func (c *Client) TellProvision(ctx context.Context, ev Event) error {
	_, err := call[struct{}](ctx, c, "provision.tell", ev)
	return err
}
