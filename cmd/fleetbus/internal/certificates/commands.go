// Package certificates has the commands about certificates, their targets and
// challenges, and those who manage them.
package certificates

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newCertCommand(a), newCertManagerCommand(a), newConfCommand(a)}
}
