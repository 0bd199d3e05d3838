package sqlite

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"fmt"
	"maps"
	"slices"
	"strings"
)

const (
	changesTable = "fleetbus_changes"
	stateTable   = "fleetbus_state"

	// createChanges has the time in milliseconds. AUTOINCREMENT keeps the number of
	// the last row when all are deleted.
	createChanges = `CREATE TABLE fleetbus_changes (id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, ` +
		`at INTEGER NOT NULL DEFAULT (CAST((julianday('now') - 2440587.5) * 86400000 AS INTEGER)))`
	createState = `CREATE TABLE fleetbus_state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID`
)

// The names in fleetbus_state. A table has its shape under its name with a prefix,
// from when everything before that was announced.
const (
	stateEpoch  = "epoch"
	stateFile   = "file"
	statePrefix = "table:"
)

// querier is what a *sql.Conn, *sql.DB and *sql.Tx have to read.
type querier interface {
	QueryContext(ctx context.Context, query string, args ...any) (*sql.Rows, error)
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// table is one whose changes are wanted.
type table struct {
	name, sql string
	key       []string // the columns of the primary key, or the name of the rowid
	rowid     bool     // the key is the rowid
	uniques   []unique
	odd       []string // unique indexes that triggers cannot follow
}

// unique is a unique index other than the primary key's.
type unique struct {
	columns, collations []string
}

// survey is what a database has, and what it lacks.
type survey struct {
	schema   int64
	tables   []table
	state    map[string]string
	missing  []string          // statements
	stale    map[string]bool   // tables whose triggers are missing or others
	warnings []string          // about tables
	triggers map[string]string // those that are there and are ours, and their SQL
	bare     bool              // it has not both of our tables
}

// look surveys a database for the tables that are wanted, or for all.
func look(ctx context.Context, q querier, wanted []string) (*survey, error) {
	s := &survey{state: map[string]string{}, stale: map[string]bool{}, triggers: map[string]string{}}
	if err := q.QueryRowContext(ctx, "PRAGMA schema_version").Scan(&s.schema); err != nil {
		return nil, err
	}
	ours := map[string]bool{}
	var all, odd []table
	if err := each(ctx, q, func(rows *sql.Rows) error {
		var name, kind, text string
		if err := rows.Scan(&name, &kind, &text); err != nil {
			return err
		}
		switch {
		case name == changesTable || name == stateTable:
			ours[name] = true
		case strings.HasPrefix(strings.ToLower(name), "sqlite_"):
		case kind == "table":
			all = append(all, table{name: name, sql: text})
		default:
			odd = append(odd, table{name: name, sql: kind})
		}
		return nil
	}, `SELECT l.name, l.type, coalesce(m.sql, '') FROM pragma_table_list l LEFT JOIN sqlite_master m ON m.name = l.name AND m.type IN ('table', 'view')
		WHERE l.schema = 'main' ORDER BY l.name`); err != nil {
		return nil, err
	}
	s.tables = s.choose(all, odd, wanted)
	for i := range s.tables {
		if err := s.tables[i].read(ctx, q); err != nil {
			return nil, err
		}
		if t := s.tables[i]; len(t.odd) > 0 {
			s.warnings = append(s.warnings, fmt.Sprintf("rows of table %q that REPLACE removes because of the index %s are not announced; set PRAGMA recursive_triggers = ON in the programs that write", t.name, strings.Join(t.odd, ", ")))
		}
	}
	if err := each(ctx, q, func(rows *sql.Rows) error {
		var name, text string
		err := rows.Scan(&name, &text)
		does, _, _ := strings.Cut(strings.TrimPrefix(name, "fleetbus_"), "_")
		if slices.Contains([]string{"insert", "update", "delete", "replace", "displace"}, does) {
			s.triggers[name] = text
		}
		return err
	}, `SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND name GLOB 'fleetbus_*' AND instr(sql, 'fleetbus_changes')`); err != nil {
		return nil, err
	}
	if ours[stateTable] {
		if err := each(ctx, q, func(rows *sql.Rows) error {
			var name, value string
			err := rows.Scan(&name, &value)
			s.state[name] = value
			return err
		}, "SELECT name, value FROM fleetbus_state"); err != nil {
			return nil, err
		}
	}
	s.compare(ours)
	return s, nil
}

func each(ctx context.Context, q querier, row func(*sql.Rows) error, query string, args ...any) error {
	rows, err := q.QueryContext(ctx, query, args...)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		if err := row(rows); err != nil {
			return err
		}
	}
	return rows.Err()
}

