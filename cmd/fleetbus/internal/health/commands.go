// Package health has the commands that say how a fleet is, and what happens in it.
package health

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newStatusCommand(a), newDoctorCommand(a), newExplainCommand(a), newEventsCommand(a), newTopCommand(a), newPingCommand(a), newHubCommand(a)}
}
