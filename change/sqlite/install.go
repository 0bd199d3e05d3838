package sqlite

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/change"
)

// The tables that the Source keeps in the database.
const (
	changesTable = `CREATE TABLE fleetbus_changes (id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, key TEXT NOT NULL, kind TEXT NOT NULL, at REAL NOT NULL DEFAULT (julianday('now')))`
	epochTable   = `CREATE TABLE fleetbus_epoch (epoch TEXT NOT NULL)`
)

// table is one that is told of: its name and the columns of its primary key.
type table struct {
	name string
	key  []string
}

// install brings the triggers up to date with the schema, and announces a Resync
// of every table that they did not cover.
func (r *reader) install(ctx context.Context) error {
	tx, err := r.conn.BeginTx(ctx, nil)
	if err != nil {
		return explain(err)
	}
	defer tx.Rollback()
	statements, uncovered, tables, err := r.plan(ctx, tx)
	if err != nil {
		return err
	}
	if len(statements) > 0 && r.options.NoInstall {
		return &change.SetupError{Problem: "the tables or triggers of the source are missing", Fix: strings.Join(statements, ";\n") + ";"}
	}
	for _, s := range statements {
		if _, err := tx.ExecContext(ctx, s); err != nil {
			return explain(err)
		}
	}
	if err := tx.QueryRowContext(ctx, "SELECT epoch FROM fleetbus_epoch").Scan(&r.epoch); err != nil {
		return err
	}
	if err := tx.Commit(); err != nil {
		return explain(err)
	}
	if r.schema, err = r.pragma(ctx, "schema_version"); err != nil {
		return err
	}
	for name := range r.tables {
		if _, ok := tables[name]; !ok {
			uncovered = append(uncovered, name)
		}
	}
	r.tables = tables
	// What changed before the triggers were there is read by who looks after them.
	for _, name := range uncovered {
		if err := r.resync(change.Key{name}); err != nil {
			return err
		}
	}
	return nil
}

// explain adds what to do to an error of SQLite.
func explain(err error) error {
	if strings.Contains(err.Error(), "readonly") || strings.Contains(err.Error(), "SQLITE_READONLY") {
		return &change.SetupError{Problem: "the database cannot be written: " + err.Error(), Fix: "give the user who runs this the right to write the file and its directory"}
	}
	return err
}

// plan is what the database lacks, in statements, and the tables that they are
// for.
func (r *reader) plan(ctx context.Context, tx *sql.Tx) (statements, uncovered []string, tables map[string]table, err error) {
	have, err := schema(ctx, tx)
	if err != nil {
		return nil, nil, nil, err
	}
	if _, ok := have["table fleetbus_changes"]; !ok {
		statements = append(statements, changesTable)
	}
	if _, ok := have["table fleetbus_epoch"]; !ok {
		statements = append(statements, epochTable, "INSERT INTO fleetbus_epoch VALUES ('"+newEpoch()+"')")
	}
	if tables, err = r.wanted(ctx, tx, have); err != nil {
		return nil, nil, nil, err
	}
	triggers := map[string]string{}
	for _, name := range slices.Sorted(maps.Keys(tables)) {
		covered := true
		for trigger, text := range tables[name].triggers() {
			triggers[trigger] = text
			if have["trigger "+trigger] == text {
				continue
			}
			covered = false
			if _, old := have["trigger "+trigger]; old {
				statements = append(statements, "DROP TRIGGER "+quote(trigger))
			}
			statements = append(statements, text)
		}
		if !covered {
			uncovered = append(uncovered, name)
		}
	}
	for object := range have {
		name, ours := strings.CutPrefix(object, "trigger ")
		if _, ok := triggers[name]; ours && !ok && strings.HasPrefix(name, "fleetbus_") {
			statements = append(statements, "DROP TRIGGER "+quote(name))
		}
	}
	return statements, uncovered, tables, nil
}

// schema are the objects of a database: their statements, by type and name.
func schema(ctx context.Context, tx *sql.Tx) (map[string]string, error) {
	rows, err := tx.QueryContext(ctx, "SELECT type, name, coalesce(sql, '') FROM sqlite_master")
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	have := map[string]string{}
	for rows.Next() {
		var kind, name, text string
		if err := rows.Scan(&kind, &name, &text); err != nil {
			return nil, err
		}
		have[kind+" "+name] = text
	}
	return have, rows.Err()
}

