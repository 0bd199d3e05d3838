package console

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// fleetOf is a fleet of n nodes that are well.
func fleetOf(n int) admin.Status {
	s := admin.Status{Fleet: "shop", Node: "eu-01", Leader: "eu-02", Survives: (n - 1) / 2, Answered: n, Quorum: n/2 + 1, Sequence: 812, Accounts: 4, Users: 120}
	name := func(i int) string { return fmt.Sprintf("eu-%02d", i+1) }
	for i := range n {
		node := admin.NodeInfo{Node: identity.Node{
			Name: name(i), Advertise: "10.0.0.1", ClientAddr: fmt.Sprintf("%s.example.net:4222", name(i)), ClusterAddr: fmt.Sprintf("%s.example.net:6222", name(i)), Version: "1.4.0", Joined: time.Now().Add(-90 * 24 * time.Hour),
		}, State: "up", Leader: i == 1, Voter: true, Applied: 812, Connections: 40 + 13*i, Level: 1, NotAfter: time.Now().Add(60 * 24 * time.Hour), Uptime: 31 * time.Hour, Bus: admin.BusConnected, Unreached: []string{}}
		for j := range n {
			if i != j {
				node.Links = append(node.Links, admin.Link{Node: name(j), Heard: true, Answered: true, RoundTrip: time.Duration(300+40*((i+j)%7)) * time.Microsecond, Bytes: uint64(time.Now().UnixMilli()) * uint64(40+(i+j)%5)})
				node.Routes = append(node.Routes, name(j))
			}
		}
		s.Nodes = append(s.Nodes, node)
	}
	return s
}

// cut has nothing pass between two nodes.
func cut(s *admin.Status, a, b int, oneWay bool) {
	for _, pair := range [][2]int{{a, b}, {b, a}} {
		n, other := &s.Nodes[pair[0]], s.Nodes[pair[1]].Name
		for i := range n.Links {
			if n.Links[i].Node == other {
				n.Links[i].Heard, n.Links[i].Answered = oneWay && pair[0] == a, false
			}
		}
		n.Routes = slices.DeleteFunc(n.Routes, func(r string) bool { return r == other && !oneWay })
		n.Unreached, n.Bus = append(n.Unreached, other), admin.BusCannotReachAll
	}
}

// down has a node answer nobody.
func down(s *admin.Status, i int) {
	n := &s.Nodes[i]
	n.State, n.Links, n.Routes, n.Bus = "down", nil, nil, admin.BusBlocked
	s.Answered--
	for j := range s.Nodes {
		o := &s.Nodes[j]
		for k := range o.Links {
			if o.Links[k].Node == n.Name {
				o.Links[k].Heard, o.Links[k].Answered = false, false
			}
		}
		if j != i {
			o.Unreached = append(o.Unreached, n.Name)
			n.Unreached = append(n.Unreached, o.Name)
		}
	}
}

