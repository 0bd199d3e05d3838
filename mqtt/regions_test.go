package mqtt_test

import (
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// regions are those of one fleet, of a node each with a listener for MQTT, whose clients
// are the same user.
func regions(t *testing.T, names ...string) []*house {
	t.Helper()
	return regionsWith(t, names, func(*fleetbus.Options) {})
}

// regionsWith is regions whose options edit changes.
func regionsWith(t *testing.T, names []string, edit func(*fleetbus.Options)) []*house {
	t.Helper()
	servers := fleetbustest.StartRegions(t, names, func(o *fleetbus.Options) {
		o.Grace = 100 * time.Millisecond
		log := slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", o.Name)
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{Logger: log}})
		edit(o)
	})
	servers[0].Creds("acme", "someone")
	cert := servers[0].Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})
	var all []*house
	for _, s := range servers {
		fleetbustest.Eventually(t, "the device is known", func() error {
			_, err := s.Admin().User(t.Context(), "acme/device")
			return err
		})
		config := s.TLS()
		config.Certificates = []tls.Certificate{cert}
		all = append(all, &house{s, config})
	}
	return all
}

// take returns what p is sent until a message says "end", and acknowledges it.
func take(p *peer) (texts []string) {
	p.t.Helper()
	for {
		var m *packet.Publish
		switch got := next[packet.Packet](p).(type) {
		case *packet.Publish:
			m = got
		case *packet.Ack: // PUBREL
			p.send(&packet.Ack{Kind: packet.PUBCOMP, ID: got.ID})
			continue
		}
		switch m.QoS {
		case 1:
			p.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		case 2:
			p.send(&packet.Ack{Kind: packet.PUBREC, ID: m.ID})
		}
		if string(m.Payload) == "end" {
			return texts
		}
		if !strings.HasPrefix(string(m.Payload), "ready") {
			texts = append(texts, fmt.Sprintf("%s %d", m.Payload, m.QoS))
		}
	}
}

