package mqtt_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// gone closes a connection without a word.
func (p *peer) gone() { p.Close() }

// code is the reason of the DISCONNECT that comes next.
func (p *peer) code() packet.Code {
	p.t.Helper()
	return next[*packet.Disconnect](p).Code
}

// awaitAway returns when it is stored that a client of the account acme is away.
func (h *house) awaitAway(t *testing.T, id string) {
	t.Helper()
	js := h.streams(t)
	fleetbustest.Eventually(t, id+" to be away", func() error {
		records, err := js.Stream(within(t), "MQTT5_SESSIONS")
		if err != nil {
			return err
		}
		for seq := range records.CachedInfo().State.LastSeq {
			msg, err := records.GetMsg(within(t), seq+1)
			var r struct{ ID, Run string }
			if err == nil && json.Unmarshal(msg.Data, &r) == nil && r.ID == id && r.Run == "" {
				return nil
			}
		}
		return errors.New("it is still here")
	})
}

func TestSessionOutlives(t *testing.T) {
	h := start(t)
	forever := &packet.Connect{ClientID: "sub", SessionExpiry: 3600}
	sub, _ := h.connect(t, forever)
	sub.subscribe(2, "a/+")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	pub.send(publish("a/1", "first", 1, 1))
	next[*packet.Ack](pub)
	m := *next[*packet.Publish](sub)
	id := m.ID
	pub.send(publish("a/1", "second", 2, 2))
	next[*packet.Ack](pub)
	m = *next[*packet.Publish](sub)
	second := m.ID
	sub.send(&packet.Ack{Kind: packet.PUBREC, ID: second})
	next[*packet.Ack](sub)
	sub.gone()
	h.awaitAway(t, "sub")
	for i := range uint16(1000) { // more than are held in memory
		pub.send(publish("a/2", "while away", 1, 10+i))
		next[*packet.Ack](pub)
	}
	sub, ack := h.connect(t, forever)
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	if m := next[*packet.Publish](sub); !m.Dup || m.ID != id || string(m.Payload) != "first" {
		t.Errorf("%+v", m)
	}
	if a := next[*packet.Ack](sub); a.Kind != packet.PUBREL || a.ID != second {
		t.Errorf("%+v", a)
	}
	sub.send(&packet.Ack{Kind: packet.PUBACK, ID: id}, &packet.Ack{Kind: packet.PUBCOMP, ID: second})
	for range 1000 {
		m := next[*packet.Publish](sub)
		if m.Dup || string(m.Payload) != "while away" {
			t.Fatalf("%+v", m)
		}
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
	pub.send(publish("a/3", "live again", 1, 1))
	if m := next[*packet.Publish](sub); string(m.Payload) != "live again" {
		t.Errorf("%+v", m)
	}
	sub.well() // what it acknowledged has been read
	// A client with the same identifier takes the session, and the old one is told.
	other, ack := h.connect(t, forever)
	if code := sub.code(); code != packet.SessionTakenOver || !ack.SessionPresent {
		t.Errorf("taken over: %v %+v", code, ack)
	}
	// What it has not acknowledged comes again.
	if m := next[*packet.Publish](other); !m.Dup || string(m.Payload) != "live again" {
		t.Errorf("%+v", m)
	}
	other.send(&packet.Disconnect{SessionExpiry: new(uint32(0))})
	if _, err := other.r.Next(); err == nil {
		t.Error("something came after DISCONNECT")
	}
	if _, ack := h.connect(t, forever); ack.SessionPresent {
		t.Error("the session did not end")
	}
}

func TestRetainedAndWills(t *testing.T) {
	h := start(t)
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true, Will: &packet.Will{
		Message: packet.Message{Topic: []byte("will/1"), Payload: []byte("died"), QoS: 1, ContentType: []byte("text/plain")}}})
	for i, topic := range []string{"r/c", "r/a", "r/b", "r"} {
		p := publish(topic, topic, 1, uint16(i+1))
		p.Retain = true
		pub.send(p)
		next[*packet.Ack](pub)
	}
	p := publish("r/a", "", 1, 9)
	p.Retain = true
	pub.send(p)
	next[*packet.Ack](pub)
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", CleanStart: true})
	sub.subscribe(1, "r/#", "will/#")
	for _, topic := range []string{"r/c", "r/b", "r"} {
		m := next[*packet.Publish](sub)
		if string(m.Topic) != topic || !m.Retain || m.QoS != 1 || m.Dup {
			t.Errorf("%s %+v", topic, m)
		}
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
	pub.gone()
	if m := next[*packet.Publish](sub); string(m.Topic) != "will/1" || string(m.Payload) != "died" || string(m.ContentType) != "text/plain" || m.Retain {
		t.Errorf("%+v", m)
	}
}

