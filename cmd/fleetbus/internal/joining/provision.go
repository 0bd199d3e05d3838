package joining

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
	"github.com/fleetbus/fleetbus/internal/rules"
	"github.com/fleetbus/fleetbus/provision"
)

// provisionFlags say in which account machines that nobody knows are.
type provisionFlags struct{ account string }

func (f *provisionFlags) add(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&f.account, "account", "provisioning", "`account` that machines that nobody knows come into")
	return cmd
}

func newProvisionCommand(a *command.App) *cobra.Command {
	var verbs []*cobra.Command
	for _, make := range []func(*command.App) *cobra.Command{newProvisionServe, newProvisionPin, newProvisionToken, newProvisionList, newProvisionApprove, newProvisionDeny} {
		verbs = append(verbs, a.OnFleet(make(a)))
	}
	return command.Noun("provision", "Identities for machines that nobody knows", append(verbs, newProvisionRequest(a))...)
}

// atDesk does something as a provisioner.
func atDesk[T any](cmd *cobra.Command, a *command.App, account, what string, do func(context.Context, *provision.Station, *provision.Book) (T, error)) (out T, err error) {
	ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
	defer cancel()
	defer a.Progress(what)()
	t, err := a.Target(true)
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	desk, err := provision.OpenDesk(ctx, account, func(more ...nats.Option) (*nats.Conn, error) { return a.Connect(ctx, t, more...) })
	if err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	defer desk.Close()
	if out, err = do(ctx, desk.Station, desk.Book); err != nil {
		return out, fmt.Errorf("%s: %w", what, err)
	}
	return out, nil
}