// wanted are the tables to tell of.
func (r *reader) wanted(ctx context.Context, tx *sql.Tx, have map[string]string) (map[string]table, error) {
	tables := map[string]table{}
	for object, text := range have {
		name, ok := strings.CutPrefix(object, "table ")
		lower := strings.ToLower(name)
		if !ok || strings.HasPrefix(lower, "sqlite_") || strings.HasPrefix(lower, "fleetbus_") || strings.HasPrefix(strings.ToUpper(text), "CREATE VIRTUAL") {
			continue
		}
		if len(r.options.Tables) > 0 && !slices.ContainsFunc(r.options.Tables, func(t string) bool { return strings.EqualFold(t, name) }) {
			continue
		}
		key, err := primaryKey(ctx, tx, name)
		if err != nil {
			return nil, fmt.Errorf("reading the primary key of table %q: %w", name, err)
		}
		tables[name] = table{name: name, key: key}
	}
	for _, name := range r.options.Tables {
		found := false
		for have := range tables {
			found = found || strings.EqualFold(have, name)
		}
		if _, known := r.tables[name]; !found && !known && r.tables == nil {
			return nil, &change.SetupError{Problem: fmt.Sprintf("there is no table %q", name), Fix: "create it, or leave it out of the source's tables"}
		}
	}
	return tables, nil
}

// primaryKey are the columns of a table's primary key in order; the row's number,
// which a VACUUM may change, if it has none.
func primaryKey(ctx context.Context, tx *sql.Tx, name string) ([]string, error) {
	rows, err := tx.QueryContext(ctx, "SELECT name FROM pragma_table_info(?) WHERE pk > 0 ORDER BY pk", name)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var key []string
	for rows.Next() {
		var column string
		if err := rows.Scan(&column); err != nil {
			return nil, err
		}
		key = append(key, column)
	}
	if len(key) == 0 {
		key = []string{"rowid"}
	}
	return key, errors.Join(rows.Err())
}

// triggers are the statements that make a table tell of its rows, by the names of
// the triggers. They write nothing but the primary key.
func (t table) triggers() map[string]string {
	write := func(row, kind string) string {
		return fmt.Sprintf("INSERT INTO fleetbus_changes (tbl, key, kind) VALUES (%s, %s, '%s');", literal(t.name), t.text(row), kind)
	}
	all := map[string]string{}
	add := func(suffix, event, when, body string) {
		name := "fleetbus_" + t.name + "_" + suffix
		all[name] = fmt.Sprintf("CREATE TRIGGER %s AFTER %s ON %s%s BEGIN %s END", quote(name), event, quote(t.name), when, body)
	}
	add("insert", "INSERT", "", write("NEW", "insert"))
	add("delete", "DELETE", "", write("OLD", "delete"))
	add("update", "UPDATE", " WHEN "+t.same(), write("NEW", "update"))
	add("rekey", "UPDATE", " WHEN NOT ("+t.same()+")", write("OLD", "delete")+" "+write("NEW", "insert"))
	return all
}

// text is the expression of a row's key, as parseKey reads it.
func (t table) text(row string) string {
	parts := make([]string, len(t.key))
	for i, column := range t.key {
		c := row + "." + quote(column)
		parts[i] = fmt.Sprintf("CASE typeof(%[1]s) WHEN 'null' THEN 'n' WHEN 'integer' THEN 'v' || %[1]s WHEN 'real' THEN 'v' || %[1]s ELSE 'h' || hex(%[1]s) END", c)
	}
	return strings.Join(parts, " || ',' || ")
}

func (t table) same() string {
	parts := make([]string, len(t.key))
	for i, column := range t.key {
		parts[i] = "OLD." + quote(column) + " IS NEW." + quote(column)
	}
	return strings.Join(parts, " AND ")
}

func quote(name string) string   { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
func literal(text string) string { return "'" + strings.ReplaceAll(text, "'", "''") + "'" }
