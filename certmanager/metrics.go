package certmanager

import (
	"context"
	"strings"

	"github.com/fleetbus/fleetbus/metrics"
)

// Samples are the status as package metrics has it: when certificates end, who serves
// them, what fails.
func (s Status) Samples() (all []metrics.Sample) {
	for _, c := range s.Certificates {
		name := ""
		if len(c.Names) > 0 {
			name = c.Names[0]
		}
		add := func(family string, value int64, more ...string) {
			all = append(all, metrics.Of(family, float64(value), append([]string{c.ID, c.Group, name}, more...)...))
		}
		if !c.NotAfter.IsZero() {
			add("fleetbus_certificate_not_after_timestamp_seconds", c.NotAfter.Unix())
		}
		if !c.Renews.IsZero() {
			add("fleetbus_certificate_renews_timestamp_seconds", c.Renews.Unix())
		}
		attempts := 0
		if c.Failure != nil {
			attempts = c.Failure.Attempts
		}
		add("fleetbus_certificate_failed_attempts", int64(attempts))
		add("fleetbus_certificate_targets", int64(c.Current), "current")
		add("fleetbus_certificate_targets", int64(c.Pending), "pending")
		add("fleetbus_certificate_targets", int64(c.Failed), "failed")
		add("fleetbus_certificate_targets", int64(c.Away), "away")
	}
	codes := map[string]int{}
	for _, f := range s.Findings {
		codes[f.Code]++
	}
	for code, n := range codes {
		all = append(all, metrics.Of("fleetbus_certificate_findings", float64(n), code))
	}
	return all
}

// Metrics are the samples in the text format of Prometheus and OpenMetrics, for a file
// that a collector reads.
func (s Status) Metrics() string {
	var b strings.Builder
	// A Builder takes everything, and the families are in the table.
	_ = metrics.Write(&b, s.Samples())
	return b.String()
}

// mostMeasured is how many certificates a node's metrics tell of.
const mostMeasured = 2000

// Metrics implements metrics.Source: the status, while the Manager runs.
func (m *Manager) Metrics(ctx context.Context) []metrics.Sample {
	s := m.session()
	if s == nil {
		return nil
	}
	status, err := s.status(ctx, StatusRequest{}, nil)
	if err != nil {
		return nil // its findings say why
	}
	status.Certificates = status.Certificates[:min(len(status.Certificates), mostMeasured)]
	return status.Samples()
}
