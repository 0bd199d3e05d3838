package amqp

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/metrics"
)

// TestMetrics holds what a node tells of AMQP to what happened, and to the table.
func TestMetrics(t *testing.T) {
	h := start(t, real)
	ch := h.channel(t)
	for name, durable := range map[string]bool{"lasting": true, "memory": false} {
		if _, err := ch.QueueDeclare(name, durable, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		send(t, ch, "", "memory", amqp091.Publishing{Body: []byte("0123456789")})
	}
	send(t, ch, "", "lasting", amqp091.Publishing{})
	next(t, consumed(t, ch, "lasting"))
	got, err := ch.Consume("memory", "", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := next(t, got).Ack(false); err != nil {
		t.Fatal(err)
	}
	next(t, got)
	next(t, got)
	told := func() (all []string) {
		var b strings.Builder
		if err := metrics.Write(&b, h.p.Metrics(t.Context())); err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(b.String()) {
			if !strings.HasPrefix(line, "#") {
				all = append(all, strings.TrimSpace(line))
			}
		}
		return all
	}
	want := []string{
		`fleetbus_amqp_queues{account="acme",durable="true"} 1`, `fleetbus_amqp_queues{account="acme",durable="false"} 1`,
		`fleetbus_amqp_messages{account="acme",state="ready"} 0`, `fleetbus_amqp_messages{account="acme",state="unacknowledged"} 2`,
		`fleetbus_amqp_consumers{account="acme"} 2`, `fleetbus_amqp_connections{account="acme"} 1`, `fleetbus_amqp_idle_queues{account="acme"} 0`,
		`fleetbus_amqp_blocked 0`, fmt.Sprint("fleetbus_amqp_memory_limit_bytes ", h.p.maxMemory()),
	}
	eventually(t, "what happened is told", func() bool {
		have := told()
		return !slices.ContainsFunc(want, func(line string) bool { return !slices.Contains(have, line) })
	})
	if v := told(); slices.Contains(v, "fleetbus_amqp_memory_bytes 0") {
		t.Errorf("messages take no memory: %v", v)
	}
}
