package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newNodeCommand(a *app) *cobra.Command {
	return a.onFleet(noun("node", "Nodes, the members of the cluster",
		newNodeList(a), newNodeRemove(a), newNodeRenew(a)))
}

// The states of a node.
const (
	nodeUp      = "up"
	nodeRemoved = "removed"
)

func (a *app) status(cmd *cobra.Command, what string) (admin.Status, error) {
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Status, error) {
		return c.Status(ctx)
	})
}

func newNodeList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: takes(), Annotations: reads(),
		Short: "List the nodes",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := a.status(cmd, "listing nodes")
			if err != nil {
				return err
			}
			return a.show(report{value: s.Nodes, text: func(p *page) { nodeTable(p, s.Nodes) }})
		},
	})
}

func nodeTable(p *page, nodes []admin.NodeInfo) {
	table(p, nodes,
		column[admin.NodeInfo]{"NAME", func(n admin.NodeInfo) string { return n.Name }},
		column[admin.NodeInfo]{"STATE", func(n admin.NodeInfo) string { return n.State }},
		column[admin.NodeInfo]{"BUS", busWords},
		column[admin.NodeInfo]{"VOTE", vote},
		column[admin.NodeInfo]{"VERSION", func(n admin.NodeInfo) string { return n.Version }},
		column[admin.NodeInfo]{"CLIENTS", func(n admin.NodeInfo) string { return human.Int(int64(n.Connections)) }},
		column[admin.NodeInfo]{"ROUTES", func(n admin.NodeInfo) string { return strings.Join(n.Routes, ",") }},
		column[admin.NodeInfo]{"APPLIED", func(n admin.NodeInfo) string { return fmt.Sprint(n.Applied) }},
		column[admin.NodeInfo]{"CERTIFICATES END", func(n admin.NodeInfo) string { return human.Time(n.NotAfter) }},
		column[admin.NodeInfo]{"CLOCK", func(n admin.NodeInfo) string { return human.Duration(n.Clock) }},
		column[admin.NodeInfo]{"UPTIME", func(n admin.NodeInfo) string { return human.Duration(n.Uptime) }},
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

func newNodeRemove(a *app) *cobra.Command {
	var g guard
	var force bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: takes("NAME"), Annotations: writes(),
		Short: "Remove a node that is dead, or has left, for good",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing node %q", name)
			status, err := a.status(cmd, what)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(status.Nodes, func(n admin.NodeInfo) bool { return n.Name == name })
			if i < 0 {
				return fail(exitNotFound, "fleetbus node ls", "%s: there is no such node", what)
			}
			described := fmt.Sprintf("remove node %s, which is %s, from fleet %s", name, status.Nodes[i].State, status.Fleet)
			if g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveNode(ctx, name, force)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("node %s is removed", name))
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it even if it is up")
	g.destroying(cmd)
	return a.output(cmd)
}

func newNodeRenew(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "renew [NAME]", Args: takes("[NAME]"), Annotations: writes(),
		Short: "Renew the certificates of a node, or of all, at once",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := strings.Join(args, "")
			if g.dryRun {
				return a.showPlan("renew the certificates of %s", or(name, "every node"))
			}
			renewed, err := administer(cmd, a, "renewing certificates", func(ctx context.Context, c *admin.Client) ([]admin.Renewed, error) {
				return c.RenewNodes(ctx, name)
			})
			if err != nil {
				return err
			}
			if err := a.show(list(renewed,
				column[admin.Renewed]{"NODE", func(r admin.Renewed) string { return r.Node }},
				column[admin.Renewed]{"CERTIFICATES END", func(r admin.Renewed) string { return human.Time(r.NotAfter) }},
				column[admin.Renewed]{"IN", func(r admin.Renewed) string { return until(r.NotAfter) }},
				column[admin.Renewed]{"ERROR", func(r admin.Renewed) string { return r.Error }},
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
				return fail(exitPartial, "fleetbus doctor", "renewing certificates: %d of %d nodes failed", failed, len(renewed))
			}
			return nil
		},
	}
	g.drying(cmd)
	return a.output(cmd)
}

// until is how long from now t is, empty for the zero time.
func until(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return human.Duration(time.Until(t).Round(time.Second))
}
