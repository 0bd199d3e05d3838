// Package sqlite is a change.Source for a SQLite database: it tells of rows that
// any process changes in the file.
//
// SQLite tells a connection only of its own changes. So the Source adds triggers
// to the tables, which write the primary key of each changed row to the table
// fleetbus_changes in the same transaction, and reads that table whenever the
// file has changed. A row stays there until its notice is recorded: what happens
// while no Source runs is announced by the next one.
//
// The Source needs the right to write the file, and the version of SQLite that
// writes it has to be 3.8 or newer. A change adds about 60 bytes and one row to
// its transaction.
package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver

	"github.com/fleetbus/fleetbus/change"
)

const (
	defaultPoll = 10 * time.Millisecond
	// batch is how many rows are read at once.
	batch = 1000
	// tidy is how often what was announced is recorded and removed, the schema is
	// looked at, and progress is reported.
	tidy = time.Second
	// busy is how long another writer is waited for.
	busy = 5 * time.Second
)

// Options say which database a Source reads.
type Options struct {
	// Path of the database file, which has to exist.
	Path string
	// Tables to tell of. Empty: all.
	Tables []string
	// Poll is how often the Source looks whether the file has changed. Default
	// 10 ms; a look takes microseconds.
	Poll time.Duration
	// NoInstall has the Source refuse a database without its tables and triggers,
	// with the statements that add them, in place of adding them.
	NoInstall bool
}

// A Source tells of the changes of one database file. New makes one.
type Source struct{ options Options }

// New returns a Source of o's database. It opens nothing.
func New(o Options) (*Source, error) {
	if o.Path == "" || strings.ContainsRune(o.Path, 0) {
		return nil, errors.New("reading a SQLite database: its path is missing")
	}
	if o.Poll <= 0 {
		o.Poll = defaultPoll
	}
	return &Source{options: o}, nil
}

// dsn opens the file as it is, and waits for other writers.
func dsn(path string) string {
	q := url.Values{"mode": {"rw"}, "_txlock": {"immediate"}, "_pragma": {fmt.Sprintf("busy_timeout(%d)", busy.Milliseconds())}}
	return (&url.URL{Scheme: "file", Opaque: (&url.URL{Path: path}).EscapedPath(), RawQuery: q.Encode()}).String()
}

// Run is change.Source's. The first thing it announces is a Resync, because the
// file may be another one than before.
func (s *Source) Run(ctx context.Context, p *change.Publisher) error {
	if err := s.run(ctx, p); err != nil && ctx.Err() == nil {
		return fmt.Errorf("reading SQLite database %q: %w", s.options.Path, err)
	}
	return nil
}

func (s *Source) run(ctx context.Context, p *change.Publisher) error {
	file, err := os.Stat(s.options.Path)
	if err != nil {
		return err
	}
	db, err := sql.Open("sqlite", dsn(s.options.Path))
	if err != nil {
		return err
	}
	defer db.Close()
	// What a connection is told of the others is told to this one alone.
	conn, err := db.Conn(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	r := &reader{options: s.options, conn: conn, publisher: p, file: file}
	return r.run(ctx)
}

// reader is one Run.
type reader struct {
	options   Options
	conn      *sql.Conn
	publisher *change.Publisher
	file      os.FileInfo

	epoch    string
	schema   int64
	tables   map[string]table
	last     uint64 // announced
	recorded uint64 // and removed
	progress change.Progress
}

func (r *reader) run(ctx context.Context) error {
	if err := r.install(ctx); err != nil {
		return err
	}
	if err := r.resync(nil); err != nil {
		return err
	}
	poll := time.NewTicker(r.options.Poll)
	defer poll.Stop()
	version, tidied := int64(-1), time.Time{}
	for {
		if time.Since(tidied) >= tidy {
			if err := r.tidy(ctx); err != nil {
				return err
			}
			tidied = time.Now()
		}
		now, err := r.pragma(ctx, "data_version")
		if err != nil {
			return err
		}
		if now != version {
			if err := r.read(ctx); err != nil {
				return err
			}
			version = now
		}
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		}
	}
}

func (r *reader) pragma(ctx context.Context, name string) (n int64, err error) {
	err = r.conn.QueryRowContext(ctx, "PRAGMA "+name).Scan(&n)
	return n, err
}