func TestJudge(t *testing.T) {
	states := func(s admin.Status) (nodes, links map[string]string) {
		nodes, links = map[string]string{}, map[string]string{}
		n, l := judgeNodes("eu", s, time.Now())
		for _, row := range n {
			nodes[row.Name] = row.State
			if row.State != stateUp && (row.Why == "" || row.Fix == "") {
				t.Errorf("node %s is %s and nobody says why, or how to mend it", row.Name, row.State)
			}
		}
		for _, row := range l {
			links[row.A+" "+row.B] = row.State
			if row.State != stateUp && row.Why == "" {
				t.Errorf("link %s %s is %s and nobody says why", row.A, row.B, row.State)
			}
		}
		return nodes, links
	}
	s := fleetOf(3)
	if nodes, links := states(s); nodes["eu-01"] != stateUp || links["eu-01 eu-02"] != stateUp || len(links) != 3 {
		t.Errorf("all is well: %v %v", nodes, links)
	}
	cut(&s, 0, 2, false)
	if nodes, links := states(s); nodes["eu-01"] != statePartly || nodes["eu-02"] != stateUp || links["eu-01 eu-03"] != stateCut || links["eu-01 eu-02"] != stateUp {
		t.Errorf("one link is cut: %v %v", nodes, links)
	}
	s = fleetOf(3)
	cut(&s, 0, 2, true)
	if _, links := states(s); links["eu-01 eu-03"] != stateOneWay {
		t.Errorf("one link goes one way: %v", links)
	}
	s = fleetOf(3)
	down(&s, 2)
	if nodes, links := states(s); nodes["eu-03"] != stateDown || links["eu-01 eu-03"] != stateDown || nodes["eu-01"] != stateUp {
		t.Errorf("one node is down: %v %v", nodes, links)
	}
	// Who answers hears nobody: it is deaf, and the others are not called down.
	s = fleetOf(3)
	down(&s, 1)
	down(&s, 2)
	for i := range s.Nodes {
		s.Nodes[i].Bus = admin.BusUnknown
	}
	s.Nodes[0].Bus = admin.BusBlocked
	if nodes, links := states(s); nodes["eu-01"] != stateDeaf || nodes["eu-02"] != stateUnknown || links["eu-02 eu-03"] != stateUnknown || links["eu-01 eu-02"] != stateCut {
		t.Errorf("the node that answers is deaf: %v %v", nodes, links)
	}
	// It did not answer us, and another node hears it: the link to us is cut, and the other
	// is as good as before.
	s = fleetOf(3)
	cut(&s, 0, 2, false)
	s.Nodes[2].State = "down"
	if nodes, links := states(s); nodes["eu-03"] != statePartly || links["eu-01 eu-03"] != stateCut || links["eu-02 eu-03"] != stateUp {
		t.Errorf("a node that others hear: %v %v", nodes, links)
	}
	// The causes.
	for want, edit := range map[string]func(a, b *admin.NodeInfo){
		"certificate": func(a, _ *admin.NodeInfo) { a.NotAfter = time.Now().Add(-time.Hour) },
		"clocks":      func(a, _ *admin.NodeInfo) { a.Clock = 2 * time.Hour },
		"version":     func(a, _ *admin.NodeInfo) { a.Version, a.Level = "0.9.0", 0 },
		"port":        func(_, _ *admin.NodeInfo) {},
	} {
		s := fleetOf(3)
		cut(&s, 0, 1, false)
		edit(&s.Nodes[0], &s.Nodes[1])
		if l := judgeLink(&s.Nodes[0], &s.Nodes[1], "", sightOf(s)); !strings.Contains(l.Why, want) || l.Fix == "" {
			t.Errorf("the cause should be the %s: %q, %q", want, l.Why, l.Fix)
		}
	}
}

// TestFresh has the news of the links be younger than the status.
func TestFresh(t *testing.T) {
	judged := func(s admin.Status, views ...admin.LinkView) (nodes map[string]nodeRow, links map[string]linkRow) {
		nodes, links = map[string]nodeRow{}, map[string]linkRow{}
		n, l := judgeNodes("eu", fresh(s, admin.LinkViews{Node: "eu-01", Views: views}), time.Now())
		for _, row := range n {
			nodes[row.Name] = row
		}
		for _, row := range l {
			links[row.A+" "+row.B] = row
		}
		return nodes, links
	}
	lost := func(name string, others ...string) admin.LinkView {
		return admin.LinkView{Node: name, Unheard: others, Unanswered: others}
	}
	// Of a cut, the third tells how the other end sees it.
	told := lost("eu-02", "eu-01")
	told.Told = true
	nodes, links := judged(fleetOf(3), lost("eu-01", "eu-02"), told, admin.LinkView{Node: "eu-03"})
	if l := links["eu-01 eu-02"]; l.State != stateCut || !strings.Contains(l.Why, "other nodes hear both") || l.AtA == "" || l.AtB == "" || l.Fix == "" {
		t.Errorf("a link that was cut after the last status: %+v", l)
	}
	if nodes["eu-02"].State != statePartly || nodes["eu-03"].State != stateUp || links["eu-02 eu-03"].State != stateUp {
		t.Errorf("the rest of the fleet: %+v %+v", nodes, links)
	}
	// Nobody hears a node: it is down.
	nodes, links = judged(fleetOf(3), lost("eu-01", "eu-02"), lost("eu-03", "eu-02"))
	if nodes["eu-02"].State != stateDown || links["eu-01 eu-02"].State != stateDown || links["eu-01 eu-03"].State != stateUp {
		t.Errorf("a node that stopped after the last status: %+v %+v", nodes, links)
	}
	// The one that answers hears nobody.
	nodes, _ = judged(fleetOf(3), lost("eu-01", "eu-02", "eu-03"))
	if nodes["eu-01"].State != stateDeaf || nodes["eu-02"].State != stateUnknown {
		t.Errorf("a node that became deaf: %+v", nodes)
	}
	// All is well again, and the status is older.
	s := fleetOf(3)
	down(&s, 1)
	nodes, links = judged(s, lost("eu-01"), lost("eu-02"), lost("eu-03"))
	if nodes["eu-02"].State != stateUp || links["eu-01 eu-02"].State != stateUp || links["eu-02 eu-03"].State != stateUp {
		t.Errorf("a node that came back after the last status: %+v %+v", nodes, links)
	}
}
