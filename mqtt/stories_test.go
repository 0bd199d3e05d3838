package mqtt_test

import (
	"bytes"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coder/websocket"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

func refusals(s *scene) {
	pub := s.client("pub")
	// The server refuses, and the identifier is that of another message.
	pub.send(publish("$SYS/x", "x", 2, 5))
	if a := next[*packet.Ack](pub); a.Kind != packet.PUBREC || a.Code != packet.NotAuthorized {
		s.Errorf("%+v", a)
	}
	sub, _ := s.lasting("sub")
	s.sub(sub, 2, "a")
	pub.send(publish(s.topic("a"), "1", 2, 5))
	s.expect(pub, packet.PUBREC, 5)
	one := s.peek(sub, "a", "1")
	pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 5})
	s.expect(pub, packet.PUBCOMP, 5)
	s.put(pub, "a", "2", 1)
	two := s.peek(sub, "a", "2")
	// The client refuses, and nothing comes again.
	sub.send(&packet.Ack{Kind: packet.PUBREC, ID: one.ID, Code: packet.ImplementationSpecificError}, &packet.Ack{Kind: packet.PUBACK, ID: two.ID, Code: packet.NotAuthorized})
	s.bye(sub)
	sub, present := s.lasting("sub")
	if !present {
		s.Error("the session is gone")
	}
	s.quiet(sub)
}

func wrongAcks(s *scene) {
	pub := s.client("pub")
	for _, c := range []struct {
		qos  packet.QoS
		acks []packet.Type
	}{{1, []packet.Type{packet.PUBREC}}, {1, []packet.Type{packet.PUBCOMP}}, {2, []packet.Type{packet.PUBACK}}, {2, []packet.Type{packet.PUBCOMP}}, {2, []packet.Type{packet.PUBREC, packet.PUBACK}}} {
		sub := s.client("sub")
		s.sub(sub, 2, "a")
		s.put(pub, "a", "x", c.qos)
		m := s.peek(sub, "a", "x")
		for i, kind := range c.acks {
			if sub.send(&packet.Ack{Kind: kind, ID: m.ID}); i < len(c.acks)-1 {
				s.expect(sub, packet.PUBREL, m.ID)
			}
		}
		s.told(sub, packet.ProtocolError)
	}
}

func unknownAcks(s *scene) {
	c := s.client("c")
	c.send(&packet.Ack{Kind: packet.PUBREL, ID: 5})
	if a := next[*packet.Ack](c); a.Kind != packet.PUBCOMP || a.ID != 5 || a.Code != packet.PacketIdentifierNotFound {
		s.Errorf("%+v", a)
	}
	c.send(&packet.Ack{Kind: packet.PUBREC, ID: 6})
	if a := next[*packet.Ack](c); a.Kind != packet.PUBREL || a.ID != 6 || a.Code != packet.PacketIdentifierNotFound {
		s.Errorf("%+v", a)
	}
	c.send(&packet.Ack{Kind: packet.PUBACK, ID: 7}, &packet.Ack{Kind: packet.PUBCOMP, ID: 7})
	c.well()
}

func expiring(seconds uint32) func(*packet.Publish) {
	return func(p *packet.Publish) { p.Expires, p.Expiry = true, seconds }
}

func expiredUnderWay(s *scene) {
	sub, _ := s.lasting("sub")
	s.sub(sub, 2, "a")
	pub := s.client("pub")
	s.put(pub, "a", "1", 2, expiring(1))
	s.put(pub, "a", "2", 2, expiring(1))
	one, two := s.peek(sub, "a", "1"), s.peek(sub, "a", "2")
	elapse(1500 * time.Millisecond)
	s.finish(sub, one)
	sub.gone()
	sub, _ = s.lasting("sub")
	if m := s.get(sub, "a", "2"); m.ID != two.ID || !m.Dup {
		s.Errorf("%+v", m)
	}
}

