package main

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
)

// TestKilledAdapter kills random nodes of three, again and again, while machines
// register by an adapter: what was acknowledged is in the stream. FLEETBUS_KILLS is
// how often, FLEETBUS_SEED which ones.
func TestKilledAdapter(t *testing.T) {
	t.Parallel()
	kills, seed := fromEnv(t, "FLEETBUS_KILLS", 2), fromEnv(t, "FLEETBUS_SEED", int(time.Now().UnixNano()%1e6))
	c := newCrash(t, uint64(seed))
	c.m.must("account", "add", "ops", "--data-dir", "n1")
	c.m.must("adapter", "add", "reg", "--from", "acme", "--subject", "registration.>", "--to", "ops", "--stream", "REG", "--data-dir", "n1")
	c.m.must("user", "add", "ops/pool", "--data-dir", "n1", "--out", "pool.creds")
	connect := func(creds string) *nats.Conn {
		nc := must[*nats.Conn](t)(nats.Connect(strings.Join(c.nc.Servers(), ","), nats.Secure(&tls.Config{MinVersion: tls.VersionTLS13, RootCAs: c.tls.RootCAs}),
			nats.UserCredentials(filepath.Join(c.m.dir, creds)), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond),
			nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {})))
		t.Cleanup(nc.Close)
		return nc
	}
	stream := must[jetstream.Stream](t)(must[jetstream.JetStream](t)(jetstream.New(connect("pool.creds"))).Stream(t.Context(), "REG"))

	ctx, end := context.WithCancel(t.Context())
	defer end()
	var mu sync.Mutex
	acknowledged, refused := map[string]uint64{}, 0
	var sending sync.WaitGroup
	for i := range 4 {
		nc := connect("check.creds")
		sending.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				id := fmt.Sprint(i, "-", n)
				try, cancel := context.WithTimeout(ctx, 2*time.Second)
				answer, err := nc.RequestWithContext(try, fmt.Sprint("registration.m", i), []byte(id))
				cancel()
				var reply admin.Reply
				var stored admin.Stored
				ok := err == nil && json.Unmarshal(answer.Data, &reply) == nil && reply.Error == nil && json.Unmarshal(reply.Data, &stored) == nil
				mu.Lock()
				if ok && stored.Sequence > 0 {
					acknowledged[id] = stored.Sequence
				} else {
					refused++
				}
				mu.Unlock()
			}
		})
	}
	count := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(acknowledged)
	}
	progress := func(what string) {
		before := count()
		c.until(what, func() error {
			if now := count(); now < before+50 {
				return fmt.Errorf("%d are acknowledged since", now-before)
			}
			return nil
		})
	}
	progress("machines register")
	for i := range kills {
		n := c.nodes[c.rng.IntN(len(c.nodes))]
		n.kill()
		progress(fmt.Sprintf("machines register without %s, after kill %d", n.name, i+1))
		n.process = c.m.serve(n.name)
		progress(fmt.Sprintf("machines register with %s again", n.name))
	}
	end()
	sending.Wait()

	there := map[string]string{}
	c.until("the stream is read", func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		info, err := stream.Info(ctx)
		if err != nil {
			return fmt.Errorf("asking for it: %w", err)
		}
		reader, err := stream.CreateConsumer(ctx, jetstream.ConsumerConfig{AckPolicy: jetstream.AckNonePolicy})
		if err != nil {
			return fmt.Errorf("making a reader: %w", err)
		}
		for seq := uint64(0); seq < info.State.LastSeq; {
			msg, err := reader.Next(jetstream.FetchMaxWait(5 * time.Second))
			if err != nil {
				return fmt.Errorf("reading after %d of %d: %w", seq, info.State.LastSeq, err)
			}
			at, err := msg.Metadata()
			if err != nil {
				return err
			}
			seq = at.Sequence.Stream
			there[fmt.Sprint(seq)] = string(msg.Data())
			if sender := msg.Headers().Get(admin.AdapterSender); sender != "check" {
				t.Errorf("message %d is of %q", seq, sender)
			}
		}
		return nil
	})
	missing := 0
	for id, seq := range acknowledged {
		if there[fmt.Sprint(seq)] != id {
			missing++
		}
	}
	t.Logf("%d kills, seed %d: %d acknowledged, %d missing; %d in the stream, %d requests without an acknowledgement", kills, seed, len(acknowledged), missing, len(there), refused)
	if missing > 0 {
		t.Fail()
	}
}
