package mysql

import (
	"context"
	"database/sql"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/google/uuid"

	"github.com/fleetbus/fleetbus/change"
)

// column is a column of a table, as the server describes it.
type column struct {
	name, kind string
	unsigned   bool
	charset    string
	length     int
	labels     []string // of an enum
}

// table is one that the log has rows of.
type table struct {
	name    string // in keys
	columns []column
	key     []int // the primary key's columns, in its order
}

// cascade is a foreign key that changes rows of another table.
type cascade struct {
	child    string // in keys
	deletes  bool
	updates  bool
	referred []string // columns of the parent
}

// catalog is what the server tells of itself and of its tables, over an ordinary
// connection.
type catalog struct {
	source  *Source
	conn    *sql.Conn
	mariadb bool
	server  uuid.UUID
	// anyCase says that names of tables are the same in any letter case; then all
	// that are kept here have small letters. database is the DSN's, and chosen are
	// the Options' tables, by their names in keys.
	anyCase  bool
	database string
	chosen   map[string]bool

	tables   map[[2]string]*table
	cascades map[[2]string][]cascade
}

// query gives each row of an answer to row, as texts; NULL is empty.
func (c *catalog) query(ctx context.Context, row func(map[string]string), query string, args ...any) error {
	rows, err := c.conn.QueryContext(ctx, query, args...)
	if err != nil {
		return c.source.safe("asking the server", err)
	}
	defer rows.Close()
	names, err := rows.Columns()
	if err != nil {
		return c.source.safe("asking the server", err)
	}
	values, into := make([]sql.NullString, len(names)), make([]any, len(names))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return c.source.safe("asking the server", err)
		}
		m := make(map[string]string, len(names))
		for i, name := range names {
			m[strings.ToLower(name)] = values[i].String
		}
		row(m)
	}
	if err := rows.Err(); err != nil {
		return c.source.safe("asking the server", err)
	}
	return nil
}

// value is the only one of an answer.
func (c *catalog) value(ctx context.Context, expression string) (value string, err error) {
	err = c.query(ctx, func(m map[string]string) { value = m["v"] }, "SELECT "+expression+" AS v")
	return value, err
}

// check refuses a server that lacks something.
func (c *catalog) check(ctx context.Context) error {
	s := c.source
	version, err := c.value(ctx, "VERSION()")
	if err != nil {
		return err
	}
	c.mariadb = strings.Contains(strings.ToLower(version), "mariadb")
	settings := map[string]string{}
	err = c.query(ctx, func(m map[string]string) { settings[strings.ToLower(m["variable_name"])] = m["value"] },
		`SHOW GLOBAL VARIABLES WHERE variable_name IN ('log_bin', 'binlog_format', 'gtid_mode', 'server_uuid', 'sync_binlog', 'binlog_row_value_options', 'server_id', 'lower_case_table_names')`)
	if err != nil {
		return err
	}
	c.anyCase = settings["lower_case_table_names"] != "0"
	c.choose()
	missing := func(name, value, fix string) error {
		return &change.SetupError{Problem: fmt.Sprintf("%s is %s", name, value), Fix: fix}
	}
	switch {
	case settings["log_bin"] != "ON":
		return missing("log_bin", "OFF", "write log_bin = binlog and binlog_format = ROW in the section [mysqld] of the server's settings, and restart the server")
	case settings["binlog_format"] != "ROW":
		return missing("binlog_format", settings["binlog_format"], "SET GLOBAL binlog_format = 'ROW'; have it in the server's settings too, and let the programs connect again")
	case !c.mariadb && settings["gtid_mode"] != "ON":
		return missing("gtid_mode", settings["gtid_mode"], "write gtid_mode = ON and enforce_gtid_consistency = ON in the section [mysqld] of the server's settings, and restart the server")
	case settings["binlog_row_value_options"] != "":
		return missing("binlog_row_value_options", settings["binlog_row_value_options"], "SET GLOBAL binlog_row_value_options = ''; have it in the server's settings too")
	case settings["server_id"] == "0":
		return missing("server_id", "0", "SET GLOBAL server_id = 1; have it in the server's settings too")
	case s.options.PositionFile != "" && settings["sync_binlog"] != "1":
		return missing("sync_binlog", settings["sync_binlog"]+", so that a crash of the server may lose what was read", "SET GLOBAL sync_binlog = 1; have it in the server's settings too")
	}
	if !c.mariadb {
		if c.server, err = uuid.Parse(settings["server_uuid"]); err != nil {
			return fmt.Errorf("reading the server's server_uuid: %w", err)
		}
	}
	if err := c.checkLog(ctx); err != nil {
		return err
	}
	for name := range c.chosen {
		schema, bare, ok := strings.Cut(name, ".")
		if !ok || c.database != "" && !c.exists(ctx, schema, bare) {
			schema, bare = c.database, name
		}
		if !c.exists(ctx, schema, bare) {
			return &change.SetupError{Problem: fmt.Sprintf("there is no table %q, or user %q may not see it", name, s.config.User),
				Fix: fmt.Sprintf("create it, or GRANT SELECT ON %s.* TO %s;", quote(schema), c.user(ctx))}
		}
	}
	return nil
}

