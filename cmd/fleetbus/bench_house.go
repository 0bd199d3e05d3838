package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spf13/cobra"
)

// houseTimeout bounds all of bench house.
const houseTimeout = 15 * time.Minute

// A house measures what this project promises, against bare servers of the
// engine's own make where it can.
type house struct {
	a *app
	// dir is for the data of all nodes, and for the two binaries.
	dir            string
	fleetbus, peer string
	effort         effort
	figures        []figure
	conditions     []condition
}

// An effort is how often things are done.
type effort struct {
	rounds                            int
	messages, echoes, stored, awaited int // in a round
	starts                            int
	idle, sessions                    int
	settling                          time.Duration // of the memory of a process
	denied, renewals                  int
}

func fullEffort() effort {
	return effort{rounds: 31, messages: 100_000, echoes: 1000, stored: 5000, awaited: 1000,
		starts: 9, idle: 2000, settling: 5 * time.Second, sessions: 1000, denied: 100, renewals: 5}
}

func quickEffort() effort {
	return effort{rounds: 1, messages: 20_000, echoes: 200, stored: 500, awaited: 50,
		starts: 1, idle: 100, settling: 500 * time.Millisecond, sessions: 100, denied: 5, renewals: 1}
}

// A figure is one promise and what became of it.
type figure struct {
	Name string  `json:"figure"`
	Unit string  `json:"unit"`
	Ours float64 `json:"ours"`
	// Peer and Ratio of ours to it, and the quartiles of the ratios of the rounds,
	// where there is a peer.
	Peer   float64   `json:"peer,omitempty"`
	Ratio  float64   `json:"ratio,omitempty"`
	Spread []float64 `json:"spread,omitempty"`
	// Target and Verdict, "met" or "not met", where there is a target.
	Target  string `json:"target,omitempty"`
	Verdict string `json:"verdict,omitempty"`
}

// aim gives f its target: what is promised is met if ok.
func (f figure) aim(target string, ok bool) figure {
	f.Target, f.Verdict = target, "not met"
	if ok {
		f.Verdict = "met"
	}
	return f
}

// atMost gives f a target for ours.
func (f figure) atMost(limit float64) figure {
	return f.aim(strings.TrimSpace(significant(limit)+" "+f.Unit)+" or less", f.Ours <= limit)
}

