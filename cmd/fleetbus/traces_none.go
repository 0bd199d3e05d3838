//go:build !traces

package main

import (
	"context"
	"log/slog"

	"github.com/fleetbus/fleetbus"
)

// tellTraces has nothing told: this program was built without the tag traces.
func tellTraces(context.Context, fleetbus.Options, func(string) string, *slog.Logger) (wait func(), err error) {
	return func() {}, nil
}
