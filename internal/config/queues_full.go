//go:build !lean

package config

import (
	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/hub/shovel"
	"github.com/fleetbus/fleetbus/identity"
)

// newQueueLink makes the service of a hub of type amqp. Its errors are those of shovel.New.
func newQueueLink(s linkSettings, h hub.Options, account, node string) (fleetbus.Service, identity.Permissions, error) {
	link, err := shovel.New(shovel.Options{
		Account: account, Node: node, In: s.in, Out: s.out, Prefetch: s.prefetch, Park: s.park,
		Remote: shovel.End{URL: h.Servers[0], CA: h.CA, Cert: h.Cert, Key: h.Key, ServerName: h.ServerName, User: h.User, PasswordFile: h.PasswordFile},
		Local:  shovel.End{URL: s.local, CA: s.ca, Cert: s.cert, Key: s.key, User: s.user, PasswordFile: s.passwordFile},
	})
	return link, shovel.Permissions(), err
}
