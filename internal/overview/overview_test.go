package overview

import (
	"slices"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

func TestFindings(t *testing.T) {
	up := func(name string) admin.NodeInfo { return admin.NodeInfo{Node: identity.Node{Name: name}, State: "up"} }
	late := up("b")
	late.Clock = -3 * time.Second
	for what, c := range map[string]struct {
		status admin.Status
		want   []string
	}{
		"all is well":       {admin.Status{Leader: "a", Nodes: []admin.NodeInfo{up("a"), up("b"), up("c")}}, nil},
		"one node":          {admin.Status{Leader: "a", Nodes: []admin.NodeInfo{up("a")}}, []string{"ONE-NODE"}},
		"one node of a hub": {admin.Status{Leader: "a", Nodes: []admin.NodeInfo{{Node: identity.Node{Name: "a"}, State: "up", Hubs: []admin.Hub{{}}}}}, nil},
		"two nodes":         {admin.Status{Leader: "a", Nodes: []admin.NodeInfo{up("a"), up("b")}}, []string{"TWO-NODES"}},
		"no leader, and more": {
			admin.Status{Nodes: []admin.NodeInfo{{Node: identity.Node{Name: "a"}, State: "down"}, late, up("c")}, Sites: []admin.Site{{Account: "acme", Name: "s", State: admin.SiteAway}}},
			[]string{"NODE-DOWN", "CLOCK-SKEW", "NO-QUORUM", "SITE-AWAY"},
		},
	} {
		var got []string
		for _, f := range Findings(c.status) {
			got = append(got, f.Code)
			if f.Text == "" || f.Fix == "" {
				t.Errorf("%s: %+v says too little", what, f)
			}
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", what, got, c.want)
		}
	}
}
