//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Options are how a run goes.
type Options struct {
	// Seed decides which faults happen, and where. The same one does the same again, as far
	// as the fleet does.
	Seed uint64
	// For is how long faults go on. Each of Faults happens Times, at least once, before that
	// is asked.
	For   time.Duration
	Times int
	// Nodes are how many there are: 1, or 3. What one node cannot suffer is left out.
	Nodes int
	// Memory has the nodes' disks in memory, for machines without loop devices: they cannot
	// lose their power.
	Memory bool
	// Faults are the names of those that may happen; empty: all.
	Faults []string
	// Hold is how long a fault lasts that is not over at once.
	Hold time.Duration
	// Rounds are how often a leader is killed, and a node restarted, to compare with bare
	// servers of the engine's make. 0: that is left out.
	Rounds int
	// From is the commit that nodes are upgraded from.
	From string
	// Source is the directory of the source tree.
	Source string
	// Env are variables as os.Environ returns them, for the programs that are run.
	Env []string
	// Keep is where the logs of nodes are kept when something is wrong. Empty: nowhere.
	Keep string
	// Record is a file that what happened is added to, for Sum. Empty: none.
	Record string
}

// wants reports whether a fault may happen.
func (o *Options) wants(name string) bool {
	return len(o.Faults) == 0 || slices.Contains(o.Faults, name)
}

// ErrBroken says that something was not kept that is promised.
var ErrBroken = errors.New("a promise was broken")

// argument is the first argument of the process inside, before its order.
const argument = "inside"

// An order is what the process inside is told.
type order struct {
	Options
	Dir   string
	Built binaries
}

// Run builds the programs, and runs this program again in namespaces of its own, with
// arguments for which it has to call Inside.
func Run(ctx context.Context, o Options) (err error) {
	if err := Able(ctx, o.Memory); err != nil {
		return err
	}
	if _, err := known(o.Faults); err != nil {
		return err
	}
	switch {
	case o.Nodes != 1 && o.Nodes != 3:
		return fmt.Errorf("making %d nodes: there can be 1 or 3", o.Nodes)
	case o.Rounds > 0 && (o.Nodes != 3 || o.Memory):
		return errors.New("comparing with bare servers: that takes three nodes, and disks that are none of memory")
	}
	if o.Record != "" { // the process inside is where this one is, and need not be
		path, err := filepath.Abs(o.Record)
		if err != nil {
			return fmt.Errorf("looking for %q: %w", o.Record, err)
		}
		o.Record = path
	}
	dir, err := os.MkdirTemp("", dirPrefix)
	if err != nil {
		return fmt.Errorf("making a directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	fmt.Println("building")
	built, err := build(ctx, o, dir)
	if err != nil {
		return err
	}
	data, err := json.Marshal(order{o, dir, built})
	if err != nil {
		return err
	}
	path := filepath.Join(dir, "order.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return fmt.Errorf("writing what is to be done: %w", err)
	}
	if err := enter(ctx, argument, path); err != nil {
		return fmt.Errorf("running: %w", err)
	}
	return nil
}

// IsInside reports whether arguments of a program are those that Run gave to it.
func IsInside(args []string) bool { return len(args) == 3 && args[1] == argument }

// Inside does what Run ordered, in the namespaces that it made, and writes what happens to
// out.
func Inside(ctx context.Context, args []string, out io.Writer) error {
	data, err := os.ReadFile(args[2])
	if err != nil {
		return fmt.Errorf("reading what is to be done: %w", err)
	}
	var o order
	if err := json.Unmarshal(data, &o); err != nil {
		return fmt.Errorf("reading what is to be done: %w", err)
	}
	if err := furnish(); err != nil {
		return err
	}
	w, err := newNetwork(ctx, o.Nodes)
	if err != nil {
		return err
	}
	r := &run{order: o, network: w, out: out, rng: rand.New(rand.NewPCG(o.Seed, 0))}
	r.result = Result{Seed: o.Seed, Nodes: o.Nodes, Memory: o.Memory, Began: time.Now(), Protocols: map[string]Tally{}}
	r.sayf("seed %d", o.Seed)
	err = r.chaos(ctx)
	if err == nil && o.Rounds > 0 {
		err = r.compare(ctx)
	}
	if err == nil && len(r.result.Wrong) > 0 {
		err = fmt.Errorf("%w: %d times", ErrBroken, len(r.result.Wrong))
	}
	if err != nil {
		r.keep()
	}
	return err
}

// A run is one of all of it.
type run struct {
	order
	network *network
	out     io.Writer
	rng     *rand.Rand
	result  Result
}

func (r *run) sayf(format string, args ...any) {
	fmt.Fprintf(r.out, time.Now().Format("15:04:05 ")+format+"\n", args...)
}

// keep copies what nodes logged.
func (r *run) keep() {
	if r.Keep == "" {
		return
	}
	logs, _ := filepath.Glob(filepath.Join(r.Dir, "*.log"))
	for _, path := range logs {
		if _, err := copyFile(path, filepath.Join(r.Keep, filepath.Base(path))); err != nil {
			r.sayf("%v", err)
		}
	}
	r.sayf("what nodes logged is in %s", r.Keep)
}

// chaos runs a fleet, loads it, breaks it, and judges.
func (r *run) chaos(ctx context.Context) (err error) {
	binary := r.Built.Node
	if r.Built.Former != "" {
		binary = r.Built.Former
	}
	f, err := newFleet(ctx, r.Dir, r.network, r.Env, binary, r.Memory)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.close(context.WithoutCancel(ctx))) }()
	if err := f.populate(ctx); err != nil {
		return err
	}
	l, err := startLoad(ctx, f)
	defer func() { l.abandon(ctx) }()
	if err != nil {
		return err
	}
	s := &stage{fleet: f, rng: r.rng, load: l, built: r.Built, hold: r.Hold, sayf: r.sayf}
	if err := s.heal(ctx); err != nil {
		return err
	}
	all, err := r.possible(ctx)
	if err != nil {
		return err
	}
	r.sayf("nodes in namespaces: %d, two accounts, clients of NATS, MQTT and AMQP; gaps are the longest without an acknowledgement, of the worst client", r.Nodes)
	end := time.Now().Add(r.For)
	certain := len(all) * max(r.Times, 1)
	for i := 0; len(all) > 0 && (i < certain || time.Now().Before(end)); i++ {
		next := all[i%len(all)]
		if i >= certain {
			next = all[r.rng.IntN(len(all))]
		}
		if next.name == "upgrade" && i > 0 {
			continue
		}
		if err := r.fault(ctx, s, next); err != nil {
			return err
		}
		if len(r.result.Late) > 0 {
			break // one thing at a time
		}
	}
	wrong, err := l.finish(ctx)
	if err != nil {
		r.result.Late = append(r.result.Late, err.Error())
	}
	r.result.Wrong = append(wrong, r.result.Late...)
	l.count(&r.result)
	sum([]Result{r.result}).print(r.out)
	for _, text := range r.result.Wrong {
		fmt.Fprintf(r.out, "BROKEN: %s\n", text)
	}
	if r.Record != "" && ctx.Err() == nil { // who is interrupted has judged nothing
		err = errors.Join(err, r.result.add(r.Record))
	}
	return err
}

