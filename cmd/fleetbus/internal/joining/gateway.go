package joining

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nats-io/nkeys"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newGatewayCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("gateway", "Regions: clusters of this fleet with a ledger each, joined by gateways",
		newGatewayToken(a), newGatewayList(a), newGatewayRemove(a)))
}

func newGatewayToken(a *command.App) *cobra.Command {
	request := admin.TokenRequest{Kind: identity.KindRegion}
	var m tokenMaker
	cmd := &cobra.Command{
		Use: "token REGION", Args: command.Takes("REGION"), Annotations: command.Writes(),
		Short: "Make an enrollment token for a region",
		Long: `Make an enrollment token for a region of that name. Its text is shown once and
kept nowhere: whoever holds it can make one region, which gets the secrets of the
fleet as a node does, until it expires.`,
		Example: `  fleetbus gateway token us
  fleetbus gateway token us --life 2h`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Name = args[0]
			return m.make(cmd, a, request, "region "+args[0], "region "+args[0], "on the first node of the region")
		},
	}
	m.add(cmd)
	return a.Output(cmd)
}

func regions(a *command.App, cmd *cobra.Command, what string) ([]admin.Region, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.Region, error) { return c.Regions(ctx) })
}

func newGatewayList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the regions and how they are linked",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := regions(a, cmd, "listing regions")
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: all, Text: func(p *command.Page) { RegionTable(p, all) }})
		},
	})
}

// RegionTable lays regions out for people.
func RegionTable(p *command.Page, all []admin.Region) {
	command.Table(p, all,
		command.Col("REGION", func(r admin.Region) string { return r.Name }),
		command.Col("STATE", func(r admin.Region) string { return r.State }),
		command.Col("ROLE", func(r admin.Region) string {
			if r.Home {
				return "home"
			}
			return ""
		}),
		command.Col("NODES", regionNodes),
		command.Col("ROUND TRIP", func(r admin.Region) string { return roundTrip(r.RoundTrip) }),
		command.Col("SINCE", func(r admin.Region) string { return human.Time(r.Since) }),
		command.Col("GATEWAYS", func(r admin.Region) string { return strings.Join(r.Addrs, ",") }),
		command.Col("CLIENTS", func(r admin.Region) string { return strings.Join(r.Servers, ",") }),
	)
}

// regionNodes names those of a region that answer there.
func regionNodes(r admin.Region) string {
	names := []string{}
	for _, n := range r.Nodes {
		names = append(names, n.Name)
	}
	return strings.Join(names, ",")
}

func newGatewayRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm REGION", Aliases: []string{"delete"}, Args: command.Takes("REGION"), Annotations: command.Writes(),
		Short: "Remove a region and end the links with it, for good",
		Long: `Remove a region and end the links with it, for good. What it has it keeps, and
goes on by itself: it is for regions that are lost, or given up.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("removing region %q", args[0])
			all, err := regions(a, cmd, what)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(r admin.Region) bool { return r.Name == args[0] })
			if i < 0 {
				return command.Fail(command.ExitNotFound, "fleetbus gateway ls", "%s: there is no such region", what)
			}
			described := fmt.Sprintf("remove region %s, which is %s", args[0], all[i].State)
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, args[0], described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) { return c.RemoveRegion(ctx, args[0]) })
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("region %s is removed", args[0]))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}

// joinRegion exchanges the token for what makes this machine the first node of a
// region.
func (f *joinFlags) joinRegion(cmd *cobra.Command, host, token string) error {
	const what = "joining as gateway"
	c, o, err := f.Load(cmd)
	if err != nil {
		return err
	}
	o = boot.Standard(o)
	there, err := fleetbus.Initialized(o.Dir)
	if err != nil {
		return boot.Failure(what, err)
	}
	seal := filepath.Join(o.Dir, sealName)
	if there {
		if err := forget(seal); err != nil {
			return err
		}
		return f.App.Show(command.Report{Value: joined{DataDir: o.Dir}, Text: func(p *command.Page) {
			p.Line("already a node, nothing to do: %s holds one", o.Dir)
		}})
	}
	record := fleetbus.NodeRecord(o)
	if record.GatewayAddr == "" {
		return command.Fail(command.ExitUsage, "--listeners-gateway-addr :7222", "%s: this node has no gateway, or one at no fixed port", what)
	}
	client, err := dialFleet(cmd.Context(), enroll.Join{Host: host, Token: token})
	if err != nil {
		return err
	}
	defer client.Close()
	fleet, err := client.Region(cmd.Context(), enroll.RegionRequest{Version: fleetbus.Version()})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	checks, err := f.reach(cmd.Context(), what, "gateway", fleet.Addrs)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return boot.Failure(what, fmt.Errorf("making the data directory: %w", err))
	}
	key, err := keptKey(seal, nkeys.FromCurveSeed, nkeys.CreateCurveKeys)
	if err != nil {
		return boot.Failure(what, err)
	}
	defer key.Wipe()
	request := enroll.RegionRequest{Node: record, Version: fleetbus.Version()}
	if request.Seal, err = key.PublicKey(); err != nil {
		return fmt.Errorf("reading the joiner's key: %w", err)
	}
	if request.Machine, err = os.Hostname(); err != nil {
		request.Machine = o.Advertise
	}
	reply, err := client.Region(cmd.Context(), request)
	if err != nil {
		return refused(err, seal)
	}
	authority, err := identity.OpenAuthority(reply.Authority, reply.Sender, key)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if err := f.Settle(c, o.Dir, func() error { return fleetbus.Enroll(o, reply, authority) }); err != nil {
		return boot.Failure(what, err)
	}
	if err := forget(seal); err != nil {
		return err
	}
	result := joined{Changed: true, Fleet: reply.Fleet, Name: reply.Cluster, DataDir: o.Dir, Checks: checks}
	return f.App.Show(command.Report{Value: result, Text: func(p *command.Page) {
		p.Line("this machine is the first node of region %s of fleet %s, in %s", reply.Cluster, reply.Fleet, o.Dir)
		p.Line("start it:")
		p.Line("  %s", boot.ServeLine(f.App, o.Dir))
		p.Line("more nodes join it by itself: fleetbus token add node, there")
	}})
}
