package sqlite

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	driver "modernc.org/sqlite"

	"github.com/fleetbus/fleetbus/change"
)

const (
	defaultPoll  = 10 * time.Millisecond
	defaultBatch = 1000
	// busyFor is how long SQLite waits for a lock before the wait is reported, and
	// goes on.
	busyFor = time.Second
	// flushEvery and flushLate are the pauses between two times that the bus is
	// asked whether it has everything: while nothing waits to be read, and while
	// there is more. Asking ends the merging of the Publisher.
	flushEvery, flushLate = 200 * time.Millisecond, 5 * time.Second
	// flushFor bounds one such question.
	flushFor    = time.Second
	reportEvery = 500 * time.Millisecond
)

// Options say which database a source follows, and how. The zero value is right
// for all but Path.
type Options struct {
	// Path is the file. It must exist: the source makes no database.
	Path string
	// Tables are those to follow. Default: all.
	Tables []string
	// NoInstall makes the source install nothing. What is missing is then a
	// *change.SetupError of Run, with the statements.
	NoInstall bool
	// Poll is how often the source looks for commits. Default 10 ms.
	Poll time.Duration
	// Wake makes the source look at once. Optional; for programs that write
	// themselves.
	Wake <-chan struct{}
	// Batch is how many changes are read, and how many are deleted, at once. Default
	// 1000.
	Batch int
	// Logger is told of what was installed. Default: nobody is.
	Logger *slog.Logger
}

// A Source is the change.Source of a SQLite file. New makes one. Its Run must not
// be called twice at a time.
type Source struct {
	options Options
	log     *slog.Logger
}

// New returns a Source. It opens nothing.
func New(o Options) (*Source, error) {
	if o.Path == "" || strings.ContainsRune(o.Path, 0) {
		return nil, errors.New("following a SQLite database: its file is not named")
	}
	path, err := filepath.Abs(o.Path)
	if err != nil {
		return nil, fmt.Errorf("following SQLite database %q: %w", o.Path, err)
	}
	if slices.Contains(o.Tables, "") {
		return nil, fmt.Errorf("following SQLite database %q: a table has no name", o.Path)
	}
	if o.Poll < 0 || o.Batch < 0 {
		return nil, fmt.Errorf("following SQLite database %q: a poll interval and a batch are not negative", o.Path)
	}
	o.Path = path
	if o.Poll == 0 {
		o.Poll = defaultPoll
	}
	if o.Batch == 0 {
		o.Batch = defaultBatch
	}
	s := &Source{options: o, log: o.Logger}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	return s, nil
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
	return fmt.Errorf("following SQLite database %q: %w", s.options.Path, explain(err))
}

// dsn opens a file that exists. All of the path is escaped, so that none of it is
// an option.
func dsn(path string) string {
	path = filepath.ToSlash(path)
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	u := url.URL{Scheme: "file", Path: path, RawQuery: url.Values{
		"mode": {"rw"}, "_pragma": {"busy_timeout(" + strconv.FormatInt(busyFor.Milliseconds(), 10) + ")"},
	}.Encode()}
	return u.String()
}

// code is SQLite's primary result code of err, or 0.
func code(err error) int {
	var e *driver.Error
	if errors.As(err, &e) {
		return e.Code() & 0xff
	}
	return 0
}

// SQLite's result codes that are told apart.
const (
	busyCode, lockedCode                                = 5, 6
	readOnlyCode, corruptCode, fullCode, cannotOpenCode = 8, 11, 13, 14
	notDatabaseCode                                     = 26
	movedCode                                           = 1032 // with the secondary code
)

// errMoved says that the file that is open is not the one of that name.
var errMoved = errors.New("another file has taken its place")

// explain adds what to do to errors that SQLite words for programmers.
func explain(err error) error {
	var e *driver.Error
	if errors.As(err, &e) && e.Code() == movedCode {
		return fmt.Errorf("%w: %w", errMoved, err)
	}
	switch code(err) {
	case readOnlyCode:
		return fmt.Errorf("the database is read-only, and the source has to delete what it announced; let its user write the file and the directory: %w", err)
	case corruptCode:
		return fmt.Errorf("the database is damaged; restore it from a backup, or save what is left with sqlite3's .recover: %w", err)
	case notDatabaseCode:
		return fmt.Errorf("the file is no SQLite database, or is encrypted: %w", err)
	case fullCode:
		return fmt.Errorf("the disk is full: %w", err)
	case cannotOpenCode:
		return fmt.Errorf("the file cannot be opened; let the source's user write the file and the directory: %w", err)
	}
	return err
}
