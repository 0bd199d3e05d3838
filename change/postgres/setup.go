package postgres

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/fleetbus/fleetbus/change"
)

// setup is what the database has to have for a Source, over an ordinary
// connection.
type setup struct {
	options Options
	conn    *pgx.Conn
	// published are the tables of the publication, and keyless those without a
	// primary key, which are left out of it.
	published map[string]bool
	keyless   []string
}

// check refuses a database that lacks something, and makes the publication.
func (s *setup) check(ctx context.Context) error {
	var level, role string
	var may bool
	var slots, used int
	err := s.conn.QueryRow(ctx, `SELECT current_setting('wal_level'), current_user, (SELECT rolreplication OR rolsuper FROM pg_roles WHERE rolname = current_user),
		least(current_setting('max_replication_slots')::int, current_setting('max_wal_senders')::int), (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1)`, s.options.Slot).
		Scan(&level, &role, &may, &slots, &used)
	if err != nil {
		return fmt.Errorf("looking at the server's settings: %w", err)
	}
	switch {
	case level != "logical":
		return &change.SetupError{Problem: "wal_level is " + level, Fix: "ALTER SYSTEM SET wal_level = logical; and restart the server"}
	case !may:
		return &change.SetupError{Problem: fmt.Sprintf("user %q may not replicate", role), Fix: "ALTER ROLE " + quote(role) + " REPLICATION;"}
	case used >= slots:
		return &change.SetupError{Problem: fmt.Sprintf("all %d replication slots or senders are in use", slots),
			Fix: fmt.Sprintf("ALTER SYSTEM SET max_replication_slots = %[1]d; ALTER SYSTEM SET max_wal_senders = %[1]d; and restart the server", slots+10)}
	}
	_, err = s.publish(ctx)
	return err
}

// publish brings the publication up to date, and returns the tables that it did
// not have, or has no more.
func (s *setup) publish(ctx context.Context) (changed []string, err error) {
	wanted, err := s.wanted(ctx)
	if err != nil {
		return nil, err
	}
	exists, all := false, false
	err = s.conn.QueryRow(ctx, "SELECT puballtables FROM pg_publication WHERE pubname = $1", s.options.Publication).Scan(&all)
	switch {
	case err == nil:
		exists = true
	case !errors.Is(err, pgx.ErrNoRows):
		return nil, fmt.Errorf("looking for publication %q: %w", s.options.Publication, err)
	}
	has, err := s.names(ctx, "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1", s.options.Publication)
	if err != nil {
		return nil, fmt.Errorf("looking at publication %q: %w", s.options.Publication, err)
	}
	var missing []string
	for name, quoted := range wanted {
		if _, ok := has[name]; !ok {
			missing = append(missing, quoted)
		}
	}
	slices.Sort(missing)
	statement := ""
	switch {
	case !exists && len(missing) > 0:
		statement = "CREATE PUBLICATION " + quote(s.options.Publication) + " FOR TABLE " + strings.Join(missing, ", ")
	case !exists:
		statement = "CREATE PUBLICATION " + quote(s.options.Publication)
	case !all && len(missing) > 0:
		statement = "ALTER PUBLICATION " + quote(s.options.Publication) + " ADD TABLE " + strings.Join(missing, ", ")
	}
	if statement != "" {
		if err := s.install(ctx, statement); err != nil {
			return nil, err
		}
		if has, err = s.names(ctx, "SELECT schemaname, tablename FROM pg_publication_tables WHERE pubname = $1", s.options.Publication); err != nil {
			return nil, err
		}
	}
	now := map[string]bool{}
	for name := range has {
		if now[name] = true; !s.published[name] {
			changed = append(changed, name)
		}
	}
	for name := range s.published {
		if !now[name] {
			changed = append(changed, name)
		}
	}
	s.published = now
	return changed, nil
}

func (s *setup) install(ctx context.Context, statement string) error {
	if s.options.NoInstall {
		return &change.SetupError{Problem: fmt.Sprintf("publication %q is missing, or lacks tables", s.options.Publication), Fix: statement + ";"}
	}
	_, err := s.conn.Exec(ctx, statement)
	var refused *pgconn.PgError
	if errors.As(err, &refused) && refused.Code == "42501" {
		return &change.SetupError{Problem: "publication cannot be made: " + refused.Message, Fix: "have the owner of the tables run: " + statement + ";"}
	}
	if err != nil {
		return fmt.Errorf("making publication %q: %w", s.options.Publication, err)
	}
	return nil
}

// wanted are the tables to publish, quoted, by name. One without a replica
// identity is left out: once it were published, its rows could be changed no
// more.
func (s *setup) wanted(ctx context.Context) (map[string]string, error) {
	const tables = `SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
		WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p' AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg\_%'`
	const identified = ` AND (c.relreplident IN ('f', 'i') OR c.relreplident = 'd' AND EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.oid AND i.indisprimary))`
	all, err := s.names(ctx, tables)
	if err != nil {
		return nil, fmt.Errorf("listing the tables: %w", err)
	}
	with, err := s.names(ctx, tables+identified)
	if err != nil {
		return nil, fmt.Errorf("listing the tables: %w", err)
	}
	s.keyless = nil
	if len(s.options.Tables) == 0 {
		for name := range all {
			if _, ok := with[name]; !ok {
				s.keyless = append(s.keyless, name)
			}
		}
		slices.Sort(s.keyless)
		return with, nil
	}
	wanted := map[string]string{}
	for _, name := range s.options.Tables {
		name = strings.TrimPrefix(name, "public.")
		quoted, ok := with[name]
		switch {
		case ok:
			wanted[name] = quoted
		case all[name] != "":
			return nil, &change.SetupError{Problem: fmt.Sprintf("table %q has no primary key, by which its rows could be named", name),
				Fix: "ALTER TABLE " + all[name] + " ADD PRIMARY KEY (…); or ALTER TABLE " + all[name] + " REPLICA IDENTITY FULL;"}
		case s.published == nil:
			return nil, &change.SetupError{Problem: fmt.Sprintf("there is no table %q", name), Fix: "create it, or leave it out of the source's tables"}
		}
	}
	return wanted, nil
}

// names are tables, quoted, by their names.
func (s *setup) names(ctx context.Context, query string, args ...any) (map[string]string, error) {
	rows, err := s.conn.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	var schema, name string
	_, err = pgx.ForEachRow(rows, []any{&schema, &name}, func() error {
		all[tableName(schema, name)] = pgx.Identifier{schema, name}.Sanitize()
		return nil
	})
	return all, err
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
	rows, err := s.conn.Query(ctx, `SELECT a.attname FROM pg_index i, unnest(i.indkey) WITH ORDINALITY AS k(attnum, place) JOIN pg_attribute a ON a.attnum = k.attnum
		WHERE i.indrelid = $1 AND a.attrelid = $1 AND i.indisprimary ORDER BY k.place`, relation)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// warning says which tables are left out.
func (s *setup) warning() string {
	if len(s.keyless) == 0 {
		return ""
	}
	return fmt.Sprintf("tables without a primary key are not told of: %s; fix: give them one, or REPLICA IDENTITY FULL", strings.Join(s.keyless[:min(3, len(s.keyless))], ", "))
}

func quote(name string) string { return pgx.Identifier{name}.Sanitize() }
