package admin

import (
	"fmt"
	"os"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

// UserCredentials is nats.UserCredentials for a creds file of a fleet, with the inbox of
// its user: some roles hear replies nowhere else.
func UserCredentials(file string) nats.Option {
	return func(o *nats.Options) error {
		creds, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("reading credentials: %w", err)
		}
		if err := nats.CustomInboxPrefix(identity.CredsInbox(creds))(o); err != nil {
			return err
		}
		return nats.UserCredentials(file)(o)
	}
}
