package mqtt

import (
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestMatches(t *testing.T) {
	for _, c := range []struct {
		filter, topic string
		want          bool
	}{
		{"a/b", "a/b", true}, {"a/+", "a/b", true}, {"a/+", "a", false}, {"a/+", "a/", true}, {"a/#", "a", true}, {"a/#", "a/b/c", true},
		{"#", "a/b", true}, {"#", "$SYS/a", false}, {"+/a", "$x/a", false}, {"$x/#", "$x/a", true}, {"+", "a/b", false}, {"+/+", "/a", true},
		{"/+", "/a", true}, {"+", "/a", false}, {"a/+/c/#", "a/b/c", true}, {"a/b/c/#", "a/b/c", true}, {"a/b", "a/b/c", false}, {"a/b/c", "a/b", false},
		{"a", "A", false}, {"a/+/c", "a/b/d", false}, {"a/#", "ab", false},
	} {
		if got := matches(c.filter, c.topic); got != c.want {
			t.Errorf("filter %q takes %q: %v", c.filter, c.topic, got)
		}
		found := false
		var tree tree[int]
		tree.add(c.filter, 1)
		tree.match(c.topic, func(int) { found = true })
		if found != c.want {
			t.Errorf("the tree of %q takes %q: %v", c.filter, c.topic, found)
		}
		tree.remove(c.filter, 1)
		if !tree.empty() {
			t.Errorf("the tree keeps %q", c.filter)
		}
	}
}

func TestTreeMatches(t *testing.T) {
	part := rapid.SampledFrom([]string{"a", "b", "", "$x"})
	rapid.Check(t, func(t *rapid.T) {
		filters := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) string {
			levels := rapid.SliceOfN(rapid.OneOf(part, rapid.Just("+")), 1, 4).Draw(t, "filter")
			if rapid.Bool().Draw(t, "all") {
				levels = append(levels, "#")
			}
			return strings.Join(levels, "/")
		}), 1, 8).Draw(t, "filters")
		topic := strings.Join(rapid.SliceOfN(part, 1, 4).Draw(t, "topic"), "/")
		var tree tree[int]
		for i, filter := range filters {
			tree.add(filter, i)
		}
		found := map[int]int{}
		tree.match(topic, func(i int) { found[i]++ })
		for i, filter := range filters {
			want := 0
			if matches(filter, topic) {
				want = 1
			}
			if found[i] != want {
				t.Fatalf("%q found %q %d times", topic, filter, found[i])
			}
			tree.remove(filter, i)
		}
		if !tree.empty() {
			t.Fatal("the tree is not empty")
		}
	})
}
