//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// A fault is something that goes wrong, for a while, and is then over.
type fault struct {
	name string
	// what it is, for people.
	what string
	// nodes are how many it takes for it to be something else than other faults are; 0: one.
	nodes int
	// power is that of disks, which those in memory cannot lose.
	power bool
	// inflict does it and undoes it, and says where. It returns when nothing stands in the
	// way of the fleet any more.
	inflict func(ctx context.Context, s *stage) (where string, err error)
}

// A stage is where faults happen.
type stage struct {
	*fleet
	rng   *rand.Rand
	load  *load
	built binaries
	sayf  func(format string, args ...any)
	// hold is how long a fault lasts that is not over at once.
	hold time.Duration
}

// faults are all that there are, in the order in which a run does them first.
func faults() []fault {
	return []fault{
		{name: "upgrade", what: "another version, one node after the other", inflict: upgrade},
		{name: "kill-leader", what: "kill -9 of a leader", nodes: 3, inflict: killLeader},
		{name: "kill", what: "kill -9 of a node", inflict: killAny},
		{name: "cut", what: "a node hears nobody and is not heard", inflict: cutOff},
		{name: "rolling", what: "each node is stopped and started", inflict: rolling},
		{name: "power-all", what: "all lose power at once", nodes: 3, power: true, inflict: powerAll},
		{name: "pause-leader", what: "a leader stands still", nodes: 3, inflict: pauseLeader},
		{name: "power", what: "a node loses power", power: true, inflict: powerOne},
		{name: "full", what: "a leader's disk is full", inflict: fillLeader},
		{name: "cut-peers", what: "a leader and the other nodes do not see each other, and clients see all", nodes: 3, inflict: cutPeers},
		{name: "mute", what: "a leader is not heard", inflict: muteLeader},
		{name: "deaf", what: "a leader hears nobody", inflict: deafLeader},
		{name: "bridge", what: "two followers do not see each other", nodes: 3, inflict: bridge},
		{name: "kill-all", what: "kill -9 of all at once", nodes: 3, inflict: killAll},
		{name: "slow", what: "little gets to a leader and from it", inflict: slowLeader},
		{name: "pause", what: "a node stands still", inflict: pauseAny},
		{name: "flip", what: "a stopped node's message has another bit", nodes: 3, inflict: flip},
		{name: "clock", what: "a node's clock is wrong", inflict: wrongClock},
	}
}

// leads is a node that leads something of importance, and what.
func (s *stage) leads(ctx context.Context) (*node, string, error) {
	streams := []string{workStream, "MQTT5_MESSAGES", "AMQP"}
	js, err := jetstream.New(s.load.eyes[0])
	if err != nil {
		return nil, "", err
	}
	stream := streams[s.rng.IntN(len(streams))]
	n, err := s.leader(ctx, js, stream)
	if err != nil {
		return nil, "", err
	}
	return n, n.name + ", leads " + stream, nil
}

// heal waits until all is whole.
func (s *stage) heal(ctx context.Context) error {
	return s.whole(ctx, s.load.eyes, func(after time.Duration, what error) {
		s.sayf("%-12s whole after %s only, at last: %v", "", seconds(after), what)
	})
}

// wait lets the fault last.
func (s *stage) wait(ctx context.Context) error { return pause(ctx, s.hold) }

func killNode(ctx context.Context, s *stage, n *node) error {
	n.kill()
	if err := s.wait(ctx); err != nil {
		return err
	}
	return s.start(ctx, n)
}

func killAny(ctx context.Context, s *stage) (string, error) {
	n := s.any(s.rng)
	return n.name, killNode(ctx, s, n)
}

func killLeader(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	return where, killNode(ctx, s, n)
}

func killAll(ctx context.Context, s *stage) (string, error) {
	for _, n := range s.nodes {
		n.kill()
	}
	return "all", s.startAll(ctx)
}

func standStill(ctx context.Context, s *stage, n *node) error {
	if err := n.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return errors.Join(s.wait(ctx), n.signal(syscall.SIGCONT))
}

func pauseAny(ctx context.Context, s *stage) (string, error) {
	n := s.any(s.rng)
	return n.name, standStill(ctx, s, n)
}

func pauseLeader(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	return where, standStill(ctx, s, n)
}

// separate loses packets by pairs of addresses for a while.
func separate(ctx context.Context, s *stage, pairs ...[2]string) error {
	for _, p := range pairs {
		if err := s.network.drop(ctx, p[0], p[1]); err != nil {
			return err
		}
	}
	errs := []error{s.wait(ctx)}
	for _, p := range pairs {
		errs = append(errs, s.network.pass(context.WithoutCancel(ctx), p[0], p[1]))
	}
	return errors.Join(errs...)
}

