// Package meter counts what happens on a node, and gathers what the engine counts, as
// package metrics has it.
package meter

import (
	"slices"
	"strings"
	"sync"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/metrics"
)

// A Meter counts events. The zero value has counted nothing. It is safe for concurrent
// use.
type Meter struct {
	mu     sync.Mutex
	counts map[count]float64
	// inside are the connections inside the process, by account.
	inside map[string]int
	// leader of the group that agrees on streams, when it was looked for last.
	leader  string
	changes int

	gathering sync.Mutex
	gathered  gathered
}

// count is what is counted: a family, and the labels of one sample.
type count struct {
	name   string
	labels [3]string
}

func (m *Meter) add(n float64, name string, labels ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.counts == nil {
		m.counts = map[count]float64{}
	}
	c := count{name: name}
	copy(c.labels[:], labels)
	m.counts[c] += n
}

// unknown is a listener that nobody knows of.
const unknown = "unknown"

// Event counts an event, and returns at once.
func (m *Meter) Event(ev admin.Event) {
	listener := ev.Listener
	if listener == "" {
		listener = unknown
	}
	switch ev.Kind {
	case admin.EventConnect:
		m.add(1, "fleetbus_connections_opened_total", listener, ev.Account)
	case admin.EventDisconnect:
		m.add(1, "fleetbus_connections_closed_total", listener, ev.Account, closedReason(ev.Reason))
	case admin.EventRefused:
		m.add(1, "fleetbus_auth_failures_total", listener, refusedReason(ev.Reason))
	case admin.EventLimit:
		m.add(1, "fleetbus_auth_failures_total", listener, "limit")
	case admin.EventSlow:
		m.add(1, "fleetbus_slow_consumers_total", listener, ev.Account)
	case admin.EventDenied:
		m.add(1, "fleetbus_denials_total", ev.Account)
	case admin.EventLeaf, admin.EventRoute, admin.EventGateway:
		if ev.State == admin.LinkUp {
			m.add(1, "fleetbus_link_reconnects_total", ev.Peer, string(ev.Kind))
		}
	case admin.EventDropped:
		m.add(float64(max(1, ev.Count)), "fleetbus_events_dropped_total")
	}
}

// Opened and Closed count the connections inside the process, which the engine has among
// those of clients.
func (m *Meter) Opened(account string) { m.moved(account, 1) }

// Closed is the end of what was Opened.
func (m *Meter) Closed(account string) { m.moved(account, -1) }

func (m *Meter) moved(account string, n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.inside == nil {
		m.inside = map[string]int{}
	}
	if m.inside[account] += n; m.inside[account] == 0 {
		delete(m.inside, account)
	}
}

// Led notes who leads the group that agrees on streams; empty is nobody.
func (m *Meter) Led(leader string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if leader == "" || leader == m.leader {
		return
	}
	if m.leader != "" {
		m.changes++
	}
	m.leader = leader
}

// A word is part of a reason, and what the reason is called in a label.
type word struct{ part, label string }

// closedReason is one of few, of the engine's words for the end of a connection.
func closedReason(reason string) string {
	return labelOf(reason, []word{
		{"Client Closed", "client_closed"}, {"Authentication Expired", "expired"}, {"Credentials Revoked", "revoked"},
		{"Slow Consumer", "slow"}, {"Maximum ", "limit"}, {"Server Shutdown", "shutdown"}, {"Kicked", "kicked"},
		{"Stale Connection", "stale"}, {"Read Error", "network"}, {"Write Error", "network"}, {"Write Deadline", "network"},
		{"Protocol", "protocol"}, {"Parse Error", "protocol"}, {"Duplicate", "replaced"}, {"Authentication", "revoked"},
	})
}

// refusedReason is one of few, of what an operator may know.
func refusedReason(reason string) string {
	return labelOf(reason, []word{
		{"denied", "denied"}, {"expired", "expired"}, {"revoked", "denied"}, {"token", "token"}, {"password", "password"},
		{"no credentials", "no_credentials"}, {"certificate", "certificate"}, {"tls:", "handshake"}, {"handshake", "handshake"},
		{"EOF", "handshake"}, {"there is no user", "unknown"}, {"of no user", "unknown"}, {"no such user", "unknown"},
		{"outside of the hours", "hours"}, {"came in by listener", "listener"}, {"came from", "network"},
		{"the node is starting", "starting"}, {"too many", "limit"}, {"Maximum ", "limit"}, {"credentials", "credentials"},
		{"Authentication", "credentials"}, {"timeout", "handshake"}, {"Timeout", "handshake"}, {"reset by peer", "handshake"},
	})
}

// labelOf is the label of the first word that text has, else metrics.Other.
func labelOf(text string, words []word) string {
	i := slices.IndexFunc(words, func(w word) bool { return strings.Contains(text, w.part) })
	if i < 0 {
		return metrics.Other
	}
	return words[i].label
}
