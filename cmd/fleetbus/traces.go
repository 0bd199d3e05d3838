//go:build traces

package main

import (
	"context"
	"log/slog"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/internal/traces"
)

// tellTraces has spans told as the standard variables of OpenTelemetry say, until ctx is
// done; wait returns when all are.
func tellTraces(ctx context.Context, o fleetbus.Options, getenv func(string) string, log *slog.Logger) (wait func(), err error) {
	return traces.Tell(ctx, o, getenv, log)
}