func retained(s *scene) {
	pub, there := s.client("pub"), s.client("there")
	s.sub(there, 1, "a/b/c", "a/b/d")
	for _, qos := range []packet.QoS{0, 1, 2} {
		payload := fmt.Sprint("r", qos)
		s.put(pub, "a/b/c", payload, qos, retain)
		if m := s.get(there, "a/b/c", payload); m.Retain {
			s.Errorf("%+v", m)
		}
		s.put(pub, "a/b/c", "not retained", 1)
		s.get(there, "a/b/c", "not retained")
		for _, filter := range []string{"a/b/c", "a/+/c/#", "a/b/c/#", "+/b/+"} {
			sub := s.client("sub")
			s.sub(sub, 2, filter)
			if m := s.get(sub, "a/b/c", payload); !m.Retain || m.QoS != qos || m.Dup {
				s.Errorf("%+v", m)
			}
			s.quiet(sub)
		}
	}
	s.put(pub, "a/b/c", "", 1, retain)
	if m := s.get(there, "a/b/c", ""); m.Retain {
		s.Errorf("%+v", m)
	}
	s.put(pub, "a/b/d", "", 1, retain)
	s.get(there, "a/b/d", "")
	sub := s.client("sub")
	s.sub(sub, 1, "a/b/#")
	s.quiet(sub)
}

func retainHandling(s *scene) {
	pub := s.client("pub")
	s.put(pub, "a", "r", 1, retain)
	c := s.client("c")
	for i, handling := range []packet.RetainHandling{packet.RetainIfNew, packet.RetainIfNew, packet.RetainNever, packet.RetainAlways, packet.RetainIfNew} {
		c.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: s.topic("a"), QoS: 1, RetainHandling: handling, RetainAsPublished: i == 4}}})
		next[*packet.Suback](c)
		if i == 0 || i == 3 {
			if m := s.get(c, "a", "r"); !m.Retain {
				s.Errorf("%+v", m)
			}
		}
		s.quiet(c)
	}
	other := s.client("other")
	other.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: s.topic("a"), QoS: 1, RetainHandling: packet.RetainNever}}})
	next[*packet.Suback](other)
	s.quiet(other)
	for _, retained := range []bool{true, false} {
		for _, qos := range []packet.QoS{0, 1} {
			s.put(pub, "a", "x", qos, func(p *packet.Publish) { p.Retain = retained })
			if m := s.get(c, "a", "x"); m.Retain != retained {
				s.Errorf("%+v", m)
			}
			if m := s.get(other, "a", "x"); m.Retain {
				s.Errorf("%+v", m)
			}
		}
	}
}

func expiry(s *scene) {
	c, _ := s.lasting("c")
	s.sub(c, 1, "a")
	c.gone()
	pub := s.client("pub")
	s.put(pub, "a", "soon", 1, expiring(1))
	s.put(pub, "a", "late", 1, expiring(20))
	s.put(pub, "a", "never", 1)
	s.put(pub, "r", "soon", 1, retain, expiring(1))
	s.put(pub, "s", "late", 1, retain, expiring(20))
	elapse(2500 * time.Millisecond)
	c, _ = s.lasting("c")
	if m := s.get(c, "a", "late"); !m.Expires || m.Expiry < 15 || m.Expiry > 18 {
		s.Errorf("%+v", m)
	}
	if m := s.get(c, "a", "never"); m.Expires {
		s.Errorf("%+v", m)
	}
	s.sub(c, 1, "r", "s")
	if m := s.get(c, "s", "late"); m.Expiry < 15 || m.Expiry > 18 {
		s.Errorf("%+v", m)
	}
	s.quiet(c)
}

func properties(s *scene) {
	c, pub := s.client("c"), s.client("pub")
	s.sub(c, 2, "a")
	for qos := range packet.QoS(3) {
		p := packet.Message{Topic: []byte(s.topic("a")), Payload: []byte("\xff"), QoS: qos, Format: packet.Text, ContentType: []byte("text/\"x\r\ny"), ResponseTopic: []byte("/r//s ü"),
			CorrelationData: []byte("\x00\xff"), UserProperties: pairs("z", "1", "a", "2", "z", "3", "z", "1", "", "", "k\r\n: v", "ü")}
		s.put(pub, "a", "\xff", qos, func(m *packet.Publish) { *m = packet.Publish{ID: m.ID, Message: p} })
		if m := s.get(c, "a", "\xff"); fmt.Sprintf("%+v", m.Message) != fmt.Sprintf("%+v", p) {
			s.Errorf("%+v, not %+v", m.Message, p)
		}
	}
}

