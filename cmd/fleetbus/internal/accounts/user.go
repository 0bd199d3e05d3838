package accounts

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newUserCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("user", "Users, and the credentials they come in by",
		newUserAdd(a), newUserList(a), newUserInfo(a), newUserRemove(a), newUserDeny(a), newUserAllow(a), newUserRenew(a), newUserBatch(a)))
}

func newUserList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: command.Takes("[ACCOUNT]"), Annotations: command.Reads(),
		Short: "List the users of an account, or of all",
		RunE: func(cmd *cobra.Command, args []string) error {
			account := strings.Join(args, "")
			users, err := command.Administer(cmd, a, "listing users", func(ctx context.Context, c *admin.Client) ([]identity.User, error) {
				return c.Users(ctx, account)
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(users,
				command.Col("NAME", identity.User.String),
				command.Col("ROLE", func(u identity.User) string { return u.Role }),
				command.Col("STATE", userState),
				command.Col("CREDS", func(u identity.User) string { return human.Int(int64(len(u.Keys))) }),
				command.Col("CERTIFICATES", func(u identity.User) string { return human.Int(int64(len(u.Certificates))) }),
				command.Col("CREATED", func(u identity.User) string { return human.Time(u.Created) }),
			))
		},
	})
}

func userState(u identity.User) string {
	if u.Denied {
		return "denied"
	}
	return "allowed"
}

func newUserInfo(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "info ACCOUNT/NAME", Aliases: []string{"get", "show"}, Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Reads(),
		Short: "Tell of one user and its live connections",
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := userNamed(a, cmd, fmt.Sprintf("asking for user %q", args[0]), args[0])
			if err != nil {
				return err
			}
			password := human.YesNo(u.Password != "")
			u.Password = "" // a hash is nobody's business
			return a.Show(command.Report{Value: u, Text: func(p *command.Page) {
				state := userState(u.User)
				if u.Denied {
					state += " since " + human.Time(u.DeniedAt)
				}
				bearer := "no"
				if u.Bearer != nil {
					bearer = "until " + cmp.Or(human.Time(u.Bearer.Expires), "it is replaced")
				}
				command.Fields(p, []command.Field{{"name", u.String()}, {"kind", string(u.Kind)}, {"role", u.Role}, {"state", state},
					{"created", human.Time(u.Created)}, {"password", password}, {"bearer token", bearer}})
				if len(u.Keys) > 0 {
					p.Line("")
					command.Table(p, u.Keys,
						command.Col("KEY", func(k identity.UserKey) string { return k.Public }),
						command.Col("ISSUED", func(k identity.UserKey) string { return human.Time(k.Issued) }),
						command.Col("EXPIRES", func(k identity.UserKey) string { return cmp.Or(human.Time(k.Expires), "never") }))
				}
				if len(u.Certificates) > 0 {
					p.Line("")
					command.Table(p, u.Certificates,
						command.Col("CERTIFICATE", func(c identity.UserCertificate) string { return c.Serial }),
						command.Col("REGISTERED", func(c identity.UserCertificate) string { return human.YesNo(c.Registered) }),
						command.Col("EXPIRES", func(c identity.UserCertificate) string { return human.Time(c.NotAfter) }))
				}
				if len(u.Connections) > 0 {
					p.Line("")
					command.Table(p, u.Connections,
						command.Col("NODE", func(c admin.Connection) string { return c.Node }),
						command.Col("CONNECTION", func(c admin.Connection) string { return fmt.Sprint(c.ID) }),
						command.Col("KIND", func(c admin.Connection) string { return c.Kind }),
						command.Col("REMOTE", func(c admin.Connection) string { return c.Remote }),
						command.Col("STARTED", func(c admin.Connection) string { return human.Time(c.Started) }))
				}
				if u.More > 0 {
					p.Line("and %s more", human.Count(u.More, "connection"))
				}
			}})
		},
	})
}

// userNamed asks the fleet for a user.
func userNamed(a *command.App, cmd *cobra.Command, what, name string) (admin.UserInfo, error) {
	if _, _, err := identity.SplitName(name); err != nil {
		return admin.UserInfo{}, command.Fail(command.ExitUsage, "write it like acme/alice", "%s: %v", what, err)
	}
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.UserInfo, error) {
		return c.User(ctx, name)
	})
}

func newUserRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT/NAME", Aliases: []string{"delete"}, Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Writes(),
		Short: "Remove a user and close its connections",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing user %q", name)
			u, err := userNamed(a, cmd, what, name)
			if err != nil {
				return err
			}
			described := fmt.Sprintf("remove user %s, and close %s", name, human.Count(len(u.Connections)+u.More, "connection"))
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveUser(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("%s is removed: %s closed", name, human.Count(s.Closed(), "connection")))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}

// newUserDeny makes a command that does not ask: a denial is urgent, and can be
// taken back.
func newUserDeny(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "deny ACCOUNT/NAME", Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Writes(),
		Short: "Deny a user every way in, and close its connections",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("denying %q", name)
			if g.DryRun {
				u, err := userNamed(a, cmd, what, name)
				if err != nil {
					return err
				}
				return a.ShowPlan("deny %s, and close %s", name, human.Count(len(u.Connections)+u.More, "connection"))
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.DenyUser(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("%s is denied: %s closed", name, human.Count(s.Closed(), "connection")))
		},
	}
	g.Drying(cmd)
	return a.Output(cmd)
}

func newUserAllow(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "allow ACCOUNT/NAME", Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Writes(),
		Short: "Take a denial back",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("allowing %q", name)
			if g.DryRun {
				u, err := userNamed(a, cmd, what, name)
				if err != nil {
					return err
				}
				return a.ShowPlan("allow %s, who is %s", name, userState(u.User))
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AllowUser(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("%s is allowed", name))
		},
	}
	g.Drying(cmd)
	return a.Output(cmd)
}
