package command

import "github.com/spf13/cobra"

// LeftOut is a command that the lean program has only to say where it is: "make build TAGS="
// makes one that has it, to be run where is said. The words of without follow "built
// without".
func LeftOut(use, short, without, where string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Annotations: Prints(), DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return Fail(ExitUsage, "make build TAGS=, and run that "+where, "%s: this is the lean program, which is built without %s", cmd.CommandPath(), without)
		},
	}
}
