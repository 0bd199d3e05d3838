package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"strings"
	"time"

	"github.com/google/uuid"
)

// A Queryer is a *sql.DB, a connection or a transaction of it.
type Queryer interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// waitStep bounds one question, so that the end of ctx is noticed without a broken
// connection.
const waitStep = 100 * time.Millisecond

// WaitFor returns when a read on q sees the change of that version: q may be a
// replica, which is then as new as the notice. Epoch is the notice's. It returns
// ctx's error if ctx ends first. On MariaDB the user needs no right for it, and on
// MySQL none either.
func WaitFor(ctx context.Context, q Queryer, epoch string, version uint64) error {
	there := onMySQL
	if _, err := uuid.Parse(epoch); err != nil {
		there = onMariaDB
	}
	for {
		ok, err := there(ctx, q, epoch, version)
		if ctx.Err() != nil {
			return fmt.Errorf("waiting for version %d of %q: %w", version, epoch, ctx.Err())
		}
		if err != nil {
			return fmt.Errorf("waiting for version %d of %q: %w", version, epoch, err)
		}
		if ok {
			return nil
		}
	}
}

func onMySQL(ctx context.Context, q Queryer, epoch string, version uint64) (bool, error) {
	var late int
	err := q.QueryRowContext(ctx, "SELECT WAIT_FOR_EXECUTED_GTID_SET(?, ?)", fmt.Sprintf("%s:%d", epoch, version), waitStep.Seconds()).Scan(&late)
	return late == 0, err
}

// onMariaDB looks first: the server waits for what it has from others only, and
// not for what it wrote itself.
func onMariaDB(ctx context.Context, q Queryer, epoch string, version uint64) (bool, error) {
	wanted, err := parseMariaDB(fmt.Sprintf("%s-%d", epoch, version))
	if err != nil {
		return false, err
	}
	var has string
	if err := q.QueryRowContext(ctx, "SELECT @@global.gtid_current_pos").Scan(&has); err != nil {
		return false, err
	}
	for one := range strings.SplitSeq(has, ",") {
		if g, err := parseMariaDB(one); err == nil && g.domain == wanted.domain && g.number >= wanted.number {
			return true, nil
		}
	}
	var late int
	err = q.QueryRowContext(ctx, "SELECT MASTER_GTID_WAIT(?, ?)", wanted.text(true), waitStep.Seconds()).Scan(&late)
	return late == 0, err
}
