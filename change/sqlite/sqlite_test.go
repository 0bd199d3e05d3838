package sqlite

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestRowChanges(t *testing.T) {
	for _, mode := range []string{"DELETE", "WAL"} {
		t.Run(mode, func(t *testing.T) {
			h := newHouse(t, "PRAGMA journal_mode = "+mode,
				`CREATE TABLE orders (id INTEGER PRIMARY KEY, what TEXT)`,
				`CREATE TABLE carts (customer TEXT, item INT, PRIMARY KEY (item, customer)) WITHOUT ROWID`,
				`CREATE TABLE plain (a)`,
				`CREATE TABLE "odd ""table"".x" ("the key" BLOB PRIMARY KEY)`,
				`CREATE TABLE shadowed (rowid, _rowid_, oid)`)
			h.watch()
			h.run(Options{})
			h.expect("resync ")
			h.exec(`INSERT INTO orders VALUES (1, 'a')`)
			h.expect("insert orders.1")
			h.exec(`UPDATE orders SET what = 'b'`)
			h.expect("update orders.1")
			h.exec(`UPDATE orders SET id = 2`)
			h.expect("delete orders.1", "insert orders.2")
			h.exec(`DELETE FROM orders`)
			h.expect("delete orders.2")
			h.exec(`INSERT INTO carts VALUES ('it''s é', 7)`)
			h.expect("insert carts.7.it%27s%20%C3%A9")
			h.exec(`UPDATE carts SET customer = 'x.*.>'`)
			h.expect("delete carts.7.it%27s%20%C3%A9", "insert carts.7.x%2E%2A%2E%3E")
			h.exec(`INSERT INTO plain VALUES (1)`)
			h.expect("insert plain.1")
			h.exec(`UPDATE plain SET a = 2`)
			h.expect("update plain.1")
			h.exec(`INSERT INTO "odd ""table"".x" VALUES (x'00ff'), ('a' || char(0) || 'b'), (1.5), ('')`)
			odd := "odd%20%22table%22%2Ex."
			h.expect("insert "+odd+"%00%FF", "insert "+odd+"a%00b", "insert "+odd+"1%2E5", "insert "+odd+"%")
			h.exec(`INSERT INTO "odd ""table"".x" VALUES (NULL)`)
			h.expect("resync odd%20%22table%22%2Ex")
			h.exec(`INSERT INTO "odd ""table"".x" VALUES (zeroblob(100000))`)
			h.expect("resync odd%20%22table%22%2Ex")
			h.exec(`INSERT INTO shadowed VALUES (1, 2, 3)`)
			h.expect("resync shadowed")
			h.quiet()
		})
	}
}

// A text of 10 kB, and one that is just too long for a trigger.
func TestLongKeys(t *testing.T) {
	h := newHouse(t, `CREATE TABLE texts (k TEXT PRIMARY KEY) WITHOUT ROWID`)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	for _, n := range []int{513, mostValue - 1, mostValue, 10_000} {
		if _, err := h.db.Exec(`INSERT INTO texts VALUES (?)`, strings.Repeat("k", n)); err != nil {
			t.Fatal(err)
		}
		h.expect("resync texts")
	}
}

func TestEncodings(t *testing.T) {
	for _, encoding := range []string{"UTF-16le", "UTF-16be"} {
		t.Run(encoding, func(t *testing.T) {
			h := newHouse(t)
			h.db.Close()
			if err := os.Remove(h.path); err != nil {
				t.Fatal(err)
			}
			h.db = h.open()
			h.exec(`PRAGMA encoding = '`+encoding+`'`, `CREATE TABLE t (a, b, c, PRIMARY KEY (a, b, c))`)
			h.watch()
			h.run(Options{})
			h.expect("resync ")
			h.exec(`INSERT INTO t VALUES ('é😀', 12, x'ff')`)
			h.expect("insert t.%C3%A9%F0%9F%98%80.12.%FF")
		})
	}
}

