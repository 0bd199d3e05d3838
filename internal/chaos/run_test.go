//go:build linux && chaos

package chaos

import (
	"context"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestChaos breaks a fleet in a handful of ways, and nothing that is promised is broken
// with it. "make chaos" does so in all ways, and "make chaos CHAOS=long" for hours. It needs a
// machine with loop devices, and has a tag of its own: go test -tags chaos ./internal/chaos.
func TestChaos(t *testing.T) {
	if err := Able(t.Context()); err != nil {
		t.Skip(err)
	}
	if testing.Short() {
		t.Skip("it takes some minutes")
	}
	program := filepath.Join(t.TempDir(), "run")
	build := exec.CommandContext(t.Context(), "go", "build", "-race", "-o", program, "./run")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	args := []string{"-for", "0s", "-hold", "5s", "-rounds", "0", "-source", "../..", "-keep", t.TempDir(),
		"-faults", "kill-leader,cut,rolling,power-all,pause-leader,full"}
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * leaveTimeout
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if strings.Contains(string(out), ErrBusy.Error()) {
		t.Skip(ErrBusy)
	}
	if err != nil {
		t.Error(err)
	}
}
