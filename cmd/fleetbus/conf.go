package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/certmanager"
)

func newConfCommand(a *app) *cobra.Command {
	return a.onManagers(noun("conf", "The configuration of the managers of certificates, which only they can read",
		newConfUpdate(a), newConfDisplay(a)))
}

func newConfUpdate(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use: "update [FILE]", Args: takes("[FILE]"), Annotations: writes(),
		Short: "Replace the configuration by a JSON file, or by standard input",
		Long: `Replace the configuration by a JSON file, or by standard input. What is wrong with
it is said all at once, and nothing is changed then. It is sealed to the managers
and to the age recipients in "recovery".`,
		Example: `  fleetbus conf update managers.json
  fleetbus conf display | jq '.dns[0].settings.api_token = "…"' | fleetbus conf update`,
		RunE: func(cmd *cobra.Command, args []string) error {
			const what = "updating the configuration of the managers"
			in := a.stdin
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
				return fail(exitUsage, "docs/certificates.md has an example", "%s: it is no JSON", what)
			}
			reply, err := manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (certmanager.ConfigReply, error) {
				return c.UpdateConfig(ctx, text)
			})
			if err != nil {
				return err
			}
			if reply.Warning != "" {
				a.hint("warning: %s", reply.Warning)
			}
			return a.show(report{value: reply, text: func(p *page) { p.line("the configuration is in force, as revision %d", reply.Revision) }})
		},
	}
	return a.output(cmd)
}

func newConfDisplay(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "display", Args: takes(), Annotations: reads(),
		Short: "Print the configuration, with its secrets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			reply, err := manage(cmd, a, "reading the configuration of the managers", func(ctx context.Context, c *certmanager.Client) (certmanager.ConfigReply, error) {
				return c.Config(ctx)
			})
			if err != nil {
				return err
			}
			a.hint("warning: there are secrets in it")
			if a.format == formatTable {
				a.format = formatJSON
			}
			return a.show(report{value: reply.Settings})
		},
	})
}
