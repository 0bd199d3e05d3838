//go:build !lean

package boot

import (
	"log/slog"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/mysql"
	"github.com/fleetbus/fleetbus/change/postgres"
	"github.com/fleetbus/fleetbus/change/sqlite"
)

// openMySQL makes a source of MySQL or MariaDB.
func openMySQL(s admin.Source, dsn string, _ *slog.Logger) (change.Source, error) {
	return mysql.New(mysql.Options{DSN: dsn, Tables: s.Tables, PositionFile: s.Place})
}

// openPostgres makes a source of PostgreSQL.
func openPostgres(s admin.Source, dsn string, _ *slog.Logger) (change.Source, error) {
	return postgres.New(postgres.Options{DSN: dsn, Tables: s.Tables, Slot: s.Place})
}

// openSQLite makes a source of a SQLite file.
func openSQLite(s admin.Source, dsn string, _ *slog.Logger) (change.Source, error) {
	return sqlite.New(sqlite.Options{Path: dsn, Tables: s.Tables})
}
