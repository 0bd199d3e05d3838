package mqtt_test

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// A story is what some statements ask of a server, over more than one packet.
type story struct {
	name string
	// clauses are the statements, without the "MQTT-" of those of 5.0.
	clauses string
	// only is the version it is about, 0 both.
	only packet.Version
	run  func(*scene)
}

func (s story) versions() []packet.Version {
	if s.only != 0 {
		return []packet.Version{s.only}
	}
	return []packet.Version{packet.V5, packet.V311}
}

func (s story) names() (names []string) {
	for _, name := range strings.Fields(s.clauses) {
		if !strings.HasPrefix(name, "MQTT") {
			name = "MQTT-" + name
		}
		names = append(names, name)
	}
	return names
}

// A scene is a story being played, with topics and clients of its own.
type scene struct {
	*testing.T
	h  *house
	v  packet.Version
	id string
}

// client is one with a session that ends with its connection.
func (s *scene) client(name string) *peer {
	s.Helper()
	p, _ := s.as(name, packet.Connect{CleanStart: true})
	return p
}

// lasting is a client whose session stays, and whether it was there.
func (s *scene) lasting(name string) (*peer, bool) {
	s.Helper()
	p, ack := s.as(name, packet.Connect{SessionExpiry: 600})
	return p, ack.SessionPresent
}

func (s *scene) as(name string, c packet.Connect) (*peer, *packet.Connack) {
	s.Helper()
	c.Version, c.ClientID = s.v, s.id+name
	p, ack := s.h.connect(s.T, &c)
	p.t = s.T
	if ack.Code != packet.Success {
		s.Fatalf("%s: %+v", name, ack)
	}
	return p, ack
}

func (s *scene) topic(name string) string { return s.id + "/" + name }

// sub subscribes to topics of the scene.
func (s *scene) sub(p *peer, qos packet.QoS, filters ...string) {
	s.Helper()
	for i := range filters {
		if !strings.HasPrefix(filters[i], "$share/") {
			filters[i] = s.topic(filters[i])
		}
	}
	p.subscribe(qos, filters...)
}

// put publishes all the way to the last acknowledgement.
func (s *scene) put(p *peer, topic, payload string, qos packet.QoS, edit ...func(*packet.Publish)) {
	s.Helper()
	m := publish(s.topic(topic), payload, qos, 0)
	if qos > 0 {
		m.ID = 77
	}
	for _, e := range edit {
		e(m)
	}
	p.send(m)
	switch qos {
	case 1:
		s.expect(p, packet.PUBACK, 77)
	case 2:
		s.expect(p, packet.PUBREC, 77)
		p.send(&packet.Ack{Kind: packet.PUBREL, ID: 77})
		s.expect(p, packet.PUBCOMP, 77)
	}
}

func retain(p *packet.Publish) { p.Retain = true }

// expect takes an acknowledgement that is a success.
func (s *scene) expect(p *peer, kind packet.Type, id uint16) {
	s.Helper()
	if a := next[*packet.Ack](p); a.Kind != kind || a.ID != id || a.Code.Failed() {
		s.Fatalf("%+v, not %v of %d", a, kind, id)
	}
}

// get takes a message, which is acknowledged to the end.
func (s *scene) get(p *peer, topic, payload string) packet.Publish {
	s.Helper()
	m := s.peek(p, topic, payload)
	s.finish(p, m)
	return m
}

// peek takes a message, and does not acknowledge it.
func (s *scene) peek(p *peer, topic, payload string) packet.Publish {
	s.Helper()
	m := *next[*packet.Publish](p)
	if string(m.Topic) != s.topic(topic) || string(m.Payload) != payload {
		s.Errorf("%s: %q, not %s: %q", m.Topic, m.Payload, s.topic(topic), payload)
	}
	return m
}

func (s *scene) finish(p *peer, m packet.Publish) {
	s.Helper()
	switch m.QoS {
	case 1:
		p.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	case 2:
		p.send(&packet.Ack{Kind: packet.PUBREC, ID: m.ID})
		s.expect(p, packet.PUBREL, m.ID)
		p.send(&packet.Ack{Kind: packet.PUBCOMP, ID: m.ID})
	}
}

