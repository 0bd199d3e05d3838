// Package clouds has the commands that give the services of a cloud what they need to call
// each other over this fleet.
package clouds

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{a.OnFleet(command.Noun("openstack", "Users for the services of an OpenStack deployment", verbs(a)...))}
}
