package reclaim

import "testing"

// TestPercent has a small heap collected seldom, and a large one before its garbage is
// half of it.
func TestPercent(t *testing.T) {
	t.Parallel()
	for live, want := range map[uint64]int{0: 200, 8 << 20: 200, 32 << 20: 100, 64 << 20: 50, 4 << 30: 50} {
		if got := percent(live); got != want {
			t.Errorf("%d%% with %d bytes, want %d", got, live, want)
		}
	}
}
