// Package check judges what a fleet tells of itself as Nagios and its kin have it: a
// state, one line, and what was measured.
package check

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
)

// A State is the exit code of a check.
type State int

// The states, as plugins of Nagios have them.
const (
	OK State = iota
	Warning
	Critical
	Unknown
)

// String is the state's word.
func (s State) String() string {
	return [...]string{"OK", "WARNING", "CRITICAL", "UNKNOWN"}[min(max(s, OK), Unknown)]
}

// MarshalJSON writes the word.
func (s State) MarshalJSON() ([]byte, error) { return json.Marshal(s.String()) }

// A Perf is one thing that was measured.
type Perf struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	// Unit is "s", "B", or "" for a count.
	Unit string `json:"unit,omitempty"`
	// Warning and Critical are the limits; 0 is none.
	Warning  float64 `json:"warning,omitempty"`
	Critical float64 `json:"critical,omitempty"`
	// Below says that values below the limits are beyond them.
	Below bool `json:"below,omitempty"`
}

// A Result is what a check found.
type Result struct {
	// Name of what was checked.
	Name  string `json:"name"`
	State State  `json:"state"`
	Text  string `json:"text"`
	// Lines say more, the worst first.
	Lines []string `json:"lines"`
	Perf  []Perf   `json:"perf"`
}

// most is how many lines and measurements are printed: a plugin has 4 kB in some systems.
const most = 50

// String is the result as plugins print it. What comes from elsewhere cannot end the
// line, or begin the measurements.
func (r Result) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "FLEETBUS %s %s - %s", strings.ToUpper(r.Name), r.State, plain(r.Text))
	for i, p := range r.Perf[:min(len(r.Perf), most)] {
		sep := " "
		if i == 0 {
			sep = " | "
		}
		fmt.Fprintf(&b, "%s'%s'=%s%s;%s;%s;;", sep, strings.NewReplacer("'", "_", "=", "_").Replace(plain(p.Name)), number(p.Value), p.Unit, p.limit(p.Warning), p.limit(p.Critical))
	}
	for _, line := range r.Lines[:min(len(r.Lines), most)] {
		b.WriteString("\n" + plain(line))
	}
	if n := len(r.Lines) - most; n > 0 {
		fmt.Fprintf(&b, "\nand %d more", n)
	}
	return b.String()
}

// plain is text without what has a meaning in a plugin's output.
func plain(text string) string {
	return strings.Map(func(c rune) rune {
		switch {
		case c == '|':
			return '/'
		case c < ' ' || c == 0x7f:
			return ' '
		}
		return c
	}, text)
}

func number(v float64) string { return strconv.FormatFloat(v, 'f', -1, 64) }

// limit is a range as plugins have it: what is outside of it is bad.
func (p Perf) limit(v float64) string {
	switch {
	case v == 0:
		return ""
	case p.Below:
		return number(v) + ":"
	}
	return number(v)
}

// add worsens the state and notes a line.
func (r *Result) add(s State, format string, args ...any) {
	r.State = max(r.State, s)
	r.Lines = append(r.Lines, fmt.Sprintf(format, args...))
}

// measure notes what was measured, and says whether it is beyond a limit.
func (r *Result) measure(p Perf) State {
	r.Perf = append(r.Perf, p)
	beyond := func(limit float64) bool { return limit != 0 && (p.Value > limit) != p.Below && p.Value != limit }
	switch {
	case beyond(p.Critical):
		return Critical
	case beyond(p.Warning):
		return Warning
	}
	return OK
}

func begin(name string) *Result { return &Result{Name: name, Lines: []string{}, Perf: []Perf{}} }