// REPLACE removes rows without a word to triggers.
func TestReplace(t *testing.T) {
	h := newHouse(t, `CREATE TABLE users (id INTEGER PRIMARY KEY, mail TEXT COLLATE NOCASE UNIQUE, a, b, UNIQUE (a, b))`,
		`INSERT INTO users VALUES (1, 'one', 1, 1), (2, 'two', 2, 2), (3, 'three', 3, 3)`)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.exec(`REPLACE INTO users VALUES (4, 'ONE', 2, 2)`)
	h.expect("update users.1", "update users.2", "insert users.4")
	h.exec(`UPDATE OR REPLACE users SET mail = 'THREE' WHERE id = 4`)
	h.expect("update users.3", "update users.4")
	h.exec(`INSERT INTO users VALUES (5, 'three', 9, 9) ON CONFLICT (mail) DO UPDATE SET b = 10`)
	h.expect("update users.4")
	var n int
	if err := h.db.QueryRow(`SELECT count(*) FROM users`).Scan(&n); err != nil || n != 1 {
		t.Fatalf("%d users, %v", n, err)
	}
}

func TestOddIndex(t *testing.T) {
	h := newHouse(t, `CREATE TABLE users (id INTEGER PRIMARY KEY, mail TEXT)`, `CREATE UNIQUE INDEX by_mail ON users (lower(mail))`)
	r := h.run(Options{})
	if !await.True(patience, func() bool { return strings.Contains(r.publisher.Progress().Warning, "by_mail") }) {
		t.Fatalf("the warning is %q", r.publisher.Progress().Warning)
	}
}

// Foreign keys and the application's own triggers change rows too.
func TestIndirect(t *testing.T) {
	h := newHouse(t, `CREATE TABLE a (id INTEGER PRIMARY KEY)`,
		`CREATE TABLE b (id INTEGER PRIMARY KEY, a REFERENCES a ON DELETE CASCADE)`,
		`CREATE TABLE c (id INTEGER PRIMARY KEY)`,
		`CREATE TRIGGER t AFTER DELETE ON b BEGIN INSERT INTO c VALUES (OLD.id); END`,
		`INSERT INTO a VALUES (1)`, `INSERT INTO b VALUES (2, 1)`)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.shell(`PRAGMA foreign_keys = ON; DELETE FROM a;`)
	h.expect("delete a.1", "delete b.2", "insert c.2")
}

