package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newUserCommand(a *app) *cobra.Command {
	return a.onFleet(noun("user", "Users, and the credentials they come in by",
		newUserAdd(a), newUserList(a), newUserInfo(a), newUserRemove(a), newUserDeny(a), newUserAllow(a), newUserRenew(a), newUserBatch(a)))
}

func newUserList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: takes("[ACCOUNT]"), Annotations: reads(),
		Short: "List the users of an account, or of all",
		RunE: func(cmd *cobra.Command, args []string) error {
			account := strings.Join(args, "")
			users, err := administer(cmd, a, "listing users", func(ctx context.Context, c *admin.Client) ([]identity.User, error) {
				return c.Users(ctx, account)
			})
			if err != nil {
				return err
			}
			return a.show(list(users,
				column[identity.User]{"NAME", identity.User.String},
				column[identity.User]{"ROLE", func(u identity.User) string { return u.Role }},
				column[identity.User]{"STATE", userState},
				column[identity.User]{"CREDS", func(u identity.User) string { return human.Int(int64(len(u.Keys))) }},
				column[identity.User]{"CERTIFICATES", func(u identity.User) string { return human.Int(int64(len(u.Certificates))) }},
				column[identity.User]{"CREATED", func(u identity.User) string { return human.Time(u.Created) }},
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

func newUserInfo(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "info ACCOUNT/NAME", Aliases: []string{"get", "show"}, Args: takes("ACCOUNT/NAME"), Annotations: reads(),
		Short: "Tell of one user and its live connections",
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := a.user(cmd, fmt.Sprintf("asking for user %q", args[0]), args[0])
			if err != nil {
				return err
			}
			password := human.YesNo(u.Password != "")
			u.Password = "" // a hash is nobody's business
			return a.show(report{value: u, text: func(p *page) {
				state := userState(u.User)
				if u.Denied {
					state += " since " + human.Time(u.DeniedAt)
				}
				bearer := "no"
				if u.Bearer != nil {
					bearer = "until " + or(human.Time(u.Bearer.Expires), "it is replaced")
				}
				fields(p, []field{{"name", u.String()}, {"kind", string(u.Kind)}, {"role", u.Role}, {"state", state},
					{"created", human.Time(u.Created)}, {"password", password}, {"bearer token", bearer}})
				if len(u.Keys) > 0 {
					p.line("")
					table(p, u.Keys,
						column[identity.UserKey]{"KEY", func(k identity.UserKey) string { return k.Public }},
						column[identity.UserKey]{"ISSUED", func(k identity.UserKey) string { return human.Time(k.Issued) }},
						column[identity.UserKey]{"EXPIRES", func(k identity.UserKey) string { return or(human.Time(k.Expires), "never") }})
				}
				if len(u.Certificates) > 0 {
					p.line("")
					table(p, u.Certificates,
						column[identity.UserCertificate]{"CERTIFICATE", func(c identity.UserCertificate) string { return c.Serial }},
						column[identity.UserCertificate]{"REGISTERED", func(c identity.UserCertificate) string { return human.YesNo(c.Registered) }},
						column[identity.UserCertificate]{"EXPIRES", func(c identity.UserCertificate) string { return human.Time(c.NotAfter) }})
				}
				if len(u.Connections) > 0 {
					p.line("")
					table(p, u.Connections,
						column[admin.Connection]{"NODE", func(c admin.Connection) string { return c.Node }},
						column[admin.Connection]{"CONNECTION", func(c admin.Connection) string { return fmt.Sprint(c.ID) }},
						column[admin.Connection]{"KIND", func(c admin.Connection) string { return c.Kind }},
						column[admin.Connection]{"REMOTE", func(c admin.Connection) string { return c.Remote }},
						column[admin.Connection]{"STARTED", func(c admin.Connection) string { return human.Time(c.Started) }})
				}
				if u.More > 0 {
					p.line("and %s more", human.Count(u.More, "connection"))
				}
			}})
		},
	})
}

// user asks the fleet for a user.
func (a *app) user(cmd *cobra.Command, what, name string) (admin.UserInfo, error) {
	if _, _, err := identity.SplitName(name); err != nil {
		return admin.UserInfo{}, fail(exitUsage, "write it like acme/alice", "%s: %v", what, err)
	}
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.UserInfo, error) {
		return c.User(ctx, name)
	})
}

func newUserRemove(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT/NAME", Aliases: []string{"delete"}, Args: takes("ACCOUNT/NAME"), Annotations: writes(),
		Short: "Remove a user and close its connections",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing user %q", name)
			u, err := a.user(cmd, what, name)
			if err != nil {
				return err
			}
			described := fmt.Sprintf("remove user %s, and close %s", name, human.Count(len(u.Connections)+u.More, "connection"))
			if g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveUser(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("%s is removed: %s closed", name, human.Count(s.Closed(), "connection")))
		},
	}
	g.destroying(cmd)
	return a.output(cmd)
}

// newUserDeny makes a command that does not ask: a denial is urgent, and can be
// taken back.
func newUserDeny(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "deny ACCOUNT/NAME", Args: takes("ACCOUNT/NAME"), Annotations: writes(),
		Short: "Deny a user every way in, and close its connections",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("denying %q", name)
			if g.dryRun {
				u, err := a.user(cmd, what, name)
				if err != nil {
					return err
				}
				return a.showPlan("deny %s, and close %s", name, human.Count(len(u.Connections)+u.More, "connection"))
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.DenyUser(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("%s is denied: %s closed", name, human.Count(s.Closed(), "connection")))
		},
	}
	g.drying(cmd)
	return a.output(cmd)
}

func newUserAllow(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "allow ACCOUNT/NAME", Args: takes("ACCOUNT/NAME"), Annotations: writes(),
		Short: "Take a denial back",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("allowing %q", name)
			if g.dryRun {
				u, err := a.user(cmd, what, name)
				if err != nil {
					return err
				}
				return a.showPlan("allow %s, who is %s", name, userState(u.User))
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AllowUser(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("%s is allowed", name))
		},
	}
	g.drying(cmd)
	return a.output(cmd)
}
