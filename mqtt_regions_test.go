package fleetbus_test

import (
	"crypto/tls"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// An mqttClient speaks MQTT packet by packet. It acknowledges what it is sent.
type mqttClient struct {
	t    *testing.T
	conn *tls.Conn
	in   *packet.Reader
	got  []string // "topic payload" of what it was sent
	next uint16
}

func dialMQTT(t *testing.T, s *fleetbustest.Server, user, password string, c packet.Connect) *mqttClient {
	t.Helper()
	conn, err := tls.Dial("tcp", s.Addr("mqtt").String(), s.TLS())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	m := &mqttClient{t: t, conn: conn, in: packet.NewReader(conn, packet.Server, 4096)}
	m.in.Version, m.in.Maximum = packet.V5, 1<<20
	c.Version, c.Username, c.Password = packet.V5, &user, packet.Secret(password)
	m.send(&c)
	if ack := m.until(packet.CONNACK).(*packet.Connack); ack.Code.Failed() {
		t.Fatal(ack.Code)
	}
	return m
}

func (m *mqttClient) send(p packet.Packet) {
	m.t.Helper()
	out, err := p.Append(nil, packet.V5, 0)
	if err == nil {
		_, err = m.conn.Write(out)
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// until reads until a packet of that type.
func (m *mqttClient) until(kind packet.Type) packet.Packet {
	m.t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		m.t.Fatal(err)
	}
	for {
		p, err := m.in.Next()
		if err != nil {
			m.t.Fatalf("waiting for %v: %v; until now %q", kind, err, m.got)
		}
		switch p := p.(type) {
		case *packet.Publish:
			m.got = append(m.got, fmt.Sprintf("%s %s", p.Topic, p.Payload))
			switch p.QoS {
			case 1:
				m.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
			case 2:
				m.send(&packet.Ack{Kind: packet.PUBREC, ID: p.ID})
			}
		case *packet.Ack:
			if p.Kind == packet.PUBREL {
				m.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
			}
		}
		if p.Type() == kind {
			return p
		}
	}
}

// say publishes at QoS 1 or 2, and returns when that is acknowledged.
func (m *mqttClient) say(topic, text string, qos packet.QoS, retain bool) {
	m.t.Helper()
	m.next++
	m.send(&packet.Publish{ID: m.next, Message: packet.Message{Topic: []byte(topic), Payload: []byte(text), QoS: qos, Retain: retain}})
	first := packet.PUBACK
	if qos == 2 {
		first = packet.PUBREC
	}
	if ack := m.until(first).(*packet.Ack); ack.Code.Failed() {
		m.t.Fatalf("publishing %q: %v", text, ack.Code)
	}
	if qos == 2 {
		m.send(&packet.Ack{Kind: packet.PUBREL, ID: m.next})
		m.until(packet.PUBCOMP)
	}
}

func (m *mqttClient) hear(filter string, qos packet.QoS) {
	m.t.Helper()
	m.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}})
	m.until(packet.SUBACK)
}

// took is how often it was sent each, after all that was on its way here.
func (m *mqttClient) took() map[string]int {
	m.t.Helper()
	m.send(&packet.Pingreq{})
	m.until(packet.PINGRESP)
	times := map[string]int{}
	for _, text := range m.got {
		times[text]++
	}
	return times
}

// TestRegionsCutMQTT cuts the line between two regions, in both of which MQTT clients go
// on publishing. When it is there again everything has come to both, once, and of what is
// retained the later is in both.
func TestRegionsCutMQTT(t *testing.T) {
	l := &line{newWire(t), newWire(t)}
	eu := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Cluster.Name, o.Grace = "eu", 100*time.Millisecond
		withGateway(o, l.eu)
		withMQTT(o)
	})
	l.eu.join(eu.Addr("gateway").String())
	us := addRegion(t, eu, "us", l.us, withMQTT)
	password := eu.Password(admin.UserRequest{Name: "acme/device", Role: identity.RoleClient})
	fleetbustest.Eventually(t, "the device is known", func() error {
		_, err := us.Admin().User(limited(t, 10*time.Second), "acme/device")
		return err
	})
	dial := func(s *fleetbustest.Server, id string) *mqttClient {
		return dialMQTT(t, s, "acme/device", password, packet.Connect{ClientID: id, CleanStart: true})
	}
	both := []*fleetbustest.Server{eu, us}
	var subs, pubs []*mqttClient
	for _, s := range both {
		sub := dial(s, "sub")
		sub.hear("a/#", 2)
		subs, pubs = append(subs, sub), append(pubs, dial(s, "pub"))
	}
	want := map[string]int{}
	round := func(name string) {
		for n := range 5 {
			for i, pub := range pubs {
				text := fmt.Sprintf("%s-%d-%d", name, i, n)
				pub.say("a/b", text, packet.QoS(1+n%2), false)
				want["a/b "+text] = 1
			}
		}
	}
	arrived := func() {
		t.Helper()
		for i, sub := range subs {
			fleetbustest.Eventually(t, fmt.Sprintf("all has come to region %d", i), func() error {
				got := sub.took()
				for text := range want {
					if got[text] == 0 {
						return fmt.Errorf("%q has not", text)
					}
				}
				return nil
			})
		}
	}
	round("before")
	pubs[0].say("kept/removed", "first", 1, true)
	arrived()
	l.cut()
	waitRegions(t, admin.RegionAway, eu, us)
	round("apart")
	pubs[0].say("kept/both", "the older", 1, true)
	pubs[1].say("kept/both", "the later", 1, true)
	pubs[1].say("kept/removed", "again", 1, true)
	pubs[0].say("kept/removed", "", 1, true)
	pubs[0].say("kept/there", "of eu", 1, true)
	l.heal(eu, us)
	waitRegions(t, admin.RegionLinked, eu, us)
	round("after")
	arrived()
	for i, sub := range subs {
		for text, times := range sub.took() {
			if times != want[text] {
				t.Errorf("region %d: %q came %d times", i, text, times)
			}
		}
	}
	for _, s := range both {
		fleetbustest.Eventually(t, "the same is retained", func() error {
			reader := dial(s, "reader")
			defer reader.conn.Close()
			reader.hear("kept/#", 0)
			got := reader.took()
			if len(got) != 2 || got["kept/both the later"] != 1 || got["kept/there of eu"] != 1 {
				return fmt.Errorf("%s", strings.Join(reader.got, ", "))
			}
			return nil
		})
	}
}
