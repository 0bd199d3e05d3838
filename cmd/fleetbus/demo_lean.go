//go:build lean

package main

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// newDemoCommand only says where it is.
func newDemoCommand(*command.App) *cobra.Command {
	return command.LeftOut("demo", "Show on this machine that the bus holds what it promises", "the demonstration", "where you want to see it")
}
