// Package doctor is the vocabulary of what is wrong with a fleet and what to do
// about it: a Checker looks, a Finding says. What is looked at lives with the
// packages that own it.
package doctor

import (
	"cmp"
	"context"
	"encoding"
	"fmt"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Severity says how soon somebody has to act on a Finding. A larger one is worse.
type Severity int

const (
	// Info is worth knowing and needs no action.
	Info Severity = iota
	// Warning needs an action before it becomes a problem.
	Warning
	// Problem needs an action now.
	Problem
)

var (
	_ encoding.TextMarshaler   = Severity(0)
	_ encoding.TextUnmarshaler = (*Severity)(nil)
)

// String is "info", "warning" or "problem".
func (s Severity) String() string {
	switch s {
	case Info:
		return "info"
	case Warning:
		return "warning"
	case Problem:
		return "problem"
	}
	return fmt.Sprintf("Severity(%d)", int(s))
}

// MarshalText encodes s as String does. It never fails.
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText decodes what MarshalText wrote. A word that it does not know, as
// a newer node may send, is a Problem: better too loud than lost.
func (s *Severity) UnmarshalText(text []byte) error {
	switch string(text) {
	case "info":
		*s = Info
	case "warning":
		*s = Warning
	default:
		*s = Problem
	}
	return nil
}

// A Finding is one thing that is wrong, or may become so. It is a plain value.
type Finding struct {
	// Code names the kind of finding, such as "CERTIFICATE-EXPIRES". It is stable
	// over releases, so that scripts may compare it.
	Code string `json:"code"`
	// Severity says how soon to act.
	Severity Severity `json:"severity"`
	// Subject is what the finding is about: a node, a listener, a certificate.
	Subject string `json:"subject"`
	// Text says in one sentence what is wrong.
	Text string `json:"text"`
	// Fix is one command or setting that mends it; empty if there is nothing to do.
	Fix string `json:"fix,omitempty"`
	// Because are codes of findings that explain this one: if one of them is
	// present, mending it mends this, and Run leaves this out.
	Because []string `json:"because,omitempty"`
}

// A Checker looks at one aspect of a server. Check returns what it found, nothing
// if all is well, and comes back soon after ctx is done. It may be called
// concurrently with other checkers and with itself.
type Checker interface {
	Check(ctx context.Context) []Finding
}

// CheckerFunc makes a Checker of a function.
type CheckerFunc func(ctx context.Context) []Finding

// Check calls f.
func (f CheckerFunc) Check(ctx context.Context) []Finding { return f(ctx) }

// String is the name of the function, for findings about the checker itself.
func (f CheckerFunc) String() string {
	return runtime.FuncForPC(reflect.ValueOf(f).Pointer()).Name()
}

// Codes of the findings that Run makes itself.
const (
	// CodeCheckerFailed is a checker that panicked.
	CodeCheckerFailed = "CHECKER-FAILED"
	// CodeCheckerSlow is a checker that did not come back in time.
	CodeCheckerSlow = "CHECKER-SLOW"
)

// grace is how long a checker may take to notice that its context is done.
const grace = 250 * time.Millisecond

// Run runs all checkers at once and returns what they found, the worst first and
// then by code and subject, without the findings that another one explains. A
// checker that panics, or is still at work a quarter of a second after ctx is
// done, is a finding; the latter's goroutine is left to end by itself. Run is
// safe for concurrent use.
func Run(ctx context.Context, checkers ...Checker) []Finding {
	results := make([]chan []Finding, len(checkers))
	for i, c := range checkers {
		results[i] = make(chan []Finding, 1)
		go func() { results[i] <- check(ctx, c) }()
	}
	late := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { time.AfterFunc(grace, func() { close(late) }) })
	defer stop()

	var all []Finding
	for i, c := range checkers {
		select {
		case found := <-results[i]:
			all = append(all, found...)
		case <-late:
			select {
			case found := <-results[i]:
				all = append(all, found...)
			default:
				all = append(all, Finding{
					Code: CodeCheckerSlow, Severity: Warning, Subject: nameOf(c),
					Text: "the check did not end in time, so what it looks at is unknown",
					Fix:  "run it again with more time",
				})
			}
		}
	}
	all = unexplained(all)
	slices.SortStableFunc(all, func(a, b Finding) int {
		return cmp.Or(
			cmp.Compare(b.Severity, a.Severity),
			strings.Compare(a.Code, b.Code),
			strings.Compare(a.Subject, b.Subject),
		)
	})
	return all
}

// check calls c and turns a panic into a finding.
func check(ctx context.Context, c Checker) (found []Finding) {
	defer func() {
		if r := recover(); r != nil {
			found = []Finding{{
				Code: CodeCheckerFailed, Severity: Warning, Subject: nameOf(c),
				Text: fmt.Sprintf("the check failed, so what it looks at is unknown: %v", r),
				Fix:  "report it as a defect",
			}}
		}
	}()
	return c.Check(ctx)
}

func nameOf(c Checker) string {
	if s, ok := c.(fmt.Stringer); ok {
		return s.String()
	}
	return fmt.Sprintf("%T", c)
}

// unexplained removes the findings that others explain, directly or by way of a
// finding that is removed itself. Findings that only explain each other stay,
// because nothing else would tell of them.
func unexplained(all []Finding) []Finding {
	present := map[string]bool{}
	for _, f := range all {
		present[f.Code] = true
	}
	causes := map[string]bool{} // codes that lead back to a finding without a cause
	for _, f := range all {
		if !slices.ContainsFunc(f.Because, func(code string) bool { return code != f.Code && present[code] }) {
			causes[f.Code] = true
		}
	}
	removed := make([]bool, len(all))
	for again := true; again; {
		again = false
		for i, f := range all {
			explained := func(code string) bool { return code != f.Code && causes[code] }
			if !removed[i] && slices.ContainsFunc(f.Because, explained) {
				removed[i], causes[f.Code], again = true, true, true
			}
		}
	}
	var kept []Finding
	for i, f := range all {
		if !removed[i] {
			kept = append(kept, f)
		}
	}
	return kept
}
