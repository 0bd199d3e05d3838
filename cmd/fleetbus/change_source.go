package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newChangeSourceCommand(a *app) *cobra.Command {
	return noun("source", "Sources, databases whose changes a node announces",
		newSourceAdd(a), newSourceList(a), newSourceStatus(a), newSourceRemove(a))
}

func newSourceAdd(a *app) *cobra.Command {
	var s admin.Source
	var dsnFile, file string
	var g guard
	cmd := &cobra.Command{
		Use: "add ACCOUNT/NAME", Aliases: []string{"create"}, Args: takes("ACCOUNT/NAME"), Annotations: writes(),
		Short: "Have a node announce the changes of a database",
		Long: `Have a node announce the changes of a database in an account, under a name. One
node does it at a time, and another takes over when that one is gone. The
connection string is read from a file, sealed to the fleet here, and kept so.`,
		Example: `  fleetbus change source add acme/orders --type postgres --dsn-file orders.dsn --tables customers,carts
  fleetbus change source add acme/local --type sqlite --file /var/lib/app/app.db --node eu-1`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("adding source %q", args[0])
			var err error
			if s.Account, s.Name, err = identity.SplitName(args[0]); err != nil {
				return fail(exitUsage, "write it like acme/orders", "%s: %v", what, err)
			}
			dsn, err := a.dsn(what, dsnFile, file)
			if err != nil {
				return err
			}
			setup, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.SourceSetup, error) {
				return c.SourceSetup(ctx)
			})
			if err != nil {
				return err
			}
			if !slices.Contains(setup.Types, s.Type) {
				return fail(exitUsage, "--type "+strings.Join(setup.Types, " or "), "%s: %q is no type of source", what, s.Type)
			}
			if g.dryRun {
				return a.showPlan("announce the changes of a %s database in account %s, as %s", s.Type, s.Account, s.Name)
			}
			if s.Secret, err = identity.SealSecret(setup.SecretPublic, dsn); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			spread, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddSource(ctx, s)
			})
			if err != nil {
				return err
			}
			if err := a.showSpread(spread, spread, fmt.Sprintf("source %s is known", args[0])); err != nil {
				return err
			}
			a.hint("whether it runs: fleetbus change source status %s", args[0])
			return nil
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&s.Type, "type", "", "`type` of the database: postgres, mysql, sqlite")
	flags.StringVar(&dsnFile, "dsn-file", "", "`file` with the connection string, - for standard input")
	flags.StringVar(&file, "file", "", "database `file`, on the node's machine, of a type that needs no connection string")
	flags.StringSliceVar(&s.Tables, "tables", nil, "tables to tell of (default: all)")
	flags.StringVar(&s.Place, "place", "", "`name` of a permanent replication slot, or of a file for the position in a binary log (default: a resync at start)")
	flags.StringVar(&s.Node, "node", "", "`node` that alone may run it (default: any)")
	flags.BoolVar(&s.Opaque, "opaque", false, "keys are random by design, such as digests")
	g.drying(cmd)
	return a.output(cmd)
}

// maxDSN bounds a connection string.
const maxDSN = 16 << 10

// dsn reads the connection string, or takes the name of a file for one.
func (a *app) dsn(what, dsnFile, file string) ([]byte, error) {
	switch {
	case (dsnFile == "") == (file == ""):
		return nil, fail(exitUsage, "--dsn-file FILE, or --file DATABASE", "%s: how to reach the database is not said, or twice", what)
	case file != "":
		if !filepath.IsAbs(file) {
			return nil, fail(exitUsage, "--file with the whole path", "%s: %q is not a whole path, and the node may run elsewhere", what, file)
		}
		return []byte(file), nil
	}
	in := a.stdin
	if dsnFile != "-" {
		f, err := os.Open(dsnFile)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", what, err)
		}
		defer f.Close()
		in = f
	}
	data, err := io.ReadAll(io.LimitReader(in, maxDSN+1))
	if err != nil {
		return nil, fmt.Errorf("%s: reading the connection string: %w", what, err)
	}
	data = bytes.TrimSpace(data)
	if len(data) == 0 || len(data) > maxDSN {
		return nil, fail(exitUsage, "put one connection string into it", "%s: the file is empty, or larger than %d bytes", what, maxDSN)
	}
	return data, nil
}

