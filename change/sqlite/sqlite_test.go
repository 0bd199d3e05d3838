package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), changetest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// create makes a database, and returns a connection of somebody else's.
func create(t testing.TB, statements ...string) (path string, db *sql.DB) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "a b%20c?.db")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", dsn(path))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	do(t, db, statements...)
	return path, db
}

func do(t testing.TB, db Execer, statements ...string) {
	t.Helper()
	for _, s := range statements {
		if _, err := db.ExecContext(within(t), s); err != nil {
			t.Fatalf("%s: %v", s, err)
		}
	}
}

func source(t testing.TB, o Options) *Source {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRows(t *testing.T) {
	for _, mode := range []string{"DELETE", "WAL"} {
		t.Run(mode, func(t *testing.T) {
			path, db := create(t, "PRAGMA journal_mode="+mode,
				`CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT, secret TEXT)`,
				`CREATE TABLE "odd name" (a TEXT, b BLOB, c REAL, v TEXT, PRIMARY KEY (b, a, c)) WITHOUT ROWID`,
				`CREATE TABLE keyless (v TEXT)`, `CREATE TABLE "it's ""quoted""" (id TEXT PRIMARY KEY)`,
				`CREATE VIEW v AS SELECT * FROM customers`)
			bus := changetest.Start(t)
			w := bus.Watch("")
			running := bus.Run(source(t, Options{Path: path}))
			w.Await("the first resync", func(n change.Notice) bool { return n.Kind == change.Resync && n.Reason == change.Announced })

			do(t, db, `INSERT INTO customers VALUES (42, 'planted-name', 'planted-secret')`)
			n := w.Key(change.Insert, "customers", "42")
			if n.Version == 0 || n.Epoch == "" || time.Since(n.Time).Abs() > time.Hour {
				t.Errorf("told of %+v", n)
			}
			do(t, db, `UPDATE customers SET secret = 'planted-again' WHERE id = 42`)
			if m := w.Key(change.Update, "customers", "42"); m.Version <= n.Version || m.Epoch != n.Epoch {
				t.Errorf("after %+v told of %+v", n, m)
			}
			w.Forget()
			do(t, db, `UPDATE customers SET id = 43 WHERE id = 42`)
			w.Key(change.Delete, "customers", "42")
			w.Key(change.Insert, "customers", "43")
			do(t, db, `DELETE FROM customers`)
			w.Key(change.Delete, "customers", "43")
			do(t, db, `INSERT INTO "odd name" VALUES ('a,b .*>' || char(0) || 'x', x'00ff', 1.5, 'planted')`)
			w.Key(change.Insert, "odd name", "\x00\xff", "a,b .*>\x00x", "1.5")
			do(t, db, `INSERT INTO keyless VALUES ('planted')`)
			w.Key(change.Insert, "keyless", "1")
			do(t, db, `INSERT INTO "it's ""quoted""" VALUES ('köln')`)
			w.Key(change.Insert, `it's "quoted"`, "köln")
			do(t, db, `INSERT INTO "it's ""quoted""" VALUES (NULL)`)
			w.Key(change.Insert, `it's "quoted"`, "")
			do(t, db, `INSERT INTO "it's ""quoted""" VALUES ('-----BEGIN PRIVATE KEY-----' || char(10) || 'planted')`)
			w.Key(change.Resync, `it's "quoted"`)

			tx, err := db.BeginTx(within(t), nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := Emit(within(t), tx, change.Key{"by hand", "1"}, change.Update); err != nil {
				t.Fatal(err)
			}
			if err := tx.Commit(); err != nil {
				t.Fatal(err)
			}
			w.Key(change.Update, "by hand", "1")
			if n := w.Notices()[len(w.Notices())-1]; WaitFor(within(t), db, n.Epoch, n.Version) != nil {
				t.Errorf("version %d is not there", n.Version)
			}
			late, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if err := WaitFor(late, db, n.Epoch, 1<<40); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a version that never was is there: %v", err)
			}
			bus.Silent("planted")
			awaitEmpty(t, db)
			if errs := running.Errors(); len(errs) > 0 {
				t.Error(errs)
			}
			ctx := within(t)
			for at := running.Publisher.Progress(); at.Version == 0 || at.Position == "" || at.Epoch == ""; at = running.Publisher.Progress() {
				if ctx.Err() != nil {
					t.Fatalf("it stands at %+v", at)
				}
			}
		})
	}
}

// awaitEmpty waits until what was announced is removed.
func awaitEmpty(t *testing.T, db *sql.DB) {
	t.Helper()
	ctx := within(t)
	for n := -1; n != 0; {
		if err := db.QueryRowContext(ctx, "SELECT count(*) FROM fleetbus_changes").Scan(&n); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOtherProcess has another program, with a SQLite of its own, write the file.
func TestOtherProcess(t *testing.T) {
	program, err := exec.LookPath("sqlite3")
	if err != nil {
		t.Skip("the program sqlite3 is missing: Debian's package sqlite3 has it")
	}
	path, _ := create(t, `CREATE TABLE customers (id INTEGER PRIMARY KEY, name TEXT)`)
	bus := changetest.Start(t)
	w := bus.Watch("customers.*")
	bus.Run(source(t, Options{Path: path}))
	w.Await("the first resync", func(n change.Notice) bool { return n.Reason == change.Announced })
	out, err := exec.CommandContext(within(t), program, path, "PRAGMA busy_timeout=5000; INSERT INTO customers VALUES (7, 'x'); DELETE FROM customers").CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v", out, err)
	}
	w.Covered(change.Key{"customers", "7"})
}

// TestWhileAway has changes announced that were made while no source ran.
func TestWhileAway(t *testing.T) {
	path, db := create(t, `CREATE TABLE customers (id INTEGER PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	first := bus.Run(source(t, Options{Path: path}))
	w.Covered(change.Key{"customers"})
	first.Stop()
	do(t, db, `INSERT INTO customers VALUES (1)`)
	w.Forget()
	bus.Run(source(t, Options{Path: path}))
	w.Key(change.Insert, "customers", "1")
}

func TestSchemaChanges(t *testing.T) {
	path, db := create(t, `CREATE TABLE a (id INTEGER PRIMARY KEY)`, `CREATE TABLE b (id INTEGER PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{Path: path}))
	w.Covered(change.Key{"b"})
	for _, c := range []struct {
		statement string
		resynced  []string
		then      string
		key       change.Key
	}{
		{`CREATE TABLE c (id INTEGER PRIMARY KEY)`, []string{"c"}, `INSERT INTO c VALUES (1)`, change.Key{"c", "1"}},
		{`ALTER TABLE a ADD COLUMN x TEXT`, nil, `INSERT INTO a VALUES (1, 'x')`, change.Key{"a", "1"}},
		{`ALTER TABLE a RENAME TO a2`, []string{"a", "a2"}, `INSERT INTO a2 VALUES (2, 'x')`, change.Key{"a2", "2"}},
		{`DROP TABLE b`, []string{"b"}, ``, nil},
		{`CREATE TABLE b (k TEXT PRIMARY KEY)`, []string{"b"}, `INSERT INTO b VALUES ('x')`, change.Key{"b", "x"}},
		{`DROP TRIGGER fleetbus_c_insert`, []string{"c"}, `INSERT INTO c VALUES (2)`, change.Key{"c", "2"}},
	} {
		w.Forget()
		do(t, db, c.statement)
		for _, name := range c.resynced {
			w.Key(change.Resync, name)
		}
		if c.then != "" {
			do(t, db, c.then)
			w.Key(change.Insert, c.key...)
		}
	}
}

// TestManyRows has a transaction of very many rows, of which few notices are made.
func TestManyRows(t *testing.T) {
	path, db := create(t, "PRAGMA journal_mode=WAL", `CREATE TABLE big (id INTEGER PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{Path: path}))
	w.Covered(change.Key{"big"})
	w.Forget()
	const many = 20_000
	do(t, db, fmt.Sprintf(`WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < %d) INSERT INTO big SELECT i FROM n`, many))
	w.Key(change.Resync, "big")
	awaitEmpty(t, db)
	if s := running.Publisher.Stats(); s.Announced < many || s.Sent > many/2 {
		t.Errorf("of %d changes %d notices were made", s.Announced, s.Sent)
	}
	do(t, db, `DELETE FROM big WHERE id = 7`)
	w.Covered(change.Key{"big", "7"})
}

func TestRefused(t *testing.T) {
	if _, err := New(Options{}); err == nil {
		t.Error("a source without a path was made")
	}
	bus := changetest.Start(t)
	p := bus.Run(source(t, Options{Path: filepath.Join(t.TempDir(), "none.db")}))
	for len(p.Errors()) == 0 {
		if within(t).Err() != nil {
			t.Fatal("no error")
		}
	}
	if err := p.Errors()[0]; !errors.Is(err, os.ErrNotExist) {
		t.Errorf("without a file: %v", err)
	}
	path, db := create(t, `CREATE TABLE a (id INTEGER PRIMARY KEY)`)
	refused := func(o Options) error {
		p, err := change.NewPublisher(within(t), bus.Connect(), "db", change.PublisherOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		return source(t, o).Run(within(t), p)
	}
	var setup *change.SetupError
	if err := refused(Options{Path: path, NoInstall: true}); !errors.As(err, &setup) || !strings.Contains(setup.Fix, "CREATE TRIGGER") {
		t.Errorf("not set up: %v", err)
	}
	do(t, db, strings.TrimSuffix(setup.Fix, ";"))
	w := bus.Watch("")
	bus.Run(source(t, Options{Path: path, NoInstall: true}))
	w.Await("the first resync", func(n change.Notice) bool { return n.Reason == change.Announced })
	if err := refused(Options{Path: path, Tables: []string{"a", "nowhere"}}); !errors.As(err, &setup) || !strings.Contains(setup.Problem, "nowhere") {
		t.Errorf("without a table: %v", err)
	}
	garbage := filepath.Join(t.TempDir(), "garbage.db")
	if err := os.WriteFile(garbage, []byte(strings.Repeat("garbage ", 1000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := refused(Options{Path: garbage}); err == nil || !strings.Contains(err.Error(), "not a database") {
		t.Errorf("garbage: %v", err)
	}
}

// TestReplaced has the file replaced by another under the source.
func TestReplaced(t *testing.T) {
	path, _ := create(t, `CREATE TABLE a (id INTEGER PRIMARY KEY)`)
	other, db := create(t, `CREATE TABLE a (id INTEGER PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{Path: path}))
	w.Covered(change.Key{"a"})
	w.Forget()
	db.Close()
	if err := os.Rename(other, path); err != nil {
		t.Fatal(err)
	}
	w.Await("a resync of everything", func(n change.Notice) bool { return n.Kind == change.Resync && n.Key == nil })
}

func FuzzParseKey(f *testing.F) {
	f.Add("t", "v1,h00ff,n")
	f.Add("", "=a.b")
	f.Fuzz(func(t *testing.T, tbl, text string) {
		if key, err := parseKey(tbl, text); err == nil && text != "=" && len(key) == 0 {
			t.Errorf("%q of %q has no key", text, tbl)
		}
	})
}