// choose picks the wanted tables, and warns of those that are not there.
func (s *survey) choose(all, odd []table, wanted []string) []table {
	if len(wanted) == 0 {
		return all
	}
	var chosen []table
	for _, name := range wanted {
		same := func(t table) bool { return strings.EqualFold(t.name, name) }
		if i := slices.IndexFunc(all, same); i >= 0 {
			chosen = append(chosen, all[i])
		} else if i := slices.IndexFunc(odd, same); i >= 0 {
			s.warnings = append(s.warnings, fmt.Sprintf("%q is a %s, which has no triggers; name the tables it is made of", name, odd[i].sql))
		} else {
			s.warnings = append(s.warnings, fmt.Sprintf("there is no table %q; create it, or take it from the source's tables", name))
		}
	}
	return chosen
}

// read finds the key of t, and its unique indexes.
func (t *table) read(ctx context.Context, q querier) error {
	columns := map[string]bool{}
	keys := map[int]string{}
	if err := each(ctx, q, func(rows *sql.Rows) error {
		var name string
		var pk int
		err := rows.Scan(&name, &pk)
		columns[strings.ToLower(name)] = true
		if pk > 0 {
			keys[pk] = name
		}
		return err
	}, "SELECT name, pk FROM pragma_table_xinfo(?)", t.name); err != nil {
		return err
	}
	for _, i := range slices.Sorted(maps.Keys(keys)) {
		t.key = append(t.key, keys[i])
	}
	if len(t.key) == 0 {
		t.rowid = true
		for _, name := range []string{"rowid", "_rowid_", "oid"} {
			if !columns[name] {
				t.key = []string{name}
				break
			}
		}
	}
	type index struct {
		name    string
		partial bool
	}
	var indexes []index
	if err := each(ctx, q, func(rows *sql.Rows) error {
		var i index
		err := rows.Scan(&i.name, &i.partial)
		indexes = append(indexes, i)
		return err
	}, `SELECT name, partial FROM pragma_index_list(?) WHERE "unique" AND origin <> 'pk' ORDER BY name`, t.name); err != nil {
		return err
	}
	for _, i := range indexes {
		var u unique
		odd := i.partial
		if err := each(ctx, q, func(rows *sql.Rows) error {
			var column, collation sql.NullString
			err := rows.Scan(&column, &collation)
			odd = odd || !column.Valid
			u.columns = append(u.columns, column.String)
			u.collations = append(u.collations, collation.String)
			return err
		}, `SELECT name, coll FROM pragma_index_xinfo(?) WHERE "key" ORDER BY seqno`, i.name); err != nil {
			return err
		}
		if odd {
			t.odd = append(t.odd, i.name)
		} else {
			t.uniques = append(t.uniques, u)
		}
	}
	return nil
}

