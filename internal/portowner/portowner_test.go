package portowner

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
)

func TestOfOwnListener(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells who listens")
	}
	for _, addr := range []string{"127.0.0.1:0", ":0"} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		_, port, _ := net.SplitHostPort(ln.Addr().String())
		want := fmt.Sprintf("pid %d (", os.Getpid())
		for _, host := range []string{"127.0.0.1", "", "localhost", "::ffff:127.0.0.1"} {
			if got := Of(net.JoinHostPort(host, port)); !strings.HasPrefix(got, want) {
				t.Errorf("listening on %s, host %q: got %q, want %q…", addr, host, got, want)
			}
		}
		if addr == "127.0.0.1:0" {
			if got := Of(net.JoinHostPort("127.0.0.2", port)); got != "" {
				t.Errorf("another address: got %q", got)
			}
		}
		ln.Close()
		if got := Of("127.0.0.1:" + port); got != "" {
			t.Errorf("closed listener: got %q", got)
		}
	}
}

func TestOfNonsense(t *testing.T) {
	for _, addr := range []string{"", "x", "127.0.0.1", "127.0.0.1:x", "127.0.0.1:-1", "127.0.0.1:65536"} {
		if got := Of(addr); got != "" {
			t.Errorf("%q: got %q", addr, got)
		}
	}
}

// TestOfHostileProc gives a table with damaged lines, a process that may not be
// looked at and one whose name would clear a terminal.
func TestOfHostileProc(t *testing.T) {
	proc := t.TempDir()
	write := func(path, content string) {
		t.Helper()
		path = filepath.Join(proc, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	line := func(local, state, inode string) string {
		return "0: " + local + " 00000000:0000 " + state + " 0 0 0 0 0 " + inode + "\n"
	}
	write("net/tcp", "head\n"+line("junk", "0A", "1")+line("01:1F90", "0A", "1")+line("0100007F:zz", "0A", "1")+
		line("00000000:1F90", "01", "1")+line("00000000:1F90", "0A", "42"))
	write("8/fd/0", "no link")
	write("9/comm", "ev\x1b[2Jil\n")
	if err := os.MkdirAll(filepath.Join(proc, "9/fd"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("socket:[42]", filepath.Join(proc, "9/fd/3")); err != nil {
		t.Fatal(err)
	}
	if got, want := of(proc, "127.0.0.1:8080"), "pid 9 (ev?[2Jil)"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := os.Remove(filepath.Join(proc, "9/comm")); err != nil {
		t.Fatal(err)
	}
	if got, want := of(proc, "127.0.0.1:8080"), "pid 9"; got != want {
		t.Errorf("without a name: got %q, want %q", got, want)
	}
	if got := of(filepath.Join(proc, "absent"), "127.0.0.1:8080"); got != "" {
		t.Errorf("without /proc: got %q", got)
	}
}
