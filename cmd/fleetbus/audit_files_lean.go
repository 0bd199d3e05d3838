//go:build lean

package main

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// auditFiles are verbs that say that they are not in the lean program.
func auditFiles(*command.App) (all []*cobra.Command) {
	for _, kind := range []string{"rabbitmq", "qpid", "openstack"} {
		all = append(all, &cobra.Command{
			Use: kind, Hidden: true, DisableFlagParsing: true, Args: cobra.ArbitraryArgs, Annotations: command.Prints(),
			Short: "Hold files of others against the security guides",
			RunE: func(*cobra.Command, []string) error {
				return command.Fail(command.ExitUsage, "make build TAGS=, and run that", "auditing %s: this is the lean program, which is built without it", kind)
			},
		})
	}
	return all
}
