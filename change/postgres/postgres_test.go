package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/change/postgres/postgrestest"
	"github.com/fleetbus/fleetbus/internal/await"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), changetest.Patience)
	t.Cleanup(cancel)
	return ctx
}

// source is one that looks often, so that nobody has to wait for it.
func source(t testing.TB, o Options) *Source {
	t.Helper()
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	s.pace = pace{status: 100 * time.Millisecond, check: 200 * time.Millisecond}
	return s
}

// waitFor waits until ask says yes.
func waitFor(t testing.TB, what string, ask func() bool) {
	t.Helper()
	if !await.True(changetest.Patience, ask) {
		t.Fatalf("waited in vain for %s", what)
	}
}

// warned waits until a source warns of text.
func warned(t testing.TB, running *changetest.Running, text string) {
	t.Helper()
	await.Nil(t, "a warning of "+text, func() error {
		if at := running.Publisher.Progress(); !strings.Contains(at.Warning, text) {
			return fmt.Errorf("%+v, after %v", at, running.Errors())
		}
		return nil
	})
}

// failed waits for the first error of a source.
func failed(t testing.TB, running *changetest.Running) error {
	t.Helper()
	waitFor(t, "an error of the source", func() bool { return len(running.Errors()) > 0 })
	return running.Errors()[0]
}

func begun(w *changetest.Watch) {
	w.Await("the first resync", func(n change.Notice) bool {
		return n.Kind == change.Resync && n.Key == nil && n.Reason == change.Announced
	})
}

func TestRows(t *testing.T) {
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE customers (id bigint PRIMARY KEY, name text, secret text)`,
		`CREATE SCHEMA "o.dd"`, `CREATE TABLE "o.dd"."na me" (v text, a text, b int, PRIMARY KEY (b, a))`,
		`CREATE TABLE whole (id int PRIMARY KEY, v text)`, `ALTER TABLE whole REPLICA IDENTITY FULL`,
		`CREATE TABLE indexed (k text NOT NULL, v text)`, `CREATE UNIQUE INDEX by_k ON indexed (k)`, `ALTER TABLE indexed REPLICA IDENTITY USING INDEX by_k`,
		`CREATE TABLE keyless (v text)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN}))
	begun(w)
	epoch := ""
	for _, c := range []struct {
		statement string
		kind      change.Kind
		key       change.Key
		also      change.Key
	}{
		{`INSERT INTO customers VALUES (42, 'planted', 'planted')`, change.Insert, change.Key{"customers", "42"}, nil},
		{`UPDATE customers SET secret = 'planted again'`, change.Update, change.Key{"customers", "42"}, nil},
		{`UPDATE customers SET id = 43`, change.Delete, change.Key{"customers", "42"}, change.Key{"customers", "43"}},
		{`DELETE FROM customers`, change.Delete, change.Key{"customers", "43"}, nil},
		{`INSERT INTO "o.dd"."na me" VALUES ('planted', 'a.* >köln', 7)`, change.Insert, change.Key{"o.dd.na me", "7", "a.* >köln"}, nil},
		{`INSERT INTO whole VALUES (1, 'planted')`, change.Insert, change.Key{"whole", "1"}, nil},
		{`UPDATE whole SET v = 'planted 2'`, change.Update, change.Key{"whole", "1"}, nil},
		{`DELETE FROM whole`, change.Delete, change.Key{"whole", "1"}, nil},
		{`INSERT INTO indexed VALUES ('k', 'planted')`, change.Insert, change.Key{"indexed", "k"}, nil},
		{`UPDATE indexed SET k = 'l'`, change.Delete, change.Key{"indexed", "k"}, change.Key{"indexed", "l"}},
		{`INSERT INTO indexed VALUES (repeat('long key ', 1000), 'planted')`, change.Resync, change.Key{"indexed"}, nil},
		{`INSERT INTO indexed VALUES (E'-----BEGIN PRIVATE KEY-----\nplanted', '')`, change.Resync, change.Key{"indexed"}, nil},
		{`TRUNCATE customers`, change.Resync, change.Key{"customers"}, nil},
		{`SELECT pg_logical_emit_message(true, 'fleetbus', 'delete a.b')`, change.Delete, change.Key{"a", "b"}, nil},
		{`SELECT pg_logical_emit_message(false, 'fleetbus', 'update a.c')`, change.Update, change.Key{"a", "c"}, nil},
		{`SELECT pg_logical_emit_message(true, 'fleetbus', 'what is this')`, change.Resync, nil, nil},
	} {
		w.Forget()
		db.Exec(`SELECT pg_logical_emit_message(true, 'other', 'planted')`, c.statement)
		n := w.Key(c.kind, c.key...)
		if n.Version == 0 || n.Epoch == "" || time.Since(n.Time).Abs() > time.Hour || epoch != "" && n.Epoch != epoch {
			t.Errorf("%s: told of %+v", c.statement, n)
		}
		epoch = n.Epoch
		if c.also != nil {
			w.Key(change.Insert, c.also...)
		}
	}
	bus.Silent("planted")
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
	if at := running.Publisher.Progress(); !strings.Contains(at.Warning, "keyless") {
		t.Errorf("the table without a key is not mentioned: %+v", at)
	}
	// Its rows can be changed all the same.
	db.Exec(`INSERT INTO keyless VALUES ('x')`, `UPDATE keyless SET v = 'y'`, `DELETE FROM keyless`)
	// A rollback is no change; a commit is, as a whole.
	conn := db.Connect()
	defer conn.Close(within(t))
	w.Forget()
	for i, end := range []string{"rollback", "commit"} {
		tx, err := conn.Begin(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := Emit(within(t), tx, change.Key{"emitted", end}, change.Insert); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			err = tx.Rollback(within(t))
		} else {
			err = tx.Commit(within(t))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	n := w.Key(change.Insert, "emitted", "commit")
	for _, n := range w.Notices() {
		if slices.Contains(n.Key, "rollback") {
			t.Errorf("told of %+v, which never was", n)
		}
	}
	if err := WaitFor(within(t), conn, n.Epoch, n.Version); err != nil {
		t.Error(err)
	}
	late, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := WaitFor(late, conn, n.Epoch, 1<<62); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a version that never was is there: %v", err)
	}
}

