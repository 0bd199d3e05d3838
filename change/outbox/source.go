package outbox

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/change"
)

const (
	defaultPoll  = 100 * time.Millisecond
	defaultBatch = 1000
	// mostRead is how many ids are kept until the bus has recorded their changes.
	mostRead = 50_000
	// flushFor bounds one wait for the bus, after which it is reported.
	flushFor    = time.Second
	reportEvery = 500 * time.Millisecond
)

// Options say which outbox a source reads, and how. DB and Table.Dialect are
// required.
type Options struct {
	// DB is the database, which stays the caller's. One connection is enough.
	DB *sql.DB
	// Table is the outbox.
	Table Table
	// Epoch names the history that the ids count; see change.Notice. Default: one
	// that is kept in the table.
	Epoch string
	// Poll is how often the source looks. Default 100 ms.
	Poll time.Duration
	// Wake makes the source look at once. Optional; for programs that know when
	// they have written.
	Wake <-chan struct{}
	// Batch is how many rows are read, and how many are deleted, at once. Default
	// 1000.
	Batch int
}

// A Source is the change.Source of an outbox. New makes one. Its Run must not be
// called twice at a time.
type Source struct {
	options Options
	table   Table
}

var epochShape = regexp.MustCompile(`^[A-Za-z0-9_:.-]{0,64}$`)

// New returns a Source. It asks nothing of the database.
func New(o Options) (*Source, error) {
	if o.DB == nil {
		return nil, errors.New("reading an outbox: its database is not given")
	}
	if err := o.Table.check(); err != nil {
		return nil, fmt.Errorf("reading an outbox: %w", err)
	}
	if !epochShape.MatchString(o.Epoch) {
		return nil, fmt.Errorf("reading outbox %q: an epoch has 64 bytes at most, of letters, digits and any of -_:. only", o.Table.name())
	}
	if o.Poll < 0 || o.Batch < 0 {
		return nil, fmt.Errorf("reading outbox %q: a poll interval and a batch are not negative", o.Table.name())
	}
	if o.Poll == 0 {
		o.Poll = defaultPoll
	}
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	return &Source{options: o, table: o.Table}, nil
}

// Run announces the changes to p until ctx is done. See change.Source.
func (s *Source) Run(ctx context.Context, p *change.Publisher) error {
	r := &run{Source: s, publisher: p}
	err := r.run(ctx)
	var setup *change.SetupError
	switch {
	case ctx.Err() != nil:
		return nil
	case errors.As(err, &setup):
		return setup
	}
	return fmt.Errorf("reading outbox %q: %w", s.table.name(), masked(err))
}

// secretShape is how connection strings, and what drivers make of them, have
// passwords.
var secretShape = regexp.MustCompile(`(?i)(://[^\s/@]*:)[^\s/]*@|\b((?:pass(?:word|wd)?|pwd)\s*[=:]\s*)('[^']*'|"[^"]*"|[^\s;&,)]+)|([\w.-]+:)[^\s@]+(@(?:tcp|unix)\()`)

// maskedError is an error without the passwords in its text.
type maskedError struct {
	text string
	err  error
}

func (e *maskedError) Error() string { return e.text }
func (e *maskedError) Unwrap() error { return e.err }

// masked is err, as it may be shown. Not all drivers keep the connection string
// out of their errors.
func masked(err error) error {
	text := secretShape.ReplaceAllStringFunc(err.Error(), func(found string) string {
		m := secretShape.FindStringSubmatch(found)
		switch {
		case m[1] != "":
			return m[1] + "***@"
		case m[2] != "":
			return m[2] + "***"
		}
		return m[4] + "***" + m[5]
	})
	if text == err.Error() {
		return err
	}
	return &maskedError{text, err}
}

// run is one call of Run.
type run struct {
	*Source
	publisher *change.Publisher

	epoch string
	mark  int64  // the id of the mark
	high  uint64 // the largest version that was announced
	kept  uint64 // the one that the mark has

	lag        time.Duration
	seen       time.Time
	retained   uint64
	unrecorded string // why the bus does not move
	unreadable string // what is wrong with a row
	reported   time.Time
}

