package diagnose

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/explain"
	"github.com/fleetbus/fleetbus/internal/human"
)

// perCode is how many results of one code are told one by one.
const perCode = 20

// a judge collects results.
type judge struct {
	Facts
	all []doctor.Result
}

// Judge says what is to be said of facts: at least one result of every check. The result
// is not folded yet.
func Judge(f Facts) []doctor.Result {
	j := &judge{Facts: f}
	if f.StatusErr != nil {
		for _, group := range explain.Groups() {
			j.all = append(j.all, doctor.Result{Group: group, Check: "checks", State: doctor.Unknown, Code: "NOT-ANSWERED", Subject: group,
				Evidence: "no node could be asked about it", Because: []string{"FLEET-UNREACHABLE"}})
		}
		return j.all
	}
	j.told()
	j.examined()
	j.addresses()
	j.clocks()
	j.cluster()
	j.audit()
	j.accounts()
	j.users()
	j.streams()
	j.sources()
	j.rest()
	return capped(j.all)
}

// found adds what a check found.
func (j *judge) found(code string, state doctor.State, node, subject, fix, format string, args ...any) *doctor.Result {
	c, _ := explain.Of(code)
	j.all = append(j.all, doctor.Result{Group: c.Group, Check: c.Check, State: state, Code: code, Node: node, Subject: subject, Evidence: fmt.Sprintf(format, args...), Fix: fix})
	return &j.all[len(j.all)-1]
}

// sum says that a check found nothing, unless it did.
func (j *judge) sum(check, subject, format string, args ...any) {
	j.state(check, doctor.OK, "", subject, format, args...)
}

// state says what a check came to, unless it found something.
func (j *judge) state(check string, state doctor.State, code, subject, format string, args ...any) {
	if !slices.ContainsFunc(j.all, func(r doctor.Result) bool { return r.Check == check }) {
		j.all = append(j.all, doctor.Result{Group: explain.GroupOf(check), Check: check, State: state, Code: code, Subject: subject, Evidence: fmt.Sprintf(format, args...)})
	}
}

// unasked says of checks that they are unknown, or not allowed, because of err.
func (j *judge) unasked(err error, checks ...string) {
	state, code := doctor.Unknown, "NOT-ANSWERED"
	if refused(err) {
		state, code = doctor.Skipped, "NOT-ALLOWED"
	}
	for _, check := range checks {
		j.state(check, state, code, "fleet", "%v", err)
	}
}

// capped leaves few of many results that are alike, and says how many there are.
func capped(all []doctor.Result) []doctor.Result {
	counts := map[string]int{}
	kept := all[:0:0]
	for _, r := range all {
		key := r.Check + " " + r.Code + " " + string(r.State)
		if counts[key]++; r.Code == "" || counts[key] <= perCode {
			kept = append(kept, r)
		}
	}
	for i, r := range kept {
		key := r.Check + " " + r.Code + " " + string(r.State)
		if n := counts[key] - perCode; r.Code != "" && n > 0 {
			kept[i].Evidence += fmt.Sprintf(" (and %d more like this)", n)
			counts[key] = 0 // once
		}
	}
	return kept
}

// told are the findings of the nodes themselves.
func (j *judge) told() {
	seen := map[string]bool{}
	nodes := map[string]bool{}
	for _, n := range j.Status.Nodes {
		nodes[n.Name] = true
	}
	add := func(node string, findings []doctor.Finding) {
		for _, f := range findings {
			key := f.Code + "\x00" + f.Subject + "\x00" + f.Text
			if seen[key] || f.Code == "CLOCK-SKEW" && j.triangulated() {
				continue // judged below, from all ends
			}
			seen[key] = true
			about := node
			if about == "" && nodes[f.Subject] && f.Code != "NODE-DEAF" { // which explains what is unknown of all
				about = f.Subject
			}
			r := j.found(f.Code, doctor.StateOf(f.Severity), about, f.Subject, f.Fix, "%s", f.Text)
			r.Because = f.Because
			if f.Code == "SERVICE-FAILED" && strings.HasPrefix(f.Subject, "source ") {
				r.Because = []string{"SOURCE-FAILED"}
			}
			if r.Group == "" { // of a program that embeds the server, or of a newer node
				r.Group, r.Check = "node", "services"
			}
		}
	}
	for _, n := range j.Status.Nodes {
		add(n.Name, n.Findings)
	}
	for _, f := range j.Status.Findings {
		add("", []doctor.Finding{f})
	}
}

