// Package nodes has the commands about the nodes of a fleet, and how they leave it.
package nodes

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newNodeCommand(a), newLeaveCommand(a), newRescueCommand(a)}
}
