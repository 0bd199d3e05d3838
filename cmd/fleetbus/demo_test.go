//go:build !lean

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/demo"
)

// TestDemo runs the demonstration as the command line does. This test's own
// binary is the program that its nodes run.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a quarter of a minute")
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	a, stdout, stderr := testApp("", os.Environ()...)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if code := run(ctx, a, []string{"demo", "-o", "json"}); code != command.ExitOK {
		t.Errorf("exit code %d", code)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", stderr)
	}
	var result demo.Result
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		t.Fatalf("stdout is not JSON alone: %v:\n%s", err, stdout)
	}
	if !result.Held || len(result.Steps) != 11 {
		t.Errorf("held: %t, %d steps", result.Held, len(result.Steps))
	}
	for _, s := range result.Steps {
		if !s.Held || s.Took <= 0 || s.Detail == "" {
			t.Errorf("step %+v", s)
		}
		t.Logf("%-48s %6.3f s  %s", s.Name, s.Took, s.Detail)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoInterrupted ends it while its nodes start.
func TestDemoInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	a, stdout, stderr := testApp("", os.Environ()...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan command.ExitCode, 1)
	go func() { done <- run(ctx, a, []string{"demo"}) }()
	// A log is there once its node has been started.
	fleetbustest.Eventually(t, "a node starts", func() error {
		if logs, err := filepath.Glob(filepath.Join(dir, "*", "n3.log")); err != nil || len(logs) == 0 {
			return errors.Join(errors.New("it has no log"), err)
		}
		return nil
	})
	cancel()
	select {
	case code := <-done:
		if code != command.ExitInterrupted || stdout.Len() > 0 {
			t.Errorf("exit code %d, %s, %s", code, stdout, stderr)
		}
	case <-time.After(time.Minute):
		t.Fatal("it did not end")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoTells checks that a step that does not hold is told and fails the
// command.
func TestDemoTells(t *testing.T) {
	held := demo.StepResult{Name: "a", Held: true, Took: 0.012, Detail: "measured"}
	broken := demo.StepResult{Name: "b", Took: 0.012, Detail: "it broke"}
	for _, c := range []struct {
		name  string
		steps []demo.StepResult
		lines []string
		code  command.ExitCode
	}{
		{"all hold", []demo.StepResult{held, held}, []string{"  ok   a ", "  ok   a ", "2 of 2 held in "}, command.ExitOK},
		{"one does not", []demo.StepResult{held, broken}, []string{"  ok   a ", "  FAIL b ", "1 of 2 held in "}, command.ExitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, stdout, _ := testApp("")
			a.Format = command.FormatTable
			for _, s := range c.steps {
				showStep(a, s)
			}
			result := demo.Result{Held: c.code == command.ExitOK, Took: 1, Steps: c.steps}
			if err := a.Show(command.Report{Value: result, Text: conclude(result, false)}); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(stdout.String(), "\n")
			for i, want := range c.lines {
				if !strings.HasPrefix(lines[i], want) {
					t.Errorf("line %q, not %q", lines[i], want)
				}
			}
			for i, s := range c.steps {
				if want := " 12 ms   " + s.Detail; !strings.HasSuffix(lines[i], want) {
					t.Errorf("line %q, not %q", lines[i], want)
				}
			}
			code := command.ExitOK
			if err := brokenPromises(result); err != nil {
				code = command.Explain(t.Context(), err).Code
			}
			if code != c.code {
				t.Errorf("exit code %d", code)
			}
		})
	}
}

// TestDemoShows checks that --keep without a fleet says where the logs are.
func TestDemoShows(t *testing.T) {
	a, stdout, stderr := testApp("")
	a.Format = command.FormatJSON
	showAccess(a, demo.Access{Dir: "/tmp/demo"})
	if stdout.Len() > 0 || !bytes.Contains(stderr.Bytes(), []byte("/tmp/demo")) {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}
