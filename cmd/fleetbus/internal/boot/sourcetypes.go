package boot

import "github.com/fleetbus/fleetbus"

// SourceTypes are the databases that a node of this program can read.
func SourceTypes() map[string]fleetbus.OpenSource {
	return map[string]fleetbus.OpenSource{
		"mysql":    openMySQL,
		"postgres": openPostgres,
		"sqlite":   openSQLite,
	}
}