// Cluster judges the whole fleet. That a majority of the nodes answers now counts, and
// not what an engine believes: one that leads believes for twenty seconds that all is
// well after it has lost the others.
func Cluster(s admin.Status) Result {
	r := begin("cluster")
	r.Text = fmt.Sprintf("%d of %d nodes answer, %d are a quorum", s.Answered, len(s.Nodes), s.Quorum)
	switch {
	case s.Answered < s.Quorum:
		r.add(Critical, "no quorum answers: nothing durable can change; start more of the nodes")
	case s.Leader == "":
		r.add(Critical, "no leader: nothing durable can change")
	}
	for _, n := range s.Nodes {
		if n.State != "up" {
			r.add(Warning, "node %s is %s", n.Name, n.State)
		}
	}
	r.findings(s.Findings)
	r.Perf = append(r.Perf, Perf{Name: "nodes", Value: float64(len(s.Nodes))}, Perf{Name: "answering", Value: float64(s.Answered), Critical: float64(s.Quorum), Below: true},
		Perf{Name: "survives", Value: float64(s.Survives)})
	return *r
}

// findings adds them: a problem is a warning, because the node serves.
func (r *Result) findings(all []doctor.Finding) {
	for _, f := range all {
		if f.Severity >= doctor.Problem {
			r.add(Warning, "%s %s: %s", f.Code, f.Subject, f.Text)
		}
	}
}

// Node judges one node, by its name; empty is the one that answered.
func Node(s admin.Status, name string) Result {
	r := begin("node")
	name = cmp.Or(name, s.Node)
	i := slices.IndexFunc(s.Nodes, func(n admin.NodeInfo) bool { return n.Name == name })
	if i < 0 {
		r.State, r.Text = Unknown, fmt.Sprintf("there is no node %s", name)
		return *r
	}
	n := s.Nodes[i]
	r.Text = fmt.Sprintf("node %s is %s", n.Name, n.State)
	if n.State != "up" {
		r.add(Critical, "it does not answer")
		return *r
	}
	switch n.Bus {
	case admin.BusBlocked:
		r.add(Critical, "it reaches no other node")
	case admin.BusCannotReachAll:
		r.add(Warning, "it does not reach %s", strings.Join(n.Unreached, ", "))
	case admin.BusUnknown:
		r.add(Critical, "node %s, which answered, hears nobody", s.Node)
	}
	r.findings(n.Findings)
	r.Perf = append(r.Perf, Perf{Name: "connections", Value: float64(n.Connections)}, Perf{Name: "uptime", Value: n.Uptime.Round(time.Second).Seconds(), Unit: "s"},
		Perf{Name: "clock", Value: n.Clock.Seconds(), Unit: "s"})
	return *r
}

// An Expiry is a certificate and its end.
type Expiry struct {
	Name     string
	NotAfter time.Time
}

// Nodes are the ends of the certificates of nodes.
func Nodes(s admin.Status) (all []Expiry) {
	for _, n := range s.Nodes {
		if !n.NotAfter.IsZero() {
			all = append(all, Expiry{"node " + n.Name, n.NotAfter})
		}
	}
	return all
}

// Certificates judges how long certificates still hold.
func Certificates(all []Expiry, now time.Time, warning, critical time.Duration) Result {
	r := begin("certificate")
	if len(all) == 0 {
		r.State, r.Text = Unknown, "there is no certificate"
		return *r
	}
	slices.SortFunc(all, func(a, b Expiry) int { return a.NotAfter.Compare(b.NotAfter) })
	for _, e := range all {
		left := e.NotAfter.Sub(now)
		state := r.measure(Perf{Name: e.Name, Value: left.Round(time.Second).Seconds(), Unit: "s", Warning: warning.Seconds(), Critical: critical.Seconds(), Below: true})
		if state > OK {
			r.add(state, "%s: ends %s", e.Name, e.NotAfter.UTC().Format(time.RFC3339))
		}
	}
	r.Text = fmt.Sprintf("%d certificates, the first ends %s: %s", len(all), all[0].NotAfter.UTC().Format(time.RFC3339), all[0].Name)
	return *r
}