// choose reads the Options as the server would.
func (c *catalog) choose() {
	c.database, c.chosen = c.same(c.source.config.DBName), map[string]bool{}
	for _, table := range c.source.options.Tables {
		c.chosen[strings.TrimPrefix(c.same(table), c.database+".")] = true
	}
}

// same is one of the texts that are the same name.
func (c *catalog) same(name string) string {
	if c.anyCase {
		return strings.ToLower(name)
	}
	return name
}

// name is how a table is called in keys.
func (c *catalog) name(schema, table string) string {
	if schema == c.database {
		return table
	}
	return schema + "." + table
}

// wanted says whether a table is told of.
func (c *catalog) wanted(schema, table string) bool {
	if len(c.chosen) > 0 {
		return c.chosen[c.name(schema, table)]
	}
	if c.database != "" {
		return schema == c.database
	}
	return !slices.Contains([]string{"mysql", "sys", "information_schema", "performance_schema"}, schema)
}

// exists reports whether there is a table.
func (c *catalog) exists(ctx context.Context, schema, table string) bool {
	there := false
	err := c.query(ctx, func(map[string]string) { there = true }, "SELECT table_name FROM information_schema.tables WHERE table_schema = ? AND table_name = ?", schema, table)
	return err == nil && there
}

// user is whom to grant rights.
func (c *catalog) user(ctx context.Context) string {
	current, err := c.value(ctx, "CURRENT_USER()")
	i := strings.LastIndexByte(current, '@')
	if err != nil || i < 0 {
		return literal(c.source.config.User)
	}
	return literal(current[:i]) + "@" + literal(current[i+1:])
}

// rights is the error of a user who may not read the log.
func (c *catalog) rights(ctx context.Context) error {
	user := c.user(ctx)
	return &change.SetupError{Problem: fmt.Sprintf("user %s may not read the log", user), Fix: "GRANT REPLICATION SLAVE, REPLICATION CLIENT ON *.* TO " + user + ";"}
}

// log is where the server's log ends, and which databases it leaves out.
func (c *catalog) log(ctx context.Context) (end map[string]string, err error) {
	take := func(m map[string]string) { end = m }
	if !c.mariadb {
		if err = c.query(ctx, take, "SHOW BINARY LOG STATUS"); !isRefusal(err, syntaxError) {
			return end, err
		}
	}
	err = c.query(ctx, take, "SHOW MASTER STATUS")
	return end, err
}

