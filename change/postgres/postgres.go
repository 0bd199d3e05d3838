// Package postgres is a change.Source for PostgreSQL: it tells of committed
// changes from the write-ahead log, and costs writers nothing but the log that
// they write anyway.
//
// The server needs wal_level = logical. The user needs the attribute REPLICATION,
// and must own the tables, or somebody else has to make the publication. What is
// missing is said in a change.SetupError, with the statements that add it.
//
// By default the Source has a temporary replication slot: the server keeps
// nothing for it while it is away, and it begins with a Resync. With a permanent
// one, see Options.Slot, it goes on where it was, and the server keeps its log
// until then.
//
// LISTEN and NOTIFY are not used: a NOTIFY takes a lock at commit that makes all
// writers of a database wait for each other.
package postgres

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fleetbus/fleetbus/change"
)

// MessagePrefix is the prefix of the logical messages that a Source announces.
// The content of such a message is the kind of the change, a space, and the text
// of the key.
const MessagePrefix = "fleetbus"

// Options say which database a Source reads.
type Options struct {
	// DSN is a connection string of PostgreSQL, as a URL or as keywords.
	DSN string
	// Tables to tell of, with their schema if it is not "public". Empty: all that
	// have a primary key or a replica identity, also those that come later. The rows
	// of a partition are told of as those of its table.
	Tables []string
	// Publication that names the tables to the server. Default: one of a name made
	// from Tables, which the Source makes and keeps up to date.
	Publication string
	// Slot is the name of a permanent replication slot. The server keeps its log
	// for it while the Source is away, until the disk is full if
	// max_slot_wal_keep_size sets no limit. The Source notes in a comment on the
	// publication with which tables it read the slot, because the log does not say
	// that one was dropped; if the tables are others at the next start, or its user
	// does not own the publication, it begins with a Resync. Empty: a temporary slot.
	Slot string
	// NoInstall has the Source refuse a database without the publication, with the
	// statements that make it, in place of making it.
	NoInstall bool
}

// A Source tells of the changes of one database. New makes one.
type Source struct {
	options Options
	config  *pgconn.Config
	pace    pace
}

// New returns a Source of o's database. It connects nothing.
func New(o Options) (*Source, error) {
	config, err := pgconn.ParseConfig(o.DSN)
	if err != nil || o.DSN == "" {
		// The driver's error may hold a part of the password.
		return nil, errors.New("reading the connection string of a PostgreSQL database: it is neither a postgres:// URL nor keywords such as host=db dbname=orders")
	}
	if strings.Trim(o.Slot, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" || len(o.Slot) > 63 {
		return nil, fmt.Errorf("reading a PostgreSQL database: slot %q has other characters than a to z, 0 to 9 and _, or more than 63", o.Slot)
	}
	o.Tables = slices.Clone(o.Tables)
	slices.Sort(o.Tables)
	if o.Publication == "" {
		o.Publication = "fleetbus"
		if len(o.Tables) > 0 {
			sum := sha256.Sum256([]byte(strings.Join(o.Tables, "\n")))
			o.Publication += "_" + hex.EncodeToString(sum[:4])
		}
	}
	return &Source{options: o, config: config, pace: pace{statusEvery, checkEvery}}, nil
}

// Run is change.Source's.
func (s *Source) Run(ctx context.Context, p *change.Publisher) error {
	err := s.run(ctx, p)
	if ctx.Err() != nil || err == nil {
		return nil
	}
	return fmt.Errorf("reading PostgreSQL database %q on %s: %w", s.config.Database, s.config.Host, err)
}

