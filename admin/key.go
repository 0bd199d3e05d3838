package admin

import (
	"context"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// A Key is one that the fleet shares and that can be changed while it runs.
type Key struct {
	// Name is identity.KeyOperator, KeyAuthority or KeyRoutes, or "role" for that of
	// Account and Role.
	Name    string `json:"name"`
	Account string `json:"account,omitempty"`
	Role    string `json:"role,omitempty"`
	// Signs says what it signs.
	Signs string `json:"signs"`
	// Generation is the ID of the newest, empty if it is the first, and Made when it
	// was made.
	Generation string    `json:"generation"`
	Made       time.Time `json:"made"`
	// Old are those before it that are still good.
	Old []OldKey `json:"old"`
}

// An OldKey is one that is good until then.
type OldKey struct {
	Generation string    `json:"generation"`
	Until      time.Time `json:"until"`
	// Cut are the users, sites and enrollment tokens that nobody is let in by after it,
	// because what they have was signed by that key and not renewed since.
	Cut []string `json:"cut"`
}

// Keys are all keys, and what is needed to change the operator's.
type Keys struct {
	Keys []Key `json:"keys"`
	// Operator is its JWT, and Boxes those of the nodes, by identity.Node.Server.
	Operator string            `json:"operator"`
	Boxes    map[string]string `json:"boxes"`
}

// KeyRequest changes a key.
type KeyRequest struct {
	// Name is that of a Key. A role's without a Role is that of all roles of Account.
	Name    string `json:"name"`
	Account string `json:"account,omitempty"`
	Role    string `json:"role,omitempty"`
	// Keep is how long the old key is good; zero ends it now.
	Keep time.Duration `json:"keep_ns,omitempty"`
	// Known is the newest generation that whoever asks knows of: if there is a newer
	// one nothing is changed.
	Known string `json:"known"`
	// Operator and Seed are those of identity.NewOperatorKey, for the operator's.
	Operator string          `json:"operator,omitempty"`
	Seed     identity.Sealed `json:"seed,omitzero"`
}

// KeyReply says what holds now.
type KeyReply struct {
	Spread
	// Keys are those that were changed.
	Keys []Key `json:"keys"`
}

// Keys lists the keys. It is the request "key.ls".
func (c *Client) Keys(ctx context.Context) (Keys, error) {
	return call[Keys](ctx, c, "key.ls", struct{}{})
}

// RotateKey changes a key. It is the request "key.rotate".
func (c *Client) RotateKey(ctx context.Context, r KeyRequest) (KeyReply, error) {
	return call[KeyReply](ctx, c, "key.rotate", r)
}
