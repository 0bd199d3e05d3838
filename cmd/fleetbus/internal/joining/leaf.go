package joining

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/boot"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newLeafCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("leaf", "Sites: fleets of one node, which one account of this fleet is a guest in",
		newLeafToken(a), newLeafList(a), newLeafRemove(a)))
}

func newLeafToken(a *command.App) *cobra.Command {
	request := admin.TokenRequest{Kind: identity.KindLeaf}
	var m tokenMaker
	cmd := &cobra.Command{
		Use: "token ACCOUNT", Args: command.Takes("ACCOUNT"), Annotations: command.Writes(),
		Short: "Make an enrollment token for a site of an account",
		Long: `Make an enrollment token for a site of an account. Its text is shown once and
kept nowhere: whoever holds it can make one site of that name, until it expires.`,
		Example: `  fleetbus leaf token acme --site berlin
  fleetbus leaf token acme --site berlin --network 192.0.2.0/24 --life 2h`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request.Account = args[0]
			if request.Name == "" {
				return command.Fail(command.ExitUsage, "--site NAME", "adding a token: a token for a site needs the site's name")
			}
			site := fmt.Sprintf("site %s of account %s", request.Name, request.Account)
			return m.make(cmd, a, request, site, site, "there")
		},
	}
	cmd.Flags().StringVar(&request.Name, "site", "", "`name` of the site, and of the domain that its streams have")
	cmd.Flags().StringSliceVar(&request.Networks, "network", nil, "networks that its link may come from, such as 192.0.2.0/24 (default: any)")
	m.add(cmd)
	return a.Output(cmd)
}

func sites(a *command.App, cmd *cobra.Command, what string) ([]admin.Site, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.Site, error) { return c.Sites(ctx) })
}

func newLeafList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: command.Takes("[ACCOUNT]"), Annotations: command.Reads(),
		Short: "List the sites and how they are linked",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := sites(a, cmd, "listing sites")
			if err != nil {
				return err
			}
			if len(args) > 0 {
				all = slices.DeleteFunc(all, func(s admin.Site) bool { return s.Account != args[0] })
			}
			return a.Show(command.Report{Value: all, Text: func(p *command.Page) { siteTable(p, all) }})
		},
	})
}

func siteTable(p *command.Page, all []admin.Site) {
	command.Table(p, all,
		command.Col("ACCOUNT", func(s admin.Site) string { return s.Account }),
		command.Col("SITE", func(s admin.Site) string { return s.Name }),
		command.Col("STATE", func(s admin.Site) string { return s.State }),
		command.Col("NODE", func(s admin.Site) string { return s.Node }),
		command.Col("ADDRESS", func(s admin.Site) string { return s.Remote }),
		command.Col("ROUND TRIP", func(s admin.Site) string { return roundTrip(s.RoundTrip) }),
		command.Col("SINCE", func(s admin.Site) string { return human.Time(s.Since) }),
		command.Col("NETWORKS", func(s admin.Site) string { return strings.Join(s.Networks, ",") }),
		command.Col("JOINED ON", func(s admin.Site) string { return s.Machine }),
	)
}

func roundTrip(d time.Duration) string {
	if d == 0 {
		return ""
	}
	return d.Round(10 * time.Microsecond).String()
}

// SiteStatus is what status says of sites, at their hub and at one of them.
func SiteStatus(p *command.Page, s admin.Status) {
	if len(s.Sites) > 0 {
		p.Line("")
		siteTable(p, s.Sites)
	}
	for _, n := range s.Nodes {
		if up := n.Uplink; up != nil {
			p.Line("")
			command.Fields(p, []command.Field{
				{"site of", "account " + up.Account + " of fleet " + up.Fleet}, {"hub", up.State + " since " + human.Time(up.Since)},
				{"address", up.Remote}, {"round trip", roundTrip(up.RoundTrip)},
			})
		}
	}
}

func newLeafRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT SITE", Aliases: []string{"delete"}, Args: command.Takes("ACCOUNT", "SITE"), Annotations: command.Writes(),
		Short: "Remove a site and close its link, for good",
		RunE: func(cmd *cobra.Command, args []string) error {
			full := args[0] + "/" + args[1]
			what := fmt.Sprintf("removing site %q", full)
			all, err := sites(a, cmd, what)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(all, func(s admin.Site) bool { return s.Account == args[0] && s.Name == args[1] })
			if i < 0 {
				return command.Fail(command.ExitNotFound, "fleetbus leaf ls", "%s: there is no such site", what)
			}
			described := fmt.Sprintf("remove site %s, which is %s", full, all[i].State)
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, full, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) { return c.RemoveUser(ctx, full) })
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("site %s is removed: %s closed", full, human.Count(s.Closed(), "link")))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}

// joinLeaf exchanges the token for what makes this machine a site.
func (f *joinFlags) joinLeaf(cmd *cobra.Command, host, token string) error {
	const what = "joining as leaf"
	c, o, err := f.Load(cmd)
	if err != nil {
		return err
	}
	o = boot.Standard(o)
	there, err := fleetbus.Initialized(o.Dir)
	if err != nil {
		return boot.Failure(what, err)
	}
	if there {
		return f.App.Show(command.Report{Value: joined{DataDir: o.Dir}, Text: func(p *command.Page) {
			p.Line("already a node, nothing to do: %s holds one", o.Dir)
		}})
	}
	client, err := dialFleet(cmd.Context(), enroll.Join{Host: host, Token: token})
	if err != nil {
		return err
	}
	defer client.Close()
	hub, err := client.Leaf(cmd.Context(), enroll.LeafRequest{Version: fleetbus.Version()})
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	checks, err := f.reach(cmd.Context(), what, "hub", hub.Addrs)
	if err != nil {
		return err
	}
	err = f.Settle(c, o.Dir, func() error {
		_, err := fleetbus.EnrollSite(o, hub.Name, func(r enroll.LeafRequest) (enroll.LeafReply, error) { return client.Leaf(cmd.Context(), r) })
		return err
	})
	if err != nil {
		return boot.Failure(what, err)
	}
	result := joined{Changed: true, Fleet: hub.Fleet, Name: hub.Name, DataDir: o.Dir, Checks: checks}
	return f.App.Show(command.Report{Value: result, Text: func(p *command.Page) {
		p.Line("this machine is site %s of account %s of fleet %s, in %s", hub.Name, hub.Account.Name, hub.Fleet, o.Dir)
		p.Line("start it:")
		p.Line("  %s", boot.ServeLine(f.App, o.Dir))
	}})
}

// reach tries where links are taken: one of these addresses must be reached.
func (f *joinFlags) reach(ctx context.Context, what, name string, addrs []string) (checks []enroll.Check, err error) {
	reached := false
	for _, addr := range addrs {
		check := enroll.Check{Name: name, OK: true, Detail: addr + " can be reached"}
		try, cancel := context.WithTimeout(ctx, 5*time.Second)
		conn, err := new(net.Dialer).DialContext(try, "tcp", addr)
		cancel()
		if err != nil {
			check.OK, check.Detail, check.Fix = false, err.Error(), "open the way to "+addr+" in the firewall between"
		} else {
			reached = true
			conn.Close()
		}
		f.App.ShowCheck(check.Name, check.OK, check.Detail, check.Fix)
		checks = append(checks, check)
	}
	if !reached {
		return checks, command.Fail(command.ExitUnavailable, "open the way to one of "+strings.Join(addrs, ", "), "%s: no node can be reached where links are taken, and nothing was changed", what)
	}
	return checks, nil
}
