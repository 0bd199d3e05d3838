package nodes

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

// membershipTimeout is how long leaving and a rescue may take: streams move, and
// the engine assumes a leader that is gone for up to 20 s.
const membershipTimeout = 2 * time.Minute

func newLeaveCommand(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "leave", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Take the node of this machine out of its fleet",
		Long: `Move the streams of this machine's node to the others, take it out of the
fleet, and stop it. A node that is dead is removed from another one instead:
fleetbus node rm NAME.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "leaving the fleet"
			patient(a, cmd)
			status, err := Status(a, cmd, what)
			if err != nil {
				return err
			}
			dir, err := a.DataDir()
			if err != nil {
				return err
			}
			name, err := Local(dir)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			described := fmt.Sprintf("take node %s out of fleet %s and stop it", name, status.Fleet)
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			left, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Left, error) { return c.Leave(ctx, name) })
			if err != nil {
				return err
			}
			if left.Nodes == 2 {
				a.Hint("warning: two voters survive no failure: add a third node")
			}
			return a.Show(command.Report{Value: left, Text: func(p *command.Page) {
				p.Line("node %s has left fleet %s; %s moved, %s stay", left.Node, status.Fleet, human.Count(left.Streams, "stream"), human.Count(left.Nodes, "node"))
			}})
		},
	}
	g.Destroying(cmd)
	return a.Output(a.OnFleet(cmd))
}

func newRescueCommand(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rescue", Args: command.Takes(), Annotations: command.Writes(),
		Short: "Go on with the nodes that are up, after the others were lost for good",
		Long: `When more than half of the nodes are lost for good, nothing durable can be
written any more. A rescue gives up the nodes that do not answer, and makes
those that are up the whole fleet. What only the lost nodes had is lost. Be
sure that they never come back: they would be a second fleet.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "rescuing the fleet"
			patient(a, cmd)
			status, err := Status(a, cmd, what)
			if err != nil {
				return err
			}
			var down, up []string
			for _, n := range status.Nodes {
				if n.State == "up" {
					up = append(up, n.Name)
				} else {
					down = append(down, n.Name)
				}
			}
			a.Hint("up:   %s", command.OrDash(strings.Join(up, ", ")))
			a.Hint("lost: %s", command.OrDash(strings.Join(down, ", ")))
			described := fmt.Sprintf("give up %s for good and go on with %s alone", command.OrDash(strings.Join(down, ", ")), strings.Join(up, ", "))
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, status.Fleet, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			rescued, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Rescued, error) { return c.Rescue(ctx) })
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: rescued, Text: func(p *command.Page) {
				p.Line("fleet %s goes on with %s; %s brought back, %s given up", status.Fleet, strings.Join(up, ", "),
					human.Count(rescued.Streams, "stream"), strings.Join(rescued.Removed, ", "))
				p.Line("next: fleetbus token add node, until there are three nodes again")
			}})
		},
	}
	g.Destroying(cmd)
	return a.Output(a.OnFleet(cmd))
}

// patient waits longer than other commands, unless the user said how long.
func patient(a *command.App, cmd *cobra.Command) {
	if !cmd.Flags().Changed("timeout") {
		a.Fleet.Timeout = membershipTimeout
	}
}

// Local names the node whose server runs on this machine.
func Local(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "run.json"))
	if err != nil {
		return "", command.LocalProblem("looking for a server on this machine", dir, err)
	}
	var running struct {
		Node string `json:"node"`
	}
	if err := json.Unmarshal(data, &running); err != nil {
		return "", fmt.Errorf("reading run.json: %w", err)
	}
	return running.Node, nil
}