// examined are the results of nodes about their machines.
func (j *judge) examined() {
	if j.ExamErr != nil {
		j.unasked(j.ExamErr, "data-dir", "disk-space", "inodes", "file-system", "file-limit", "memory", "clock", "ports", "names", "proxy", "key-files", "addresses")
		return
	}
	for _, name := range j.Silent {
		j.found("NOT-ANSWERED", doctor.Unknown, name, name, "fleetbus doctor --timeout 1m", "node %s did not say how its machine is", name).Because = []string{"NODE-DOWN", "NODE-DEAF"}
	}
	for _, n := range j.Status.Nodes {
		if n.State == "down" {
			j.found("NOT-ANSWERED", doctor.Unknown, n.Name, n.Name, "", "node %s does not answer: its machine, its services and what it reaches are unknown", n.Name).Because = []string{"NODE-DOWN", "NODE-DEAF"}
		}
	}
	for _, e := range j.Exams {
		for _, r := range e.Results {
			same := func(o doctor.Result) bool { return o.Node == e.Node && o.Code == r.Code && r.Code != "" }
			if c, ok := explain.Of(r.Code); r.Code != "" && ok && (c.Check == "disk-space" || c.Check == "certificate") && slices.ContainsFunc(j.all, same) {
				continue // the node said so itself
			}
			r.Node, r.Subject = e.Node, e.Node+": "+r.Subject
			j.all = append(j.all, r)
		}
	}
}

// clocks are judged from all ends: of the node that is off all others say so.
func (j *judge) clocks() {
	if !j.triangulated() {
		return
	}
	var worst time.Duration
	for _, n := range j.Status.Nodes {
		var skews []time.Duration
		for _, other := range j.Status.Nodes {
			for _, l := range other.Links {
				if l.Node == n.Name && l.Answered {
					skews = append(skews, l.Skew)
				}
			}
		}
		if len(skews) == 0 {
			continue
		}
		slices.Sort(skews)
		// With two in the middle it is the one that is less off.
		skew := skews[len(skews)/2]
		if low := skews[(len(skews)-1)/2]; low.Abs() < skew.Abs() {
			skew = low
		}
		worst = max(worst, skew.Abs())
		if skew.Abs() > 2*time.Second {
			j.found("CLOCK-SKEW", doctor.Warn, n.Name, n.Name, "timedatectl set-ntp true on "+n.Name, "%s measured the clock of node %s: it is off by %v", human.Count(len(skews), "node"), n.Name, skew.Round(10*time.Millisecond))
		}
	}
	// Each machine says what keeps its own clock; how they compare is another thing.
	if !slices.ContainsFunc(j.all, func(r doctor.Result) bool { return r.Code == "CLOCK-SKEW" }) {
		j.all = append(j.all, doctor.Result{Group: "node", Check: "clock", State: doctor.OK, Subject: "all nodes", Evidence: fmt.Sprintf("no clock is off by more than %v, as the others see it", worst.Round(time.Millisecond))})
	}
}

// triangulated reports whether at least three nodes measure one another's clocks.
func (j *judge) triangulated() bool {
	n := 0
	for _, node := range j.Status.Nodes {
		if node.State == "up" && slices.ContainsFunc(node.Links, func(l admin.Link) bool { return l.Answered }) {
			n++
		}
	}
	return n >= 3
}

// An address is one that a node advertises, and who reaches it.
type address struct {
	node, what, addr string
	reached, failed  []string
	// refused are those of failed who were told no; why is what each was told.
	refused []string
	why     map[string]string
	took    time.Duration
}

// reasons says who cannot open a connection, and why, each reason once.
func (a *address) reasons() string {
	var all []string
	of := map[string][]string{}
	for _, name := range a.failed {
		why := a.why[name]
		if of[why] == nil {
			all = append(all, why)
		}
		of[why] = append(of[why], name)
	}
	for i, why := range all {
		all[i] = strings.Join(of[why], ", ") + ": " + why
	}
	return strings.Join(all, "; ")
}

