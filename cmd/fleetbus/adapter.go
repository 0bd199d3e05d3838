package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newAdapterCommand(a *app) *cobra.Command {
	return a.onFleet(noun("adapter", "Adapters, which write messages of accounts to a stream, with who sent them",
		newAdapterAdd(a), newAdapterList(a), newAdapterStatus(a), newAdapterRemove(a)))
}

func newAdapterAdd(a *app) *cobra.Command {
	var r admin.AdapterRequest
	var g guard
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Args: takes("NAME"), Annotations: writes(),
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
				return fail(exitUsage, "--from ACCOUNT --subject SUBJECT --to ACCOUNT --stream NAME", "%s: not everything is said", what)
			}
			if err := identity.CheckFlowSubject(r.Subject); err != nil {
				return fail(exitUsage, "choose another subject", "%s: %v", what, err)
			}
			if g.dryRun {
				return a.showPlan("write %s of %s to stream %s of account %s", r.Subject, strings.Join(r.From, ", "), r.Stream, r.To)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddAdapter(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("adapter %s is live", r.Name))
		},
	}
	flags := cmd.Flags()
	flags.StringSliceVar(&r.From, "from", nil, "accounts that it takes from")
	flags.StringVar(&r.Subject, "subject", "", "the `subject` in them, with * and > as wildcards")
	flags.StringVar(&r.To, "to", "", "the `account` of the stream")
	flags.StringVar(&r.Stream, "stream", "", "`name` of the stream")
	g.drying(cmd)
	return a.output(cmd)
}

func (a *app) adapters(cmd *cobra.Command, what string) ([]admin.AdapterInfo, error) {
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.AdapterInfo, error) {
		return c.Adapters(ctx)
	})
}

func (a *app) adapter(cmd *cobra.Command, what, name string) (admin.AdapterInfo, error) {
	all, err := a.adapters(cmd, what)
	if err != nil {
		return admin.AdapterInfo{}, err
	}
	i := slices.IndexFunc(all, func(i admin.AdapterInfo) bool { return i.Name == name })
	if i < 0 {
		return admin.AdapterInfo{}, fail(exitNotFound, "fleetbus adapter ls", "%s: there is no such adapter", what)
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

func newAdapterList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: takes(), Annotations: reads(),
		Short: "List the adapters",
		RunE: func(cmd *cobra.Command, _ []string) error {
			all, err := a.adapters(cmd, "listing adapters")
			if err != nil {
				return err
			}
			return a.show(list(all,
				column[admin.AdapterInfo]{"NAME", func(i admin.AdapterInfo) string { return i.Name }},
				column[admin.AdapterInfo]{"FROM", from},
				column[admin.AdapterInfo]{"SUBJECT", func(i admin.AdapterInfo) string { return i.Subject }},
				column[admin.AdapterInfo]{"STREAM", func(i admin.AdapterInfo) string { return i.To.Account + "/" + i.Stream }},
				column[admin.AdapterInfo]{"STORED", func(i admin.AdapterInfo) string { return fmt.Sprint(sum(i).Stored) }},
				column[admin.AdapterInfo]{"REFUSED", func(i admin.AdapterInfo) string { return fmt.Sprint(sum(i).Refused) }},
			))
		},
	})
}

func newAdapterStatus(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "status NAME", Aliases: []string{"info"}, Args: takes("NAME"), Annotations: reads(),
		Short: "Show what an adapter does on each node",
		RunE: func(cmd *cobra.Command, args []string) error {
			i, err := a.adapter(cmd, fmt.Sprintf("asking for adapter %q", args[0]), args[0])
			if err != nil {
				return err
			}
			return a.show(report{value: i, text: func(p *page) {
				fields(p, []field{{"name", i.Name}, {"from", from(i)}, {"subject", i.Subject}, {"stream", i.To.Account + "/" + i.Stream},
					{"created", human.Time(i.Created)}, {"in the way at", strings.Join(i.Waiting, ", ")}, {"no answer from", strings.Join(i.Missing, ", ")}})
				p.line("")
				table(p, i.Nodes,
					column[admin.AdapterCount]{"NODE", func(n admin.AdapterCount) string { return n.Node }},
					column[admin.AdapterCount]{"RECEIVED", func(n admin.AdapterCount) string { return fmt.Sprint(n.Received) }},
					column[admin.AdapterCount]{"STORED", func(n admin.AdapterCount) string { return fmt.Sprint(n.Stored) }},
					column[admin.AdapterCount]{"REFUSED", func(n admin.AdapterCount) string { return fmt.Sprint(n.Refused) }},
					column[admin.AdapterCount]{"PENDING", func(n admin.AdapterCount) string { return fmt.Sprint(n.Pending) }},
				)
			}})
		},
	})
}

func newAdapterRemove(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"delete"}, Args: takes("NAME"), Annotations: writes(),
		Short: "Remove an adapter; its stream stays",
		RunE: func(cmd *cobra.Command, args []string) error {
			name := args[0]
			what := fmt.Sprintf("removing adapter %q", name)
			i, err := a.adapter(cmd, what, name)
			if err != nil {
				return err
			}
			described := fmt.Sprintf("end adapter %s, by which %s reaches stream %s of account %s", name, from(i), i.Stream, i.To.Account)
			if g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, name, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveAdapter(ctx, name)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("adapter %s is removed", name))
		},
	}
	g.destroying(cmd)
	return a.output(cmd)
}
