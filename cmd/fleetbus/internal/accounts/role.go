package accounts

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newRoleCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("role", "Roles, which say what users may do",
		newRoleAdd(a), newRoleList(a), newRoleInfo(a), newRoleRemove(a)))
}

// roleFlags are the flags of role add.
type roleFlags struct {
	publish, publishDeny     []string
	subscribe, subscribeDeny []string
	replyMax                 int
	replyFor                 command.Life
	limits                   limitFlags
	expires                  command.Life
	networks, listeners      []string
	hours                    []string
	zone                     string
}

func (f *roleFlags) add(flags *pflag.FlagSet) {
	flags.StringSliceVar(&f.publish, "publish", nil, "subjects that may be published, with * and > as wildcards")
	flags.StringSliceVar(&f.publishDeny, "publish-deny", nil, "subjects among them that may not")
	flags.StringSliceVar(&f.subscribe, "subscribe", nil, "subjects that may be subscribed to")
	flags.StringSliceVar(&f.subscribeDeny, "subscribe-deny", nil, "subjects among them that may not")
	flags.IntVar(&f.replyMax, "reply-max", 0, "messages that may answer a request; 0 forbids answers that --publish does not allow")
	flags.Var(&f.replyFor, "reply-for", "how long after a request it may be answered")
	f.limits.addConnection(flags)
	flags.Var(&f.expires, "expires", "life of credentials, such as 24h or 30d, or never")
	flags.StringSliceVar(&f.networks, "network", nil, "networks that users may come from, such as 10.0.0.0/8 (default: any)")
	flags.StringSliceVar(&f.hours, "hours", nil, "times of the day at which users may be connected, such as 08:00-18:00 (default: any)")
	flags.StringVar(&f.zone, "zone", "", "time `zone` of --hours, such as Europe/Berlin (default: UTC)")
	flags.StringSliceVar(&f.listeners, "listener", nil, "listeners that users may come in by (default: any)")
}

// apply sets what the flags name and leaves the rest of the role.
func (f *roleFlags) apply(flags *pflag.FlagSet, r *identity.Role) {
	p := &r.Permissions
	for _, l := range []struct {
		name string
		list *[]string
		to   []string
	}{
		{"publish", &p.Publish.Allow, f.publish}, {"publish-deny", &p.Publish.Deny, f.publishDeny},
		{"subscribe", &p.Subscribe.Allow, f.subscribe}, {"subscribe-deny", &p.Subscribe.Deny, f.subscribeDeny},
		{"network", &r.Networks, f.networks}, {"hours", &r.Hours.Spans, f.hours}, {"listener", &r.Listeners, f.listeners},
	} {
		if flags.Changed(l.name) {
			*l.list = l.to
		}
	}
	if flags.Changed("zone") {
		r.Hours.Zone = f.zone
	}
	f.limits.apply(flags, &r.Limits)
	if flags.Changed("reply-max") || flags.Changed("reply-for") {
		replies := identity.Replies{Max: 1, For: time.Minute}
		if p.Replies != nil {
			replies = *p.Replies
		}
		if flags.Changed("reply-max") {
			replies.Max = f.replyMax
		}
		if flags.Changed("reply-for") {
			replies.For = time.Duration(f.replyFor)
		}
		p.Replies = &replies
		if replies.Max == 0 {
			p.Replies = nil
		}
	}
	if flags.Changed("expires") {
		r.Expires = time.Duration(f.expires)
		if f.expires == command.Never {
			r.Expires = 0
		}
	}
}

// roleNamed asks the fleet for a role; ok is false if there is none of that name.
func roleNamed(a *command.App, cmd *cobra.Command, what, name string) (r identity.Role, ok bool, err error) {
	roles, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]identity.Role, error) {
		return c.Roles(ctx)
	})
	i := slices.IndexFunc(roles, func(r identity.Role) bool { return r.Name == name })
	if err != nil || i < 0 {
		return identity.Role{Name: name, Expires: 24 * time.Hour}, false, err
	}
	return roles[i], true, nil
}

