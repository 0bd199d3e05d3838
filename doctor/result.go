package doctor

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// A State is what a check came to.
type State string

const (
	// OK says that it was looked at, and nothing has to be done.
	OK State = "ok"
	// Skipped says that there was nothing to look at, or no right to.
	Skipped State = "skipped"
	// Unknown says that it could not be looked at: nobody answered, or the machine does
	// not tell.
	Unknown State = "unknown"
	// Warn is a finding of severity Warning: act before it becomes a failure.
	Warn State = "warn"
	// Fail is a finding of severity Problem: act now.
	Fail State = "fail"
)

// States are all states, the worst last.
func States() []State { return []State{OK, Skipped, Unknown, Warn, Fail} }

// rank orders states; a larger one is worse.
func (s State) rank() int { return slices.Index(States(), s) }

// StateOf is the state of a check that found something of that severity.
func StateOf(s Severity) State {
	switch s {
	case Info:
		return OK
	case Warning:
		return Warn
	}
	return Fail
}

// A Result is what one check came to, about one thing. It is a plain value.
type Result struct {
	// Group and Check name the check, such as "node" and "disk-space".
	Group string `json:"group"`
	Check string `json:"check"`
	State State  `json:"state"`
	// Code names what was found, as that of a Finding. Empty if that is nothing.
	Code string `json:"code,omitempty"`
	// Subject is what was looked at: a node, a stream, a file.
	Subject string `json:"subject"`
	// Evidence says in one sentence what was measured.
	Evidence string `json:"evidence"`
	// Fix is one command or setting that mends it; empty if there is nothing to do.
	Fix string `json:"fix,omitempty"`
	// Because are codes of results that explain this one.
	Because []string `json:"because,omitempty"`
	// Node is the node that it is about, if it is about one.
	Node string `json:"node,omitempty"`
	// Explains are the results that this one explains.
	Explains []Result `json:"explains,omitempty"`
}

// Count counts the results of a state, those that others explain too.
func Count(all []Result, state State) (n int) {
	for _, r := range all {
		if r.State == state {
			n++
		}
		n += Count(r.Explains, state)
	}
	return n
}

// Worst is the worst state of results, OK if there are none.
func Worst(all []Result) State {
	worst := OK
	for _, r := range all {
		if r.State.rank() > worst.rank() {
			worst = r.State
		}
		if w := Worst(r.Explains); w.rank() > worst.rank() {
			worst = w
		}
	}
	return worst
}

// Fold puts every result that another one explains under it: the one of the same node, if
// there are several that could. Results that only explain each other stay where they are.
// Only a Warn or a Fail explains anything. The order of the others stays.
func Fold(all []Result) []Result {
	parent := make([]int, len(all))
	for i, r := range all {
		parent[i] = -1
		if len(r.Because) == 0 || r.State == OK || r.State == Skipped {
			continue
		}
		for j, cause := range all {
			if i == j || !slices.Contains(r.Because, cause.Code) || cause.Code == r.Code || cause.State.rank() < Warn.rank() {
				continue
			}
			if r.Node != "" && cause.Node != "" && r.Node != cause.Node {
				continue
			}
			if parent[i] < 0 || r.Node == cause.Node && r.Node != all[parent[i]].Node {
				parent[i] = j
			}
		}
	}
	// A ring of causes has none: its members stand by themselves.
	for i := range all {
		slow, fast := i, i
		for parent[fast] >= 0 && parent[parent[fast]] >= 0 {
			slow, fast = parent[slow], parent[parent[fast]]
			if slow == fast {
				parent[slow] = -1
				break
			}
		}
	}
	var take func(i int) Result
	take = func(i int) Result {
		r := all[i]
		r.Explains = slices.Clone(r.Explains)
		for j := range all {
			if parent[j] == i {
				r.Explains = append(r.Explains, take(j))
			}
		}
		return r
	}
	kept := []Result{}
	for i := range all {
		if parent[i] < 0 {
			kept = append(kept, take(i))
		}
	}
	return kept
}

// SortResults orders results by the groups, in their order, and in each the worst first.
func SortResults(all []Result, groups []string) {
	order := make([]string, len(all))
	for i, r := range all {
		order[i] = fmt.Sprintf("%02d %d %s %s %s\x00%06d", slices.Index(groups, r.Group)+1, len(States())-Worst(all[i:i+1]).rank(), r.Check, r.Code, r.Subject, i)
	}
	slices.Sort(order)
	sorted := make([]Result, len(all))
	for at, key := range order {
		i, _ := strconv.Atoi(key[strings.LastIndexByte(key, 0)+1:])
		sorted[at] = all[i]
	}
	copy(all, sorted)
}
