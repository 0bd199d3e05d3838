package mqtt

import "testing"

// TestCaughtUp reads the stream while the node hears of what is stored: up to 811, when
// there was no more place for it.
func TestCaughtUp(t *testing.T) {
	for _, c := range []struct {
		name                string
		next, floor, behind uint64
		queued              int
	}{
		{name: "heard more than was read", next: 310, floor: 309, behind: 812, queued: 502},
		{name: "read more than was heard", next: 900, floor: 899, behind: 900},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &session{a: &account{}, reading: true, at: c.next, behind: 812}
			for seq := uint64(300); seq < 812; seq++ {
				m := message{seq: seq, payload: []byte("x")}
				s.held, s.queued = append(s.held, m), s.queued+1
			}
			s.caughtUp(c.next)
			if floor, part := s.floor(); floor != c.floor || part != 0 {
				t.Errorf("it has what is stored up to %d and %d of the next, which is not %d", floor, part, c.floor)
			}
			if s.behind != c.behind {
				t.Errorf("it reads again from %d on, not %d", s.behind, c.behind)
			}
			if len(s.queue) != c.queued || s.queued != c.queued || s.held != nil {
				t.Errorf("%d messages of %d bytes wait, %d held, of which %d should", len(s.queue), s.queued, len(s.held), c.queued)
			}
		})
	}
}