func newBenchHouseCommand(a *app) *cobra.Command {
	quick := false
	cmd := &cobra.Command{
		Use: "house", Args: takes(), Annotations: reads(), Hidden: true,
		Short: "Measure what this project promises",
		Long: `Build this program and the bare engine, run three nodes of each side by side
with the same kind of certificates, accounts and streams, and measure both in
turn; then what else is promised of speed and size. It needs Go and runs in the
source tree. A target that is missed is no failure.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			h := &house{a: a, effort: fullEffort()}
			if quick {
				h.effort = quickEffort()
			}
			return h.run(cmd.Context())
		},
	}
	cmd.Flags().BoolVar(&quick, "quick", false, "do everything once, which is not enough for figures to rely on")
	return a.output(cmd)
}

func (h *house) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, houseTimeout)
	defer cancel()
	return h.measure(ctx, []part{
		{"measuring the cluster against its peer", h.measureBus},
		{"starting fresh nodes", h.measureStarts},
		{"measuring idle clients", h.measureIdle},
		{"measuring sessions", h.measureSessions},
		{"denying users and renewing certificates", h.measureAdministration},
		{"measuring the binary", h.measureBinary},
	})
}

// A part is something to measure.
type part struct {
	what string
	do   func(context.Context) error
}

// measure builds both servers, does each part and shows what came of all.
func (h *house) measure(ctx context.Context, parts []part) (err error) {
	began := time.Now()
	if h.dir, err = os.MkdirTemp("", "fleetbus-bench-"); err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(h.dir)) }()
	h.a.hint("building both servers")
	if err := h.build(ctx); err != nil {
		return err
	}
	var errs []error
	for _, part := range parts {
		h.a.hint("%s", part.what)
		if err := part.do(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", part.what, err))
		}
	}
	h.conditions = append(h.conditions, machine(),
		condition{"disk", "under " + h.dir},
		condition{"took", formatDuration(time.Since(began))})
	return errors.Join(append(errs, h.show())...)
}

func (h *house) show() error {
	value := struct {
		Figures    []figure    `json:"figures"`
		Conditions []condition `json:"conditions"`
	}{h.figures, h.conditions}
	return h.a.show(report{value: value, text: func(p *page) {
		table(p, h.figures,
			column[figure]{"FIGURE", func(f figure) string { return f.Name }},
			column[figure]{"OURS", func(f figure) string { return strings.TrimSpace(significant(f.Ours) + " " + f.Unit) }},
			column[figure]{"PEER", func(f figure) string { return optional(f.Peer) }},
			column[figure]{"RATIO", func(f figure) string { return optional(f.Ratio) }},
			column[figure]{"SPREAD", func(f figure) string {
				if len(f.Spread) == 0 {
					return ""
				}
				return significant(f.Spread[0]) + " to " + significant(f.Spread[1])
			}},
			column[figure]{"TARGET", func(f figure) string { return f.Target }},
			column[figure]{"VERDICT", func(f figure) string { return f.Verdict }})
		showConditions(p, h.conditions)
	}})
}

// significant writes three digits of f, and no fewer than it has before the
// point.
func significant(f float64) string {
	if f >= 100 {
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatFloat(f, 'g', 3, 64)
}

func optional(f float64) string {
	if f == 0 {
		return ""
	}
	return significant(f)
}

// versus is the figure of what ours and the peer measured in each round.
func versus(name, unit string, ours, peer []float64) figure {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / peer[i]
	}
	f := figure{Name: name, Unit: unit, Ours: percentile(slices.Clone(ours), 0.5), Peer: percentile(slices.Clone(peer), 0.5)}
	f.Ratio, f.Spread = f.Ours/f.Peer, []float64{percentile(ratios, 0.25), percentile(ratios, 0.75)}
	return f
}

// A trial is a load that is put on both systems in turn, and the figures that
// come of it.
type trial struct {
	do func(context.Context, *system) ([]float64, error)
	of []comparison
}

// A comparison is a figure to be: its name and unit, and its target.
type comparison struct {
	name, unit string
	aim        func(figure) figure
}

// payloadSize is the size of all messages of a house, in bytes.
const payloadSize = 256

func (h *house) trials() []trial {
	faster := func(f figure) figure { return f.aim("ratio 0.95 or more", f.Ratio >= 0.95) }
	sooner := func(f figure) figure { return f.aim("ratio 1.1 or less", f.Ratio <= 1.1) }
	aimless := func(f figure) figure { return f }
	return []trial{
		{h.tryThroughput, []comparison{{"publish and subscribe", "messages/s", faster}}},
		{h.tryEchoes, []comparison{{"request and echo, p50", "ms", aimless}, {"request and echo, p99", "ms", sooner}}},
		{h.tryStoreRate, []comparison{{"stored on 3 nodes, pipelined", "messages/s", faster}}},
		{h.tryStoreTimes, []comparison{{"stored on 3 nodes, one by one, p50", "ms", aimless}, {"stored on 3 nodes, one by one, p99", "ms", sooner}}},
	}
}

func (h *house) tryThroughput(ctx context.Context, s *system) ([]float64, error) {
	perSecond, err := throughput(ctx, []pair{{pub: s.conns[0], sub: s.conns[2], subject: "bench.core"}}, h.effort.messages, payloadSize)
	return []float64{perSecond}, err
}

func (h *house) tryEchoes(ctx context.Context, s *system) ([]float64, error) {
	return middleAndTail(echoes(ctx, pair{pub: s.conns[0], sub: s.conns[2], subject: "bench.echo"}, h.effort.echoes, payloadSize, echoPause))
}

func (h *house) tryStoreRate(ctx context.Context, s *system) ([]float64, error) {
	nc, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	perSecond, err := storeRate(ctx, nc, streamSubject, h.effort.stored, payloadSize)
	return []float64{perSecond}, err
}

func (h *house) tryStoreTimes(ctx context.Context, s *system) ([]float64, error) {
	nc, err := s.leader(ctx)
	if err != nil {
		return nil, err
	}
	return middleAndTail(storeTimes(ctx, nc, streamSubject, h.effort.awaited, payloadSize))
}

// middleAndTail are p50 and p99 in milliseconds.
func middleAndTail(took []time.Duration, err error) ([]float64, error) {
	if err != nil {
		return nil, err
	}
	return []float64{milliseconds(percentile(took, 0.5)), milliseconds(percentile(took, 0.99))}, nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// measureBus measures a cluster of ours and one of the peer's.
func (h *house) measureBus(ctx context.Context) error {
	ours, err := h.startFleet(ctx, 3)
	if err != nil {
		return err
	}
	defer ours.stop()
	peer, err := h.startPeers(ctx, 3)
	if err != nil {
		return err
	}
	defer peer.stop()
	both, trials := []*system{ours, peer}, h.trials()
	// values has those of ours and of the peer, for each figure of each trial.
	values := make([][][2][]float64, len(trials))
	for i, t := range trials {
		values[i] = make([][2][]float64, len(t.of))
	}
	for round := range 1 + h.effort.rounds {
		for i, t := range trials {
			for turn := range both {
				// Who is first changes with every round.
				which := (round + turn) % len(both)
				got, err := attempt(ctx, t, both[which])
				if err != nil {
					return fmt.Errorf("round %d of %s: %w", round, both[which].name, err)
				}
				// The first round is to warm up.
				for j := range got {
					if round > 0 {
						values[i][j][which] = append(values[i][j][which], got[j])
					}
				}
			}
		}
	}
	for i, t := range trials {
		for j, c := range t.of {
			h.figures = append(h.figures, c.aim(versus(c.name, c.unit, values[i][j][0], values[i][j][1])))
		}
	}
	h.describeBus(peer.version)
	return nil
}

// attempt does a trial once.
func attempt(ctx context.Context, t trial, s *system) ([]float64, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// Garbage of the trials before is not this one's.
	runtime.GC()
	return t.do(ctx, s)
}

func (h *house) describeBus(peerVersion string) {
	e := h.effort
	h.conditions = append(h.conditions,
		condition{"ours", "3 processes of fleetbus serve, release build, default settings, on loopback"},
		condition{"peer", "3 processes of nats-server " + peerVersion + ", built alike; the same kind of keys, certificates, account, role and creds; sync_interval always; routes with mutual TLS 1.3"},
		condition{"differences", "ours asks clients for a certificate and checks the names of nodes on routes, the peer does neither; ours keeps a ledger, an authentication callout and system services"},
		condition{"client", "the same for both: nats.go " + nats.Version + " over TLS 1.3 in one process; publisher on node 1, subscriber on node 3"},
		condition{"rounds", fmt.Sprintf("%d, each load on ours and the peer in turn, after one to warm up; medians, and the quartiles of the ratios of rounds as spread", e.rounds)},
		condition{"a round", fmt.Sprintf("%d messages of %d B with at most %d under way; %d requests, one each %v; %d stored with %d under way; %d stored one by one, through the leader's node",
			e.messages, payloadSize, chunk*chunks, e.echoes, echoPause, e.stored, storePending, e.awaited)})
}
