package postgres

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/change/postgres/postgrestest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// transaction begins one in which statement was run, and is not committed.
func transaction(t *testing.T, db *postgrestest.Server, statement string) pgx.Tx {
	t.Helper()
	conn := db.Connect()
	t.Cleanup(func() { conn.Close(within(t)) })
	tx, err := conn.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(within(t), statement); err != nil {
		t.Fatal(err)
	}
	return tx
}

// TestTablesReplaced has tables become others, of which the log says nothing.
func TestTablesReplaced(t *testing.T) {
	t.Parallel()
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY, v int)`, `CREATE TABLE b (id int PRIMARY KEY, v int)`,
		`CREATE TABLE c (id int PRIMARY KEY, v int)`, `INSERT INTO c VALUES (1, 1)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN}))
	begun(w)
	for _, c := range []struct {
		what       string
		statements []string
		covered    []change.Key
	}{
		{"another of the same name", []string{`DROP TABLE a`, `CREATE TABLE a (id int PRIMARY KEY, v int)`, `INSERT INTO a VALUES (1, 1)`}, []change.Key{{"a", "1"}}},
		{"two that change names", []string{`ALTER TABLE a RENAME TO x`, `ALTER TABLE b RENAME TO a`, `ALTER TABLE x RENAME TO b`}, []change.Key{{"a", "1"}, {"b", "1"}}},
		{"values computed anew", []string{`ALTER TABLE c ALTER COLUMN v TYPE int USING v + 1`}, []change.Key{{"c", "1"}}},
		{"a column with a default", []string{`ALTER TABLE c ADD COLUMN w int DEFAULT 7`}, []change.Key{{"c", "1"}}},
	} {
		w.Forget()
		db.Exec(c.statements...)
		t.Log(c.what)
		w.Covered(c.covered...)
	}
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestTableAdded has a transaction begin before its table is published, and end
// long after: the server does not tell of what it did.
func TestTableAdded(t *testing.T) {
	t.Parallel()
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE PUBLICATION chosen FOR TABLE a`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.DSN, Tables: []string{"a"}, Publication: "chosen"}))
	begun(w)
	w.Forget()
	db.Exec(`CREATE TABLE b (id int PRIMARY KEY)`)
	tx := transaction(t, db, `INSERT INTO b VALUES (1)`)
	db.Exec(`ALTER PUBLICATION chosen ADD TABLE b`)
	w.Key(change.Resync, "b")
	w.Forget()
	if err := tx.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	w.Covered(change.Key{"b", "1"})
}

// TestPartitions has the rows of a partitioned table named by the table, however
// it is published.
func TestPartitions(t *testing.T) {
	t.Parallel()
	for _, root := range []string{"false", "true"} {
		t.Run("root "+root, func(t *testing.T) {
			t.Parallel()
			db := postgrestest.Start(t, "wal_level=logical")
			db.Exec(`CREATE TABLE p (id int, part int, PRIMARY KEY (part, id)) PARTITION BY LIST (part)`,
				`CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1)`, `CREATE TABLE p2 (id int NOT NULL, x int, part int NOT NULL, PRIMARY KEY (part, id))`,
				`ALTER TABLE p2 DROP COLUMN x`, `ALTER TABLE p ATTACH PARTITION p2 FOR VALUES IN (2)`,
				`CREATE PUBLICATION fleetbus FOR TABLE p WITH (publish_via_partition_root = `+root+`)`)
			bus := changetest.Start(t)
			w := bus.Watch("")
			running := bus.Run(source(t, Options{DSN: db.DSN}))
			begun(w)
			w.Forget()
			db.Exec(`INSERT INTO p VALUES (7, 1), (8, 2)`)
			w.Key(change.Insert, "p", "1", "7")
			w.Key(change.Insert, "p", "2", "8")
			db.Exec(`UPDATE p SET part = 2 WHERE id = 7`)
			w.Key(change.Delete, "p", "1", "7")
			w.Key(change.Insert, "p", "2", "7")
			for _, statement := range []string{`TRUNCATE p2`, `ALTER TABLE p DETACH PARTITION p2`, `CREATE TABLE p3 PARTITION OF p FOR VALUES IN (3)`, `DROP TABLE p1`} {
				w.Forget()
				db.Exec(statement)
				w.Covered(change.Key{"p", "2", "8"})
			}
			w.Forget()
			db.Exec(`INSERT INTO p VALUES (9, 3)`)
			w.Key(change.Insert, "p", "3", "9")
			if errs := running.Errors(); len(errs) > 0 {
				t.Error(errs)
			}
		})
	}
}

// dropSlot drops a slot, which the server may hold for a moment after its reader ended.
func dropSlot(t *testing.T, db *postgrestest.Server, name string) {
	t.Helper()
	conn := db.Connect()
	defer conn.Close(within(t))
	await.Nil(t, "dropping slot "+name, func() error {
		_, err := conn.Exec(within(t), "SELECT pg_drop_replication_slot($1)", name)
		return err
	})
}

// unheard runs a source of o that makes its slot, and of which nobody hears.
func unheard(t *testing.T, bus *changetest.Bus, o Options) {
	t.Helper()
	p, err := change.NewPublisher(within(t), bus.Connect(), "db", change.PublisherOptions{})
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if err := source(t, o).Run(within(t), p); !errors.Is(err, change.ErrClosed) {
		t.Fatalf("a source without a publisher ended with %v", err)
	}
}

// TestAway has the tables of a permanent slot change while nobody reads it.
func TestAway(t *testing.T) {
	t.Parallel()
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`, `INSERT INTO b VALUES (1)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	o := Options{DSN: db.DSN, Slot: "orders"}
	runs := 0
	run := func(covered change.Key, statements ...string) {
		t.Helper()
		runs++
		w.Forget()
		db.Exec(statements...)
		running := bus.Run(source(t, o))
		defer running.Stop()
		w.Covered(covered)
		// A source that meets what the publication no longer has begins a second time, with
		// a new slot: it is there when a row of now is told of, and not by a resync.
		row := strconv.Itoa(runs)
		waitFor(t, "the log to be read", func() bool {
			db.Exec(`INSERT INTO a VALUES (`+row+`)`, `DELETE FROM a`)
			return slices.ContainsFunc(w.Notices(), func(n change.Notice) bool { return n.Kind == change.Insert && n.Key.String() == "a."+row })
		})
		// What it knows of the tables is kept when nothing waits to be recorded.
		conn := db.Connect()
		defer conn.Close(within(t))
		waitFor(t, "what it knows of the tables", func() (kept bool) {
			err := conn.QueryRow(within(t), `SELECT coalesce(obj_description(oid, 'pg_publication') LIKE '%orders%', false) FROM pg_publication`).Scan(&kept)
			if err != nil {
				t.Fatal(err)
			}
			return kept
		})
	}
	run(nil)
	for _, c := range [][]string{
		{`DROP TABLE b`},
		{`CREATE TABLE b (id int PRIMARY KEY)`, `INSERT INTO b VALUES (1)`},
		{`DROP PUBLICATION fleetbus`, `INSERT INTO b VALUES (2)`},
	} {
		t.Log(c)
		run(change.Key{"b", "1"}, c...)
	}
	// A slot whose first resync may never have been recorded begins with one.
	run(nil, `COMMENT ON PUBLICATION fleetbus IS NULL`)
	// So does a new one, of the name of one that was read.
	dropSlot(t, db, o.Slot)
	unheard(t, bus, o)
	w.Forget()
	running := bus.Run(source(t, o))
	begun(w)
	running.Stop()
	// Without the right to keep what it knows, it begins with a resync, and says so.
	db.Exec(`CREATE ROLE app LOGIN REPLICATION`)
	stranger := o
	stranger.DSN, stranger.Tables = strings.Replace(db.DSN, "user=postgres", "user=app", 1), []string{"a"}
	stranger.Publication, stranger.Slot = "fleetbus", "stranger"
	for range 2 {
		w.Forget()
		running := bus.Run(source(t, stranger))
		begun(w)
		warned(t, running, `OWNER TO "app"`)
		running.Stop()
	}
	// A slot that is another's is left alone.
	dropSlot(t, db, o.Slot)
	db.Exec(`SELECT pg_create_logical_replication_slot('orders', 'test_decoding')`)
	running = bus.Run(source(t, o))
	err := failed(t, running)
	running.Stop()
	var refused *change.SetupError
	if !errors.As(err, &refused) || !strings.Contains(refused.Problem, "test_decoding") {
		t.Errorf("the slot of another plugin: %v", err)
	}
	db.Exec(`SELECT * FROM pg_logical_slot_get_changes('orders', NULL, NULL)`)
}

// TestPublicationRefused has publications that would leave out changes.
func TestPublicationRefused(t *testing.T) {
	t.Parallel()
	db := postgrestest.Start(t, "wal_level=logical", "max_wal_senders=1", "max_replication_slots=2")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE parent (id int PRIMARY KEY)`, `CREATE TABLE child () INHERITS (parent)`, `INSERT INTO child VALUES (1)`,
		`CREATE PUBLICATION inserts FOR TABLE a WITH (publish = 'insert')`, `CREATE PUBLICATION few FOR TABLE a WHERE (id > 7)`)
	bus := changetest.Start(t)
	refused := func(o Options, fix string) {
		t.Helper()
		running := bus.Run(source(t, o))
		defer running.Stop()
		var setup *change.SetupError
		if err := failed(t, running); !errors.As(err, &setup) || !strings.Contains(setup.Fix, fix) {
			t.Errorf("%v, which does not say %s", err, fix)
		}
	}
	refused(Options{DSN: db.DSN, Publication: "inserts"}, `SET (publish = 'insert, update, delete, truncate')`)
	refused(Options{DSN: db.DSN, Publication: "few"}, `DROP TABLE public.a`)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN}))
	begun(w)
	// The rows of a table without a key, which inherits from one with, can be changed.
	db.Exec(`UPDATE child SET id = 2`)
	refused(Options{DSN: db.DSN, Tables: []string{"a"}}, `max_wal_senders = 11`)
	running.Stop()
	db.Exec(`SELECT pg_create_logical_replication_slot(x, 'test_decoding') FROM unnest(ARRAY['x', 'y']) x`)
	refused(Options{DSN: db.DSN}, `max_replication_slots = 12`)
}