// compare lists the statements that make the database as it should be.
func (s *survey) compare(ours map[string]bool) {
	if !ours[changesTable] {
		s.missing = append(s.missing, createChanges)
	}
	if !ours[stateTable] {
		s.missing = append(s.missing, createState)
	}
	s.bare = len(s.missing) > 0
	wanted := map[string]bool{}
	var creations []string
	for _, t := range s.tables {
		for _, trigger := range t.triggers() {
			wanted[trigger.name] = true
			there, ok := s.triggers[trigger.name]
			if ok && there == trigger.sql {
				continue
			}
			s.stale[t.name] = true
			if ok {
				s.missing = append(s.missing, "DROP TRIGGER "+quoted(trigger.name))
			}
			creations = append(creations, trigger.sql)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(s.triggers)) {
		if !wanted[name] {
			s.missing = append(s.missing, "DROP TRIGGER "+quoted(name))
		}
	}
	s.missing = append(s.missing, creations...)
}

// shapes are the tables as they are now. What has another shape than before has
// changed as a whole.
func (s *survey) shapes() map[string]string {
	shapes := map[string]string{}
	for _, t := range s.tables {
		sum := sha256.Sum256([]byte(t.sql))
		shape := fmt.Sprintf("%x", sum[:8])
		if t.rowid {
			// VACUUM changes rowids, and the schema's version.
			shape += fmt.Sprintf(":%d", s.schema)
		}
		shapes[statePrefix+t.name] = shape
	}
	return shapes
}

type trigger struct{ name, sql string }

// triggers of t. They are created exactly so, and what SQLite made of them when
// the table or a column was renamed differs.
func (t *table) triggers() []trigger {
	var all []trigger
	add := func(does, when, body string) {
		name := "fleetbus_" + does + "_" + t.name
		all = append(all, trigger{name, "CREATE TRIGGER " + quoted(name) + " " + when + " ON " + quoted(t.name) + " BEGIN " + body + " END"})
	}
	note := "INSERT INTO fleetbus_changes(tbl, key, kind) "
	name := literal(t.name)
	if len(t.key) == 0 {
		// Its columns have all the names of the rowid.
		body := note + "VALUES (" + name + ", '', 'resync');"
		add("insert", "AFTER INSERT", body)
		add("update", "AFTER UPDATE", body)
		add("delete", "AFTER DELETE", body)
		return all
	}
	before, after := t.keyOf("OLD"), t.keyOf("NEW")
	add("insert", "AFTER INSERT", note+"VALUES ("+name+", "+after+", 'insert');")
	add("delete", "AFTER DELETE", note+"VALUES ("+name+", "+before+", 'delete');")
	add("update", "AFTER UPDATE", note+"SELECT "+name+", "+before+", 'delete' WHERE "+before+" IS NOT "+after+"; "+
		note+"SELECT "+name+", "+after+", CASE WHEN "+before+" IS "+after+" THEN 'update' ELSE 'insert' END;")
	if len(t.uniques) == 0 {
		return all
	}
	var inserts, updates strings.Builder
	var columns []string
	for _, u := range t.uniques {
		var same []string
		for i, column := range u.columns {
			same = append(same, "r."+quoted(column)+" = NEW."+quoted(column)+" COLLATE "+quoted(u.collations[i]))
			if !slices.Contains(columns, quoted(column)) {
				columns = append(columns, quoted(column))
			}
		}
		rows := note + "SELECT " + name + ", " + t.keyOf("r") + ", 'update' FROM " + quoted(t.name) + " AS r WHERE " + strings.Join(same, " AND ")
		inserts.WriteString(rows + "; ")
		updates.WriteString(rows + " AND " + t.keyOf("r") + " IS NOT " + before + "; ")
	}
	add("replace", "BEFORE INSERT", strings.TrimSpace(inserts.String()))
	add("displace", "BEFORE UPDATE OF "+strings.Join(columns, ", "), strings.TrimSpace(updates.String()))
	return all
}

// keyOf is the expression for the key of a row.
func (t *table) keyOf(row string) string {
	var columns []string
	for _, c := range t.key {
		if !t.rowid {
			c = quoted(c)
		}
		columns = append(columns, encoded(row+"."+c))
	}
	return strings.Join(columns, "||'.'||")
}

func quoted(name string) string  { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
func literal(text string) string { return `'` + strings.ReplaceAll(text, `'`, `''`) + `'` }