// Another process writes, and rolls back.
func TestOtherProcess(t *testing.T) {
	for _, mode := range []string{"DELETE", "TRUNCATE", "WAL"} {
		t.Run(mode, func(t *testing.T) {
			h := newHouse(t, "PRAGMA journal_mode = "+mode, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
			h.watch()
			h.run(Options{Tables: []string{"ORDERS"}})
			h.expect("resync ")
			h.shell(`BEGIN; INSERT INTO orders VALUES (1); INSERT INTO orders VALUES (2); ROLLBACK; INSERT INTO orders VALUES (3);`)
			h.expect("insert orders.3")
			for _, n := range h.heard() {
				if strings.Contains(n, "orders.1") || strings.Contains(n, "orders.2") {
					t.Errorf("heard %q of what was rolled back", n)
				}
			}
			h.quiet()
		})
	}
}

// What changed while no source ran is announced, and nothing else.
func TestPlaceIsKept(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`, `CREATE TABLE plain (a)`)
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	h.exec(`INSERT INTO orders VALUES (1)`)
	h.expect("insert orders.1")
	h.quiet()
	r.stop(t)
	h.exec(`INSERT INTO orders VALUES (2)`)
	r = h.run(Options{})
	h.expect("insert orders.2")
	h.quiet()
	r.stop(t)
	h.run(Options{})
	h.exec(`INSERT INTO orders VALUES (3)`)
	h.expect("insert orders.3")
	h.mu.Lock()
	defer h.mu.Unlock()
	epoch := h.notices[0].Epoch
	for i, n := range h.notices {
		if n.Epoch != epoch || n.Kind == change.Resync && i > 0 {
			t.Errorf("notice %d is %+v", i, n)
		}
	}
}

// The bus is away: the rows stay until it has recorded them.
func TestBusAway(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
	r := h.run(Options{})
	h.quiet()
	h.bus.Shutdown()
	h.bus.WaitForShutdown()
	h.exec(`INSERT INTO orders VALUES (1)`)
	if !await.True(patience, func() bool { return strings.Contains(r.publisher.Progress().Warning, "bus") }) {
		t.Fatalf("the warning is %q", r.publisher.Progress().Warning)
	}
	if n := h.left(); n != 1 {
		t.Errorf("%d changes are left", n)
	}
	if p := r.publisher.Progress(); p.Retained == 0 || p.Version != 1 {
		t.Errorf("the progress is %+v", p)
	}
}

func TestSchemaChanges(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`, `CREATE TABLE plain (a)`, `INSERT INTO plain VALUES (1), (2)`)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.quiet()
	h.shell(`ALTER TABLE orders ADD COLUMN what DEFAULT 1;`)
	h.expect("resync orders")
	h.shell(`CREATE TABLE extra (id INTEGER PRIMARY KEY); INSERT INTO extra VALUES (1);`)
	h.expect("resync extra")
	h.exec(`INSERT INTO extra VALUES (2)`)
	h.expect("insert extra.2")
	h.shell(`ALTER TABLE extra RENAME TO more;`)
	h.expect("resync extra", "resync more")
	h.exec(`INSERT INTO more VALUES (3)`)
	h.expect("insert more.3")
	h.shell(`ALTER TABLE more RENAME COLUMN id TO number;`)
	h.expect("resync more")
	h.exec(`UPDATE more SET number = 4 WHERE number = 3`)
	h.expect("delete more.3", "insert more.4")
	h.shell(`DROP TABLE more;`)
	h.expect("resync more")
	h.shell(`DROP TABLE orders; CREATE TABLE orders (id INTEGER PRIMARY KEY, what DEFAULT 1); INSERT INTO orders VALUES (9, 9);`)
	h.expect("resync orders")
	h.exec(`INSERT INTO orders VALUES (10, 10)`)
	h.expect("insert orders.10")
	h.quiet()
	h.shell(`VACUUM;`)
	h.expect("resync plain")
	h.exec(`DROP TRIGGER fleetbus_update_orders`)
	h.expect("resync orders")
	h.exec(`UPDATE orders SET what = 11 WHERE id = 10`)
	h.expect("update orders.10")
	h.exec(`DROP TABLE fleetbus_state`)
	h.expect("resync ")
	h.exec(`INSERT INTO orders VALUES (12, 12)`)
	h.expect("insert orders.12")
}

// A table that comes and goes is announced, however fast.
func TestShortTable(t *testing.T) {
	h := newHouse(t)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.quiet()
	h.exec(`CREATE TABLE short (id INTEGER PRIMARY KEY)`, `INSERT INTO short VALUES (1)`)
	h.expect("resync short")
	h.exec(`DROP TABLE short`)
	h.expect("resync short")
}

