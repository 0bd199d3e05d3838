package changes

import (
	"bytes"
	"cmp"
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
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newChangeSourceCommand(a *command.App) *cobra.Command {
	return command.Noun("source", "Sources, databases whose changes a node announces",
		newSourceAdd(a), newSourceList(a), newSourceStatus(a), newSourceRemove(a))
}

func newSourceAdd(a *command.App) *cobra.Command {
	var s admin.Source
	var dsnFile, file string
	var g command.Guard
	cmd := &cobra.Command{
		Use: "add ACCOUNT/NAME", Aliases: []string{"create"}, Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Writes(),
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
				return command.Fail(command.ExitUsage, "write it like acme/orders", "%s: %v", what, err)
			}
			dsn, err := dsn(a, what, dsnFile, file)
			if err != nil {
				return err
			}
			setup, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.SourceSetup, error) {
				return c.SourceSetup(ctx)
			})
			if err != nil {
				return err
			}
			if !slices.Contains(setup.Types, s.Type) {
				return command.Fail(command.ExitUsage, "--type "+strings.Join(setup.Types, " or "), "%s: %q is no type of source", what, s.Type)
			}
			if g.DryRun {
				return a.ShowPlan("announce the changes of a %s database in account %s, as %s", s.Type, s.Account, s.Name)
			}
			if s.Secret, err = identity.SealSecret(setup.SecretPublic, dsn); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			spread, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.AddSource(ctx, s)
			})
			if err != nil {
				return err
			}
			if err := a.ShowSpread(spread, spread, fmt.Sprintf("source %s is known", args[0])); err != nil {
				return err
			}
			a.Hint("whether it runs: fleetbus change source status %s", args[0])
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
	g.Drying(cmd)
	return a.Output(cmd)
}

// maxDSN bounds a connection string.
const maxDSN = 16 << 10

// dsn reads the connection string, or takes the name of a file for one.
func dsn(a *command.App, what, dsnFile, file string) ([]byte, error) {
	switch {
	case (dsnFile == "") == (file == ""):
		return nil, command.Fail(command.ExitUsage, "--dsn-file FILE, or --file DATABASE", "%s: how to reach the database is not said, or twice", what)
	case file != "":
		if !filepath.IsAbs(file) {
			return nil, command.Fail(command.ExitUsage, "--file with the whole path", "%s: %q is not a whole path, and the node may run elsewhere", what, file)
		}
		return []byte(file), nil
	}
	in := a.Stdin
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
		return nil, command.Fail(command.ExitUsage, "put one connection string into it", "%s: the file is empty, or larger than %d bytes", what, maxDSN)
	}
	return data, nil
}

func sources(a *command.App, cmd *cobra.Command, what, account string) ([]admin.SourceInfo, error) {
	return command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) ([]admin.SourceInfo, error) {
		return c.Sources(ctx, account)
	})
}

func newSourceList(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "ls [ACCOUNT]", Aliases: []string{"list"}, Args: command.Takes("[ACCOUNT]"), Annotations: command.Reads(),
		Short: "List the sources",
		RunE: func(cmd *cobra.Command, args []string) error {
			all, err := sources(a, cmd, "listing sources", strings.Join(args, ""))
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: all, Text: func(p *command.Page) { SourceTable(p, all) }})
		},
	})
}

// SourceTable lays sources out for people.
func SourceTable(p *command.Page, all []admin.SourceInfo) {
	command.Table(p, all,
		command.Col("SOURCE", func(s admin.SourceInfo) string { return s.Account + "/" + s.Name }),
		command.Col("TYPE", func(s admin.SourceInfo) string { return s.Type }),
		command.Col("STATE", func(s admin.SourceInfo) string { return s.State }),
		command.Col("NODE", func(s admin.SourceInfo) string { return s.Runner }),
		command.Col("POSITION", func(s admin.SourceInfo) string { return s.Progress.Position }),
		command.Col("LAG", func(s admin.SourceInfo) string { return lag(s) }),
		command.Col("ANNOUNCED", func(s admin.SourceInfo) string { return fmt.Sprint(s.Announced) }),
		command.Col("TABLES", func(s admin.SourceInfo) string { return cmp.Or(strings.Join(s.Tables, ","), "all") }),
	)
}

// lag is how late the last change was announced, if any was.
func lag(s admin.SourceInfo) string {
	if s.Progress.Version == 0 {
		return ""
	}
	return s.Progress.Lag.Round(100 * time.Microsecond).String()
}

func newSourceStatus(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "status ACCOUNT/NAME", Aliases: []string{"info"}, Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Reads(),
		Short: "Show where a source stands",
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("asking for source %q", args[0])
			s, err := sourceNamed(a, cmd, what, args[0])
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: s, Text: func(p *command.Page) {
				kept := ""
				if s.Progress.Retained > 0 {
					kept = human.Size(int64(s.Progress.Retained))
				}
				command.Fields(p, []command.Field{{"source", s.Account + "/" + s.Name}, {"type", s.Type}, {"state", s.State}, {"node", s.Runner},
					{"since", human.Time(s.Since)}, {"error", s.Error}, {"position", s.Progress.Position}, {"epoch", s.Progress.Epoch},
					{"database seen", human.Time(s.Progress.Seen)}, {"lag", lag(s)}, {"log kept for it", kept}, {"warning", s.Progress.Warning},
					{"announced", fmt.Sprint(s.Announced)}, {"keys refused", fmt.Sprint(s.Refused)},
					{"tables", cmp.Or(strings.Join(s.Tables, ", "), "all")}})
			}})
		},
	})
}

func sourceNamed(a *command.App, cmd *cobra.Command, what, name string) (admin.SourceInfo, error) {
	all, err := sources(a, cmd, what, "")
	if err != nil {
		return admin.SourceInfo{}, err
	}
	i := slices.IndexFunc(all, func(s admin.SourceInfo) bool { return s.Account+"/"+s.Name == name })
	if i < 0 {
		return admin.SourceInfo{}, command.Fail(command.ExitNotFound, "fleetbus change source ls", "%s: there is no such source", what)
	}
	return all[i], nil
}

func newSourceRemove(a *command.App) *cobra.Command {
	var g command.Guard
	cmd := &cobra.Command{
		Use: "rm ACCOUNT/NAME", Aliases: []string{"delete"}, Args: command.Takes("ACCOUNT/NAME"), Annotations: command.Writes(),
		Short: "Have the changes of a database announced no more",
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("removing source %q", args[0])
			s, err := sourceNamed(a, cmd, what, args[0])
			if err != nil {
				return err
			}
			described := fmt.Sprintf("end the announcements of source %s, which is %s", args[0], s.State)
			if g.DryRun {
				return a.ShowPlan("%s", described)
			}
			if err := a.Confirm(cmd.Context(), g, args[0], described); err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			spread, err := command.Administer(cmd, a, what, func(ctx context.Context, c *admin.Client) (admin.Spread, error) {
				return c.RemoveSource(ctx, args[0])
			})
			if err != nil {
				return err
			}
			return a.ShowSpread(spread, spread, fmt.Sprintf("source %s is removed", args[0]))
		},
	}
	g.Destroying(cmd)
	return a.Output(cmd)
}