func overlapping(s *scene) {
	c := s.client("c")
	s.sub(c, 2, "a/#")
	s.sub(c, 0, "a/+")
	s.sub(c, 1, "a/b")
	s.sub(c, 0, "+/b", "#")
	pub := s.client("pub")
	for qos := range packet.QoS(3) {
		s.put(pub, "a/b", "x", qos)
		if m := s.get(c, "a/b", "x"); m.QoS != qos {
			s.Errorf("%+v", m)
		}
	}
	s.put(pub, "b/b", "x", 2)
	if m := s.get(c, "b/b", "x"); m.QoS != 0 {
		s.Errorf("%+v", m)
	}
	s.quiet(c)
}

func subscriptionIDs(s *scene) {
	c := s.client("c")
	sub := func(id uint32, filter string, qos packet.QoS) {
		c.send(&packet.Subscribe{ID: 1, SubscriptionID: id, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}})
		next[*packet.Suback](c)
	}
	sub(1, s.topic("a/+"), 0)
	sub(268_435_455, s.topic("a/#"), 2)
	sub(0, s.topic("+/b"), 1)
	pub := s.client("pub")
	ids := func(want ...uint32) {
		s.Helper()
		for qos := range packet.QoS(3) {
			s.put(pub, "a/b", "x", qos)
			m := s.get(c, "a/b", "x")
			slices.Sort(m.SubscriptionIDs)
			if !slices.Equal(m.SubscriptionIDs, want) {
				s.Errorf("QoS %d: %v, not %v", qos, m.SubscriptionIDs, want)
			}
		}
	}
	ids(1, 268_435_455)
	sub(7, s.topic("a/+"), 0) // in place of the first
	ids(7, 268_435_455)
	sub(0, s.topic("a/#"), 2)
	ids(7)
	// Another copy, of a shared one, has its own.
	sub(9, "$share/g/"+s.topic("a/b"), 1)
	for qos := range packet.QoS(2) {
		s.put(pub, "a/b", "x", qos)
		var got []uint32
		for range 2 {
			got = append(got, s.get(c, "a/b", "x").SubscriptionIDs...)
		}
		if slices.Sort(got); !slices.Equal(got, []uint32{7, 9}) {
			s.Errorf("QoS %d: %v", qos, got)
		}
	}
}

func noLocal(s *scene) {
	c, other := s.client("c"), s.client("other")
	for _, p := range []*peer{c, other} {
		p.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: s.topic("a"), QoS: 2, NoLocal: true}}})
		next[*packet.Suback](p)
	}
	for qos := range packet.QoS(3) {
		s.put(c, "a", "x", qos)
		s.get(other, "a", "x")
	}
	s.quiet(c)
	s.put(other, "a", "y", 0)
	s.get(c, "a", "y")
}

func suback(s *scene) {
	c := s.client("c")
	c.send(&packet.Subscribe{ID: 0xFFFF, Subscriptions: []packet.Subscription{{Filter: s.topic("0"), QoS: 0}, {Filter: "$SYS/#", QoS: 1}, {Filter: s.topic("1"), QoS: 1}, {Filter: s.topic("2"), QoS: 2}, {Filter: s.topic("2"), QoS: 2}}})
	refusal := packet.NotAuthorized
	if s.v == packet.V311 {
		refusal = packet.UnspecifiedError
	}
	if a := next[*packet.Suback](c); a.ID != 0xFFFF || !slices.Equal(a.Codes, []packet.Code{0, refusal, 1, 2, 2}) {
		s.Errorf("%+v", a)
	}
	pub := s.client("pub")
	for granted := range packet.QoS(3) {
		for published := range packet.QoS(3) {
			s.put(pub, fmt.Sprint(granted), "x", published)
			if m := s.get(c, fmt.Sprint(granted), "x"); m.QoS != min(granted, published) {
				s.Errorf("%d of %d: %+v", published, granted, m)
			}
		}
	}
	s.put(pub, "3", "x", 1)
	s.quiet(c)
}

