package mqtt_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestSubscriptionBegins publishes at one node and subscribes at another as soon as
// it is acknowledged: what was retained comes once and as such, what was not does
// not come, and what is published after the SUBACK does.
func TestSubscriptionBegins(t *testing.T) {
	nodes := cluster(t, 3)
	connect := func(i int, id string) *peer {
		p, ack := nodes[i].connect(t, &packet.Connect{ClientID: id, SessionExpiry: 60})
		if ack.Code != 0 {
			t.Fatalf("%+v", ack)
		}
		return p
	}
	pubs, subs := []*peer{connect(0, "pub0"), connect(1, "pub1"), connect(2, "pub2")}, []*peer{connect(1, "sub0"), connect(2, "sub1"), connect(0, "sub2")}
	for i := range 36 {
		pub, sub := pubs[i%3], subs[i%3]
		kept, plain := fmt.Sprintf("kept/%d", i), fmt.Sprintf("plain/%d", i)
		for id, payload := range []string{"one", "two"} {
			retained := publish(kept, payload, 1, uint16(2*id+1))
			retained.Retain = true
			pub.send(retained, publish(plain, payload, 1, uint16(2*id+2)))
		}
		for range 4 {
			next[*packet.Ack](pub)
		}
		sub.subscribe(1, kept, plain)
		pub.send(publish(plain, "three", 1, 1), publish(kept, "four", 1, 2))
		for _, want := range []string{"two", "three", "four"} {
			m := next[*packet.Publish](sub)
			if string(m.Payload) != want || m.Retain != (want == "two") {
				t.Fatalf("%d: got %q on %q, retain %v, want %q", i, m.Payload, m.Topic, m.Retain, want)
			}
			sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
		next[*packet.Ack](pub)
		next[*packet.Ack](pub)
	}
}

// TestSubscriptionsBeginAtOnce has many clients subscribe while a message is
// retained again and again: the last one that each sees is the last one.
func TestSubscriptionsBeginAtOnce(t *testing.T) {
	nodes := cluster(t, 3)
	connect := func(i int, id string) *peer {
		p, ack := nodes[i].connect(t, &packet.Connect{ClientID: id})
		if ack.Code != 0 {
			t.Fatalf("%+v", ack)
		}
		return p
	}
	pub := connect(0, "pub")
	const many = 180
	var subs []*peer
	for i := range many / 10 {
		subs = append(subs, connect(i%3, fmt.Sprint("sub", i)))
	}
	for i := range many {
		p := publish("state", fmt.Sprint(i), 1, uint16(i+1))
		p.Retain = true
		pub.send(p)
		if i%10 == 0 {
			subs[i/10].send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "state", QoS: 1}}})
		}
	}
	for range many {
		next[*packet.Ack](pub)
	}
	pub.send(publish("state", "end", 1, 1))
	next[*packet.Ack](pub)
	for i, sub := range subs {
		last := ""
		for ended := false; !ended; {
			if err := sub.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			got, err := sub.r.Next()
			if err != nil {
				t.Fatalf("%d: after %q: %v", i, last, err)
			}
			if m, ok := got.(*packet.Publish); ok {
				sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
				if ended = string(m.Payload) == "end"; !ended {
					last = string(m.Payload)
				}
			}
		}
		if last != fmt.Sprint(many-1) {
			t.Errorf("%d: the last one was %q", i, last)
		}
	}
}
