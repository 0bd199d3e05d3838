package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/admin"
)

func newPingCommand(a *app) *cobra.Command {
	return a.onFleet(a.output(&cobra.Command{
		Use: "ping", Args: takes(), Annotations: reads(),
		Short: "Show the round trip of every hop: to a node, between nodes, to sites and other clusters",
		RunE: func(cmd *cobra.Command, _ []string) error {
			const what = "pinging the fleet"
			ctx, cancel := context.WithTimeout(cmd.Context(), a.fleet.timeout)
			defer cancel()
			hops, err := a.ping(ctx, what)
			if err != nil {
				return fmt.Errorf("%s: %w", what, err)
			}
			if err := a.show(list(hops,
				column[admin.Hop]{"FROM", func(h admin.Hop) string { return h.From }},
				column[admin.Hop]{"TO", func(h admin.Hop) string { return h.To }},
				column[admin.Hop]{"KIND", func(h admin.Hop) string { return h.Kind }},
				column[admin.Hop]{"ROUND TRIP", hopTime},
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
				return fail(exitUnavailable, "fleetbus doctor", "%s: %d of %d hops do not answer", what, silent, len(hops))
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
func (a *app) ping(ctx context.Context, what string) ([]admin.Hop, error) {
	defer a.progress(what)()
	t, err := a.target(true)
	if err != nil {
		return nil, err
	}
	nc, err := a.connect(ctx, t)
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
		return nil, violation(nc, err)
	}
	return append([]admin.Hop{here}, status.Hops()...), nil
}
