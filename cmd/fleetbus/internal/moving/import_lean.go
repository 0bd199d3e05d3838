//go:build lean

package moving

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// newImport stands for what only those need who move over, once.
func newImport(*command.App) *cobra.Command {
	return command.LeftOut("import FILE", "Take over what RabbitMQ exports", "the import from RabbitMQ", "where the definitions are")
}