// ready returns when what pub publishes at QoS 0 comes to sub, who hears all under a: the
// other region is told of that in a while.
func ready(pub, sub *peer, from int) {
	pub.t.Helper()
	text := fmt.Sprint("ready", from)
	packed, err := publish("a/ready", text, 0, 0).Append(nil, pub.v, 0)
	if err != nil {
		pub.t.Fatal(err)
	}
	heard := make(chan struct{})
	var sending sync.WaitGroup
	sending.Go(func() {
		for {
			if _, err := pub.Write(packed); err != nil {
				return
			}
			select {
			case <-heard:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	})
	defer sending.Wait()
	defer close(heard)
	for string(next[*packet.Publish](sub).Payload) != text {
	}
}

// say publishes at QoS 1 or 2, and waits until it is acknowledged.
func say(p *peer, topic, text string, qos packet.QoS, retain bool) {
	p.t.Helper()
	m := publish(topic, text, qos, 9)
	m.Retain = retain
	p.send(m)
	acked := func() {
		for {
			switch got := next[packet.Packet](p).(type) {
			case *packet.Publish: // it hears itself
			case *packet.Ack:
				if got.Code.Failed() {
					p.t.Fatalf("publishing %q: %+v", text, got)
				}
				return
			}
		}
	}
	acked()
	if qos == 2 {
		p.send(&packet.Ack{Kind: packet.PUBREL, ID: 9})
		acked()
	}
}

// TestRegions has clients in three regions hear each other at each QoS, each message
// once, and none that goes round.
func TestRegions(t *testing.T) {
	all := regions(t, "eu", "us", "ap")
	var subs [][]*peer
	for i, h := range all {
		var here []*peer
		for qos := range packet.QoS(3) {
			p, _ := h.connect(t, &packet.Connect{Version: packet.V5, ClientID: fmt.Sprintf("sub%d-%d", i, qos), CleanStart: true})
			p.subscribe(qos, "a/#")
			here = append(here, p)
		}
		subs = append(subs, here)
	}
	var pubs []*peer
	for _, h := range all {
		// The same identifier in each: they are no session of one another.
		p, ack := h.connect(t, &packet.Connect{Version: packet.V5, ClientID: "pub", CleanStart: true})
		if ack.Code.Failed() {
			t.Fatal(ack.Code)
		}
		pubs = append(pubs, p)
	}
	for from, pub := range pubs {
		for _, here := range subs {
			ready(pub, here[0], from)
		}
	}
	for from, pub := range pubs {
		for qos := range packet.QoS(2) {
			say(pub, "a/b", fmt.Sprintf("%d-%d", from, qos+1), qos+1, false)
		}
	}
	// Each region's is the last that comes from there.
	for _, pub := range pubs {
		say(pub, "a/end", "end", 1, false)
	}
	for at, here := range subs {
		for qos, p := range here {
			got := map[string]int{}
			for range pubs {
				for _, text := range take(p) {
					got[text]++
				}
			}
			for from := range pubs {
				for sent := 1; sent <= 2; sent++ {
					text := fmt.Sprintf("%d-%d %d", from, sent, min(sent, qos))
					if got[text] != 1 {
						t.Errorf("region %d, QoS %d: %q came %d times", at, qos, text, got[text])
					}
					delete(got, text)
				}
			}
			if len(got) > 0 {
				t.Errorf("region %d, QoS %d: %v came, too", at, qos, got)
			}
			p.send(&packet.Pingreq{})
			for {
				got := next[packet.Packet](p)
				if _, ok := got.(*packet.Pingresp); ok {
					break
				}
				if m, ok := got.(*packet.Publish); ok && !strings.HasPrefix(string(m.Payload), "ready") {
					t.Errorf("region %d, QoS %d: %q came after the end", at, qos, m.Payload)
				}
			}
		}
	}
}

// TestRegionsKeep has what is kept for clients kept in each region: sessions that are
// away are sent what was published elsewhere meanwhile, and retained messages are those
// of all regions.
func TestRegionsKeep(t *testing.T) {
	all := regions(t, "eu", "us")
	eu, us := all[0], all[1]
	stays := &packet.Connect{Version: packet.V5, ClientID: "stays", SessionExpiry: 3600}
	away, _ := us.connect(t, stays)
	away.subscribe(1, "a/#")
	away.send(&packet.Disconnect{})
	us.awaitAway(t, "stays")
	pub, _ := eu.connect(t, &packet.Connect{Version: packet.V5, ClientID: "pub", CleanStart: true})
	say(pub, "a/b", "one", 1, false)
	say(pub, "a/b", "two", 2, false)
	say(pub, "a/b", "end", 1, false)
	back, ack := us.connect(t, stays)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	if got := strings.Join(take(back), ", "); got != "one 1, two 1" {
		t.Errorf("who was away got %s", got)
	}
	// In the other region there is no such session.
	if _, ack := eu.connect(t, &packet.Connect{Version: packet.V5, ClientID: "stays"}); ack.SessionPresent {
		t.Error("a session is in a region where its client never was")
	}
	retained := func(h *house, topic string) (text string) {
		p, _ := h.connect(t, &packet.Connect{Version: packet.V5, ClientID: "reader", CleanStart: true})
		defer p.Close()
		p.subscribe(0, topic)
		p.send(&packet.Pingreq{})
		for {
			switch got := next[packet.Packet](p).(type) {
			case *packet.Publish:
				text = string(got.Payload)
			case *packet.Pingresp:
				return text
			}
		}
	}
	for _, step := range []struct {
		at   *peer
		text string
	}{{pub, "from eu"}, {back, "from us"}, {pub, ""}} {
		say(step.at, "state", step.text, 1, true)
		for _, h := range all {
			fleetbustest.Eventually(t, "it is retained everywhere", func() error {
				if got := retained(h, "state"); got != step.text {
					return fmt.Errorf("%q, want %q", got, step.text)
				}
				return nil
			})
		}
	}
}

// TestRegionsAway has a region away while something is published: it comes when the region
// is back, once.
func TestRegionsAway(t *testing.T) {
	all := regions(t, "eu", "us")
	eu, us := all[0], all[1]
	stays := &packet.Connect{Version: packet.V5, ClientID: "stays", SessionExpiry: 3600}
	sub, _ := us.connect(t, stays)
	sub.subscribe(1, "a/#")
	pub, _ := eu.connect(t, &packet.Connect{Version: packet.V5, ClientID: "pub", CleanStart: true})
	say(pub, "a/b", "before", 1, false)
	say(pub, "a/b", "end", 1, false)
	if got := strings.Join(take(sub), ", "); got != "before 1" {
		t.Errorf("got %s", got)
	}
	sub.send(&packet.Disconnect{})
	us.awaitAway(t, "stays")
	us.Stop()
	say(pub, "a/b", "meanwhile", 1, false)
	say(pub, "a/b", "end", 1, false)
	us = &house{us.Restart(), us.config}
	back, ack := us.connect(t, stays)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	if got := strings.Join(take(back), ", "); got != "meanwhile 1" {
		t.Errorf("got %s", got)
	}
}

// TestRegionsNodeStops has a region of three nodes lose one, which may be the one that
// forwards: then another does, and what was forwarded is not forwarded again.
func TestRegionsNodeStops(t *testing.T) {
	edit := func(o *fleetbus.Options) {
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{}})
	}
	gateways := func(o *fleetbus.Options) {
		o.Cluster.Name = "eu"
		fleetbustest.WithGateway(t)(o)
	}
	eu := fleetbustest.StartCluster(t, 3, gateways, edit)
	eu[0].Creds("acme", "someone")
	cert := eu[0].Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})
	server := fleetbustest.JoinRegion(t, eu[0], "us", edit)
	server.WaitRegions(2)
	fleetbustest.Eventually(t, "the device is known", func() error {
		_, err := server.Admin().User(t.Context(), "acme/device")
		return err
	})
	at := func(s *fleetbustest.Server) *house {
		config := s.TLS()
		config.Certificates = []tls.Certificate{cert}
		return &house{s, config}
	}
	connect := func(s *fleetbustest.Server, id string) *peer {
		p, ack := at(s).connect(t, &packet.Connect{Version: packet.V5, ClientID: id, CleanStart: true})
		if ack.Code.Failed() {
			t.Fatal(ack.Code)
		}
		return p
	}
	var pubs []*peer
	for i, s := range eu {
		pubs = append(pubs, connect(s, fmt.Sprint("pub", i)))
	}
	sub := connect(server, "sub")
	sub.subscribe(1, "a/#")
	sent := 0
	for range 2 {
		var want []string
		for _, pub := range pubs {
			for range 5 {
				text := fmt.Sprint(sent)
				sent++
				say(pub, "a/b", text, 1, false)
				want = append(want, text+" 1")
			}
		}
		say(pubs[0], "a/b", "end", 1, false)
		if got := take(sub); strings.Join(got, ", ") != strings.Join(want, ", ") {
			t.Errorf("got %v, want %v", got, want)
		}
		// A cluster of three goes on with two.
		if len(pubs) == 3 {
			pubs[2].Close()
			eu[2].Stop()
			pubs = pubs[:2]
		}
	}
}

