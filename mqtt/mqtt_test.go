package mqtt_test

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// house is a server with a listener for MQTT.
type house struct {
	*fleetbustest.Server
	config *tls.Config
}

func start(t *testing.T, edit ...func(*fleetbus.Options)) *house {
	t.Helper()
	s := fleetbustest.Start(t, append([]func(*fleetbus.Options){func(o *fleetbus.Options) {
		o.Accounts = []string{"acme", "other"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{Logger: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))}})
	}}, edit...)...)
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})}
	return &house{s, config}
}

// peer is a client that sends and judges packets one by one.
type peer struct {
	t testing.TB
	net.Conn
	r *packet.Reader
	v packet.Version
}

func (h *house) dial(t *testing.T, v packet.Version) *peer {
	t.Helper()
	conn, err := tls.Dial("tcp", h.Addr("mqtt").String(), h.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := packet.NewReader(conn, packet.Server, 4096)
	r.Version, r.Maximum = v, 1<<20
	return &peer{t, conn, r, v}
}

func (p *peer) send(packets ...packet.Packet) {
	p.t.Helper()
	var b []byte
	var err error
	for _, one := range packets {
		if b, err = one.Append(b, p.v, 0); err != nil {
			p.t.Fatal(err)
		}
	}
	if _, err := p.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// next is the next packet, which must be a P.
func next[P packet.Packet](p *peer) P {
	p.t.Helper()
	if err := p.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		p.t.Fatal(err)
	}
	got, err := p.r.Next()
	if err != nil {
		p.t.Fatal(err)
	}
	as, ok := got.(P)
	if !ok {
		p.t.Fatalf("got %v %+v", got.Type(), got)
	}
	return as
}

// connect connects a client, and returns the CONNACK.
func (h *house) connect(t *testing.T, c *packet.Connect) (*peer, *packet.Connack) {
	t.Helper()
	if c.Version == 0 {
		c.Version = packet.V5
	}
	p := h.dial(t, c.Version)
	p.send(c)
	return p, next[*packet.Connack](p)
}

func (p *peer) subscribe(qos packet.QoS, filters ...string) *packet.Suback {
	p.t.Helper()
	s := &packet.Subscribe{ID: 1}
	for _, filter := range filters {
		s.Subscriptions = append(s.Subscriptions, packet.Subscription{Filter: filter, QoS: qos})
	}
	p.send(s)
	suback := next[*packet.Suback](p)
	for i, code := range suback.Codes {
		if code.Failed() {
			p.t.Errorf("subscribing to %q: %v", filters[i], code)
		}
	}
	return suback
}

func publish(topic, payload string, qos packet.QoS, id uint16) *packet.Publish {
	return &packet.Publish{ID: id, Message: packet.Message{Topic: []byte(topic), Payload: []byte(payload), QoS: qos}}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func TestQoS(t *testing.T) {
	h := start(t)
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		sub, ack := h.connect(t, &packet.Connect{Version: v, ClientID: "sub", CleanStart: true})
		if ack.Code != 0 || ack.SessionPresent {
			t.Fatalf("%+v", ack)
		}
		sub.subscribe(2, "a/#")
		pub, _ := h.connect(t, &packet.Connect{Version: v, ClientID: "pub", CleanStart: true})
		pub.send(publish("a/0", "zero", 0, 0))
		if m := next[*packet.Publish](sub); string(m.Payload) != "zero" || m.QoS != 0 || string(m.Topic) != "a/0" {
			t.Errorf("%+v", m)
		}
		pub.send(publish("a/1", "one", 1, 7))
		if a := next[*packet.Ack](pub); a.Kind != packet.PUBACK || a.ID != 7 || a.Code != 0 {
			t.Errorf("%+v", a)
		}
		m := next[*packet.Publish](sub)
		if string(m.Payload) != "one" || m.QoS != 1 || m.Dup {
			t.Errorf("%+v", m)
		}
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		pub.send(publish("a/2", "two", 2, 8))
		if a := next[*packet.Ack](pub); a.Kind != packet.PUBREC || a.ID != 8 {
			t.Errorf("%+v", a)
		}
		pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 8})
		if a := next[*packet.Ack](pub); a.Kind != packet.PUBCOMP || a.ID != 8 {
			t.Errorf("%+v", a)
		}
		m = next[*packet.Publish](sub)
		if string(m.Payload) != "two" || m.QoS != 2 {
			t.Errorf("%+v", m)
		}
		id := m.ID
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: id})
		if a := next[*packet.Ack](sub); a.Kind != packet.PUBREL || a.ID != id {
			t.Errorf("%+v", a)
		}
		sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: id}, &packet.Pingreq{})
		next[*packet.Pingresp](sub)
		sub.send(&packet.Disconnect{})
		pub.send(&packet.Disconnect{})
	}
}

func TestMessageTravels(t *testing.T) {
	h := start(t)
	c, _ := h.connect(t, &packet.Connect{ClientID: "c", CleanStart: true})
	c.subscribe(0, "p/#")
	for _, m := range []packet.Message{
		{UserProperties: []packet.Pair{{Name: []byte("a"), Value: []byte("2")}, {Name: []byte("not a header: "), Value: []byte("line\nline")}, {Name: []byte(""), Value: []byte("")}}},
		{ContentType: []byte("\" quoted \"\r\n")}, {CorrelationData: []byte{}}, {CorrelationData: []byte{0, 255}}, {Format: packet.Bytes}, {ResponseTopic: []byte("r/x")},
		{Expires: true, Expiry: 100}, {ContentType: []byte("")},
	} {
		m.Topic, m.Payload = []byte("p/x"), []byte{}
		c.send(&packet.Publish{Message: m})
		got := next[*packet.Publish](c).Message
		if got.Expires && got.Expiry > 98 {
			got.Expiry = 100
		}
		if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", m) {
			t.Errorf("sent %+v, got %+v", m, got)
		}
	}
}
