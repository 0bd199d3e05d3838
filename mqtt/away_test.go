package mqtt_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// store publishes a message until there is room for it.
func (p *peer) store(topic, payload string) {
	p.t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; {
		p.send(publish(topic, payload, 1, 1))
		switch a := next[*packet.Ack](p); {
		case !a.Code.Failed():
			return
		case a.Code != packet.QuotaExceeded || time.Now().After(deadline):
			p.t.Fatalf("publishing to %q: %v", topic, a.Code)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// receive takes messages until those of want have come, in their order and each
// once.
func (p *peer) receive(want ...string) {
	p.t.Helper()
	for _, payload := range want {
		m := next[*packet.Publish](p)
		if string(m.Payload) != payload {
			p.t.Fatalf("got %q on %q, want %q", clip(m.Payload), m.Topic, payload)
		}
		p.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
}

func clip(b []byte) []byte { return b[:min(len(b), 40)] }

// TestAwayHoldsItsOwn has sessions away, each in its own state, while three times as
// much as an account may have is published that none of them wants: it flows, and
// what they want waits for them.
func TestAwayHoldsItsOwn(t *testing.T) {
	h := start(t, small)
	connect := &packet.Connect{ClientID: "away", SessionExpiry: 600}
	away, _ := h.connect(t, connect)
	away.subscribe(1, "want/#", "dev/7/order", "$share/g/shared/#")
	unfinished := &packet.Connect{ClientID: "unfinished", SessionExpiry: 600}
	other, _ := h.connect(t, unfinished)
	other.subscribe(1, "first")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	pub.store("first", "x")
	id := next[*packet.Publish](other).ID
	other.send(&packet.Unsubscribe{ID: 2, Filters: []string{"first"}})
	next[*packet.Unsuback](other)
	stuck, _ := h.connect(t, &packet.Connect{ClientID: "stuck", SessionExpiry: 600, ReceiveMaximum: 1, KeepAlive: 300})
	stuck.subscribe(1, "first", "stuck")
	pub.store("first", "y")
	next[*packet.Publish](stuck) // and it never acknowledges it
	other.gone()
	away.gone()
	payload := strings.Repeat("x", 40_000)
	var want, shared []string
	for i := range 160 {
		pub.store(fmt.Sprintf("dev/%d/log/x", i%40), payload)
		pub.store("other", payload)
		if i%20 == 0 {
			text := fmt.Sprint(i)
			pub.store("want", text)
			pub.store("dev/7/order", text+" order")
			pub.store("shared/x", text+" shared")
			want = append(want, text, text+" order")
			shared = append(shared, text+" shared")
		}
	}
	pub.store("first", "z")
	other, _ = h.connect(t, unfinished)
	if m := next[*packet.Publish](other); !m.Dup || m.ID != id || string(m.Payload) != "x" {
		t.Errorf("%+v", m)
	}
	away, _ = h.connect(t, connect)
	got := map[bool][]string{}
	defer func() {
		if t.Failed() {
			t.Logf("got %v, want %v and %v", got, want, shared)
		}
	}()
	for range len(want) + len(shared) {
		m := next[*packet.Publish](away)
		isShared := strings.HasPrefix(string(m.Topic), "shared")
		got[isShared] = append(got[isShared], string(m.Payload))
		away.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
	if fmt.Sprint(got[false], got[true]) != fmt.Sprint(want, shared) {
		t.Error("it is not what is wanted")
	}
	away.well()
}

// TestAwayFills has what one session waits for fill the account: publishers are
// refused, the node's findings say for whom, and nothing that was acknowledged is
// lost. When the session ends there is room.
func TestAwayFills(t *testing.T) {
	h := start(t, small)
	connect := &packet.Connect{ClientID: "hoarder", SessionExpiry: 600}
	away, _ := h.connect(t, connect)
	away.subscribe(1, "full/#")
	away.gone()
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	payload := strings.Repeat("x", 225_000)
	var want []string
	fleetbustest.Eventually(t, "a finding that names the session", func() error {
		text := fmt.Sprint(len(want), payload)
		pub.send(publish("full/x", text, 1, 1))
		switch a := next[*packet.Ack](pub); {
		case a.Code == packet.QuotaExceeded:
		case a.Code.Failed() || len(want) > 40:
			t.Fatalf("%d: %v", len(want), a.Code)
		default:
			want = append(want, text)
		}
		return finding(h, "MQTT-STORE-FULL", `"hoarder" of acme/device, away since`)
	})
	pub.send(publish("full/x", payload, 1, 1))
	if a := next[*packet.Ack](pub); a.Code != packet.QuotaExceeded {
		t.Errorf("the publisher is told %v", a.Code)
	}
	away, _ = h.connect(t, connect)
	away.receive(want...)
	pub.store("full/x", "more")
	away.receive("more")
	fleetbustest.Eventually(t, "no finding", func() error {
		if err := finding(h, "MQTT-STORE-FULL", ""); err == nil {
			return errors.New("there is one")
		}
		return nil
	})
}

// TestAwayAcrossNodes publishes three times as much as an account may have, of what
// sessions want and of what none wants, while one client goes from node to node,
// others are away, and a node dies: each gets all that it wants.
func TestAwayAcrossNodes(t *testing.T) {
	nodes := cluster(t, 3, small)
	connect := func(i int, id string, expiry uint32) *peer {
		t.Helper()
		p, ack := nodes[i].connect(t, &packet.Connect{ClientID: id, SessionExpiry: expiry})
		if ack.Code != 0 {
			t.Fatalf("node %d: %+v", i+1, ack)
		}
		return p
	}
	away, mover := connect(1, "away", 600), connect(0, "mover", 600)
	away.subscribe(1, "away/+")
	away.gone()
	mover.subscribe(1, "move")
	pub := connect(0, "pub", 0)
	if err := pub.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	put := func(topic, payload string) error {
		for {
			b, _ := publish(topic, payload, 1, 1).Append(nil, pub.v, 0)
			if _, err := pub.Write(b); err != nil {
				return err
			}
			p, err := pub.r.Next()
			switch a, ok := p.(*packet.Ack); {
			case err != nil || !ok:
				return fmt.Errorf("publishing to %q: %+v %w", topic, p, err)
			case !a.Code.Failed():
				return nil
			case a.Code != packet.QuotaExceeded:
				return fmt.Errorf("publishing to %q: %v", topic, a.Code)
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	const many = 60
	noise := strings.Repeat("x", 225_000)
	published, late := make(chan error, 1), make(chan struct{})
	go func() {
		published <- func() error {
			for i := range many {
				text := strconv.Itoa(i)
				topics := []string{"move", "away/x"}
				if i >= many/2 {
					<-late
					topics = append(topics, "late")
				}
				for _, topic := range topics {
					if err := put(topic, text); err != nil {
						return err
					}
				}
				if err := put("noise/"+text, noise); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	// No connection of it says good-bye, and it comes to a node while another has it.
	moved := 0
	take := func(p *peer, until int) {
		t.Helper()
		for moved < until {
			if err := p.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got, err := p.r.Next()
			if d, ok := got.(*packet.Disconnect); ok && d.Code == packet.SessionTakenOver {
				return // its node seemed to be gone: it comes again
			}
			m, ok := got.(*packet.Publish)
			if !ok {
				t.Fatalf("got %+v, %v", got, err)
			}
			if n, err := strconv.Atoi(string(m.Payload)); err != nil || n > moved {
				t.Fatalf("got %q after %d", m.Payload, moved)
			} else if n == moved {
				moved++
			}
			p.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
	}
	for i := 1; moved < many/2; i++ {
		take(mover, moved+1+i%3)
		mover = connect(i%3, "mover", 600)
	}
	fresh := connect(2, "late", 600)
	fresh.subscribe(1, "late")
	nodes[2].Stop()
	close(late)
	for i := 1; moved < many; i++ {
		mover = connect(i%2, "mover", 600)
		take(mover, min(many, moved+1+i%3))
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	var all []string
	for i := range many {
		all = append(all, strconv.Itoa(i))
	}
	connect(1, "late", 600).receive(all[many/2:]...)
	connect(0, "away", 600).receive(all...)
}

// finding reports an error unless a problem of that code is found whose text has a
// part.
func finding(h *house, code, part string) error {
	all := h.Problems()
	if !slices.ContainsFunc(all, func(f doctor.Finding) bool { return f.Code == code && strings.Contains(f.Text, part) }) {
		return fmt.Errorf("findings %+v", all)
	}
	return nil
}
