package postgres

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fleetbus/fleetbus/change"
)

// lockTimeout is how long a statement waits for a table that somebody has locked.
const lockTimeout = "200ms"

// The codes of errors that are told apart.
const (
	refusedCode      = "42501"
	lockedCode       = "55P03"
	missingCode      = "42704"
	noSlotCode       = "53400"
	noConnectionCode = "53300"
)

func code(err error) string {
	var e *pgconn.PgError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// setup is what the database has to have for a Source, over an ordinary
// connection.
type setup struct {
	options Options
	role    string
	// mu guards conn while the log is read.
	mu   sync.Mutex
	conn session
	// publication and published are what check and publish found last, and keyless
	// and locked the tables that are left out: without a primary key, and locked
	// when they should have been added.
	publication publication
	published   map[uint32]table
	keyless     []string
	locked      string
	// late are those of which a transaction that has not ended yet may change
	// something that the server does not tell.
	late map[string]late
}

// publication is the server's.
type publication struct {
	exists, all bool
	// version is another when the publication is, or what it leaves out.
	version string
	// comment has the marks of slots: see mark.
	comment string
}

// table is a published table. A partition is not one, but its table is.
type table struct {
	name string
	// shape is another when the values of all its rows may be, which the log does
	// not tell: columns, partitions, files.
	shape string
}

// late is a key, and the transaction with which those end that may concern it.
type late struct {
	key   change.Key
	until uint64
}

// check refuses a database that lacks something, and makes the publication.
func (s *setup) check(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, silent)
	defer cancel()
	if err := s.conn.exec(ctx, "SET lock_timeout = '"+lockTimeout+"'"); err != nil {
		return fmt.Errorf("looking at the server's settings: %w", err)
	}
	var level string
	var replica, may bool
	var slots, used int
	err := s.conn.row(ctx, `SELECT pg_is_in_recovery(), current_setting('wal_level'), current_user, (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
		current_setting('max_replication_slots')::int, (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1)`, []string{s.options.Slot},
		&replica, &level, &s.role, &may, &slots, &used)
	if err != nil {
		return fmt.Errorf("looking at the server's settings: %w", err)
	}
	switch {
	case replica:
		return errors.New("it is a replica; fix: name the primary, or all servers and target_session_attrs=read-write")
	case level != "logical":
		return &change.SetupError{Problem: "wal_level is " + level, Fix: "ALTER SYSTEM SET wal_level = logical; and restart the server"}
	case !may:
		return &change.SetupError{Problem: fmt.Sprintf("user %q may not replicate", s.role), Fix: "ALTER ROLE " + quote(s.role) + " REPLICATION;"}
	case used >= slots:
		return noSlot(slots)
	}
	_, err = s.publish(ctx)
	return err
}

