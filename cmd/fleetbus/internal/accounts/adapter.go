package accounts

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newAdapterCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("adapter", "Adapters, which write messages of accounts to a stream, with who sent them",
		newAdapterAdd(a), newAdapterList(a), newAdapterStatus(a), newAdapterRemove(a)))
}

func newAdapterAdd(a *command.App) *cobra.Command {
	var r admin.AdapterRequest
	var g command.Guard
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Write the messages of a subject of some accounts to a stream of another",
		Long: `Write what is published under a subject of some accounts to a stream of another,
with the account, the sender and the time in headers. Who sends a request is
answered when the stream has it, or told to send it again. The stream is made. An
adapter that exists is set as named.`,
		Example: `  fleetbus adapter add reg --from acme,beta --subject 'registration.>' --to ops --stream REG`,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Name = args[0]
			what := fmt.Sprintf("adding adapter %q", r.Name)
			if len(r.From) == 0 || r.Subject == "" || r.To == "" || r.Stream == "" {
				return command.Fail(command.ExitUsage, "--from ACCOUNT --subject SUBJECT --to ACCOUNT --stream NAME", "%s: not everything is said", what)
			}
			if err := identity.CheckFlowSubject(r.Subject); err != nil {
				return command.Fail(command.ExitUsage, "choose another subject", "%s: %v", what, err)
			}
			if g.DryRun {
				return a.ShowPlan("write %s of %s to stream %s of account %s", r.Subject, strings.Join(r.From, ", "), r.Stream, r.To)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddAdapter(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("adapter %s is live", r.Name))
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&r.From, "from", nil, "accounts that it takes from")
	flags.StringVar(&r.Subject, "subject", "", "the `subject` in them, with * and > as wildcards")
	flags.StringVar(&r.To, "to", "", "the `account` of the stream")
	flags.StringVar(&r.Stream, "stream", "", "`name` of the stream")
	g.Drying(cmd)
	return a.Output(cmd)
}

func adapters(a *command.App, cmd *cobra.Command, what string) ([]admin.AdapterInfo, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.AdapterInfo, error) {
		return c.Adapters(ctx)
	})
}

func adapterNamed(a *command.App, cmd *cobra.Command, what, name string) (admin.AdapterInfo, error) {
	all, err := adapters(a, cmd, what)
	if err != nil {
		return admin.AdapterInfo{}, err
	}
	i := slices.IndexFunc(all, func(i admin.AdapterInfo) bool { return i.Name == name })
	if i < 0 {
		return admin.AdapterInfo{}, command.Fail(command.ExitNotFound, "fleetbus adapter ls", "%s: there is no such adapter", what)
	}
	return all[i], nil
}

// from names the accounts that an adapter takes from.
func from(i admin.AdapterInfo) string {
	var names []string
	for _, p := range i.From {
		names = append(names, p.Account)
	}
	return strings.Join(names, ", ")
}

// sum counts over all nodes.
func sum(i admin.AdapterInfo) (s admin.AdapterCount) {
	for _, n := range i.Nodes {
		s.Received, s.Stored, s.Refused, s.Pending = s.Received+n.Received, s.Stored+n.Stored, s.Refused+n.Refused, s.Pending+n.Pending
	}
	return s
}

func newAdapterList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List the adapters",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := adapters(a, cmd, "listing adapters")
			if err != nil {
				return err
			}
			return a.Show(command.List(all,
				command.Col("NAME", func(i admin.AdapterInfo) string { return i.Name }),
				command.Col("FROM", from),
				command.Col("SUBJECT", func(i admin.AdapterInfo) string { return i.Subject }),
				command.Col("STREAM", func(i admin.AdapterInfo) string { return i.To.Account + "/" + i.Stream }),
				command.Col("STORED", func(i admin.AdapterInfo) string { return fmt.Sprint(sum(i).Stored) }),
				command.Col("REFUSED", func(i admin.AdapterInfo) string { return fmt.Sprint(sum(i).Refused) }),
			))
		},
	})
}

func newAdapterStatus(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "status NAME", Aliases: []string{"info"}, Args: command.Takes("NAME"), Annotations: command.Reads(),
		Short: "Show what an adapter does on each node",
		RunE: func(cmd *cobra.Command, args []string) error {
			i, err := adapterNamed(a, cmd, fmt.Sprintf("asking for adapter %q", args[0]), args[0])
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: i, Text: func(p *command.Page) {
				command.Fields(p, []command.Field{{"name", i.Name}, {"from", from(i)}, {"subject", i.Subject}, {"stream", i.To.Account + "/" + i.Stream},
					{"created", human.Time(i.Created)}, {"in the way at", strings.Join(i.Waiting, ", ")}, {"no answer from", strings.Join(i.Missing, ", ")}})
				p.Line("")
				command.Table(p, i.Nodes,
					command.Col("NODE", func(n admin.AdapterCount) string { return n.Node }),
					command.Col("RECEIVED", func(n admin.AdapterCount) string { return fmt.Sprint(n.Received) }),
					command.Col("STORED", func(n admin.AdapterCount) string { return fmt.Sprint(n.Stored) }),
					command.Col("REFUSED", func(n admin.AdapterCount) string { return fmt.Sprint(n.Refused) }),
					command.Col("PENDING", func(n admin.AdapterCount) string { return fmt.Sprint(n.Pending) }),
				)
			}})
		},
	})
}

func newAdapterRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: command.Takes("NAME"), Annotations: command.Writes(),
		Short: "Remove an adapter; its stream stays",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing adapter %q", name)
			i, err := adapterNamed(a, cmd, what, name)
			if err != nil {
				return err
			}
			described := fmt.Sprintf("end adapter %s, by which %s reaches stream %s of account %s", name, from(i), i.Stream, i.To.Account)
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveAdapter(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("adapter %s is removed", name))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}
