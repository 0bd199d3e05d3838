//go:build !mysql

package main

import (
	"log/slog"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
)

// openMySQL says how to get a program that can: its client of MySQL is large, and
// most fleets have none.
func openMySQL(admin.Source, string, *slog.Logger) (change.Source, error) {
	return nil, admin.Errorf(admin.Invalid, "make build TAGS=mysql, and run that on the nodes",
		"this program was built without MySQL and MariaDB: they need -tags mysql")
}
