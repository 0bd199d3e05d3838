package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

// administrator is who was made with the fleet.
const administrator = identity.FleetName + "/admin"

// isConsole reports whether people log in to the listener by a link.
func isConsole(l fleetbus.Listener) bool {
	_, ok := l.Protocol.(interface {
		LoginURL(addr, secret string) string
	})
	return ok
}

func newConsoleCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("console", "The web console of a node", newConsoleLogin(a)))
}

func newConsoleLogin(a *command.App) *cobra.Command {
	user := administrator
	cmd := &cobra.Command{
		Use: "login", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Make a link that lets somebody into the console, once",
		Example: `  fleetbus console login
  fleetbus console login --user acme/alice`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			link, err := command.Administer(cmd, a, "making a login link", func(ctx context.Context, c *admin.Client) (admin.LoginLink, error) {
				return c.LoginLink(ctx, user)
			})
			if err != nil {
				return err
			}
			a.Hint("this opens the console of node %s as %s, once, until %s:", link.Node, user, human.Time(link.Expires))
			return a.Show(command.Report{Value: link, Text: func(p *command.Page) { p.Line("%s", link.URL) }})
		},
	}
	cmd.Flags().StringVar(&user, "user", user, "the `ACCOUNT/NAME` who logs in")
	return a.Output(cmd)
}
