package sqlite

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/internal/await"
)

// TestMain fails if the tests leave a goroutine behind.
func TestMain(m *testing.M) { await.Main(m) }

const patience = 60 * time.Second

// house is a database, a bus, and what went over it.
type house struct {
	t    testing.TB
	path string
	db   *sql.DB
	bus  *server.Server
	url  string

	mu      sync.Mutex
	notices []change.Notice // as a watcher took them
	raw     bytes.Buffer    // all subjects and payloads
	sent    int             // notices that were heard
	after   int             // where expect looks on
}

// newHouse makes a database in rollback mode, with the statements.
func newHouse(t testing.TB, statements ...string) *house {
	t.Helper()
	h := &house{t: t, path: filepath.Join(t.TempDir(), "app 100%?#.db")}
	h.db = h.open()
	h.exec(append([]string{"PRAGMA user_version = 1"}, statements...)...)
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	h.bus, h.url = s, s.ClientURL()
	listener := h.connect()
	if _, err := listener.Subscribe(">", func(m *nats.Msg) {
		h.mu.Lock()
		defer h.mu.Unlock()
		fmt.Fprintf(&h.raw, "%s %s\n", m.Subject, m.Data)
		if strings.HasPrefix(m.Subject, "change.") {
			h.sent++
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := listener.Flush(); err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) connect() *nats.Conn {
	h.t.Helper()
	nc, err := nats.Connect(h.url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond))
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(nc.Close)
	return nc
}

// open opens the database as an application does.
func (h *house) open() *sql.DB {
	h.t.Helper()
	db, err := sql.Open("sqlite", strings.Replace(dsn(h.path), "mode=rw", "mode=rwc", 1)+"&_pragma=busy_timeout(60000)")
	if err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(func() { db.Close() })
	return db
}

func (h *house) exec(statements ...string) {
	h.t.Helper()
	for _, s := range statements {
		if _, err := h.db.ExecContext(h.t.Context(), s); err != nil {
			h.t.Fatalf("%s: %v", s, err)
		}
	}
}

// shell runs statements in another process.
func (h *house) shell(statements string) {
	h.t.Helper()
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		h.t.Skip("the program sqlite3 is missing")
	}
	cmd := exec.CommandContext(h.t.Context(), program, "-bail", "-cmd", ".timeout 60000", h.path)
	cmd.Stdin = strings.NewReader(statements)
	if out, err := cmd.CombinedOutput(); err != nil {
		h.t.Fatalf("sqlite3: %v: %s", err, out)
	}
}

// watch keeps what a watcher is told.
func (h *house) watch() {
	h.t.Helper()
	w, err := change.NewWatcher(h.t.Context(), h.connect(), "app", "", change.WatcherOptions{Jitter: -1})
	if err != nil {
		h.t.Fatal(err)
	}
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

// run starts a source.
func (h *house) run(o Options) *running {
	h.t.Helper()
	o.Path = h.path
	s, err := New(o)
	if err != nil {
		h.t.Fatal(err)
	}
	p, err := change.NewPublisher(h.t.Context(), h.connect(), "app", change.PublisherOptions{Widen: true, Burst: 100})
	if err != nil {
		h.t.Fatal(err)
	}
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

// expect waits until a watcher was told of all of it, since the last expect: keys
// and kinds such as "insert orders.1", in any order.
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
		return len(left) == 0
	}) {
		h.t.Fatalf("heard %q, and not all of %q", heard, wanted)
	}
}

// heard are the notices since the last expect.
func (h *house) heard() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	var all []string
	for _, n := range h.notices[h.after:] {
		all = append(all, string(n.Kind)+" "+n.Key.String())
	}
	return all
}

// left is how many changes are in the database.
func (h *house) left() (n int) {
	h.t.Helper()
	if err := h.db.QueryRowContext(h.t.Context(), "SELECT count(*) FROM fleetbus_changes").Scan(&n); err != nil && code(err) != busyCode {
		h.t.Fatal(err)
	}
	return n
}

// quiet waits until all was announced and deleted.
func (h *house) quiet() {
	h.t.Helper()
	if !await.True(patience, func() bool {
		var seq int
		err := h.db.QueryRowContext(h.t.Context(), "SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'fleetbus_changes'), -1)").Scan(&seq)
		var files int
		if err == nil {
			err = h.db.QueryRowContext(h.t.Context(), "SELECT count(*) FROM fleetbus_state WHERE name = 'file'").Scan(&files)
		}
		return err == nil && files == 1 && h.left() == 0
	}) {
		h.t.Fatal("changes stay")
	}
}

func logger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func setup(err error) *change.SetupError {
	var s *change.SetupError
	errors.As(err, &s)
	return s
}
