package mysql

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestRows(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE customers (id bigint unsigned PRIMARY KEY, name text, secret text)`,
		`CREATE DATABASE other`, `CREATE TABLE other.hidden (id int PRIMARY KEY)`,
		"CREATE TABLE `na.me` (v text, a varchar(3000), b int, PRIMARY KEY (b, a(100)))",
		`CREATE TABLE small (a tinyint unsigned, b smallint unsigned, c mediumint unsigned, d int unsigned, e mediumint, PRIMARY KEY (a, b, c, d, e))`,
		`CREATE TABLE odd (a decimal(10,2), b enum('x','it''s'), c date, d datetime(3), e timestamp(3) DEFAULT '2020-01-01', f binary(4), g varbinary(9), h year, i bit(9), j inet6, PRIMARY KEY (a, b, c, d, e, f, g, h, i, j))`,
		`CREATE TABLE latin (a varchar(20) CHARACTER SET latin1 PRIMARY KEY)`,
		`CREATE TABLE uuids (a uuid PRIMARY KEY)`, `CREATE TABLE floats (a double PRIMARY KEY)`,
		`CREATE TABLE keyless (v text)`, `CREATE TABLE zipped (id int PRIMARY KEY, v text COMPRESSED)`,
		`CREATE TABLE old (id int PRIMARY KEY, v text) ENGINE=MyISAM`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.dsn}))
	begun(w)
	for _, c := range []struct {
		statement string
		kind      change.Kind
		key       change.Key
		also      change.Key
	}{
		{`INSERT INTO customers VALUES (18446744073709551615, 'planted', 'planted')`, change.Insert, change.Key{"customers", "18446744073709551615"}, nil},
		{`UPDATE customers SET secret = 'planted again'`, change.Update, change.Key{"customers", "18446744073709551615"}, nil},
		{`UPDATE customers SET id = 43`, change.Delete, change.Key{"customers", "18446744073709551615"}, change.Key{"customers", "43"}},
		{`DELETE FROM customers`, change.Delete, change.Key{"customers", "43"}, nil},
		{"INSERT INTO `na.me` VALUES ('planted', 'a.* >köln', 7)", change.Insert, change.Key{"na.me", "7", "a.* >köln"}, nil},
		{"INSERT INTO `na.me` VALUES ('planted', '', -7)", change.Insert, change.Key{"na.me", "-7", ""}, nil},
		{"INSERT INTO `na.me` VALUES ('planted', repeat('long key ', 300), 7)", change.Resync, change.Key{"na.me", "7"}, nil},
		{"INSERT INTO `na.me` VALUES ('', '-----BEGIN PRIVATE KEY-----\nplanted', 8)", change.Resync, change.Key{"na.me", "8"}, nil},
		{`INSERT INTO small VALUES (255, 65535, 16777215, 4294967295, -8388608)`, change.Insert, change.Key{"small", "255", "65535", "16777215", "4294967295", "-8388608"}, nil},
		{`SET time_zone = '+05:00'; INSERT INTO odd VALUES (-1.5, 'it''s', '2024-02-29', '2024-02-29 01:02:03.5', '2024-02-29 05:02:03.5', 'a\0', x'00ff', 2024, 257, '::1')`, change.Insert,
			change.Key{"odd", "-1.50", "it's", "2024-02-29", "2024-02-29 01:02:03.500", "2024-02-29 00:02:03.500", "a\x00\x00\x00", "\x00\xff", "2024", "257", "::1"}, nil},
		{`INSERT INTO uuids VALUES ('550e8400-e29b-41d4-a716-446655440000')`, change.Insert, change.Key{"uuids", "550e8400-e29b-41d4-a716-446655440000"}, nil},
		{`INSERT INTO uuids VALUES ('00000000-0000-1000-8000-000000000000')`, change.Insert, change.Key{"uuids", "00000000-0000-1000-8000-000000000000"}, nil},
		{`INSERT INTO uuids VALUES ('018fdb6b-7c3e-7000-8000-000000000000')`, change.Insert, change.Key{"uuids", "018fdb6b-7c3e-7000-8000-000000000000"}, nil},
		{`INSERT INTO uuids VALUES ('00000000-0000-0000-0000-000000000001')`, change.Resync, change.Key{"uuids"}, nil},
		{`INSERT INTO latin VALUES ('plain')`, change.Insert, change.Key{"latin", "plain"}, nil},
		{`INSERT INTO latin VALUES ('köln')`, change.Resync, change.Key{"latin"}, nil},
		{`INSERT INTO floats VALUES (0.1)`, change.Resync, change.Key{"floats"}, nil},
		{`INSERT INTO keyless VALUES ('planted')`, change.Resync, change.Key{"keyless"}, nil},
		{`INSERT INTO zipped VALUES (1, repeat('planted', 100))`, change.Resync, change.Key{"zipped"}, nil},
		{`INSERT INTO old VALUES (1, 'planted')`, change.Insert, change.Key{"old", "1"}, nil},
		{`TRUNCATE customers`, change.Resync, change.Key{"customers"}, nil},
		{`SET SESSION binlog_row_image = 'MINIMAL'; INSERT INTO customers VALUES (5, 'planted', 'planted'); UPDATE customers SET name = 'planted 2'`, change.Update, change.Key{"customers", "5"}, nil},
		{`SET SESSION binlog_row_image = 'MINIMAL'; UPDATE customers SET id = 6`, change.Delete, change.Key{"customers", "5"}, change.Key{"customers", "6"}},
		{`SET SESSION binlog_row_image = 'MINIMAL'; DELETE FROM customers`, change.Delete, change.Key{"customers", "6"}, nil},
		{`SET SESSION binlog_row_image = 'FULL'; REPLACE INTO old VALUES (1, 'planted')`, change.Update, change.Key{"old", "1"}, nil},
		{`SET SESSION binlog_format = 'STATEMENT'; INSERT INTO customers VALUES (7, 'planted', 'planted')`, change.Resync, nil, nil},
		{`SET SESSION binlog_format = 'ROW'; XA START 'x'; INSERT INTO customers VALUES (8, 'planted', ''); XA END 'x'; XA PREPARE 'x'; XA COMMIT 'x'`, change.Resync, nil, nil},
	} {
		w.Forget()
		db.exec(`INSERT INTO other.hidden VALUES (1)`, c.statement)
		n := w.Key(c.kind, c.key...)
		if n.Version == 0 || n.Epoch != "0-7" || time.Since(n.Time).Abs() > time.Hour {
			t.Errorf("%s: told of %+v", c.statement, n)
		}
		if c.also != nil {
			w.Key(change.Insert, c.also...)
		}
		for _, n := range w.Notices() {
			if len(n.Key) > 0 && strings.Contains(n.Key[0], "hidden") {
				t.Errorf("told of %s, of another database", n.Key)
			}
		}
		db.exec(`DELETE FROM other.hidden`)
	}
	bus.Silent("planted")
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
	w.Await("its warning", func(change.Notice) bool { return strings.Contains(running.Publisher.Progress().Warning, "keyless") })
	if at := running.Publisher.Progress(); at.Epoch != "0-7" || !strings.HasPrefix(at.Position, "0-7-") || at.Seen.IsZero() {
		t.Errorf("it stands at %+v", at)
	}
}

// TestRollback has nothing told that never was, and everything at its commit.
func TestRollback(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.dsn, Tables: []string{"app.a"}}))
	begun(w)
	db.exec(`BEGIN`, `INSERT INTO a VALUES (1)`, `ROLLBACK`, `BEGIN`, `INSERT INTO a VALUES (2)`, `COMMIT`)
	n := w.Key(change.Insert, "a", "2")
	for _, n := range w.Notices() {
		if n.Key.String() == "a.1" {
			t.Errorf("told of %+v, which never was", n)
		}
	}
	if err := WaitFor(within(t), db.db, n.Epoch, n.Version); err != nil {
		t.Error(err)
	}
	late, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := WaitFor(late, db.db, n.Epoch, 1<<60); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a version that never was is there: %v", err)
	}
}

// TestThere has a row there for readers when they are told of it.
func TestThere(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.dsn}))
	begun(w)
	for id := range 100 {
		db.exec(fmt.Sprintf(`INSERT INTO a VALUES (%d)`, id))
		w.Key(change.Insert, "a", fmt.Sprint(id))
		var n int
		if err := db.db.QueryRowContext(within(t), `SELECT count(*) FROM app.a WHERE id = ?`, id).Scan(&n); err != nil || n != 1 {
			t.Fatalf("told of row %d, and %d are there: %v", id, n, err)
		}
		w.Forget()
	}
}

func TestTablesChange(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `CREATE TABLE b (id int PRIMARY KEY)`, `CREATE TABLE d (id int PRIMARY KEY)`,
		`CREATE TABLE parent (id int PRIMARY KEY, code int UNIQUE, v text)`,
		`CREATE TABLE child (id int PRIMARY KEY, parent int, FOREIGN KEY (parent) REFERENCES parent (id) ON DELETE CASCADE ON UPDATE CASCADE)`,
		`CREATE TABLE grandchild (id int PRIMARY KEY, child int, FOREIGN KEY (child) REFERENCES child (id) ON DELETE SET NULL)`,
		`INSERT INTO parent VALUES (1, 1, ''), (2, 2, '')`, `INSERT INTO child VALUES (1, 1), (2, 2)`, `INSERT INTO grandchild VALUES (1, 1)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.dsn}))
	begun(w)
	for _, c := range []struct {
		statements []string
		covered    []change.Key
	}{
		{[]string{`CREATE TABLE c (id int PRIMARY KEY)`, `INSERT INTO c VALUES (1)`}, []change.Key{{"c", "1"}}},
		{[]string{`ALTER TABLE a ADD COLUMN x text FIRST`, `INSERT INTO a VALUES ('x', 1)`}, []change.Key{{"a", "1"}}},
		{[]string{`ALTER TABLE a RENAME TO a2`, `INSERT INTO a2 VALUES ('x', 2)`}, []change.Key{{"a2", "2"}, {"a", "1"}}},
		{[]string{`RENAME TABLE a2 TO a3, d TO app.d2`}, []change.Key{{"a2", "1"}, {"a3", "1"}, {"d", "1"}, {"d2", "1"}}},
		{[]string{"DROP TABLE IF EXISTS `b`, d2"}, []change.Key{{"b", "1"}, {"d2", "1"}}},
		{[]string{`ALTER TABLE c DROP PRIMARY KEY, ADD COLUMN no int PRIMARY KEY`, `INSERT INTO c VALUES (2, 9)`}, []change.Key{{"c", "9"}}},
		{[]string{`DELETE FROM parent WHERE id = 1`}, []change.Key{{"child", "1"}, {"grandchild", "1"}, {"parent", "1"}}},
		{[]string{`UPDATE parent SET id = 3 WHERE id = 2`}, []change.Key{{"child", "2"}}},
		{[]string{`FLUSH BINARY LOGS`, `INSERT INTO c VALUES (3, 10)`}, []change.Key{{"c", "10"}}},
		{[]string{`DROP DATABASE app`}, []change.Key{{"c", "1"}}},
	} {
		w.Forget()
		db.exec(c.statements...)
		w.Covered(c.covered...)
	}
}

