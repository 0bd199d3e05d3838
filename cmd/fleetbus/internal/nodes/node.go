package nodes

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newNodeCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("node", "Nodes, the members of the cluster",
		newNodeList(a), newNodeRemove(a), newNodeRenew(a)))
}

// The states of a node.
const (
	Up      = "up"
	Removed = "removed"
)

// Status asks the fleet how it is.
func Status(a *command.App, cmd *cobra.Command, what string) (admin.Status, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Status, error) {
		return c.Status(ctx)
	})
}

func newNodeList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the nodes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := Status(a, cmd, "listing nodes")
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: s.Nodes, Text: func(p *command.Page) { Table(p, s.Nodes) }})
		},
	})
}

// Table lays nodes out for people.
func Table(p *command.Page, nodes []admin.NodeInfo) {
	command.Table(p, nodes,
		command.Col("NAME", func(n admin.NodeInfo) string { return n.Name }),
		command.Col("STATE", func(n admin.NodeInfo) string { return n.State }),
		command.Col("BUS", busWords),
		command.Col("VOTE", vote),
		command.Col("VERSION", func(n admin.NodeInfo) string { return n.Version }),
		command.Col("CLIENTS", func(n admin.NodeInfo) string { return human.Int(int64(n.Connections)) }),
		command.Col("ROUTES", func(n admin.NodeInfo) string { return strings.Join(n.Routes, ",") }),
		command.Col("APPLIED", func(n admin.NodeInfo) string { return fmt.Sprint(n.Applied) }),
		command.Col("CERTIFICATES END", func(n admin.NodeInfo) string { return human.Time(n.NotAfter) }),
		command.Col("CLOCK", func(n admin.NodeInfo) string { return human.Duration(n.Clock) }),
		command.Col("UPTIME", func(n admin.NodeInfo) string { return human.Duration(n.Uptime) }),
	)
}

// busWords say how a node stands on the bus.
func busWords(n admin.NodeInfo) string {
	if n.Bus == admin.BusCannotReachAll {
		return "cannot reach " + strings.Join(n.Unreached, ",")
	}
	return strings.ReplaceAll(n.Bus, "_", " ")
}

// vote is a node's part in agreeing on streams.
func vote(n admin.NodeInfo) string {
	switch {
	case n.Leader:
		return "leader"
	case n.Voter:
		return "voter"
	}
	return ""
}

func newNodeRemove(a *command.App) *cobra.Command {
	var g command.Guard
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Remove a node that is dead, or has left, for good",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing node %q", name)
			status, err := Status(a, cmd, what)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(status.Nodes, func(n admin.NodeInfo) bool { return n.Name == name })
			if i < 0 {
				return command.Fail(command.ExitNotFound, "fleetbus node ls", "%s: there is no such node", what)
			}
			described := fmt.Sprintf("remove node %s, which is %s, from fleet %s", name, status.Nodes[i].State, status.Fleet)
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveNode(ctx, name, force)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("node %s is removed", name))
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it even if it is up")
	g.Destroying(cmd)
	return a.Output(cmd)
}

func newNodeRenew(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "renew [NAME]", Args: command.Takes("[NAME]"), Annotations: command.Writes(),
		Short: "Renew the certificates of a node, or of all, at once",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := strings.Join(args, "")
			if g.DryRun {
				return a.ShowPlan("renew the certificates of %s", cmp.Or(name, "every node"))
			}
			renewed, err := command.Administer(cmd, a, "renewing certificates", func(ctx context.Context, c *admin.Client) ([]admin.Renewed, error) {
				return c.RenewNodes(ctx, name)
			})
			if err != nil {
				return err
			}
			if err := a.Show(command.List(renewed,
				command.Col("NODE", func(r admin.Renewed) string { return r.Node }),
				command.Col("CERTIFICATES END", func(r admin.Renewed) string { return human.Time(r.NotAfter) }),
				command.Col("IN", func(r admin.Renewed) string { return until(r.NotAfter) }),
				command.Col("ERROR", func(r admin.Renewed) string { return r.Error }),
			)); err != nil {
				return err
			}
			failed := 0
			for _, r := range renewed {
				if r.Error != "" {
					failed++
				}
			}
			if failed > 0 {
				return command.Fail(command.ExitPartial, "fleetbus doctor", "renewing certificates: %d of %d nodes failed", failed, len(renewed))
			}
			return nil
		},
	}
	g.Drying(cmd)
	return a.Output(cmd)
}

// until is how long from now t is, empty for the zero time.
func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return human.Duration(time.Until(t).Round(time.Second))
}