func TestAcrossProtocols(t *testing.T) {
	h := start(t)
	nc := h.Dial("acme", "app")
	heard, err := nc.SubscribeSync("s.>")
	if err != nil {
		t.Fatal(err)
	}
	// A service that knows nothing of MQTT.
	if _, err := nc.Subscribe("service.echo", func(msg *nats.Msg) { _ = msg.Respond(append([]byte("echo "), msg.Data...)) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	c, _ := h.connect(t, &packet.Connect{ClientID: "c", CleanStart: true})
	c.subscribe(1, "s/#", "answers/c", "service/mqtt")
	out := &packet.Publish{ID: 1, Message: packet.Message{
		Topic: []byte("s/a b/."), Payload: []byte("x"), QoS: 1, ContentType: []byte("text/plain"), Expires: true, Expiry: 60, Format: packet.Text,
		UserProperties: []packet.Pair{{Name: []byte("Z"), Value: []byte("1")}, {Name: []byte("A"), Value: []byte("2")}, {Name: []byte("Z"), Value: []byte("3")}},
	}}
	c.send(out)
	var m *packet.Publish
	for acked := false; !acked || m == nil; { // they come in any order
		switch got := next[packet.Packet](c).(type) {
		case *packet.Ack:
			acked = true
		case *packet.Publish:
			m = new(*got) // what it has is good until the next packet
			m.Topic, m.UserProperties = bytes.Clone(m.Topic), nil
			for _, pair := range got.UserProperties {
				m.UserProperties = append(m.UserProperties, packet.Pair{Name: bytes.Clone(pair.Name), Value: bytes.Clone(pair.Value)})
			}
		}
	}
	if string(m.Topic) != "s/a b/." || len(m.UserProperties) != 3 || string(m.UserProperties[2].Value) != "3" || m.Format != packet.Text || m.Expiry < 58 {
		t.Errorf("%+v", m)
	}
	c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	msg, err := heard.NextMsgWithContext(within(t))
	if err != nil || msg.Subject != "s.a/20b.//" || msg.Header.Get("A") != "2" || msg.Header.Get("Content-Type") != "text/plain" {
		t.Errorf("%+v %v", msg, err)
	}
	// From NATS.
	if err := nc.PublishMsg(&nats.Msg{Subject: "s.x", Data: []byte("y"), Header: nats.Header{"Who": {"nats"}}}); err != nil {
		t.Fatal(err)
	}
	if m := next[*packet.Publish](c); string(m.Topic) != "s/x" || len(m.UserProperties) != 1 || string(m.UserProperties[0].Name) != "Who" {
		t.Errorf("%+v", m)
	}
	// An MQTT client calls a NATS service, and gets its correlation data back.
	call := publish("service/echo", "hello", 0, 0)
	call.ResponseTopic, call.CorrelationData = []byte("answers/c"), []byte{0, 1, 2}
	c.send(call)
	if m := next[*packet.Publish](c); string(m.Topic) != "answers/c" || string(m.Payload) != "echo hello" || !bytes.Equal(m.CorrelationData, []byte{0, 1, 2}) {
		t.Errorf("%+v", m)
	}
	// A NATS client calls an MQTT service.
	answered := make(chan *nats.Msg, 1)
	go func() {
		msg, err := nc.RequestWithContext(within(t), "service.mqtt", []byte("ping"))
		if err != nil {
			t.Error(err)
		}
		answered <- msg
	}()
	m = next[*packet.Publish](c)
	c.send(&packet.Publish{Message: packet.Message{Topic: m.ResponseTopic, Payload: []byte("pong")}})
	if msg := <-answered; msg == nil || string(msg.Data) != "pong" {
		t.Errorf("%+v", msg)
	}
}

func TestPermissions(t *testing.T) {
	h := start(t)
	if _, err := h.Admin().AddRole(within(t), identity.Role{Name: "narrow", Permissions: identity.Permissions{
		Publish: identity.Rule{Allow: []string{"up.>"}}, Subscribe: identity.Rule{Allow: []string{"down.>"}, Deny: []string{"down.secret"}}}}); err != nil {
		t.Fatal(err)
	}
	h.config.Certificates = nil
	password := []byte(h.Password(admin.UserRequest{Name: "acme/thing", Role: "narrow"}))
	for _, refused := range []*packet.Connect{
		{CleanStart: true}, {CleanStart: true, Username: new("acme/thing"), Password: []byte("wrong")}, {CleanStart: true, AuthMethod: "SCRAM"},
		{CleanStart: true, Username: new("acme/thing"), Password: password, Will: &packet.Will{Message: packet.Message{Topic: []byte("other")}}},
	} {
		if _, ack := h.connect(t, refused); !ack.Code.Failed() || ack.ReasonString == "" {
			t.Errorf("%+v", ack)
		}
	}
	c, ack := h.connect(t, &packet.Connect{CleanStart: true, Username: new("acme/thing"), Password: password})
	if ack.Code != 0 || ack.AssignedClientID == "" {
		t.Fatalf("%+v", ack)
	}
	c.send(publish("other", "x", 1, 1))
	if a := next[*packet.Ack](c); a.Code != packet.NotAuthorized {
		t.Errorf("%+v", a)
	}
	for _, topic := range []string{"$SYS/x", "$JS/API/STREAM/LIST", "$FLEETBUS/MQTT/msg/up", "_INBOX/x"} {
		c.send(publish(topic, "x", 2, 1))
		if a := next[*packet.Ack](c); a.Kind != packet.PUBREC || a.Code != packet.NotAuthorized {
			t.Errorf("%s: %+v", topic, a)
		}
	}
	c.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: "#"}, {Filter: "down/#", QoS: 1}, {Filter: "$JS/#"}, {Filter: "_INBOX/#"}, {Filter: "down/secret"}}})
	if s := next[*packet.Suback](c); s.Codes[0] != packet.NotAuthorized || s.Codes[1] != packet.GrantedQoS1 || !s.Codes[2].Failed() || !s.Codes[3].Failed() || !s.Codes[4].Failed() {
		t.Errorf("%+v", s)
	}
	// What a wildcard covers and a rule denies does not arrive, stored or not.
	nc := h.Dial("acme", "app")
	for _, subject := range []string{"down.secret", "down.open"} {
		if err := nc.Publish(subject, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	if m := next[*packet.Publish](c); string(m.Topic) != "down/open" {
		t.Errorf("%+v", m)
	}
	// Who is denied is disconnected, and told.
	if _, err := h.Admin().DenyUser(within(t), "acme/thing"); err != nil {
		t.Fatal(err)
	}
	if code := c.code(); code != packet.NotAuthorized {
		t.Errorf("denied: %v", code)
	}
}

func TestSharedSubscriptions(t *testing.T) {
	h := start(t)
	var members []*peer
	for _, id := range []string{"m1", "m2"} {
		c, _ := h.connect(t, &packet.Connect{ClientID: id, CleanStart: true})
		c.subscribe(1, "$share/g/work/#")
		members = append(members, c)
	}
	plain, _ := h.connect(t, &packet.Connect{ClientID: "plain", CleanStart: true})
	plain.subscribe(1, "work/#", "$share/alone/work/#")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	const many = 40
	got := make(chan string, many)
	for _, c := range members {
		go func() {
			for {
				p, err := c.r.Next()
				if err != nil {
					return
				}
				if m, ok := p.(*packet.Publish); ok {
					got <- string(m.Payload)
					b, _ := (&packet.Ack{Kind: packet.PUBACK, ID: m.ID}).Append(nil, c.v, 0)
					_, _ = c.Write(b)
				}
			}
		}()
	}
	for i := range uint16(many) {
		pub.send(publish("work/x", string(rune('A'+i)), 1, i+1))
		next[*packet.Ack](pub)
	}
	seen := map[string]int{}
	for range many {
		select {
		case payload := <-got:
			seen[payload]++
		case <-within(t).Done():
			t.Fatalf("%d of %d", len(seen), many)
		}
	}
	if len(seen) != many {
		t.Errorf("the group got %v", seen)
	}
	// One copy for each of its subscriptions. [MQTT 4.8.2]
	copies := map[string]int{}
	for range 2 * many {
		m := next[*packet.Publish](plain)
		copies[string(m.Payload)]++
		plain.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
	for payload, n := range copies {
		if n != 2 {
			t.Errorf("%q came %d times", payload, n)
		}
	}
}

// TestNodes has a client go on at another node.
func TestNodes(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{}})
	})
	password := []byte(nodes[0].Password(admin.UserRequest{Name: "acme/thing", Role: "client"}))
	at := func(i int) *house { return &house{nodes[i], nodes[i].TLS()} }
	connect := func(i int, id string) (*peer, *packet.Connack) {
		p, ack := at(i).connect(t, &packet.Connect{ClientID: id, SessionExpiry: 60, Username: new("acme/thing"), Password: password})
		if ack.Code != 0 {
			t.Fatalf("node %d: %+v", i+1, ack)
		}
		return p, ack
	}
	first, _ := connect(0, "mover")
	first.subscribe(2, "m/#")
	pub, _ := connect(2, "pub")
	pub.send(publish("m/1", "one", 2, 1))
	next[*packet.Ack](pub)
	pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 1})
	next[*packet.Ack](pub)
	id := next[*packet.Publish](first).ID
	// It comes to another node while the first one still has it.
	second, ack := connect(1, "mover")
	if code := first.code(); code != packet.SessionTakenOver || !ack.SessionPresent {
		t.Errorf("%v %+v", code, ack)
	}
	if m := next[*packet.Publish](second); !m.Dup || m.ID != id || m.QoS != 2 || string(m.Payload) != "one" {
		t.Errorf("%+v", m)
	}
	second.send(&packet.Ack{Kind: packet.PUBREC, ID: id})
	next[*packet.Ack](second)
	second.send(&packet.Ack{Kind: packet.PUBCOMP, ID: id})
	pub.send(publish("m/2", "two", 1, 2))
	next[*packet.Ack](pub)
	if m := next[*packet.Publish](second); m.Dup || string(m.Payload) != "two" {
		t.Errorf("%+v", m)
	}
}

