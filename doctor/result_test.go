package doctor

import (
	"strings"
	"testing"
)

// outline writes results as code(explained…).
func outline(all []Result) string {
	var parts []string
	for _, r := range all {
		text := r.Code + r.Node
		if len(r.Explains) > 0 {
			text += "(" + outline(r.Explains) + ")"
		}
		parts = append(parts, text)
	}
	return strings.Join(parts, " ")
}

func TestFold(t *testing.T) {
	for _, c := range []struct {
		name, want string
		all        []Result
	}{
		{"nothing", "", nil},
		{"no cause there", "B", []Result{{Code: "B", State: Fail, Because: []string{"A"}}}},
		{"chain", "A(B(C))", []Result{{Code: "C", State: Warn, Because: []string{"B"}}, {Code: "B", State: Fail, Because: []string{"A"}}, {Code: "A", State: Fail}}},
		{"ring", "A B(C)", []Result{{Code: "A", State: Fail, Because: []string{"B"}}, {Code: "B", State: Fail, Because: []string{"A"}}, {Code: "C", State: Fail, Because: []string{"B"}}}},
		{"own node", "A1 A2(B2)", []Result{{Code: "B", Node: "2", State: Unknown, Because: []string{"A"}}, {Code: "A", Node: "1", State: Fail}, {Code: "A", Node: "2", State: Fail}}},
		{"of the fleet", "A(B2)", []Result{{Code: "B", Node: "2", State: Unknown, Because: []string{"A"}}, {Code: "A", State: Fail}}},
		{"another node's", "A1 B2", []Result{{Code: "A", Node: "1", State: Fail}, {Code: "B", Node: "2", State: Fail, Because: []string{"A"}}}},
		{"what is ok explains nothing", "A B", []Result{{Code: "A", State: OK}, {Code: "B", State: Fail, Because: []string{"A"}}}},
		{"what is ok is not explained", "A B", []Result{{Code: "A", State: Fail}, {Code: "B", State: OK, Because: []string{"A"}}}},
	} {
		got := Fold(c.all)
		if c.name == "ring" { // one of the two stands by itself, and nothing is lost
			if n := Count(got, Fail); n != 3 {
				t.Errorf("%s: %d results in %s", c.name, n, outline(got))
			}
			continue
		}
		if outline(got) != c.want {
			t.Errorf("%s: %s, not %s", c.name, outline(got), c.want)
		}
	}
}

func TestWorst(t *testing.T) {
	all := []Result{{State: OK}, {State: Warn, Explains: []Result{{State: Fail}, {State: Unknown}}}}
	if got := Worst(all); got != Fail {
		t.Errorf("the worst is %s", got)
	}
	if Count(all, Fail) != 1 || Count(all, Unknown) != 1 || Count(all, Warn) != 1 || Count(all, Skipped) != 0 {
		t.Error("what is explained is not counted")
	}
	SortResults(all, []string{""})
	if all[0].State != Warn {
		t.Error("the worst is not the first")
	}
}
