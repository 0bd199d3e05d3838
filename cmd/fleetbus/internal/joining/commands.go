// Package joining has the commands by which machines, sites, regions and devices come
// into a fleet.
package joining

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newJoinCommand(a), newTokenCommand(a), newLeafCommand(a), newGatewayCommand(a), newTargetCommand(a), newProvisionCommand(a)}
}
