//go:build lean

package messages

import (
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// benchVerbs are none: what measures this project needs its source tree anyway.
func benchVerbs(*command.App) []*cobra.Command { return nil }
