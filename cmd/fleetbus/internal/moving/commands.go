// Package moving has the commands that move what other brokers have to a fleet.
package moving

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// Commands are the commands of this package.
func Commands(a *command.App) []*cobra.Command {
	return []*cobra.Command{a.OnFleet(command.Noun("amqp", "AMQP: moving over from RabbitMQ", newImport(a)))}
}
