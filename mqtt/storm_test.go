package mqtt_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestNoQuorum has two of three nodes gone: what would have to be stored is not
// acknowledged, and its publisher is told; QoS 0 goes on.
func TestNoQuorum(t *testing.T) {
	t.Parallel() // it waits
	nodes := cluster(t, 3)
	h := nodes[0]
	connect := func(id string, v packet.Version, expiry uint32) *peer {
		p, ack := h.connect(t, &packet.Connect{Version: v, ClientID: id, CleanStart: true, SessionExpiry: expiry})
		if ack.Code != packet.Success {
			t.Fatalf("%+v", ack)
		}
		return p
	}
	sub, pub, old := connect("sub", packet.V5, 600), connect("pub", packet.V5, 0), connect("old", packet.V311, 0)
	other := connect("other", packet.V5, 0)
	sub.subscribe(0, "live")
	sub.subscribe(1, "stored")
	pub.send(publish("stored", "before", 1, 1))
	if a := next[*packet.Ack](pub); a.Code.Failed() {
		t.Fatalf("%+v", a)
	}
	sub.send(&packet.Ack{Kind: packet.PUBACK, ID: next[*packet.Publish](sub).ID})
	for _, n := range nodes[1:] {
		n.Stop()
	}
	pub.send(publish("stored", "1", 1, 1), publish("stored", "2", 2, 2))
	old.send(publish("stored", "3", 1, 1))
	live := func() {
		t.Helper()
		other.send(publish("live", "x", 0, 0))
		if m := next[*packet.Publish](sub); string(m.Payload) != "x" {
			t.Errorf("%+v", m)
		}
	}
	live()
	// Nobody knows whether they are stored: it is not told that they are not, and
	// sends them again when it can come back.
	if err := pub.SetReadDeadline(time.Now().Add(40 * time.Second)); err != nil {
		t.Fatal(err)
	}
	p, err := pub.r.Next()
	if d, ok := p.(*packet.Disconnect); err != nil || !ok || d.Code != packet.ServerBusy {
		t.Errorf("%+v %v", p, err)
	}
	if err := old.SetReadDeadline(time.Now().Add(40 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if p, err := old.r.Next(); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("3.1.1 was told %+v, %v", p, err)
	}
	live()
}

// TestWillStorm has a node end that many clients with wills are on: each will comes
// once.
func TestWillStorm(t *testing.T) {
	nodes := cluster(t, 3)
	connect := func(h *house, id string, will *packet.Will) *peer {
		p, ack := h.connect(t, &packet.Connect{ClientID: id, CleanStart: true, Will: will})
		if ack.Code != packet.Success {
			t.Fatalf("%+v", ack)
		}
		return p
	}
	sub := connect(nodes[0], "sub", nil)
	sub.subscribe(1, "storm/+", "end")
	const many = 40
	for i := range many {
		connect(nodes[2], fmt.Sprint(i), &packet.Will{Message: packet.Message{Topic: []byte(fmt.Sprint("storm/", i)), Payload: []byte("died"), QoS: 1}})
	}
	nodes[2].Stop()
	got := map[string]int{}
	take := func() string {
		if err := sub.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		p, err := sub.r.Next()
		m, ok := p.(*packet.Publish)
		if err != nil || !ok {
			t.Fatalf("after %d of %d: %+v %v", len(got), many, p, err)
		}
		topic := string(m.Topic)
		if m.QoS > 0 {
			sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
		return topic
	}
	for len(got) < many {
		got[take()]++
	}
	connect(nodes[1], "pub", nil).send(publish("end", "", 1, 1))
	for topic := take(); topic != "end"; topic = take() {
		got[topic]++
	}
	for topic, n := range got {
		if n != 1 {
			t.Errorf("%s came %d times", topic, n)
		}
	}
}

// TestConnectFlood has ten thousand connections come from one address as fast as
// they can: who is there does not notice, and the next client gets in.
func TestConnectFlood(t *testing.T) {
	h := start(t)
	well, _ := h.connect(t, &packet.Connect{ClientID: "well", CleanStart: true})
	var flood sync.WaitGroup
	for range 50 {
		flood.Go(func() {
			for range 80 {
				conn, err := net.DialTimeout("tcp", h.Addr("mqtt").String(), 5*time.Second)
				if err != nil {
					continue
				}
				_, _ = conn.Write([]byte{0x16, 3, 1, 0, 5})
				conn.Close()
			}
		})
	}
	for range 10 {
		well.well()
	}
	flood.Wait()
	well.well()
	fleetbustest.Eventually(t, "a good client", func() error {
		conn, err := net.DialTimeout("tcp", h.Addr("mqtt").String(), time.Second)
		if err != nil {
			return err
		}
		conn.Close()
		return nil
	})
	other, ack := h.connect(t, &packet.Connect{ClientID: "other", CleanStart: true})
	if ack.Code != packet.Success {
		t.Errorf("%+v", ack)
	}
	other.well()
}

// TestOneByteASecond has a client send its CONNECT so slowly: it is let go, and so
// is one that says nothing.
func TestOneByteASecond(t *testing.T) {
	h := start(t)
	connect, err := (&packet.Connect{Version: packet.V5, ClientID: strings.Repeat("c", 1000), CleanStart: true}).Append(nil, packet.V5, 0)
	if err != nil {
		t.Fatal(err)
	}
	slow, silent := h.dial(t, packet.V5), h.dial(t, packet.V5)
	began := time.Now()
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		if err := slow.SetReadDeadline(time.Now().Add(30 * time.Second)); err == nil {
			_, _ = slow.r.Next()
		}
	}()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for i := 0; ; i++ {
		_, _ = slow.Write(connect[i : i+1])
		select {
		case <-gone:
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("it was let go after %v", took)
			}
			_ = silent.end()
			return
		case <-tick.C:
		}
	}
}

// TestRetainedFlood retains more than an account may: the publisher is told at once,
// and what is removed makes room.
func TestRetainedFlood(t *testing.T) {
	h := start(t, func(o *fleetbus.Options) { protocol(o).MaxRetained = 4 << 20 })
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	payload := strings.Repeat("x", 60_000)
	const fit = 4 << 20 / 60_000
	retained := func(i int, payload string) packet.Code {
		p := publish(fmt.Sprint("flood/", i), payload, 1, 1)
		p.Retain = true
		pub.send(p)
		return next[*packet.Ack](pub).Code
	}
	// What replaces something needs its room only.
	for range 2 * fit {
		if code := retained(0, payload); code.Failed() {
			t.Fatal(code)
		}
	}
	kept := 1
	for retained(kept, payload) == packet.Success {
		// It may be passed by what the node has not heard of yet.
		if kept++; kept > fit+fit/2 {
			t.Fatalf("%d are retained, and there is room for %d", kept, fit)
		}
	}
	if kept < fit-2 {
		t.Errorf("%d are retained, and there is room for %d", kept, fit)
	}
	if code := retained(kept, payload); code != packet.QuotaExceeded {
		t.Errorf("the publisher is told %v", code)
	}
	for i := range kept / 2 {
		if code := retained(i, ""); code.Failed() {
			t.Errorf("a removal: %v", code)
		}
	}
	fleetbustest.Eventually(t, "room", func() error {
		if code := retained(1000, payload); code.Failed() {
			return errors.New(code.String())
		}
		return nil
	})
}