func noSlot(slots int) error {
	return &change.SetupError{Problem: fmt.Sprintf("all %d replication slots are in use", slots),
		Fix: fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %d; and restart the server, or drop a slot of pg_replication_slots that nobody reads", slots+10)}
}

// noSender is err, or that no further session may replicate.
func (s *setup) noSender(ctx context.Context, err error) error {
	var senders int
	if code(err) != noConnectionCode || s.conn.row(ctx, "SELECT current_setting('max_wal_senders')", nil, &senders) != nil {
		return connecting(err)
	}
	return &change.SetupError{Problem: fmt.Sprintf("all %d WAL senders are in use, or all connections", senders),
		Fix: fmt.Sprintf("ALTER SYSTEM SET max_wal_senders = %d; and restart the server", senders+10)}
}

// publish brings the publication up to date, and returns what may have changed
// since the last time without a word in the log.
func (s *setup) publish(ctx context.Context) (changed []change.Key, err error) {
	wanted, err := s.wanted(ctx)
	if err != nil {
		return nil, err
	}
	now, err := s.look(ctx)
	if err != nil {
		return nil, err
	}
	if now, err = s.complete(ctx, now, wanted); err != nil {
		return nil, err
	}
	tables, err := s.tables(ctx)
	if err != nil {
		return nil, fmt.Errorf("looking at publication %q: %w", s.options.Publication, err)
	}
	before, first := s.published, s.published == nil
	replaced := !first && now.version != s.publication.version
	s.publication, s.published = now, tables
	switch {
	case first:
		return nil, nil
	case replaced:
		changed = []change.Key{nil}
	default:
		changed = differing(before, tables)
	}
	ended, err := s.ended(ctx)
	if err != nil {
		return nil, err
	}
	return append(changed, ended...), s.unsure(ctx, changed)
}

// differing are the tables, by name, that are not the same in both.
func differing(before, now map[uint32]table) (changed []change.Key) {
	names := map[string]bool{}
	for id, t := range before {
		if now[id] != t {
			names[t.name] = true
		}
	}
	for id, t := range now {
		if before[id] != t {
			names[t.name] = true
		}
	}
	for name := range names {
		changed = append(changed, change.Key{name})
	}
	return changed
}

// look finds the publication, and refuses one that leaves out changes.
func (s *setup) look(ctx context.Context) (publication, error) {
	p, whole, filtered := publication{exists: true}, false, ""
	err := s.conn.row(ctx, `SELECT p.puballtables, p.pubinsert AND p.pubupdate AND p.pubdelete AND p.pubtruncate,
		coalesce((SELECT min(format('%I.%I', n.nspname, c.relname)) FROM pg_publication_rel r JOIN pg_class c ON c.oid = r.prrelid JOIN pg_namespace n ON n.oid = c.relnamespace
			WHERE r.prpubid = p.oid AND to_jsonb(r) ->> 'prqual' IS NOT NULL), ''),
		p.oid || '.' || p.xmin, coalesce(obj_description(p.oid, 'pg_publication'), '')
		FROM pg_publication p WHERE p.pubname = $1`, []string{s.options.Publication},
		&p.all, &whole, &filtered, &p.version, &p.comment)
	name := quote(s.options.Publication)
	switch {
	case errors.Is(err, errNoRow):
		return publication{}, nil
	case err != nil:
		return p, fmt.Errorf("looking for publication %q: %w", s.options.Publication, err)
	case !whole:
		return p, &change.SetupError{Problem: fmt.Sprintf("publication %q leaves out some kinds of changes", s.options.Publication),
			Fix: "ALTER PUBLICATION " + name + " SET (publish = 'insert, update, delete, truncate');"}
	case filtered != "":
		return p, &change.SetupError{Problem: fmt.Sprintf("publication %q leaves out rows of table %s", s.options.Publication, filtered),
			Fix: fmt.Sprintf("ALTER PUBLICATION %[1]s DROP TABLE %[2]s; ALTER PUBLICATION %[1]s ADD TABLE %[2]s;", name, filtered)}
	}
	return p, nil
}

// complete makes the publication, or adds the tables that it lacks.
func (s *setup) complete(ctx context.Context, p publication, wanted map[uint32]string) (publication, error) {
	s.locked = ""
	rows, err := s.conn.query(ctx, `SELECT r.prrelid FROM pg_publication_rel r JOIN pg_publication p ON p.oid = r.prpubid WHERE p.pubname = $1
		UNION SELECT c.oid FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = $1`, s.options.Publication)
	if err != nil {
		return p, fmt.Errorf("looking at publication %q: %w", s.options.Publication, err)
	}
	has := make([]uint32, len(rows))
	for i, row := range rows {
		if err := scan(row, &has[i]); err != nil {
			return p, fmt.Errorf("looking at publication %q: %w", s.options.Publication, err)
		}
	}
	var missing []string
	for id, quoted := range wanted {
		if !slices.Contains(has, id) {
			missing = append(missing, quoted)
		}
	}
	slices.Sort(missing)
	name := quote(s.options.Publication)
	if !p.exists {
		statement := "CREATE PUBLICATION " + name
		if len(missing) > 0 {
			statement += " FOR TABLE " + strings.Join(missing, ", ")
		}
		if err := s.install(ctx, statement); err != nil {
			return p, err
		}
		return s.look(ctx)
	}
	if p.all || len(missing) == 0 {
		return p, nil
	}
	err = s.install(ctx, "ALTER PUBLICATION "+name+" ADD TABLE "+strings.Join(missing, ", "))
	if code(err) != lockedCode {
		return p, err
	}
	// The others need not wait for the one that is locked.
	for _, quoted := range missing {
		err := s.install(ctx, "ALTER PUBLICATION "+name+" ADD TABLE "+quoted)
		if code(err) == lockedCode {
			s.locked = quoted
		} else if err != nil {
			return p, err
		}
	}
	return p, nil
}

// unsure remembers keys until the transactions have ended that run now: what they
// wrote before is not told of, even if they commit later.
func (s *setup) unsure(ctx context.Context, keys []change.Key) error {
	if len(keys) == 0 {
		return nil
	}
	var until uint64
	var none bool
	err := s.conn.row(ctx, "SELECT pg_snapshot_xmax(s)::text, pg_snapshot_xmin(s) = pg_snapshot_xmax(s) FROM pg_current_snapshot() s", nil, &until, &none)
	if err != nil {
		return fmt.Errorf("looking for transactions: %w", err)
	}
	if s.late == nil {
		s.late = map[string]late{}
	}
	for _, key := range keys {
		if delete(s.late, key.String()); !none {
			s.late[key.String()] = late{key, until}
		}
	}
	return nil
}

// ended are the keys of which nothing can be untold any more.
func (s *setup) ended(ctx context.Context) (keys []change.Key, err error) {
	if len(s.late) == 0 {
		return nil, nil
	}
	var oldest uint64
	if err := s.conn.row(ctx, "SELECT pg_snapshot_xmin(pg_current_snapshot())::text", nil, &oldest); err != nil {
		return nil, fmt.Errorf("looking for transactions: %w", err)
	}
	for text, l := range s.late {
		if l.until <= oldest {
			keys = append(keys, l.key)
			delete(s.late, text)
		}
	}
	return keys, nil
}

// mark is what a permanent slot was read with: the history, and the tables as
// they were. If they are others at the next start, something may be missed. It
// is kept in the publication's comment, because the server keeps it there with
// the tables.
func (s *setup) mark(epoch string) string {
	sum := sha256.New()
	fmt.Fprintln(sum, s.publication.version)
	for _, id := range slices.Sorted(maps.Keys(s.published)) {
		fmt.Fprintf(sum, "%d %q %s\n", id, s.published[id].name, s.published[id].shape)
	}
	return fmt.Sprintf("%s%s %x", s.markOf(), epoch, sum.Sum(nil)[:8])
}

func (s *setup) markOf() string { return "fleetbus slot " + s.options.Slot + ": " }

// marked reports whether the publication has that mark.
func (s *setup) marked(mark string) bool {
	return slices.Contains(strings.Split(s.publication.comment, "\n"), mark)
}

// forget removes the mark of a slot that is gone. A new one of its name would be taken
// for one that was read already, if its first resync is never recorded.
func (s *setup) forget(ctx context.Context) error {
	if !strings.Contains(s.publication.comment, s.markOf()) {
		return nil
	}
	err := s.keep(ctx, "")
	switch {
	case code(err) == refusedCode:
		return &change.SetupError{Problem: fmt.Sprintf("replication slot %q is gone, and the source may not comment on publication %q, which says how it was read", s.options.Slot, s.options.Publication), Fix: s.own()}
	case err != nil:
		return fmt.Errorf("commenting on publication %q: %w", s.options.Publication, err)
	}
	return nil
}

// own is the statement after which the source may comment on the publication.
func (s *setup) own() string {
	return "ALTER PUBLICATION " + quote(s.options.Publication) + " OWNER TO " + quote(s.role) + ";"
}

// keep writes a mark, or none if it is empty, and leaves the rest of the comment.
func (s *setup) keep(ctx context.Context, mark string) error {
	lines := slices.DeleteFunc(strings.Split(s.publication.comment, "\n"), func(line string) bool {
		return line == "" || strings.HasPrefix(line, s.markOf())
	})
	if mark != "" {
		lines = append(lines, mark)
	}
	comment := strings.Join(lines, "\n")
	var statement string
	err := s.conn.row(ctx, "SELECT format('COMMENT ON PUBLICATION %I IS %L', $1::text, $2::text)", []string{s.options.Publication, comment}, &statement)
	if err == nil {
		err = s.conn.exec(ctx, statement)
	}
	if err == nil {
		s.publication.comment = comment
	}
	return err
}

func (s *setup) install(ctx context.Context, statement string) error {
	if s.options.NoInstall {
		return &change.SetupError{Problem: fmt.Sprintf("publication %q is missing, or lacks tables", s.options.Publication), Fix: statement + ";"}
	}
	err := s.conn.exec(ctx, statement)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == refusedCode {
		return &change.SetupError{Problem: "publication cannot be made: " + refused.Message, Fix: "have the owner of the tables run: " + statement + ";"}
	}
	if err != nil {
		return fmt.Errorf("making publication %q: %w", s.options.Publication, err)
	}
	return nil
}

// wanted are the tables to publish, quoted. One without a replica identity is
// left out: once it were published, its rows could be changed no more. Partitions
// come with their table; tables that inherit from another do not.
func (s *setup) wanted(ctx context.Context) (map[uint32]string, error) {
	rows, err := s.conn.query(ctx, `SELECT c.oid, n.nspname, c.relname, c.relkind = 'r' AND c.relhassubclass,
		EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indimmediate AND (i.indisprimary AND (c.relreplident = 'd' OR c.relkind = 'p') OR i.indisreplident AND c.relreplident = 'i'))
			OR c.relreplident = 'f' AND c.relkind = 'r'
		FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_%'`)
	if err != nil {
		return nil, fmt.Errorf("listing the tables: %w", err)
	}
	type candidate struct {
		id         uint32
		quoted     string
		identified bool
	}
	all := map[string]candidate{}
	var c candidate
	var schema, name string
	var parent bool
	for _, row := range rows {
		if err := scan(row, &c.id, &schema, &name, &parent, &c.identified); err != nil {
			return nil, fmt.Errorf("listing the tables: %w", err)
		}
		if c.quoted = quote(schema, name); parent {
			c.quoted = "ONLY " + c.quoted
		}
		all[tableName(schema, name)] = c
	}
	s.keyless = nil
	wanted := map[uint32]string{}
	if len(s.options.Tables) == 0 {
		for name, c := range all {
			if c.identified {
				wanted[c.id] = c.quoted
			} else {
				s.keyless = append(s.keyless, name)
			}
		}
		slices.Sort(s.keyless)
		return wanted, nil
	}
	for _, name := range s.options.Tables {
		name = strings.TrimPrefix(name, "public.")
		c, ok := all[name]
		switch {
		case c.identified:
			wanted[c.id] = c.quoted
		case ok:
			return nil, &change.SetupError{Problem: fmt.Sprintf("table %q has no primary key, by which its rows could be named", name),
				Fix: "ALTER TABLE " + c.quoted + " ADD PRIMARY KEY (…); or ALTER TABLE " + c.quoted + " REPLICA IDENTITY FULL;"}
		case s.published == nil:
			return nil, &change.SetupError{Problem: fmt.Sprintf("there is no table %q", name), Fix: "create it, or leave it out of the source's tables"}
		}
	}
	return wanted, nil
}

// tables are those of the publication.
func (s *setup) tables(ctx context.Context) (map[uint32]table, error) {
	rows, err := s.conn.query(ctx, `SELECT c.oid, n.nspname, c.relname, md5(concat_ws(' ', c.relreplident, c.relfilenode,
			(SELECT string_agg(concat_ws(' ', m.oid, m.relfilenode), ',' ORDER BY m.oid) FROM pg_partition_tree(c.oid) t JOIN pg_class m ON m.oid = t.relid),
			(SELECT string_agg(concat_ws(' ', a.attnum, a.attname, a.atttypid, a.atttypmod), ',' ORDER BY a.attnum) FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
			(SELECT i.indkey::text FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary)))
		FROM (SELECT DISTINCT coalesce(pg_partition_root(c.oid), c.oid) AS oid FROM pg_publication_tables t JOIN pg_namespace n ON n.nspname = t.schemaname
			JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = t.tablename WHERE t.pubname = $1) p
		JOIN pg_class c ON c.oid = p.oid JOIN pg_namespace n ON n.oid = c.relnamespace`, s.options.Publication)
	if err != nil {
		return nil, err
	}
	all := map[uint32]table{}
	var id uint32
	var schema, name, shape string
	for _, row := range rows {
		if err := scan(row, &id, &schema, &name, &shape); err != nil {
			return nil, err
		}
		all[id] = table{tableName(schema, name), shape}
	}
	return all, nil
}

// tableName is how a table is called in keys.
func tableName(schema, name string) string {
	if schema == "public" {
		return name
	}
	return schema + "." + name
}

// primaryKey are the columns of a table's primary key, in its order; nil if it
// has none.
func (s *setup) primaryKey(ctx context.Context, relation uint32) ([]string, error) {
	rows, err := s.conn.query(ctx, `SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, place) JOIN pg_attribute a ON a.attnum = k.attnum
		WHERE i.indrelid = $1 AND a.attrelid = $1 AND i.indisprimary ORDER BY k.place`, strconv.FormatUint(uint64(relation), 10))
	if err != nil {
		return nil, err
	}
	names := make([]string, len(rows))
	for i, row := range rows {
		if err := scan(row, &names[i]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// whole is the name of the table of which a relation is a partition; empty if it
// is none, or is no more.
func (s *setup) whole(ctx context.Context, relation uint32) (string, error) {
	var schema, name string
	err := s.conn.row(ctx, "SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = pg_partition_root($1::oid)",
		[]string{strconv.FormatUint(uint64(relation), 10)}, &schema, &name)
	if errors.Is(err, errNoRow) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return tableName(schema, name), nil
}

// warning says which tables are left out.
func (s *setup) warning() string {
	if s.locked != "" {
		return fmt.Sprintf("table %s is locked, and not told of yet; fix: end the session that locks it", s.locked)
	}
	if len(s.keyless) == 0 {
		return ""
	}
	return fmt.Sprintf("tables without a primary key are not told of: %s; fix: give them one, or REPLICA IDENTITY FULL", strings.Join(s.keyless[:min(3, len(s.keyless))], ", "))
}
