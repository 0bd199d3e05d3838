package sqlite

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/change"
)

// run is one call of Run.
type run struct {
	*Source
	publisher *change.Publisher
	conn      *sql.Conn
	info      os.FileInfo // of the file that is open
	encoding  string

	schema  int64
	epoch   string
	shapes  map[string]string // what fleetbus_state is to have when the resyncs are safe
	setting bool              // whether it has not yet
	data    int64             // the data_version until which all was read
	more    bool              // there may be more to read

	seq     uint64 // the last number that was given
	last    uint64 // the last that was announced
	safe    uint64 // the last that the bus has recorded
	deleted uint64 // the last that is deleted

	announced bool // something was, since the last flush
	flushed   time.Time

	rowSize    int64 // of the last change
	lag        time.Duration
	seen       time.Time
	warnings   []string // about the schema
	busy       string   // why the database does not move
	unrecorded string   // why the bus does not
	reported   time.Time
}

func (r *run) run(ctx context.Context) error {
	var err error
	if r.info, err = os.Stat(r.options.Path); err != nil {
		return fmt.Errorf("looking for the file: %w", err)
	}
	if r.info.IsDir() {
		return errors.New("it is a directory")
	}
	db, err := sql.Open("sqlite", dsn(r.options.Path))
	if err != nil {
		return err
	}
	defer db.Close()
	if err := r.patiently(ctx, func() error {
		r.conn, err = db.Conn(ctx)
		return err
	}); err != nil {
		return err
	}
	defer r.conn.Close()
	if err := r.prepare(ctx); err != nil {
		return err
	}
	poll := time.NewTicker(r.options.Poll)
	defer poll.Stop()
	for {
		if err := r.step(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		if r.more {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-poll.C:
		case <-r.options.Wake:
		}
	}
}

// step reads a batch, and does what is due.
func (r *run) step(ctx context.Context) error {
	// SQLite holds the old file open, and would never tell.
	if info, err := os.Stat(r.options.Path); err != nil {
		return fmt.Errorf("looking for the file: %w", err)
	} else if !os.SameFile(info, r.info) {
		return errMoved
	}
	if err := r.read(ctx); err != nil {
		return err
	}
	pause := flushEvery
	if r.more {
		pause = flushLate
	}
	if (r.announced || r.setting) && time.Since(r.flushed) >= pause {
		if err := r.flush(ctx); err != nil {
			return err
		}
	}
	if err := r.clean(ctx); err != nil {
		return err
	}
	if time.Since(r.reported) >= reportEvery {
		r.report()
	}
	return nil
}

// patiently does what may find the database locked, until it is not.
func (r *run) patiently(ctx context.Context, do func() error) error {
	for {
		err := do()
		if c := code(err); c != busyCode && c != lockedCode || ctx.Err() != nil {
			r.busy = ""
			return err
		}
		// SQLite has waited for busyFor already, but for deadlocks.
		if r.busy == "" {
			r.busy = "another program has locked the database since " + time.Now().UTC().Format(time.RFC3339) + "; end its transaction"
		}
		r.report()
		select {
		case <-ctx.Done():
			return err
		case <-time.After(r.options.Poll):
		}
	}
}

// transact runs do, which may run again, in a transaction.
func (r *run) transact(ctx context.Context, begin string, do func() error) error {
	return r.patiently(ctx, func() error {
		if _, err := r.conn.ExecContext(ctx, begin); err != nil {
			return err
		}
		err := do()
		if err == nil {
			_, err = r.conn.ExecContext(ctx, "COMMIT")
		}
		if err != nil {
			// After some errors SQLite has done so itself.
			_, _ = r.conn.ExecContext(context.WithoutCancel(ctx), "ROLLBACK")
		}
		return err
	})
}

// prepare makes the database as it should be, and announces what may have changed
// unseen.
func (r *run) prepare(ctx context.Context) error {
	if err := r.patiently(ctx, func() error { return r.settings(ctx) }); err != nil {
		return err
	}
	var s *survey
	var f *found
	err := r.transact(ctx, "BEGIN IMMEDIATE", func() (err error) {
		if s, err = look(ctx, r.conn, r.options.Tables); err != nil {
			return err
		}
		if r.options.NoInstall && len(s.missing) > 0 {
			return &change.SetupError{
				Problem: fmt.Sprintf("SQLite database %q lacks what writes its changes down", r.options.Path),
				Fix:     "BEGIN IMMEDIATE;\n" + strings.Join(s.missing, ";\n") + ";\nCOMMIT;",
			}
		}
		f, err = r.install(ctx, s)
		return err
	})
	if err != nil {
		return err
	}
	if len(s.missing) > 0 {
		r.log.Info("triggers are installed", "path", r.options.Path, "statements", len(s.missing))
	}
	if f.epoch != r.epoch {
		r.last, r.safe = 0, 0
	}
	r.schema, r.epoch, r.seq, r.warnings = s.schema, f.epoch, f.seq, s.warnings
	r.shapes, r.setting = f.shapes, len(f.resyncs) > 0
	r.deleted = f.first - 1
	r.last, r.safe = max(r.last, r.deleted), max(r.safe, r.deleted)
	r.data, r.more = 0, true
	for _, key := range f.resyncs {
		if err := r.announce(change.Notice{Key: key, Kind: change.Resync, Version: f.seq}); err != nil {
			return err
		}
	}
	return nil
}

// settings reads and makes those of the connection.
func (r *run) settings(ctx context.Context) error {
	if err := r.conn.QueryRowContext(ctx, "PRAGMA encoding").Scan(&r.encoding); err != nil {
		return err
	}
	var journal string
	if err := r.conn.QueryRowContext(ctx, "PRAGMA journal_mode").Scan(&journal); err != nil {
		return err
	}
	if journal != "wal" {
		return nil
	}
	// A deletion that a power cut undoes is made again. In the other modes this
	// would risk the database.
	_, err := r.conn.ExecContext(ctx, "PRAGMA synchronous = NORMAL")
	return err
}

// found is what install found.
type found struct {
	epoch      string
	resyncs    []change.Key
	shapes     map[string]string // for fleetbus_state
	seq, first uint64            // the last number that was given, and the first that is there
}

// install makes the database as s says, in a transaction. What has to be announced
// because of it the database knows until it is safe: from a shape that is not the
// table's, or from the lack of the file's.
func (r *run) install(ctx context.Context, s *survey) (*found, error) {
	for _, statement := range s.missing {
		if _, err := r.conn.ExecContext(ctx, statement); err != nil {
			return nil, fmt.Errorf("installing triggers: %w", err)
		}
	}
	f := &found{epoch: s.state[stateEpoch]}
	if err := r.conn.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&s.schema); err != nil {
		return nil, err
	}
	if err := r.conn.QueryRowContext(ctx, `SELECT coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'fleetbus_changes'), 0),
		coalesce((SELECT min(id) FROM fleetbus_changes), 0)`).Scan(&f.seq, &f.first); err != nil {
		return nil, err
	}
	if f.first == 0 {
		f.first = f.seq + 1
	}
	f.shapes = s.shapes()
	f.shapes[stateFile] = fileID(r.options.Path)
	file, safe := s.state[stateFile]
	if s.bare || f.epoch == "" || r.epoch != "" && r.epoch != f.epoch || f.seq < r.last || safe && file != f.shapes[stateFile] {
		f.epoch, safe = rand.Text(), false
		if _, err := r.conn.ExecContext(ctx, "DELETE FROM fleetbus_state"); err != nil {
			return nil, err
		}
		if _, err := r.conn.ExecContext(ctx, "INSERT INTO fleetbus_state(name, value) VALUES (?, ?)", stateEpoch, f.epoch); err != nil {
			return nil, err
		}
	}
	if !safe {
		f.resyncs = []change.Key{nil}
		return f, nil
	}
	for name, shape := range f.shapes {
		table, ok := strings.CutPrefix(name, statePrefix)
		if !ok || s.state[name] == shape && !s.stale[table] {
			continue
		}
		f.resyncs = append(f.resyncs, change.Key{table})
		if _, err := r.conn.ExecContext(ctx, "INSERT OR REPLACE INTO fleetbus_state(name, value) VALUES (?, '')", name); err != nil {
			return nil, err
		}
	}
	for name := range s.state {
		if table, ok := strings.CutPrefix(name, statePrefix); ok && f.shapes[name] == "" {
			f.resyncs = append(f.resyncs, change.Key{table})
		}
	}
	return f, nil
}

