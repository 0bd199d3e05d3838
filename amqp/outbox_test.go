package amqp

import (
	"io"
	"net"
	"sync/atomic"
	"testing"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// TestGuard has a client hear nothing that is said when another node may speak for the account.
func TestGuard(t *testing.T) {
	here, there := net.Pipe()
	o := newOutbox(here, &blocks{}, 1<<20)
	var over atomic.Bool
	o.guard(func() bool { return !over.Load() })
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.write()
	}()
	say := func() {
		if err := o.send(1, &frame.BasicAck{DeliveryTag: 1}); err != nil {
			t.Fatal(err)
		}
	}
	say()
	f, err := frame.NewReader(there, 1024).Next()
	if err != nil || f.Channel != 1 {
		t.Fatalf("it hears %v, %v", f, err)
	}
	over.Store(true)
	say()
	if rest, err := io.ReadAll(there); err != nil || len(rest) > 0 {
		t.Errorf("it hears %d bytes more, %v", len(rest), err)
	}
	<-ended
}

// TestBlocks has all go out that was said, in its order, however much at once, in memory that
// comes back.
func TestBlocks(t *testing.T) {
	here, there := net.Pipe()
	var shared blocks
	o := newOutbox(here, &shared, 1<<20)
	o.tune(frame.DefaultMaximum, 0)
	const n = 3000
	for i := range n { // before anything is written
		if err := o.message(1, &frame.BasicDeliver{DeliveryTag: uint64(i)}, []byte{0, 0}, make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
	}
	if len(o.first) < n*500/block || o.room() {
		t.Errorf("%d blocks wait, and there is room: %v", len(o.first), o.room())
	}
	drained := make(chan struct{}, 1)
	o.drain(func() { drained <- struct{}{} })
	go o.write()
	r := frame.NewReader(there, 64<<10)
	for i := uint64(0); i < n; {
		f, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if f.Kind != frame.KindMethod {
			continue
		}
		m, err := r.Method(f)
		if d, ok := m.(*frame.BasicDeliver); err != nil || !ok || d.DeliveryTag != i {
			t.Fatalf("%v comes, want %d: %v", m, i, err)
		}
		i++
	}
	<-drained
	o.end()
	there.Close()
}
