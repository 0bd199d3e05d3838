package check_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/check"
)

func fleet(edit func(*admin.Status)) admin.Status {
	s := admin.Status{Fleet: "f", Node: "n1", Leader: "n1", Answered: 3, Quorum: 2, Survives: 1}
	for _, name := range []string{"n1", "n2", "n3"} {
		n := admin.NodeInfo{State: "up", Bus: admin.BusConnected, NotAfter: time.Unix(1_800_000_000, 0)}
		n.Name = name
		s.Nodes = append(s.Nodes, n)
	}
	edit(&s)
	return s
}

func TestJudgments(t *testing.T) {
	now := time.Unix(1_800_000_000, 0).Add(-5 * 24 * time.Hour)
	const day = 24 * time.Hour
	well := fleet(func(*admin.Status) {})
	source := admin.SourceInfo{Source: admin.Source{Account: "acme", Name: "orders"}, State: admin.SourceRunning, Runner: "n1", Progress: change.Progress{Lag: 20 * time.Second}}
	failed := source
	failed.State, failed.Error = admin.SourceFailed, "the slot is gone"
	problem := doctor.Finding{Code: "DISK-LOW", Severity: doctor.Problem, Subject: "n2", Text: "little is left"}
	copies := []check.Copy{{Node: "n2", Current: true}, {Node: "n3", Current: true, Lag: 20}}
	for _, c := range []struct {
		name  string
		got   check.Result
		state check.State
		says  string
	}{
		{"well", check.Cluster(well), check.OK, "CLUSTER OK - 3 of 3 nodes answer"},
		{"one down", check.Cluster(fleet(func(s *admin.Status) { s.Answered, s.Nodes[2].State = 2, "down" })), check.Warning, "node n3 is down"},
		// The survivor still believes that it leads.
		{"lying leader", check.Cluster(fleet(func(s *admin.Status) { s.Answered = 1 })), check.Critical, "no quorum answers"},
		{"no leader", check.Cluster(fleet(func(s *admin.Status) { s.Leader = "" })), check.Critical, "no leader"},
		{"problem", check.Cluster(fleet(func(s *admin.Status) { s.Findings = append(s.Findings, problem) })), check.Warning, "DISK-LOW n2: little is left"},
		{"node", check.Node(well, ""), check.OK, "node n1 is up"},
		{"node down", check.Node(fleet(func(s *admin.Status) { s.Nodes[1].State = "down" }), "n2"), check.Critical, "does not answer"},
		{"node cut", check.Node(fleet(func(s *admin.Status) { s.Nodes[1].Bus, s.Nodes[1].Unreached = admin.BusCannotReachAll, []string{"n3"} }), "n2"), check.Warning, "does not reach n3"},
		{"node blocked", check.Node(fleet(func(s *admin.Status) { s.Nodes[1].Bus = admin.BusBlocked }), "n2"), check.Critical, "reaches no other"},
		{"no node", check.Node(well, "n9"), check.Unknown, "there is no node n9"},
		{"certificates", check.Certificates(check.Nodes(well), now, 4*day, 2*day), check.OK, "3 certificates"},
		{"certificates soon", check.Certificates(check.Nodes(well), now, 6*day, 2*day), check.Warning, "node n1: ends 2027-01-15"},
		{"certificates late", check.Certificates(check.Nodes(well), now, 9*day, 6*day), check.Critical, "ends"},
		{"certificates over", check.Certificates(check.Nodes(well), now.Add(9*day), 9*day, 6*day), check.Critical, "ends"},
		{"no certificate", check.Certificates(nil, now, day, day), check.Unknown, "no certificate"},
		{"source", check.Sources([]admin.SourceInfo{source}, "", time.Minute, time.Hour), check.OK, "'acme/orders'=20s;60;3600;;"},
		{"source late", check.Sources([]admin.SourceInfo{source}, "acme/orders", 10*time.Second, time.Hour), check.Warning, "20s behind"},
		{"source failed", check.Sources([]admin.SourceInfo{failed}, "", time.Minute, time.Hour), check.Critical, "the slot is gone"},
		{"no source", check.Sources([]admin.SourceInfo{source}, "acme/other", time.Minute, time.Hour), check.Unknown, "no such source"},
		{"stream", check.Stream("S", "n1", 7, 3, copies, 100, 1000), check.OK, "'lag_n3'=20;100;1000;;"},
		{"stream late", check.Stream("S", "n1", 7, 3, copies, 10, 15), check.Critical, "the copy on n3 lacks 20"},
		{"stream led by nobody", check.Stream("S", "", 7, 3, copies, 100, 1000), check.Critical, "nobody leads it"},
		{"stream short", check.Stream("S", "n1", 7, 3, copies[:1], 100, 1000), check.Warning, "is to have 3 copies"},
		{"consumer", check.Consumer("S", "c", 5, 1, 10, 20), check.OK, "'pending'=5;10;20;;"},
		{"consumer late", check.Consumer("S", "c", 15, 1, 10, 20), check.Warning, "15 messages"},
		{"targets", check.Targets([]check.Rollout{{Name: "www", Current: 2, Pending: 1}}), check.OK, "2 targets current, 1 pending"},
		{"targets away", check.Targets([]check.Rollout{{Name: "www", Current: 2, Away: 1}}), check.Warning, "1 targets are away"},
		{"targets failed", check.Targets([]check.Rollout{{Name: "www", Failed: 1, Details: []string{"lb-7: reload failed"}}}), check.Critical, "lb-7: reload failed"},
	} {
		if text := c.got.String(); c.got.State != c.state || !strings.Contains(text, c.says) || !strings.Contains(strings.Split(text, "\n")[0], c.state.String()) {
			t.Errorf("%s: state %v:\n%s", c.name, c.got.State, text)
		}
		if b, err := json.Marshal(c.got); err != nil || !strings.Contains(string(b), `"lines":[`) || !strings.Contains(string(b), `"perf":[`) {
			t.Errorf("%s: %s, %v", c.name, b, err)
		}
	}
}

// TestPlain has names from elsewhere pretend to be something else.
func TestPlain(t *testing.T) {
	r := check.Result{Name: "x", Text: "a | 'b'=0\nFLEETBUS X OK", State: check.Critical, Perf: []check.Perf{{Name: "it's=1\n|", Value: 1}}}
	const want = "FLEETBUS X CRITICAL - a / 'b'=0 FLEETBUS X OK | 'it_s_1 /'=1;;;;"
	if got := r.String(); got != want {
		t.Errorf("it is %q, want %q", got, want)
	}
}
