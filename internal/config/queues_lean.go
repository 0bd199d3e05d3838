//go:build lean

package config

import (
	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/identity"
)

// newQueueLink refuses: a client of AMQP is what few nodes need.
func newQueueLink(linkSettings, hub.Options, string, string) (fleetbus.Service, identity.Permissions, error) {
	return nil, identity.Permissions{}, &hub.FieldError{Field: "type", Problem: "this is the lean program, which is built without links to AMQP brokers", Hint: "make build TAGS=, and run that on the nodes"}
}
