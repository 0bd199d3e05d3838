package metrics_test

import (
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/metrics"
)

func TestWrite(t *testing.T) {
	var b strings.Builder
	err := metrics.Write(&b, []metrics.Sample{
		metrics.Of("fleetbus_connections", 3, "nats", "b\"\\\n"),
		metrics.Of("fleetbus_connections", 1<<40, "mqtt", "acme"),
		metrics.Of("fleetbus_connections", 0.25, "mqtt", "\xff"),
		metrics.Of("fleetbus_ledger_sequence", 7),
	})
	const want = `# HELP fleetbus_ledger_sequence The last event of the fleet's ledger that the node has applied.
# TYPE fleetbus_ledger_sequence gauge
fleetbus_ledger_sequence 7
# HELP fleetbus_connections Clients that are connected, by the listener that they came in by.
# TYPE fleetbus_connections gauge
fleetbus_connections{listener="mqtt",account="acme"} 1099511627776
fleetbus_connections{listener="mqtt",account="�"} 0.25
fleetbus_connections{listener="nats",account="b\"\\\n"} 3
`
	if err != nil || b.String() != want {
		t.Errorf("it wrote %v\n%s", err, &b)
	}
	for _, lost := range []metrics.Sample{metrics.Of("fleetbus_connection", 1), metrics.Of("fleetbus_connections", 1, "nats")} {
		if err := metrics.Write(&b, []metrics.Sample{lost}); err == nil {
			t.Errorf("%v was written, and is of no family", lost)
		}
	}
}

func TestFamilies(t *testing.T) {
	never := []string{"client", "client_id", "subject", "topic", "ip", "address", "remote", "serial", "user", "principal"}
	seen := map[string]bool{}
	for _, f := range metrics.Families() {
		if seen[f.Name] || !strings.HasPrefix(f.Name, "fleetbus_") || f.Help == "" {
			t.Errorf("family %q is there twice, has no help, or another prefix", f.Name)
		}
		seen[f.Name] = true
		for _, l := range f.Labels {
			for _, n := range never {
				if l == n {
					t.Errorf("family %q has label %q, of which there may be any number", f.Name, l)
				}
			}
		}
	}
}

func TestReady(t *testing.T) {
	quorum := metrics.Condition{Name: "quorum"}
	if !metrics.Ready([]metrics.Condition{quorum, {Name: "state", Holds: true, Counts: true}}) {
		t.Error("a condition that does not count made a node not ready")
	}
	if metrics.Ready([]metrics.Condition{{Name: "state", Counts: true}}) {
		t.Error("a node without what counts is ready")
	}
}
