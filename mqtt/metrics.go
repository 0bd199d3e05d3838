package mqtt

import (
	"context"

	"github.com/fleetbus/fleetbus/metrics"
)

// Metrics implements metrics.Source: messages of QoS 0 that were dropped because their
// client did not read, or read more slowly than they came.
func (p *Protocol) Metrics(context.Context) []metrics.Sample {
	return []metrics.Sample{metrics.Of("fleetbus_messages_dropped_total", float64(p.dropped.Load()), "mqtt", "slow_reader")}
}
