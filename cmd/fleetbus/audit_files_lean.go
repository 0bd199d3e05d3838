//go:build lean

package main

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// auditFiles are verbs that only say where they are.
func auditFiles(*command.App) (all []*cobra.Command) {
	for _, kind := range []string{"rabbitmq", "qpid", "openstack"} {
		all = append(all, command.LeftOut(kind, "Hold files of others against the security guides", "the rules of those guides", "where the files are"))
	}
	return all
}
