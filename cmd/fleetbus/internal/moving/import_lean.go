//go:build lean

package moving

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// newImport stands for what only those need who move over, once.
func newImport(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "import FILE", Args: command.Takes("FILE"), Annotations: command.Writes(),
		Short: "Take over what RabbitMQ exports: not in the lean program",
		RunE: func(*cobra.Command, []string) error {
			return command.Fail(command.ExitFailed, "run the full program, on any machine that reaches the fleet", "importing definitions: the lean program is without it")
		},
	})
}
