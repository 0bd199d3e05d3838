package broker

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/smalldisk"
)

// noResources is the code by which a server refuses what it would have to store.
const noResources = jetstream.ErrorCode(10023)

func isRefused(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.ErrorCode == noResources
}

// events makes the stream EVENTS.
func events(t *testing.T, js jetstream.JetStream, replicas int) (s jetstream.Stream) {
	t.Helper()
	eventually(t, "a stream", func(ctx context.Context) (err error) {
		s, err = js.CreateStream(ctx, jetstream.StreamConfig{Name: "EVENTS", Subjects: []string{"events.>"}, Replicas: replicas})
		return err
	})
	return s
}

// whole waits until every copy of a stream has all of it.
func whole(t *testing.T, s jetstream.Stream, replicas int) {
	t.Helper()
	eventually(t, "every copy", func(ctx context.Context) error {
		info, err := s.Info(ctx)
		if err != nil {
			return err
		}
		if info.Cluster == nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != replicas-1 {
			return fmt.Errorf("cluster %+v", info.Cluster)
		}
		for _, p := range info.Cluster.Replicas {
			if !p.Current || p.Offline || p.Lag > 0 {
				return fmt.Errorf("copy %+v", *p)
			}
		}
		return nil
	})
}

// TestHold checks what a server that stores nothing more still does.
func TestHold(t *testing.T) {
	r := newRealm(t)
	o := r.options(t, "n1", t.TempDir())
	o.Cluster = nil
	b := start(t, o)
	js := r.js(t, b)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	events(t, js, 1)
	must[jetstream.Stream](t)(js.CreateStream(ctx, jetstream.StreamConfig{Name: "MEMORY", Subjects: []string{"memory"}, Storage: jetstream.MemoryStorage}))
	publish(t, js, 5)
	if err := b.Hold(true); err != nil {
		t.Fatal(err)
	}
	if _, err := js.Publish(ctx, "events.x", nil); !isRefused(err) {
		t.Errorf("a held server answers a publisher: %v", err)
	}
	if _, err := js.Publish(ctx, "memory", nil); err != nil {
		t.Errorf("what is kept in memory: %v", err)
	}
	consumer := must[jetstream.Consumer](t)(js.CreateConsumer(ctx, "EVENTS", jetstream.ConsumerConfig{Durable: "reader"}))
	batch := must[jetstream.MessageBatch](t)(consumer.Fetch(5))
	read := 0
	for m := range batch.Messages() {
		if err := m.DoubleAck(ctx); err != nil {
			t.Errorf("acknowledging a message: %v", err)
		}
		read++
	}
	if read != 5 {
		t.Errorf("%d of 5 messages were read, %v", read, batch.Error())
	}
	if err := b.Hold(false); err != nil {
		t.Fatal(err)
	}
	publish(t, js, 5)
	if got := messages(t, js); got != 10 {
		t.Errorf("there are %d messages, not 10", got)
	}
}

// three starts a cluster, the first server in dir.
func (r *realm) three(t *testing.T, dir string) map[string]*Broker {
	o := r.options(t, "n1", dir)
	o.Cluster.Found = true
	n1 := start(t, o)
	n2 := start(t, r.options(t, "n2", t.TempDir(), n1.RouteAddr().String()))
	eventually(t, "two members", members(n1, 2))
	n3 := start(t, r.options(t, "n3", t.TempDir(), n1.RouteAddr().String()))
	eventually(t, "three members", members(n1, 3))
	return map[string]*Broker{"n1": n1, "n2": n2, "n3": n3}
}

// TestHoldOfThree holds the leader of a stream: another takes over, and the copy
// of the held one stays as it is until it is let go.
func TestHoldOfThree(t *testing.T) {
	r := newRealm(t)
	nodes := r.three(t, t.TempDir())
	js := r.js(t, nodes["n1"])
	s := events(t, js, 3)
	publish(t, js, 50)
	whole(t, s, 3)
	leader := must[*jetstream.StreamInfo](t)(s.Info(t.Context())).Cluster.Leader
	held := nodes[leader]
	if err := held.Hold(true); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	publish(t, js, 1)
	t.Logf("%s is held, and another leads after %v", leader, time.Since(began))
	publish(t, js, 100)
	eventually(t, "another leader", func(ctx context.Context) error {
		info, err := s.Info(ctx)
		if err == nil && (info.Cluster.Leader == "" || info.Cluster.Leader == leader) {
			err = fmt.Errorf("%s leads", info.Cluster.Leader)
		}
		return err
	})
	if err := held.Hold(false); err != nil {
		t.Fatal(err)
	}
	whole(t, s, 3)
	if got := messages(t, js); got != 151 {
		t.Errorf("there are %d messages, not 151", got)
	}
}

// TestFullDisk fills the disk under a server that is written to, and checks that
// everything that was acknowledged is there when the disk has room again.
func TestFullDisk(t *testing.T) {
	for name, replicas := range map[string]int{"to itself": 1, "a cluster of one": 1, "three": 3} {
		t.Run(name, func(t *testing.T) {
			r := newRealm(t)
			dir := smalldisk.Mount(t, "48m")
			var n1, other *Broker
			if replicas == 1 {
				o := r.options(t, "n1", dir)
				o.Cluster.Found, o.Monitor = true, "127.0.0.1:0"
				if name == "to itself" {
					o.Cluster, o.Clients = nil, nil
				}
				n1 = start(t, o)
				other = n1
			} else {
				nodes := r.three(t, dir)
				n1, other = nodes["n1"], nodes["n2"]
			}
			js := r.js(t, other)
			s := events(t, js, replicas)
			acked := map[uint64][]byte{}
			write := func(ctx context.Context, n int) error {
				data := bytes.Repeat(fmt.Appendf(nil, "%d ", n), 1000)
				ack, err := js.Publish(ctx, "events.x", data)
				if err == nil {
					acked[ack.Sequence] = data
				}
				return err
			}
			n := 0
			some := func() {
				for range 50 {
					eventually(t, "an acknowledgment", func(ctx context.Context) error {
						n++
						return write(ctx, n)
					})
				}
			}
			some()
			free := smalldisk.Fill(t, dir, 0)
			eventually(t, "the engine to meet the full disk", func(ctx context.Context) error {
				ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
				defer cancel()
				n++
				if err := write(ctx, n); !n1.Full() {
					return fmt.Errorf("it has not yet: %v", err)
				}
				return nil
			})
			if replicas == 3 {
				some() // the others go on
			}
			free()
			began := time.Now()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			if err := n1.Revive(ctx); err != nil {
				t.Fatal(err)
			}
			some()
			if name != "to itself" {
				whole(t, s, replicas)
			}
			t.Logf("whole again after %v", time.Since(began))
			for seq, data := range acked {
				eventually(t, "an answer", func(ctx context.Context) error {
					m, err := s.GetMsg(ctx, seq)
					if errors.Is(err, jetstream.ErrMsgNotFound) {
						t.Errorf("message %d was acknowledged, and is lost", seq)
						return nil
					}
					if err == nil && !bytes.Equal(m.Data, data) {
						t.Errorf("message %d is another", seq)
					}
					return err
				})
			}
			if n1.Full() {
				t.Error("the disk is full after all")
			}
		})
	}
}