func (c *catalog) checkLog(ctx context.Context) error {
	end, err := c.log(ctx)
	if isRefusal(err, missingPrivilege) {
		return c.rights(ctx)
	}
	if err != nil {
		return err
	}
	schemas := map[string]bool{}
	if c.database != "" {
		schemas[c.database] = true
	}
	for name := range c.chosen {
		if schema, _, ok := strings.Cut(name, "."); ok {
			schemas[schema] = true
		}
	}
	for _, setting := range []string{"binlog_do_db", "binlog_ignore_db"} {
		if end[setting] == "" {
			continue
		}
		listed := strings.Split(c.same(end[setting]), ",")
		out := len(schemas) == 0
		for schema := range schemas {
			out = out || slices.Contains(listed, schema) == (setting == "binlog_ignore_db")
		}
		if out {
			return &change.SetupError{Problem: fmt.Sprintf("%s is %s, so that the log has not got every change", setting, end[setting]),
				Fix: "take it out of the server's settings, and restart the server"}
		}
	}
	return nil
}

// forget forgets the tables, because they may be others now.
func (c *catalog) forget() { c.tables, c.cascades = nil, nil }

// table is what is known of a table; it has no key if there is none, or nobody
// knows.
func (c *catalog) table(ctx context.Context, schema, name string) (*table, error) {
	at := [2]string{schema, name}
	if t, ok := c.tables[at]; ok {
		return t, nil
	}
	t := &table{name: c.name(schema, name)}
	places := map[int]int{}
	err := c.query(ctx, func(m map[string]string) {
		length, _ := strconv.Atoi(m["octets"])
		col := column{name: m["name"], kind: m["kind"], unsigned: strings.Contains(m["full"], "unsigned"), charset: m["charset"], length: length}
		if col.kind == "enum" {
			for _, label := range tokens(strings.TrimPrefix(m["full"], "enum")) {
				if label.quoted {
					col.labels = append(col.labels, label.text)
				}
			}
		}
		if place, _ := strconv.Atoi(m["place"]); place > 0 {
			places[place] = len(t.columns)
		}
		t.columns = append(t.columns, col)
	}, `SELECT c.column_name AS name, c.data_type AS kind, c.column_type AS full, c.character_set_name AS charset, c.character_octet_length AS octets, s.seq_in_index AS place
		FROM information_schema.columns c LEFT JOIN information_schema.statistics s
		ON s.table_schema = c.table_schema AND s.table_name = c.table_name AND s.column_name = c.column_name AND s.index_name = 'PRIMARY'
		WHERE c.table_schema = ? AND c.table_name = ? ORDER BY c.ordinal_position`, schema, name)
	if err != nil {
		return nil, err
	}
	for place := 1; place <= len(places); place++ {
		i, ok := places[place]
		if !ok {
			t.key = nil
			break
		}
		t.key = append(t.key, i)
	}
	if c.tables == nil {
		c.tables = map[[2]string]*table{}
	}
	c.tables[at] = t
	return t, nil
}

// cascading are the foreign keys that change rows of wanted tables when a row of
// this one is deleted or changed, by way of others too.
func (c *catalog) cascading(ctx context.Context, schema, name string) ([]cascade, error) {
	if c.cascades == nil {
		if err := c.learnCascades(ctx); err != nil {
			return nil, err
		}
	}
	return c.cascades[[2]string{schema, name}], nil
}

func (c *catalog) learnCascades(ctx context.Context) error {
	type edge struct {
		parent, child [2]string
		cascade
	}
	edges := map[string]*edge{}
	// The rules are hidden from a user who may only select.
	changes := func(rule string) bool { return rule != "RESTRICT" && rule != "NO ACTION" }
	err := c.query(ctx, func(m map[string]string) {
		id := m["child_schema"] + "\x00" + m["child"] + "\x00" + m["name"]
		e := edges[id]
		if e == nil {
			e = &edge{parent: [2]string{c.same(m["parent_schema"]), c.same(m["parent"])}, child: [2]string{c.same(m["child_schema"]), c.same(m["child"])}}
			e.deletes, e.updates = changes(m["on_delete"]), changes(m["on_update"])
			edges[id] = e
		}
		e.referred = append(e.referred, m["referred"])
	}, `SELECT k.table_schema AS child_schema, k.table_name AS child, k.constraint_name AS name, k.referenced_table_schema AS parent_schema, k.referenced_table_name AS parent,
		k.referenced_column_name AS referred, r.delete_rule AS on_delete, r.update_rule AS on_update
		FROM information_schema.key_column_usage k LEFT JOIN information_schema.referential_constraints r
		ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name AND r.table_name = k.table_name WHERE k.referenced_table_name IS NOT NULL`)
	if err != nil {
		return err
	}
	below := map[[2]string][]*edge{}
	for _, e := range edges {
		if e.deletes || e.updates {
			below[e.parent] = append(below[e.parent], e)
		}
	}
	c.cascades = map[[2]string][]cascade{}
	for parent, first := range below {
		for _, e := range first {
			// What happens to a child's rows may go on to its children.
			seen, left := map[[2]string]bool{}, [][2]string{e.child}
			for len(left) > 0 {
				child := left[0]
				left = left[1:]
				if seen[child] {
					continue
				}
				seen[child] = true
				if c.wanted(child[0], child[1]) {
					one := e.cascade
					one.child = c.name(child[0], child[1])
					c.cascades[parent] = append(c.cascades[parent], one)
				}
				for _, next := range below[child] {
					left = append(left, next.child)
				}
			}
		}
	}
	return nil
}

