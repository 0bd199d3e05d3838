package main

import (
	"bytes"
	"context"
	"log"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
)

func TestMain(m *testing.M) {
	testscript.Main(programs{m}, map[string]func(){"fleetbus": main})
}

// programs runs tests with the program in their PATH. testscript puts this test
// binary there. One with the race detector takes ten times as long to begin, and tests
// begin a thousand of them; what they do is done within a process by other tests. So
// then they have the program as `make build` makes it.
type programs struct{ *testing.M }

func (m programs) Run() int {
	info, ok := debug.ReadBuildInfo()
	if !ok || !slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return m.M.Run()
	}
	dir, err := os.MkdirTemp("", "program")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", dir, ".")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		log.Fatalf("building the program: %v\n%s", err, out)
	}
	if err := os.Setenv("PATH", dir+string(filepath.ListSeparator)+os.Getenv("PATH")); err != nil {
		log.Fatal(err)
	}
	return m.M.Run()
}

// TestScripts runs testdata/script: what the command line does without a server.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			authority, _, err := identity.NewAuthority("test", time.Now())
			if err != nil {
				return err
			}
			env.Setenv("HOME", env.WorkDir)
			env.Setenv("FLEETBUS_DATA_DIR", env.WorkDir+"/data")
			return os.WriteFile(filepath.Join(env.WorkDir, "ca.pem"), authority.ClientsPEM(), 0o600)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"exits": exits},
	})
}

// exits is a command of scripts: exits CODE COMMAND... fails unless the command
// ends with that code.
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	want, got := args[0], "0"
	if err := ts.Exec(args[1], args[2:]...); err != nil {
		got = strings.TrimPrefix(err.Error(), "exit status ")
	}
	if got != want {
		ts.Fatalf("exit code %s, not %s", got, want)
	}
}

// testApp is an app that is no terminal, with the variables of env.
func testApp(stdin string, env ...string) (a *command.App, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	a = &command.App{
		Stdin: strings.NewReader(stdin), Stdout: stdout, Stderr: stderr,
		Env: env, Terminal: func(any) bool { return false },
	}
	return a, stdout, stderr
}

// leaves calls do with every command that does something.
func leaves(cmd *cobra.Command, do func(*cobra.Command)) {
	for _, c := range cmd.Commands() {
		// Completion is the library's.
		if c.Name() == "completion" {
			continue
		}
		if c.HasSubCommands() {
			leaves(c, do)
		}
		if c.Annotations[command.Kind] != "" || !c.HasSubCommands() && c.Runnable() {
			do(c)
		}
	}
}

// TestTree walks the commands: each says what it is, and those that read or
// write have --output with the four formats and refuse any other.
func TestTree(t *testing.T) {
	a, _, _ := testApp("")
	n := 0
	leaves(newRootCommand(a), func(cmd *cobra.Command) {
		n++
		path := cmd.CommandPath()
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short description %q", path, cmd.Short)
		}
		if cmd.Args == nil && cmd.Name() != "help" {
			t.Errorf("%s: its arguments are not checked", path)
		}
		flag := cmd.Flags().Lookup("output")
		switch k := cmd.Annotations[command.Kind]; k {
		case "reads", "writes":
			if flag == nil {
				t.Errorf("%s %s and has no --output", path, k)
				return
			}
			for _, format := range []string{command.FormatTable, command.FormatJSON, command.FormatYAML, command.FormatJSONL} {
				if err := flag.Value.Set(format); err != nil {
					t.Errorf("%s -o %s: %v", path, format, err)
				}
			}
			a, _, stderr := testApp("")
			args := append(strings.Fields(path)[1:], "-o", "xml")
			if code := run(t.Context(), a, args); code != command.ExitUsage || !strings.Contains(stderr.String(), "table, json, yaml") {
				t.Errorf("%s -o xml: exit code %d, %s", path, code, stderr)
			}
		case "prints":
			if flag != nil {
				t.Errorf("%s has --output and ignores it", path)
			}
		default:
			t.Errorf("%s: annotate it with reads(), writes() or prints(), not %q", path, k)
		}
	})
	if n < 30 {
		t.Errorf("the tree has only %d commands", n)
	}
}

// TestWritesCanBeTried checks that every command that changes the fleet can say
// what it would do.
func TestWritesCanBeTried(t *testing.T) {
	a, _, _ := testApp("")
	root := newRootCommand(a)
	for _, noun := range []string{"account", "user", "role", "token", "node", "stream", "adapter"} {
		cmd, _, err := root.Find([]string{noun})
		if err != nil {
			t.Fatal(err)
		}
		leaves(cmd, func(c *cobra.Command) {
			if c.Annotations[command.Kind] != "writes" {
				return
			}
			if c.Flags().Lookup("dry-run") == nil {
				t.Errorf("%s has no --dry-run", c.CommandPath())
			}
			if c.Name() == "rm" && c.Flags().Lookup("yes") == nil {
				t.Errorf("%s has no --yes", c.CommandPath())
			}
		})
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	a, _, stderr := testApp("", "FLEETBUS_SERVER=127.0.0.1:1", "FLEETBUS_CREDS=/dev/null", "FLEETBUS_DATA_DIR="+t.TempDir())
	if code := run(ctx, a, []string{"status"}); code != command.ExitInterrupted {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}
