package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// exportFlags say which export is meant, and whom it is for.
type exportFlags struct {
	admin.ExportRequest
	g guard
}

func (f *exportFlags) add(flags *pflag.FlagSet, to string) {
	flags.BoolVar(&f.Service, "service", false, "the subject answers requests (default: messages flow)")
	flags.StringSliceVar(&f.To, "to", nil, to)
}

// parse takes the arguments ACCOUNT SUBJECT.
func (f *exportFlags) parse(args []string) {
	f.Account, f.Subject = args[0], args[1]
}

// who writes whom an export is for.
func who(everybody bool, to []string) string {
	if everybody {
		return "everybody"
	}
	return strings.Join(to, ", ")
}

func newAccountExport(a *app) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use: "export ACCOUNT SUBJECT", Args: takes("ACCOUNT", "SUBJECT"), Annotations: writes(),
		Short: "Let other accounts have a subject of an account",
		Long: `Let other accounts receive what is published under a subject of an account, or,
with --service, ask who answers there. They have it when they import it. Accounts
that have the export already keep it.`,
		Example: `  fleetbus account export acme 'registration.>' --to ops
  fleetbus account export ops time --service --public
  fleetbus account export rm acme 'registration.>' --to ops`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.parse(args)
			what := fmt.Sprintf("exporting %q of account %q", f.Subject, f.Account)
			if f.Everybody == (len(f.To) > 0) {
				return fail(exitUsage, "--to ACCOUNT, or --public", "%s: it is not said who may have it", what)
			}
			if err := identity.CheckFlowSubject(f.Subject); err != nil {
				return fail(exitUsage, "choose another subject", "%s: %v", what, err)
			}
			if f.g.dryRun {
				return a.showPlan("let %s have %s of account %s", who(f.Everybody, f.To), f.Subject, f.Account)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddExport(ctx, f.ExportRequest)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("%s of account %s is exported to %s", f.Subject, f.Account, who(f.Everybody, f.To)))
		},
	}
	f.add(cmd.Flags(), "accounts that may have it")
	cmd.Flags().BoolVar(&f.Everybody, "public", false, "every account may have it")
	f.g.drying(cmd)
	cmd.AddCommand(newExportList(a), newExportRemove(a))
	return a.output(cmd)
}

func (a *app) exports(cmd *cobra.Command, what, account string) ([]admin.ExportInfo, error) {
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.ExportInfo, error) {
		return c.Exports(ctx, account)
	})
}

func newExportList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: takes("[ACCOUNT]"), Annotations: reads(),
		Short: "List the exports",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.exports(cmd, "listing exports", strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.show(report{value: all, text: func(p *page) { exportTable(p, all) }})
		},
	})
}

func exportTable(p *page, all []admin.ExportInfo) {
	table(p, all,
		column[admin.ExportInfo]{"ACCOUNT", func(e admin.ExportInfo) string { return e.Account }},
		column[admin.ExportInfo]{"SUBJECT", func(e admin.ExportInfo) string { return e.Subject }},
		column[admin.ExportInfo]{"KIND", func(e admin.ExportInfo) string { return flowKind(e.Service) }},
		column[admin.ExportInfo]{"TO", func(e admin.ExportInfo) string { return who(e.Everybody, holders(e.Export)) }},
		column[admin.ExportInfo]{"IMPORTED BY", func(e admin.ExportInfo) string { return strings.Join(e.Importers, ", ") }},
	)
}

func flowKind(service bool) string {
	if service {
		return "service"
	}
	return "messages"
}

// holders names the accounts that may have an export.
func holders(e identity.Export) (names []string) {
	for _, c := range e.To {
		if c.Revoked.IsZero() {
			names = append(names, c.Account)
		}
	}
	return names
}

func newExportRemove(a *app) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use: "rm ACCOUNT SUBJECT", Aliases: []string{"delete", "revoke"}, Args: takes("ACCOUNT", "SUBJECT"), Annotations: writes(),
		Short: "Take an export back, from all or from those of --to",
		Long: `Take an export back from all accounts, or from those of --to. What they import of
it stops at once, and waits until they may have it again.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.parse(args)
			what := fmt.Sprintf("taking back %q of account %q", f.Subject, f.Account)
			all, err := a.exports(cmd, what, f.Account)
			if err != nil {
				return err
			}
			var importers []string
			found := false
			for _, e := range all {
				if e.Subject == f.Subject && e.Service == f.Service {
					found, importers = true, e.Importers
				}
			}
			if !found {
				return fail(exitNotFound, "fleetbus account export ls "+f.Account, "%s: there is no such export (%s)", what, flowKind(f.Service))
			}
			described := fmt.Sprintf("take %s of account %s back from %s, which %s imports now", f.Subject, f.Account, or(who(false, f.To), "all"), or(who(false, importers), "nobody"))
			if f.g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), f.g, f.Account, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveExport(ctx, f.ExportRequest)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("%s of account %s is taken back from %s", f.Subject, f.Account, or(who(false, f.To), "all")))
		},
	}
	f.add(cmd.Flags(), "accounts that lose it (default: all, and the export is gone)")
	f.g.destroying(cmd)
	return a.output(cmd)
}

func newAccountImport(a *app) *cobra.Command {
	var r admin.ImportRequest
	var g guard
	cmd := &cobra.Command{
		Use: "import ACCOUNT FROM:SUBJECT", Args: takes("ACCOUNT", "FROM:SUBJECT"), Annotations: writes(),
		Short: "Have a subject that another account exports",
		Long: `Have a subject that another account exports to this one. Wildcards of SUBJECT
