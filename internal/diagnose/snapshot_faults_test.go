package diagnose_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/diagnose"
	"github.com/fleetbus/fleetbus/internal/explain"
	"github.com/fleetbus/fleetbus/internal/links"
)

// well are the facts of a fleet of n nodes that is well.
func well(n int) diagnose.Facts {
	now := time.Now()
	f := diagnose.Facts{Now: now, Status: admin.Status{Fleet: "fleet", Node: "n1", Leader: "n1", Sequence: 42}}
	for i := range n {
		node := admin.NodeInfo{
			Node: identity.Node{Name: fmt.Sprint("n", i+1), Version: "1.0.0", Joined: now.Add(-time.Hour)}, State: "up", Voter: true, Applied: 42,
			Level: links.Level, NotAfter: now.Add(20 * time.Hour), Bus: admin.BusConnected,
		}
		e := admin.Examination{Node: node.Name, Results: []doctor.Result{{Group: "node", Check: "clock", State: doctor.OK, Subject: "clock"}}}
		for j := range n {
			if other := fmt.Sprint("n", j+1); other != node.Name {
				node.Links = append(node.Links, admin.Link{Node: other, Heard: true, Answered: true, RoundTrip: time.Millisecond})
				e.Dials = append(e.Dials, admin.Dial{Node: other, What: "cluster", Addr: other + ":6222"}, admin.Dial{Node: other, What: "clients", Addr: other + ":4222"})
			}
		}
		f.Status.Nodes, f.Exams = append(f.Status.Nodes, node), append(f.Exams, e)
	}
	f.Streams.Streams = []admin.StreamInfo{{Account: "acme", Name: "ORDERS", Replicas: 3, Leader: "n1", Copies: []admin.Copy{{Node: "n2", Current: true}, {Node: "n3", Current: true}}}}
	f.Accounts = []admin.AccountInfo{{Account: identity.Account{Name: "acme"}, Streams: 1}}
	return f
}

// fail has the dials of a node to another fail.
func fail(f *diagnose.Facts, from, to, what string) {
	for i := range f.Exams {
		for k := range f.Exams[i].Dials {
			if d := &f.Exams[i].Dials[k]; (from == "" || f.Exams[i].Node == from) && (to == "" || d.Node == to) && (what == "" || d.What == what) {
				d.Error = "no answer"
			}
		}
	}
}

// refuse makes of connections that failed such as were refused.
func refuse(f *diagnose.Facts, from ...string) {
	for i := range f.Exams {
		for k := range f.Exams[i].Dials {
			if d := &f.Exams[i].Dials[k]; slices.Contains(from, f.Exams[i].Node) && d.Error != "" {
				d.Error, d.Refused = "connection refused", true
			}
		}
	}
}

