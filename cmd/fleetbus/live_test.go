package main

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/fleetbus/fleetbus/internal/loopback"
)

// allowance is how long anything that happens by itself may take.
const allowance = 60 * time.Second

// noDelay has a program that was built with the race detector end at once, and
// not after a second.
const noDelay = "GORACE=atexit_sleep_ms=0"

// TestLive runs testdata/live: whole fleets of real processes, seen from outside,
// by this program and by those of others.
func TestLive(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata/live",
		Setup: func(env *testscript.Env) error {
			// Where .ci/test puts the client of others.
			tools, err := filepath.Abs("../../.tools")
			path := []string{env.Getenv("PATH"), tools, "/usr/sbin"} // of brokers
			env.Setenv("PATH", strings.Join(path, string(filepath.ListSeparator)))
			env.Setenv("HOME", env.WorkDir)
			env.Vars = append(env.Vars, noDelay)
			env.Setenv("XDG_CONFIG_HOME", env.WorkDir)
			env.Setenv("LONG", strings.Repeat("n", 300))
			env.Setenv("BELL", "a\ab")
			env.Values[testKey{}], env.Values[childrenKey{}], env.Values[clientsKey{}] = t, map[string]*process{}, map[string]*handshakes{}
			return err
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits": exits, "port": portCommand, "keep": keepCommand, "mode": modeCommand, "eventually": eventuallyCommand,
			"run": runCommand, "logged": loggedCommand, "signal": signalCommand, "ended": endedCommand,
			"skip-greeting": skipGreeting, "unprivileged": unprivilegedCommand, "handshakes": handshakesCommand, "held": heldCommand,
		},
	})
}

// skipGreeting: skip-greeting VARIABLE ADDRESS sets the variable to an address
// behind which a client meets the server after the line that the protocol begins
// with: there TLS comes at once, as programs that know TLS alone expect it.
func skipGreeting(ts *testscript.TestScript, _ bool, args []string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	ts.Check(err)
	ts.Setenv(args[0], ln.Addr().String())
	server := args[1]
	var open sync.WaitGroup
	open.Go(func() {
		for {
			client, err := ln.Accept()
			if err != nil {
				return
			}
			open.Go(func() { pass(client, server) })
		}
	})
	ts.Defer(func() {
		ln.Close()
		open.Wait()
	})
}

// pass copies between client and server, all but the server's first line.
func pass(client net.Conn, server string) {
	defer client.Close()
	conn, err := net.Dial("tcp", server)
	if err != nil {
		return
	}
	defer conn.Close()
	from := bufio.NewReader(conn)
	if _, err := from.ReadString('\n'); err != nil {
		return
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(conn, client) // either end closes
		conn.Close()
	}()
	_, _ = io.Copy(client, from)
	client.Close()
	<-done
}

type (
	testKey     struct{}
	childrenKey struct{}
)

// portCommand: port VARIABLE... sets each to a free loopback address.
func portCommand(ts *testscript.TestScript, _ bool, args []string) {
	for _, name := range args {
		ts.Setenv(name, loopback.Addr(ts.Value(testKey{}).(testing.TB)))
	}
}

// keepCommand: keep VARIABLE REGEXP sets it to the first match in stdout.
func keepCommand(ts *testscript.TestScript, _ bool, args []string) {
	found := regexp.MustCompile(args[1]).FindString(ts.ReadFile("stdout"))
	if found == "" {
		ts.Fatalf("no match for %s", args[1])
	}
	ts.Setenv(args[0], found)
}

// modeCommand: mode OCTAL PATH... fails unless each path has that mode.
func modeCommand(ts *testscript.TestScript, _ bool, args []string) {
	for _, path := range args[1:] {
		info, err := os.Stat(ts.MkAbs(path))
		ts.Check(err)
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != args[0] {
			ts.Fatalf("%s has mode %s, not %s", path, got, args[0])
		}
	}
}

// eventuallyCommand: eventually REGEXP COMMAND... repeats the command until it
// succeeds and its output matches. In between it rests: to start a program takes from
// those that are waited for what they need.
func eventuallyCommand(ts *testscript.TestScript, _ bool, args []string) {
	want := regexp.MustCompile("(?m)" + args[0])
	for deadline := time.Now().Add(allowance); ; <-time.After(200 * time.Millisecond) {
		err := ts.Exec(args[1], args[2:]...)
		if err == nil && want.MatchString(ts.ReadFile("stdout")+ts.ReadFile("stderr")) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("no success with %s in %v: %v", args[0], allowance, err)
		}
	}
}