// quiet says that nothing is on its way to p from what was published before: a
// message of its own comes first.
func (s *scene) quiet(p *peer) {
	s.Helper()
	topic := s.topic("quiet-" + fmt.Sprint(time.Now().UnixNano()))
	p.send(&packet.Subscribe{ID: 999, Subscriptions: []packet.Subscription{{Filter: topic, QoS: 1}}})
	next[*packet.Suback](p)
	other := s.client("quiet")
	other.send(publish(topic, "", 1, 1), publish(topic, "", 0, 0))
	next[*packet.Ack](other)
	for range 2 {
		m := next[*packet.Publish](p)
		if string(m.Topic) != topic {
			s.Fatalf("%s: %q came", m.Topic, m.Payload)
		}
		if m.QoS == 1 {
			p.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
	}
	p.send(&packet.Unsubscribe{ID: 999, Filters: []string{topic}})
	next[*packet.Unsuback](p)
}

// bye says good-bye, and waits until the server has heard it.
func (s *scene) bye(p *peer) {
	s.Helper()
	p.send(&packet.Disconnect{})
	if last := p.end(); last != nil {
		s.Errorf("%+v came after DISCONNECT", last)
	}
}

// elapse lets so much time go by that something ends for it.
func elapse(d time.Duration) { <-time.After(d) }

// told is the reason of the DISCONNECT with which the connection ends; a client of
// 3.1.1 is told none.
func (s *scene) told(p *peer, want packet.Code) {
	s.Helper()
	switch last := p.end().(type) {
	case nil:
		if s.v == packet.V5 {
			s.Errorf("it was not told %v", want)
		}
	case *packet.Disconnect:
		if last.Code != want || s.v != packet.V5 {
			s.Errorf("it was told %v, not %v", last.Code, want)
		}
	default:
		s.Errorf("the last was %+v", last)
	}
}

func stories() []story {
	const V5, V311 = packet.V5, packet.V311
	return []story{
		{"session", "3.1.2-4 3.1.2-5 3.1.2-6 3.1.2-23 3.1.3-2 3.1.4-4 3.1.4-5 3.2.0-1 3.2.2-2 3.2.2-3 4.1.0-1 4.5.0-1 MQTT311-3.1.2-4 MQTT311-3.1.2-6 MQTT311-3.1.2-7", 0, session},
		{"session ends", "4.1.0-2 3.2.2-3", V5, sessionEnds},
		{"will", "3.1.2-7 3.1.2-8 3.1.2-9 3.1.2-10 3.1.2-14 3.1.2-15 3.14.4-3 MQTT311-3.1.2-12", 0, wills},
		{"will with properties", "3.1.2-8 3.1.2-9 3.1.2-10 3.1.3-10 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20", V5, willProperties},
		{"will with delay", "3.1.2-8 3.1.3-9", V5, willDelay},
		{"keep alive", "3.1.2-22 3.2.2-22", 0, keepAlive},
		{"largest packet", "3.1.2-24 3.1.2-25", V5, largest},
		{"aliases of the server", "3.1.2-26 3.1.2-27 3.3.2-8 3.3.2-11", V5, serverAliases},
		{"aliases of the client", "3.3.2-7 3.3.2-12 4.13.1-1", V5, clientAliases},
		{"information", "3.1.2-28 3.1.2-29 3.4.2-1 3.5.2-1 3.9.3-2 2.2.2-1", V5, information},
		{"client identifiers", "3.1.3-5 3.1.3-6 3.1.3-7 3.1.3-8 3.2.2-16 MQTT311-3.1.3-8", 0, identifiers},
		{"taken over", "3.1.4-3 3.1.2-8", 0, takenOver},
		{"refused", "3.1.4-2 3.1.4-6 3.2.2-6 3.2.2-7 3.2.2-8 3.14.0-1 4.13.2-1", 0, refused},
		{"CONNACK", "3.2.0-2 3.2.2-1 3.2.2-9 3.2.2-10 3.2.2-12 3.2.2-13 3.2.0-1 MQTT311-7.0.0-2", 0, connack},
		{"QoS 0", "2.2.1-2 3.3.1-2 3.3.4-1 4.3.1-1", 0, qos0},
		{"QoS 1 from a client", "2.2.1-5 3.3.4-1 4.3.2-4 4.3.2-5 3.3.1-3", 0, qos1In},
		{"QoS 1 to a client", "2.2.1-4 3.3.1-1 4.3.2-1 4.3.2-2 4.3.2-3 4.4.0-1", 0, qos1Out},
		{"QoS 2 from a client", "2.2.1-5 3.3.4-1 4.3.3-8 4.3.3-10 4.3.3-11 4.3.3-12", 0, qos2In},
		{"QoS 2 to a client", "4.3.3-1 4.3.3-2 4.3.3-3 4.3.3-4 4.3.3-5 4.3.3-6 4.4.0-1", 0, qos2Out},
		{"acks that refuse", "4.3.3-9 4.4.0-2", V5, refusals},
		{"wrong acks", "4.13.1-1", 0, wrongAcks},
		{"identifiers that nobody knows", "3.6.2-1 3.7.2-1", V5, unknownAcks},
		{"expired under way", "4.3.3-7 4.3.3-13", V5, expiredUnderWay},
		{"retained", "3.3.1-5 3.3.1-6 3.3.1-7 3.3.1-8 3.3.1-9 3.3.1-12", 0, retained},
		{"retain handling", "3.3.1-9 3.3.1-10 3.3.1-11 3.3.1-12 3.3.1-13", V5, retainHandling},
		{"expiry", "3.3.2-5 3.3.2-6", V5, expiry},
		{"properties", "3.3.2-3 3.3.2-4 3.3.2-15 3.3.2-16 3.3.2-17 3.3.2-18 3.3.2-20", V5, properties},
		{"overlapping subscriptions", "3.3.4-2", 0, overlapping},
		{"subscription identifiers", "3.3.4-3 3.3.4-4 3.3.4-5 3.8.4-3", V5, subscriptionIDs},
		{"no local", "3.8.3-3", V5, noLocal},
		{"SUBACK", "2.2.1-6 3.3.2-3 3.8.4-1 3.8.4-2 3.8.4-5 3.8.4-6 3.8.4-7 3.8.4-8 3.9.3-1 3.9.3-2 MQTT311-3.9.3-2", 0, suback},
		{"subscription again", "3.8.4-3 3.8.4-4", 0, again},
		{"unsubscribe", "2.2.1-6 3.10.4-1 3.10.4-2 3.10.4-3 3.10.4-4 3.10.4-5 3.10.4-6 3.11.3-1 3.11.3-2", 0, unsubscribe},
		{"PINGREQ", "3.12.4-1", 0, func(s *scene) { s.client("c").well() }},
		{"DISCONNECT of the server", "3.14.2-1 3.14.2-2 3.14.4-1 3.14.4-2 4.13.1-1 MQTT311-4.8.0-2", 0, serverDisconnects},
		{"flow control", "3.3.4-9 3.3.4-10 4.9.0-1 4.9.0-2 4.9.0-3", V5, flowControl},
		{"too many under way", "3.3.4-7", V5, tooMany},
		{"order", "4.2-1 4.6.0-5 4.6.0-6", 0, order},
		{"$ topics", "4.7.2-1 3.3.4-1 MQTT311-3.3.5-2", 0, dollar},
		{"topics", "1.5.4-3 3.3.2-1 4.7.0-1 4.7.1-1 4.7.1-2 4.7.3-1 4.7.3-4", 0, topics},
		{"shared", "4.8.2-3 4.8.2-6", 0, shared},
		{"shared and away", "4.8.2-4 4.8.2-5", 0, sharedAway},
		{"authentication", "4.12.0-1 4.12.0-2 4.12.0-4 4.12.0-5 4.12.0-6 4.12.1-2 3.2.2-7", V5, authentication},
		{"WebSocket", "6.0.0-1 6.0.0-2 6.0.0-4", 0, webSocket},
	}
}

func session(s *scene) {
	c, present := s.lasting("c")
	if present {
		s.Error("there was a session before")
	}
	pub := s.client("pub")
	s.sub(c, 1, "a")
	s.put(pub, "kept", "k", 1, retain)
	c.gone()
	s.put(pub, "a", "1", 1)
	s.put(pub, "a", "2", 2)
	if c, present = s.lasting("c"); !present {
		s.Error("the session is gone")
	}
	s.get(c, "a", "1")
	s.get(c, "a", "2")
	s.bye(c)
	c = s.client("c") // Clean Start
	s.put(pub, "a", "3", 1)
	s.quiet(c)
	s.bye(c)
	if c, present = s.lasting("c"); present {
		s.Error("a clean session was kept")
	}
	s.sub(c, 0, "kept") // what is retained is of no session
	s.get(c, "kept", "k")
	s.put(pub, "a", "4", 1)
	s.quiet(c)
}

func sessionEnds(s *scene) {
	c, _ := s.as("c", packet.Connect{SessionExpiry: 1})
	s.sub(c, 1, "a")
	c.gone()
	elapse(2500 * time.Millisecond)
	if _, present := s.lasting("c"); present {
		s.Error("the session did not end")
	}
}

func wills(s *scene) {
	sub := s.client("sub")
	s.sub(sub, 1, "will/#")
	for _, retained := range []bool{false, true} {
		for _, payload := range []string{"", "died"} {
			topic := fmt.Sprintf("will/%v%s", retained, payload)
			will := packet.Will{Message: packet.Message{Topic: []byte(s.topic(topic)), Payload: []byte(payload), QoS: 1, Retain: retained}}
			c, _ := s.as("c", packet.Connect{CleanStart: true, Will: &will})
			s.bye(c)
			s.quiet(sub)
			c, _ = s.as("c", packet.Connect{CleanStart: true, Will: &will})
			c.gone()
			if m := s.get(sub, topic, payload); m.Retain || m.QoS != 1 {
				s.Errorf("%+v", m)
			}
			s.client("c").gone() // it has none now
			s.quiet(sub)
		}
	}
	late := s.client("late")
	s.sub(late, 0, "will/#")
	s.get(late, "will/truedied", "died")
	s.quiet(late)
	// An error of the client is no good-bye.
	will := packet.Will{Message: packet.Message{Topic: []byte(s.topic("will/error")), Payload: []byte("x")}}
	c, _ := s.as("c", packet.Connect{CleanStart: true, Will: &will})
	c.raw([]byte{0, 0})
	s.told(c, packet.MalformedPacket)
	s.get(sub, "will/error", "x")
}

func willProperties(s *scene) {
	sub := s.client("sub")
	s.sub(sub, 1, "will")
	will := packet.Will{Message: packet.Message{Topic: []byte(s.topic("will")), Payload: []byte("x"), QoS: 1, Format: packet.Text, Expires: true, Expiry: 100,
		ContentType: []byte("t"), ResponseTopic: []byte("r"), CorrelationData: []byte{1, 0}, UserProperties: pairs("b", "1", "a", "2", "b", "3")}}
	c, _ := s.as("c", packet.Connect{CleanStart: true, Will: &will})
	c.send(&packet.Disconnect{Code: packet.DisconnectWithWill})
	m := s.get(sub, "will", "x")
	if string(m.ContentType) != "t" || string(m.ResponseTopic) != "r" || !bytes.Equal(m.CorrelationData, []byte{1, 0}) || m.Format != packet.Text || m.Expiry < 95 ||
		fmt.Sprint(m.UserProperties) != fmt.Sprint(will.UserProperties) {
		s.Errorf("%+v", m)
	}
}

func pairs(texts ...string) (all []packet.Pair) {
	for i := 0; i < len(texts); i += 2 {
		all = append(all, packet.Pair{Name: []byte(texts[i]), Value: []byte(texts[i+1])})
	}
	return all
}

func willDelay(s *scene) {
	sub := s.client("sub")
	s.sub(sub, 1, "will")
	connect := packet.Connect{SessionExpiry: 600, Will: &packet.Will{Delay: 1, Message: packet.Message{Topic: []byte(s.topic("will")), Payload: []byte("x"), QoS: 1}}}
	c, _ := s.as("c", connect)
	c.gone()
	c, _ = s.as("c", connect) // in time
	elapse(1500 * time.Millisecond)
	s.quiet(sub)
	c.gone()
	began := time.Now()
	s.get(sub, "will", "x")
	if waited := time.Since(began); waited < 900*time.Millisecond {
		s.Errorf("it came after %v", waited)
	}
	// The end of the session is the end of the delay.
	connect.SessionExpiry, connect.Will.Delay = 0, 100
	c, _ = s.as("c", connect)
	c.gone()
	s.get(sub, "will", "x")
	connect.SessionExpiry = 600
	c, _ = s.as("c", connect)
	c.gone()
	s.client("c")
	s.get(sub, "will", "x")
}

func keepAlive(s *scene) {
	sub := s.client("sub")
	s.sub(sub, 0, "will")
	c, ack := s.as("c", packet.Connect{CleanStart: true, KeepAlive: 1, Will: &packet.Will{Message: packet.Message{Topic: []byte(s.topic("will")), Payload: []byte("x")}}})
	if ack.ServerKeepAlive != nil {
		s.Errorf("it is told another keep alive: %d", *ack.ServerKeepAlive)
	}
	began := time.Now()
	c.raw([]byte{0xC0}) // half a packet is none
	s.told(c, packet.KeepAliveTimeout)
	if took := time.Since(began); took < 1400*time.Millisecond || took > 5*time.Second {
		s.Errorf("it was let go after %v", took)
	}
	s.get(sub, "will", "x")
	if s.v == packet.V5 {
		for _, most := range []uint16{0, 0xFFFF} {
			if _, ack := s.as("c", packet.Connect{CleanStart: true, KeepAlive: most}); ack.ServerKeepAlive == nil || *ack.ServerKeepAlive != 300 {
				s.Errorf("%+v", ack)
			}
		}
	}
}

func largest(s *scene) {
	sub, _ := s.as("sub", packet.Connect{CleanStart: true, MaximumPacketSize: 60, ReceiveMaximum: 1})
	s.sub(sub, 2, "a")
	pub := s.client("pub")
	for qos := range packet.QoS(3) {
		s.put(pub, "a", strings.Repeat("x", 60), qos)
		s.put(pub, "a", "small", qos)
		s.get(sub, "a", "small")
	}
	sub.well()
}

func serverAliases(s *scene) {
	sub, _ := s.as("sub", packet.Connect{CleanStart: true, TopicAliasMaximum: 2})
	none := s.client("none")
	s.sub(sub, 0, "+")
	s.sub(none, 0, "+")
	pub := s.client("pub")
	known := map[uint16]string{}
	for _, topic := range []string{"a", "b", "c", "a", "b", "c", "a"} {
		s.put(pub, topic, "x", 0)
		if m := s.get(none, topic, "x"); m.TopicAlias != 0 {
			s.Errorf("%+v", m)
		}
		m := next[*packet.Publish](sub)
		if m.TopicAlias > 2 {
			s.Errorf("alias %d", m.TopicAlias)
		}
		if len(m.Topic) > 0 {
			known[m.TopicAlias] = string(m.Topic)
		} else if known[m.TopicAlias] != s.topic(topic) {
			s.Errorf("alias %d is %s, not %s", m.TopicAlias, known[m.TopicAlias], topic)
		}
	}
	if len(known) != 3 { // two aliases, and none
		s.Errorf("%v", known)
	}
}

func clientAliases(s *scene) {
	sub := s.client("sub")
	s.sub(sub, 0, "+")
	c, ack := s.as("c", packet.Connect{CleanStart: true})
	for alias := uint16(1); alias <= ack.TopicAliasMaximum; alias++ {
		topic := fmt.Sprint(alias)
		for _, name := range [][]byte{[]byte(s.topic(topic)), nil} {
			c.send(&packet.Publish{TopicAlias: alias, Message: packet.Message{Topic: name, Payload: []byte("x")}})
			s.get(sub, topic, "x")
		}
	}
	c.send(&packet.Publish{TopicAlias: 1, Message: packet.Message{Topic: []byte(s.topic("other")), Payload: []byte("y")}}, &packet.Publish{TopicAlias: 1, Message: packet.Message{Payload: []byte("z")}})
	s.get(sub, "other", "y")
	s.get(sub, "other", "z")
	c.send(&packet.Publish{TopicAlias: ack.TopicAliasMaximum + 1, Message: packet.Message{Topic: []byte("t")}})
	s.told(c, packet.TopicAliasInvalid)
	c, _ = s.as("c", packet.Connect{})
	c.send(&packet.Publish{TopicAlias: 1})
	s.told(c, packet.ProtocolError)
}

func information(s *scene) {
	c, ack := s.as("c", packet.Connect{CleanStart: true, NoProblemInformation: true})
	if ack.ResponseInfo != "" {
		s.Errorf("%+v", ack)
	}
	users := pairs("a", "1")
	for qos := packet.QoS(1); qos <= 2; qos++ {
		for i, topic := range []string{s.topic("a"), "$SYS/a"} {
			p := publish(topic, "x", qos, 7+uint16(i))
			p.UserProperties = users
			c.send(p)
			if a := next[*packet.Ack](c); a.ReasonString != "" || a.UserProperties != nil || a.Code.Failed() != (topic == "$SYS/a") {
				s.Errorf("%+v", a)
			}
		}
	}
	c.send(&packet.Ack{Kind: packet.PUBREL, ID: 7}, &packet.Ack{Kind: packet.PUBREL, ID: 8})
	for range 2 {
		if a := next[*packet.Ack](c); a.ReasonString != "" || a.UserProperties != nil {
			s.Errorf("%+v", a)
		}
	}
	c.send(&packet.Subscribe{ID: 1, UserProperties: users, Subscriptions: []packet.Subscription{{Filter: "$SYS/#"}}}, &packet.Unsubscribe{ID: 2, UserProperties: users, Filters: []string{"no"}})
	if a := next[*packet.Suback](c); a.ReasonString != "" || a.UserProperties != nil {
		s.Errorf("%+v", a)
	}
	if a := next[*packet.Unsuback](c); a.ReasonString != "" || a.UserProperties != nil {
		s.Errorf("%+v", a)
	}
}

func identifiers(s *scene) {
	for _, id := range []string{"0123456789abcdefghijklm", "NOPQRSTUVWXYZ", "x", "host.example.net", "a b", "a/+/#", "$SYS", "*>", "ü\U0001F680", "\ufeff", strings.Repeat("c", 16_000)} {
		for _, clean := range []bool{true, false} {
			if _, ack := s.h.connect(s.T, &packet.Connect{Version: s.v, ClientID: id, CleanStart: clean}); ack.Code != packet.Success {
				s.Errorf("%.30q: %v", id, ack.Code)
			}
		}
	}
	given := map[string]bool{}
	for range 2 {
		c, ack := s.h.connect(s.T, &packet.Connect{Version: s.v, CleanStart: true})
		if ack.Code != packet.Success || s.v == packet.V5 && (ack.AssignedClientID == "" || given[ack.AssignedClientID]) {
			s.Errorf("%+v", ack)
		}
		given[ack.AssignedClientID] = true
		defer c.well() // neither takes the other's place
	}
	c, ack := s.h.connect(s.T, &packet.Connect{Version: s.v})
	if s.v == packet.V5 {
		if ack.AssignedClientID == "" {
			s.Errorf("%+v", ack)
		}
	} else if ack.Code != packet.ClientIdentifierNotValid || c.end() != nil {
		s.Errorf("%+v", ack)
	}
}

func takenOver(s *scene) {
	sub := s.client("sub")
	s.sub(sub, 0, "will")
	old, _ := s.as("c", packet.Connect{CleanStart: true, Will: &packet.Will{Message: packet.Message{Topic: []byte(s.topic("will")), Payload: []byte("x")}}})
	c := s.client("c")
	s.told(old, packet.SessionTakenOver)
	s.get(sub, "will", "x")
	c.well()
}

func refused(s *scene) {
	config := s.h.config.Clone()
	config.Certificates = nil
	other := &house{s.h.Server, config}
	sub := s.client("sub")
	s.sub(sub, 0, "a")
	for _, c := range []*packet.Connect{{}, {Username: new("acme/nobody"), Password: []byte("wrong")}, {Username: new("acme/device")}, {Username: new("")}} {
		c.Version, c.ClientID, c.CleanStart = s.v, s.id+"c", true
		p := other.dial(s.T, s.v)
		p.send(c, publish(s.topic("a"), "x", 0, 0))
		ack, ok := p.end().(*packet.Connack)
		if !ok || ack.SessionPresent || ack.Code != packet.NotAuthorized && ack.Code != packet.BadUserNameOrPassword {
			s.Errorf("%+v", ack)
		}
	}
	s.quiet(sub)
}

func connack(s *scene) {
	// Nothing is asked for that a server may not have.
	c, ack := s.as("c", packet.Connect{CleanStart: true, Will: &packet.Will{Message: packet.Message{Topic: []byte(s.topic("will")), QoS: 2, Retain: true}}})
	if ack.MaximumQoS != nil || ack.NoRetain || ack.NoWildcards || ack.NoShared || ack.NoSubscriptionIDs {
		s.Errorf("%+v", ack)
	}
	if s.v == packet.V5 && (ack.ReceiveMaximum == 0 || ack.MaximumPacketSize == 0 || ack.TopicAliasMaximum == 0) {
		s.Errorf("%+v", ack)
	}
	for qos := range packet.QoS(3) {
		if a := c.subscribe(qos, s.topic(fmt.Sprint(qos))); a.Codes[0] != packet.Code(qos) {
			s.Errorf("%+v", a)
		}
	}
	c.well() // and no other CONNACK comes
}

func qos0(s *scene) {
	c := s.client("c")
	s.sub(c, 2, "a")
	c.send(publish(s.topic("a"), "x", 0, 0))
	if m := s.get(c, "a", "x"); m.QoS != 0 || m.ID != 0 || m.Dup {
		s.Errorf("%+v", m)
	}
	c.well() // and no answer comes
}

func qos1In(s *scene) {
	sub, pub := s.client("sub"), s.client("pub")
	s.sub(sub, 1, "a")
	for _, dup := range []bool{false, true, true} {
		p := publish(s.topic("a"), fmt.Sprint(dup), 1, 5)
		p.Dup = dup
		pub.send(p)
		s.expect(pub, packet.PUBACK, 5)
		if m := s.get(sub, "a", fmt.Sprint(dup)); m.Dup {
			s.Errorf("%+v", m)
		}
	}
}

func qos1Out(s *scene) {
	sub, _ := s.lasting("sub")
	s.sub(sub, 1, "a")
	pub := s.client("pub")
	ids := map[uint16]string{}
	for _, payload := range []string{"1", "2", "3"} {
		s.put(pub, "a", payload, 1)
		m := s.peek(sub, "a", payload)
		if m.ID == 0 || ids[m.ID] != "" || m.Dup || m.QoS != 1 {
			s.Errorf("%+v", m)
		}
		ids[m.ID] = payload
	}
	elapse(1200 * time.Millisecond)
	sub.well() // nothing is sent again while it is connected
	sub.gone()
	s.h.awaitAway(s.T, s.id+"sub") // until then "4" may be sent to it
	s.put(pub, "a", "4", 1)
	sub, _ = s.lasting("sub")
	for _, payload := range []string{"1", "2", "3", "4"} {
		m := s.get(sub, "a", payload)
		if m.Dup != (payload != "4") || m.Dup && ids[m.ID] != payload || !m.Dup && ids[m.ID] != "" {
			s.Errorf("%s: %+v", payload, m)
		}
	}
	s.bye(sub)
	sub, _ = s.lasting("sub")
	s.quiet(sub)
}

func qos2In(s *scene) {
	sub, pub := s.client("sub"), s.client("pub")
	s.sub(sub, 2, "a")
	p := publish(s.topic("a"), "1", 2, 5)
	for range 3 {
		pub.send(p)
		s.expect(pub, packet.PUBREC, 5)
		p.Dup = true
	}
	if m := s.get(sub, "a", "1"); m.Dup {
		s.Errorf("%+v", m)
	}
	s.quiet(sub)
	for _, payload := range []string{"1", "2"} { // after PUBCOMP it is another message, whatever it says
		pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 5})
		s.expect(pub, packet.PUBCOMP, 5)
		pub.send(publish(s.topic("a"), payload, 2, 5))
		s.expect(pub, packet.PUBREC, 5)
		s.get(sub, "a", payload)
	}
}

func qos2Out(s *scene) {
	sub, _ := s.lasting("sub")
	s.sub(sub, 2, "a")
	pub := s.client("pub")
	s.put(pub, "a", "1", 2)
	s.put(pub, "a", "2", 2)
	one, two := s.peek(sub, "a", "1"), s.peek(sub, "a", "2")
	if one.ID == two.ID || one.ID == 0 || one.Dup || one.QoS != 2 {
		s.Errorf("%+v %+v", one, two)
	}
	for range 2 { // the same again is answered the same
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: one.ID})
		s.expect(sub, packet.PUBREL, one.ID)
	}
	sub.gone()
	sub, _ = s.lasting("sub")
	s.expect(sub, packet.PUBREL, one.ID)
	if m := s.peek(sub, "a", "2"); !m.Dup || m.ID != two.ID {
		s.Errorf("%+v", m)
	}
	sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: one.ID})
	s.finish(sub, two)
	s.put(pub, "a", "3", 2)
	s.get(sub, "a", "3")
	s.quiet(sub)
}