// TestFaultsOfFacts judges facts that a test cannot make of real nodes on one machine:
// clocks that differ, firewalls, versions, a million subjects.
func TestFaultsOfFacts(t *testing.T) {
	for _, c := range []struct {
		name string
		// want is an outline: code@node of what stands by itself, and in brackets what it
		// explains.
		want   string
		change func(*diagnose.Facts)
	}{
		{"well", "", func(*diagnose.Facts) {}},
		{"clock of one", "CLOCK-SKEW@n2", func(f *diagnose.Facts) {
			// The node that was asked is n2, to which all others seem to be off.
			for i := range f.Status.Nodes {
				n := &f.Status.Nodes[i]
				for k := range n.Links {
					switch {
					case n.Name == "n2":
						n.Links[k].Skew = -time.Minute
					case n.Links[k].Node == "n2":
						n.Links[k].Skew = time.Minute
					}
				}
			}
			f.Status.Findings = []doctor.Finding{{Code: "CLOCK-SKEW", Severity: doctor.Warning, Subject: "n1"}, {Code: "CLOCK-SKEW", Severity: doctor.Warning, Subject: "n3"}}
		}},
		{"port closed to all", "ADDRESS-UNREACHABLE@n2", func(f *diagnose.Facts) { fail(f, "", "n2", "cluster") }},
		{"nobody listens", "ADDRESS-REFUSED@n2", func(f *diagnose.Facts) {
			fail(f, "", "n2", "cluster")
			refuse(f, "n1", "n3")
		}},
		{"nobody listens, and the node says so", "PORT-UNUSED@n2(ADDRESS-REFUSED@n2)", func(f *diagnose.Facts) {
			fail(f, "", "n2", "cluster")
			refuse(f, "n1", "n3")
			f.Exams[1].Results = []doctor.Result{{Group: "network", Check: "ports", State: doctor.Fail, Code: "PORT-UNUSED", Subject: "cluster"}}
		}},
		{"some are refused, and some not answered", "ADDRESS-UNREACHABLE@n2", func(f *diagnose.Facts) {
			fail(f, "", "n2", "cluster")
			refuse(f, "n1")
		}},
		{"one is rejected", "ADDRESS-BLOCKED@n2", func(f *diagnose.Facts) {
			fail(f, "n1", "n2", "clients")
			refuse(f, "n1")
		}},
		{"port closed to one", "ADDRESS-BLOCKED@n3", func(f *diagnose.Facts) { fail(f, "n1", "n3", "clients") }},
		{"port closed one way, and no link", "ADDRESS-BLOCKED@n3(LINK-DOWN@n3 LINK-DOWN@n3)", func(f *diagnose.Facts) {
			fail(f, "n1", "n3", "cluster")
			f.Status.Nodes[0].Unreached, f.Status.Nodes[2].Unreached = []string{"n3"}, []string{"n1"}
			f.Status.Nodes[0].Bus, f.Status.Nodes[2].Bus = admin.BusCannotReachAll, admin.BusCannotReachAll
			f.Status.Findings = links.Findings(f.Status)
		}},
		{"no link, and every port open", "LINK-DOWN@n1 LINK-DOWN@n3", func(f *diagnose.Facts) {
			f.Status.Nodes[0].Unreached, f.Status.Nodes[2].Unreached = []string{"n3"}, []string{"n1"}
			f.Status.Nodes[0].Bus, f.Status.Nodes[2].Bus = admin.BusCannotReachAll, admin.BusCannotReachAll
			f.Status.Findings = links.Findings(f.Status)
		}},
		{"nothing comes out of one", "ADDRESS-BLOCKED@n1", func(f *diagnose.Facts) { fail(f, "n1", "", "") }},
		{"node down", "NODE-DOWN@n3(ADDRESS-UNREACHABLE@n3 ADDRESS-UNREACHABLE@n3 NOT-ANSWERED@n3)", func(f *diagnose.Facts) {
			fail(f, "", "n3", "")
			f.Status.Nodes[2].State, f.Exams = "down", f.Exams[:2]
			f.Status.Findings = []doctor.Finding{{Code: "NODE-DOWN", Severity: doctor.Problem, Subject: "n3"}}
		}},
		{"deaf", "NODE-DEAF@(ADDRESS-UNREACHABLE@n2 ADDRESS-UNREACHABLE@n2 ADDRESS-UNREACHABLE@n3 ADDRESS-UNREACHABLE@n3 NOT-ANSWERED@n2 NOT-ANSWERED@n3)", func(f *diagnose.Facts) {
			fail(f, "", "", "")
			f.Exams = f.Exams[:1]
			for i := range f.Status.Nodes[1:] {
				f.Status.Nodes[i+1].State, f.Status.Nodes[i+1].Bus = "down", admin.BusUnknown
			}
			f.Status.Findings = links.Findings(f.Status)
		}},
		{"silent", "NOT-ANSWERED@n2", func(f *diagnose.Facts) { f.Exams, f.Silent = slices.Delete(f.Exams, 1, 2), []string{"n2"} }},
		{"versions", "VERSIONS-DIFFER@", func(f *diagnose.Facts) { f.Status.Nodes[1].Version = "1.1.0" }},
		{"old", "NODE-OLD@n2", func(f *diagnose.Facts) {
			f.Status.Nodes[1].Bus = admin.BusTooOld
			f.Status.Findings = links.Findings(f.Status)
		}},
		{"behind", "NODE-BEHIND@n2", func(f *diagnose.Facts) { f.Behind = []string{"n2"} }},
		{"two", "TWO-NODES@", func(f *diagnose.Facts) {
			*f = well(2)
			f.Streams.Streams[0].Copies = nil
			f.Status.Findings = []doctor.Finding{{Code: "TWO-NODES", Severity: doctor.Warning, Subject: "fleet"}}
		}},
		{"four", "VOTERS-EVEN@", func(f *diagnose.Facts) { *f = well(4) }},
		{"certificate ended", "CERTIFICATE-EXPIRED@n3", func(f *diagnose.Facts) { f.Status.Nodes[2].NotAfter = f.Now.Add(-time.Minute) }},
		{"certificate ends", "CERTIFICATE-ENDS@n3", func(f *diagnose.Facts) { f.Status.Nodes[2].NotAfter = f.Now.Add(time.Hour) }},
		{"copy behind", "STREAM-COPY-BEHIND@n3", func(f *diagnose.Facts) { f.Streams.Streams[0].Copies[1] = admin.Copy{Node: "n3", Lag: 5000} }},
		{"copy behind for a full disk", "DISK-FULL@n3(STREAM-COPY-BEHIND@n3)", func(f *diagnose.Facts) {
			f.Streams.Streams[0].Copies[1] = admin.Copy{Node: "n3", Lag: 5000}
			f.Status.Nodes[2].Findings = []doctor.Finding{{Code: "DISK-FULL", Severity: doctor.Problem, Subject: "n3"}}
			f.Exams[2].Results = []doctor.Result{{Group: "node", Check: "disk-space", State: doctor.Fail, Code: "DISK-FULL", Subject: "/data"}}
		}},
		{"a million subjects", "STREAM-SUBJECTS@", func(f *diagnose.Facts) { f.Streams.Streams[0].Distinct = 2_000_000 }},
		{"leaderless", "STREAM-NO-LEADER@", func(f *diagnose.Facts) {
			f.Exams[0].Leaderless, f.Exams[1].Leaderless = []string{"acme/LOST"}, []string{"acme/LOST"}
			f.Unled = map[string]int{"acme": 1}
		}},
		{"an account that cannot be read", "ACCOUNT-UNREADABLE@", func(f *diagnose.Facts) { f.Accounts[0].Errors = []string{"no answer from n3"} }},
		{"no credential", "USER-UNUSED@", func(f *diagnose.Facts) { f.Users = []identity.User{{Account: "acme", Name: "alice"}} }},
		{"credentials of which the last counts", "", func(f *diagnose.Facts) {
			f.Users = []identity.User{{Account: "acme", Name: "alice", Keys: []identity.UserKey{{Issued: f.Now.Add(-25 * time.Hour), Expires: f.Now.Add(-time.Hour)}, {Issued: f.Now, Expires: f.Now.Add(24 * time.Hour)}}},
				{Account: "acme", Name: "bob", Password: "x", Keys: []identity.UserKey{{Expires: f.Now.Add(-time.Hour)}}},
				{Account: "acme", Name: "carol", Denied: true}}
		}},
		{"a denied question", "NOT-ALLOWED@ NOT-ALLOWED@", func(f *diagnose.Facts) { f.UsersErr = &admin.Error{Code: admin.Denied, Text: "no"} }},
		{"an unanswered question", "NOT-ANSWERED@ NOT-ANSWERED@", func(f *diagnose.Facts) { f.UsersErr = errors.New("timeout") }},
		{"an old backup", "BACKUP-OLD@", func(f *diagnose.Facts) { f.Backup = f.Now.AddDate(0, -2, 0) }},
		{"what a newer node finds", "SOMETHING-NEW@n2", func(f *diagnose.Facts) {
			f.Status.Nodes[1].Findings = []doctor.Finding{{Code: "SOMETHING-NEW", Severity: doctor.Warning, Subject: "n2"}}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := well(3)
			c.change(&f)
			all := doctor.Fold(diagnose.Judge(f))
			if got := outline(all); got != c.want {
				t.Errorf("%s, not %s%s", got, c.want, list(all))
			}
			for _, r := range all {
				if r.Group == "" || r.Check == "" || !slices.Contains(explain.Groups(), r.Group) {
					t.Errorf("it is in no group: %+v", r)
				}
			}
		})
	}
}