// A process is one that goes on while the script does.
type process struct {
	cmd *exec.Cmd
	log *pipe
	// ended is closed when the process has ended, with err.
	ended chan struct{}
	err   error
}

// spawn runs a command, whose output goes to one log. Only PATH is inherited.
func spawn(dir, path string, args ...string) (*process, error) {
	c := &process{cmd: exec.Command(args[0], args[1:]...), log: newPipe(), ended: make(chan struct{})}
	c.cmd.Dir, c.cmd.Env = dir, []string{"PATH=" + path, "HOME=" + dir, noDelay}
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // with workers of its own
	if err := c.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		c.err = c.cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// kill ends the process and its workers at once, and waits for it.
func (c *process) kill() {
	_ = syscall.Kill(-c.cmd.Process.Pid, syscall.SIGKILL) // all may have ended
	<-c.ended
}

// wait returns when the log matches.
func (c *process) wait(text *regexp.Regexp) error {
	deadline := time.NewTimer(allowance)
	defer deadline.Stop()
	for !text.MatchString(c.log.String()) {
		select {
		case <-c.log.more:
		case <-c.ended:
			if text.MatchString(c.log.String()) {
				return nil
			}
			return fmt.Errorf("it ended (%v) without %s:\n%s", c.err, text, c.log)
		case <-deadline.C:
			return fmt.Errorf("it did not say %s in %v:\n%s", text, allowance, c.log)
		}
	}
	return nil
}

// code waits for the end of the process: its exit code, -1 after a signal.
func (c *process) code() (int, error) {
	select {
	case <-c.ended:
		return c.cmd.ProcessState.ExitCode(), nil
	case <-time.After(allowance):
		return 0, fmt.Errorf("it did not end in %v:\n%s", allowance, c.log)
	}
}

func children(ts *testscript.TestScript) map[string]*process {
	return ts.Value(childrenKey{}).(map[string]*process)
}

func childOf(ts *testscript.TestScript, name string) *process {
	c, ok := children(ts)[name]
	if !ok {
		ts.Fatalf("there is no child %s", name)
	}
	return c
}

// runCommand: run NAME REGEXP COMMAND... starts a child and waits until its
// output matches.
func runCommand(ts *testscript.TestScript, _ bool, args []string) {
	// env looks for the command in the PATH of the script, and becomes it.
	c, err := spawn(ts.Getenv("WORK"), ts.Getenv("PATH"), append([]string{"env"}, args[2:]...)...)
	ts.Check(err)
	children(ts)[args[0]] = c
	ts.Defer(func() {
		c.kill()
		ts.Logf("[%s]\n%s", args[0], c.log)
	})
	ts.Check(c.wait(regexp.MustCompile("(?m)" + args[1])))
}

// loggedCommand: logged NAME REGEXP waits until the child's output matches; with
// ! it must not have matched.
func loggedCommand(ts *testscript.TestScript, neg bool, args []string) {
	c, text := childOf(ts, args[0]), regexp.MustCompile("(?m)"+args[1])
	if !neg {
		ts.Check(c.wait(text))
	} else if text.MatchString(c.log.String()) {
		ts.Fatalf("%s said %s:\n%s", args[0], text, c.log)
	}
}

// signalCommand: signal NAME SIGNAL... sends them in that order.
func signalCommand(ts *testscript.TestScript, _ bool, args []string) {
	known := map[string]syscall.Signal{
		"TERM": syscall.SIGTERM, "INT": syscall.SIGINT, "HUP": syscall.SIGHUP, "KILL": syscall.SIGKILL,
		"STOP": syscall.SIGSTOP, "CONT": syscall.SIGCONT, "USR2": syscall.SIGUSR2,
	}
	for _, name := range args[1:] {
		s, ok := known[name]
		if !ok {
			ts.Fatalf("unknown signal %s", name)
		}
		ts.Check(childOf(ts, args[0]).cmd.Process.Signal(s))
	}
}

// endedCommand: ended NAME CODE waits for the child's end; the code of one that
// was killed is -1.
func endedCommand(ts *testscript.TestScript, _ bool, args []string) {
	c := childOf(ts, args[0])
	got, err := c.code()
	ts.Check(err)
	if strconv.Itoa(got) != args[1] {
		ts.Fatalf("%s ended with exit code %d, not %s:\n%s", args[0], got, args[1], c.log)
	}
}
