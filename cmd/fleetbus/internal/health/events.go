package health

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newEventsCommand(a *command.App) *cobra.Command {
	var account string
	var kinds []string
	var n int
	cmd := &cobra.Command{
		Use: "events", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show what happens on the nodes, as it happens",
		Long: `Show what happens on the nodes, as it happens: who comes and goes, who is refused
and why, limits, denials, slow clients, links. An administrator sees all accounts, a
user of role auditor those of its own. Events are not stored.`,
		Example: `  fleetbus events --kind refused,limit
  fleetbus events --account acme -o jsonl
  fleetbus events --creds eve.creds`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "watching events"
			only, err := eventKinds(kinds)
			if err != nil {
				return err
			}
			if account != "" && account != admin.NoAccount {
				err = identity.CheckName(account)
			}
			if err != nil || n < 0 {
				return errors.Join(err, command.Fail(command.ExitUsage, "--account acme --count 1", "%s: a flag is wrong", what))
			}
			t, err := a.Target(true)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			nc, err := a.Connect(cmd.Context(), t, a.Staying("events that came in between were missed")...)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			defer nc.Close()
			if err := watchEvents(cmd.Context(), a, nc, account, only, n); err != nil && (n > 0 || cmd.Context().Err() == nil) {
				return fmt.Errorf("%s: %w", what, err)
			}
			return nil // without a count, to interrupt it is the only way to end it
		},
	}
	cmd.Flags().StringVar(&account, "account", "", "only those of an `account`; - stands for strangers and links, FLEET for administrators")
	cmd.Flags().StringSliceVar(&kinds, "kind", nil, "only those of a `kind`, or of several: "+command.Words(admin.EventKinds()))
	cmd.Flags().IntVar(&n, "count", 0, "end after as many events (default: when interrupted)")
	return a.OnFleet(a.Output(cmd))
}

func eventKinds(names []string) ([]admin.EventKind, error) {
	var kinds []admin.EventKind
	for _, name := range names {
		if kind := admin.EventKind(name); slices.Contains(admin.EventKinds(), kind) {
			kinds = append(kinds, kind)
			continue
		}
		return nil, command.Fail(command.ExitUsage, "use "+command.Words(admin.EventKinds()), "watching events: there is no kind %q", name)
	}
	return kinds, nil
}

// watchEvents shows n events, or without end if n is 0.
func watchEvents(ctx context.Context, a *command.App, nc *nats.Conn, account string, kinds []admin.EventKind, n int) error {
	setup, cancel := context.WithTimeout(ctx, a.Fleet.Timeout)
	defer cancel()
	w, err := admin.WatchEvents(setup, nc, account, kinds)
	if err != nil {
		return err
	}
	defer w.Stop()
	if account != "" && account != admin.NoAccount && account != identity.FleetName {
		if _, err := admin.New(nc).Account(setup, account); errors.Is(err, &admin.Error{Code: admin.NotFound}) {
			return err
		}
	}
	a.Hint("watching events")
	missed := 0
	for i := 0; n == 0 || i < n; i++ {
		select {
		case msg := <-w.Messages:
			e, err := admin.DecodeEvent(msg)
			if err != nil {
				return err
			}
			if err := showEvent(a, e); err != nil {
				return err
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if m := w.Missed(); m > missed {
			a.Hint("warning: %s missed: they came faster than they could be shown", human.Count(m-missed, "event"))
			missed = m
		}
	}
	return nil
}

// showEvent prints an event: for people as a line.
func showEvent(a *command.App, e admin.Event) error {
	if a.Format == command.FormatYAML {
		fmt.Fprintln(a.Stdout, "---")
	}
	return a.Show(command.Report{Value: e, Text: func(p *command.Page) {
		p.Line("%s  %-10s  %-8s  %-24s  %-5s  %-21s  %s", e.Time.Local().Format("15:04:05.000"), e.Kind, e.Node,
			command.OrDash(cmp.Or(e.Principal, cmp.Or(e.Peer, e.Account))), command.OrDash(e.Listener), command.OrDash(e.Address), eventText(e))
	}})
}

// eventText is what is to be said of an event besides where and who.
func eventText(e admin.Event) string {
	parts := []string{e.State, e.Reason}
	switch e.Kind {
	case admin.EventDenied:
		parts = append(parts, human.Count(e.Count, "connection")+" closed")
	case admin.EventDropped:
		parts = append(parts, human.Count(e.Count, "event")+" left out")
	case admin.EventDisconnect:
		parts = append(parts, "after "+human.Duration(e.Duration.Round(time.Millisecond)),
			fmt.Sprintf("%d in, %d out", e.InMsgs, e.OutMsgs), human.Size(e.InBytes)+" in, "+human.Size(e.OutBytes)+" out")
	}
	return strings.Join(slices.DeleteFunc(parts, func(s string) bool { return s == "" }), "; ")
}
