package outbox

import (
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestEmit(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *sql.DB, d Dialect) {
		h := newHouse(t, db, Table{Dialect: d})
		var setup *change.SetupError
		if err := h.run(Options{}).fails(t); !errors.As(err, &setup) || setup.Fix != h.table.Create() {
			t.Fatalf("the error is %v", err)
		}
		h.exec(setup.Fix)
		h.watch()
		r := h.run(Options{})
		h.expect("resync ")
		h.quiet()
		h.emit(change.Insert, "orders", "1")
		h.expect("insert orders.1")
		h.emit(change.Update, "orders", "a b.*\x00é")
		h.expect("update orders.a%20b%2E%2A%00%C3%A9")
		h.emit(change.Delete, "", "")
		h.expect("delete %.%")
		h.emit(change.Resync, "orders")
		h.expect("resync orders")
		h.emit(change.Update, "orders", strings.Repeat("x", 10_000))
		h.expect("resync orders")
		h.emit(change.Resync)
		h.expect("resync ")
		h.exec("INSERT INTO fleetbus_outbox (changed_key) VALUES ('by.hand')")
		h.expect("update by.hand")
		h.exec("INSERT INTO fleetbus_outbox (changed_key, kind) VALUES ('by.hand', 'unknown')")
		h.expect("resync by")
		h.exec("INSERT INTO fleetbus_outbox (changed_key, kind) VALUES ('no key!', 'update')")
		h.expect("resync ")
		h.quiet()
		if !await.True(patience, func() bool { return strings.Contains(r.publisher.Progress().Warning, "had no key") }) {
			t.Errorf("the warning is %q", r.publisher.Progress().Warning)
		}

		tx := h.begin()
		if err := h.table.Emit(t.Context(), tx, change.Key{"a"}, "truncate"); err == nil {
			t.Error("an unknown kind is taken")
		}
		if err := h.table.Emit(t.Context(), tx, nil, change.Update); err == nil {
			t.Error("an update of nothing is taken")
		}
		check(t, h.table.Emit(t.Context(), tx, change.Key{"rolled", "back"}, change.Update))
		check(t, tx.Rollback())
		h.emit(change.Insert, "orders", "2")
		h.expect("insert orders.2")
		if h.mu.Lock(); strings.Contains(h.raw.String(), "rolled") {
			t.Error("what was rolled back is announced")
		}
		h.mu.Unlock()
	})
}

// A transaction takes its id early, and commits when later ones of the same key
// were announced and deleted, by another run of the source.
func TestLateCommit(t *testing.T) {
	h := newHouse(t, startPostgreSQL(t).open(t), Table{Dialect: PostgreSQL, Name: "public.box"})
	h.exec(h.table.Create())
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	early, earliest := h.begin(), h.begin()
	check(t, h.table.Emit(t.Context(), earliest, change.Key{"orders", "1"}, change.Update))
	check(t, h.table.Emit(t.Context(), early, change.Key{"orders", "1"}, change.Update))
	h.emit(change.Insert, "orders", "1")
	h.expect("insert orders.1")
	h.quiet()
	check(t, early.Commit())
	h.expect("update orders.1")
	h.quiet()
	r.stop(t)
	check(t, earliest.Commit())
	h.run(Options{})
	h.expect("update orders.1")
	h.quiet()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, n := range h.notices {
		if n.Kind == change.Resync && i > 0 || n.Epoch != h.notices[0].Epoch {
			t.Errorf("notice %d is %+v", i, n)
		}
	}
}

// Writers of many transactions that overlap: every key is announced after its
// commit, and nothing stays.
func TestOverlap(t *testing.T) {
	h := newHouse(t, startPostgreSQL(t).open(t), Table{Dialect: PostgreSQL})
	h.exec(h.table.Create())
	h.watch()
	h.run(Options{Batch: 3})
	h.expect("resync ")
	var open []*sql.Tx
	var wanted []string
	for i := range 60 {
		tx := h.begin()
		check(t, h.table.Emit(t.Context(), tx, change.Key{"k", fmt.Sprint(i)}, change.Insert))
		open = append(open, tx)
		if i%5 == 4 {
			for j := range open {
				check(t, open[len(open)-1-j].Commit())
			}
			open = nil
		}
		wanted = append(wanted, fmt.Sprintf("insert k.%d", i))
	}
	h.expect(wanted...)
	h.quiet()
}

func TestRestart(t *testing.T) {
	eachDatabase(t, func(t *testing.T, db *sql.DB, d Dialect) {
		h := newHouse(t, db, Table{Dialect: d})
		h.exec(h.table.Create())
		h.watch()
		r := h.run(Options{})
		h.expect("resync ")
		h.quiet()
		r.stop(t)
		h.emit(change.Insert, "orders", "1")
		r = h.run(Options{})
		h.expect("insert orders.1")
		h.quiet()
		h.mu.Lock()
		if len(h.notices) != 2 || h.notices[0].Epoch != h.notices[1].Epoch {
			t.Errorf("the notices are %+v", h.notices)
		}
		h.mu.Unlock()
		// Somebody empties the table: ids may begin anew.
		h.exec("DELETE FROM fleetbus_outbox")
		h.expect("resync ")
		h.emit(change.Insert, "orders", "2")
		h.expect("insert orders.2")
		h.quiet()
		r.stop(t)
		// Another epoch by choice.
		h.run(Options{Epoch: "second"})
		h.expect("resync ")
		h.emit(change.Insert, "orders", "3")
		h.expect("insert orders.3")
		h.mu.Lock()
		if n := h.notices[len(h.notices)-1]; n.Epoch != "second" || n.Version == 0 {
			t.Errorf("the notice is %+v", n)
		}
		h.mu.Unlock()
	})
}

