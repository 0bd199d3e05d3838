package sqlite

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestBadFiles(t *testing.T) {
	for name, c := range map[string]struct {
		make func(t *testing.T, h *house)
		want string
	}{
		"missing":   {func(t *testing.T, h *house) { remove(t, h.path) }, "no such file"},
		"directory": {func(t *testing.T, h *house) { remove(t, h.path); check(t, os.Mkdir(h.path, 0o700)) }, "directory"},
		"text": {func(t *testing.T, h *house) {
			check(t, os.WriteFile(h.path, bytes.Repeat([]byte("no database\n"), 1000), 0o600))
		}, "no SQLite database"},
		"corrupt": {func(t *testing.T, h *house) {
			h.exec(`CREATE TABLE b (x)`, `CREATE TABLE c (x)`)
			data, err := os.ReadFile(h.path)
			check(t, err)
			check(t, os.WriteFile(h.path, append(data[:100:100], bytes.Repeat([]byte{0xa5}, len(data)-100)...), 0o600))
		}, "damaged"},
		// A version of the format that may only be read, because root may write
		// every file.
		"read-only": {func(t *testing.T, h *house) {
			f, err := os.OpenFile(h.path, os.O_WRONLY, 0)
			check(t, err)
			_, err = f.WriteAt([]byte{3}, 18)
			check(t, err)
			check(t, f.Close())
		}, "read-only"},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
			check(t, h.db.Close())
			h.db = h.open()
			c.make(t, h)
			if err := h.run(Options{}).fails(t); !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), h.path) {
				t.Errorf("the error is %v", err)
			}
		})
	}
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	for _, end := range []string{"", "-wal", "-shm", "-journal"} {
		if err := os.Remove(path + end); err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	check(t, err)
	check(t, os.WriteFile(to, data, 0o600))
}

// The file is replaced by an older copy of itself, while a source runs and while
// none does, and is written over.
func TestReplaced(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	h.quiet()
	backup := filepath.Join(t.TempDir(), "backup")
	copyFile(t, h.path, backup)
	again := filepath.Join(filepath.Dir(h.path), "again")
	copyFile(t, backup, again)

	h.exec(`INSERT INTO orders VALUES (1)`)
	h.expect("insert orders.1")
	h.quiet()
	check(t, os.Rename(again, h.path))
	if err := r.fails(t); !strings.Contains(err.Error(), "another file") {
		t.Fatalf("the error is %v", err)
	}
	r.stop(t)
	r = h.run(Options{})
	h.expect("resync ")
	h.db = h.open()
	h.exec(`INSERT INTO orders VALUES (2)`)
	h.expect("insert orders.2")
	h.quiet()
	r.stop(t)

	check(t, h.db.Close())
	remove(t, h.path)
	if fileID(backup) != "" {
		copyFile(t, backup, h.path)
		r = h.run(Options{})
		h.expect("resync ")
		h.db = h.open()
		h.exec(`INSERT INTO orders VALUES (3)`)
		h.expect("insert orders.3")
		h.quiet()
		h.exec(`INSERT INTO orders VALUES (4)`)
		h.expect("insert orders.4")
		h.quiet()
		h.shell(".restore '" + backup + "'")
		h.expect("resync ")
		h.exec(`INSERT INTO orders VALUES (5)`)
		h.expect("insert orders.5")
		check(t, os.Remove(h.path))
		if err := r.fails(t); !strings.Contains(err.Error(), "no such file") && !errors.Is(err, errMoved) {
			t.Fatalf("the error is %v", err)
		}
	}
}

