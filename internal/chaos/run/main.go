//go:build linux

// Command run breaks a fleet in namespaces of its own and judges what became of what it
// promised: see package chaos.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/fleetbus/fleetbus/internal/chaos"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if chaos.IsInside(args) {
		return chaos.Inside(ctx, args, os.Stdout)
	}
	o := chaos.Options{Env: os.Environ()}
	flags := flag.NewFlagSet("chaos", flag.ContinueOnError)
	flags.Uint64Var(&o.Seed, "seed", rand.Uint64N(1_000_000), "decides which faults happen, and where")
	flags.IntVar(&o.Nodes, "nodes", 3, "how many nodes: 1 or 3")
	flags.BoolVar(&o.Memory, "memory", false, "disks in memory, for machines without loop devices; they cannot lose their power")
	flags.IntVar(&o.Times, "times", 1, "how often each fault happens in any case")
	flags.DurationVar(&o.For, "for", 5*time.Minute, "how long faults go on at random, after each has happened")
	flags.DurationVar(&o.Hold, "hold", 8*time.Second, "how long a fault lasts that is not over at once")
	flags.IntVar(&o.Rounds, "rounds", 3, "how often three nodes are compared with bare servers; 0: not at all")
	flags.StringVar(&o.From, "from", "HEAD~1", "the commit that nodes are upgraded from")
	flags.StringVar(&o.Source, "source", ".", "the source tree")
	flags.StringVar(&o.Keep, "keep", "", "a directory for what nodes logged, when something is wrong")
	flags.StringVar(&o.Record, "record", "", "a file that what happened is added to, for sum")
	faults := flags.String("faults", "", "the faults that may happen, with commas between; empty: all")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	if *faults != "" {
		o.Faults = strings.Split(*faults, ",")
	}
	if o.Nodes == 1 || o.Memory {
		o.Rounds = 0 // there is nothing to compare with
	}
	switch flags.Arg(0) {
	case "sum":
		return chaos.Sum(flags.Args()[1:], os.Stdout)
	case "":
		return chaos.Run(ctx, o)
	case "down":
		return chaos.Down(ctx)
	}
	return errors.Join(fmt.Errorf("unknown verb %q: there are down and sum", flags.Arg(0)), flag.ErrHelp)
}
