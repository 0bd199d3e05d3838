package certificates

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newConfCommand(a *command.App) *cobra.Command {
	return OnManagers(a, command.Noun("conf", "The configuration of the managers of certificates, which only they can read",
		newConfUpdate(a), newConfDisplay(a)))
}

func newConfUpdate(a *command.App) *cobra.Command {
	cmd := &cobra.Command{
		Use: "update [FILE]", Args: command.Takes("[FILE]"), Annotations: command.Writes(),
		Short: "Replace the configuration by a JSON file, or by standard input",
		Long: `Replace the configuration by a JSON file, or by standard input. What is wrong with
it is said all at once, and nothing is changed then. It is sealed to the managers
and to the age recipients in "recovery".`,
		Example: `  fleetbus conf update managers.json
  fleetbus conf display | jq '.dns[0].settings.api_token = "…"' | fleetbus conf update`,
		RunE: func(cmd *cobra.Command, args []string) error {
			const what = "updating the configuration of the managers"
			in := a.Stdin
			if len(args) > 0 && args[0] != "-" {
				file, err := os.Open(args[0])
				if err != nil {
					return fmt.Errorf("%s: %w", what, err)
				}
				defer file.Close()
				in = file
			}
			text, err := io.ReadAll(io.LimitReader(in, 1<<20))
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if !json.Valid(text) {
				return command.Fail(command.ExitUsage, "docs/certificates.md has an example", "%s: it is no JSON", what)
			}
			reply, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (certmanager.ConfigReply, error) {
				return c.UpdateConfig(ctx, text)
			})
			if err != nil {
				return err
			}
			if reply.Warning != "" {
				a.Hint("warning: %s", reply.Warning)
			}
			return a.Show(command.Report{Value: reply, Text: func(p *command.Page) { p.Line("the configuration is in force, as revision %d", reply.Revision) }})
		},
	}
	return a.Output(cmd)
}

func newConfDisplay(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "display", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Print the configuration, with its secrets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := Manage(cmd, a, "reading the configuration of the managers", func(ctx context.Context, c *certmanager.Client) (certmanager.ConfigReply, error) {
				return c.Config(ctx)
			})
			if err != nil {
				return err
			}
			a.Hint("warning: there are secrets in it")
			if a.Format == command.FormatTable {
				a.Format = command.FormatJSON
			}
			return a.Show(command.Report{Value: reply.Settings})
		},
	})
}
