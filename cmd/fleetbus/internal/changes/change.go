package changes

import (
	"cmp"
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newChangeCommand(a *command.App) *cobra.Command {
	return a.OnFleet(command.Noun("change", "Changes: tell servers that something changed, and hear of it",
		newChangeAnnounce(a), newChangeResync(a), newChangeWatch(a), newChangeSourceCommand(a)))
}

// noticeLine is a notice as programs get it.
type noticeLine struct {
	Source  string        `json:"source"`
	Key     string        `json:"key"`
	Kind    change.Kind   `json:"kind"`
	Version uint64        `json:"version"`
	Epoch   string        `json:"epoch"`
	Origin  string        `json:"origin"`
	Time    time.Time     `json:"time"`
	Reason  change.Reason `json:"reason,omitempty"`
	Late    bool          `json:"late"`
}

func lineOf(n change.Notice) noticeLine {
	return noticeLine{n.Source, n.Key.String(), n.Kind, n.Version, n.Epoch, n.Origin, n.Time.UTC(), n.Reason, n.Late}
}

func newChangeAnnounce(a *command.App) *cobra.Command {
	kind := string(change.Update)
	var n change.Notice
	cmd := &cobra.Command{
		Use: "announce SOURCE KEY", Args: command.Takes("SOURCE", "KEY"), Annotations: command.Writes(),
		Short: "Tell all servers that a key changed",
		Long: `Tell all servers that a key changed, and return when no watcher can miss it. The
key is the path to what changed: parts joined by dots, every byte in a part but
letters, digits, - and _ written %XX. No value travels: whoever hears it goes
and reads.`,
		Example: `  fleetbus change announce orders customers.42 --creds app.creds
  fleetbus change announce orders customers.42 --kind delete --version 7 --creds app.creds`,
		RunE: func(cmd *cobra.Command, args []string) error {
			n.Kind = change.Kind(kind)
			return announce(a, cmd, fmt.Sprintf("announcing a change of %q", args[0]), args[0], args[1], n)
		},
	}
	cmd.Flags().Var(&command.Choice{Value: &kind, Words: []string{string(change.Insert), string(change.Update), string(change.Delete)}}, "kind", "what happened: insert, update, delete")
	cmd.Flags().Uint64Var(&n.Version, "version", 0, "place of the change in the history of its source")
	cmd.Flags().StringVar(&n.Epoch, "epoch", "", "which history that is")
	return a.Output(cmd)
}

func newChangeResync(a *command.App) *cobra.Command {
	return a.Output(&cobra.Command{
		Use: "resync SOURCE [KEY]", Args: command.Takes("SOURCE", "[KEY]"), Annotations: command.Writes(),
		Short: "Tell all servers to look again at everything, or at all below a key",
		Example: `  fleetbus change resync orders --creds app.creds
  fleetbus change resync orders customers --creds app.creds`,
		RunE: func(cmd *cobra.Command, args []string) error {
			return announce(a, cmd, fmt.Sprintf("announcing a resync of %q", args[0]), args[0], strings.Join(args[1:], ""), change.Notice{Kind: change.Resync})
		},
	})
}

// announce announces n of a source and a key, and says so.
func announce(a *command.App, cmd *cobra.Command, what, source, key string, n change.Notice) error {
	var err error
	if n.Key, err = change.ParseKey(key); err != nil {
		return command.Fail(command.ExitUsage, "write it like customers.42, and a dot or space in a part as %2E or %20", "%s: %v", what, err)
	}
	nc, err := a.AsUser(cmd.Context(), what)
	if err != nil {
		return err
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
	defer cancel()
	n.Source, n.Time = source, time.Now()
	if err := change.Announce(ctx, nc, source, n); err != nil {
		return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
	}
	return a.Show(command.Report{Value: lineOf(n), Text: func(p *command.Page) {
		p.Line("announced: %s of %s in %s", n.Kind, cmp.Or(key, "everything"), source)
	}})
}

func newChangeWatch(a *command.App) *cobra.Command {
	var n int
	var o change.WatcherOptions
	cmd := &cobra.Command{
		Use: "watch SOURCE [PATTERN]", Args: command.Takes("SOURCE", "[PATTERN]"), Annotations: command.Reads(),
		Short: "Show what changes, as it is announced",
		Long: `Show what changes, as it is announced. A pattern is the text of a key in which *
stands for one part, and a last > for one or more. The first line is a resync:
what changed before is not known. Each later resync says why: look again.`,
		Example: `  fleetbus change watch orders --creds app.creds
  fleetbus change watch orders 'customers.*' --count 10 -o jsonl --creds app.creds`,
		RunE: func(cmd *cobra.Command, args []string) error {
			what := fmt.Sprintf("watching changes of %q", args[0])
			if n < 0 {
				return command.Fail(command.ExitUsage, "--count 1", "%s: %d notices are none", what, n)
			}
			nc, err := a.AsUser(cmd.Context(), what, a.Staying("what was missed is looked up")...)
			if err != nil {
				return err
			}
			defer nc.Close()
			err = watchChanges(cmd.Context(), a, nc, args[0], strings.Join(args[1:], ""), n, o)
			if n == 0 && cmd.Context().Err() != nil {
				return nil // to interrupt it is the only way to end it
			}
			if err != nil {
				return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&n, "count", 0, "end after as many notices (default: when interrupted)")
	cmd.Flags().DurationVar(&o.Reconcile, "reconcile", time.Minute, "how often to compare with the history")
	return a.Output(cmd)
}

func watchChanges(ctx context.Context, a *command.App, nc *nats.Conn, source, pattern string, n int, o change.WatcherOptions) error {
	o.Jitter = -1
	setup, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	w, err := change.NewWatcher(setup, nc, source, pattern, o)
	if err != nil {
		return err
	}
	defer w.Close()
	a.Hint("watching %s of %s", cmp.Or(pattern, "everything"), source)
	for i := 0; n == 0 || i < n; i++ {
		notice, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if err := a.Show(command.Report{Value: lineOf(notice), Text: func(p *command.Page) { p.Line("%s", sentence(notice)) }}); err != nil {
			return err
		}
	}
	return nil
}

// sentence is a notice on one line.
func sentence(n change.Notice) string {
	words := []string{n.Time.UTC().Format("15:04:05.000"), string(n.Kind), cmp.Or(n.Key.String(), "everything")}
	if n.Version > 0 {
		words = append(words, fmt.Sprintf("version %d", n.Version))
	}
	if n.Reason != "" {
		words = append(words, "("+strings.ReplaceAll(string(n.Reason), "_", " ")+")")
	}
	if n.Origin != "" {
		name, _, _ := strings.Cut(n.Origin, ":")
		words = append(words, "from "+name)
	}
	return strings.Join(words, " ")
}