// outline writes those results that have a code, by code.
func outline(all []doctor.Result) string {
	var parts []string
	for _, r := range all {
		if r.Code == "" {
			continue
		}
		text := r.Code + "@" + r.Node
		if len(r.Explains) > 0 {
			text += "(" + outline(r.Explains) + ")"
		}
		parts = append(parts, text)
	}
	slices.Sort(parts)
	return strings.Join(parts, " ")
}

// TestEveryCheck has a result of every check that a fleet has, whatever is there.
func TestEveryCheck(t *testing.T) {
	all := diagnose.Judge(well(3))
	for _, c := range explain.All() {
		local := []string{"checks", "data-dir", "disk-space", "inodes", "file-system", "file-limit", "memory", "ports", "names", "proxy", "authority", "key-files", "exposure"}
		if c.Group == "config" || slices.Contains(local, c.Check) {
			continue // the machine's, which the examinations of this test lack
		}
		if !slices.ContainsFunc(all, func(r doctor.Result) bool { return r.Check == c.Check }) {
			t.Errorf("nothing is said of %s", c.Check)
		}
	}
	for _, r := range all {
		if r.State != doctor.OK && r.State != doctor.Skipped || r.Evidence == "" && r.Check != "clock" {
			t.Errorf("of a fleet that is well: %+v", r)
		}
	}
}

// TestMany tells of few of many that are alike, and how many there are.
func TestMany(t *testing.T) {
	f := well(3)
	for i := range 1000 {
		f.Users = append(f.Users, identity.User{Account: "acme", Name: fmt.Sprint("u", i)})
	}
	n, more := 0, false
	for _, r := range diagnose.Judge(f) {
		if r.Code == "USER-UNUSED" {
			n++
			more = more || strings.Contains(r.Evidence, "and 980 more")
		}
	}
	if n != 20 || !more {
		t.Errorf("%d of 1000 are told, and how many more: %t", n, more)
	}
}
