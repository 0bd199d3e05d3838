package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/fleetbus/fleetbus/change"
)

// ErrEpoch says that a version is of another history than the database's.
var ErrEpoch = errors.New("the database counts another history")

// mostEmitted bounds the keys that Emit writes as they are. It is above what is
// announced as it is.
const mostEmitted = 4 * mostValue

// An Execer is a transaction of database/sql, of any driver, or a connection.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Emit has the source of tx's database announce a change of key if tx commits. The
// key need not be of a table. A Resync may have a nil key, of everything. A source
// must have run on the database before.
func Emit(ctx context.Context, tx Execer, key change.Key, kind change.Kind) error {
	switch kind {
	case change.Insert, change.Update, change.Delete:
		if len(key) == 0 {
			return fmt.Errorf("emitting a change: %w: it has no key", change.ErrInvalid)
		}
	case change.Resync:
	default:
		return fmt.Errorf("emitting a change: %w: its kind is not insert, update, delete or resync", change.ErrInvalid)
	}
	text := encodeKey(key)
	for len(text) > mostEmitted {
		key, kind = key[:len(key)-1], change.Resync
		text = encodeKey(key)
	}
	if _, err := tx.ExecContext(ctx, "INSERT INTO fleetbus_changes(tbl, key, kind) VALUES ('', ?, ?)", text, string(kind)); err != nil {
		return fmt.Errorf("emitting a change: %w", err)
	}
	return nil
}

// waitAgain is the pause between two looks of WaitFor.
const waitAgain = 5 * time.Millisecond

// WaitFor returns when db, which may be a copy, has the change of that version and
// epoch, as a notice tells them. It returns ctx's error if ctx ends first, and
// ErrEpoch if db has another epoch, or none: versions cannot be compared then. An
// empty epoch is any.
func WaitFor(ctx context.Context, db *sql.DB, epoch string, version uint64) error {
	again := time.NewTicker(waitAgain)
	defer again.Stop()
	for {
		var here string
		var last uint64
		err := db.QueryRowContext(ctx, place).Scan(&here, &last)
		switch {
		case ctx.Err() != nil:
			return fmt.Errorf("waiting for version %d: %w", version, ctx.Err())
		case err != nil && code(err) != busyCode:
			return fmt.Errorf("waiting for version %d: %w", version, explain(err))
		case err == nil && epoch != "" && here != epoch:
			return fmt.Errorf("waiting for version %d: %w: %q, and not %q", version, ErrEpoch, here, epoch)
		case err == nil && last >= version:
			return nil
		}
		select {
		case <-ctx.Done():
		case <-again.C:
		}
	}
}

// Remove takes out of db what a source installed. End the source first.
func Remove(ctx context.Context, db *sql.DB) error {
	tx, err := db.BeginTx(ctx, nil)
	if err != nil {
		return fmt.Errorf("removing triggers: %w", err)
	}
	defer func() { _ = tx.Rollback() }()
	s, err := look(ctx, tx, nil)
	if err != nil {
		return fmt.Errorf("removing triggers: %w", err)
	}
	var statements []string
	for name := range s.triggers {
		statements = append(statements, "DROP TRIGGER "+quoted(name))
	}
	statements = append(statements, "DROP TABLE IF EXISTS "+changesTable, "DROP TABLE IF EXISTS "+stateTable)
	for _, statement := range statements {
		if _, err := tx.ExecContext(ctx, statement); err != nil {
			return fmt.Errorf("removing triggers: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return fmt.Errorf("removing triggers: %w", err)
	}
	return nil
}