func (a *app) sources(cmd *cobra.Command, what, account string) ([]admin.SourceInfo, error) {
	return administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.SourceInfo, error) {
		return c.Sources(ctx, account)
	})
}

func newSourceList(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: takes("[ACCOUNT]"), Annotations: reads(),
		Short: "List the sources",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := a.sources(cmd, "listing sources", strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.show(report{value: all, text: func(p *page) { sourceTable(p, all) }})
		},
	})
}

func sourceTable(p *page, all []admin.SourceInfo) {
	table(p, all,
		column[admin.SourceInfo]{"SOURCE", func(s admin.SourceInfo) string { return s.Account + "/" + s.Name }},
		column[admin.SourceInfo]{"TYPE", func(s admin.SourceInfo) string { return s.Type }},
		column[admin.SourceInfo]{"STATE", func(s admin.SourceInfo) string { return s.State }},
		column[admin.SourceInfo]{"NODE", func(s admin.SourceInfo) string { return s.Runner }},
		column[admin.SourceInfo]{"POSITION", func(s admin.SourceInfo) string { return s.Progress.Position }},
		column[admin.SourceInfo]{"LAG", func(s admin.SourceInfo) string { return lag(s) }},
		column[admin.SourceInfo]{"ANNOUNCED", func(s admin.SourceInfo) string { return fmt.Sprint(s.Announced) }},
		column[admin.SourceInfo]{"TABLES", func(s admin.SourceInfo) string { return or(strings.Join(s.Tables, ","), "all") }},
	)
}

// lag is how late the last change was announced, if any was.
func lag(s admin.SourceInfo) string {
	if s.Progress.Version == 0 {
		return ""
	}
	return s.Progress.Lag.Round(100 * time.Microsecond).String()
}

func newSourceStatus(a *app) *cobra.Command {
	return a.output(&cobra.Command{
		Use: "status ACCOUNT/NAME", Aliases: []string{"info"}, Args: takes("ACCOUNT/NAME"), Annotations: reads(),
		Short: "Show where a source stands",
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("asking for source %q", args[0])
			s, err := a.source(cmd, what, args[0])
			if err != nil {
				return err
			}
			return a.show(report{value: s, text: func(p *page) {
				kept := ""
				if s.Progress.Retained > 0 {
					kept = human.Size(int64(s.Progress.Retained))
				}
				fields(p, []field{{"source", s.Account + "/" + s.Name}, {"type", s.Type}, {"state", s.State}, {"node", s.Runner},
					{"since", human.Time(s.Since)}, {"error", s.Error}, {"position", s.Progress.Position}, {"epoch", s.Progress.Epoch},
					{"database seen", human.Time(s.Progress.Seen)}, {"lag", lag(s)}, {"log kept for it", kept}, {"warning", s.Progress.Warning},
					{"announced", fmt.Sprint(s.Announced)}, {"keys refused", fmt.Sprint(s.Refused)},
					{"tables", or(strings.Join(s.Tables, ", "), "all")}})
			}})
		},
	})
}

func (a *app) source(cmd *cobra.Command, what, name string) (admin.SourceInfo, error) {
	all, err := a.sources(cmd, what, "")
	if err != nil {
		return admin.SourceInfo{}, err
	}
	i := slices.IndexFunc(all, func(s admin.SourceInfo) bool { return s.Account+"/"+s.Name == name })
	if i < 0 {
		return admin.SourceInfo{}, fail(exitNotFound, "fleetbus change source ls", "%s: there is no such source", what)
	}
	return all[i], nil
}

func newSourceRemove(a *app) *cobra.Command {
	var g guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT/NAME", Aliases: []string{"delete"}, Args: takes("ACCOUNT/NAME"), Annotations: writes(),
		Short: "Have the changes of a database announced no more",
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("removing source %q", args[0])
			s, err := a.source(cmd, what, args[0])
			if err != nil {
				return err
			}
			described := fmt.Sprintf("end the announcements of source %s, which is %s", args[0], s.State)
			if g.dryRun {
				return a.showPlan("%s", described)
			}
			if err := a.confirm(cmd.Context(), g, args[0], described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			spread, err := administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveSource(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.showSpread(spread, spread, fmt.Sprintf("source %s is removed", args[0]))
		},
	}
	g.destroying(cmd)
	return a.output(cmd)
}
