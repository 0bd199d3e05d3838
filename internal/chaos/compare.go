//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// comparedLanes are publishers while gaps are compared.
	comparedLanes = 4
	// targetKill is the most that the gap after a killed leader may be of the peer's, and
	// targetRestart the longest gap at a graceful restart.
	targetKill    = 1.0
	targetRestart = 600 * time.Millisecond
	// leadTime is for what a new leader has to do before it is disturbed.
	leadTime = time.Second
)

// gaps are those of one system.
type gaps struct{ kill, restart []time.Duration }

// compare kills leaders and restarts nodes of a fleet and of bare servers of the engine's
// make, one after the other, under the same publishers.
func (r *run) compare(ctx context.Context) error {
	f, err := newFleet(ctx, r.Dir, r.network, r.Env, r.Built.Node, r.Memory)
	if err != nil {
		return err
	}
	ours, err := r.measure(ctx, f.cluster, func() (nats.Option, error) {
		if err := f.populate(ctx); err != nil {
			return nil, err
		}
		return f.accounts[0].user, nil
	})
	if err = errors.Join(err, f.close(context.WithoutCancel(ctx))); err != nil {
		return fmt.Errorf("measuring the fleet: %w", err)
	}
	c, err := newPeers(ctx, r.Dir, r.network, r.Env, r.Built.Peer)
	if err != nil {
		return err
	}
	theirs, err := r.measure(ctx, c, func() (nats.Option, error) { return peerUser(), nil })
	if err = errors.Join(err, c.close(context.WithoutCancel(ctx))); err != nil {
		return fmt.Errorf("measuring bare servers: %w", err)
	}
	fmt.Fprintf(r.out, "\ngap of durable writes over NATS, %d times each, median (most)\n", r.Rounds)
	ratio := median(ours.kill).Seconds() / median(theirs.kill).Seconds()
	fmt.Fprintf(r.out, "killed leader: %s, bare servers %s, ratio %.2f, target at most %.1f: %s\n", spread(ours.kill), spread(theirs.kill), ratio, targetKill, met(ratio <= targetKill))
	fmt.Fprintf(r.out, "graceful restart of the leader: %s, bare servers %s, target at most %v: %s\n", spread(ours.restart), spread(theirs.restart), targetRestart, met(slices.Max(ours.restart) <= targetRestart))
	return nil
}

func spread(all []time.Duration) string {
	return fmt.Sprintf("%.2f s (%.2f s)", median(all).Seconds(), slices.Max(all).Seconds())
}

func met(ok bool) string {
	if ok {
		return "met"
	}
	return "missed"
}

// measure disturbs a cluster under publishers, who are the users that user returns.
func (r *run) measure(ctx context.Context, c *cluster, user func() (nats.Option, error)) (g gaps, err error) {
	who, err := user()
	if err != nil {
		return g, err
	}
	eye, err := c.dial(ctx, "eye", 0, who)
	if err != nil {
		return g, err
	}
	defer eye.Close()
	js, err := jetstream.New(eye)
	if err != nil {
		return g, err
	}
	if err := makeWork(ctx, js, len(c.nodes)); err != nil {
		return g, err
	}
	var b book
	var all sync.WaitGroup
	defer all.Wait()
	sending, end := context.WithCancel(ctx)
	defer end()
	for i := range comparedLanes {
		nc, err := c.dial(ctx, "publisher", i, who)
		if err != nil {
			return g, err
		}
		l := b.open(&account{name: "red"}, overNATS, fmt.Sprintf("line%d", i), false)
		all.Go(func() {
			defer nc.Close()
			publishNATS(sending, nc, l)
		})
	}
	settled := func(since time.Time) error {
		return until(ctx, patience, "all is as it was", func(ctx context.Context) error {
			for _, l := range b.of("") {
				if _, n := l.acked(since); n < 20 {
					return errors.Join(c.gone(), fmt.Errorf("%s has %d acknowledgements", l.name, n))
				}
			}
			return current(ctx, js, len(c.nodes))
		})
	}
	if err := settled(time.Now()); err != nil {
		return g, err
	}
	for range r.Rounds {
		for _, graceful := range []bool{false, true} {
			if err := pause(ctx, leadTime); err != nil {
				return g, err
			}
			n, err := c.leader(ctx, js, workStream)
			if err != nil {
				return g, err
			}
			began := time.Now()
			if graceful {
				err = n.stop(ctx)
			} else {
				n.kill()
				err = pause(ctx, r.Hold)
			}
			if err == nil {
				err = c.start(ctx, n)
			}
			if err == nil {
				err = settled(time.Now())
			}
			if err != nil {
				return g, err
			}
			gap := b.gap("", began, time.Now())
			what := "kill"
			if graceful {
				what = "restart"
				g.restart = append(g.restart, gap)
			} else {
				g.kill = append(g.kill, gap)
			}
			r.sayf("%s: %s of %s, leads %s: gap %.2f s", c.what, what, n.name, workStream, gap.Seconds())
		}
	}
	return g, nil
}
