package meter

import (
	"testing"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/metrics"
)

func TestReasons(t *testing.T) {
	for reason, want := range map[string]string{
		"user \"acme/web\" is denied since 2026-01-01T00:00:00Z": "denied", "checking the password of \"acme/web\": wrong password": "password",
		"no credentials were presented": "no_credentials", "there is no user \"acme/web\"": "unknown", "the certificate of \"CN=x\" is of no user": "certificate",
		"tls: first record does not look like a TLS handshake": "handshake", "something else": metrics.Other, "checking token \"x\": token has expired": "expired",
	} {
		if got := refusedReason(reason); got != want {
			t.Errorf("%q is %q, and not %q", reason, got, want)
		}
	}
	for reason, want := range map[string]string{
		"Client Closed": "client_closed", "Credentials Revoked": "revoked", "Slow Consumer (Pending Bytes)": "slow", "Maximum Payload Exceeded": "limit",
		"Read Error": "network", "Anything": metrics.Other,
	} {
		if got := closedReason(reason); got != want {
			t.Errorf("%q is %q, and not %q", reason, got, want)
		}
	}
}

// TestEvents counts what may be told, and never more kinds of it than there are.
func TestEvents(t *testing.T) {
	var m Meter
	for range 3 {
		m.Event(admin.Event{Kind: admin.EventRefused, Reason: "no credentials were presented", Address: "192.0.2.1", Principal: "acme/secret"})
	}
	m.Event(admin.Event{Kind: admin.EventDropped, Count: 7})
	m.Event(admin.Event{Kind: admin.EventRoute, State: admin.LinkUp, Peer: "n2"})
	m.Event(admin.Event{Kind: admin.EventRoute, State: admin.LinkDown, Peer: "n2"})
	want := map[count]float64{
		{"fleetbus_auth_failures_total", [3]string{unknown, "no_credentials"}}: 3,
		{"fleetbus_events_dropped_total", [3]string{}}:                         7,
		{"fleetbus_link_reconnects_total", [3]string{"n2", "route"}}:           1,
	}
	for c, n := range want {
		if m.counts[c] != n {
			t.Errorf("%v is %v", c, m.counts[c])
		}
	}
	if len(m.counts) != len(want) {
		t.Errorf("it counted %v", m.counts)
	}
	m.Opened("acme")
	m.Closed("acme")
	if len(m.inside) != 0 {
		t.Errorf("inside are %v", m.inside)
	}
	for _, leader := range []string{"", "a", "", "a", "b"} {
		m.Led(leader)
	}
	if m.changes != 1 {
		t.Errorf("the leader changed %d times", m.changes)
	}
}

func TestLife(t *testing.T) {
	var l Life
	ready := func() bool { return metrics.Ready(l.Conditions(false)) }
	if ready() {
		t.Error("a node that starts is ready")
	}
	l.Reach(Joining)
	if ready() {
		t.Error("a node that joins is ready")
	}
	l.Serve(nil)
	if !ready() {
		t.Error("a node that serves is not ready")
	}
	l.Reach(Draining)
	l.Serve(nil)
	if ready() {
		t.Error("a node that drains is ready")
	}
}

func TestMerged(t *testing.T) {
	got := merged([]metrics.Sample{
		metrics.Of("fleetbus_certificate_findings", 1, "A"), metrics.Of("fleetbus_certificate_findings", 2, "A"), metrics.Of("fleetbus_certificate_findings", 4, "B"),
		metrics.Of("fleetbus_source_seen_timestamp_seconds", 9, "a", "s"), metrics.Of("fleetbus_source_seen_timestamp_seconds", 7, "a", "s"),
	})
	if len(got) != 3 || got[0].Value != 3 || got[1].Value != 4 || got[2].Value != 7 {
		t.Errorf("merged are %v", got)
	}
}
