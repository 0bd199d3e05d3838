//go:build lean

package main

import (
	"log/slog"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
)

// openMySQL and openSQLite say how to get a program that can: the clients of these
// databases are large, and most fleets need neither.
func openMySQL(admin.Source, string, *slog.Logger) (change.Source, error) {
	return nil, leftOut("MySQL and MariaDB")
}

func openSQLite(admin.Source, string, *slog.Logger) (change.Source, error) {
	return nil, leftOut("SQLite")
}

func leftOut(what string) error {
	return admin.Errorf(admin.Invalid, "make build TAGS=, and run that on the nodes", "this is the lean program, which is built without %s", what)
}