// A source that was killed between the installation and the resync announces the
// resync later.
func TestResyncIsKept(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
	h.watch()
	r := h.run(Options{})
	h.expect("resync ")
	h.quiet()
	r.stop(t)
	h.exec(`ALTER TABLE orders ADD COLUMN what`)
	s, err := New(Options{Path: h.path})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := h.db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	dead := &run{Source: s, conn: conn}
	if err := dead.transact(t.Context(), "BEGIN IMMEDIATE", func() error {
		found, err := look(t.Context(), conn, nil)
		if err == nil {
			_, err = dead.install(t.Context(), found)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	h.run(Options{})
	h.expect("resync orders")
}

func TestTables(t *testing.T) {
	h := newHouse(t, `CREATE TABLE a (id INTEGER PRIMARY KEY)`, `CREATE TABLE b (id INTEGER PRIMARY KEY)`,
		`CREATE VIEW v AS SELECT * FROM a`, `CREATE VIRTUAL TABLE words USING fts5(text)`)
	h.watch()
	r := h.run(Options{Tables: []string{"a", "v", "words", "missing"}})
	h.expect("resync ")
	if !await.True(patience, func() bool {
		w := r.publisher.Progress().Warning
		return strings.Contains(w, `"v" is a view`) && strings.Contains(w, `"words" is a virtual`) && strings.Contains(w, `no table "missing"`)
	}) {
		t.Fatalf("the warning is %q", r.publisher.Progress().Warning)
	}
	h.exec(`INSERT INTO b VALUES (1)`, `INSERT INTO words VALUES ('hello')`, `INSERT INTO a VALUES (1)`)
	h.expect("insert a.1")
	h.exec(`CREATE TABLE missing (id INTEGER PRIMARY KEY)`)
	h.expect("resync missing")
	h.exec(`INSERT INTO missing VALUES (1)`)
	h.expect("insert missing.1")
	r.stop(t)
	h.run(Options{})
	h.expect("resync b")
	h.exec(`INSERT INTO words VALUES ('again')`, `INSERT INTO b VALUES (2)`)
	h.expect("insert b.2")
}

func TestNoInstall(t *testing.T) {
	h := newHouse(t, `CREATE TABLE "or;ders" (id INTEGER PRIMARY KEY, mail UNIQUE)`)
	h.watch()
	e := setup(h.run(Options{NoInstall: true}).fails(t))
	if e == nil || !strings.Contains(e.Problem, h.path) {
		t.Fatalf("the error is %v", e)
	}
	var n int
	if err := h.db.QueryRow(`SELECT count(*) FROM sqlite_master WHERE name LIKE 'fleetbus%'`).Scan(&n); err != nil || n > 0 {
		t.Fatalf("%d things were installed, %v", n, err)
	}
	h.shell(e.Fix)
	r := h.run(Options{NoInstall: true})
	h.expect("resync ")
	h.exec(`INSERT INTO "or;ders" VALUES (1, 1)`)
	h.expect("insert or%3Bders.1")
	h.exec(`CREATE TABLE more (id INTEGER PRIMARY KEY)`)
	if e := setup(r.fails(t)); e == nil || !strings.Contains(e.Fix, "fleetbus_insert_more") {
		t.Fatalf("the error is %v", e)
	}
}

func TestRemove(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
	r := h.run(Options{})
	h.quiet()
	r.stop(t)
	for range 2 {
		if err := Remove(t.Context(), h.db); err != nil {
			t.Fatal(err)
		}
	}
	h.exec(`INSERT INTO orders VALUES (1)`)
	var n int
	if err := h.db.QueryRow(`SELECT count(*) FROM sqlite_master WHERE name LIKE 'fleetbus%'`).Scan(&n); err != nil || n > 0 {
		t.Fatalf("%d things are left, %v", n, err)
	}
}

func TestEmit(t *testing.T) {
	h := newHouse(t)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.quiet()
	emit := func(kind change.Kind, key ...string) {
		t.Helper()
		tx, err := h.db.Begin()
		if err != nil {
			t.Fatal(err)
		}
		if err := Emit(t.Context(), tx, key, kind); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	emit(change.Update, "rights", "ann b")
	h.expect("update rights.ann%20b")
	emit(change.Resync, "rights")
	h.expect("resync rights")
	emit(change.Delete, "rights", strings.Repeat("x", 10_000))
	h.expect("resync rights")
	emit(change.Delete, "rights", strings.Repeat("x", mostValue))
	h.expect("resync rights")
	emit(change.Resync)
	h.expect("resync ")
	emit(change.Insert, "", "x")
	h.expect("insert %.x")
	tx, err := h.db.Begin()
	if err != nil {
		t.Fatal(err)
	}
	for _, kind := range []change.Kind{"", "truncate"} {
		if err := Emit(t.Context(), tx, change.Key{"a"}, kind); err == nil {
			t.Errorf("kind %q is taken", kind)
		}
	}
	if err := Emit(t.Context(), tx, nil, change.Update); err == nil {
		t.Error("an update of nothing is taken")
	}
	if err := Emit(t.Context(), tx, change.Key{"rolled", "back"}, change.Update); err != nil {
		t.Fatal(err)
	}
	if err := tx.Rollback(); err != nil {
		t.Fatal(err)
	}
	// Rows that nobody should write.
	h.exec(`INSERT INTO fleetbus_changes(tbl, key, kind) VALUES ('t', 'nonsense', 'update')`)
	h.expect("resync t")
	h.exec(`INSERT INTO fleetbus_changes(tbl, key, kind) VALUES ('t', 'b31', 'nonsense')`)
	h.expect("resync t")
	if slices.ContainsFunc(h.heard(), func(n string) bool { return strings.Contains(n, "rolled") }) {
		t.Error("what was rolled back is announced")
	}
}

func TestWaitFor(t *testing.T) {
	h := newHouse(t, `CREATE TABLE orders (id INTEGER PRIMARY KEY)`)
	if err := WaitFor(t.Context(), h.db, "", 1); err == nil {
		t.Error("a database without changes has version 1")
	}
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	waited := make(chan error, 1)
	go func() { waited <- WaitFor(t.Context(), h.db, "", 2) }()
	h.exec(`INSERT INTO orders VALUES (1)`, `INSERT INTO orders VALUES (2)`)
	if err := <-waited; err != nil {
		t.Fatal(err)
	}
	h.expect("insert orders.2")
	h.mu.Lock()
	n := h.notices[len(h.notices)-1]
	h.mu.Unlock()
	if err := WaitFor(t.Context(), h.db, n.Epoch, n.Version); err != nil || n.Version != 2 {
		t.Errorf("version %d: %v", n.Version, err)
	}
	if err := WaitFor(t.Context(), h.db, "another", 1); err == nil {
		t.Error("another epoch is reached")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := WaitFor(ctx, h.db, n.Epoch, 3); ctx.Err() == nil || err == nil {
		t.Errorf("version 3 is reached: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, o := range []Options{{}, {Path: "a\x00b"}, {Path: "x", Tables: []string{""}}, {Path: "x", Poll: -1}, {Path: "x", Batch: -1}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v is taken", o)
		}
	}
	if _, err := New(Options{Path: filepath.Join("does", "not", "exist")}); err != nil {
		t.Error(err)
	}
}

func FuzzDecodeKey(f *testing.F) {
	f.Add("t", "i3432.t616263", "UTF-8")
	f.Add("", "b", "UTF-16le")
	f.Add("t", "n.t6", "UTF-16be")
	f.Fuzz(func(t *testing.T, table, text, encoding string) {
		key, ok := decodeKey(table, text, encoding)
		if ok != (len(key) > 0) {
			t.Errorf("%q of %q is the key %q, %v", text, table, key, ok)
		}
		if back, ok := decodeKey("", encodeKey(key), encoding); ok && !slices.Equal(back, key) {
			t.Errorf("%q comes back as %q", key, back)
		}
	})
}

// A key that changes to one that its collation holds for the same is another row.
func TestCollatedKey(t *testing.T) {
	h := newHouse(t, `CREATE TABLE t (k TEXT COLLATE NOCASE PRIMARY KEY)`, `INSERT INTO t VALUES ('a')`)
	h.watch()
	h.run(Options{})
	h.expect("resync ")
	h.exec(`UPDATE t SET k = 'A'`)
	h.expect("delete t.a", "insert t.A")
}
