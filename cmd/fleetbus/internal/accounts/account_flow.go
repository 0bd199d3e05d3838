package accounts

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
)

// exportFlags say which export is meant, and whom it is for.
type exportFlags struct {
	admin.ExportRequest
	g command.Guard
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

func newAccountExport(a *command.App) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use: "export ACCOUNT SUBJECT", Args: command.Takes("ACCOUNT", "SUBJECT"), Annotations: command.Writes(),
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
				return command.Fail(command.ExitUsage, "--to ACCOUNT, or --public", "%s: it is not said who may have it", what)
			}
			if err := identity.CheckFlowSubject(f.Subject); err != nil {
				return command.Fail(command.ExitUsage, "choose another subject", "%s: %v", what, err)
			}
			if f.g.DryRun {
				return a.ShowPlan("let %s have %s of account %s", who(f.Everybody, f.To), f.Subject, f.Account)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddExport(ctx, f.ExportRequest)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("%s of account %s is exported to %s", f.Subject, f.Account, who(f.Everybody, f.To)))
		},
	}
	f.add(cmd.Flags(), "accounts that may have it")
	cmd.Flags().BoolVar(&f.Everybody, "public", false, "every account may have it")
	f.g.Drying(cmd)
	cmd.AddCommand(newExportList(a), newExportRemove(a))
	return a.Output(cmd)
}

func exports(a *command.App, cmd *cobra.Command, what, account string) ([]admin.ExportInfo, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.ExportInfo, error) {
		return c.Exports(ctx, account)
	})
}

func newExportList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: command.Takes("[ACCOUNT]"), Annotations: command.Reads(),
		Short: "List the exports",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := exports(a, cmd, "listing exports", strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: all, Text: func(p *command.Page) { exportTable(p, all) }})
		},
	})
}

func exportTable(p *command.Page, all []admin.ExportInfo) {
	command.Table(p, all,
		command.Col("ACCOUNT", func(e admin.ExportInfo) string { return e.Account }),
		command.Col("SUBJECT", func(e admin.ExportInfo) string { return e.Subject }),
		command.Col("KIND", func(e admin.ExportInfo) string { return flowKind(e.Service) }),
		command.Col("TO", func(e admin.ExportInfo) string { return who(e.Everybody, holders(e.Export)) }),
		command.Col("IMPORTED BY", func(e admin.ExportInfo) string { return strings.Join(e.Importers, ", ") }),
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

func newExportRemove(a *command.App) *cobra.Command {
	var f exportFlags
	cmd := &cobra.Command{
		Use: "rm ACCOUNT SUBJECT", Aliases: []string{"delete", "revoke"}, Args: command.Takes("ACCOUNT", "SUBJECT"), Annotations: command.Writes(),
		Short: "Take an export back, from all or from those of --to",
		Long: `Take an export back from all accounts, or from those of --to. What they import of
it stops at once, and waits until they may have it again.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			f.parse(args)
			what := fmt.Sprintf("taking back %q of account %q", f.Subject, f.Account)
			all, err := exports(a, cmd, what, f.Account)
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
				return command.Fail(command.ExitNotFound, "fleetbus account export ls "+f.Account, "%s: there is no such export (%s)", what, flowKind(f.Service))
			}
			described := fmt.Sprintf("take %s of account %s back from %s, which %s imports now", f.Subject, f.Account, cmp.Or(who(false, f.To), "all"), cmp.Or(who(false, importers), "nobody"))
			if f.g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), f.g, f.Account, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveExport(ctx, f.ExportRequest)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("%s of account %s is taken back from %s", f.Subject, f.Account, cmp.Or(who(false, f.To), "all")))
		},
	}
	f.add(cmd.Flags(), "accounts that lose it (default: all, and the export is gone)")
	f.g.Destroying(cmd)
	return a.Output(cmd)
}

func newAccountImport(a *command.App) *cobra.Command {
	var r admin.ImportRequest
	var g command.Guard
	cmd := &cobra.Command{
		Use: "import ACCOUNT FROM:SUBJECT", Args: command.Takes("ACCOUNT", "FROM:SUBJECT"), Annotations: command.Writes(),
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
				return command.Fail(command.ExitUsage, "write it like acme:registration.>", "%s: the account that exports is not said", what)
			}
			r.As = cmp.Or(r.As, r.Subject)
			for _, subject := range []string{r.Subject, r.As} {
				if err := identity.CheckFlowSubject(subject); err != nil {
					return command.Fail(command.ExitUsage, "choose another subject with --as", "%s: %v", what, err)
				}
			}
			if g.DryRun {
				return a.ShowPlan("let account %s have %s of account %s as %s", r.Account, r.Subject, r.From, r.As)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddImport(ctx, r)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("account %s has %s of account %s as %s", r.Account, r.Subject, r.From, r.As))
		},
	}
	cmd.Flags().StringVar(&r.As, "as", "", "the `subject` here (default: the same)")
	cmd.Flags().BoolVar(&r.Service, "service", false, "the service, if messages are exported under that subject, too")
	g.Drying(cmd)
	cmd.AddCommand(newImportList(a), newImportRemove(a))
	return a.Output(cmd)
}

func imports(a *command.App, cmd *cobra.Command, what, account string) ([]admin.ImportInfo, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.ImportInfo, error) {
		return c.Imports(ctx, account)
	})
}

func newImportList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: command.Takes("[ACCOUNT]"), Annotations: command.Reads(),
		Short: "List the imports, and which of them wait for consent",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := imports(a, cmd, "listing imports", strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: all, Text: func(p *command.Page) { importTable(p, all) }})
		},
	})
}

func importTable(p *command.Page, all []admin.ImportInfo) {
	command.Table(p, all,
		command.Col("ACCOUNT", func(i admin.ImportInfo) string { return i.Account }),
		command.Col("SUBJECT", func(i admin.ImportInfo) string { return i.As }),
		command.Col("KIND", func(i admin.ImportInfo) string { return flowKind(i.Service) }),
		command.Col("FROM", func(i admin.ImportInfo) string { return i.From.Account + ":" + i.Subject }),
		command.Col("STATE", func(i admin.ImportInfo) string { return i.State }),
	)
}

func newImportRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT SUBJECT", Aliases: []string{"delete"}, Args: command.Takes("ACCOUNT", "SUBJECT"), Annotations: command.Writes(),
		Short: "Remove what an account imports as a subject",
		RunE: func(cmd *cobra.Command, args []string) error {
			account, as := args[0], args[1]
			what := fmt.Sprintf("removing the import %q of account %q", as, account)
			all, err := imports(a, cmd, what, account)
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
				return command.Fail(command.ExitNotFound, "fleetbus account import ls "+account, "%s: there is no such import", what)
			case g.DryRun:
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, account, described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			s, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveImport(ctx, account, as)
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(s, s, fmt.Sprintf("account %s has %s no more", account, as))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}

// flowTables add to what is told of an account.
func flowTables(p *command.Page, i admin.AccountInfo) {
	if len(i.Exports) > 0 {
		p.Line("")
		p.Line("exports")
		exportTable(p, i.Exports)
	}
	if len(i.Imports) > 0 {
		p.Line("")
		p.Line("imports")
		importTable(p, i.Imports)
	}
}