// possible are the faults that this machine can make.
func (r *run) possible(ctx context.Context) ([]fault, error) {
	all, err := known(r.Faults)
	if err != nil {
		return nil, err
	}
	left := r.Built.Left
	if err := r.network.slows(ctx); err != nil {
		left["slow"] = err.Error()
	}
	return slices.DeleteFunc(all, func(f fault) bool {
		why, ok := left[f.name]
		switch {
		case ok:
		case r.Memory && f.power:
			why = "what is in memory cannot lose its power"
		case r.Nodes < f.nodes:
			why = fmt.Sprintf("it takes %d nodes", f.nodes)
		default:
			return false
		}
		r.sayf("left out: %s: %s", f.name, why)
		return true
	}), nil
}

// fault has one happen, and waits until all is whole.
func (r *run) fault(ctx context.Context, s *stage, f fault) error {
	began := time.Now()
	where, err := f.inflict(ctx, s)
	healed := time.Now()
	if err == nil {
		err = s.heal(ctx)
	}
	if err == nil {
		err = s.load.flows(ctx, healed)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	injury := Injury{Fault: f.name, Where: where, Whole: now.Sub(healed), Gaps: map[string]time.Duration{}}
	verdict := "ok"
	if err != nil {
		verdict = "NOT WHOLE: " + err.Error()
		r.result.Late = append(r.result.Late, fmt.Sprintf("after %s at %s: %v", f.name, where, err))
	}
	var gaps []string
	for _, protocol := range protocols() {
		injury.Gaps[protocol] = s.load.book.gap(protocol, began, now)
		gaps = append(gaps, fmt.Sprintf("%s %s", protocol, seconds(injury.Gaps[protocol])))
	}
	r.result.Injuries = append(r.result.Injuries, injury)
	r.sayf("%-12s %s: gap %s; whole after %s: %s", f.name, where, strings.Join(gaps, ", "), seconds(injury.Whole), verdict)
	return nil
}

func protocols() []string { return []string{overNATS, overMQTT, overAMQP} }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