func cutOff(ctx context.Context, s *stage) (string, error) {
	n := s.any(s.rng)
	return n.name, separate(ctx, s, [2]string{n.addr, ""}, [2]string{"", n.addr})
}

func muteLeader(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	return where, separate(ctx, s, [2]string{n.addr, ""})
}

func deafLeader(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	return where, separate(ctx, s, [2]string{"", n.addr})
}

func cutPeers(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	var pairs [][2]string
	for _, m := range s.nodes {
		if m != n {
			pairs = append(pairs, [2]string{n.addr, m.addr}, [2]string{m.addr, n.addr})
		}
	}
	return where, separate(ctx, s, pairs...)
}

func bridge(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	a, b := s.nodes[(n.i+1)%len(s.nodes)], s.nodes[(n.i+2)%len(s.nodes)]
	return fmt.Sprintf("%s and %s; %s", a.name, b.name, where), separate(ctx, s, [2]string{a.addr, b.addr}, [2]string{b.addr, a.addr})
}

func slowLeader(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	if err := s.network.slow(ctx, n.i); err != nil {
		return where, err
	}
	return where, errors.Join(s.wait(ctx), s.network.hurry(context.WithoutCancel(ctx), n.i))
}

func fillLeader(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	if err := n.disk.fill(); err != nil {
		return where, err
	}
	return where, errors.Join(s.wait(ctx), n.disk.drain())
}

func rolling(ctx context.Context, s *stage) (string, error) {
	for _, n := range s.nodes {
		if err := n.stop(ctx); err != nil {
			return n.name, err
		}
		if err := s.start(ctx, n); err != nil {
			return n.name, err
		}
		if err := s.heal(ctx); err != nil {
			return n.name, err
		}
	}
	return "each in turn", nil
}

// upgrade begins a run with nodes of the former version, and does nothing when they are of
// this one already.
func upgrade(ctx context.Context, s *stage) (string, error) {
	if s.binary == s.built.Node {
		return "all are of this version", nil
	}
	s.binary = s.built.Node
	where, err := rolling(ctx, s)
	return where + ", to this version", err
}

// lose cuts the power of nodes at one moment, and gives it back.
func lose(ctx context.Context, s *stage, nodes ...*node) error {
	for _, n := range nodes {
		if err := n.signal(syscall.SIGSTOP); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		if err := n.disk.cut(); err != nil {
			return err
		}
	}
	for _, n := range nodes {
		n.kill()
		if err := n.disk.unmount(ctx); err != nil {
			return err
		}
		if err := n.disk.mount(ctx); err != nil {
			return err
		}
	}
	if len(nodes) < len(s.nodes) {
		if err := s.wait(ctx); err != nil {
			return err
		}
	}
	return s.startAll(ctx)
}

func powerOne(ctx context.Context, s *stage) (string, error) {
	n, where, err := s.leads(ctx)
	if err != nil {
		return "", err
	}
	return where, lose(ctx, s, n)
}

func powerAll(ctx context.Context, s *stage) (string, error) { return "all", lose(ctx, s, s.nodes...) }

func flip(ctx context.Context, s *stage) (string, error) {
	n := s.any(s.rng)
	n.kill()
	where, err := n.disk.flip(s.rng)
	if err != nil {
		return n.name, err
	}
	return n.name + ": " + where, s.start(ctx, n)
}

// wrongClock runs a node for a while with a clock that is nearly as wrong as may be.
func wrongClock(ctx context.Context, s *stage) (string, error) {
	n := s.any(s.rng)
	line, binary := n.line, s.built.Skewed
	run := func(skew time.Duration) error {
		n.skew = skew
		if err := n.stop(ctx); err != nil {
			return err
		}
		return s.start(ctx, n)
	}
	n.line = func() []string { return append([]string{binary}, line()[1:]...) }
	skew := mostSkew
	if s.rng.IntN(2) == 0 {
		skew = -skew
	}
	where := fmt.Sprintf("%s by %v", n.name, skew)
	if err := errors.Join(run(skew), s.heal(ctx), s.wait(ctx)); err != nil {
		return where, err
	}
	n.line = line
	return where, run(0)
}

// mostSkew is less than the 30 s by which clocks may differ.
const mostSkew = 25 * time.Second

// known finds faults by their names.
func known(names []string) ([]fault, error) {
	if len(names) == 0 {
		return faults(), nil
	}
	var all []fault
	var every []string
	for _, f := range faults() {
		every = append(every, f.name)
	}
	for _, name := range names {
		found := false
		for _, f := range faults() {
			if f.name == name {
				all, found = append(all, f), true
			}
		}
		if !found {
			return nil, fmt.Errorf("looking for fault %q: there are %s", name, strings.Join(every, ", "))
		}
	}
	return all, nil
}
