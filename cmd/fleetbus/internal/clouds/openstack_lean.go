//go:build lean

package clouds

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// verbs only say where they are.
func verbs(*command.App) []*cobra.Command {
	const services = "OpenStack's services"
	return []*cobra.Command{
		command.LeftOut("plan", "Say which accounts, roles and users a deployment needs", services, "where you plan"),
		command.LeftOut("apply", "Make what a deployment needs", services, "where you plan"),
	}
}
