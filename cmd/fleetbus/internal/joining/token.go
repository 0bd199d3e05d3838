package joining

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
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newTokenCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("token", "Enrollment tokens, each good for one join",
		newTokenAdd(a), newTokenList(a), newTokenRemove(a)))
}

// tokenMaker is what the commands that make enrollment tokens have in common.
type tokenMaker struct {
	lasts command.Life
	g     command.Guard
}

// add gives cmd the flags.
func (m *tokenMaker) add(cmd *cobra.Command) {
	m.lasts = command.Life(24 * time.Hour)
	cmd.Flags().Var(&m.lasts, "life", "how long it can be used")
	m.g.Drying(cmd)
}

// make makes a token for who is planned, says for whom it is good, and how to use it
// where.
func (m *tokenMaker) make(cmd *cobra.Command, a *command.App, request admin.TokenRequest, planned, good, where string) error {
	request.Life = time.Duration(m.lasts)
	switch {
	case m.lasts == command.Never:
		return command.Fail(command.ExitUsage, "--life 30d", "adding a token: a token has to expire")
	case m.g.DryRun:
		return a.ShowPlan("make a token for %s, for %s", planned, human.Duration(request.Life))
	}
	reply, err := command.Administer(cmd, a, "adding a token", func(ctx context.Context, c *admin.Client) (admin.TokenReply, error) {
		return c.AddToken(ctx, request)
	})
	if err != nil {
		return err
	}
	if err := a.Show(command.Report{Value: reply, Text: func(p *command.Page) { p.Line("%s", reply.Text) }}); err != nil {
		return err
	}
	a.Hint("token %s is good for %s until %s", reply.ID, good, human.Time(reply.Expires))
	if reply.Join != "" {
		a.Hint("use it %s with: fleetbus join %s%s --token %s", where, reply.Join, joinAs(reply), reply.Text)
	}
	return nil
}

// joinAs is how what a token is for joins.
func joinAs(reply admin.TokenReply) string {
	switch reply.Kind {
	case identity.KindNode:
		return ""
	case identity.KindTarget, identity.KindLeaf, identity.KindRegion:
		return " --as " + string(reply.Kind)
	}
	return fmt.Sprintf(" --as %s --out %s.creds", reply.Kind, cmp.Or(reply.Name, "FILE"))
}

func newTokenAdd(a *command.App) *cobra.Command {
	var bound string
	var m tokenMaker
	cmd := &cobra.Command{
		Use: "add KIND", Aliases: []string{"create"}, Args: command.Takes("KIND"), Annotations: command.Writes(),
		ValidArgs: []string{string(identity.KindNode), string(identity.KindUser), string(identity.KindLeaf), string(identity.KindRegion), string(identity.KindTarget)},
		Short:     "Make an enrollment token for a node, user, leaf, gateway or target",
		Long: `Make an enrollment token for a node, user, leaf, gateway or target. Its text is
shown once and kept nowhere: whoever holds it can enroll, once, until it expires.`,
		Example: `  fleetbus token add node --for eu-2
  fleetbus token add user --for acme/alice --life 2h`,
		RunE: func(cmd *cobra.Command, args []string) error {
			request := admin.TokenRequest{Kind: identity.Kind(args[0]), Name: bound}
			if account, name, ok := strings.Cut(bound, "/"); ok {
				request.Account, request.Name = account, name
			}
			switch {
			case !slices.Contains(cmd.ValidArgs, args[0]):
				return command.Fail(command.ExitUsage, "fleetbus token add --help", "adding a token: %q is not %s", args[0], strings.Join(cmd.ValidArgs, ", "))
			case request.Kind == identity.KindUser && request.Account == "":
				return command.Fail(command.ExitUsage, "--for ACCOUNT/NAME", "adding a token: a token for a user is for one user")
			}
			return m.make(cmd, a, request, "a "+args[0], "one "+args[0], "there")
		},
	}
	cmd.Flags().StringVar(&bound, "for", "", "`name` of the node, or account/name of the user, that alone may use it")
	m.add(cmd)
	return a.Output(cmd)
}

func newTokenList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the enrollment tokens",
		RunE: func(cmd *cobra.Command, _ []string) error {
			tokens, err := tokens(a, cmd, "listing tokens")
			if err != nil {
				return err
			}
			now := time.Now()
			return a.Show(command.List(tokens,
				command.Col("ID", func(t identity.Token) string { return t.ID }),
				command.Col("KIND", func(t identity.Token) string { return string(t.Kind) }),
				command.Col("FOR", boundTo),
				command.Col("STATE", func(t identity.Token) string { return tokenState(t, now) }),
				command.Col("EXPIRES", func(t identity.Token) string { return human.Time(t.Expires) }),
				command.Col("USED BY", func(t identity.Token) string { return t.UsedBy }),
			))
		},
	})
}

func tokens(a *command.App, cmd *cobra.Command, what string) ([]identity.Token, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]identity.Token, error) {
		return c.Tokens(ctx)
	})
}

// boundTo is who alone may use a token.
func boundTo(t identity.Token) string {
	if t.Account == "" {
		return t.Name
	}
	return t.Account + "/" + t.Name
}

func tokenState(t identity.Token, now time.Time) string {
	switch {
	case t.Revoked:
		return "revoked"
	case t.Used:
		return "used"
	case !t.Expires.IsZero() && now.After(t.Expires):
		return "expired"
	}
	return "open"
}

func newTokenRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm ID", Aliases: []string{"delete"}, Args: command.Takes("ID"), Annotations: command.Writes(),
		Short: "Make a token useless",
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			what := fmt.Sprintf("revoking token %q", id)
			tokens, err := tokens(a, cmd, what)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(tokens, func(t identity.Token) bool { return t.ID == id })
			if i < 0 {
				return command.Fail(command.ExitNotFound, "fleetbus token ls", "%s: there is no such token", what)
			}
			described := fmt.Sprintf("revoke token %s, which is %s", id, tokenState(tokens[i], time.Now()))
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, id, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RevokeToken(ctx, id)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("token %s is revoked", id))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}