// Sources judges those of that name, account/name, or all if it is empty.
func Sources(all []admin.SourceInfo, name string, warning, critical time.Duration) Result {
	r := begin("source")
	n := 0
	for _, s := range all {
		full := s.Account + "/" + s.Name
		if name != "" && name != full {
			continue
		}
		n++
		state := r.measure(Perf{Name: full, Value: s.Progress.Lag.Seconds(), Unit: "s", Warning: warning.Seconds(), Critical: critical.Seconds()})
		if state > OK {
			r.add(state, "%s is %v behind", full, s.Progress.Lag.Round(time.Millisecond))
		}
		switch {
		case s.State == admin.SourceFailed:
			r.add(Critical, "%s failed on node %s: %s", full, s.Runner, s.Error)
		case s.State != admin.SourceRunning:
			r.add(Critical, "%s is %s: no node runs it", full, s.State)
		case s.Progress.Warning != "":
			r.add(Warning, "%s: %s", full, s.Progress.Warning)
		}
	}
	r.Text = fmt.Sprintf("%d sources", n)
	if n == 0 {
		r.State, r.Text = Unknown, "there is no such source, or no quorum to know of it"
	}
	return *r
}

// A Copy is one of a stream.
type Copy struct {
	Node    string
	Current bool
	Lag     uint64
}

// Stream judges how far the copies of a stream are behind.
func Stream(name, leader string, messages uint64, wanted int, copies []Copy, warning, critical float64) Result {
	r := begin("stream")
	r.Text = fmt.Sprintf("stream %s has %d messages and %d copies", name, messages, len(copies)+1)
	r.Perf = append(r.Perf, Perf{Name: "messages", Value: float64(messages)})
	if leader == "" && wanted > 1 {
		r.add(Critical, "nobody leads it")
	}
	for _, c := range copies {
		state := r.measure(Perf{Name: "lag_" + c.Node, Value: float64(c.Lag), Warning: warning, Critical: critical})
		if state > OK {
			r.add(state, "the copy on %s lacks %d entries", c.Node, c.Lag)
		}
		if !c.Current {
			r.add(Warning, "the copy on %s is not current", c.Node)
		}
	}
	if len(copies)+1 < wanted {
		r.add(Warning, "it is to have %d copies", wanted)
	}
	return *r
}

// Consumer judges how much waits for a consumer.
func Consumer(stream, name string, pending, unacknowledged uint64, warning, critical float64) Result {
	r := begin("consumer")
	r.Text = fmt.Sprintf("%d messages of stream %s wait for %s, and %d for its acknowledgment", pending, stream, name, unacknowledged)
	r.State = r.measure(Perf{Name: "pending", Value: float64(pending), Warning: warning, Critical: critical})
	r.Perf = append(r.Perf, Perf{Name: "ack_pending", Value: float64(unacknowledged)})
	return *r
}

// A Rollout is a certificate and how many targets serve it as they should.
type Rollout struct {
	Name                           string
	Current, Pending, Failed, Away int
	Details                        []string
}

// Targets judges whether targets serve what they should.
func Targets(all []Rollout) Result {
	r := begin("target")
	var sum Rollout
	for _, c := range all {
		sum.Current, sum.Pending, sum.Failed, sum.Away = sum.Current+c.Current, sum.Pending+c.Pending, sum.Failed+c.Failed, sum.Away+c.Away
		switch {
		case c.Failed > 0:
			r.add(Critical, "%s: %d targets failed: %s", c.Name, c.Failed, strings.Join(c.Details, "; "))
		case c.Away > 0:
			r.add(Warning, "%s: %d targets are away, and do not serve it", c.Name, c.Away)
		}
	}
	r.Text = fmt.Sprintf("%d certificates: %d targets current, %d pending, %d failed, %d away", len(all), sum.Current, sum.Pending, sum.Failed, sum.Away)
	r.Perf = append(r.Perf, Perf{Name: "current", Value: float64(sum.Current)}, Perf{Name: "pending", Value: float64(sum.Pending)},
		Perf{Name: "failed", Value: float64(sum.Failed)}, Perf{Name: "away", Value: float64(sum.Away)})
	return *r
}