// noted is a row of fleetbus_changes.
type noted struct {
	id               uint64
	table, key, kind string
	at               int64 // in milliseconds
}

// read announces the next rows, if there are any.
func (r *run) read(ctx context.Context) error {
	var data int64
	if err := r.patiently(ctx, func() error {
		return r.conn.QueryRowContext(ctx, "PRAGMA data_version").Scan(&data)
	}); err != nil {
		return err
	}
	r.seen = time.Now()
	if data == r.data && !r.more {
		return nil
	}
	var rows []noted
	anew := false
	if err := r.transact(ctx, "BEGIN", func() (err error) {
		rows, anew, err = r.next(ctx)
		return err
	}); err != nil {
		return err
	}
	if anew {
		return r.prepare(ctx)
	}
	for _, row := range rows {
		if err := r.announce(r.notice(row)); err != nil {
			return err
		}
		r.last = row.id
		r.lag = max(0, time.Since(time.UnixMilli(row.at)))
	}
	r.data, r.more = data, len(rows) == r.options.Batch
	return nil
}

// next reads a batch in a transaction, or says that the database is not what it
// was.
func (r *run) next(ctx context.Context) (batch []noted, anew bool, err error) {
	var schema int64
	if err := r.conn.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&schema); err != nil || schema != r.schema {
		return nil, true, err
	}
	var epoch string
	if err := r.conn.QueryRowContext(ctx, place).Scan(&epoch, &r.seq); err != nil || epoch != r.epoch || r.seq < r.last {
		return nil, true, err
	}
	if r.seq == r.last {
		return nil, false, nil
	}
	err = each(ctx, r.conn, func(rows *sql.Rows) error {
		var n noted
		err := rows.Scan(&n.id, &n.table, &n.key, &n.kind, &n.at)
		batch = append(batch, n)
		return err
	}, "SELECT id, tbl, key, kind, at FROM fleetbus_changes WHERE id > ? ORDER BY id LIMIT ?", int64(r.last), r.options.Batch)
	return batch, false, err
}

