package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/spf13/cobra"

	"github.com/fleetbus/fleetbus/identity"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"fleetbus": main})
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
func testApp(stdin string, env ...string) (a *app, stdout, stderr *bytes.Buffer) {
	stdout, stderr = new(bytes.Buffer), new(bytes.Buffer)
	a = &app{
		stdin: strings.NewReader(stdin), stdout: stdout, stderr: stderr,
		env: env, terminal: func(any) bool { return false },
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
		if c.Annotations[kind] != "" || !c.HasSubCommands() && c.Runnable() {
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
		switch k := cmd.Annotations[kind]; k {
		case "reads", "writes":
			if flag == nil {
				t.Errorf("%s %s and has no --output", path, k)
				return
			}
			for _, format := range []string{formatTable, formatJSON, formatYAML, formatJSONL} {
				if err := flag.Value.Set(format); err != nil {
					t.Errorf("%s -o %s: %v", path, format, err)
				}
			}
			a, _, stderr := testApp("")
			args := append(strings.Fields(path)[1:], "-o", "xml")
			if code := a.run(t.Context(), args); code != exitUsage || !strings.Contains(stderr.String(), "table, json, yaml") {
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
			if c.Annotations[kind] != "writes" {
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
	if code := a.run(ctx, []string{"status"}); code != exitInterrupted {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestConfirm(t *testing.T) {
	for _, c := range []struct {
		name, typed string
		terminal    bool
		g           guard
		code        exitCode
	}{
		{"yes", "", false, guard{yes: true}, exitOK},
		{"no terminal", "acme\n", false, guard{}, exitUsage},
		{"typed", "acme\n", true, guard{}, exitOK},
		{"typed something else", "acm\n", true, guard{}, exitFailed},
		{"typed nothing", "", true, guard{}, exitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, _, _ := testApp(c.typed)
			a.terminal = func(any) bool { return c.terminal }
			code := exitOK
			if err := a.confirm(t.Context(), c.g, "acme", "remove account acme"); err != nil {
				code = explain(t.Context(), err).code
			}
			if code != c.code {
				t.Errorf("exit code %d, not %d", code, c.code)
			}
		})
	}
}

// TestConfirmInterrupted checks that a question does not outlive an interrupt.
func TestConfirmInterrupted(t *testing.T) {
	a, _, _ := testApp("")
	stdin, silent := io.Pipe()
	defer silent.Close()
	a.stdin, a.terminal = stdin, func(any) bool { return true }
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if f := explain(ctx, a.confirm(ctx, guard{}, "acme", "remove account acme")); f.code != exitInterrupted {
		t.Errorf("exit code %d", f.code)
	}
}

// TestProgress waits for the line that a terminal shows after a second.
func TestProgress(t *testing.T) {
	r, w := io.Pipe()
	a := &app{stderr: w, terminal: func(any) bool { return true }}
	stop := a.progress("asking\x1b[2J")
	buf := make([]byte, 256)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(buf[:n]); got != "\rasking\\x1b[2J, 1 s " {
		t.Errorf("progress line %q", got)
	}
	go func() {
		stop()
		w.Close()
	}()
	rest, err := io.ReadAll(r)
	if err != nil || !strings.HasSuffix(string(rest), "\r\x1b[K") {
		t.Errorf("after the end: %q, %v", rest, err)
	}
}