// TestMosquitto speaks with the programs of another project.
func TestMosquitto(t *testing.T) {
	for _, program := range []string{"mosquitto_pub", "mosquitto_sub"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%s is not installed: %v", program, err)
		}
	}
	h := start(t)
	password := h.Password(admin.UserRequest{Name: "acme/mosquitto", Role: "client"})
	host, port, _ := strings.Cut(h.Addr("mqtt").String(), ":")
	common := []string{"-h", host, "-p", port, "--cafile", h.Founded().CA, "-u", "acme/mosquitto", "-P", password, "-t", "greet/you"}
	for _, version := range []string{"5", "311"} {
		pub := exec.CommandContext(within(t), "mosquitto_pub", append(common, "-V", version, "-q", "2", "-m", "hello "+version, "-r")...)
		if out, err := pub.CombinedOutput(); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		sub := exec.CommandContext(within(t), "mosquitto_sub", append(common, "-V", version, "-q", "1", "-C", "1", "-W", "15")...)
		if out, err := sub.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "hello "+version {
			t.Errorf("%v %s", err, out)
		}
	}
}

// TestWebSocket has a client come by WebSocket to the same port.
func TestWebSocket(t *testing.T) {
	h := start(t)
	transport := &http.Transport{TLSClientConfig: h.config}
	t.Cleanup(transport.CloseIdleConnections)
	base := "https://" + h.Addr("mqtt").String()
	ws, _, err := websocket.Dial(within(t), base+"/mqtt", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, Subprotocols: []string{"mqtt"}})
	if err != nil {
		t.Fatal(err)
	}
	if ws.Subprotocol() != "mqtt" {
		t.Errorf("the protocol is %q", ws.Subprotocol())
	}
	conn := websocket.NetConn(within(t), ws, websocket.MessageBinary)
	defer conn.Close()
	r := packet.NewReader(conn, packet.Server, 4096)
	r.Version = packet.V5
	p := &peer{t, conn, r, packet.V5}
	p.send(&packet.Connect{Version: packet.V5, ClientID: "page", CleanStart: true})
	if ack := next[*packet.Connack](p); ack.Code != 0 {
		t.Fatalf("%+v", ack)
	}
	p.subscribe(1, "w/#")
	p.send(publish("w/1", "framed", 1, 1))
	for range 2 {
		switch got, err := r.Next(); got := got.(type) {
		case *packet.Publish:
			if string(got.Payload) != "framed" {
				t.Errorf("%+v", got)
			}
		case *packet.Ack:
		default:
			t.Fatalf("%+v %v", got, err)
		}
	}
	// A page of another site, another path, and text in place of binary.
	if _, answer, err := websocket.Dial(within(t), base+"/mqtt", &websocket.DialOptions{
		HTTPClient: &http.Client{Transport: transport}, HTTPHeader: http.Header{"Origin": {"https://elsewhere.test"}},
	}); err == nil || answer == nil || answer.StatusCode != http.StatusForbidden {
		t.Errorf("a page of another site was let in, or not told: %v", err)
	}
	if _, answer, err := websocket.Dial(within(t), base+"/other", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}}); err == nil || answer == nil || answer.StatusCode != http.StatusNotFound {
		t.Errorf("another path: %v", err)
	}
	if err := ws.Write(within(t), websocket.MessageText, []byte("text")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Next(); err == nil {
		t.Error("text was taken")
	}
}

