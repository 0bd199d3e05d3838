package mqtt_test

import (
	"encoding/binary"
	"fmt"
	"strconv"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// streams is JetStream of the account acme, for who may do everything.
func (h *house) streams(t *testing.T) jetstream.JetStream {
	t.Helper()
	every := identity.Rule{Allow: []string{">", identity.Private + ">"}}
	session, err := h.Session(t.Context(), identity.Principal{Account: "acme", Name: "test", Permissions: identity.Permissions{Publish: every, Subscribe: every}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(session.Close)
	js, err := jetstream.New(session.Conn)
	if err != nil {
		t.Fatal(err)
	}
	return js
}

// stored is how many messages the account's stream has had.
func stored(t *testing.T, js jetstream.JetStream) int {
	t.Helper()
	s, err := js.Stream(within(t), "MQTT5_MESSAGES")
	if err != nil {
		t.Fatal(err)
	}
	return int(s.CachedInfo().State.LastSeq)
}

// burst publishes messages that say from, from+1, and so on, all at once, and waits
// for their answers, which are in order.
func (p *peer) burst(topic string, from, n int) {
	p.t.Helper()
	var all []packet.Packet
	for i := range n {
		all = append(all, publish(topic, strconv.Itoa(from+i), 1, uint16(i+1)))
	}
	p.send(all...)
	for i := range n {
		if a := next[*packet.Ack](p); a.ID != uint16(i+1) || a.Code.Failed() {
			p.t.Fatalf("%+v, after %d", a, i)
		}
	}
}

// awaitPacks returns when there are packs of what is published to topic.
func (p *peer) awaitPacks(js jetstream.JetStream, topic string) {
	t := p.t.(*testing.T)
	t.Helper()
	fleetbustest.Eventually(t, "packs", func() error {
		before := stored(t, js)
		p.burst(topic, 0, 100)
		if n := stored(t, js) - before; n > 50 {
			return fmt.Errorf("%d are stored of 100", n)
		}
		return nil
	})
}

// TestPacks has a client publish faster than the engine stores: fewer are stored than
// it published, and everybody has each of them once, and in order, no matter when
// they come and go.
func TestPacks(t *testing.T) {
	nodes := cluster(t, 2)
	h := nodes[0]
	js := h.streams(t)
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	pub.awaitPacks(js, "warm")
	hear := func(i int, id string, most uint16) *peer {
		c, _ := nodes[i].connect(t, &packet.Connect{ClientID: id, SessionExpiry: 600, ReceiveMaximum: most})
		return c
	}
	here, there, away, some := hear(0, "here", 0), hear(1, "there", 0), hear(0, "away", 0), hear(0, "some", 3)
	for _, c := range []*peer{here, there, away, some} {
		c.subscribe(1, "p/+")
	}
	low := hear(1, "low", 0)
	low.subscribe(0, "p/+")
	nc := h.Dial("acme", "app")
	live, err := nc.SubscribeSync("p.x")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	away.gone()
	h.awaitAway(t, "away") // until then some may be sent to it, and would be sent again
	const n, bursts = 300, 4
	before := stored(t, js)
	for i := range bursts {
		pub.burst("p/x", i*n, n)
	}
	if few := stored(t, js) - before; few > bursts*n/2 {
		t.Errorf("%d are stored of %d", few, bursts*n)
	}
	away = hear(0, "away", 0)
	for name, c := range map[string]*peer{"here": here, "there": there, "away": away, "low": low} {
		for i := range n * bursts {
			m := next[*packet.Publish](c)
			if string(m.Payload) != strconv.Itoa(i) || m.Dup {
				t.Fatalf("%s: %+v, not %d", name, m, i)
			}
			if m.QoS > 0 {
				c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
			}
		}
		c.well()
	}
	for i := range n * bursts {
		if m, err := live.NextMsg(10 * time.Second); err != nil || string(m.Data) != strconv.Itoa(i) {
			t.Fatalf("over NATS: %v %v, not %d", m, err, i)
		}
	}
	// It comes and goes within packs, and what it has not answered comes again.
	for got, had := 0, 0; got < n*bursts; {
		if had++; had%7 == 0 && had < 200 {
			some.gone()
			some = hear(had%2, "some", 3)
		}
		m := next[*packet.Publish](some)
		switch i, err := strconv.Atoi(string(m.Payload)); {
		case err == nil && i == got:
			got++
		case err != nil || i > got || !m.Dup:
			t.Fatalf("%+v, not %d", m, got)
		}
		some.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
	some.well()
}

// TestPackForGroup has a pack come to a group, which happens when the group is new:
// one of its clients has all of it, and when that one leaves another has. There are
// none when it is known, but for what is not the group's.
func TestPackForGroup(t *testing.T) {
	h := start(t)
	one, _ := h.connect(t, &packet.Connect{ClientID: "one", CleanStart: true})
	one.subscribe(1, "$share/g/a/+")
	var data []byte
	for _, payload := range []string{"x", "", "z"} {
		data = append(binary.AppendUvarint(data, uint64(len(payload))), payload...)
	}
	js := h.streams(t)
	msg := &nats.Msg{Subject: identity.Private + "MQTT.msg.a.b", Data: data, Header: nats.Header{"Mqtt-Flags": {"1"}, "Mqtt-Pack": {"3"}}}
	if _, err := js.PublishMsg(within(t), msg); err != nil {
		t.Fatal(err)
	}
	take := func(c *peer, acks int) {
		t.Helper()
		for i, want := range []string{"x", "", "z"} {
			m := next[*packet.Publish](c)
			if string(m.Payload) != want || string(m.Topic) != "a/b" || len(m.UserProperties) > 0 {
				t.Errorf("%+v, not %q", m, want)
			}
			if i < acks {
				c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
			}
		}
		c.well()
	}
	take(one, 2)
	two, _ := h.connect(t, &packet.Connect{ClientID: "two", CleanStart: true})
	two.subscribe(1, "$share/g/a/+")
	one.gone()
	take(two, 3)
	fleetbustest.Eventually(t, "the end of the pack", func() error {
		s, err := js.Stream(within(t), "MQTT5_MESSAGES")
		if err != nil {
			return err
		}
		waiting := 0
		for c := range s.ListConsumers(within(t)).Info() { // to its end, or the library never ends
			waiting += c.NumAckPending
		}
		if waiting > 0 {
			return fmt.Errorf("%d wait", waiting)
		}
		return nil
	})
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	pub.awaitPacks(js, "b/b")
	before := stored(t, js)
	pub.burst("a/b", 0, 50)
	if n := stored(t, js) - before; n != 50 {
		t.Errorf("%d are stored of a group's 50", n)
	}
}