func TestWake(t *testing.T) {
	h := newHouse(t, openSQLite(t), Table{Dialect: SQLite, Name: "box"})
	h.exec(h.table.Create())
	h.watch()
	wake := make(chan struct{}, 1)
	h.run(Options{Poll: 1 << 50, Wake: wake})
	h.expect("resync ")
	h.quiet()
	h.emit(change.Insert, "orders", "1")
	wake <- struct{}{}
	h.expect("insert orders.1")
}

// The rows stay until the bus has recorded them.
func TestBusAway(t *testing.T) {
	h := newHouse(t, openSQLite(t), Table{Dialect: SQLite})
	h.exec(h.table.Create())
	r := h.run(Options{})
	h.quiet()
	h.bus.Shutdown()
	h.bus.WaitForShutdown()
	h.emit(change.Insert, "orders", "1")
	if !await.True(patience, func() bool { return strings.Contains(r.publisher.Progress().Warning, "bus") }) {
		t.Fatalf("the warning is %q", r.publisher.Progress().Warning)
	}
	if n := h.left(); n != 1 {
		t.Errorf("%d changes are left", n)
	}
}

// The database is down at the start, is killed in the middle, and comes back.
func TestDatabaseAway(t *testing.T) {
	s := startPostgreSQL(t)
	db := s.open(t)
	h := newHouse(t, db, Table{Dialect: PostgreSQL})
	h.exec(h.table.Create())
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	h.quiet()
	s.kill()
	if err := r.fails(t); err == nil {
		t.Fatal("nothing is wrong")
	}
	if err := h.run(Options{}).fails(t); err == nil {
		t.Fatal("nothing is wrong")
	}
	s.start(t)
	h.run(Options{})
	h.emit(change.Insert, "orders", "1")
	h.expect("insert orders.1")
}

// A table without a column, and one that the source may not read, are errors that
// say so.
func TestOtherTable(t *testing.T) {
	h := newHouse(t, openSQLite(t), Table{Dialect: SQLite})
	h.exec("CREATE TABLE fleetbus_outbox (id INTEGER PRIMARY KEY)")
	if err := h.run(Options{}).fails(t); !strings.Contains(err.Error(), "changed_key") {
		t.Errorf("the error is %v", err)
	}
}

// A transaction of many rows becomes few notices, and nothing of it stays.
func TestManyRows(t *testing.T) {
	const rows = 50_000
	h := newHouse(t, startPostgreSQL(t).open(t), Table{Dialect: PostgreSQL})
	h.exec(h.table.Create())
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.exec(fmt.Sprintf("INSERT INTO fleetbus_outbox (changed_key) SELECT 'orders.' || n FROM generate_series(1, %d) n", rows))
	h.expect("resync orders")
	h.quiet()
	h.mu.Lock()
	defer h.mu.Unlock()
	t.Logf("%d notices for %d rows", h.sent, rows)
	if h.sent > rows*9/10 {
		t.Errorf("%d notices for %d rows", h.sent, rows)
	}
}

// A key that is a secret is not on the bus, and a password is in no error.
func TestSecrets(t *testing.T) {
	const planted = "Zx9planted"
	h := newHouse(t, openSQLite(t), Table{Dialect: SQLite})
	h.exec(h.table.Create())
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	h.emit(change.Update, "sessions", "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0."+planted)
	h.expect("resync sessions")
	h.quiet()
	r.stop(t)
	if h.mu.Lock(); strings.Contains(h.raw.String(), planted) {
		t.Errorf("a secret is on the bus:\n%s", &h.raw)
	}
	h.mu.Unlock()

	db, err := sql.Open("pgx", "postgres://ann:"+planted+"@127.0.0.1:1/app?sslmode=disable&connect_timeout=5")
	check(t, err)
	defer db.Close()
	h.table.Dialect = PostgreSQL
	if err := h.run(Options{DB: db}).fails(t); strings.Contains(err.Error(), planted) {
		t.Errorf("the error is %v", err)
	}
	for _, text := range []string{
		"dialing postgres://ann:" + planted + "@db/app: refused",
		"host=db password=" + planted + " user=ann", "Password: '" + planted + "'", "pwd=" + planted + ";server=db",
		"ann:" + planted + "@tcp(db:3306)/app",
	} {
		if err := masked(errors.New(text)); strings.Contains(err.Error(), planted) {
			t.Errorf("the error is %v", err)
		}
	}
	cause := fmt.Errorf("password=x: %w", sql.ErrConnDone)
	if err := masked(cause); !errors.Is(err, sql.ErrConnDone) {
		t.Error("what was masked is lost")
	}
	if err := masked(sql.ErrConnDone); err != sql.ErrConnDone {
		t.Error("an error without a password is another")
	}
}

func TestNewRefuses(t *testing.T) {
	db := openSQLite(t)
	good := Table{Dialect: SQLite}
	for _, o := range []Options{
		{Table: good}, {DB: db}, {DB: db, Table: Table{Dialect: "oracle"}}, {DB: db, Table: Table{Dialect: SQLite, Name: "x; DROP TABLE y"}},
		{DB: db, Table: good, Epoch: "a b"}, {DB: db, Table: good, Poll: -1}, {DB: db, Table: good, Batch: -1},
	} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
}

// The statements of the documentation are those of the code.
func TestDocumentedStatements(t *testing.T) {
	doc, err := os.ReadFile("doc.go")
	check(t, err)
	text := strings.ReplaceAll(string(doc), "//\t", "")
	for _, d := range []Dialect{PostgreSQL, MySQL, SQLite} {
		want := Table{Dialect: d}.Create()
		if !strings.Contains(text, want) {
			t.Errorf("doc.go lacks\n%s", want)
		}
	}
}
