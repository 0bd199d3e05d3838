package mqtt

import (
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
