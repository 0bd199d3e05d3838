package main

import (
	"debug/buildinfo"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// leanSize is what the lean binary may have, in bytes.
const leanSize = 30_000_000

// TestLean builds the program as `make build` does, weighs it, and tries what it
// says of what was left out.
func TestLean(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the program")
	}
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("the go command is missing, which builds what is weighed")
	}
	lean := filepath.Join(t.TempDir(), "fleetbus-lean")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-tags", "lean", "-trimpath", "-ldflags", "-s -w", "-o", lean, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building: %v\n%s", err, out)
	}
	info, err := os.Stat(lean)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > leanSize {
		t.Errorf("it has %d bytes and %d are allowed: put what few need behind a build tag", info.Size(), leanSize)
	}
	made, err := buildinfo.ReadFile(lean)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range made.Deps {
		if strings.Contains(m.Path, "mysql") || strings.Contains(m.Path, "pgx") || strings.Contains(m.Path, "sqlite") || strings.Contains(m.Path, "pebble") || strings.Contains(m.Path, "acmez") || strings.Contains(m.Path, "miekg") {
			t.Errorf("it links %s, which is not for the lean program", m.Path)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/lean",
		Setup: func(env *testscript.Env) error {
			env.Setenv("LEAN", lean)
			env.Setenv("HOME", env.WorkDir)
			env.Values[testKey{}], env.Values[childrenKey{}] = t, map[string]*process{}
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits, "port": portCommand, "run": runCommand},
	})
}
