// Package messages has the commands about messages and the streams that keep them, and
// how fast they are.
package messages

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{newPubCommand(a), newSubCommand(a), newRequestCommand(a), newReplyCommand(a), newStreamCommand(a), newBenchCommand(a)}
}