func again(s *scene) {
	pub := s.client("pub")
	s.put(pub, "a", "r", 1, retain)
	c := s.client("c")
	s.sub(c, 1, "a")
	s.get(c, "a", "r")
	const many = 300
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range many {
			s.put(pub, "a", fmt.Sprint(i), 1)
		}
	}()
	for range 3 { // while messages come
		c.send(&packet.Subscribe{ID: 9, Subscriptions: []packet.Subscription{{Filter: s.topic("a"), QoS: 2}}})
	}
	subacks, kept, got := 0, 0, 0
	for got < many || subacks < 3 || kept < 3 {
		if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			s.Fatal(err)
		}
		p, err := c.r.Next()
		if err != nil {
			s.Fatalf("%d, %d, %d: %v", got, subacks, kept, err)
		}
		switch p := p.(type) {
		case *packet.Suback:
			subacks++
		case *packet.Publish:
			switch {
			case p.Retain:
				kept++
			case string(p.Payload) == fmt.Sprint(got):
				got++
			default:
				s.Fatalf("%q, not %d", p.Payload, got)
			}
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
		}
	}
	<-done
}

func unsubscribe(s *scene) {
	c, _ := s.lasting("c")
	s.sub(c, 2, "a/+", "b")
	pub := s.client("pub")
	s.put(pub, "a/1", "1", 1)
	s.put(pub, "a/1", "2", 2)
	one, two := s.peek(c, "a/1", "1"), s.peek(c, "a/1", "2")
	c.send(&packet.Unsubscribe{ID: 9, Filters: []string{s.topic("a/1"), s.topic("a/+"), s.topic("a/+"), s.topic("a/#"), s.topic("B")}})
	a := next[*packet.Unsuback](c)
	if a.ID != 9 || s.v == packet.V5 && !slices.Equal(a.Codes, []packet.Code{0x11, 0, 0x11, 0x11, 0x11}) {
		s.Errorf("%+v", a)
	}
	for qos := range packet.QoS(3) {
		s.put(pub, "a/1", "no", qos)
	}
	s.put(pub, "b", "still", 1)
	s.get(c, "b", "still")
	// What was begun is finished, also after a while.
	s.finish(c, two)
	c.gone()
	c, _ = s.lasting("c")
	if m := s.get(c, "a/1", "1"); m.ID != one.ID || !m.Dup {
		s.Errorf("%+v", m)
	}
	s.quiet(c)
	c.send(&packet.Unsubscribe{ID: 10, Filters: []string{"nothing"}})
	if a := next[*packet.Unsuback](c); a.ID != 10 {
		s.Errorf("%+v", a)
	}
}

func serverDisconnects(s *scene) {
	c := s.client("c")
	c.raw([]byte{0x82, 6, 0x12, 0x34, 0, 0, 1, 0x50, 0xC0, 0}) // and a PINGREQ that is not answered
	if s.v == packet.V311 {
		c.raw(nil)
	}
	s.told(c, packet.MalformedPacket)
}

func flowControl(s *scene) {
	sub, _ := s.as("sub", packet.Connect{CleanStart: true, ReceiveMaximum: 1})
	s.sub(sub, 2, "a")
	s.sub(sub, 0, "live")
	pub := s.client("pub")
	for i := range 5 {
		s.put(pub, "a", fmt.Sprint(i), 1+packet.QoS(i%2))
	}
	for i := range 5 {
		m := s.peek(sub, "a", fmt.Sprint(i))
		// Everything else goes on, and nothing more comes.
		s.put(pub, "live", "x", 0)
		s.get(sub, "live", "x")
		sub.well()
		s.finish(sub, m)
	}
}

