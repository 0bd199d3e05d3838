// Package postgrestest runs a PostgreSQL server of a test's own, on a socket in a
// directory of its own.
package postgrestest

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience is how long a slow machine may need to start or stop the server.
const patience = time.Minute

// Server is a running server. Start makes it.
type Server struct {
	// DSN is its connection string, as the superuser of database postgres.
	DSN string

	t        testing.TB
	bin, dir string
	settings []string
	as       *syscall.SysProcAttr
	cmd      *exec.Cmd
	exited   chan struct{}
	log      bytes.Buffer
}

// Start starts a server with settings such as "wal_level=logical" besides those
// of a quick test server, and skips the test if there is none on this machine.
func Start(t testing.TB, settings ...string) *Server {
	t.Helper()
	return start(t, settings, "initdb", "-U", "postgres", "-A", "trust", "--no-sync", "-E", "UTF8", "--no-locale")
}

// Replica starts a replica of s, with the settings of s. Exec "SELECT
// pg_promote()" makes it a primary.
func (s *Server) Replica() *Server {
	s.t.Helper()
	return start(s.t, s.settings, "pg_basebackup", "-h", s.dir, "-U", "postgres", "-R", "-c", "fast", "--no-sync")
}

// start starts a server in a new directory, whose data a program makes.
func start(t testing.TB, settings []string, program string, args ...string) *Server {
	t.Helper()
	s := &Server{t: t, bin: find(t), settings: slices.Clone(settings)}
	// The machine stays on, and writes in its own time. Benchmarks have what users have.
	if _, bench := t.(*testing.B); !bench {
		s.settings = append(s.settings, "fsync=off")
	}
	var err error
	if s.dir, err = os.MkdirTemp("", "pg-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	if os.Getuid() == 0 {
		s.become(t)
	}
	s.run(program, append(args, "-D", s.data())...)
	s.DSN = fmt.Sprintf("host=%s user=postgres dbname=postgres", s.dir)
	s.Restart()
	t.Cleanup(s.Stop)
	return s
}

// become has the server run as another user than root, whom it refuses.
func (s *Server) become(t testing.TB) {
	for _, name := range []string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		if err := os.Chown(s.dir, uid, gid); err != nil {
			t.Fatal(err)
		}
		s.as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		return
	}
	t.Skip("PostgreSQL does not run as root, and there is no user postgres or nobody")
}

func (s *Server) data() string { return filepath.Join(s.dir, "data") }

// find is the directory of the server's programs, the newest if there are several.
func find(t testing.TB) string {
	if path, err := exec.LookPath("initdb"); err == nil {
		if path, err = filepath.EvalSymlinks(path); err == nil { // beside it are the others
			return filepath.Dir(path)
		}
	}
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("PostgreSQL is missing: Debian's package postgresql has it")
	}
	slices.Sort(found)
	return filepath.Dir(found[len(found)-1])
}

func (s *Server) command(program string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(s.bin, program), args...)
	cmd.Dir, cmd.SysProcAttr = s.dir, s.as
	return cmd
}

// run runs one of the server's programs.
func (s *Server) run(program string, args ...string) {
	s.t.Helper()
	if out, err := s.command(program, args...).CombinedOutput(); err != nil {
		s.t.Fatalf("%s: %v\n%s", program, err, out)
	}
}

// Restart starts the server again after Stop or Kill, with more settings.
func (s *Server) Restart(more ...string) {
	s.t.Helper()
	s.settings = append(s.settings, more...)
	args := []string{"-D", s.data(), "-k", s.dir, "-c", "listen_addresses="}
	for _, setting := range append([]string{"max_connections=60", "shared_buffers=32MB"}, s.settings...) {
		args = append(args, "-c", setting)
	}
	s.cmd = s.command("postgres", args...)
	s.log.Reset()
	s.cmd.Stderr = &s.log
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited, cmd := make(chan struct{}), s.cmd
	s.exited = exited
	go func() {
		_ = cmd.Wait()
		close(exited)
	}()
	deadline := time.After(patience)
	for {
		conn, err := pgx.Connect(s.t.Context(), s.DSN)
		if err == nil {
			conn.Close(s.t.Context())
			return
		}
		select {
		case <-deadline:
			s.t.Fatalf("PostgreSQL does not answer: %v", err)
		case <-exited:
			s.t.Fatalf("PostgreSQL ended:\n%s", s.log.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Kill ends the server and its sessions as a power cut would.
func (s *Server) Kill() { s.end(syscall.SIGKILL) }

// Stop ends the server, if it runs, and does not wait for its sessions.
func (s *Server) Stop() { s.end(syscall.SIGINT) }

func (s *Server) end(sig os.Signal) {
	if s.cmd == nil {
		return
	}
	_ = s.cmd.Process.Signal(sig)
	select {
	case <-s.exited:
	case <-time.After(patience):
		s.t.Errorf("PostgreSQL does not end by %v", sig)
		_ = s.cmd.Process.Kill()
		<-s.exited
	}
	s.cmd = nil
	if sig == syscall.SIGKILL {
		// Its sessions notice by themselves; a new server refuses until they have.
		s.awaitSessions()
	}
}

// awaitSessions waits until no process uses the data directory any more.
func (s *Server) awaitSessions() {
	deadline := time.After(patience)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		alive := false
		dirs, _ := filepath.Glob("/proc/[0-9]*/cwd")
		for _, d := range dirs {
			if to, err := os.Readlink(d); err == nil && strings.HasPrefix(to, s.data()) {
				alive = true
			}
		}
		if !alive {
			return
		}
		select {
		case <-deadline:
			s.t.Fatal("sessions of the killed server do not end")
		case <-tick.C:
		}
	}
}

// Exec runs statements, one by one.
func (s *Server) Exec(statements ...string) {
	s.t.Helper()
	conn := s.Connect()
	defer conn.Close(s.t.Context())
	for _, statement := range statements {
		if _, err := conn.Exec(s.t.Context(), statement); err != nil {
			s.t.Fatalf("%s: %v", statement, err)
		}
	}
}

// Connect opens a connection, which the caller closes.
func (s *Server) Connect() *pgx.Conn {
	s.t.Helper()
	conn, err := pgx.Connect(s.t.Context(), s.DSN)
	if err != nil {
		s.t.Fatal(err)
	}
	return conn
}
