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

// copyOf is a server's own copy of stream EVENTS.
func (r *realm) copyOf(t *testing.T, b *Broker) server.StreamState {
	t.Helper()
	z, err := b.srv.Jsz(&server.JSzOptions{Account: public(t, r.acme), Streams: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range z.AccountDetails {
		for _, s := range a.Streams {
			if s.Name == "EVENTS" {
				return s.State
			}
		}
	}
	return server.StreamState{}
}

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
		if state := r.copyOf(t, again); state.Msgs != 300 {
			return fmt.Errorf("it is %+v", state)
		}
		return nil
	})
}