func tooMany(s *scene) {
	c, ack := s.as("c", packet.Connect{CleanStart: true})
	for id := uint16(1); id <= ack.ReceiveMaximum; id++ {
		c.send(publish(s.topic("a"), "", 2, id))
		s.expect(c, packet.PUBREC, id)
	}
	c.send(publish(s.topic("a"), "", 2, 1)) // this is no other
	s.expect(c, packet.PUBREC, 1)
	c.send(publish(s.topic("a"), "", 1, ack.ReceiveMaximum+1))
	s.told(c, packet.ReceiveMaximumExceeded)
}

func order(s *scene) {
	c, pub := s.client("c"), s.client("pub")
	s.sub(c, 2, "a")
	const many = 300
	for qos := range packet.QoS(3) {
		go func() {
			for i := range many {
				pub.send(publish(s.topic("a"), fmt.Sprint(i), qos, uint16(i+1)*uint16(min(qos, 1))))
			}
		}()
		owed := make(chan error, 1)
		go func() { // the acknowledgements are in order, too
			for i := range many * int(min(qos, 1)) {
				p, err := pub.r.Next()
				if a, ok := p.(*packet.Ack); err != nil || !ok || a.ID != uint16(i+1) {
					owed <- fmt.Errorf("%d: %+v %v", i, p, err)
					return
				}
			}
			owed <- nil
		}()
		for got, finished := 0, 0; got < many || finished < many*int(qos/2); {
			if err := c.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
				s.Fatal(err)
			}
			p, err := c.r.Next()
			if err != nil {
				s.Fatal(err)
			}
			switch p := p.(type) {
			case *packet.Publish:
				if string(p.Payload) != fmt.Sprint(got) || p.QoS != qos {
					s.Fatalf("%+v, not %d", p, got)
				}
				got++
				if qos > 0 {
					c.send(&packet.Ack{Kind: packet.PUBACK + packet.Type(qos-1), ID: p.ID})
				}
			case *packet.Ack:
				finished++
				c.send(&packet.Ack{Kind: packet.PUBCOMP, ID: p.ID})
			}
		}
		if err := <-owed; err != nil {
			s.Fatal(err)
		}
		for i := range many * int(qos/2) {
			pub.send(&packet.Ack{Kind: packet.PUBREL, ID: uint16(i + 1)})
			s.expect(pub, packet.PUBCOMP, uint16(i+1))
		}
	}
	large := strings.Repeat("0123456789abcdef", 60_000)
	s.put(pub, "a", large, 1)
	s.get(c, "a", large)
}

func dollar(s *scene) {
	c, pub := s.client("c"), s.client("pub")
	c.subscribe(1, "#", "+/"+s.id)
	for qos := range packet.QoS(3) {
		p := publish("$mine/"+s.id, "x", qos, 5*uint16(min(qos, 1)))
		pub.send(p)
		if qos > 0 {
			next[*packet.Ack](pub)
		}
	}
	pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 5})
	next[*packet.Ack](pub)
	s.put(pub, "last", "x", 1)
	for { // after what is retained of others
		m := next[*packet.Publish](c)
		if m.QoS > 0 {
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
		if m.Topic[0] == '$' {
			s.Errorf("%s came", m.Topic)
		}
		if string(m.Topic) == s.topic("last") {
			break
		}
	}
	named := s.client("named")
	named.subscribe(1, "$mine/#")
	pub.send(publish("$mine/"+s.id, "y", 1, 5))
	s.expect(pub, packet.PUBACK, 5)
	if m := next[*packet.Publish](named); string(m.Payload) != "y" {
		s.Errorf("%+v", m)
	}
	// What is not permitted is answered, whatever the answer is.
	for _, topic := range []string{"$SYS/x", "$JS/API/INFO", "$share/g/x"} {
		for qos := packet.QoS(1); qos <= 2; qos++ {
			pub.send(publish(topic, "x", qos, 6))
			if a := next[*packet.Ack](pub); a.ID != 6 || a.Code.Failed() != (s.v == packet.V5) {
				s.Errorf("%s: %+v", topic, a)
			}
		}
		pub.send(&packet.Ack{Kind: packet.PUBREL, ID: 6})
		next[*packet.Ack](pub)
	}
}

