package mqtt_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestLive has a client publish runs of QoS 1, and QoS 0 between them: those who hear
// it as it comes, over NATS and at QoS 0, on any node and from any time on, have all
// of it in order.
func TestLive(t *testing.T) {
	nodes := cluster(t, 2)
	h := nodes[0]
	listen := func(h *house, id string, qos packet.QoS) *peer {
		c, _ := h.connect(t, &packet.Connect{ClientID: id, CleanStart: true})
		c.subscribe(qos, "run/+")
		return c
	}
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	far := listen(nodes[1], "far", 0)
	listen(h, "stored", 1)
	nc := h.Dial("acme", "app")
	over, err := nc.SubscribeSync("run.x")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	const runs, high, run = 10, 40, 43
	var near *peer
	for i := range runs {
		if i == runs/2 {
			near = listen(h, "near", 0)
		}
		var all []packet.Packet
		for j := range run {
			p := publish("run/x", strconv.Itoa(i*run+j), 0, 0)
			if j < high {
				p.QoS, p.ID = 1, uint16(j+1)
			}
			all = append(all, p)
		}
		pub.send(all...)
		for range high {
			next[*packet.Ack](pub)
		}
		if i == runs-2 {
			near.send(&packet.Unsubscribe{ID: 2, Filters: []string{"run/+"}})
		}
	}
	for i := range runs * run {
		if m, err := over.NextMsg(10 * time.Second); err != nil || string(m.Data) != strconv.Itoa(i) {
			t.Fatalf("over NATS: %v %v, not %d", m, err, i)
		}
		if m := next[*packet.Publish](far); string(m.Payload) != strconv.Itoa(i) {
			t.Fatalf("far: %s, not %d", m.Payload, i)
		}
	}
	for i := runs / 2 * run; i < (runs-1)*run; i++ {
		if m := next[*packet.Publish](near); string(m.Payload) != strconv.Itoa(i) {
			t.Fatalf("near: %s, not %d", m.Payload, i)
		}
	}
}

// TestRun has a client publish at QoS 0 in runs of any length, with properties and
// without, small and large: those who hear it over MQTT and over NATS have all of it in
// order, and what the engine does not take is left out.
func TestRun(t *testing.T) {
	h := start(t)
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", CleanStart: true})
	sub.subscribe(0, "run/#")
	nc := h.Dial("acme", "app")
	over, err := nc.SubscribeSync("run.>")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	random := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < 3000; {
		var run []packet.Packet
		var want []string
		for range 1 + random.IntN(150) {
			size := random.IntN(400)
			if random.IntN(50) == 0 {
				size = random.IntN(50_000)
			}
			p := publish(fmt.Sprintf("run/%d", random.IntN(3)), strconv.Itoa(i)+strings.Repeat(".", size), 0, 0)
			switch random.IntN(10) {
			case 0:
				p.UserProperties = []packet.Pair{{Name: []byte("n"), Value: []byte(strconv.Itoa(i))}}
			case 1:
				p.ResponseTopic = []byte("answers")
			case 2: // what it becomes is larger than it is
				if len(run) == 0 {
					large := publish("run/0", strings.Repeat("x", 1_036_000), 0, 0)
					large.UserProperties = []packet.Pair{{Name: []byte("n"), Value: bytes.Repeat([]byte("x"), 10_000)}}
					run = append(run, large)
				}
			}
			run, want, i = append(run, p), append(want, string(p.Payload)), i+1
		}
		pub.send(run...)
		for _, want := range want {
			if m := next[*packet.Publish](sub); string(m.Payload) != want {
				t.Fatalf("over MQTT: %.20q, not %.20q", m.Payload, want)
			}
			if m, err := over.NextMsg(10 * time.Second); err != nil || string(m.Data) != want {
				t.Fatalf("over NATS: %.20q %v, not %.20q", m.Data, err, want)
			}
		}
	}
}
