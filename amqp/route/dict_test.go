package route

import (
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestDict does the same to a dict and a map, with hashes that are good and bad.
func TestDict(t *testing.T) {
	for name, h := range map[string]hasher{
		"good":       newHasher(),
		"few":        func(s string) uint64 { return uint64(len(s)) << 60 },
		"one":        func(string) uint64 { return 7 },
		"low bits":   func(s string) uint64 { return uint64(s[len(s)-1]) << (hashBits - 8) },
		"same begin": func(s string) uint64 { return uint64(s[0])<<8 | 0x55 },
	} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				var d dict[int]
				want := map[string]int{}
				type kept struct {
					d    dict[int]
					want map[string]int
				}
				var before []kept
				key := rapid.Custom(func(t *rapid.T) string { return fmt.Sprint(rapid.IntRange(0, 200).Draw(t, "key")) })
				same := func(d dict[int], want map[string]int) {
					if got := maps.Collect(d.all()); !maps.Equal(got, want) || d.len() != len(want) || !slices.Equal(d.names(), slices.Sorted(maps.Keys(want))) {
						t.Fatalf("%v of %d, not %v", got, d.len(), want)
					}
				}
				t.Repeat(map[string]func(*rapid.T){
					"with": func(t *rapid.T) {
						k, v := key.Draw(t, "k"), rapid.Int().Draw(t, "v")
						d, want[k] = d.with(h, k, v), v
					},
					"without": func(t *rapid.T) {
						k := key.Draw(t, "k")
						d = d.without(h, k)
						delete(want, k)
					},
					"keep": func(*rapid.T) { before = append(before, kept{d, maps.Clone(want)}) },
					"": func(t *rapid.T) {
						same(d, want)
						k := key.Draw(t, "k")
						if got, ok := d.get(h, k); got != want[k] || ok != (want[k] != 0 || mapHas(want, k)) {
							t.Fatalf("%s is %d, %v", k, got, ok)
						}
					},
				})
				for _, one := range before {
					same(one.d, one.want)
				}
				for k := range want {
					d = d.without(h, k)
				}
				if d.root != nil || d.len() != 0 {
					t.Fatalf("%d are left, at %v", d.len(), d.root)
				}
			})
		})
	}
}

func mapHas(m map[string]int, k string) bool { _, ok := m[k]; return ok }
