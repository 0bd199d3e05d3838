package certificates

import (
	"cmp"
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newCertTarget(a *command.App) *cobra.Command {
	return command.Noun("target", "Targets, which serve the certificates of a group",
		newCertTargetAdd(a), newCertTargetList(a), newCertTargetRemove(a))
}

func newCertTargetAdd(a *command.App) *cobra.Command {
	var r certmanager.TargetRequest
	var g command.Guard
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Invite a target into a group",
		Long: `Invite a target into a group. It is sent the certificates of the group once it has
joined under that name.`,
		Example: `  fleetbus cert target add lb-1 --group web
  fleetbus token add target --for acme/lb-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			if g.DryRun {
				return a.ShowPlan("invite target %s into group %s", r.Name, cmp.Or(r.Group, certmanager.DefaultGroup))
			}
			info, err := Manage(cmd, a, fmt.Sprintf("inviting target %q", r.Name), func(ctx context.Context, c *certmanager.Client) (certmanager.TargetInfo, error) {
				return c.AddTarget(ctx, r.Group, r.Name)
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: info, Text: func(p *command.Page) { p.Line("target %s of group %s is %s", info.Name, info.Group, info.State) }})
		},
	}
	cmd.Flags().StringVar(&r.Group, "group", "", "group (default \"default\")")
	g.Drying(cmd)
	return a.Output(cmd)
}

func newCertTargetList(a *command.App) *cobra.Command {
	var r certmanager.TargetRequest
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the targets",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := Manage(cmd, a, "listing targets", func(ctx context.Context, c *certmanager.Client) ([]certmanager.TargetInfo, error) {
				return c.Targets(ctx, r.Group)
			})
			if err != nil {
				return err
			}
			type row = certmanager.TargetInfo
			return a.Show(command.List(all,
				command.Col("NAME", func(t row) string { return t.Name }),
				command.Col("GROUP", func(t row) string { return t.Group }),
				command.Col("STATE", func(t row) string { return t.State }),
				command.Col("PRESENT", func(t row) string { return human.YesNo(t.Present) }),
				command.Col("JOINED", func(t row) string { return human.Time(t.Joined) }),
			))
		},
	}
	cmd.Flags().StringVar(&r.Group, "group", "", "those of one group (default: all)")
	return a.Output(cmd)
}

func newCertTargetRemove(a *command.App) *cobra.Command {
	var r certmanager.TargetRequest
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Remove a target from a group, and make anew what it could open",
		Long: `Remove a target from a group. The group gets another key, and every certificate
that the target could open another private key: what it knows it cannot forget.
To shut it out of the bus, too: fleetbus user deny ACCOUNT/NAME.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			what := fmt.Sprintf("removing target %q", r.Name)
			described := fmt.Sprintf("remove target %s from group %s, and renew every certificate that it could open", r.Name, cmp.Or(r.Group, certmanager.DefaultGroup))
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, r.Name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			info, err := Manage(cmd, a, what, func(ctx context.Context, c *certmanager.Client) (certmanager.TargetInfo, error) {
				return c.RemoveTarget(ctx, r.Group, r.Name)
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: info, Text: func(p *command.Page) {
				p.Line("target %s is removed from group %s", info.Name, info.Group)
				p.Line("%s that it could open get another private key", human.Count(info.Rekeyed, "certificate"))
				if info.Imported > 0 {
					p.Line("%s that it could open were imported: import others in their place", human.Count(info.Imported, "certificate"))
				}
			}})
		},
	}
	cmd.Flags().StringVar(&r.Group, "group", "", "group (default \"default\")")
	g.Destroying(cmd)
	return a.Output(cmd)
}
