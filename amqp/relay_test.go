package amqp

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// TestQuietElsewhere has a client of another node be silent: that node is who ends its
// connection, because it knows then that the client is told nothing more.
func TestQuietElsewhere(t *testing.T) {
	p := &Protocol{Logger: slog.New(slog.DiscardHandler)}
	hello, err := json.Marshal(handover{VHost: "/", Channels: 1, Frame: frame.MinFrame, Heartbeat: 1})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	there, here := net.Pipe()
	served := make(chan struct{})
	go func() {
		defer close(served)
		p.takeOver(ctx, newFake(), hello, here)
	}()
	r := frame.NewReader(there, 1024)
	for beats := 0; beats < 6; { // 3 s, and a client would be cut after 2
		f, err := r.Next()
		if err != nil {
			t.Fatalf("after %d heartbeats: %v", beats, err)
		}
		if f.Kind == frame.KindHeartbeat {
			beats++
		}
	}
	cancel()
	there.Close()
	<-served
}

// answering is a way to another node, which says whether what was heard holds.
type answering struct {
	net.Conn
	over atomic.Bool
}

func (a *answering) Holds() bool { return !a.over.Load() }

// TestRelayStoodStill has a client hear nothing of another node that may have given its
// session up.
func TestRelayStoodStill(t *testing.T) {
	p := &Protocol{Logger: slog.New(slog.DiscardHandler)}
	client, server := net.Pipe()
	way, owner := net.Pipe()
	c := newConn(t.Context(), p, server, nil)
	c.opened("/")
	there := &answering{Conn: way}
	c.there = there
	served := make(chan struct{})
	go func() {
		defer close(served)
		c.serveWith(c.relay)
	}()
	say := func(tag uint64) {
		b := must(frame.AppendMethod(nil, 1, &frame.BasicDeliver{DeliveryTag: tag}))
		if _, err := owner.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	r := frame.NewReader(client, 1024)
	say(1)
	if f, err := r.Next(); err != nil || f.Channel != 1 {
		t.Fatalf("it hears %v, %v", f, err)
	}
	there.over.Store(true)
	say(2)
	if f, err := r.Next(); err == nil {
		t.Errorf("it hears %v", f)
	}
	client.Close()
	<-served
}
