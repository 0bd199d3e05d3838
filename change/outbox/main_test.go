package outbox

import (
	"bytes"
	"context"
	"database/sql"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	_ "modernc.org/sqlite"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/internal/await"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) { await.Main(m) }

const patience = 60 * time.Second

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eachDatabase runs a test on a database of every kind that is there.
func eachDatabase(t *testing.T, test func(t *testing.T, db *sql.DB, d Dialect)) {
	t.Run("sqlite", func(t *testing.T) { test(t, openSQLite(t), SQLite) })
	t.Run("postgresql", func(t *testing.T) { test(t, startPostgreSQL(t).open(t), PostgreSQL) })
}

func openSQLite(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("sqlite", "file:"+filepath.Join(t.TempDir(), "app.db")+"?_pragma=busy_timeout(60000)&_pragma=journal_mode(WAL)&_txlock=immediate")
	check(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// postgreSQL is a server of the test's own, on a socket.
type postgreSQL struct {
	dir, program string
	as           *syscall.SysProcAttr
	cmd          *exec.Cmd
	log          bytes.Buffer
}

func startPostgreSQL(t testing.TB) *postgreSQL {
	t.Helper()
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/postgres")
	check(t, err)
	if len(found) == 0 {
		t.Skip("PostgreSQL is missing")
	}
	slices.Sort(found)
	s := &postgreSQL{program: found[len(found)-1]}
	// The server's user has to reach it, and a socket's path is short.
	s.dir, err = os.MkdirTemp("", "outbox")
	check(t, err)
	t.Cleanup(func() { os.RemoveAll(s.dir) })
	if os.Getuid() == 0 {
		u, err := user.Lookup("postgres")
		if err != nil {
			t.Skip("there is no user postgres, and PostgreSQL refuses root")
		}
		uid, err := strconv.Atoi(u.Uid)
		check(t, err)
		gid, err := strconv.Atoi(u.Gid)
		check(t, err)
		s.as = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}}
		check(t, os.Chown(s.dir, uid, gid))
	}
	initdb := exec.CommandContext(t.Context(), filepath.Join(filepath.Dir(s.program), "initdb"), "-D", filepath.Join(s.dir, "data"),
		"-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "--no-sync")
	initdb.SysProcAttr, initdb.Dir = s.as, s.dir
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v: %s", err, out)
	}
	s.start(t)
	t.Cleanup(s.kill)
	return s
}

func (s *postgreSQL) start(t testing.TB) {
	t.Helper()
	s.cmd = exec.Command(s.program, "-D", filepath.Join(s.dir, "data"), "-k", s.dir, "-c", "listen_addresses=", "-c", "fsync=off")
	s.cmd.SysProcAttr, s.cmd.Dir = s.as, s.dir
	s.log.Reset()
	s.cmd.Stdout, s.cmd.Stderr = &s.log, &s.log
	check(t, s.cmd.Start())
	db := s.open(t)
	if !await.True(patience, func() bool { return db.PingContext(t.Context()) == nil }) {
		s.kill()
		t.Fatalf("PostgreSQL does not start: %s", &s.log)
	}
}

func (s *postgreSQL) kill() {
	_ = s.cmd.Process.Signal(syscall.SIGQUIT)
	_ = s.cmd.Wait()
}

func (s *postgreSQL) open(t testing.TB) *sql.DB {
	t.Helper()
	db, err := sql.Open("pgx", "host="+s.dir+" user=postgres dbname=postgres sslmode=disable")
	check(t, err)
	t.Cleanup(func() { db.Close() })
	return db
}

// house is an outbox, a bus, and what went over it.
type house struct {
	t     testing.TB
	db    *sql.DB
	table Table
	bus   *server.Server

	mu      sync.Mutex
	notices []change.Notice // as a watcher took them
	raw     bytes.Buffer    // all subjects and payloads
	sent    int             // notices that were heard
	after   int             // where expect looks on
}

func newHouse(t testing.TB, db *sql.DB, table Table) *house {
	t.Helper()
	h := &house{t: t, db: db, table: table}
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	check(t, err)
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	h.bus = s
	listener := h.connect()
	_, err = listener.Subscribe(">", func(m *nats.Msg) {
		h.mu.Lock()
		defer h.mu.Unlock()
		fmt.Fprintf(&h.raw, "%s %s\n", m.Subject, m.Data)
		if strings.HasPrefix(m.Subject, "change.") {
			h.sent++
		}
	})
	check(t, err)
	check(t, listener.Flush())
	return h
}

func (h *house) connect() *nats.Conn {
	h.t.Helper()
	nc, err := nats.Connect(h.bus.ClientURL(), nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	check(h.t, err)
	h.t.Cleanup(nc.Close)
	return nc
}

func (h *house) exec(query string, args ...any) {
	h.t.Helper()
	if _, err := h.db.ExecContext(h.t.Context(), query, args...); err != nil {
		h.t.Fatalf("%s: %v", query, err)
	}
}

// emit announces a change in a transaction of its own.
func (h *house) emit(kind change.Kind, key ...string) {
	h.t.Helper()
	tx := h.begin()
	check(h.t, h.table.Emit(h.t.Context(), tx, key, kind))
	check(h.t, tx.Commit())
}

func (h *house) begin() *sql.Tx {
	h.t.Helper()
	tx, err := h.db.BeginTx(h.t.Context(), nil)
	check(h.t, err)
	return tx
}

// watch keeps what a watcher is told.
func (h *house) watch() {
	h.t.Helper()
	w, err := change.NewWatcher(h.t.Context(), h.connect(), "app", "", change.WatcherOptions{Jitter: -1})
	check(h.t, err)
	done := make(chan struct{})
	h.t.Cleanup(func() { w.Close(); <-done })
	started := make(chan struct{})
	go func() {
		defer close(done)
		for first := true; ; first = false {
			n, err := w.Next(context.Background())
			if err != nil {
				return
			}
			if first {
				close(started)
				continue
			}
			h.mu.Lock()
			h.notices = append(h.notices, n)
			h.mu.Unlock()
		}
	}()
	<-started
}

// running is a source that runs.
type running struct {
	publisher *change.Publisher
	end       context.CancelFunc
	result    chan error
}

func (h *house) run(o Options) *running {
	h.t.Helper()
	if o.DB == nil {
		o.DB = h.db
	}
	o.Table = h.table
	s, err := New(o)
	check(h.t, err)
	p, err := change.NewPublisher(h.t.Context(), h.connect(), "app", change.PublisherOptions{Widen: true})
	check(h.t, err)
	ctx, cancel := context.WithCancel(h.t.Context())
	r := &running{publisher: p, end: cancel, result: make(chan error, 1)}
	go func() { r.result <- s.Run(ctx, p) }()
	h.t.Cleanup(func() { r.stop(h.t) })
	return r
}

// stop ends the source, which must take it well.
func (r *running) stop(t testing.TB) {
	t.Helper()
	r.end()
	select {
	case err := <-r.result:
		if err != nil {
			t.Errorf("the source: %v", err)
		}
		r.result <- nil
	case <-time.After(patience):
		t.Error("the source does not end")
	}
	r.publisher.Close()
}

// fails returns the error with which the source ends by itself.
func (r *running) fails(t testing.TB) error {
	t.Helper()
	select {
	case err := <-r.result:
		r.result <- nil
		if err == nil {
			t.Fatal("the source ends without an error")
		}
		return err
	case <-time.After(patience):
		t.Fatal("the source does not fail")
	}
	return nil
}

// expect waits until a watcher was told of all of it, since the last expect: kinds
// and keys such as "insert orders.1", in any order.
func (h *house) expect(wanted ...string) {
	h.t.Helper()
	var heard []string
	if !await.True(patience, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		heard = nil
		left := map[string]bool{}
		for _, w := range wanted {
			left[w] = true
		}
		for i, n := range h.notices[h.after:] {
			text := string(n.Kind) + " " + n.Key.String()
			heard = append(heard, text)
			delete(left, text)
			if len(left) == 0 {
				h.after += i + 1
				return true
			}
		}
		return false
	}) {
		h.t.Fatalf("heard %q, and not all of %q", heard, wanted)
	}
}

// left is how many changes are in the table.
func (h *house) left() (n int) {
	h.t.Helper()
	check(h.t, h.db.QueryRowContext(h.t.Context(), "SELECT count(*) FROM "+h.table.name()+" WHERE kind <> 'mark'").Scan(&n))
	return n
}

// quiet waits until all was announced and deleted.
func (h *house) quiet() {
	h.t.Helper()
	if !await.True(patience, func() bool {
		var marks int
		check(h.t, h.db.QueryRowContext(h.t.Context(), "SELECT count(*) FROM "+h.table.name()+" WHERE kind = 'mark'").Scan(&marks))
		return marks == 1 && h.left() == 0
	}) {
		h.t.Fatalf("%d changes stay", h.left())
	}
}