func newProvisionServe(a *command.App) *cobra.Command {
	var f provisionFlags
	var file string
	var hook []string
	var hookTime time.Duration
	cmd := &cobra.Command{
		Use: "serve", Args: command.Takes(), Annotations: command.Prints(),
		Short: "Answer machines that nobody knows",
		Long: `Answer machines that nobody knows, by rules, until it is interrupted. Any number of
these share the work, anywhere. It needs credentials of an administrator or of a user
of FLEET of role provisioner. The file of rules is read again when it changes; a bad
one is logged, and the last good one holds.`,
		Example: `  fleetbus provision serve --rules rules.yaml
  fleetbus provision serve --rules rules.yaml --exec /usr/local/bin/decide --creds provisioner.creds`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "provisioning"
			if file == "" || hookTime <= 0 {
				return command.Fail(command.ExitUsage, "--rules FILE", "%s: a file of rules is missing, or --exec-timeout is not above 0", what)
			}
			log := slog.New(slog.NewTextHandler(a.Stderr, nil))
			watch, err := rules.Open(file, log)
			if err != nil {
				return command.Fail(command.ExitConfig, "see docs/provisioning.md", "%s: %v", what, err)
			}
			t, err := a.Target(true)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
			defer cancel()
			staying := a.Staying("what machines asked in between they ask again")
			desk, err := provision.OpenDesk(ctx, f.account, func(more ...nats.Option) (*nats.Conn, error) {
				return a.Connect(cmd.Context(), t, append(more, staying...)...)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			defer desk.Close()
			p := &provision.Provisioner{Station: desk.Station, Rules: &watch.Live, Logger: log}
			if len(hook) > 0 {
				p.Hook = provision.Exec(hook, hookTime)
			}
			go watch.Follow(cmd.Context())
			err = p.Run(cmd.Context(), desk.Conn, desk.Book, func() {
				a.Hint("provisioning machines of fleet %s in account %s; they know it by --fleet %s", desk.Fleet, f.account, desk.Pin)
			})
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "rules", "", "YAML or JSON `file` of the rules")
	cmd.Flags().StringSliceVar(&hook, "exec", nil, "`program` that decides where a rule says so, and its arguments after commas: it reads JSON and writes JSON")
	cmd.Flags().DurationVar(&hookTime, "exec-timeout", 10*time.Second, "how long the program may take to decide")
	return f.add(cmd)
}

func newProvisionPin(a *command.App) *cobra.Command {
	var f provisionFlags
	type pin struct {
		Fleet string `json:"fleet"`
		Pin   string `json:"pin"`
	}
	return f.add(a.Output(&cobra.Command{
		Use: "pin", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show what machines know the fleet by, which is no secret",
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := atDesk(cmd, a, f.account, "asking for the pin", func(_ context.Context, s *provision.Station, _ *provision.Book) (pin, error) {
				return pin{s.Fleet, s.Pin}, nil
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: s, Text: func(p *command.Page) { p.Line("%s", s.Pin) }})
		},
	}))
}

func newProvisionToken(a *command.App) *cobra.Command {
	return command.Noun("token", "Tokens, by which machines prove that they may have an identity",
		newProvisionTokenAdd(a), newProvisionTokenList(a), newProvisionTokenRemove(a))
}

func newProvisionTokenAdd(a *command.App) *cobra.Command {
	var f provisionFlags
	var label, name string
	var uses int
	lasts := command.Life(24 * time.Hour)
	cmd := &cobra.Command{
		Use: "add", Aliases: []string{"create"}, Args: command.Takes(), Annotations: command.Writes(),
		Short: "Make a token for one machine, or for several",
		Long: `Make a token for one machine, or for several. Its text is shown once and kept
nowhere. A machine signs its request with it, and never sends it.`,
		Example: `  fleetbus provision token add --label tills --uses 200 --life 48h
  fleetbus provision token add --name till-7`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "adding a token"
			if lasts == command.Never {
				return command.Fail(command.ExitUsage, "--life 30d", "%s: a token has to expire", what)
			}
			type made struct {
				provision.Token
				Text string `json:"text"`
			}
			m, err := atDesk(cmd, a, f.account, what, func(ctx context.Context, s *provision.Station, b *provision.Book) (made, error) {
				t, text, err := provision.NewToken(s.Pin, label, name, uses, time.Duration(lasts), time.Now())
				if err != nil {
					return made{}, command.Fail(command.ExitUsage, "fleetbus provision token add --help", "%v", err)
				}
				return made{t, text}, b.AddToken(ctx, t)
			})
			if err != nil {
				return err
			}
			if err := a.Show(command.Report{Value: m, Text: func(p *command.Page) { p.Line("%s", m.Text) }}); err != nil {
				return err
			}
			a.Hint("token %s is good for %s until %s", m.ID, human.Count(m.Uses, "machine"), human.Time(m.Expires))
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&label, "label", "", "`label` that rules know the token by")
	flags.StringVar(&name, "name", "", "the only `name` that a machine may ask for with it")
	flags.IntVar(&uses, "uses", 1, "how many machines may use it")
	flags.Var(&lasts, "life", "how long it can be used")
	return f.add(a.Output(cmd))
}

func newProvisionTokenList(a *command.App) *cobra.Command {
	var f provisionFlags
	type row = provision.TokenInfo
	return f.add(a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the tokens",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := atDesk(cmd, a, f.account, "listing tokens", func(_ context.Context, _ *provision.Station, b *provision.Book) ([]row, error) {
				return b.Tokens(), nil
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(all,
				command.Col("ID", func(t row) string { return t.ID }),
				command.Col("LABEL", func(t row) string { return t.Label }),
				command.Col("NAME", func(t row) string { return t.Name }),
				command.Col("USED", func(t row) string { return fmt.Sprintf("%d of %d", t.Used, t.Uses) }),
				command.Col("EXPIRES", func(t row) string { return human.Time(t.Expires) }),
				command.Col("STATE", func(t row) string {
					switch {
					case t.Revoked:
						return "revoked"
					case time.Now().After(t.Expires):
						return "expired"
					}
					return "good"
				})))
		},
	}))
}

func newProvisionTokenRemove(a *command.App) *cobra.Command {
	var f provisionFlags
	return f.add(a.Output(&cobra.Command{
		Use: "rm ID", Aliases: []string{"delete", "revoke"}, Args: command.Takes("ID"), Annotations: command.Writes(),
		Short: "Make a token good for nothing; machines that used it keep their identities",
		RunE: func(cmd *cobra.Command, args []string) error {
			_, err := atDesk(cmd, a, f.account, "revoking a token", func(ctx context.Context, _ *provision.Station, b *provision.Book) (struct{}, error) {
				return struct{}{}, notFound(b.RevokeToken(ctx, args[0]), "fleetbus provision token ls")
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: map[string]string{"id": args[0]}, Text: func(p *command.Page) { p.Line("token %s is revoked", args[0]) }})
		},
	}))
}