// TestStrangers sends what no client should: it costs one connection.
func TestStrangers(t *testing.T) {
	h := start(t)
	well, _ := h.connect(t, &packet.Connect{ClientID: "well", CleanStart: true})
	connect := func() *peer {
		p, _ := h.connect(t, &packet.Connect{ClientID: "ill", CleanStart: true})
		return p
	}
	for name, c := range map[string]struct {
		bytes []byte
		code  packet.Code
	}{
		"a SUBSCRIBE that is cut":  {[]byte{0x82, 6, 0x12, 0x34, 0, 0, 1, 0x50}, packet.MalformedPacket},
		"a second CONNECT":         {[]byte{0x10, 16, 0, 4, 'M', 'Q', 'T', 'T', 5, 2, 0, 0, 0, 0, 3, 'i', 'l', 'l'}, packet.ProtocolError},
		"a packet that is large":   {[]byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}, packet.PacketTooLarge},
		"a server's packet":        {[]byte{0xD0, 0}, packet.ProtocolError},
		"an unknown topic alias":   {[]byte{0x30, 6, 0, 0, 3, 0x23, 0, 9}, packet.ProtocolError},
		"a topic alias too high":   {[]byte{0x30, 7, 0, 1, 'a', 3, 0x23, 0xFF, 0}, packet.TopicAliasInvalid},
		"AUTH":                     {[]byte{0xF0, 5, 0x18, 3, 0x15, 0, 0}, packet.ProtocolError},
		"a length that never ends": {[]byte{0x30, 0xFF, 0xFF, 0xFF, 0xFF, 1}, packet.MalformedPacket},
	} {
		p := connect()
		if _, err := p.Write(c.bytes); err != nil {
			t.Fatal(err)
		}
		if code := p.code(); code != c.code {
			t.Errorf("%s: %v", name, code)
		}
		if _, err := p.r.Next(); err == nil {
			t.Errorf("%s: the connection goes on", name)
		}
	}
	for _, text := range []string{"GET / HTTP/1.1\r\nHost: x\r\n\r\n", "\x00\x00\x00", "GARBAGE\r\n\r\n", "\x10\x07\x00\x06MQIsdp\x03\x02\x00\x00\x00\x00"} {
		p := h.dial(t, packet.V311)
		if _, err := p.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = p.SetReadDeadline(time.Now().Add(15 * time.Second))
		if _, err := io.Copy(io.Discard, p); err != nil {
			t.Logf("%q: %v", text, err)
		}
	}
	well.send(&packet.Pingreq{})
	next[*packet.Pingresp](well)
}