// Another process holds the database locked; the source waits for it, and says so.
func TestBusy(t *testing.T) {
	for _, mode := range []string{"DELETE", "WAL"} {
		t.Run(mode, func(t *testing.T) {
			h := newHouse(t, "PRAGMA journal_mode = "+mode, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
			h.watch()
			r := h.run(Options{})
			h.expect("resync ")
			h.quiet()
			write, end := h.holder()
			write(`BEGIN EXCLUSIVE; INSERT INTO orders VALUES (1);`)
			if mode == "WAL" {
				// Reading goes on, and deleting does not.
				write(`COMMIT; BEGIN IMMEDIATE;`)
				h.expect("insert orders.1")
			}
			if !await.True(patience, func() bool { return strings.Contains(r.publisher.Progress().Warning, "locked the database") }) {
				t.Fatalf("the warning is %q", r.publisher.Progress().Warning)
			}
			write(`INSERT INTO orders VALUES (2); COMMIT;`)
			h.expect("insert orders.2")
			h.quiet()
			if !await.True(patience, func() bool { return r.publisher.Progress().Warning == "" }) {
				t.Errorf("the warning is %q", r.publisher.Progress().Warning)
			}
			end()
		})
	}
}

// holder is a process that has the database open, and runs what it is told.
func (h *house) holder() (write func(string), end func()) {
	h.t.Helper()
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		h.t.Skip("the program sqlite3 is missing")
	}
	cmd := exec.CommandContext(h.t.Context(), program, "-bail", "-cmd", ".timeout 60000", h.path)
	in, err := cmd.StdinPipe()
	check(h.t, err)
	out, err := cmd.StdoutPipe()
	check(h.t, err)
	check(h.t, cmd.Start())
	lines := bufio.NewScanner(out)
	return func(statements string) {
			h.t.Helper()
			if _, err := io.WriteString(in, statements+"\nSELECT 'done';\n"); err != nil || !lines.Scan() {
				h.t.Fatalf("sqlite3 does not run %q: %v", statements, err)
			}
		}, func() {
			_ = in.Close()
			_ = cmd.Wait()
		}
}

// A writer is killed in the middle of a transaction: nothing of it is announced,
// and all that was committed is.
func TestKilledWriter(t *testing.T) {
	for _, mode := range []string{"DELETE", "WAL"} {
		t.Run(mode, func(t *testing.T) {
			h := newHouse(t, "PRAGMA journal_mode = "+mode, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
			h.watch()
			h.run(Options{})
			h.expect("resync ")
			program, err := exec.LookPath("sqlite3")
			if err != nil {
				t.Skip("the program sqlite3 is missing")
			}
			cmd := exec.CommandContext(t.Context(), program, "-bail", "-cmd", ".timeout 60000", h.path)
			in, err := cmd.StdinPipe()
			check(t, err)
			out, err := cmd.StdoutPipe()
			check(t, err)
			check(t, cmd.Start())
			_, err = io.WriteString(in, "INSERT INTO orders VALUES (1); BEGIN; INSERT INTO orders VALUES (2); SELECT 'done';\n")
			check(t, err)
			if !bufio.NewScanner(out).Scan() {
				t.Fatal("sqlite3 does not write")
			}
			check(t, cmd.Process.Kill())
			_ = cmd.Wait()
			h.exec(`INSERT INTO orders VALUES (3)`)
			h.expect("insert orders.1", "insert orders.3")
			for _, n := range h.heard() {
				if strings.Contains(n, "orders.2") {
					t.Errorf("heard %q", n)
				}
			}
		})
	}
}

// TestSourceProcess is no test: it is the source that TestKilledSource kills.
func TestSourceProcess(t *testing.T) {
	path, url := os.Getenv("FLEETBUS_TEST_PATH"), os.Getenv("FLEETBUS_TEST_URL")
	if path == "" {
		return
	}
	h := &house{t: t, path: path, url: url}
	if err := h.run(Options{}).fails(t); err != nil {
		t.Fatal(err)
	}
}

// A source is killed again and again in a burst, and each key is announced after
// its last change.
func TestKilledSource(t *testing.T) {
	h := newHouse(t, "PRAGMA journal_mode = WAL", `CREATE TABLE orders (id INTEGER PRIMARY KEY, n)`)
	h.watch()
	start := func() *exec.Cmd {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSourceProcess$")
		cmd.Env = append(os.Environ(), "FLEETBUS_TEST_PATH="+h.path, "FLEETBUS_TEST_URL="+h.url)
		check(t, cmd.Start())
		return cmd
	}
	source := start()
	h.expect("resync ")
	h.quiet()
	const rows = 1500
	for i := range rows {
		h.exec(fmt.Sprintf(`INSERT INTO orders VALUES (%d, 0)`, i))
		if i%300 == 299 {
			check(t, source.Process.Kill())
			_ = source.Wait()
			source = start()
		}
	}
	h.quiet()
	check(t, source.Process.Kill())
	_ = source.Wait()
	h.covered("orders", rows)
}

// covered waits until all keys of a table were announced, or a resync of the table
// was after the last.
func (h *house) covered(table string, rows int) {
	h.t.Helper()
	var missing int
	if !await.True(patience, func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		told := map[string]bool{}
		widest := uint64(0)
		for _, n := range h.notices {
			if n.Kind == change.Resync && len(n.Key) <= 1 {
				widest = max(widest, n.Version)
			} else {
				told[n.Key.String()] = true
			}
		}
		missing = 0
		for i := range rows {
			// The row's version is its number: there are inserts only.
			if !told[fmt.Sprintf("%s.%d", table, i)] && uint64(i+1) > widest {
				missing++
			}
		}
		return missing == 0
	}) {
		h.t.Errorf("%d of %d keys were not announced", missing, rows)
	}
}

