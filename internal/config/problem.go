package config

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// A Problem is one thing that is wrong with a configuration.
type Problem struct {
	// Place is where it was written.
	Place Place
	// Key is the path of the key; empty for a problem of the whole file.
	Key string
	// Text says what is wrong, Fix how to mend it if Text does not.
	Text, Fix string
}

// String is the problem in one line, without the fix.
func (p Problem) String() string {
	var parts []string
	for _, s := range []string{p.Place.String(), p.Key, p.Text} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// A ProblemList is the error of a configuration: all that is wrong with it, in
// the order of the file, then variables, then flags. Get one with errors.As from
// the error of Load.
type ProblemList struct {
	Problems []Problem
}

// shownProblems is how many problems Error lists.
const shownProblems = 20

// Error counts the problems and lists the first 20, each with its place and fix.
func (l *ProblemList) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "configuration has %d problems", len(l.Problems))
	if len(l.Problems) == 1 {
		b.Reset()
		b.WriteString("configuration has 1 problem")
	}
	for i, p := range l.Problems {
		if i == shownProblems {
			fmt.Fprintf(&b, "\n  and %d more", len(l.Problems)-i)
			break
		}
		fmt.Fprintf(&b, "\n  %s", p)
		if p.Fix != "" {
			fmt.Fprintf(&b, "\n    fix: %s", p.Fix)
		}
	}
	return b.String()
}

// sort orders the problems by place.
func (l *ProblemList) sort() {
	rank := func(p Place) int {
		switch {
		case strings.HasPrefix(p.Source, "--"):
			return 2
		case strings.HasPrefix(p.Source, envPrefix) && p.Line == 0:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(l.Problems, func(a, b Problem) int {
		return cmp.Or(
			cmp.Compare(rank(a.Place), rank(b.Place)),
			strings.Compare(a.Place.Source, b.Place.Source),
			cmp.Compare(a.Place.Line, b.Place.Line),
			cmp.Compare(a.Place.Column, b.Place.Column),
		)
	})
}

// nearest returns the candidate that name is most likely a slip or a longer or
// shorter form of, "" if none is.
func nearest(name string, candidates []string) string {
	best, bestDistance := "", 3
	for _, c := range candidates {
		d := len(name)
		if abs(len(name)-len(c)) < bestDistance {
			d = distance(strings.ToLower(name), c)
		}
		if d < bestDistance && d < len(c) && d < len(name) {
			best, bestDistance = c, d
		}
	}
	for _, c := range candidates {
		if best == "" && len(c) >= 3 && len(name) >= 3 && (strings.HasPrefix(name, c) || strings.HasPrefix(c, name)) {
			best = c
		}
	}
	return best
}

func abs(n int) int { return max(n, -n) }

// distance is the number of bytes to insert, remove, replace or swap with their
// neighbor between a and b.
func distance(a, b string) int {
	before, row := []int(nil), make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j+1]+1, next[j]+1, row[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