// read announces everything that was not announced yet, a batch at a time.
func (r *reader) read(ctx context.Context) error {
	for n := batch; n == batch; {
		rows, err := r.conn.QueryContext(ctx, "SELECT id, tbl, key, kind, at FROM fleetbus_changes WHERE id > ? ORDER BY id LIMIT ?", r.last, batch)
		if err != nil {
			return err
		}
		n, err = r.announce(rows)
		if err := errors.Join(err, rows.Err(), rows.Close()); err != nil {
			return err
		}
		if n == batch {
			if err := r.remove(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reader) announce(rows *sql.Rows) (n int, err error) {
	for rows.Next() {
		var id uint64
		var at float64
		var tbl, text, kind string
		if err := rows.Scan(&id, &tbl, &text, &kind, &at); err != nil {
			return n, err
		}
		notice := change.Notice{Kind: change.Kind(kind), Version: id, Epoch: r.epoch, Time: julian(at)}
		if notice.Key, err = parseKey(tbl, text); err != nil {
			notice.Key, notice.Kind = change.Key{tbl}, change.Resync
		}
		err := r.publisher.Announce(notice)
		if errors.Is(err, change.ErrInvalid) || errors.Is(err, change.ErrSecret) {
			// Somebody wrote the row by hand; something changed.
			notice.Kind, notice.Key = change.Resync, nil
			err = r.publisher.Announce(notice)
		}
		if err != nil {
			return n, err
		}
		r.last = id
		r.progress.Version, r.progress.Lag = id, time.Since(notice.Time)
		n++
	}
	return n, nil
}

// remove deletes from the database what was announced, when it is recorded.
func (r *reader) remove(ctx context.Context) error {
	if r.last == r.recorded {
		return nil
	}
	if err := r.publisher.Flush(ctx); err != nil {
		return err
	}
	if _, err := r.conn.ExecContext(ctx, "DELETE FROM fleetbus_changes WHERE id <= ?", r.last); err != nil {
		return err
	}
	r.recorded = r.last
	return nil
}

// tidy is what is done now and then.
func (r *reader) tidy(ctx context.Context) error {
	now, err := os.Stat(r.options.Path)
	if err != nil {
		return err
	}
	if !os.SameFile(now, r.file) {
		return errors.New("the file was replaced by another")
	}
	if err := r.remove(ctx); err != nil {
		return err
	}
	schema, err := r.pragma(ctx, "schema_version")
	if err != nil {
		return err
	}
	if schema != r.schema {
		if err := r.install(ctx); err != nil {
			return err
		}
	}
	r.progress.Position, r.progress.Epoch, r.progress.Seen = strconv.FormatUint(r.last, 10), r.epoch, time.Now()
	r.publisher.Report(r.progress)
	return nil
}

func (r *reader) resync(key change.Key) error {
	return r.publisher.Announce(change.Notice{Kind: change.Resync, Key: key, Version: r.last, Epoch: r.epoch})
}

// julian is the time of a Julian day.
func julian(day float64) time.Time {
	const unix = 2440587.5 // the day of 1970-01-01T00:00Z
	if math.IsNaN(day) || day < unix || day > unix+1e6 {
		return time.Now()
	}
	return time.UnixMilli(int64((day - unix) * 86400_000)).UTC()
}

// parseKey reads what a trigger, or Emit, wrote: the values of the primary key,
// each as a letter for its type and its text, joined by commas.
func parseKey(tbl, text string) (change.Key, error) {
	if rest, ok := strings.CutPrefix(text, "="); ok {
		return change.ParseKey(rest)
	}
	key := change.Key{tbl}
	for value := range strings.SplitSeq(text, ",") {
		if value == "" {
			return nil, errors.New("a key without a value")
		}
		switch kind, rest := value[0], value[1:]; kind {
		case 'n':
			key = append(key, "")
		case 'v':
			key = append(key, rest)
		case 'h':
			raw, err := hex.DecodeString(rest)
			if err != nil {
				return nil, err
			}
			key = append(key, string(raw))
		default:
			return nil, errors.New("a key of unknown form")
		}
	}
	return key, nil
}

// An Execer is a transaction of database/sql, or a connection.
type Execer interface {
	ExecContext(ctx context.Context, query string, args ...any) (sql.Result, error)
}

// Emit announces a change of key in tx: if tx commits, the change is announced,
// and else it is not. A Source has to have run once on the database.
func Emit(ctx context.Context, tx Execer, key change.Key, kind change.Kind) error {
	if _, err := tx.ExecContext(ctx, "INSERT INTO fleetbus_changes (tbl, key, kind) VALUES ('', ?, ?)", "="+key.String(), string(kind)); err != nil {
		return fmt.Errorf("emitting a change: %w", err)
	}
	return nil
}

// WaitFor returns when db has the change of that version. A SQLite database is
// its own replica, so that it has, unless db is a copy of the file that is
// refreshed from time to time. It returns ctx's error if ctx ends first.
func WaitFor(ctx context.Context, db *sql.DB, epoch string, version uint64) error {
	tick := time.NewTicker(defaultPoll)
	defer tick.Stop()
	for {
		var is string
		var seq uint64
		err := db.QueryRowContext(ctx, "SELECT e.epoch, coalesce(s.seq, 0) FROM fleetbus_epoch e LEFT JOIN sqlite_sequence s ON s.name = 'fleetbus_changes'").Scan(&is, &seq)
		if err != nil {
			return fmt.Errorf("waiting for version %d: %w", version, err)
		}
		if is == epoch && seq >= version {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for version %d, at %d: %w", version, seq, ctx.Err())
		case <-tick.C:
		}
	}
}

func newEpoch() string { return strings.ToLower(rand.Text()[:12]) }
