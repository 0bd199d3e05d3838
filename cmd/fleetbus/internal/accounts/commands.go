// Package accounts has the commands about who may connect, and what they may do there:
// accounts, users, roles, adapters and keys.
package accounts

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newAccountCommand(a), newUserCommand(a), newRoleCommand(a), newAdapterCommand(a), newKeyCommand(a)}
}