func topics(s *scene) {
	names := []string{"a", "A", "/a", "a/", "a//b", "/", "//", " ", "a b", ".", "a.b", "*", ">", "a*", "\ufeff", "\ufeffa", "e\u0301", "\u00e9", "\t", "\x7f", "\U0010FFFF", "$", "a/$b", strings.Repeat("x", 1000)}
	pub := s.client("pub")
	for _, name := range names {
		c := s.client("c")
		s.sub(c, 1, name)
		for _, other := range names {
			s.put(pub, other, other, 0)
			s.put(pub, other, other, 1)
		}
		got := map[packet.QoS]bool{}
		for range 2 {
			got[s.get(c, name, name).QoS] = true
		}
		if len(got) != 2 {
			s.Errorf("%q: %v", name, got)
		}
		c.well()
	}
	c := s.client("c")
	s.sub(c, 0, "+/b/#")
	for _, name := range []string{"a", "a/b", "a/b/c", "/b", "b/a", "a/b/", "x/b//y"} {
		s.put(pub, name, name, 0)
	}
	want := map[string]bool{"a/b": true, "a/b/c": true, "/b": true, "a/b/": true, "x/b//y": true}
	for range len(want) {
		m := next[*packet.Publish](c)
		if !want[string(m.Payload)] {
			s.Errorf("%s", m.Topic)
		}
		delete(want, string(m.Payload))
	}
	s.quiet(c)
}

func shared(s *scene) {
	pub := s.client("pub")
	s.put(pub, "a", "retained", 1, retain)
	c := s.client("c")
	for i, group := range []string{"one", "two"} {
		c.subscribe(packet.QoS(i), "$share/"+group+s.id+"/"+s.topic("a"))
	}
	s.quiet(c) // of what is retained
	for qos := range packet.QoS(3) {
		s.put(pub, "a", "x", qos)
		var got []packet.QoS
		for range 2 {
			got = append(got, s.get(c, "a", "x").QoS)
		}
		if slices.Sort(got); !slices.Equal(got, []packet.QoS{0, min(1, qos)}) {
			s.Errorf("QoS %d came as %v", qos, got)
		}
	}
	// What was stored until now has passed the node when this one has.
	marker := s.client("marker")
	s.sub(marker, 1, "marker")
	s.put(pub, "marker", "here", 1)
	s.get(marker, "marker", "here")
	s.sub(c, 1, "a") // and what is retained, for the plain one
	s.get(c, "a", "retained")
	s.put(pub, "a", "y", 1)
	for range 3 {
		s.get(c, "a", "y")
	}
	s.quiet(c)
	if s.v != packet.V5 {
		return
	}
	// Who refuses has had it.
	s.client("c")
	group := "$share/three" + s.id + "/" + s.topic("b")
	members := []*peer{s.client("m1"), s.client("m2")}
	for _, m := range members {
		m.subscribe(2, group)
	}
	refusals := 0
	for i := range 8 {
		s.put(pub, "b", fmt.Sprint(i), packet.QoS(1+i%2))
		m, from := either(s, members)
		refusals++
		kind := packet.PUBACK
		if m.QoS == 2 {
			kind = packet.PUBREC
		}
		members[from].send(&packet.Ack{Kind: kind, ID: m.ID, Code: packet.UnspecifiedError})
	}
	for _, m := range members {
		s.quiet(m)
	}
}

// either is the message that one of the members gets.
func either(s *scene, members []*peer) (m packet.Publish, from int) {
	s.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); {
		for i, p := range members {
			if err := p.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
				s.Fatal(err)
			}
			if got, err := p.r.Next(); err == nil {
				m, ok := got.(*packet.Publish)
				if !ok {
					s.Fatalf("%+v", got)
				}
				return *m, i
			}
		}
	}
	s.Fatal("nobody got it")
	return m, 0
}

