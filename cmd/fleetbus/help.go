package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// newHelpCommand makes a help command that, unlike the library's, fails if it
// does not know the topic.
func newHelpCommand(root *cobra.Command) *cobra.Command {
	return &cobra.Command{
		Use: "help [COMMAND|TOPIC]", Annotations: command.Prints(),
		Short: "Help about a command, or about exit-codes",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil || len(rest) > 0 {
				return command.Fail(command.ExitUsage, "fleetbus help", "looking for help: there is no command or topic %q", strings.Join(args, " "))
			}
			return cmd.Help()
		},
	}
}

// newExitCodesTopic makes a topic of the help.
func newExitCodesTopic() *cobra.Command {
	var b strings.Builder
	b.WriteString("Every command ends with one of these exit codes:\n\n")
	for _, c := range []struct {
		code    command.ExitCode
		meaning string
	}{
		{command.ExitOK, "it is done, or was so already"},
		{command.ExitFailed, "it failed for a reason below none of the others; doctor: there is a failure; check: 1 is a warning, 2 critical, 3 unknown"},
		{command.ExitUsage, "the command line is wrong"},
		{command.ExitNotFound, "what was named does not exist"},
		{command.ExitUnavailable, "nobody could be reached, or answered in time"},
		{command.ExitDenied, "the credentials, or what they allow, do not suffice"},
		{command.ExitConflict, "it would overwrite something, or somebody was faster"},
		{command.ExitPartial, "it is done in part: some nodes did not answer"},
		{command.ExitConfig, "the configuration of the server is wrong"},
		{command.ExitInterrupted, "it was interrupted"},
	} {
		fmt.Fprintf(&b, "  %3d  %-14s %s\n", c.code, c.code, c.meaning)
	}
	b.WriteString("\nWith -o json, an error is {\"error\":{\"code\":…,\"exit\":…,\"text\":…,\"fix\":…}} on stderr.")
	return &cobra.Command{Use: "exit-codes", Short: "The exit codes of every command", Long: b.String()}
}
