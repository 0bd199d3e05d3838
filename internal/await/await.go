// Package await is how tests wait: for a condition, until a deadline, and at their
// end for what they started to be gone.
package await

import (
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

const (
	// patience is how long a busy machine may need for anything.
	patience = time.Minute
	// again is how often a condition is looked at.
	again = 10 * time.Millisecond
)

// True asks until the answer is yes, and tells whether it was in time.
func True(patience time.Duration, ask func() bool) bool {
	deadline := time.After(patience)
	tick := time.NewTicker(again)
	defer tick.Stop()
	for !ask() {
		select {
		case <-deadline:
			return false
		case <-tick.C:
		}
	}
	return true
}

// Nil waits until done returns nil, for a minute at most, after which the test ends
// with the last error.
func Nil(t testing.TB, what string, done func() error) {
	t.Helper()
	var err error
	if !True(patience, func() bool { err = done(); return err == nil }) {
		t.Fatalf("%s: not yet: %v", what, err)
	}
}

// Main is for a TestMain: it runs the tests, ends what they may leave to it, and then
// the process, as a failure if a goroutine stays that was not there before.
func Main(m *testing.M, end ...func()) {
	before := runtime.NumGoroutine()
	code := m.Run()
	for _, f := range end {
		f()
	}
	// An engine that fuzzes leaves its own.
	fuzzing := flag.Lookup("test.fuzz").Value.String() != ""
	if !fuzzing && !True(patience, func() bool { return runtime.NumGoroutine() <= before }) {
		fmt.Fprintf(os.Stderr, "%d goroutines before the tests, %d after:\n", before, runtime.NumGoroutine())
		_ = pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
		code = 1
	}
	os.Exit(code)
}
