package mqtt

import (
	"encoding/binary"
	"io"
	"net"
	"testing"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestOutbox sends from one goroutine while another writes: what arrives is what
// was sent.
func TestOutbox(t *testing.T) {
	to, from := connected(t)
	defer from.Close()
	o := newOutbox(to, 1<<20, new(buffers))
	o.v = packet.V311
	go o.write()
	const many = 500_000
	go func() {
		for i := range many {
			o.send(&packet.Ack{Kind: packet.PUBACK, ID: uint16(i%0xFFFF + 1)})
		}
		o.end()
	}()
	r := packet.NewReader(from, packet.Server, 4096)
	r.Version = packet.V311
	for i := range many {
		p, err := r.Next()
		if err != nil {
			t.Fatal(err)
		}
		if a, ok := p.(*packet.Ack); !ok || a.ID != uint16(i%0xFFFF+1) {
			t.Fatalf("%d: %+v", i, p)
		}
	}
	if p, err := r.Next(); err != io.EOF {
		t.Errorf("%+v %v", p, err)
	}
}

// TestOutboxBatch sends batches: who is sent some is told at the end, has little memory
// for a little, and none for nothing.
func TestOutboxBatch(t *testing.T) {
	to, from := connected(t)
	defer from.Close()
	o := newOutbox(to, 1<<20, new(buffers))
	o.v = packet.V311
	var in batch
	sent := 0
	send := func(n int) {
		for range n {
			sent++
			m := packet.Message{Topic: []byte("a"), Payload: make([]byte, 256)}
			binary.BigEndian.PutUint32(m.Payload, uint32(sent))
			o.sendIn(&in, &packet.Publish{Message: m})
		}
	}
	send(1)
	if len(in.boxes) != 1 || len(o.wake) > 0 || cap(o.wait) != smallSize {
		t.Errorf("one: %d to tell, %d told, a buffer of %d", len(in.boxes), len(o.wake), cap(o.wait))
	}
	send(20)
	if len(in.boxes) != 1 || len(o.wake) > 0 || cap(o.wait) != largeSize {
		t.Errorf("some: %d to tell, %d told, a buffer of %d", len(in.boxes), len(o.wake), cap(o.wait))
	}
	send(200)
	if len(in.boxes) != 1 || len(o.wake) == 0 || len(o.before) == 0 {
		t.Errorf("many: %d to tell, %d told, %d buffers before", len(in.boxes), len(o.wake), len(o.before))
	}
	for _, b := range o.before {
		if len(b) > 16<<10 || cap(b) != largeSize {
			t.Errorf("a buffer of %d has %d bytes", cap(b), len(b))
		}
	}
	in.tell()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		o.write()
	}()
	r := packet.NewReader(from, packet.Server, 4096)
	r.Version = packet.V311
	read := 0
	for n := range 300 {
		send(n)
		in.tell()
		for ; read < sent; read++ {
			p, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			if m, ok := p.(*packet.Publish); !ok || binary.BigEndian.Uint32(m.Payload) != uint32(read+1) {
				t.Fatalf("%d: %+v", read, p)
			}
		}
	}
	o.end()
	<-ended
	if o.wait != nil || o.before != nil || o.size != 0 {
		t.Errorf("%d bytes wait when all is written", o.size)
	}
}

// connected are the two ends of a connection.
func connected(t *testing.T) (net.Conn, net.Conn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	to, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	from, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return to, from
}
