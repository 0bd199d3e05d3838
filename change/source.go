package change

import (
	"context"
	"time"
)

// A Source tells of the changes of one database.
type Source interface {
	// Run announces every change to p until ctx is done, and then returns nil. It
	// can be called again after it returned.
	//
	// A Source that may have missed something announces a Resync of the part that
	// it concerns, when it starts too; one that keeps its place in the database
	// over restarts moves it only when p.Flush has returned nil. It announces keys
	// and kinds, and lets no other content of a row leave its process. It tells p
	// where it stands by p.Report.
	//
	// A database that is away, or goes away, is an error, and so is one that is not
	// set up: then the error is a *SetupError. Run is called again after a pause.
	Run(ctx context.Context, p *Publisher) error
}

// A SetupError says what is missing in a database, and how to add it.
type SetupError struct {
	// Problem is what is missing, Fix the statements or settings that add it.
	Problem, Fix string
}

// Error gives problem and fix.
func (e *SetupError) Error() string { return e.Problem + "; fix: " + e.Fix }

// Progress is where a Source stands.
type Progress struct {
	// Position in the database's own notation: an LSN, a GTID, a row number.
	Position string `json:"position,omitempty"`
	// Version and Epoch are those of the last notice.
	Version uint64 `json:"version,omitempty"`
	Epoch   string `json:"epoch,omitempty"`
	// Seen is when the database was last heard of, and Lag how long after its
	// commit the last change was announced.
	Seen time.Time     `json:"seen,omitzero"`
	Lag  time.Duration `json:"lag_ns,omitempty"`
	// Retained is what the database keeps for this source, in bytes.
	Retained uint64 `json:"retained,omitempty"`
	// Warning is what an operator should know, with its fix; empty if nothing.
	Warning string `json:"warning,omitempty"`
}
