//go:build !lean

package config

import (
	"errors"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/hub/shovel"
	"github.com/fleetbus/fleetbus/identity"
)

// newQueueLink makes the service of a hub of type amqp. Its errors are joined, and name
// fields.
func newQueueLink(s linkSettings, h hub.Options, account, node string) (fleetbus.Service, identity.Permissions, error) {
	link, err := shovel.New(shovel.Options{
		Account: account, Node: node, In: s.in, Out: s.out, Prefetch: s.prefetch, Park: s.park,
		Remote: shovel.End{URL: h.Servers[0], CA: h.CA, Cert: h.Cert, Key: h.Key, ServerName: h.ServerName, User: h.User, PasswordFile: h.PasswordFile},
		Local:  shovel.End{URL: s.local, CA: s.ca, Cert: s.cert, Key: s.key, User: s.user, PasswordFile: s.passwordFile},
	})
	return link, shovel.Permissions(), inFields(err)
}

// inFields are problems as this package knows them.
func inFields(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []error
		for _, one := range joined.Unwrap() {
			all = append(all, inFields(one))
		}
		return errors.Join(all...)
	}
	var wrong *shovel.FieldError
	if errors.As(err, &wrong) {
		return fieldError(wrong.Field, wrong.Problem, wrong.Hint)
	}
	return err
}
