package bench

import (
	"context"
	"fmt"
	"runtime"
	"time"

	"github.com/nats-io/nats.go"
)

// A trial is a load that is put on both systems in turn, and the figures that
// come of it.
type trial struct {
	do func(context.Context, *system) ([]float64, error)
	of []comparison
}

// A comparison is a figure to be: its name and unit, and its target.
type comparison struct {
	name, unit string
	aim        func(Figure) Figure
}

// payloadSize is the size of all messages of a house, in bytes.
const payloadSize = 256

func (h *house) trials() []trial {
	faster := func(f Figure) Figure { return f.aim("ratio 0.95 or more", f.Ratio >= 0.95) }
	sooner := func(f Figure) Figure { return f.aim("ratio 1.1 or less", f.Ratio <= 1.1) }
	aimless := func(f Figure) Figure { return f }
	return []trial{
		{h.tryThroughput, []comparison{{"publish and subscribe", "messages/s", faster}}},
		{h.tryEchoes, []comparison{{"request and echo, p50", "ms", aimless}, {"request and echo, p99", "ms", sooner}}},
		{h.tryStoreRate, []comparison{{"stored on 3 nodes, pipelined", "messages/s", faster}}},
		{h.tryStoreTimes, []comparison{{"stored on 3 nodes, one by one, p50", "ms", aimless}, {"stored on 3 nodes, one by one, p99", "ms", sooner}}},
	}
}

func (h *house) tryThroughput(ctx context.Context, s *system) ([]float64, error) {
	perSecond, err := throughput(ctx, []Pair{{Pub: s.conns[0], Sub: s.conns[2], Subject: "bench.core"}}, h.effort.messages, payloadSize)
	return []float64{perSecond}, err
}

func (h *house) tryEchoes(ctx context.Context, s *system) ([]float64, error) {
	return middleAndTail(echoes(ctx, Pair{Pub: s.conns[0], Sub: s.conns[2], Subject: "bench.echo"}, h.effort.echoes, payloadSize, EchoPause))
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

// measureBus measures a cluster of ours, one of the peer's, and another of the
// peer's: how far these two are apart is what the machine alone does to a ratio.
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
	control, err := h.startPeers(ctx, 3)
	if err != nil {
		return err
	}
	defer control.stop()
	systems, trials := []*system{ours, peer, control}, h.trials()
	// values has those of each system, for each figure of each trial.
	values := make([][][3][]float64, len(trials))
	for i, t := range trials {
		values[i] = make([][3][]float64, len(t.of))
	}
	for round := range 1 + h.effort.rounds {
		for i, t := range trials {
			for turn := range systems {
				// Who is first changes with every round.
				which := (round + turn) % len(systems)
				got, err := attempt(ctx, t, systems[which])
				if err != nil {
					return fmt.Errorf("round %d of %s: %w", round, systems[which].name, err)
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
			v := values[i][j]
			h.Figures = append(h.Figures, c.aim(versus(c.name, c.unit, v[0], v[1])), versus("  control: peer / peer", c.unit, v[2], v[1]))
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
	h.Conditions = append(h.Conditions,
		Condition{"ours", "3 processes of fleetbus serve, release build, default settings, on loopback"},
		Condition{"peer", "3 processes of nats-server " + peerVersion + ", built alike; the same kind of keys, certificates, account, role and creds; sync_interval always; routes with mutual TLS 1.3"},
		Condition{"differences", "ours asks clients for a certificate and checks the names of nodes on routes, the peer does neither; ours keeps a ledger, an authentication callout and system services"},
		Condition{"client", "the same for both: nats.go " + nats.Version + " over TLS 1.3 in one process; publisher on node 1, subscriber on node 3"},
		Condition{"control", "3 more processes as the peer's, in ours' place: its ratio and spread are what the machine does to those above it"},
		Condition{"rounds", fmt.Sprintf("%d, each load on ours, the peer and the control in turn, after one to warm up; medians, and the quartiles of the ratios of rounds as spread", e.rounds)},
		Condition{"a round", fmt.Sprintf("%d messages of %d B with at most %d under way; %d requests, one each %v; %d stored with %d under way; %d stored one by one, through the leader's node",
			e.messages, payloadSize, UnderWay, e.echoes, EchoPause, e.stored, storePending, e.awaited)})
}
