package main

import (
	"log/slog"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/postgres"
)

// sourceTypes are the databases that a node of this program can read.
func sourceTypes() map[string]fleetbus.OpenSource {
	return map[string]fleetbus.OpenSource{
		"mysql": openMySQL,
		"postgres": func(s admin.Source, dsn string, _ *slog.Logger) (change.Source, error) {
			return postgres.New(postgres.Options{DSN: dsn, Tables: s.Tables, Slot: s.Place})
		},
		"sqlite": openSQLite,
	}
}
