package mysql

import (
	"database/sql"
	"fmt"
	"testing"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/change/outbox"
)

// TestOutbox has the outbox of this kind of database, with a transaction that
// takes its id early and commits late.
func TestOutbox(t *testing.T) {
	db := startMariaDB(t)
	table := outbox.Table{Dialect: outbox.MySQL}
	db.exec(`GRANT ALL ON app.* TO reader@localhost`)
	reader, err := sql.Open("mysql", db.dsn)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { reader.Close() })
	s, err := outbox.New(outbox.Options{DB: reader, Table: table})
	if err != nil {
		t.Fatal(err)
	}
	bus := changetest.Start(t)
	w := bus.Watch("")
	running := bus.Run(s)
	eventually(t, "it fails", func() bool { return len(running.Errors()) > 0 })
	db.exec(running.Errors()[0].(*change.SetupError).Fix)
	begun(w)
	early, err := reader.BeginTx(within(t), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := table.Emit(within(t), early, change.Key{"a.*", "early"}, change.Delete); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		tx, err := reader.BeginTx(within(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := table.Emit(within(t), tx, change.Key{"b", fmt.Sprint(i)}, change.Update); err != nil {
			t.Fatal(err)
		}
		if err := tx.Commit(); err != nil {
			t.Fatal(err)
		}
		w.Key(change.Update, "b", fmt.Sprint(i))
	}
	if err := early.Commit(); err != nil {
		t.Fatal(err)
	}
	w.Key(change.Delete, "a.*", "early")
	eventually(t, "the table is empty", func() bool { return db.value("count(*) FROM app.fleetbus_outbox WHERE kind <> 'mark'") == "0" })
}
