package health

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newTopCommand(a *command.App) *cobra.Command {
	var r admin.TopRequest
	var once bool
	var by string
	cmd := &cobra.Command{
		Use: "top", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show connections and what goes through, by account, live",
		Long: `Show connections and what goes through, by account, live: messages and bytes in a
second, in from clients and out to them, of all nodes together. A terminal is drawn
anew after each interval; anywhere else there is a table for each.`,
		Example: `  fleetbus top
  fleetbus top --account acme --by user --interval 5s
  fleetbus top --once -o json`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "measuring what goes on"
			r.Users = by == "user"
			if r.Interval < 100*time.Millisecond || r.Interval > 10*time.Second {
				return command.Fail(command.ExitUsage, "--interval 2s", "%s: the interval is not from 100ms to 10s", what)
			}
			t, err := a.Target(true)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			nc, err := a.Connect(cmd.Context(), t, a.Staying("measuring goes on")...)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			defer nc.Close()
			for ctx := cmd.Context(); ; {
				top, err := measured(ctx, a, admin.New(nc), r)
				if ctx.Err() != nil && !once {
					return nil // to interrupt it is the only way to end it
				}
				if err != nil {
					return fmt.Errorf("%s: %w", what, command.Violation(nc, err))
				}
				if err := showTop(a, top, once); err != nil || once {
					return err
				}
			}
		},
	}
	by = "account"
	cmd.Flags().DurationVar(&r.Interval, "interval", 2*time.Second, "how long each measurement takes")
	cmd.Flags().StringVar(&r.Account, "account", "", "only that `account`")
	cmd.Flags().Var(&command.Choice{Value: &by, Words: []string{"account", "user"}}, "by", "what to tell apart: account, user (of one account)")
	cmd.Flags().BoolVar(&once, "once", false, "measure once and end")
	return a.OnFleet(a.Output(cmd))
}

func measured(ctx context.Context, a *command.App, c *admin.Client, r admin.TopRequest) (admin.Top, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Interval+a.Fleet.Timeout)
	defer cancel()
	return c.Top(ctx, r)
}

// showTop prints a measurement, in place of the last one on a terminal.
func showTop(a *command.App, top admin.Top, once bool) error {
	if a.Format == command.FormatTable && !once && a.Terminal(a.Stdout) {
		fmt.Fprint(a.Stdout, "\x1b[H\x1b[2J")
	}
	if a.Format == command.FormatYAML {
		fmt.Fprintln(a.Stdout, "---")
	}
	return a.Show(command.Report{Value: top, Text: func(p *command.Page) {
		topPage(p, top)
		if !once {
			p.Line("")
		}
	}})
}

func topPage(p *command.Page, top admin.Top) {
	rows := top.Rates
	sum := top.Others
	if sum != (admin.Rate{}) {
		sum.Name = "(others)"
		rows = append(rows, sum)
	}
	for _, r := range top.Rates {
		sum.Add(r)
	}
	sum.Name = "(all)"
	p.Line("%s", top.Time.Local().Format("15:04:05"))
	command.Table(p, append(rows, sum),
		command.Col("NAME", func(r admin.Rate) string { return r.Name }),
		command.Col("CONNECTIONS", func(r admin.Rate) string { return strconv.Itoa(r.Connections) }),
		command.Col("MSGS IN/S", func(r admin.Rate) string { return formatPerSecond(r.InMsgs) }),
		command.Col("MSGS OUT/S", func(r admin.Rate) string { return formatPerSecond(r.OutMsgs) }),
		command.Col("BYTES IN/S", func(r admin.Rate) string { return human.Size(int64(r.InBytes)) }),
		command.Col("BYTES OUT/S", func(r admin.Rate) string { return human.Size(int64(r.OutBytes)) }),
	)
	for _, name := range top.Missing {
		p.Line("node %s did not answer: its share is missing", name)
	}
	for _, text := range top.Errors {
		p.Line("node %s", text)
	}
}

// formatPerSecond writes small rates with a digit more.
func formatPerSecond(r float64) string {
	if r > 0 && r < 10 {
		return strconv.FormatFloat(r, 'f', 1, 64)
	}
	return strconv.FormatFloat(r, 'f', 0, 64)
}