// place asks for the epoch and the last number that was given.
const place = `SELECT coalesce((SELECT value FROM fleetbus_state WHERE name = 'epoch'), ''),
	coalesce((SELECT seq FROM sqlite_sequence WHERE name = 'fleetbus_changes'), 0)`

// notice of a row. One that cannot be read is a Resync.
func (r *run) notice(row noted) change.Notice {
	r.rowSize = int64(len(row.table) + len(row.key) + len(row.kind) + 16)
	n := change.Notice{Kind: change.Kind(row.kind), Version: row.id, Time: time.UnixMilli(row.at)}
	key, ok := decodeKey(row.table, row.key, r.encoding)
	if !ok {
		n.Kind = change.Resync
		if row.table != "" {
			key = change.Key{row.table}
		}
	}
	n.Key = key
	return n
}

// announce widens what is refused, as a row that somebody wrote by hand may be.
func (r *run) announce(n change.Notice) error {
	n.Epoch = r.epoch
	r.announced = true
	for {
		err := r.publisher.Announce(n)
		if !errors.Is(err, change.ErrInvalid) && !errors.Is(err, change.ErrSecret) || len(n.Key) == 0 && n.Kind == change.Resync {
			return err
		}
		n.Kind, n.Key = change.Resync, n.Key[:max(0, len(n.Key)-1)]
	}
}

// flush waits until the bus has recorded what was announced, but not for long.
func (r *run) flush(ctx context.Context) error {
	bounded, cancel := context.WithTimeout(ctx, flushFor)
	defer cancel()
	r.flushed = time.Now()
	err := r.publisher.Flush(bounded)
	if bounded.Err() != nil {
		// The rows stay. The publisher merges what it holds.
		r.unrecorded = "the bus does not record the changes; see whether the node reaches the others"
		return nil
	}
	if err != nil {
		return err
	}
	r.unrecorded, r.announced, r.safe = "", false, r.last
	if !r.setting {
		return nil
	}
	err = r.transact(ctx, "BEGIN IMMEDIATE", func() error {
		if _, err := r.conn.ExecContext(ctx, "DELETE FROM fleetbus_state WHERE name <> ?", stateEpoch); err != nil {
			return err
		}
		for name, shape := range r.shapes {
			if _, err := r.conn.ExecContext(ctx, "INSERT INTO fleetbus_state(name, value) VALUES (?, ?)", name, shape); err != nil {
				return err
			}
		}
		return nil
	})
	r.setting = err != nil
	return err
}

// clean deletes a batch of what is safe.
func (r *run) clean(ctx context.Context) error {
	if r.deleted >= r.safe || r.more {
		return nil
	}
	var done bool
	if err := r.patiently(ctx, func() error {
		result, err := r.conn.ExecContext(ctx, "DELETE FROM fleetbus_changes WHERE id IN (SELECT id FROM fleetbus_changes WHERE id <= ? ORDER BY id LIMIT ?)",
			int64(r.safe), r.options.Batch)
		if err != nil {
			return err
		}
		n, err := result.RowsAffected()
		done = n < int64(r.options.Batch)
		return err
	}); err != nil {
		return err
	}
	r.deleted += uint64(r.options.Batch)
	if done || r.deleted > r.safe {
		r.deleted = r.safe
	}
	return nil
}

func (r *run) report() {
	r.reported = time.Now()
	warnings := r.warnings
	for _, w := range []string{r.unrecorded, r.busy} {
		if w != "" {
			warnings = append([]string{w}, warnings...)
		}
	}
	r.publisher.Report(change.Progress{
		Position: strconv.FormatUint(r.last, 10), Version: r.last, Epoch: r.epoch, Seen: r.seen, Lag: r.lag,
		Retained: (r.seq - min(r.seq, r.deleted)) * uint64(r.rowSize), Warning: strings.Join(warnings, "; "),
	})
}