// text is a value of a primary key as text; false if it has none that everybody
// would write so.
func (col *column) text(value any) (string, bool) {
	switch col.kind {
	case "tinyint", "smallint", "mediumint", "int", "bigint":
		return col.integer(value)
	case "bit":
		v, ok := value.(int64)
		return strconv.FormatUint(uint64(v), 10), ok
	case "year":
		v, ok := value.(int)
		return fmt.Sprintf("%04d", v), ok
	case "decimal", "date", "time", "datetime", "timestamp":
		v, ok := value.(string)
		return v, ok
	case "enum":
		v, ok := value.(int64)
		if !ok || v < 1 || int(v) > len(col.labels) {
			return "", false
		}
		return col.labels[v-1], true
	}
	var raw string
	switch v := value.(type) {
	case string:
		raw = v
	case []byte:
		raw = string(v)
	default:
		return "", false
	}
	padded := func(n int) string { return raw + strings.Repeat("\x00", max(0, n-len(raw))) }
	switch col.kind {
	case "varbinary", "tinyblob", "blob", "mediumblob", "longblob":
		return raw, true
	case "binary":
		// The log leaves out the zeros at the end.
		return padded(col.length), true
	case "uuid":
		return uuidText(padded(16))
	case "inet4", "inet6":
		n := 4
		if col.kind == "inet6" {
			n = 16
		}
		address, ok := netip.AddrFromSlice([]byte(padded(n)))
		return address.String(), ok && len(raw) <= n
	case "char", "varchar", "tinytext", "text", "mediumtext", "longtext":
		return raw, col.readable(raw)
	}
	return "", false
}

// uuidText is a UUID of MariaDB; false if it is none of the known versions, because
// the server has two orders of the bytes, and the log the other one in some
// releases.
func uuidText(raw string) (string, bool) {
	id, err := uuid.FromBytes([]byte(raw))
	return id.String(), err == nil && id.Variant() == uuid.RFC4122 && id.Version() >= 1 && id.Version() <= 8
}

// readable reports whether the bytes of a text are UTF-8.
func (col *column) readable(raw string) bool {
	switch col.charset {
	case "utf8", "utf8mb3", "utf8mb4", "ascii", "binary":
		return true
	case "ucs2", "utf16", "utf16le", "utf32":
		return false
	}
	return !strings.ContainsFunc(raw, func(r rune) bool { return r >= 0x80 })
}

func (col *column) integer(value any) (string, bool) {
	var v int64
	bits := 0
	switch n := value.(type) {
	case int8:
		v, bits = int64(n), 8
	case int16:
		v, bits = int64(n), 16
	case int32:
		v, bits = int64(n), 32
	case int64:
		v, bits = n, 64
	default:
		return "", false
	}
	if !col.unsigned {
		return strconv.FormatInt(v, 10), true
	}
	if col.kind == "mediumint" {
		bits = 24
	}
	return strconv.FormatUint(uint64(v)<<(64-bits)>>(64-bits), 10), true
}