func newRoleAdd(a *command.App) *cobra.Command {
	var f roleFlags
	var g command.Guard
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Make a role, or set what is named of one",
		Long: `Make a role, or set what is named of one that exists, for all users who have it.
A new role allows nothing that is not named, and credentials last 24h. The texts
{{name()}} and {{account-name()}} in a subject stand for the user's.`,
		Example: `  fleetbus role add sensor --publish 'site.{{name()}}.>' --subscribe '_INBOX.{{name()}}.>'
  fleetbus role add worker --subscribe 'jobs.>,_INBOX.{{name()}}.>' --reply-max 1 --payload 64KiB --network 10.0.0.0/8`,
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("adding role %q", name)
			r, exists, err := roleNamed(a, cmd, what, name)
			if err != nil {
				return err
			}
			if r.Builtin {
				return command.Fail(command.ExitConflict, "choose another name", "%s: it is built in and cannot be changed", what)
			}
			f.apply(cmd.Flags(), &r)
			if err := r.Validate(); err != nil {
				return command.Fail(command.ExitUsage, "fleetbus role add --help", "%s: %s", what, strings.ReplaceAll(err.Error(), "\n", "; "))
			}
			switch {
			case g.DryRun && exists:
				return a.ShowPlan("set role %s", name)
			case g.DryRun:
				return a.ShowPlan("make role %s", name)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddRole(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("role %s is live", name))
		},
	}
	f.add(cmd.Flags())
	g.Drying(cmd)
	return a.Output(cmd)
}

func newRoleList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the roles, the built-in ones among them",
		RunE: func(cmd *cobra.Command, _ []string) error {
			roles, err := command.Administer(cmd, a, "listing roles", func(ctx context.Context, c *admin.Client) ([]identity.Role, error) {
				return c.Roles(ctx)
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(roles,
				command.Col("NAME", func(r identity.Role) string { return r.Name }),
				command.Col("PUBLISH", func(r identity.Role) string { return formatRule(r.Permissions.Publish) }),
				command.Col("SUBSCRIBE", func(r identity.Role) string { return formatRule(r.Permissions.Subscribe) }),
				command.Col("EXPIRES", func(r identity.Role) string { return command.FormatLife(r.Expires) }),
				command.Col("BUILT IN", func(r identity.Role) string { return human.YesNo(r.Builtin) }),
			))
		},
	})
}

// formatRule writes a rule on one line.
func formatRule(r identity.Rule) string {
	s := strings.Join(r.Allow, ",")
	if len(r.Deny) > 0 {
		s += " but " + strings.Join(r.Deny, ",")
	}
	return s
}

func newRoleInfo(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "info NAME", Aliases: []string{"get", "show"}, Args: command.Takes("NAME"), Annotations: command.Reads(),
		Short: "Tell of one role",
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("asking for role %q", args[0])
			r, ok, err := roleNamed(a, cmd, what, args[0])
			switch {
			case err != nil:
				return err
			case !ok:
				return command.Fail(command.ExitNotFound, "fleetbus role ls", "%s: there is no such role", what)
			}
			return a.Show(command.Report{Value: r, Text: func(p *command.Page) {
				answers := "no"
				if q := r.Permissions.Replies; q != nil {
					answers = fmt.Sprintf("%d within %s", q.Max, human.Duration(q.For))
				}
				command.Fields(p, []command.Field{{"name", r.Name}, {"built in", human.YesNo(r.Builtin)},
					{"publish", formatRule(r.Permissions.Publish)}, {"subscribe", formatRule(r.Permissions.Subscribe)},
					{"replies", answers}, {"expires", command.FormatLife(r.Expires)},
					{"networks", cmp.Or(strings.Join(r.Networks, ","), "any")}, {"listeners", cmp.Or(strings.Join(r.Listeners, ","), "any")},
					{"hours", cmp.Or(strings.TrimSpace(strings.Join(r.Hours.Spans, ",")+" "+r.Hours.Zone), "any")},
					{"connections", human.Limit(r.Limits.Connections, human.Int)},
					{"subscriptions", human.Limit(r.Limits.Subscriptions, human.Int)},
					{"payload", human.Limit(r.Limits.Payload, human.Size)}, {"data", human.Limit(r.Limits.Data, human.Size)}})
			}})
		},
	})
}

func newRoleRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Remove a role that no user has",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing role %q", name)
			_, ok, err := roleNamed(a, cmd, what, name)
			switch {
			case err != nil:
				return err
			case !ok:
				return command.Fail(command.ExitNotFound, "fleetbus role ls", "%s: there is no such role", what)
			case g.DryRun:
				return a.ShowPlan("remove role %s", name)
			}
			if err := a.Confirm(cmd.Context(), g, name, "remove role "+name); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveRole(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("role %s is removed", name))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}
