package broker

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"
)

// TestFlippedBit changes a byte of what a server has stored, which was killed: the messages
// behind it, which the engine throws away there, come back from the other copies.
func TestFlippedBit(t *testing.T) {
	r := newRealm(t)
	dir := t.TempDir()
	nodes := r.three(t, dir)
	js := r.js(t, nodes["n2"])
	s := events(t, js, 3)
	large := make([]byte, 200_000)
	for range 100 { // several blocks of the store
		must[*jetstream.PubAck](t)(js.Publish(t.Context(), "events.large", large))
	}
	whole(t, s, 3)
	o := nodes["n1"].opts
	nodes["n1"].Stop(false)
	msgs := filepath.Join(dir, "store", "jetstream", public(t, r.acme), "streams", "EVENTS", "msgs")
	if err := os.Remove(filepath.Join(msgs, "index.db")); err != nil { // as if it had been killed
		t.Fatal(err)
	}
	block := filepath.Join(msgs, "1.blk")
	data, err := os.ReadFile(block)
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	if err := os.WriteFile(block, data, 0o600); err != nil {
		t.Fatal(err)
	}
	publish(t, js, 100)
	o.Cluster.Found = false
	o.Cluster.Routes = []string{nodes["n2"].RouteAddr().String()}
	again := start(t, o)
	for range 10 {
		publish(t, js, 10)
	}
	whole(t, s, 3)
	eventually(t, "the copy is whole", func(context.Context) error {
		if state := again.copies()[copyName{public(t, r.acme), "EVENTS"}].State; state.Msgs != 300 {
			return fmt.Errorf("it is %+v", state)
		}
		return nil
	})
}

// TestLacks has a copy be spared only if all others are there, are current, and have more
// than it had before and has after they were asked.
func TestLacks(t *testing.T) {
	state := func(first, last uint64, deleted int) server.StreamState {
		return server.StreamState{FirstSeq: first, LastSeq: last, NumDeleted: deleted}
	}
	group := func(leader string, peers ...*server.PeerInfo) *server.ClusterInfo {
		return &server.ClusterInfo{Leader: leader, Replicas: peers}
	}
	current := func(name string) *server.PeerInfo { return &server.PeerInfo{Name: name, Current: true} }
	good := state(1, 100, 0)
	for name, c := range map[string]struct {
		before, after, n2, n3 server.StreamState
		leader                *server.ClusterInfo // as n2 says, which leads
		want                  int
	}{
		"a gap":                      {before: state(1, 90, 20), after: state(1, 110, 20), n2: good, n3: good, want: 20},
		"the first are missing":      {before: state(31, 90, 0), after: state(31, 90, 0), n2: good, n3: good, want: 30},
		"all the same":               {before: good, after: good, n2: good, n3: good},
		"another lacks it, too":      {before: state(1, 90, 20), after: state(1, 90, 20), n2: good, n3: state(1, 90, 20)},
		"removed meanwhile":          {before: state(1, 90, 0), after: state(1, 90, 20), n2: good, n3: good},
		"others removed it later":    {before: state(1, 90, 20), after: state(1, 90, 20), n2: state(1, 90, 20), n3: state(1, 90, 20)},
		"begins before the others":   {before: state(1, 90, 20), after: state(1, 90, 20), n2: state(50, 90, 0), n3: state(50, 90, 0)},
		"another is not current":     {before: state(1, 90, 20), after: state(1, 90, 20), n2: good, n3: good, leader: group("n2", current("n1"), &server.PeerInfo{Name: "n3"})},
		"another is away":            {before: state(1, 90, 20), after: state(1, 90, 20), n2: good, n3: good, leader: group("n2", current("n1"), &server.PeerInfo{Name: "n3", Current: true, Offline: true})},
		"who leads is not agreed on": {before: state(1, 90, 20), after: state(1, 90, 20), n2: good, n3: good, leader: group("n3", current("n1"), current("n2"))},
	} {
		if c.leader == nil {
			c.leader = group("n2", current("n1"), current("n3"))
		}
		here := group("n2", current("n2"), current("n3"))
		others := map[string]server.StreamDetail{"n2": {State: c.n2, Cluster: c.leader}, "n3": {State: c.n3, Cluster: group("n2", current("n1"), current("n2"))}}
		before, after := server.StreamDetail{State: c.before, Cluster: here}, server.StreamDetail{State: c.after, Cluster: here}
		if got := lacks("n1", before, after, others); got != c.want {
			t.Errorf("%s: it lacks %d, not %d", name, got, c.want)
		}
		delete(others, "n3")
		if got := lacks("n1", before, after, others); got != 0 {
			t.Errorf("%s: it lacks %d while one does not answer", name, got)
		}
	}
}
