//go:build lean

package boot

import (
	"log/slog"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
)

// openMySQL, openPostgres and openSQLite say how to get a program that can: the clients
// of databases are large, and few nodes of a fleet have one to read.
func openMySQL(admin.Source, string, *slog.Logger) (change.Source, error) {
	return nil, leftOut("MySQL and MariaDB")
}

func openPostgres(admin.Source, string, *slog.Logger) (change.Source, error) {
	return nil, leftOut("PostgreSQL")
}

func openSQLite(admin.Source, string, *slog.Logger) (change.Source, error) {
	return nil, leftOut("SQLite")
}

func leftOut(what string) error {
	return admin.Errorf(admin.Invalid, "make build TAGS=, and run that on the nodes", "this is the lean program, which is built without %s", what)
}