// A transaction of very many rows takes little memory, becomes few notices, and is
// deleted in parts.
func TestManyRows(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a while")
	}
	const rows = 100_000
	h := newHouse(t, "PRAGMA journal_mode = WAL", "PRAGMA synchronous = OFF", `CREATE TABLE orders (id INTEGER PRIMARY KEY, what)`)
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	h.quiet()
	var most atomic.Uint64
	stop := make(chan struct{})
	measured := make(chan struct{})
	runtime.GC()
	before := live()
	go func() {
		defer close(measured)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				most.Store(max(most.Load(), live()))
			}
		}
	}()
	h.shell(fmt.Sprintf(`PRAGMA synchronous = OFF; WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < %d) INSERT INTO orders SELECT i, 'secret' FROM n;`, rows-1))
	if !await.True(3*time.Minute, func() bool { return r.publisher.Progress().Version == rows }) {
		t.Fatalf("the progress is %+v", r.publisher.Progress())
	}
	h.covered("orders", rows)
	// All of it takes minutes under the race detector.
	if !await.True(3*time.Minute, func() bool { return h.left() <= rows-10_000 }) {
		t.Errorf("%d changes stay", h.left())
	}
	close(stop)
	<-measured
	h.mu.Lock()
	defer h.mu.Unlock()
	// The notices and the bytes that the test keeps are in it.
	grown := max(most.Load(), before) - before
	t.Logf("%d notices for %d rows; the heap grew by %d kB at most", h.sent, rows, grown>>10)
	if h.sent > rows*9/10 {
		t.Errorf("%d notices for %d rows", h.sent, rows)
	}
	if grown > 128<<20 {
		t.Errorf("the heap grew by %d MB", grown>>20)
	}
}

// live is the size of what the last garbage collection left, in bytes.
func live() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// Nothing of a row but its key is on the bus, in a log or in an error.
func TestSecrets(t *testing.T) {
	const planted = "Zx9planted"
	h := newHouse(t, `CREATE TABLE users (id INTEGER PRIMARY KEY, mail TEXT UNIQUE, password TEXT, token BLOB)`,
		`CREATE TABLE keys (k TEXT PRIMARY KEY, note)`)
	var logged bytes.Buffer
	h.watch()
	r := h.run(Options{Logger: logger(&logged)})
	h.expect("resync ")
	for i := range 5 {
		h.exec(fmt.Sprintf(`INSERT INTO users VALUES (%d, '%smail%d', '%spassword', CAST('%stoken' AS BLOB))`, i, planted, i, planted, planted))
	}
	h.exec(`UPDATE users SET password = '`+planted+`new'`, `DELETE FROM users WHERE id = 1`,
		`REPLACE INTO users VALUES (9, '`+planted+`mail2', '', '')`,
		`ALTER TABLE users ADD COLUMN secret DEFAULT '`+planted+`default'`)
	const header = "eyJhbGciOiJIUzI1NiJ9"
	jwt := header + ".eyJzdWIiOiIxMjM0NTY3ODkwIn0." + planted
	h.exec(`INSERT INTO keys VALUES ('` + jwt + `', '` + planted + `')`)
	h.expect("insert users.9", "resync keys")
	h.quiet()
	r.stop(t)
	h.mu.Lock()
	defer h.mu.Unlock()
	if strings.Contains(h.raw.String(), planted) || strings.Contains(h.raw.String(), header) {
		t.Errorf("a secret is on the bus:\n%s", &h.raw)
	}
	if logged.Len() == 0 || strings.Contains(logged.String(), planted) {
		t.Errorf("the log is %s", &logged)
	}
}