// TestPahoGoRegions has autopaho in two regions.
func TestPahoGoRegions(t *testing.T) {
	all := regions(t, "eu", "us")
	client := func(h *house, id string) *goClient {
		c := dialGo(t, autopaho.ClientConfig{TlsCfg: h.config, CleanStartOnInitialConnection: true}, id, "mqtts://"+h.Addr("mqtt").String())
		c.connected(t)
		return c
	}
	both := []*goClient{client(all[0], "one"), client(all[1], "one")}
	for _, c := range both {
		c.subscribe(t, 1, "a/#")
		c.subscribe(t, 0, "kept")
	}
	// The other region is told in a while what is heard here.
	for _, c := range both {
		for _, hears := range both {
			fleetbustest.Eventually(t, "a message of QoS 0 comes", func() error {
				c.publish(t, &paho.Publish{Topic: "kept"})
				select {
				case <-hears.got:
					return nil
				case <-time.After(20 * time.Millisecond):
					return errors.New("it did not")
				}
			})
		}
	}
	properties := &paho.PublishProperties{User: paho.UserProperties{{Key: "k", Value: "v"}}}
	for i, c := range both {
		for qos := range byte(2) {
			topic, text := fmt.Sprint("a/", qos), fmt.Sprint("at ", i)
			c.publish(t, &paho.Publish{Topic: topic, Payload: []byte(text), QoS: qos, Properties: properties})
			for _, hears := range both {
				if m := hears.take(t, topic, text); m.QoS != qos || len(m.Properties.User) != 1 || m.Properties.User.Get("k") != "v" {
					t.Errorf("%+v", m)
				}
			}
		}
	}
}

// TestRegionsFull publishes more than another region has room for, where a client is away:
// that region takes no more than it may, and gets the rest when the client has come.
func TestRegionsFull(t *testing.T) {
	const room, size = 1 << 20, 64 << 10
	all := regionsWith(t, []string{"eu", "us"}, func(o *fleetbus.Options) { protocol(o).MaxStored = room })
	eu, us := all[0], all[1]
	stays := &packet.Connect{Version: packet.V5, ClientID: "stays", SessionExpiry: 3600}
	away, _ := us.connect(t, stays)
	away.subscribe(1, "a/#")
	away.send(&packet.Disconnect{})
	us.awaitAway(t, "stays")
	pub, _ := eu.connect(t, &packet.Connect{Version: packet.V5, ClientID: "pub", CleanStart: true})
	var want []string
	put := func(text string) {
		t.Helper()
		fleetbustest.Eventually(t, "it is taken", func() error {
			pub.send(publish("a/b", text, 1, 9))
			if ack := next[*packet.Ack](pub); ack.Code.Failed() {
				return errors.New(ack.Code.String())
			}
			return nil
		})
	}
	for n := range 26 { // together they have room for 32
		text := fmt.Sprintf("%02d%s", n, strings.Repeat("x", size))
		put(text)
		want = append(want, text+" 1")
	}
	js := us.streams(t)
	bytes := func() int64 {
		t.Helper()
		s, err := js.Stream(within(t), "MQTT5_MESSAGES")
		if err != nil {
			t.Fatal(err)
		}
		return int64(s.CachedInfo().State.Bytes)
	}
	fleetbustest.Eventually(t, "the other region is full", func() error {
		if n := bytes(); n < room {
			return fmt.Errorf("it has %d bytes", n)
		}
		return nil
	})
	put("end")
	if n := bytes(); n > room+room/2 {
		t.Errorf("a region that has room for %d bytes has %d", room, n)
	}
	back, ack := us.connect(t, stays)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	got := take(back)
	if !slices.Equal(got, want) {
		t.Errorf("%d of %d messages came, or not in order", len(got), len(want))
	}
}
