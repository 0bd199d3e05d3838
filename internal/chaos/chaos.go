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
	// For is how long faults go on. Each of Faults happens once before that is asked.
	For time.Duration
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
	if err := Able(ctx); err != nil {
		return err
	}
	if _, err := known(o.Faults); err != nil {
		return err
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
	w, err := newNetwork(ctx, nodeCount)
	if err != nil {
		return err
	}
	r := &run{order: o, network: w, out: out, rng: rand.New(rand.NewPCG(o.Seed, 0))}
	r.sayf("seed %d", o.Seed)
	err = r.chaos(ctx)
	if err == nil && o.Rounds > 0 {
		err = r.compare(ctx)
	}
	if err == nil && len(r.wrong) > 0 {
		err = fmt.Errorf("%w: %d times", ErrBroken, len(r.wrong))
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
	rows    []row
	wrong   []string
}

// A row is what a fault did.
type row struct {
	fault, where string
	took         time.Duration // until all was whole again
	gaps         map[string]time.Duration
	wrong        string
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
	f, err := newFleet(ctx, r.Dir, r.network, r.Env, binary)
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
	r.sayf("%d nodes in namespaces, two accounts, clients of NATS, MQTT and AMQP; gaps are the longest without an acknowledgement, of the worst client", nodeCount)
	end := time.Now().Add(r.For)
	for i := 0; i < len(all) || time.Now().Before(end); i++ {
		next := all[i%len(all)]
		if i >= len(all) {
			next = all[r.rng.IntN(len(all))]
		}
		if next.name == "upgrade" && i > 0 {
			continue
		}
		if err := r.fault(ctx, s, next); err != nil {
			return err
		}
		if len(r.wrong) > 0 {
			break // one thing at a time
		}
	}
	wrong, err := l.finish(ctx)
	r.wrong = append(r.wrong, wrong...)
	r.table(l)
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
		if ok {
			r.sayf("left out: %s: %s", f.name, why)
		}
		return ok
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
	row := row{fault: f.name, where: where, took: now.Sub(healed), gaps: map[string]time.Duration{}}
	verdict := "ok"
	if err != nil {
		row.wrong = err.Error()
		verdict = "NOT WHOLE: " + row.wrong
		r.wrong = append(r.wrong, fmt.Sprintf("after %s at %s: %v", f.name, where, err))
	}
	var gaps []string
	for _, protocol := range protocols() {
		row.gaps[protocol] = s.load.book.gap(protocol, began, now)
		gaps = append(gaps, fmt.Sprintf("%s %s", protocol, seconds(row.gaps[protocol])))
	}
	r.rows = append(r.rows, row)
	r.sayf("%-12s %s: gap %s; whole after %s: %s", f.name, where, strings.Join(gaps, ", "), seconds(row.took), verdict)
	return nil
}

func protocols() []string { return []string{overNATS, overMQTT, overAMQP} }

func seconds(d time.Duration) string { return fmt.Sprintf("%.1f s", d.Seconds()) }
