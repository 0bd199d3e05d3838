package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/human"
)

func newTopCommand(a *app) *cobra.Command {
	var r admin.TopRequest
	var once bool
	var by string
	cmd := &cobra.Command{
		Use: "top", Args: takes(), Annotations: reads(),
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
				return fail(exitUsage, "--interval 2s", "%s: the interval is not from 100ms to 10s", what)
			}
			t, err := a.target(true)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			nc, err := a.connect(cmd.Context(), t, a.staying("measuring goes on")...)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			defer nc.Close()
			for ctx := cmd.Context(); ; {
				top, err := a.measured(ctx, admin.New(nc), r)
				if ctx.Err() != nil && !once {
					return nil // to interrupt it is the only way to end it
				}
				if err != nil {
					return fmt.Errorf("%s: %w", what, violation(nc, err))
				}
				if err := a.showTop(top, once); err != nil || once {
					return err
				}
			}
		},
	}
	by = "account"
	cmd.Flags().DurationVar(&r.Interval, "interval", 2*time.Second, "how long each measurement takes")
	cmd.Flags().StringVar(&r.Account, "account", "", "only that `account`")
	cmd.Flags().Var(&choice{&by, []string{"account", "user"}}, "by", "what to tell apart: account, user (of one account)")
	cmd.Flags().BoolVar(&once, "once", false, "measure once and end")
	return a.onFleet(a.output(cmd))
}

func (a *app) measured(ctx context.Context, c *admin.Client, r admin.TopRequest) (admin.Top, error) {
	ctx, cancel := context.WithTimeout(ctx, r.Interval+a.fleet.timeout)
	defer cancel()
	return c.Top(ctx, r)
}

// showTop prints a measurement, in place of the last one on a terminal.
func (a *app) showTop(top admin.Top, once bool) error {
	if a.format == formatTable && !once && a.terminal(a.stdout) {
		fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
	}
	if a.format == formatYAML {
		fmt.Fprintln(a.stdout, "---")
	}
	return a.show(report{value: top, text: func(p *page) {
		topPage(p, top)
		if !once {
			p.line("")
		}
	}})
}

func topPage(p *page, top admin.Top) {
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
	p.line("%s", top.Time.Local().Format("15:04:05"))
	table(p, append(rows, sum),
		column[admin.Rate]{"NAME", func(r admin.Rate) string { return r.Name }},
		column[admin.Rate]{"CONNECTIONS", func(r admin.Rate) string { return strconv.Itoa(r.Connections) }},
		column[admin.Rate]{"MSGS IN/S", func(r admin.Rate) string { return formatPerSecond(r.InMsgs) }},
		column[admin.Rate]{"MSGS OUT/S", func(r admin.Rate) string { return formatPerSecond(r.OutMsgs) }},
		column[admin.Rate]{"BYTES IN/S", func(r admin.Rate) string { return human.Size(int64(r.InBytes)) }},
		column[admin.Rate]{"BYTES OUT/S", func(r admin.Rate) string { return human.Size(int64(r.OutBytes)) }},
	)
	for _, name := range top.Missing {
		p.line("node %s did not answer: its share is missing", name)
	}
	for _, text := range top.Errors {
		p.line("node %s", text)
	}
}

// formatPerSecond writes small rates with a digit more.
func formatPerSecond(r float64) string {
	if r > 0 && r < 10 {
		return strconv.FormatFloat(r, 'f', 1, 64)
	}
	return strconv.FormatFloat(r, 'f', 0, 64)
}
