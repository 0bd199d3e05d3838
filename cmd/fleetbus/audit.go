package main

import (
	"cmp"
	"context"
	"errors"
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
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newAuditCommand(a *command.App) *cobra.Command {
	verbs := append([]*cobra.Command{newAuditList(a), newAuditVerify(a), newAuditExport(a), newAuditKeep(a)}, auditFiles(a)...)
	return a.OnFleet(command.Noun("audit", "Who did what, who came in and who was refused; and whether what others run is hardened", verbs...))
}

func newAuditList(a *command.App) *cobra.Command {
	var q admin.AuditQuery
	var kinds []string
	var since, until string
	cmd := &cobra.Command{
		Use: "ls", Aliases: []string{"list"}, Args: command.Takes(), Annotations: command.Reads(),
		Short: "List what was done, the newest last",
		Example: `  fleetbus audit ls --since 1h
  fleetbus audit ls --who FLEET/ann --what 'user.*' -o jsonl
  fleetbus audit ls --kind refused --account acme`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, k := range kinds {
				if !slices.Contains(admin.AuditKinds(), admin.AuditKind(k)) {
					return command.Fail(command.ExitUsage, "use "+command.Words(admin.AuditKinds()), "listing the audit: there is no kind %q", k)
				}
				q.Kinds = append(q.Kinds, admin.AuditKind(k))
			}
			var err1, err2 error
			q.Since, err1 = moment(since, time.Now())
			q.Until, err2 = moment(until, time.Now())
			if err := errors.Join(err1, err2); err != nil || q.Limit < 1 {
				return command.Fail(command.ExitUsage, "--since 24h, --until 2026-01-31T12:00:00Z, --limit 100", "listing the audit: a flag is wrong: %v", err)
			}
			all, err := command.Administer(cmd, a, "listing the audit", func(ctx context.Context, c *admin.Client) (all []admin.AuditEntry, err error) {
				return audit.List(ctx, c, q)
			})
			if err != nil {
				return err
			}
			return a.Show(command.List(all,
				command.Col("TIME", func(e admin.AuditEntry) string { return human.Time(e.Time) }),
				command.Col("ENTRY", func(e admin.AuditEntry) string { return fmt.Sprintf("%s/%d", e.Node, e.Number) }),
				command.Col("KIND", func(e admin.AuditEntry) string { return string(e.Kind) }),
				command.Col("WHO", func(e admin.AuditEntry) string { return e.Who }),
				command.Col("FROM", func(e admin.AuditEntry) string { return command.Some(e.From, 1) }),
				command.Col("WHAT", func(e admin.AuditEntry) string { return cmp.Or(e.What, e.Listener) }),
				command.Col("ABOUT", audit.About),
				command.Col("RESULT", func(e admin.AuditEntry) string { return e.Result }),
			))
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&q.Who, "who", "", "only what `account/name` did; a last * stands for anything")
	flags.StringVar(&q.What, "what", "", "only `requests` of that name, such as user.add; a last * stands for anything")
	flags.StringVar(&q.Text, "text", "", "only entries that hold a `text`")
	flags.StringVar(&q.Account, "account", "", "only what is about an `account`")
	flags.StringVar(&q.Node, "node", "", "only what a `node` wrote")
	flags.StringSliceVar(&kinds, "kind", nil, "only entries of a `kind`, or of several: "+command.Words(admin.AuditKinds()))
	flags.StringVar(&since, "since", "", "only what happened since a `time`, or so long ago, such as 24h")
	flags.StringVar(&until, "until", "", "only what happened until a `time`, or so long ago")
	flags.IntVar(&q.Limit, "limit", 100, "how many entries at most, the newest")
	return a.Output(cmd)
}

// moment is a time, or how long ago it was.
func moment(text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if d, err := command.ParseLife(text); err == nil {
		return now.Add(-d), nil
	}
	return time.Parse(time.RFC3339, text)
}

func newAuditVerify(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "verify [FILE]", Args: command.Takes("[FILE]"), Annotations: command.Reads(),
		Short: "Find what was removed, altered, reordered or forged",
		Long: `Verify the audit of the fleet, or one that was exported to FILE, which needs no fleet:
each node's entries are a chain that the node signs, and the nodes remember how far the
chains of the others were. The first entry that is wrong is named, and the exit code is 1.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			var v *audit.Verifier
			begin := func(s admin.AuditState) error { v = audit.NewVerifier(s); return nil }
			add := func(b admin.AuditBlock) error { v.Add(b); return nil }
			var state admin.AuditState
			var err error
			if len(args) == 1 {
				err = readFile(args[0], func(r io.Reader) error {
					return audit.Import(r, func(s admin.AuditState) { state = s; _ = begin(s) }, func(b admin.AuditBlock) { v.Add(b) })
				})
				if err != nil {
					return fmt.Errorf("verifying %s: %w", args[0], err)
				}
			} else {
				state, err = command.Administer(cmd, a, "verifying the audit", func(ctx context.Context, c *admin.Client) (admin.AuditState, error) {
					return audit.Fetch(ctx, c, begin, add)
				})
			}
			if err != nil {
				return err
			}
			r := v.Finish()
			err = a.Show(command.Report{Value: r, Text: func(p *command.Page) {
				command.Table(p, r.Journals,
					command.Col("NODE", func(v audit.Verified) string { return v.Node }),
					command.Col("ENTRIES", func(v audit.Verified) string { return fmt.Sprintf("%d to %d", v.First, v.Last) }),
					command.Col("SINCE", func(v audit.Verified) string { return human.Time(v.Since) }),
					command.Col("UNTIL", func(v audit.Verified) string { return human.Time(v.Until) }),
					command.Col("CRASHES", func(v audit.Verified) string { return fmt.Sprint(v.Crashes) }),
					command.Col("SEEN BY", func(v audit.Verified) string { return fmt.Sprintf("%d others", v.Witnesses) }),
					command.Col("KEY", func(v audit.Verified) string { return v.Journal }),
				)
				for _, problem := range r.Problems {
					p.Line("%s", problem)
				}
				if len(r.Problems) == 0 {
					p.Line("%d entries are as they were written", r.Entries)
				}
			}})
			if err == nil && len(state.Missing) > 0 {
				a.Hint("not asked what they remember, because they did not answer: %s", strings.Join(state.Missing, ", "))
			}
			if err == nil && len(r.Problems) > 0 {
				return command.Fail(command.ExitFailed, "fleetbus audit ls --since 24h, and compare with an exported file", "verifying the audit: %s", r.Problems[0])
			}
			return err
		},
	})
}

func readFile(path string, read func(io.Reader) error) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return read(f)
}

func newAuditExport(a *command.App) *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "export FILE", Args: command.Takes("FILE"), Annotations: command.Writes(),
		Short:   "Write the whole audit to a file that can be verified anywhere",
		Example: "  fleetbus audit export audit.jsonl && fleetbus audit verify audit.jsonl",
		RunE: func(cmd *cobra.Command, args []string) error {
			n := 0
			err := writeFileBy(args[0], yes, func(w io.Writer) error {
				var e *audit.Exporter
				_, err := command.Administer(cmd, a, "exporting the audit", func(ctx context.Context, c *admin.Client) (admin.AuditState, error) {
					return audit.Fetch(ctx, c, func(s admin.AuditState) (err error) {
						e, err = audit.NewExporter(w, s)
						return err
					}, func(b admin.AuditBlock) error { n++; return e.Add(b) })
				})
				if err != nil {
					return err
				}
				return e.Close()
			})
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: map[string]any{"file": args[0], "blocks": n}, Text: func(p *command.Page) { p.Line("%d blocks of the audit are in %s", n, args[0]) }})
		},
	}
	cmd.Flags().BoolVar(&yes, "yes", false, "write over a file that exists")
	return a.Output(cmd)
}

// writeFileBy has a file written that is there whole or not at all, for its owner alone.
func writeFileBy(path string, over bool, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(path); err == nil && !over {
		return command.Fail(command.ExitConflict, "choose another name, or add --yes to write over it", "file %q exists", path)
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".fleetbus-*")
	if err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	// Once the file has its name there is nothing to remove.
	defer os.Remove(f.Name())
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("writing %q: %w", path, err)
	}
	return nil
}

func newAuditKeep(a *command.App) *cobra.Command {
	var age command.Life
	var most command.Size
	cmd := &cobra.Command{
		Use: "keep", Args: command.Takes(), Annotations: command.Writes(),
		Short:   "Say for how long, and how much, the audit is kept",
		Example: "  fleetbus audit keep --age 365d --size 1GiB",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if age == 0 || most == 0 {
				return command.Fail(command.ExitUsage, "--age 365d --size 1GiB", "bounding the audit: --age or --size is missing")
			}
			keep := admin.AuditKeep{MaxAge: time.Duration(age), MaxSize: int64(most)}
			if age == command.Never {
				keep.MaxAge = 0
			}
			k, err := command.Administer(cmd, a, "bounding the audit", func(ctx context.Context, c *admin.Client) (admin.AuditKeep, error) { return c.KeepAudit(ctx, keep) })
			if err != nil {
				return err
			}
			return a.Show(command.Report{Value: k, Text: func(p *command.Page) {
				p.Line("the audit is kept for %s, and up to %s", human.Limit(int64(k.MaxAge), func(n int64) string { return human.Duration(time.Duration(n)) }), human.Size(k.MaxSize))
			}})
		},
	}
	cmd.Flags().Var(&age, "age", "for how long an entry is kept, or never to let it go")
	cmd.Flags().Var(&most, "size", "how much is kept, of all entries together; the engine sets it aside on each node")
	return a.Output(cmd)
}
