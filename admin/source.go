package admin

import (
	"context"
	"time"

	"github.com/fleetbus/fleetbus/change"
)

// A Source is a database whose changes a node announces in an account, as the
// fleet keeps it. Exactly one node runs it at a time.
type Source struct {
	Account string `json:"account"`
	// Name of the source, by which it is watched.
	Name string `json:"name"`
	// Type of the database, such as postgres.
	Type string `json:"type"`
	// Secret is how to reach it, sealed to the fleet by identity.SealSecret. Lists
	// leave it out.
	Secret string `json:"secret,omitempty"`
	// Tables to tell of. Empty: all.
	Tables []string `json:"tables,omitempty"`
	// Place is where the source keeps how far it has come: the name of a permanent
	// replication slot, or of a file on the node. Empty: nowhere.
	Place string `json:"place,omitempty"`
	// Node that alone may run it. Empty: any.
	Node string `json:"node,omitempty"`
	// Opaque lets keys pass that look random.
	Opaque bool `json:"opaque,omitempty"`
}

// The states of a source.
const (
	// SourceRunning says that a node tells of its changes.
	SourceRunning = "running"
	// SourceFailed says that the node that has it cannot.
	SourceFailed = "failed"
	// SourceWaiting says that no node has it now.
	SourceWaiting = "waiting"
)

// SourceInfo is a source and where it stands.
type SourceInfo struct {
	Source
	State string `json:"state"`
	// Runner is the node that has it, Since when.
	Runner string    `json:"runner,omitempty"`
	Since  time.Time `json:"since,omitzero"`
	// Error is why it failed.
	Error string `json:"error,omitempty"`
	// Progress is where it stood when Runner last said so.
	Progress change.Progress `json:"progress"`
	// Announced and Refused count, since the runner began, changes, and keys that
	// looked like secrets.
	Announced uint64 `json:"announced"`
	Refused   uint64 `json:"refused"`
}

// SourceSetup is what whoever adds a source has to know.
type SourceSetup struct {
	// SecretPublic is what Source.Secret is sealed to.
	SecretPublic string `json:"secret_public"`
	// Types are those that the node knows.
	Types []string `json:"types"`
}

// SourceSetup tells what AddSource needs.
func (c *Client) SourceSetup(ctx context.Context) (SourceSetup, error) {
	return call[SourceSetup](ctx, c, "source.setup", struct{}{})
}

// AddSource makes a source, or changes one that exists. A node begins to run it
// within seconds.
func (c *Client) AddSource(ctx context.Context, s Source) (Spread, error) {
	return call[Spread](ctx, c, "source.add", s)
}

// Sources lists the sources of an account, or of all accounts if account is empty.
func (c *Client) Sources(ctx context.Context, account string) ([]SourceInfo, error) {
	return call[[]SourceInfo](ctx, c, "source.ls", Name{account})
}

// RemoveSource removes a source, account/name.
func (c *Client) RemoveSource(ctx context.Context, name string) (Spread, error) {
	return call[Spread](ctx, c, "source.rm", Name{name})
}