func sharedAway(s *scene) {
	group := "$share/g" + s.id + "/" + s.topic("a")
	pub := s.client("pub")
	c, _ := s.lasting("c")
	c.subscribe(2, group)
	s.put(pub, "a", "1", 2)
	one := s.peek(c, "a", "1")
	other := s.client("other")
	other.subscribe(2, group)
	c.gone()
	s.quiet(other) // it is c's
	c, _ = s.lasting("c")
	if m := s.peek(c, "a", "1"); m.ID != one.ID || !m.Dup {
		s.Errorf("%+v", m)
	}
	if s.v == packet.V5 {
		c.send(&packet.Disconnect{SessionExpiry: new(uint32(0))})
	} else {
		c.gone()
		s.bye(s.client("c"))
	}
	s.quiet(other) // and nobody else's
	s.put(pub, "a", "2", 2)
	s.get(other, "a", "2")
}

func authentication(s *scene) {
	for _, data := range [][]byte{nil, []byte("x")} {
		p, ack := s.h.connect(s.T, &packet.Connect{Version: s.v, ClientID: s.id + "c", CleanStart: true, AuthMethod: "SCRAM-SHA-256", AuthData: data})
		if ack.Code != packet.BadAuthenticationMethod || ack.AuthMethod != "" || p.end() != nil {
			s.Errorf("%+v", ack)
		}
	}
	for _, code := range []packet.Code{packet.Reauthenticate, packet.ContinueAuthentication} {
		c, ack := s.as("c", packet.Connect{CleanStart: true})
		if ack.AuthMethod != "" || ack.AuthData != nil {
			s.Errorf("%+v", ack)
		}
		c.send(&packet.Auth{Code: code, Method: "SCRAM-SHA-256"})
		s.told(c, packet.ProtocolError)
	}
}

func webSocket(s *scene) {
	transport := &http.Transport{TLSClientConfig: s.h.config}
	s.Cleanup(transport.CloseIdleConnections)
	dial := func() *websocket.Conn {
		ws, _, err := websocket.Dial(within(s.T), "https://"+s.h.Addr("mqtt").String()+"/mqtt", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}, Subprotocols: []string{"other", "mqtt"}})
		if err != nil {
			s.Fatal(err)
		}
		s.Cleanup(func() { _ = ws.CloseNow() })
		ws.SetReadLimit(-1)
		if ws.Subprotocol() != "mqtt" {
			s.Errorf("the protocol is %q", ws.Subprotocol())
		}
		return ws
	}
	ws := dial()
	connect, err := (&packet.Connect{Version: s.v, ClientID: s.id + "c", CleanStart: true}).Append(nil, s.v, 0)
	if err != nil {
		s.Fatal(err)
	}
	for _, b := range connect { // a frame for each byte
		if err := ws.Write(within(s.T), websocket.MessageBinary, []byte{b}); err != nil {
			s.Fatal(err)
		}
	}
	conn := websocket.NetConn(within(s.T), ws, websocket.MessageBinary)
	r := packet.NewReader(conn, packet.Server, 4096)
	r.Version, r.Maximum = s.v, 1<<20
	c := &peer{s.T, conn, r, s.v}
	next[*packet.Connack](c)
	s.sub(c, 1, "a")
	// One frame with more than the largest packet, and the begin of another.
	var frame []byte
	for i := range 5 {
		if frame, err = publish(s.topic("a"), strings.Repeat("x", 500_000), 1, uint16(i+1)).Append(frame, s.v, 0); err != nil {
			s.Fatal(err)
		}
	}
	c.raw(append(frame, 0xC0))
	c.raw([]byte{0})
	acks, pongs, got := 0, 0, 0
	for acks < 5 || got < 5 || pongs < 1 {
		p, err := r.Next()
		if err != nil {
			s.Fatal(err)
		}
		switch p := p.(type) {
		case *packet.Ack:
			acks++
		case *packet.Pingresp:
			pongs++
		case *packet.Publish:
			got++
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: p.ID})
		}
	}
	if err := ws.Write(within(s.T), websocket.MessageText, []byte("\xc0\x00")); err != nil {
		s.Fatal(err)
	}
	if p, err := r.Next(); err == nil && bytes.HasPrefix([]byte(p.Type().String()), []byte("PING")) {
		s.Errorf("text was taken: %+v", p)
	} else if err == nil {
		_ = c.end()
	}
}
