//go:build lean

package clouds

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// verbs only say where they are.
func verbs(*command.App) []*cobra.Command {
	var all []*cobra.Command
	for verb, short := range map[string]string{"plan": "Say which accounts, roles and users a deployment needs", "apply": "Make what a deployment needs"} {
		all = append(all, &cobra.Command{
			Use: verb, Short: short, Annotations: command.Prints(), DisableFlagParsing: true,
			RunE: func(cmd *cobra.Command, _ []string) error {
				return command.Fail(command.ExitUsage, "make build TAGS=, and run that where you plan", "%s: this is the lean program, which is built without OpenStack's services", cmd.CommandPath())
			},
		})
	}
	return all
}