func (r *run) run(ctx context.Context) error {
	if err := r.check(ctx); err != nil {
		return err
	}
	poll := time.NewTicker(r.options.Poll)
	defer poll.Stop()
	for {
		if err := r.begin(ctx); err != nil {
			return err
		}
		more, err := r.pass(ctx)
		if err != nil {
			return err
		}
		if time.Since(r.reported) >= reportEvery {
			r.report()
		}
		if more {
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

// check says what is missing.
func (r *run) check(ctx context.Context) error {
	query, args := r.table.exists()
	var n int
	if err := r.options.DB.QueryRowContext(ctx, query, args...).Scan(&n); err != nil {
		return err
	}
	if n == 0 {
		return &change.SetupError{Problem: fmt.Sprintf("there is no outbox %q", r.table.name()), Fix: r.table.Create()}
	}
	return nil
}

// begin reads the mark, or begins a new history.
func (r *run) begin(ctx context.Context) error {
	db := r.options.DB
	var epoch string
	err := db.QueryRowContext(ctx, r.table.sql("SELECT changed_key FROM %s WHERE id = ? AND kind = ?"), r.mark, markKind).Scan(&epoch)
	if err == nil && epoch == r.epoch {
		r.seen = time.Now()
		return nil
	}
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	var high int64
	err = db.QueryRowContext(ctx, r.table.sql("SELECT id, changed_key, at_ms FROM %s WHERE kind = ? ORDER BY id LIMIT 1"), markKind).Scan(&r.mark, &epoch, &high)
	if err != nil && !errors.Is(err, sql.ErrNoRows) {
		return err
	}
	r.seen = time.Now()
	there := err == nil
	if there && r.epoch == "" && (r.options.Epoch == "" || r.options.Epoch == epoch) {
		r.epoch, r.high, r.kept = epoch, uint64(max(0, high)), uint64(max(0, high))
		return nil
	}
	r.high, r.kept = 0, 0
	r.epoch = r.options.Epoch
	if r.epoch == "" {
		r.epoch = rand.Text()
	}
	if err := r.announce(change.Notice{Kind: change.Resync}); err != nil {
		return err
	}
	if err := r.flush(ctx); err != nil {
		return err
	}
	if there {
		_, err = db.ExecContext(ctx, r.table.sql("UPDATE %s SET changed_key = ?, at_ms = 0 WHERE id = ?"), r.epoch, r.mark)
		return err
	}
	if _, err := db.ExecContext(ctx, r.table.sql("INSERT INTO %s (changed_key, kind, at_ms) VALUES (?, ?, 0)"), r.epoch, markKind); err != nil {
		return err
	}
	return db.QueryRowContext(ctx, r.table.sql("SELECT id FROM %s WHERE kind = ? AND changed_key = ? ORDER BY id LIMIT 1"), markKind, r.epoch).Scan(&r.mark)
}

// pass announces the rows that are there, from the first, and deletes them. It
// reports whether there may be more.
func (r *run) pass(ctx context.Context) (more bool, err error) {
	var ids []int64
	after := int64(math.MinInt64)
	for more = true; more && len(ids) < mostRead; {
		rows, err := r.read(ctx, after)
		if err != nil {
			return false, err
		}
		for _, row := range rows {
			after = row.id
			if row.kind == markKind {
				continue
			}
			ids = append(ids, row.id)
			r.retained += uint64(len(row.key) + len(row.kind) + 16)
			if err := r.announce(r.notice(row)); err != nil {
				return false, err
			}
		}
		more = len(rows) == r.options.Batch
		if time.Since(r.reported) >= reportEvery {
			r.report()
		}
	}
	if len(ids) == 0 {
		return false, nil
	}
	if err := r.flush(ctx); err != nil {
		return false, err
	}
	for left := ids; len(left) > 0; {
		n := min(len(left), r.options.Batch, 500)
		if err := r.remove(ctx, left[:n]); err != nil {
			return false, err
		}
		left = left[n:]
	}
	r.retained = 0
	return more, nil
}

// written is a row of the outbox.
type written struct {
	id        int64
	key, kind string
	at        int64
}

func (r *run) read(ctx context.Context, after int64) ([]written, error) {
	rows, err := r.options.DB.QueryContext(ctx, r.table.sql("SELECT id, changed_key, kind, at_ms FROM %s WHERE id > ? ORDER BY id LIMIT "+strconv.Itoa(r.options.Batch)), after)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var batch []written
	for rows.Next() {
		var w written
		if err := rows.Scan(&w.id, &w.key, &w.kind, &w.at); err != nil {
			return nil, err
		}
		batch = append(batch, w)
	}
	r.seen = time.Now()
	return batch, rows.Err()
}

// notice of a row. One that cannot be read is a Resync of everything.
func (r *run) notice(w written) change.Notice {
	n := change.Notice{Kind: change.Kind(strings.TrimSpace(w.kind))}
	r.high = max(r.high, uint64(max(0, w.id)))
	if w.at > 0 {
		n.Time = time.UnixMilli(w.at)
		r.lag = max(0, time.Since(n.Time))
	}
	key, err := change.ParseKey(w.key)
	if err != nil {
		n.Kind = change.Resync
		r.unreadable = fmt.Sprintf("row %d had no key, so that everything has to be read again; write what change.Key.String gives", w.id)
	}
	n.Key = key
	return n
}

// announce widens what is refused.
func (r *run) announce(n change.Notice) error {
	n.Epoch, n.Version = r.epoch, r.high
	for {
		err := r.publisher.Announce(n)
		if !errors.Is(err, change.ErrInvalid) && !errors.Is(err, change.ErrSecret) || len(n.Key) == 0 && n.Kind == change.Resync {
			return err
		}
		n.Kind, n.Key = change.Resync, n.Key[:max(0, len(n.Key)-1)]
	}
}

// flush waits until the bus has recorded what was announced.
func (r *run) flush(ctx context.Context) error {
	for {
		bounded, cancel := context.WithTimeout(ctx, flushFor)
		err := r.publisher.Flush(bounded)
		late := bounded.Err() != nil
		cancel()
		if !late || ctx.Err() != nil {
			r.unrecorded = ""
			return err
		}
		r.unrecorded = "the bus does not record the changes; see whether the node reaches the others"
		r.report()
	}
}

// remove deletes exactly these rows. A largest version that was announced is kept
// before the row is gone.
func (r *run) remove(ctx context.Context, ids []int64) error {
	tx, err := r.options.DB.BeginTx(ctx, nil)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback() }()
	if r.kept != r.high {
		if _, err := tx.ExecContext(ctx, r.table.sql("UPDATE %s SET at_ms = ? WHERE id = ? AND kind = ?"), int64(r.high), r.mark, markKind); err != nil {
			return err
		}
	}
	args := make([]any, len(ids))
	for i, id := range ids {
		args[i] = id
	}
	list := strings.TrimSuffix(strings.Repeat("?,", len(ids)), ",")
	if _, err := tx.ExecContext(ctx, r.table.sql("DELETE FROM %s WHERE id IN ("+list+")"), args...); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return err
	}
	r.kept = r.high
	return nil
}

func (r *run) report() {
	r.reported = time.Now()
	var warnings []string
	for _, w := range []string{r.unrecorded, r.unreadable} {
		if w != "" {
			warnings = append(warnings, w)
		}
	}
	r.publisher.Report(change.Progress{
		Position: strconv.FormatUint(r.high, 10), Version: r.high, Epoch: r.epoch, Seen: r.seen, Lag: r.lag,
		Retained: r.retained, Warning: strings.Join(warnings, "; "),
	})
}