// TestSlowReader has a client that does not read while much is stored for it: it
// gets all of it when it does, and nobody waits for it.
func TestSlowReader(t *testing.T) {
	h := start(t, func(o *fleetbus.Options) { protocol(o).Pending = 1 << 20 })
	slow, _ := h.connect(t, &packet.Connect{ClientID: "slow", CleanStart: true})
	slow.subscribe(1, "big/#")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	const many, size = 400, 30_000
	payload := strings.Repeat("x", size)
	for i := range uint16(many) {
		pub.send(publish("big/x", payload, 1, i+1))
		next[*packet.Ack](pub)
	}
	for i := range many {
		m := next[*packet.Publish](slow)
		if len(m.Payload) != size || m.Dup {
			t.Fatalf("%d: %d bytes, %v", i, len(m.Payload), m.Dup)
		}
		slow.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
	pub.send(publish("big/x", "last", 1, 1))
	if m := next[*packet.Publish](slow); string(m.Payload) != "last" {
		t.Errorf("%d bytes", len(m.Payload))
	}
}

// TestBearer comes in with a bearer token in place of a password.
func TestBearer(t *testing.T) {
	h := start(t)
	text, hash, err := identity.NewBearer("acme", "sensor")
	if err != nil {
		t.Fatal(err)
	}
	h.User(admin.UserRequest{Name: "acme/sensor", Role: "client", Bearer: hash})
	anybody := &house{h.Server, h.TLS()}
	for _, c := range []*packet.Connect{
		{Version: packet.V5, CleanStart: true, Password: packet.Secret(text)},
		{Version: packet.V5, CleanStart: true, Username: new("acme/sensor"), Password: packet.Secret(text)},
		{Version: packet.V311, CleanStart: true, Username: new("acme/sensor"), Password: packet.Secret(text), ClientID: "c"},
	} {
		if _, ack := anybody.connect(t, c); ack.Code != packet.Success {
			t.Errorf("%+v: %v", c, ack.Code)
		}
	}
	for _, c := range []*packet.Connect{
		{Version: packet.V5, CleanStart: true, Password: packet.Secret(text + "x")},
		{Version: packet.V5, CleanStart: true, Username: new("acme/device"), Password: packet.Secret(text)},
	} {
		if _, ack := anybody.connect(t, c); !ack.Code.Failed() {
			t.Errorf("%+v is let in", c)
		}
	}
}

// TestTooManyClients has more clients come than the account may have, most of which
// only listen: they are told, and as soon as one goes another may come.
func TestTooManyClients(t *testing.T) {
	h := start(t)
	const most = 8
	if _, err := h.Admin().AddAccount(within(t), admin.AccountRequest{Name: "acme", Limits: identity.Limits{Connections: most}}); err != nil {
		t.Fatal(err)
	}
	var all []*peer
	for i := range most + 1 {
		p, ack := h.connect(t, &packet.Connect{ClientID: fmt.Sprint(i), CleanStart: true})
		if ack.Code == packet.QuotaExceeded {
			break
		}
		if ack.Code != 0 {
			t.Fatalf("%d: %+v", i, ack)
		}
		all = append(all, p)
		if i%3 == 0 { // now the engine counts it
			p.send(publish("x", "", 0, 0))
			p.well()
		}
	}
	// The node itself has two.
	if len(all) < most-2 || len(all) >= most {
		t.Fatalf("%d are let in", len(all))
	}
	if p, ack := h.connect(t, &packet.Connect{Version: packet.V311, ClientID: "old", CleanStart: true}); ack.Code != packet.ServerUnavailable {
		t.Errorf("3.1.1 is told %+v", ack)
	} else {
		p.gone()
	}
	for i, p := range []*peer{all[0], all[1]} { // an open one, and one that rests
		p.gone()
		fleetbustest.Eventually(t, "room for a client", func() error {
			again, ack := h.connect(t, &packet.Connect{ClientID: fmt.Sprint("again", i), CleanStart: true})
			if ack.Code.Failed() {
				again.gone()
				return errors.New(ack.Code.String())
			}
			return nil
		})
		if _, ack := h.connect(t, &packet.Connect{ClientID: "other", CleanStart: true}); ack.Code != packet.QuotaExceeded {
			t.Errorf("there is room for two: %+v", ack)
		}
	}
	all[2].well()
}

// TestReleases acknowledges many messages of QoS 2 at once: each is released with
// its own identifier.
func TestReleases(t *testing.T) {
	h := start(t)
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", SessionExpiry: 3600})
	sub.subscribe(2, "a/+")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	const n = 20
	var ids []uint16
	for i := range uint16(n) {
		pub.send(publish("a/1", "x", 2, 1+i))
		next[*packet.Ack](pub)
		ids = append(ids, next[*packet.Publish](sub).ID)
	}
	var acks []packet.Packet
	for _, id := range ids {
		acks = append(acks, &packet.Ack{Kind: packet.PUBREC, ID: id})
	}
	sub.send(acks...)
	for _, id := range ids {
		if a := next[*packet.Ack](sub); a.Kind != packet.PUBREL || a.ID != id {
			t.Errorf("not for %d: %+v", id, a)
		}
	}
}

// TestCopies publishes with QoS 2, and others right behind, for those who hear at
// QoS 0 and 2: each comes as it was.
func TestCopies(t *testing.T) {
	h := start(t)
	var subs []*peer
	for i, qos := range []packet.QoS{0, 2} {
		sub, _ := h.connect(t, &packet.Connect{ClientID: fmt.Sprintf("sub-%d", i), CleanStart: true})
		sub.subscribe(qos, "a/+")
		subs = append(subs, sub)
	}
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", SessionExpiry: 3600})
	const n = 50
	var all []packet.Packet
	for i := range n {
		text := []byte(fmt.Sprintf("text-%02d", i))
		all = append(all, &packet.Publish{ID: uint16(i + 1), Message: packet.Message{
			Topic: []byte("a/" + string(text)), Payload: text, QoS: 2, ContentType: text, ResponseTopic: text, CorrelationData: text,
			UserProperties: []packet.Pair{{Name: []byte("name"), Value: text}},
		}})
	}
	pub.send(all...)
	for _, sub := range subs {
		for i := range n {
			m := next[*packet.Publish](sub)
			text := fmt.Sprintf("text-%02d", i)
			for _, got := range [][]byte{m.Payload, m.ContentType, m.ResponseTopic, m.CorrelationData, m.UserProperties[0].Value} {
				if string(got) != text {
					t.Fatalf("not %s: %+v", text, m)
				}
			}
		}
	}
}

// TestReconnects publishes without a pause, to a client whose connection ends again
// and again. What it is sent while one ends comes with the next.
func TestReconnects(t *testing.T) {
	h := start(t)
	const n = 200
	got := map[string]int{}
	forever := &packet.Connect{ClientID: "sub", SessionExpiry: 3600}
	sub, _ := h.connect(t, forever)
	sub.subscribe(2, "a/+")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	var publishing sync.WaitGroup
	publishing.Go(func() {
		for i := range n {
			pub.send(publish("a/1", strconv.Itoa(i), 1, uint16(i+1)))
			if _, err := pub.r.Next(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer publishing.Wait()
	for had := 0; len(got) < n; {
		if had++; had%20 == 0 {
			sub.gone()
			sub, _ = h.connect(t, forever)
		}
		m := next[*packet.Publish](sub)
		got[string(m.Payload)]++
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	}
}

// TestShareIsGivenBack has clients of a group leave while it is being given messages:
// another one gets all of them at once, those that were on their way, too.
func TestShareIsGivenBack(t *testing.T) {
	h := start(t)
	stays, _ := h.connect(t, &packet.Connect{ClientID: "stays", CleanStart: true})
	stays.subscribe(1, "$share/g/work/#")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	const rounds, many = 20, 40
	for round := range rounds {
		leaves, _ := h.connect(t, &packet.Connect{ClientID: fmt.Sprint("leaves", round), CleanStart: true})
		leaves.subscribe(1, "$share/g/work/#")
		var all []packet.Packet
		for i := range uint16(many) {
			all = append(all, publish("work/x", fmt.Sprint(round, " ", i), 1, i+1))
		}
		pub.send(all...)
		next[*packet.Publish](leaves)
		leaves.gone()
		began, got := time.Now(), map[string]bool{}
		for len(got) < many {
			m := next[*packet.Publish](stays)
			if strings.HasPrefix(string(m.Payload), fmt.Sprint(round, " ")) { // others may come again
				got[string(m.Payload)] = true
			}
			stays.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
		if took := time.Since(began); took > 20*time.Second {
			t.Fatalf("round %d took %v", round, took)
		}
		for range many {
			next[*packet.Ack](pub)
		}
	}
}

// TestReleasedElsewhere has the record of a session say less than its client knows,
// as after the death of a node: a message that is released is done with, and the
// next one with its identifier is another.
func TestReleasedElsewhere(t *testing.T) {
	h := start(t)
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", CleanStart: true})
	sub.subscribe(2, "a")
	connect := &packet.Connect{ClientID: "pub", SessionExpiry: 600}
	pub, _ := h.connect(t, connect)
	every := identity.Rule{Allow: []string{">", identity.Private + ">"}}
	session, err := h.Session(t.Context(), identity.Principal{Account: "acme", Name: "test", Permissions: identity.Permissions{Publish: every, Subscribe: every}})
	if err != nil {
		t.Fatal(err)
	}
	defer session.Close()
	js, err := jetstream.New(session.Conn)
	if err != nil {
		t.Fatal(err)
	}
	records, err := js.Stream(within(t), "MQTT5_SESSIONS")
	if err != nil {
		t.Fatal(err)
	}
	pub.send(publish("a", "one", 2, 1))
	next[*packet.Ack](pub)
	info, err := records.Info(within(t))
	if err != nil {
		t.Fatal(err)
	}
	before, err := records.GetMsg(within(t), info.State.LastSeq)
	if err != nil {
		t.Fatal(err)
	}
	pub.gone()
	fleetbustest.Eventually(t, "the session's record", func() error {
		now, err := records.GetLastMsgForSubject(within(t), before.Subject)
		if err != nil || now.Sequence == before.Sequence {
			return fmt.Errorf("it is not written yet: %v", err)
		}
		return nil
	})
	if _, err := js.Publish(within(t), before.Subject, before.Data); err != nil {
		t.Fatal(err)
	}
	pub, ack := h.connect(t, connect)
	if !ack.SessionPresent {
		t.Fatalf("%+v", ack)
	}
	pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 1})
	if a := next[*packet.Ack](pub); a.Kind != packet.PUBCOMP || a.Code != packet.Success {
		t.Errorf("%+v", a)
	}
	pub.send(publish("a", "two", 2, 1))
	next[*packet.Ack](pub)
	for _, want := range []string{"one", "two"} {
		if m := next[*packet.Publish](sub); string(m.Payload) != want {
			t.Errorf("%s, not %s", m.Payload, want)
		}
	}
}
