// Package metrics is what a node of a fleet counts and measures, as monitoring systems
// read it: a table of all families, and the text format of Prometheus. It links neither
// the engine nor a client library: package collector is for programs that have a
// registry of Prometheus already.
package metrics

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

// Kind says how the values of a family are read.
type Kind string

const (
	// Counter only grows, until the node starts again.
	Counter Kind = "counter"
	// Gauge is what is now.
	Gauge Kind = "gauge"
)

// A Family is all that is told under one name.
type Family struct {
	// Name in base units, with the prefix "fleetbus_".
	Name string
	// Help is one line on what it is.
	Help string
	Kind Kind
	// Labels are the names of what tells its samples apart. None holds a client, a
	// subject, an address or a serial number: what is bounded is said in the table.
	Labels []string
}

// A Sample is one value of a family.
type Sample struct {
	// Name of the family.
	Name string
	// Labels are the values of the family's labels, in its order.
	Labels []string
	Value  float64
}

// Of makes a Sample.
func Of(name string, value float64, labels ...string) Sample {
	return Sample{Name: name, Labels: labels, Value: value}
}

// A Source tells what it counts. It may be asked by several at once.
type Source interface {
	Metrics(ctx context.Context) []Sample
}

// MostAccounts is how many accounts have labels of their own: the first by name.
const MostAccounts = 200

// Truth is the value of a sample that says whether something is so: 1, or 0.
func Truth(is bool) float64 {
	if is {
		return 1
	}
	return 0
}

// Other is the value of a label that stands for all those of which there are too many.
const Other = "other"

// ContentType is that of what Write writes.
const ContentType = "text/plain; version=0.0.4; charset=utf-8"

// Write writes samples in the text format of Prometheus, in the order of the table. An
// error is of w, or says that a sample is of no family, which would be lost.
func Write(w io.Writer, samples []Sample) error {
	byName := map[string][]Sample{}
	for _, s := range samples {
		byName[s.Name] = append(byName[s.Name], s)
	}
	out, escape := bufio.NewWriter(w), strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)
	for _, f := range Families() {
		all := byName[f.Name]
		delete(byName, f.Name)
		if len(all) == 0 {
			continue
		}
		slices.SortFunc(all, func(a, b Sample) int { return slices.Compare(a.Labels, b.Labels) })
		fmt.Fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", f.Name, f.Help, f.Name, f.Kind)
		for _, s := range all {
			if len(s.Labels) != len(f.Labels) {
				return fmt.Errorf("writing metrics: %q has %d labels, and its family %d", s.Name, len(s.Labels), len(f.Labels))
			}
			_, _ = out.WriteString(s.Name) // the error stays in out until Flush
			for i, value := range s.Labels {
				separator := byte(',')
				if i == 0 {
					separator = '{'
				}
				_ = out.WriteByte(separator)
				_, _ = out.WriteString(f.Labels[i])
				_, _ = out.WriteString(`="`)
				_, _ = escape.WriteString(out, strings.ToValidUTF8(value, "\uFFFD"))
				_ = out.WriteByte('"')
			}
			if len(s.Labels) > 0 {
				_ = out.WriteByte('}')
			}
			_ = out.WriteByte(' ')
			_, _ = out.WriteString(format(s.Value))
			_ = out.WriteByte('\n')
		}
	}
	for name := range byName {
		return fmt.Errorf("writing metrics: there is no family %q", name)
	}
	return out.Flush()
}

// format writes a whole number without an exponent, as people read it.
func format(v float64) string {
	if whole := int64(v); float64(whole) == v && whole > -1<<53 && whole < 1<<53 {
		return strconv.FormatInt(whole, 10)
	}
	return strconv.FormatFloat(v, 'g', -1, 64)
}

// A Condition is one of those that readiness takes.
type Condition struct {
	// Name is "started", "state", "streams" or "serving"; of those that do not Count,
	// "quorum", "snapshot" or "store".
	Name string `json:"name"`
	// Holds says that it is so, and Why that it is not.
	Holds bool   `json:"holds"`
	Why   string `json:"why,omitempty"`
	// Counts says that the node is not ready without it. The others are to be known: a
	// node without a quorum serves what it can, and to take it out of service mends
	// nothing.
	Counts bool `json:"counts"`
}

// Ready reports whether all conditions that count hold.
func Ready(conditions []Condition) bool {
	return !slices.ContainsFunc(conditions, func(c Condition) bool { return c.Counts && !c.Holds })
}

// A Node is what is watched.
type Node interface {
	Source
	// Conditions are those of its readiness. They are told at once, whatever the node
	// does.
	Conditions() []Condition
}
