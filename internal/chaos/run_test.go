//go:build linux && chaos

package chaos

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// TestMain is also the process inside, which TestChaos starts.
func TestMain(m *testing.M) {
	if !IsInside(os.Args) {
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := Inside(ctx, os.Args, os.Stdout)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// TestChaos breaks a fleet in a few ways, and nothing that is promised is broken with it.
// "make chaos" does so in all ways, and "make chaos CHAOS=long" for hours. Disks are in memory
// here, so that any machine with namespaces will do. What is late is no fault of a machine
// that runs other tests meanwhile. It has a tag of its own as long as AMQP does not keep all that
// docs/guarantees.md says on a busy machine: go test -tags chaos ./internal/chaos.
func TestChaos(t *testing.T) {
	if err := Able(t.Context(), true); err != nil {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("it takes most of a minute")
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir) // runs of tests do not wait for one another
	record := filepath.Join(dir, "results")
	err := Run(t.Context(), Options{
		Nodes: 3, Memory: true, Faults: []string{"kill-leader", "cut"}, Hold: 3 * time.Second,
		Source: "../..", Env: os.Environ(), Record: record,
	})
	all, e := results(record)
	if e != nil || len(all) != 1 {
		t.Fatalf("nothing was judged: %v; %v", err, e)
	}
	late := len(all[0].Late) > 0
	for _, text := range all[0].Wrong {
		if late { // what did not come may still do so
			t.Log("late:", text)
			continue
		}
		t.Error(text)
	}
	for protocol, tally := range all[0].Protocols {
		if tally.Twice+tally.Disordered+tally.Crossed > 0 || tally.Acknowledged == 0 {
			t.Errorf("%s: %+v", protocol, tally)
		}
	}
}