// addresses are judged from all who tried them.
func (j *judge) addresses() {
	if j.ExamErr != nil {
		return
	}
	up := map[string]bool{}
	for _, n := range j.Status.Nodes {
		up[n.Name] = n.State == "up"
	}
	var all []*address
	known := map[string]*address{}
	tried := map[string][]admin.Dial{}
	for _, e := range j.Exams {
		for _, d := range e.Dials {
			key := d.Node + " " + d.What + " " + d.Addr
			a := known[key]
			if a == nil {
				a = &address{node: d.Node, what: d.What, addr: d.Addr, why: map[string]string{}}
				known[key], all = a, append(all, a)
			}
			if tried[e.Node] = append(tried[e.Node], d); d.Error == "" {
				a.reached, a.took = append(a.reached, e.Node), max(a.took, d.Took)
			} else {
				a.failed, a.why[e.Node] = append(a.failed, e.Node), d.Error
				if d.Refused {
					a.refused = append(a.refused, e.Node)
				}
			}
		}
	}
	// A node that reaches nobody, while others reach them, is at fault itself.
	var shut []string
	for _, e := range j.Exams {
		dials := tried[e.Node]
		alone := slices.ContainsFunc(dials, func(d admin.Dial) bool { return d.Error == "" || len(known[d.Node+" "+d.What+" "+d.Addr].reached) == 0 })
		if len(dials) > 1 && !alone {
			shut = append(shut, e.Node)
			j.found("ADDRESS-BLOCKED", doctor.Fail, e.Node, e.Node, "let connections out of "+e.Node, "node %s can open a connection to none of %s, which others reach: %s", e.Node, human.Count(len(dials), "address"), dials[0].Error)
		}
	}
	for _, a := range all {
		a.failed = slices.DeleteFunc(a.failed, func(name string) bool { return slices.Contains(shut, name) })
		subject := a.node + ": " + a.what + " " + a.addr
		switch {
		case len(a.failed) == 0:
		case len(a.reached) == 0 && len(a.refused) == len(a.failed):
			r := j.found("ADDRESS-REFUSED", doctor.Fail, a.node, subject, "see on "+a.node+" whether it listens there: fleetbus doctor --offline", "nobody can open a connection to it: %s", a.reasons())
			r.Because = []string{"NODE-DOWN", "NODE-DEAF", "PORT-UNUSED", "PORT-HELD"}
		case len(a.reached) == 0:
			r := j.found("ADDRESS-UNREACHABLE", doctor.Fail, a.node, subject, "open the port in the firewall of "+a.node+", or correct advertise there", "nobody can open a connection to it: %s", a.reasons())
			r.Because = []string{"NODE-DOWN", "NODE-DEAF"}
		default:
			fix := "open the port from " + strings.Join(a.failed, ", ") + " to " + a.node
			if len(a.refused) == len(a.failed) {
				fix = "remove the rule that rejects from " + strings.Join(a.failed, ", ") + " to " + a.node
			}
			r := j.found("ADDRESS-BLOCKED", doctor.Warn, a.node, subject, fix, "%s can open a connection to it, and others cannot: %s", strings.Join(a.reached, ", "), a.reasons())
			r.Because = []string{"NODE-DOWN", "NODE-DEAF"}
		}
		if len(a.failed) > 0 && a.what == "cluster" && up[a.node] {
			j.blame(a)
		}
	}
	var took time.Duration
	for _, a := range all {
		took = max(took, a.took)
	}
	if len(all) == 0 {
		j.state("addresses", doctor.Skipped, "", "fleet", "there is no other node to try them from")
	}
	j.sum("addresses", "fleet", "%s of nodes were reached from every node that tried, in %v or less", human.Count(len(all), "address"), took.Round(time.Millisecond))
}

// blame explains links that are down by an address that the one end cannot reach.
func (j *judge) blame(a *address) {
	for i, r := range j.all {
		if r.Code != "LINK-DOWN" {
			continue
		}
		k := slices.IndexFunc(j.Status.Nodes, func(n admin.NodeInfo) bool { return n.Name == r.Subject })
		if k < 0 {
			continue
		}
		n := j.Status.Nodes[k]
		if n.Name == a.node && slices.ContainsFunc(a.failed, func(name string) bool { return slices.Contains(n.Unreached, name) }) ||
			slices.Contains(a.failed, n.Name) && slices.Contains(n.Unreached, a.node) {
			j.all[i].Node, j.all[i].Because = a.node, []string{"ADDRESS-REFUSED", "ADDRESS-UNREACHABLE", "ADDRESS-BLOCKED"}
		}
	}
}