// TestBlocked has a table locked when it is to be published: the others are told
// of meanwhile.
func TestBlocked(t *testing.T) {
	t.Parallel()
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN}))
	begun(w)
	db.Exec(`CREATE TABLE b (id int PRIMARY KEY)`)
	tx := transaction(t, db, `LOCK TABLE b`)
	warned(t, running, "locked")
	w.Forget()
	db.Exec(`INSERT INTO a VALUES (1)`)
	w.Key(change.Insert, "a", "1")
	if err := tx.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	w.Key(change.Resync, "b")
	if errs := running.Errors(); len(errs) > 0 || slices.ContainsFunc(w.Notices(), func(n change.Notice) bool { return n.Kind == change.Resync && n.Key == nil }) {
		t.Error(errs, w.Notices())
	}
}

// TestFailover has a replica take over, and a version be awaited on it before.
func TestFailover(t *testing.T) {
	t.Parallel()
	primary := postgrestest.Start(t, "wal_level=logical")
	primary.Exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	replica := primary.Replica()
	bus := changetest.Start(t)
	w := bus.Watch("")
	host := func(dsn string) string { return strings.TrimPrefix(strings.Fields(dsn)[0], "host=") }
	running := bus.Run(source(t, Options{DSN: "host=" + host(replica.DSN) + "," + host(primary.DSN) + " user=postgres dbname=postgres target_session_attrs=read-write"}))
	begun(w)
	conn := replica.Connect()
	defer conn.Close(within(t))
	var before change.Notice
	for i := range 20 {
		primary.Exec(fmt.Sprintf(`INSERT INTO a VALUES (%d)`, i))
		before = w.Key(change.Insert, "a", strconv.Itoa(i))
		if err := WaitFor(within(t), conn, before.Epoch, before.Version); err != nil {
			t.Fatal(err)
		}
		var there bool
		if err := conn.QueryRow(within(t), `SELECT EXISTS (SELECT FROM a WHERE id = $1)`, i).Scan(&there); err != nil || !there {
			t.Errorf("row %d is not there: %v", i, err)
		}
	}
	if err := WaitFor(within(t), conn, "1234.1", 1); !errors.Is(err, ErrEpoch) {
		t.Errorf("a version of another system: %v", err)
	}
	only := bus.Run(source(t, Options{DSN: replica.DSN}))
	if err := failed(t, only); !strings.Contains(err.Error(), "target_session_attrs=read-write") {
		t.Error(err)
	}
	only.Stop()
	w.Forget()
	primary.Kill()
	replica.Exec(`SELECT pg_promote()`, `INSERT INTO a VALUES (100)`)
	w.Covered(change.Key{"a", "100"})
	replica.Exec(`INSERT INTO a VALUES (101)`)
	after := w.Key(change.Insert, "a", "101")
	if !strings.HasSuffix(before.Epoch, ".1") || after.Epoch != strings.TrimSuffix(before.Epoch, "1")+"2" {
		t.Errorf("epoch %q became %q", before.Epoch, after.Epoch)
	}
	if err := WaitFor(within(t), conn, before.Epoch, before.Version); !errors.Is(err, ErrEpoch) {
		t.Errorf("a version before the fail-over: %v", err)
	}
	if err := WaitFor(within(t), conn, after.Epoch, after.Version); err != nil {
		t.Error(err)
	}
	if len(running.Errors()) == 0 {
		t.Error("it did not notice")
	}
}

