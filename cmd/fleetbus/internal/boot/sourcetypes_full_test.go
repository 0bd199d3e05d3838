//go:build !lean

package boot

import (
	"log/slog"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/admin"
)

// TestMySQL checks that a program with MySQL in it opens such a source.
func TestMySQL(t *testing.T) {
	open := SourceTypes()["mysql"]
	if s, err := open(admin.Source{}, "reader:secret@tcp(127.0.0.1:3306)/shop", slog.New(slog.DiscardHandler)); err != nil || s == nil {
		t.Errorf("%v, %v", s, err)
	}
	if _, err := open(admin.Source{}, "reader:planted@", slog.New(slog.DiscardHandler)); err == nil || strings.Contains(err.Error(), "planted") {
		t.Errorf("a connection string that is none: %v", err)
	}
}