func (s *Source) run(ctx context.Context, p *change.Publisher) error {
	sql, err := pgconn.ConnectConfig(ctx, s.config)
	if err != nil {
		return connecting(err)
	}
	defer closeConn(ctx, sql.Close)
	config := s.config.Copy()
	config.RuntimeParams["replication"] = "database"
	set := &setup{options: s.options, conn: session{sql}}
	if err := set.check(ctx); err != nil {
		return err
	}
	replication, err := pgconn.ConnectConfig(ctx, config)
	if err != nil {
		return set.noSender(ctx, err)
	}
	defer closeConn(ctx, replication.Close)
	r := &reader{options: s.options, pace: s.pace, setup: set, conn: replication, publisher: p, relations: map[uint32]*relation{}}
	return r.run(ctx)
}

// closeConn gives the server a moment to end a session, and its slot with it.
func closeConn(ctx context.Context, end func(context.Context) error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_ = end(ctx)
}

// connecting is why there is no connection, without what the driver adds of the
// connection string.
func connecting(err error) error {
	var refused *pgconn.PgError
	if errors.As(err, &refused) {
		return fmt.Errorf("connecting: %s (%s)", refused.Message, refused.Code)
	}
	for inner := err; inner != nil; inner = errors.Unwrap(inner) {
		err = inner
	}
	return fmt.Errorf("connecting: %w", err)
}

// An Execer is a transaction of pgx, or a connection.
type Execer interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}

// Emit announces a change of key in tx: if tx commits, the change is announced,
// and else it is not. It writes a message to the log, and no table.
func Emit(ctx context.Context, tx Execer, key change.Key, kind change.Kind) error {
	if _, err := tx.Exec(ctx, "SELECT pg_logical_emit_message(true, $1, $2::text)", MessagePrefix, string(kind)+" "+key.String()); err != nil {
		return fmt.Errorf("emitting a change: %w", err)
	}
	return nil
}

// A Queryer is a connection of pgx, a pool or a transaction.
type Queryer interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// maxWait is the longest pause between two looks of WaitFor.
const maxWait = 50 * time.Millisecond

// ErrEpoch says that a version is of another history than the database's.
var ErrEpoch = errors.New("the database has another history")

// place is where a database stands: its system, the newest timeline that it knows
// of, its position, and whether it is a replica.
const place = `SELECT (SELECT system_identifier::text FROM pg_control_system()),
	CASE WHEN pg_is_in_recovery() THEN (SELECT timeline_id FROM pg_control_checkpoint())
		ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END,
	(CASE WHEN pg_is_in_recovery() THEN coalesce(pg_last_wal_replay_lsn(), '0/0') ELSE pg_current_wal_lsn() END - '0/0'::pg_lsn)::text,
	pg_is_in_recovery()`

// WaitFor returns when a read on q sees the change of that version and epoch, as a
// notice tells them: q may be a replica, which is then as new as the notice. It
// returns ctx's error if ctx ends first, and ErrEpoch if q is of another system or
// went over to a later history, as after a fail-over: versions cannot be compared
// then. An empty epoch is any.
func WaitFor(ctx context.Context, q Queryer, epoch string, version uint64) error {
	for wait := time.Millisecond; ; wait = min(2*wait, maxWait) {
		var system, text string
		var timeline int
		var replica bool
		if err := q.QueryRow(ctx, place).Scan(&system, &timeline, &text, &replica); err != nil {
			return fmt.Errorf("waiting for version %d: %w", version, err)
		}
		at, err := strconv.ParseUint(text, 10, 64)
		if err != nil {
			return fmt.Errorf("waiting for version %d: reading position %q: %w", version, text, err)
		}
		here := epochOf(system, timeline)
		if epoch != "" && here != epoch {
			// A replica may yet have to hear of the timeline.
			wanted, number, _ := strings.Cut(epoch, ".")
			if later, err := strconv.Atoi(number); err != nil || wanted != system || timeline > later || !replica {
				return fmt.Errorf("waiting for version %d: %w: %q, and not %q", version, ErrEpoch, here, epoch)
			}
		}
		// The version is where the record of the commit begins.
		if at > version {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for version %d, at %s: %w", version, text, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// epochOf names the history of a system on a timeline.
func epochOf(system string, timeline int) string { return fmt.Sprintf("%s.%d", system, timeline) }
