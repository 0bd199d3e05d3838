package health

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

func newPingCommand(a *command.App) *cobra.Command {
	return a.OnFleet(a.Output(&cobra.Command{
		Use: "ping", Args: command.Takes(), Annotations: command.Reads(),
		Short: "Show the round trip of every hop: to a node, between nodes, to sites and other clusters",
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "pinging the fleet"
			ctx, cancel := context.WithTimeout(cmd.Context(), a.Fleet.Timeout)
			defer cancel()
			hops, err := ping(ctx, a, what)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if err := a.Show(command.List(hops,
				command.Col("FROM", func(h admin.Hop) string { return h.From }),
				command.Col("TO", func(h admin.Hop) string { return h.To }),
				command.Col("KIND", func(h admin.Hop) string { return h.Kind }),
				command.Col("ROUND TRIP", hopTime),
			)); err != nil {
				return err
			}
			silent := 0
			for _, h := range hops {
				if !h.Answered {
					silent++
				}
			}
			if silent > 0 {
				return command.Fail(command.ExitUnavailable, "fleetbus doctor", "%s: %d of %d hops do not answer", what, silent, len(hops))
			}
			return nil
		},
	}))
}

func hopTime(h admin.Hop) string {
	switch {
	case !h.Answered:
		return "no answer"
	case h.RoundTrip == 0:
		return ""
	}
	return h.RoundTrip.Round(time.Microsecond).String()
}

// pings is how often the node is asked: the first answer is slower than the way.
const pings = 3

// ping measures the way from here, and asks for the others.
func ping(ctx context.Context, a *command.App, what string) ([]admin.Hop, error) {
	defer a.Progress(what)()
	t, err := a.Target(true)
	if err != nil {
		return nil, err
	}
	nc, err := a.Connect(ctx, t)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	node, _, _ := strings.Cut(nc.ConnectedServerName(), ".")
	here := admin.Hop{From: "here", To: node, Kind: "client", Answered: true}
	for range pings {
		began := time.Now()
		if err := nc.FlushWithContext(ctx); err != nil {
			return nil, err
		}
		if took := time.Since(began); here.RoundTrip == 0 || took < here.RoundTrip {
			here.RoundTrip = took
		}
	}
	status, err := admin.New(nc).Status(ctx)
	if err != nil {
		return nil, command.Violation(nc, err)
	}
	return append([]admin.Hop{here}, status.Hops()...), nil
}