func TestTablesChange(t *testing.T) {
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.DSN}))
	begun(w)
	for _, c := range []struct {
		statements []string
		covered    []change.Key
	}{
		{[]string{`CREATE TABLE c (id int PRIMARY KEY)`, `INSERT INTO c VALUES (1)`}, []change.Key{{"c", "1"}}},
		{[]string{`ALTER TABLE a ADD COLUMN x text`, `INSERT INTO a VALUES (1, 'x')`}, []change.Key{{"a", "1"}}},
		{[]string{`ALTER TABLE a RENAME TO a2`, `INSERT INTO a2 VALUES (2, 'x')`}, []change.Key{{"a2", "2"}, {"a", "1"}}},
		{[]string{`DROP TABLE b`}, []change.Key{{"b", "1"}}},
		{[]string{`ALTER TABLE c RENAME COLUMN id TO no`, `INSERT INTO c VALUES (2)`}, []change.Key{{"c", "2"}}},
	} {
		w.Forget()
		db.Exec(c.statements...)
		w.Covered(c.covered...)
	}
}

// TestTemporary has the server killed, and changes that were made meanwhile are
// covered by a resync.
func TestTemporary(t *testing.T) {
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN, Tables: []string{"a"}}))
	begun(w)
	w.Forget()
	db.Kill()
	db.Restart()
	db.Exec(`INSERT INTO a VALUES (1)`)
	w.Covered(change.Key{"a", "1"})
	running.Stop()
	conn := db.Connect()
	defer conn.Close(within(t))
	waitFor(t, "the end of the slot", func() bool { // whose server process may live a moment longer
		var slots int
		if err := conn.QueryRow(within(t), "SELECT count(*) FROM pg_replication_slots").Scan(&slots); err != nil {
			t.Fatal(err)
		}
		return slots == 0
	})
}