stand for those of --as, in their order.`,
		Example: `  fleetbus account import ops 'acme:registration.>' --as 'fleet.acme.>'
  fleetbus account import acme ops:time`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("importing %q into account %q", args[1], args[0])
			r.Account = args[0]
			var ok bool
			if r.From, r.Subject, ok = strings.Cut(args[1], ":"); !ok {
				return fail(exitUsage, "write it like acme:registration.>", "%s: the account that exports is not said", what)
			}
			r.As = or(r.As, r.Subject)
			for _, subject := range []string{r.Subject, r.As} {
				if err := identity.CheckFlowSubject(subject); err != nil {
					return fail(exitUsage, "choose another subject with --as", "%s: %v", what, err)
				}
			}
			if g.dryRun {
				return a.showPlan("let account %s have %s of account %s as %s", r.Account, r.Subject, r.From, r.As)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddImport(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("account %s has %s of account %s as %s", r.Account, r.Subject, r.From, r.As))
		},
	}
	cmd.Flags().StringVar(&r.As, "as", "", "the `subject` here (default: the same)")
	cmd.Flags().BoolVar(&r.Service, "service", false, "the service, if messages are exported under that subject, too")
	g.drying(cmd)
	cmd.AddCommand(newImportList(a), newImportRemove(a))
	return a.output(cmd)
}

func (a *app) imports(cmd *cobra.Command, what, account string) ([]admin.ImportInfo, error) {
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.ImportInfo, error) {
		return c.Imports(ctx, account)
	})
}

func newImportList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: takes("[ACCOUNT]"), Annotations: reads(),
		Short: "List the imports, and which of them wait for consent",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.imports(cmd, "listing imports", strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.show(report{value: all, text: func(p *page) { importTable(p, all) }})
		},
	})
}

func importTable(p *page, all []admin.ImportInfo) {
	table(p, all,
		column[admin.ImportInfo]{"ACCOUNT", func(i admin.ImportInfo) string { return i.Account }},
		column[admin.ImportInfo]{"SUBJECT", func(i admin.ImportInfo) string { return i.As }},
		column[admin.ImportInfo]{"KIND", func(i admin.ImportInfo) string { return flowKind(i.Service) }},
		column[admin.ImportInfo]{"FROM", func(i admin.ImportInfo) string { return i.From.Account + ":" + i.Subject }},
		column[admin.ImportInfo]{"STATE", func(i admin.ImportInfo) string { return i.State }},
	)
}

func newImportRemove(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT SUBJECT", Aliases: []string{"delete"}, Args: takes("ACCOUNT", "SUBJECT"), Annotations: writes(),
		Short: "Remove what an account imports as a subject",
		RunE: func(cmd *cobra.Command, args []string) error {
			account, as := args[0], args[1]
			what := fmt.Sprintf("removing the import %q of account %q", as, account)
			all, err := a.imports(cmd, what, account)
			if err != nil {
				return err
			}
			described := ""
			for _, i := range all {
				if i.As == as {
					described = fmt.Sprintf("end the import of %s:%s into account %s as %s", i.From.Account, i.Subject, account, as)
				}
			}
			switch {
			case described == "":
				return fail(exitNotFound, "fleetbus account import ls "+account, "%s: there is no such import", what)
			case g.dryRun:
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, account, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveImport(ctx, account, as)
			})
			if err != nil {
				return err
			}
			return a.showSpread(s, s, fmt.Sprintf("account %s has %s no more", account, as))
		},
	}
	g.destroying(cmd)
	return a.output(cmd)
}

// flowTables add to what is told of an account.
func flowTables(p *page, i admin.AccountInfo) {
	if len(i.Exports) > 0 {
		p.line("")
		p.line("exports")
		exportTable(p, i.Exports)
	}
	if len(i.Imports) > 0 {
		p.line("")
		p.line("imports")
		importTable(p, i.Imports)
	}
}
