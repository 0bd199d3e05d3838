package journal

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestRuns has what is done with be the same after it was noted in runs, whatever is noted
// again and however it is parted.
func TestRuns(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &log{done: map[uint64]struct{}{}}
		var noted notes
		seq := uint64(0)
		for range rapid.IntRange(0, 60).Draw(t, "messages") {
			seq += rapid.Uint64Range(1, 3).Draw(t, "gap")
			k := kept{seq, rapid.IntRange(1, 3).Draw(t, "records")}
			l.all = append(l.all, k)
			for at := range k.numbers() {
				seq = at
				if rapid.Bool().Draw(t, "done") {
					l.done[at] = struct{}{}
				}
			}
			if rapid.IntRange(0, 9).Draw(t, "note") == 0 {
				noted.Runs = append(noted.Runs, l.runs()...)
			}
		}
		all := l.runs()
		for len(all) > 0 {
			n := rapid.IntRange(1, len(all)).Draw(t, "part")
			noted.Runs = append(noted.Runs, all[:n]...)
			all = all[n:]
		}
		if i := len(noted.Runs); i > 1 && rapid.Bool().Draw(t, "turn") {
			slices.Reverse(noted.Runs)
		}
		finished := noted.finished()
		for _, k := range l.all {
			for seq := range k.numbers() {
				if _, want := l.done[seq]; finished(seq) != want {
					t.Fatalf("message %d of %v: done is %v, by %v", seq, l.all, want, noted.Runs)
				}
			}
		}
	})
}

// TestRise has a log forget what is done with from its beginning on, and nothing else.
func TestRise(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &log{done: map[uint64]struct{}{}}
		var left, undone []uint64
		for seq := range uint64(rapid.IntRange(1, 5).Draw(t, "messages")) {
			k := kept{number(seq+1, 0), rapid.IntRange(1, 4).Draw(t, "records")}
			l.all = append(l.all, k)
			left = slices.AppendSeq(left, k.numbers())
		}
		undone = slices.Clone(left)
		for len(undone) > 0 {
			i := rapid.IntRange(0, len(undone)-1).Draw(t, "done")
			l.done[undone[i]] = struct{}{}
			undone = slices.Delete(undone, i, i+1)
			if rapid.Bool().Draw(t, "later") {
				continue
			}
			l.rise()
			for len(left) > 0 && !slices.Contains(undone, left[0]) {
				if l.floor <= left[0] {
					t.Fatalf("the floor is %d, and %d is done with", l.floor, left[0])
				}
				left = left[1:]
			}
			var all []uint64
			for _, k := range l.all {
				all = slices.AppendSeq(all, k.numbers())
			}
			if !slices.Equal(all, left) || len(l.done) != len(left)-len(undone) {
				t.Fatalf("%v are left, want %v; %d of them done with", all, left, len(l.done))
			}
		}
	})
}