// TestKilled has the server killed, and changes that were made meanwhile are
// covered by a resync.
func TestKilled(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	db.kill()
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.dsn}))
	eventually(t, "it fails", func() bool { return len(running.Errors()) > 0 })
	for id := range 3 {
		db.start()
		db.exec(fmt.Sprintf(`INSERT INTO a VALUES (%d)`, id))
		w.Covered(change.Key{"a", fmt.Sprint(id)})
		db.kill()
		w.Forget()
	}
	for _, err := range running.Errors() {
		if strings.Contains(err.Error(), password) {
			t.Errorf("the password is in %q", err)
		}
	}
}

// TestForeignKeys has rows changed that are not in the log.
func TestForeignKeys(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`GRANT REFERENCES ON app.* TO reader@localhost`, `CREATE TABLE parent (id int PRIMARY KEY, code int UNIQUE, v text)`,
		`CREATE TABLE child (id int PRIMARY KEY, parent int, FOREIGN KEY (parent) REFERENCES parent (code) ON DELETE CASCADE ON UPDATE CASCADE)`,
		`CREATE TABLE restricted (id int PRIMARY KEY, parent int, FOREIGN KEY (parent) REFERENCES parent (id))`,
		`INSERT INTO parent VALUES (1, 1, ''), (2, 2, ''), (3, 3, '')`, `INSERT INTO child VALUES (1, 1), (2, 2)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.dsn, Tables: []string{"child", "restricted"}}))
	begun(w)
	for _, statement := range []string{`DELETE FROM parent WHERE id = 1`, `UPDATE parent SET code = 7 WHERE id = 2`} {
		w.Forget()
		db.exec(statement)
		w.Key(change.Resync, "child")
	}
	w.Forget()
	db.exec(`UPDATE parent SET v = 'x'`, `INSERT INTO child VALUES (9, 3)`)
	w.Key(change.Insert, "child", "9")
	for _, n := range w.Notices() {
		if n.Kind == change.Resync || n.Key[0] == "parent" {
			t.Errorf("told of %s %s, which no foreign key changes", n.Kind, n.Key)
		}
	}
}

// TestLate has a source read of rows that foreign keys took with them, when the
// foreign keys are others already.
func TestLate(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`GRANT REFERENCES ON app.* TO reader@localhost`, `CREATE TABLE parent (id int PRIMARY KEY)`,
		`CREATE TABLE child (id int PRIMARY KEY, parent int, CONSTRAINT up FOREIGN KEY (parent) REFERENCES parent (id) ON DELETE CASCADE)`,
		`CREATE TABLE grandchild (id int PRIMARY KEY, child int, FOREIGN KEY (child) REFERENCES child (id) ON DELETE SET NULL)`,
		`CREATE TABLE last (id int PRIMARY KEY)`,
		`INSERT INTO parent VALUES (1), (2)`, `INSERT INTO child VALUES (1, 1), (2, 2)`, `INSERT INTO grandchild VALUES (1, 1), (2, 2)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	o := Options{DSN: db.dsn, PositionFile: filepath.Join(t.TempDir(), "position"), Tables: []string{"grandchild", "last"}}
	running := bus.Run(source(t, o))
	begun(w)
	for i, statements := range [][]string{
		{`DELETE FROM parent WHERE id = 1`, `RENAME TABLE parent TO other`, `INSERT INTO last VALUES (0)`},
		{`DELETE FROM other WHERE id = 2`, `ALTER TABLE child DROP FOREIGN KEY up`, `INSERT INTO last VALUES (1)`},
	} {
		at := db.value("@@global.gtid_binlog_pos")
		eventually(t, "the position is kept", func() bool {
			data, _ := os.ReadFile(o.PositionFile)
			return strings.Contains(string(data), at)
		})
		running.Stop()
		w.Forget()
		db.exec(statements...)
		running = bus.Run(source(t, o))
		w.Key(change.Insert, "last", fmt.Sprint(i))
		w.Key(change.Resync, "grandchild")
	}
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestLetterCase has a server to which a name is the same in any letter case, and
// people who write it as they like.
func TestLetterCase(t *testing.T) {
	db := startMariaDB(t, "--lower-case-table-names=1")
	db.exec(`GRANT REFERENCES ON app.* TO reader@localhost`, `CREATE TABLE Big (id int PRIMARY KEY)`,
		`CREATE TABLE Small (id int PRIMARY KEY, big int, FOREIGN KEY (BIG) REFERENCES BIG (id) ON DELETE CASCADE)`)
	for i, o := range []Options{
		{DSN: db.dsn},
		{DSN: strings.TrimSuffix(db.dsn, "app") + "App"},
		{DSN: db.dsn, Tables: []string{"BIG", "App.Small"}},
	} {
		bus := changetest.Start(t)
		w := bus.Watch("")
		running := bus.Run(source(t, o))
		begun(w)
		db.exec(fmt.Sprintf(`INSERT INTO BIG VALUES (%d)`, i), fmt.Sprintf(`INSERT INTO SMALL VALUES (%d, %d)`, i, i))
		w.Key(change.Insert, "big", fmt.Sprint(i))
		w.Key(change.Insert, "small", fmt.Sprint(i))
		db.exec(fmt.Sprintf(`DELETE FROM Big WHERE id = %d`, i))
		w.Key(change.Resync, "small")
		w.Forget()
		db.exec(`TRUNCATE SMALL`)
		w.Key(change.Resync, "small")
		if errs := running.Errors(); len(errs) > 0 {
			t.Errorf("%+v: %v", o, errs)
		}
	}
	bus := changetest.Start(t)
	running := bus.Run(source(t, Options{DSN: db.dsn, Tables: []string{"Bigger"}}))
	eventually(t, "it fails", func() bool { return len(running.Errors()) > 0 })
}

// TestCompressed has events that the server compresses.
func TestCompressed(t *testing.T) {
	db := startMariaDB(t, "--log-bin-compress=ON", "--log-bin-compress-min-len=10", "--binlog-row-metadata=FULL", "--binlog-checksum=NONE")
	db.exec(`CREATE TABLE a (id int PRIMARY KEY, v text)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.dsn}))
	begun(w)
	for _, c := range []struct {
		statement string
		kind      change.Kind
		key       change.Key
	}{
		{`INSERT INTO a VALUES (1, repeat('planted', 100))`, change.Insert, change.Key{"a", "1"}},
		{`UPDATE a SET v = repeat('planted again', 100)`, change.Update, change.Key{"a", "1"}},
		{`UPDATE a SET id = 2`, change.Insert, change.Key{"a", "2"}},
		{`DELETE FROM a`, change.Delete, change.Key{"a", "2"}},
		{`ALTER TABLE a ADD COLUMN a_name_that_makes_the_statement_long_enough_to_be_compressed int`, change.Resync, change.Key{"a"}},
	} {
		w.Forget()
		db.exec(c.statement)
		w.Key(c.kind, c.key...)
	}
	bus.Silent("planted")
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}

// TestSemiSync has a server that sends a transaction to its replicas, and waits,
// before it commits it: nobody is told before it is there.
func TestSemiSync(t *testing.T) {
	db := startMariaDB(t, "--rpl-semi-sync-master-enabled=ON", "--rpl-semi-sync-master-wait-point=AFTER_SYNC", "--rpl-semi-sync-master-timeout=1000")
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: db.dsn}))
	begun(w)
	for id := range 3 {
		// After a wait in vain the server waits no more.
		db.exec(`SET GLOBAL rpl_semi_sync_master_enabled = OFF`, `SET GLOBAL rpl_semi_sync_master_enabled = ON`)
		done := make(chan struct{})
		go func() {
			defer close(done)
			db.exec(fmt.Sprintf(`INSERT INTO a VALUES (%d)`, id))
		}()
		w.Key(change.Insert, "a", fmt.Sprint(id))
		var n int
		if err := db.db.QueryRowContext(within(t), `SELECT count(*) FROM app.a WHERE id = ?`, id).Scan(&n); err != nil || n != 1 {
			t.Errorf("told of row %d, and %d are there: %v", id, n, err)
		}
		<-done
	}
}

// TestReplica has WaitFor wait on a replica for what happens on the primary.
func TestReplica(t *testing.T) {
	primary, replica := startMariaDB(t), startMariaDB(t, "--server-id=8")
	primary.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	host, port := relay(t, filepath.Join(primary.dir, "s"))
	replica.exec(`CREATE TABLE a (id int PRIMARY KEY)`, `RESET MASTER`, `SET GLOBAL gtid_slave_pos = '`+primary.value("@@global.gtid_binlog_pos")+`'`,
		fmt.Sprintf(`CHANGE MASTER TO MASTER_HOST = '%s', MASTER_PORT = %d, MASTER_USER = 'reader', MASTER_PASSWORD = '%s', MASTER_USE_GTID = slave_pos`, host, port, password))
	bus := changetest.Start(t)
	w := bus.Watch("")
	bus.Run(source(t, Options{DSN: primary.dsn}))
	begun(w)
	for id := range 3 {
		primary.exec(fmt.Sprintf(`INSERT INTO a VALUES (%d)`, id))
		n := w.Key(change.Insert, "a", fmt.Sprint(id))
		if id == 0 {
			short, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
			if err := WaitFor(short, replica.db, n.Epoch, n.Version); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a replica that does not run has it: %v", err)
			}
			cancel()
			replica.exec(`START SLAVE`)
		}
		if err := WaitFor(within(t), replica.db, n.Epoch, n.Version); err != nil {
			t.Fatalf("%v; it says %s", err, replica.log.String())
		}
		var there int
		if err := replica.db.QueryRowContext(within(t), `SELECT count(*) FROM app.a WHERE id = ?`, id).Scan(&there); err != nil || there != 1 {
			t.Errorf("the replica has waited, and row %d is not there: %v", id, err)
		}
	}
}

// TestTLS has connections that are secured, and one that would not be.
func TestTLS(t *testing.T) {
	cert, key, pool := certificate(t, "db.test")
	db := startMariaDB(t, "--ssl-cert="+cert, "--ssl-key="+key)
	db.exec(`ALTER USER reader@localhost REQUIRE SSL`, `CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	refused := bus.Run(source(t, Options{DSN: db.dsn, TLS: &tls.Config{RootCAs: pool, ServerName: "other.test"}}))
	eventually(t, "it refuses the server", func() bool { return len(refused.Errors()) > 0 })
	if err := refused.Errors()[0]; !strings.Contains(err.Error(), "db.test") {
		t.Error(err)
	}
	refused.Stop()
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.dsn, TLS: &tls.Config{RootCAs: pool, ServerName: "db.test"}}))
	begun(w)
	db.exec(`INSERT INTO a VALUES (1)`)
	w.Key(change.Insert, "a", "1")
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}

