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
			l.all = append(l.all, seq)
			if rapid.Bool().Draw(t, "done") {
				l.done[seq] = struct{}{}
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
		for _, seq := range l.all {
			if _, want := l.done[seq]; finished(seq) != want {
				t.Fatalf("message %d of %v: done is %v, by %v", seq, l.all, want, noted.Runs)
			}
		}
	})
}
