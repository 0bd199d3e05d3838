package proxy_test

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

func read(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func kill(pid string) error {
	n, err := strconv.Atoi(strings.TrimSpace(pid))
	if err != nil {
		return err
	}
	return syscall.Kill(n, syscall.SIGKILL)
}

// start runs a program until the test ends.
func start(t testing.TB, argv ...string) {
	t.Helper()
	cmd := exec.Command(argv[0], argv[1:]...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed
	})
}

func TestFiles(t *testing.T) {
	dir := t.TempDir() + "/files"
	marker := filepath.Join(t.TempDir(), "calls")
	o := proxy.Options{
		Kind: "files", Dir: dir,
		Layout: proxy.Layout{Chain: "{id}.crt", Key: "{id}.key"},
		Reload: proxy.Reload{Command: []string{"sh", "-c", "echo called >> " + marker}},
	}
	p := open(t, o)
	install(t, p)
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("there was nothing to install, and there are %v, %v", entries, err)
	}
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	install(t, p, a, b)
	install(t, p, a, b)
	install(t, open(t, o), a, b)
	if calls := read(t, marker); calls != "called\n" {
		t.Errorf("it was installed thrice, and the command ran: %q", calls)
	}
	if got := read(t, dir+"/current/a.crt") + read(t, dir+"/current/a.key"); got != string(a.Chain)+string(a.Key) {
		t.Errorf("the files have %q", got)
	}
	for _, path := range []string{"a.crt", "a.key", "b.key"} {
		if info, err := os.Stat(dir + "/current/" + path); err != nil || info.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", path, info.Mode(), err)
		}
	}

	// What is the same is the same file; what was changed by hand is not.
	same, err := os.Stat(dir + "/current/b.key")
	if err != nil {
		t.Fatal(err)
	}
	a = proxytest.Pair(t, "a", "a.test")
	install(t, p, a, b)
	if now, err := os.Stat(dir + "/current/b.key"); err != nil || !os.SameFile(same, now) {
		t.Errorf("b.key was written again: %v", err)
	}
	if err := os.WriteFile(dir+"/current/b.key", a.Key, 0o600); err != nil {
		t.Fatal(err)
	}
	install(t, p, a, b)
	if got := read(t, dir+"/current/b.key"); got != string(b.Key) {
		t.Error("a file that was changed by hand was left so")
	}
	if err := os.Chmod(dir+"/current/b.key", 0o644); err != nil {
		t.Fatal(err)
	}
	install(t, p, a, b)
	if info, err := os.Stat(dir + "/current/b.key"); err != nil || info.Mode() != 0o600 {
		t.Errorf("a key that all may read was left so: %v", err)
	}
	if os.Getuid() == 0 { // others may choose no group
		for _, name := range []string{"daemon", "nogroup"} {
			g, err := user.LookupGroup(name)
			if err != nil {
				t.Fatal(err)
			}
			o.Group = name
			install(t, open(t, o), a, b)
			for path, mode := range map[string]os.FileMode{"current/": 0o750, "current/a.key": 0o640} {
				info, err := os.Stat(dir + "/" + path)
				if err != nil || info.Mode().Perm() != mode || fmt.Sprint(info.Sys().(*syscall.Stat_t).Gid) != g.Gid {
					t.Errorf("%s is not for group %s alone: %v, %v", path, name, info.Mode(), err)
				}
			}
		}
	}
	install(t, p)
	if entries, err := os.ReadDir(dir + "/current"); err != nil || len(entries) > 0 {
		t.Errorf("all are removed, and there are %v, %v", entries, err)
	}
	wrong(t, p, dir, a)
}

// TestCommand has commands that fail in every way.
func TestCommand(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	dir := t.TempDir() + "/files"
	install(t, open(t, proxy.Options{Kind: "files", Dir: dir}), a)
	b := proxytest.Pair(t, "a", "a.test")
	for name, test := range map[string]struct {
		command string
		want    string
	}{
		"exit":    {"echo first; echo last line >&2; exit 3", "first; last line (exit status 3)"},
		"silent":  {"exit 4", "exit status 4"},
		"much":    {"yes 'a long line that is said again and again' | head -n 100000; echo the end; exit 1", "; the end (exit status 1)"},
		"secret":  {"cat " + dir + "/current/a.pem; exit 1", "[secret]"},
		"slow":    {"echo begun; sleep 600", "begun (it took longer than 1s)"},
		"no such": {"", "no such file"},
	} {
		argv := []string{"sh", "-c", test.command}
		if test.command == "" {
			argv = []string{"/no/such/program"}
		}
		for _, o := range []proxy.Options{{Test: argv}, {Reload: proxy.Reload{Command: argv}}} {
			o.Kind, o.Dir, o.Timeout = "files", dir, time.Second
			begun := time.Now()
			err := open(t, o).Install(t.Context(), []proxy.Pair{b})
			if err == nil || !strings.Contains(err.Error(), test.want) || len(err.Error()) > 5000 {
				t.Errorf("%s: the error is %v, want one with %q", name, err, test.want)
				continue
			}
			secretless(t, err.Error(), []proxy.Pair{a, b})
			if took := time.Since(begun); took > patience {
				t.Errorf("%s: it took %v", name, took)
			}
			if len(o.Test) > 0 && read(t, dir+"/current/a.pem") != string(a.Chain)+string(a.Key) {
				t.Errorf("%s: the test failed, and what was there before is not back", name)
			}
			install(t, open(t, proxy.Options{Kind: "files", Dir: dir}), a)
		}
	}

	// A daemon that it leaves behind, holding its output, does not hold us.
	pid := filepath.Join(t.TempDir(), "pid")
	daemon := []string{"sh", "-c", "sleep 60 & echo $! > " + pid}
	install(t, open(t, proxy.Options{Kind: "files", Dir: dir, Reload: proxy.Reload{Command: daemon}}), b)
	if err := kill(read(t, pid)); err != nil {
		t.Error(err)
	}
}

func TestSignal(t *testing.T) {
	dir := t.TempDir()
	marker := dir + "/calls"
	program := dir + "/program"
	text := "#!/bin/sh\ntrap 'echo reloaded >> " + marker + "' HUP\necho $$ > " + dir + "/pid.part; mv " + dir + "/pid.part " + dir + "/pid\nwhile :; do sleep 0.05; done\n"
	if err := os.WriteFile(program, []byte(text), 0o755); err != nil {
		t.Fatal(err)
	}
	start(t, program)
	waitFor(t, "the program", func() bool { _, err := os.Stat(dir + "/pid"); return err == nil })
	o := proxy.Options{Kind: "files", Dir: dir + "/files", Reload: proxy.Reload{PIDFile: dir + "/pid"}}
	install(t, open(t, o), proxytest.Pair(t, "a", "a.test"))
	waitFor(t, "the reload", func() bool { _, err := os.Stat(marker); return err == nil })
	for name, text := range map[string]string{"empty": "", "text": "x", "all": "-1", "init": "1"} {
		if err := os.WriteFile(dir+"/pid", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := open(t, o).Install(t.Context(), []proxy.Pair{proxytest.Pair(t, "a", "a.test")}); err == nil {
			t.Errorf("%s: a signal was sent to whom?", name)
		}
	}
}