// TestIdle has another database write: the log is not kept for a source that has
// nothing to tell. What is kept all the same is said.
func TestIdle(t *testing.T) {
	t.Parallel()
	const limit = 64 // MiB
	db := postgrestest.Start(t, "wal_level=logical", fmt.Sprintf("max_slot_wal_keep_size=%dMB", limit))
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE DATABASE other`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN, Slot: "orders"}))
	begun(w)
	other, err := pgx.Connect(within(t), strings.Replace(db.DSN, "dbname=postgres", "dbname=other", 1))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(within(t))
	if _, err := other.Exec(within(t), `CREATE TABLE b (v text)`); err != nil {
		t.Fatal(err)
	}
	// write has the log grow by so many MiB, and is where it ends.
	write := func(size int) (end string) {
		t.Helper()
		if _, err := other.Exec(within(t), `INSERT INTO b SELECT repeat('x', 1024) FROM generate_series(1, $1)`, size<<10); err != nil {
			t.Fatal(err)
		}
		if err := other.QueryRow(within(t), `SELECT pg_current_wal_lsn()::text`).Scan(&end); err != nil {
			t.Fatal(err)
		}
		return end
	}
	end := write(5)
	waitFor(t, "that nothing is kept", func() (moved bool) {
		if err := other.QueryRow(within(t), `SELECT confirmed_flush_lsn >= $1::pg_lsn FROM pg_replication_slots WHERE slot_name = 'orders'`, end).Scan(&moved); err != nil {
			t.Fatal(err)
		}
		return moved
	})
	// More than half of what may be kept is, and less than all of it: of a slot that
	// loses its log nothing is kept.
	tx := transaction(t, db, `INSERT INTO a VALUES (1)`)
	write(limit/2 + 4)
	warned(t, running, "MiB of log")
	if at := running.Publisher.Progress(); at.Retained < limit/2<<20 || at.Retained > limit<<20 {
		t.Errorf("warned of %+v", at)
	}
	if err := tx.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}
