// Package changes has the commands about changes in databases, and the sources that
// tell of them.
package changes

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newChangeCommand(a)}
}