func eventually(t testing.TB, what string, ask func() bool) {
	t.Helper()
	if !await.True(patience, ask) {
		t.Fatalf("not in time: %s", what)
	}
}

// TestPosition has a source go on where it was, without a resync; and begin anew
// when the server has removed its log.
func TestPosition(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	o := Options{DSN: db.dsn, PositionFile: filepath.Join(t.TempDir(), "position")}
	kept := func() string {
		data, _ := os.ReadFile(o.PositionFile)
		return string(data)
	}
	running := bus.Run(source(t, o))
	begun(w)
	db.exec(`INSERT INTO a VALUES (1)`)
	n := w.Key(change.Insert, "a", "1")
	eventually(t, "the position is kept", func() bool { return strings.Contains(kept(), fmt.Sprintf("0-7-%d", n.Version)) })
	running.Stop()
	w.Forget()
	db.exec(`INSERT INTO a VALUES (2)`)
	db.kill()
	db.start()
	db.exec(`INSERT INTO a VALUES (3)`)
	running = bus.Run(source(t, o))
	w.Key(change.Insert, "a", "2")
	n = w.Key(change.Insert, "a", "3")
	for _, n := range w.Notices() {
		if n.Kind == change.Resync {
			t.Errorf("told of %+v, and nothing was lost", n)
		}
	}
	eventually(t, "the position is kept", func() bool { return strings.Contains(kept(), fmt.Sprintf("0-7-%d", n.Version)) })
	running.Stop()
	w.Forget()
	db.exec(`INSERT INTO a VALUES (4)`, `FLUSH BINARY LOGS`, `INSERT INTO a VALUES (5)`, `FLUSH BINARY LOGS`, `FLUSH BINARY LOGS`)
	eventually(t, "the log is removed", func() bool {
		db.exec(`PURGE BINARY LOGS BEFORE NOW() + INTERVAL 1 HOUR`)
		logs, _ := filepath.Glob(filepath.Join(db.dir, "data", "binlog.0*"))
		return len(logs) == 1
	})
	running = bus.Run(source(t, o))
	begun(w)
	db.exec(`INSERT INTO a VALUES (6)`)
	w.Key(change.Insert, "a", "6")
	running.Stop()
	// A file that was damaged, and one from another server.
	for _, content := range []string{"no position", `{"mariadb":true,"position":"0-7-999999"}`, `{"mariadb":false,"position":""}`} {
		if err := os.WriteFile(o.PositionFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		w.Forget()
		running = bus.Run(source(t, o))
		begun(w)
		running.Stop()
		if errs := running.Errors(); len(errs) > 0 {
			t.Errorf("with %s: %v", content, errs)
		}
	}
}

// TestBusAway has the position stay where it is while the bus records nothing.
func TestBusAway(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	o := Options{DSN: db.dsn, PositionFile: filepath.Join(t.TempDir(), "position")}
	nc := bus.Connect()
	p, err := change.NewPublisher(within(t), nc, "db", change.PublisherOptions{Widen: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	s := source(t, o)
	go func() { done <- s.Run(ctx, p) }()
	begun(w)
	eventually(t, "the position is kept", func() bool { _, err := os.Stat(o.PositionFile); return err == nil })
	before, err := os.ReadFile(o.PositionFile)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	db.exec(`INSERT INTO a VALUES (1)`)
	at := db.value("@@global.gtid_binlog_pos")
	eventually(t, "it is read", func() bool { return p.Progress().Position == at })
	if now, err := os.ReadFile(o.PositionFile); err != nil || string(now) != string(before) {
		t.Errorf("the position was %s, and is %s, though nothing was recorded: %v", before, now, err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	p.Close()
	w.Forget()
	bus.Run(s)
	w.Key(change.Insert, "a", "1")
}

// TestManyRows has a transaction of very many rows told of in few notices.
func TestManyRows(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY, v int)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(source(t, Options{DSN: db.dsn}))
	begun(w)
	w.Forget()
	const rows = 50_000
	db.exec(fmt.Sprintf(`INSERT INTO a SELECT seq, 0 FROM seq_1_to_%d`, rows), `INSERT INTO a VALUES (0, 0)`)
	w.Covered(change.Key{"a", "0"}, change.Key{"a", fmt.Sprint(rows)})
	w.Await("all rows", func(change.Notice) bool { return running.Publisher.Stats().Announced >= uint64(rows) })
	if sent := running.Publisher.Stats().Sent; sent > uint64(rows*9/10) {
		t.Errorf("%d rows became %d notices", rows, sent)
	}
}

// impatient is a source that hears of its server every half second, or gives it up
// after three.
func impatient(t *testing.T, o Options) *Source {
	t.Helper()
	s := source(t, o)
	s.heartbeat, s.config.ReadTimeout = 500*time.Millisecond, 3*time.Second
	return s
}

// TestSilent has a server that hangs, and does not close its connections.
func TestSilent(t *testing.T) {
	db := startMariaDB(t)
	db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(impatient(t, Options{DSN: db.dsn}))
	begun(w)
	if err := db.cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it fails", func() bool { return len(running.Errors()) > 0 })
	if err := db.cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	w.Forget()
	db.exec(`INSERT INTO a VALUES (1)`)
	w.Covered(change.Key{"a", "1"})
}

// TestIdle has a source live on heartbeats.
func TestIdle(t *testing.T) {
	db := startMariaDB(t)
	bus := changetest.Start(t)
	w := bus.Watch("")
	s := impatient(t, Options{DSN: db.dsn})
	running := bus.Run(s)
	begun(w)
	first := time.Now()
	eventually(t, "it hears of the server", func() bool { return running.Publisher.Progress().Seen.Sub(first) > s.config.ReadTimeout+s.heartbeat })
	if errs := running.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}

func TestSetup(t *testing.T) {
	setup := func(t *testing.T, o Options, fix string) {
		t.Helper()
		bus := changetest.Start(t)
		running := bus.Run(source(t, o))
		eventually(t, "it fails", func() bool { return len(running.Errors()) > 0 })
		var missing *change.SetupError
		if err := running.Errors()[0]; !errors.As(err, &missing) || !strings.Contains(missing.Fix, fix) || strings.Contains(err.Error(), password) {
			t.Errorf("%v, and its fix is not %q", err, fix)
		}
	}
	t.Run("log", func(t *testing.T) {
		db := startMariaDB(t, "--skip-log-bin")
		setup(t, Options{DSN: db.dsn}, "log_bin = binlog")
	})
	t.Run("settings", func(t *testing.T) {
		db := startMariaDB(t, "--binlog-ignore-db=skipped", "--sync-binlog=0")
		db.exec(`CREATE TABLE a (id int PRIMARY KEY)`)
		setup(t, Options{DSN: db.dsn, PositionFile: filepath.Join(t.TempDir(), "p")}, "SET GLOBAL sync_binlog = 1")
		setup(t, Options{DSN: strings.TrimSuffix(db.dsn, "app")}, "take it out")
		setup(t, Options{DSN: db.dsn, Tables: []string{"missing"}}, "GRANT SELECT ON `app`.* TO 'reader'@'localhost'")
		setup(t, Options{DSN: strings.TrimSuffix(db.dsn, "app") + "nowhere"}, "GRANT SELECT ON `nowhere`.*")
		db.exec(`SET GLOBAL binlog_format = 'MIXED'`)
		setup(t, Options{DSN: db.dsn}, "SET GLOBAL binlog_format = 'ROW'")
		db.exec(`SET GLOBAL binlog_format = 'ROW'`, `REVOKE REPLICATION SLAVE ON *.* FROM reader@localhost`)
		setup(t, Options{DSN: db.dsn}, "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'reader'@'localhost'")
		db.exec(`REVOKE BINLOG MONITOR ON *.* FROM reader@localhost`)
		setup(t, Options{DSN: db.dsn}, "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO 'reader'@'localhost'")
		bus := changetest.Start(t)
		running := bus.Run(source(t, Options{DSN: strings.Replace(db.dsn, password, password+"x", 1)}))
		eventually(t, "it fails", func() bool { return len(running.Errors()) > 0 })
		if err := running.Errors()[0]; strings.Contains(err.Error(), password) || !strings.Contains(err.Error(), "Access denied") {
			t.Error(err)
		}
	})
}

func TestNewRefuses(t *testing.T) {
	for _, dsn := range []string{"", "reader:" + password + "@nowhere", "reader:" + password + "@pipe(x)/app", "reader:" + password + "@tcp(h:1)/app?tls=preferred", "reader:" + password + "@tcp(h:1)/app?tls=" + password} {
		if _, err := New(Options{DSN: dsn}); err == nil || strings.Contains(err.Error(), password) {
			t.Errorf("%q: %v", dsn, err)
		}
	}
}
