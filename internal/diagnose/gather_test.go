package diagnose

import (
	"testing"

	"github.com/fleetbus/fleetbus/admin"
)

// TestSettle takes for behind only what is so twice, while the stream stands still, or by
// far.
func TestSettle(t *testing.T) {
	streams := func(last uint64, c admin.Copy) admin.Streams {
		c.Node = "n2"
		return admin.Streams{Streams: []admin.StreamInfo{{Account: "acme", Name: "S", LastSeq: last, Copies: []admin.Copy{c}}}}
	}
	for _, c := range []struct {
		name        string
		before, now admin.Streams
		behind      int
	}{
		{"current", streams(1, admin.Copy{Current: true}), streams(1, admin.Copy{Current: true}), 0},
		{"once", streams(1, admin.Copy{Current: true}), streams(1, admin.Copy{Lag: 1}), 0},
		{"twice, and it moves", streams(1, admin.Copy{Lag: 1}), streams(2, admin.Copy{Lag: 1}), 0},
		{"twice, and it stands still", streams(1, admin.Copy{Lag: 1}), streams(1, admin.Copy{Lag: 1}), 1},
		{"twice, by far", streams(1, admin.Copy{Lag: 5000}), streams(2, admin.Copy{Lag: 6000}), 1},
		{"away", streams(1, admin.Copy{Offline: true}), streams(1, admin.Copy{Offline: true}), 0},
	} {
		if got := settle(c.before, &c.now); got != c.behind {
			t.Errorf("%s: %d", c.name, got)
		}
		if now := c.now.Streams[0].Copies[0]; c.behind == 0 && !now.Offline && !now.Current {
			t.Errorf("%s: it is not taken for current", c.name)
		}
	}
}
