package systemd

import (
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// manager listens as systemd does, and returns the variables that it gives to its
// processes and a function that reads one message.
func manager(t *testing.T, name string) (map[string]string, func() map[string]string) {
	t.Helper()
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return map[string]string{"NOTIFY_SOCKET": name}, func() map[string]string {
		t.Helper()
		if err := conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 4096)
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		said := map[string]string{}
		for line := range strings.SplitSeq(string(buf[:n]), "\n") {
			key, value, _ := strings.Cut(line, "=")
			said[key] = value
		}
		return said
	}
}

func dial(t *testing.T, env map[string]string) *Manager {
	t.Helper()
	m, err := Dial(func(key string) string { return env[key] })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func TestManager(t *testing.T) {
	dir, err := os.MkdirTemp("", "n") // the name of a socket is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	for _, socket := range []string{filepath.Join(dir, "notify"), "@fleetbus-test-" + strconv.Itoa(os.Getpid())} {
		env, next := manager(t, socket)
		env["WATCHDOG_USEC"] = "3000000"
		env["WATCHDOG_PID"] = strconv.Itoa(os.Getpid())
		m := dial(t, env)
		expect := func(err error, want map[string]string) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
			if said := next(); !maps.Equal(said, want) {
				t.Errorf("the manager was told %v, not %v", said, want)
			}
		}
		expect(m.Alive(), map[string]string{"WATCHDOG": "1", "EXTEND_TIMEOUT_USEC": "60000000"})
		expect(m.Ready("serving"), map[string]string{"READY": "1", "STATUS": "serving"})
		<-m.Beats()
		expect(m.Alive(), map[string]string{"WATCHDOG": "1"})

		before, err := monotonic()
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Reloading(); err != nil {
			t.Fatal(err)
		}
		said := next()
		at, err := strconv.ParseInt(said["MONOTONIC_USEC"], 10, 64)
		if after, _ := monotonic(); err != nil || said["RELOADING"] != "1" || at < before.Microseconds() || at > after.Microseconds() {
			t.Errorf("the manager was told %v between %v and %v", said, before, after)
		}
		expect(m.Ready("serving"), map[string]string{"READY": "1", "STATUS": "serving"})
		expect(m.Stopping(), map[string]string{"STOPPING": "1", "STATUS": "draining"})
	}
}

// TestWatchdogOfAnother is about a limit that the process inherited.
func TestWatchdogOfAnother(t *testing.T) {
	env, next := manager(t, "@fleetbus-other-"+strconv.Itoa(os.Getpid()))
	env["WATCHDOG_USEC"], env["WATCHDOG_PID"] = "3000000", "1"
	m := dial(t, env)
	for _, err := range []error{m.Ready("serving"), m.Alive(), m.Stopping()} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if said := next(); said["READY"] != "1" {
		t.Errorf("the manager was told %v", said)
	}
	if said := next(); said["STOPPING"] != "1" {
		t.Errorf("a sign of life was for another: %v", said)
	}
}

func TestNobody(t *testing.T) {
	m := dial(t, nil)
	if m != nil {
		t.Fatal("there is a manager without a socket")
	}
	for _, err := range []error{m.Alive(), m.Ready("serving"), m.Reloading(), m.Stopping(), m.Close()} {
		if err != nil {
			t.Error(err)
		}
	}
	if m.Beats() != nil {
		t.Error("nobody waits for a sign of life, and one is due")
	}
	if _, err := Dial(func(string) string { return "/nonexistent/notify" }); err == nil {
		t.Error("a manager that is gone was found")
	}
}