// notFound says where to look for what is not there, and what can be done about what is
// settled.
func notFound(err error, fix string) error {
	switch {
	case errors.Is(err, provision.ErrNotFound):
		return command.Fail(command.ExitNotFound, fix, "%v", err)
	case errors.Is(err, provision.ErrSettled):
		return command.Fail(command.ExitConflict, fix, "%v", err)
	}
	return err
}

func newProvisionList(a *command.App) *cobra.Command {
	var f provisionFlags
	var all bool
	type row = provision.Request
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the machines that wait for approval",
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := atDesk(cmd, a, f.account, "listing requests", func(_ context.Context, _ *provision.Station, b *provision.Book) ([]row, error) {
				return slices.DeleteFunc(b.Requests(), func(r row) bool { return !all && r.State != provision.Waiting }), nil
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(rows,
				command.Col("CODE", func(r row) string { return provision.Code(r.ID) }),
				command.Col("NAME", func(r row) string { return r.Name }),
				command.Col("STATE", func(r row) string { return string(r.State) }),
				command.Col("ADDRESS", func(r row) string { return r.Address }),
				command.Col("PROOF", func(r row) string { return r.Proof }),
				command.Col("ASKED", func(r row) string { return human.Time(r.Asked) }),
				command.Col("ACCOUNT", func(r row) string { return r.Account }),
				command.Col("FACTS", func(r row) string { return factText(r.Facts) }),
				command.Col("BECAUSE", func(r row) string { return strings.Trim(r.By+": "+r.Reason, ": ") })))
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "list those too that were decided in the last two hours")
	return f.add(a.Output(cmd))
}

// factText is what a machine says of itself, on one line.
func factText(facts map[string]string) string {
	var parts []string
	for name, value := range facts {
		parts = append(parts, name+"="+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

func newProvisionApprove(a *command.App) *cobra.Command {
	var account, role string
	cmd := decide(a, "approve CODE", "Let a machine that waits have an identity",
		`Let a machine that waits have an identity. The code is what the machine shows: compare
it there, since anybody can ask by that machine's name.`,
		func(r *provision.Request) error {
			r.State, r.By = provision.Approved, "approval"
			r.Account, r.Role = cmp.Or(account, r.Account), cmp.Or(role, cmp.Or(r.Role, "machine"))
			if r.Account == "" {
				return command.Fail(command.ExitUsage, "--into ACCOUNT", "its rule names no account")
			}
			if refusal := admin.Provisionable(r.Account, r.Role); refusal != nil {
				return refusal
			}
			return nil
		},
		func(r provision.Request) string {
			return fmt.Sprintf("%s gets an identity in account %s, of role %s, when it asks again", r.Name, r.Account, r.Role)
		})
	cmd.Flags().StringVar(&account, "into", "", "`account` that it gets an identity in (default: its rule's)")
	cmd.Flags().StringVar(&role, "role", "", "its `role` there (default: its rule's, or machine)")
	return cmd
}

func newProvisionDeny(a *command.App) *cobra.Command {
	var reason string
	cmd := decide(a, "deny CODE", "Deny a machine that waits an identity", "",
		func(r *provision.Request) error {
			r.State, r.By, r.Reason = provision.Denied, "denial", reason
			return nil
		},
		func(r provision.Request) string { return r.Name + " is denied an identity" })
	cmd.Flags().StringVar(&reason, "reason", "an administrator denied it", "what the machine is told")
	return cmd
}

// decide makes the command of a decision.
func decide(a *command.App, use, short, long string, edit func(*provision.Request) error, said func(provision.Request) string) *cobra.Command {
	var f provisionFlags
	return f.add(a.Output(&cobra.Command{
		Use: use, Args: command.Takes("CODE"), Annotations: command.Writes(), Short: short, Long: long,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := provision.ParseCode(args[0])
			if err != nil {
				return command.Fail(command.ExitUsage, "fleetbus provision ls", "%v", err)
			}
			r, err := atDesk(cmd, a, f.account, "deciding", func(ctx context.Context, _ *provision.Station, b *provision.Book) (provision.Request, error) {
				r, err := b.Decide(ctx, id, edit)
				return r, notFound(err, "fleetbus provision ls --all")
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: r, Text: func(p *command.Page) { p.Line("%s", said(r)) }})
		},
	}))
}
