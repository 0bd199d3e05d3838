// Package explain has, for every code of a finding, what it means, why it matters, how it
// is measured and what mends it.
package explain

import (
	_ "embed" // of the table
	"slices"
	"strings"
	"sync"
)

//go:embed codes.txt
var table string

// A Code is what there is to say of one.
type Code struct {
	Code string `json:"code"`
	// Group and Check are where the doctor shows it.
	Group string `json:"group"`
	Check string `json:"check"`
	// Means says what it is, Matters why anybody should care, Measured how it was found,
	// and Fix what to do, with commands.
	Means    string `json:"means"`
	Matters  string `json:"matters"`
	Measured string `json:"measured"`
	Fix      string `json:"fix"`
}

// Groups are the groups of checks, in the order in which they are shown.
func Groups() []string {
	return []string{"node", "network", "identity", "cluster", "accounts", "streams", "sources", "certificates", "hub", "config"}
}

var read = sync.OnceValue(func() []Code {
	var all []Code
	for _, block := range strings.Split(table, "\n\n")[1:] {
		lines := strings.Split(strings.TrimSpace(block), "\n")
		head := strings.Fields(lines[0])
		all = append(all, Code{head[0], head[1], head[2], lines[1], lines[2], lines[3], strings.Join(lines[4:], "\n")})
	}
	return all
})

// All are all codes, by group and check.
func All() []Code { return slices.Clone(read()) }

// normal is a code as people may write it, as codes are.
func normal(code string) string {
	return strings.ToUpper(strings.NewReplacer("_", "-", " ", "-").Replace(code))
}

// Of is what there is to say of a code, in any case of letters.
func Of(code string) (c Code, ok bool) {
	code = normal(code)
	i := slices.IndexFunc(read(), func(c Code) bool { return c.Code == code })
	if i < 0 {
		return Code{Code: code}, false
	}
	return read()[i], true
}

// GroupOf is the group of a check.
func GroupOf(check string) string {
	i := slices.IndexFunc(read(), func(c Code) bool { return c.Check == check })
	if i < 0 {
		return ""
	}
	return read()[i].Group
}

// Nearest are the codes most like what was asked for, three at most.
func Nearest(code string) []string {
	code = normal(code)
	type near struct {
		code string
		far  int
	}
	var all []near
	for _, c := range read() {
		far := distance(code, c.Code)
		for word := range strings.SplitSeq(code, "-") {
			if len(word) > 2 && slices.Contains(strings.Split(c.Code, "-"), word) {
				far -= len(word)
			}
		}
		if far <= max(2, len(code)/2) {
			all = append(all, near{c.Code, far})
		}
	}
	slices.SortStableFunc(all, func(a, b near) int { return a.far - b.far })
	var codes []string
	for _, n := range all[:min(len(all), 3)] {
		codes = append(codes, n.code)
	}
	return codes
}

// distance counts the letters that differ: Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := corner
			if a[i] != b[j] {
				cost++
			}
			corner = row[j+1]
			row[j+1] = min(cost, row[j]+1, corner+1)
		}
	}
	return row[len(b)]
}
