package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newTokenCommand(a *app) *cobra.Command {
	return a.onFleet(noun("token", "Enrollment tokens, each good for one join",
		newTokenAdd(a), newTokenList(a), newTokenRemove(a)))
}

// tokenMaker is what the commands that make enrollment tokens have in common.
type tokenMaker struct {
	lasts life
	g     guard
}

// add gives cmd the flags.
func (m *tokenMaker) add(cmd *cobra.Command) {
	m.lasts = life(24 * time.Hour)
	cmd.Flags().Var(&m.lasts, "life", "how long it can be used")
	m.g.drying(cmd)
}

// make makes a token for who is planned, says for whom it is good, and how to use it
// where.
func (m *tokenMaker) make(cmd *cobra.Command, a *app, request admin.TokenRequest, planned, good, where string) error {
	request.Life = time.Duration(m.lasts)
	switch {
	case m.lasts == never:
		return fail(exitUsage, "--life 30d", "adding a token: a token has to expire")
	case m.g.dryRun:
		return a.showPlan("make a token for %s, for %s", planned, human.Duration(request.Life))
	}
	reply, err := administer(cmd, a, "adding a token", func(ctx context.Context, c *admin.Client) (admin.TokenReply, error) {
		return c.AddToken(ctx, request)
	})
	if err != nil {
		return err
	}
	if err := a.show(report{value: reply, text: func(p *page) { p.line("%s", reply.Text) }}); err != nil {
		return err
	}
	a.hint("token %s is good for %s until %s", reply.ID, good, human.Time(reply.Expires))
	if reply.Join != "" {
		a.hint("use it %s with: fleetbus join %s%s --token %s", where, reply.Join, joinAs(reply), reply.Text)
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
	return fmt.Sprintf(" --as %s --out %s.creds", reply.Kind, or(reply.Name, "FILE"))
}

func newTokenAdd(a *app) *cobra.Command {
	var bound string
	var m tokenMaker
	cmd := &cobra.Command{
		Use: "add KIND", Aliases: []string{"create"}, Args: takes("KIND"), Annotations: writes(),
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
				return fail(exitUsage, "fleetbus token add --help", "adding a token: %q is not %s", args[0], strings.Join(cmd.ValidArgs, ", "))
			case request.Kind == identity.KindUser && request.Account == "":
				return fail(exitUsage, "--for ACCOUNT/NAME", "adding a token: a token for a user is for one user")
			}
			return m.make(cmd, a, request, "a "+args[0], "one "+args[0], "there")
		},
	}
	cmd.Flags().StringVar(&bound, "for", "", "`name` of the node, or account/name of the user, that alone may use it")
	m.add(cmd)
	return a.output(cmd)
}

func newTokenList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: takes(), Annotations: reads(),
		Short: "List the enrollment tokens",
		RunE: func(cmd *cobra.Command, _ []string) error {
			tokens, err := a.tokens(cmd, "listing tokens")
			if err != nil {
				return err
			}
			now := time.Now()
			return a.show(list(tokens,
				column[identity.Token]{"ID", func(t identity.Token) string { return t.ID }},
				column[identity.Token]{"KIND", func(t identity.Token) string { return string(t.Kind) }},
				column[identity.Token]{"FOR", boundTo},
				column[identity.Token]{"STATE", func(t identity.Token) string { return tokenState(t, now) }},
				column[identity.Token]{"EXPIRES", func(t identity.Token) string { return human.Time(t.Expires) }},
				column[identity.Token]{"USED BY", func(t identity.Token) string { return t.UsedBy }},
			))
		},
	})
}

func (a *app) tokens(cmd *cobra.Command, what string) ([]identity.Token, error) {
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]identity.Token, error) {
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

func newTokenRemove(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "rm ID", Aliases: []string{"delete"}, Args: takes("ID"), Annotations: writes(),
		Short: "Make a token useless",
		RunE: func(cmd *cobra.Command, args []string) error {
			id := args[0]
			what := fmt.Sprintf("revoking token %q", id)
			tokens, err := a.tokens(cmd, what)
			if err != nil {
				return err
			}
			i := slices.IndexFunc(tokens, func(t identity.Token) bool { return t.ID == id })
			if i < 0 {
				return fail(exitNotFound, "fleetbus token ls", "%s: there is no such token", what)
			}
			described := fmt.Sprintf("revoke token %s, which is %s", id, tokenState(tokens[i], time.Now()))
			if g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, id, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RevokeToken(ctx, id)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("token %s is revoked", id))
		},
	}
	g.destroying(cmd)
	return a.output(cmd)
}