// TestPermanent has a source go on where it was, without a resync; and begin anew
// when the server lost its log.
func TestPermanent(t *testing.T) {
	db := postgrestest.Start(t, "wal_level=logical", "max_slot_wal_keep_size=1MB", "min_wal_size=32MB", "max_wal_size=32MB")
	db.Exec(`CREATE TABLE a (id int PRIMARY KEY, v text)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	o := Options{DSN: db.DSN, Slot: "orders"}
	running := bus.Run(source(t, o))
	begun(w)
	db.Exec(`INSERT INTO a VALUES (1)`)
	w.Key(change.Insert, "a", "1")
	running.Stop()
	w.Forget()
	db.Exec(`INSERT INTO a VALUES (2)`)
	db.Kill()
	db.Restart()
	running = bus.Run(source(t, o))
	w.Key(change.Insert, "a", "2")
	for _, n := range w.Notices() {
		if n.Kind == change.Resync {
			t.Errorf("told of %+v, and nothing was lost", n)
		}
	}
	second := bus.Run(source(t, o))
	if err := failed(t, second); !strings.Contains(err.Error(), "in use") {
		t.Errorf("the second reader: %v", err)
	}
	second.Stop()
	running.Stop()
	for i := range 6 {
		db.Exec(fmt.Sprintf(`INSERT INTO a SELECT i, repeat('x', 1000) FROM generate_series(%d, %d) i`, 10000*(i+1), 10000*(i+2)-1), `SELECT pg_switch_wal()`, `CHECKPOINT`)
	}
	w.Forget()
	bus.Run(source(t, o))
	begun(w)
	db.Exec(`INSERT INTO a VALUES (3)`)
	w.Key(change.Insert, "a", "3")
}

// TestManyRows has a transaction of very many rows, of which few notices are made.
func TestManyRows(t *testing.T) {
	db := postgrestest.Start(t, "wal_level=logical")
	db.Exec(`CREATE TABLE big (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.DSN}))
	begun(w)
	w.Forget()
	const many = 50_000
	db.Exec(fmt.Sprintf(`INSERT INTO big SELECT generate_series(1, %d)`, many))
	w.Key(change.Resync, "big")
	db.Exec(`DELETE FROM big WHERE id = 7`)
	w.Covered(change.Key{"big", "7"})
	waitFor(t, "all of it", func() bool { return running.Publisher.Stats().Announced >= many })
	if s := running.Publisher.Stats(); s.Sent > many*9/10 {
		t.Errorf("of %d changes %d notices were made", s.Announced, s.Sent)
	}
}

func TestRefused(t *testing.T) {
	const secret = "planted"
	for _, dsn := range []string{"", "postgres://u:" + secret + "@[::1", "host=x port=" + secret} {
		if _, err := New(Options{DSN: dsn}); err == nil || strings.Contains(err.Error(), secret) {
			t.Errorf("%q: %v", dsn, err)
		}
	}
	if _, err := New(Options{DSN: "host=x", Slot: "Bad-Slot"}); err == nil {
		t.Error("a slot of a bad name was accepted")
	}
	db := postgrestest.Start(t)
	bus := changetest.Start(t)
	refused := func(o Options) error {
		p, err := change.NewPublisher(within(t), bus.Connect(), "db", change.PublisherOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		return source(t, o).Run(within(t), p)
	}
	wants := func(o Options, fix string) {
		t.Helper()
		var setup *change.SetupError
		err := refused(o)
		if !errors.As(err, &setup) || !strings.Contains(setup.Fix, fix) {
			t.Errorf("%v, which does not say %s", err, fix)
		}
	}
	wants(Options{DSN: db.DSN}, "SET wal_level = logical")
	db.Stop()
	if err := refused(Options{DSN: db.DSN + " password=" + secret}); err == nil || strings.Contains(err.Error(), secret) {
		t.Errorf("without a server: %v", err)
	}
	db.Restart("wal_level=logical")
	db.Exec(`CREATE ROLE app LOGIN`, `CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE keyless (v text)`)
	app := strings.Replace(db.DSN, "user=postgres", "user=app", 1)
	wants(Options{DSN: app}, `ALTER ROLE "app" REPLICATION`)
	db.Exec(`ALTER ROLE app REPLICATION`)
	wants(Options{DSN: app}, `CREATE PUBLICATION "fleetbus" FOR TABLE "public"."a"`)
	wants(Options{DSN: db.DSN, NoInstall: true}, `CREATE PUBLICATION "fleetbus" FOR TABLE "public"."a"`)
	wants(Options{DSN: db.DSN, Tables: []string{"keyless"}}, `REPLICA IDENTITY FULL`)
	wants(Options{DSN: db.DSN, Tables: []string{"nowhere"}}, `leave it out`)
	if err := refused(Options{DSN: strings.Replace(db.DSN, "user=postgres", "user=nobody password="+secret, 1)}); err == nil || strings.Contains(err.Error(), secret) || !strings.Contains(err.Error(), "role") {
		t.Errorf("a stranger: %v", err)
	}
}
