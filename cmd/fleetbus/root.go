package main

import (
	"context"
	"slices"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/accounts"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/certificates"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/changes"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/clouds"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/health"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/joining"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/messages"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/moving"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/nodes"
)

// commands lists the commands of the root.
func commands(a *command.App) []*cobra.Command {
	return slices.Concat(
		[]*cobra.Command{newInitCommand(a), newServeCommand(a), newConfigCommand(a), newDemoCommand(a), newConsoleCommand(a), newAuditCommand(a), newBackupCommand(a), newRestoreCommand(a), newCheckCommand(a), newDebugCommand(a),
			newVersionCommand(a), newExitCodesTopic()},
		accounts.Commands(a),
		certificates.Commands(a),
		joining.Commands(a),
		messages.Commands(a),
		moving.Commands(a),
		changes.Commands(a),
		clouds.Commands(a),
		nodes.Commands(a),
		health.Commands(a),
	)
}

// run carries out one command line and returns its exit code. ctx is done when
// the user interrupts it.
func run(ctx context.Context, a *command.App, args []string) command.ExitCode {
	return a.Run(ctx, newRootCommand(a), args)
}

func newRootCommand(a *command.App) *cobra.Command {
	root := &cobra.Command{
		Use:   "fleetbus",
		Short: "The secure message bus for a fleet of servers",
		Example: `  fleetbus status
  fleetbus user add acme/alice --out alice.creds`,
		SilenceErrors:     true,
		SilenceUsage:      true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error { return a.Begin(cmd) },
		Args:              command.Verbs,
		RunE:              func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetIn(a.Stdin)
	root.SetOut(a.Stdout)
	root.SetErr(a.Stderr)
	root.AddCommand(commands(a)...)
	root.SetHelpCommand(newHelpCommand(root))
	// The library's completion command takes any word without a complaint.
	root.InitDefaultCompletionCmd()
	if completion, _, err := root.Find([]string{"completion"}); err == nil {
		completion.Args, completion.RunE = command.Verbs, command.NeedsVerb
	}
	return root
}
