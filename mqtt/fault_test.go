package mqtt_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// well checks that a client is served as if nobody had done anything.
func (p *peer) well() {
	p.t.Helper()
	p.send(&packet.Pingreq{})
	next[*packet.Pingresp](p)
}

// TestLongTexts has topics that are longer than a subject can be: they are refused,
// and nobody else notices.
func TestLongTexts(t *testing.T) {
	h := start(t)
	long := strings.Repeat("x", 5000)
	well, _ := h.connect(t, &packet.Connect{ClientID: "well", CleanStart: true})
	well.subscribe(1, "#")
	_, ack := h.connect(t, &packet.Connect{ClientID: "will", CleanStart: true, Will: &packet.Will{Message: packet.Message{Topic: []byte(long)}}})
	if ack.Code != packet.TopicNameInvalid {
		t.Errorf("a long will topic: %v", ack.Code)
	}
	// Whom nobody knows gets no memory for as much as a CONNECT may have.
	stranger := h.dial(t, packet.V5)
	connect, err := (&packet.Connect{Version: packet.V5, ClientID: strings.Repeat("c", 16<<10), CleanStart: true}).Append(nil, packet.V5, 0)
	if err != nil {
		t.Fatal(err)
	}
	stranger.Write(connect) // it may be closed before all is written
	if p, err := stranger.r.Next(); err == nil {
		t.Errorf("a long CONNECT: %+v", p)
	}
	c, _ := h.connect(t, &packet.Connect{ClientID: strings.Repeat("c", 16<<10-100), CleanStart: true, SessionExpiry: 60})
	c.send(publish(long, "", 1, 1))
	if a := next[*packet.Ack](c); a.Code != packet.TopicNameInvalid {
		t.Errorf("a long topic: %v", a.Code)
	}
	c.send(&packet.Subscribe{ID: 2, Subscriptions: []packet.Subscription{{Filter: long, QoS: 1}, {Filter: "a/" + long}}})
	if s := next[*packet.Suback](c); s.Codes[0] != packet.TopicFilterInvalid || s.Codes[1] != packet.TopicFilterInvalid {
		t.Errorf("long filters: %v", s.Codes)
	}
	// A response topic is only handed on.
	for _, response := range []string{long, "$JS/ACK/x", "_R_/x", strings.Repeat("y", 3000)} {
		p := publish(strings.Repeat("t", 2500), response, 1, 3)
		p.ResponseTopic = []byte(response)
		c.send(p)
		if a := next[*packet.Ack](c); a.Code.Failed() {
			t.Errorf("a response topic of %d bytes: %v", len(response), a.Code)
		}
		m := next[*packet.Publish](well)
		if !bytes.Equal(m.ResponseTopic, p.ResponseTopic) {
			t.Errorf("a response topic of %d bytes came as one of %d", len(response), len(m.ResponseTopic))
		}
		well.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		p.QoS, p.ID = 0, 0
		c.send(p)
		if m := next[*packet.Publish](well); !bytes.Equal(m.ResponseTopic, p.ResponseTopic) {
			t.Errorf("a response topic of %d bytes came as one of %d", len(response), len(m.ResponseTopic))
		}
	}
	c.well()
	old, _ := h.connect(t, &packet.Connect{Version: packet.V311, ClientID: "old", CleanStart: true})
	old.send(publish(long, "", 1, 1))
	if err := old.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if p, err := old.r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("3.1.1, a long topic: %+v %v", p, err)
	}
	well.well()
}

// TestManyRetained has more retained than waits for a client: it gets all of it.
func TestManyRetained(t *testing.T) {
	h := start(t, func(o *fleetbus.Options) { protocol(o).Pending = 1 << 20 })
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	const many = 100 // 10 MB are retained
	for i := range uint16(many) {
		p := publish("keep/"+fmt.Sprintf("%02d", i), strings.Repeat("x", 100_000), 1, i+1)
		p.Retain = true
		pub.send(p)
		if a := next[*packet.Ack](pub); a.Code.Failed() {
			t.Fatal(a.Code)
		}
	}
	for _, qos := range []packet.QoS{0, 1} {
		sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", CleanStart: true})
		sub.subscribe(qos, "keep/#")
		for i := range many {
			m := next[*packet.Publish](sub)
			if want := "keep/" + fmt.Sprintf("%02d", i); string(m.Topic) != want || !m.Retain {
				t.Fatalf("QoS %d: %s, not %s", qos, m.Topic, want)
			}
			if qos > 0 {
				sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
			}
		}
	}
}

// TestFewAtOnce has a client come back with a smaller Receive Maximum.
func TestFewAtOnce(t *testing.T) {
	h := start(t)
	sub, _ := h.connect(t, &packet.Connect{ClientID: "few", SessionExpiry: 60})
	sub.subscribe(2, "few/#")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	var ids []uint16
	for i := range uint16(6) {
		pub.send(publish("few/x", fmt.Sprintf("%02d", i), 1+packet.QoS(i%2), i+1))
		next[*packet.Ack](pub)
		ids = append(ids, next[*packet.Publish](sub).ID)
	}
	sub.gone()
	sub, ack := h.connect(t, &packet.Connect{ClientID: "few", SessionExpiry: 60, ReceiveMaximum: 2})
	if !ack.SessionPresent {
		t.Fatal("the session is gone")
	}
	var under []packet.Publish // as many as it may be, and no more until one is finished
	for got := 0; got < len(ids) || len(under) > 0; {
		if len(under) < min(2, len(ids)-got+len(under)) {
			m := *next[*packet.Publish](sub)
			if want := fmt.Sprintf("%02d", got); string(m.Payload) != want || m.ID != ids[got] || !m.Dup {
				t.Errorf("%+v, not %s", m, want)
			}
			under = append(under, m)
			got++
			continue
		}
		sub.well() // nothing else comes before it
		m := under[0]
		under = under[1:]
		if m.QoS == 1 {
			sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
			continue
		}
		sub.send(&packet.Ack{Kind: packet.PUBREC, ID: m.ID})
		next[*packet.Ack](sub)
		sub.send(&packet.Ack{Kind: packet.PUBCOMP, ID: m.ID})
	}
}

// TestHearsAll has a client that hears everything, what the nodes tell each other
// included: others connect as fast as ever.
func TestHearsAll(t *testing.T) {
	h := start(t)
	five := func() time.Duration {
		began := time.Now()
		for range 5 {
			h.connect(t, &packet.Connect{CleanStart: true})
		}
		return time.Since(began)
	}
	before := five()
	all := h.Dial("acme", "all")
	if _, err := all.SubscribeSync(">"); err != nil {
		t.Fatal(err)
	}
	if err := all.Flush(); err != nil {
		t.Fatal(err)
	}
	if took := five(); took > 4*time.Second+4*before {
		t.Errorf("five connects took %v, and %v before", took, before)
	}
}

// TestEmptyTopic has somebody publish on the bus what would be an empty topic, as clients of
// AMQP do: clients of MQTT are not sent it, which would end their connections.
func TestEmptyTopic(t *testing.T) {
	h := start(t)
	for _, v := range []packet.Version{packet.V5, packet.V311} {
		c, _ := h.connect(t, &packet.Connect{Version: v, ClientID: fmt.Sprint("all", v), CleanStart: true})
		c.subscribe(1, "#")
		bus := h.Dial("acme", fmt.Sprint("bus", int(v)))
		for _, subject := range []string{"/", "after"} {
			if err := bus.Publish(subject, []byte(subject)); err != nil {
				t.Fatal(err)
			}
		}
		if m := next[*packet.Publish](c); string(m.Topic) != "after" {
			t.Errorf("%v: %q came", v, m.Topic)
		}
		c.well()
	}
}

// TestLongRun has a client use many packet identifiers: what is stored of its
// session stays small.
func TestLongRun(t *testing.T) {
	h := start(t)
	c, _ := h.connect(t, &packet.Connect{ClientID: "c", SessionExpiry: 60})
	const many = 1000
	for i := range uint16(many) {
		c.send(publish("a", "x", 2, i+1))
		if a := next[*packet.Ack](c); a.Kind != packet.PUBREC || a.Code.Failed() {
			t.Fatalf("%+v", a)
		}
		c.send(&packet.Ack{Kind: packet.PUBREL, ID: i + 1})
		next[*packet.Ack](c)
	}
	if size := recordSize(t, h); size > 4<<10 {
		t.Errorf("the record of a session has %d bytes", size)
	}
	// The identifiers are good for other messages.
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", CleanStart: true})
	sub.subscribe(0, "a")
	for _, payload := range []string{"y", "z"} {
		c.send(publish("a", payload, 2, 7))
		next[*packet.Ack](c)
		c.send(&packet.Ack{Kind: packet.PUBREL, ID: 7})
		next[*packet.Ack](c)
		if m := next[*packet.Publish](sub); string(m.Payload) != payload {
			t.Errorf("%+v", m)
		}
	}
}

// recordSize is the size of the largest record of a session.
func recordSize(t *testing.T, h *house) int {
	t.Helper()
	js, err := jetstream.New(h.Dial("acme", "app"))
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(within(t), "MQTT5_SESSIONS")
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(within(t), jetstream.WithSubjectFilter(">"))
	if err != nil {
		t.Fatal(err)
	}
	size := 0
	for subject := range info.State.Subjects {
		msg, err := stream.GetLastMsgForSubject(within(t), subject)
		if err != nil {
			t.Fatal(err)
		}
		size = max(size, len(msg.Data))
	}
	return size
}

// TestPings has a client ask without end and read nothing.
func TestPings(t *testing.T) {
	h := start(t, func(o *fleetbus.Options) { protocol(o).Pending = 1 << 10 })
	c := h.dial(t, packet.V5)
	c.send(&packet.Connect{Version: packet.V5, CleanStart: true})
	next[*packet.Connack](c)
	if err := c.SetWriteDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	pings := bytes.Repeat([]byte{0xC0, 0}, 32<<10)
	for sent := 0; ; sent += len(pings) {
		if _, err := c.Write(pings); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("it is still there after %d bytes", sent)
		} else if err != nil {
			break
		}
		if sent > 400<<20 {
			t.Fatalf("it may send %d bytes and read none", sent)
		}
	}
	other, _ := h.connect(t, &packet.Connect{ClientID: "other", CleanStart: true})
	other.well()
}

// protocol is that of the listener for MQTT.
func protocol(o *fleetbus.Options) *mqtt.Protocol {
	for _, l := range o.Listeners {
		if p, ok := l.Protocol.(*mqtt.Protocol); ok {
			return p
		}
	}
	panic("there is no listener for MQTT")
}

// small leaves an account a sixteenth of what it may have: 4 MiB for messages that wait,
// and as much for what is retained; and 1 MiB for what waits to be written to a client.
func small(o *fleetbus.Options) {
	p := protocol(o)
	p.MaxStored, p.MaxRetained, p.Pending = 4<<20, 4<<20, 1<<20
}

// TestFull fills what an account may have waiting: the publisher is told, nobody who
// is slow or away loses what was acknowledged, and when it is consumed there is room.
func TestFull(t *testing.T) {
	h := start(t, small)
	const few = 4
	away, _ := h.connect(t, &packet.Connect{ClientID: "away", SessionExpiry: 600})
	away.subscribe(1, "first", "never")
	slow, _ := h.connect(t, &packet.Connect{ClientID: "slow", CleanStart: true, KeepAlive: 300, ReceiveMaximum: few})
	slow.subscribe(1, "full")
	deaf, _ := h.connect(t, &packet.Connect{ClientID: "deaf", CleanStart: true, KeepAlive: 300})
	deaf.subscribe(1, "full")
	idle, _ := h.connect(t, &packet.Connect{ClientID: "idle", SessionExpiry: 600})
	idle.subscribe(1, "idle")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	pub.send(publish("first", "x", 1, 1))
	next[*packet.Ack](pub)
	next[*packet.Publish](away) // and it does not acknowledge it
	payload := strings.Repeat("x", 225_000)
	taken := 0
	text := func() string { return fmt.Sprint(taken, " ", payload) }
	// There is room for so many, and for what the slow client has: that is lost to
	// nobody if it leaves. And for some, of which the node has not heard yet.
	const most = 4<<20/225_000 + few + 5
	for told := false; !told; {
		pub.send(publish("full", text(), 1, 2))
		switch a := next[*packet.Ack](pub); {
		case a.Code == packet.QuotaExceeded:
			told = true
		case a.Code.Failed() || taken == most:
			t.Fatalf("%d: %v", taken, a.Code)
		default:
			taken++
		}
	}
	old, _ := h.connect(t, &packet.Connect{Version: packet.V311, ClientID: "old", CleanStart: true})
	if err := old.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for {
		old.send(publish("full", text(), 1, 1))
		p, err := old.r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if a, ok := p.(*packet.Ack); err != nil || !ok || a.Code.Failed() || taken == most {
			t.Fatalf("3.1.1 was told %+v, %v, after %d", p, err, taken)
		}
		taken++
	}
	for _, c := range []*peer{slow, deaf} {
		for i := range taken {
			m := next[*packet.Publish](c)
			if !strings.HasPrefix(string(m.Payload), fmt.Sprint(i, " x")) {
				t.Fatalf("got %q, not %d", clip(m.Payload), i)
			}
			c.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		}
	}
	away.send(&packet.Ack{Kind: packet.PUBACK, ID: 1})
	fleetbustest.Eventually(t, "room", func() error {
		pub.send(publish("full", payload, 1, 1))
		if a := next[*packet.Ack](pub); a.Code.Failed() {
			return errors.New(a.Code.String())
		}
		return nil
	})
}

// TestComeAndGo has a client come and go, in every way, while messages are
// published without a pause: it gets all of them.
func TestComeAndGo(t *testing.T) {
	h := start(t)
	connect := &packet.Connect{ClientID: "sub", SessionExpiry: 600}
	sub, _ := h.connect(t, connect)
	sub.subscribe(1, "a")
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	if err := pub.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	const many = 2000
	published := make(chan error, 1)
	go func() {
		for i := range uint16(many) {
			b, _ := publish("a", strconv.Itoa(int(i)), 1, i+1).Append(nil, pub.v, 0)
			if _, err := pub.Write(b); err != nil {
				published <- err
				return
			}
			p, err := pub.r.Next()
			if a, ok := p.(*packet.Ack); err != nil || !ok || a.Code.Failed() {
				published <- fmt.Errorf("%d: %+v %w", i, p, err)
				return
			}
		}
		published <- nil
	}()
	got := map[string]bool{}
	for n := 1; len(got) < many; n++ {
		m := next[*packet.Publish](sub)
		got[string(m.Payload)] = true
		sub.send(&packet.Ack{Kind: packet.PUBACK, ID: m.ID})
		if n%50 > 0 || len(got) == many {
			continue
		}
		old := sub
		switch n / 50 % 3 {
		case 0:
			old.gone()
		case 1:
			old.send(&packet.Disconnect{})
		}
		sub, _ = h.connect(t, connect)
		old.gone()
	}
	if err := <-published; err != nil {
		t.Fatal(err)
	}
}

// TestLastRetainedExpires has a node start when the last retained message is gone:
// there is nothing to wait for.
func TestLastRetainedExpires(t *testing.T) {
	h := start(t)
	pub, _ := h.connect(t, &packet.Connect{ClientID: "pub", CleanStart: true})
	stays, goes := publish("r/stays", "x", 1, 1), publish("r/goes", "y", 1, 2)
	stays.Retain, goes.Retain, goes.Expires, goes.Expiry = true, true, true, 1
	pub.send(stays, goes)
	next[*packet.Ack](pub)
	next[*packet.Ack](pub)
	js, err := jetstream.New(h.Dial("acme", "app"))
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Eventually(t, "one message", func() error {
		stream, err := js.Stream(within(t), "MQTT5_RETAINED")
		if err != nil {
			return err
		}
		if n := stream.CachedInfo().State.Msgs; n != 1 {
			return fmt.Errorf("there are %d", n)
		}
		return nil
	})
	h.Stop()
	h = &house{h.Restart(), h.config}
	sub, _ := h.connect(t, &packet.Connect{ClientID: "sub", CleanStart: true})
	sub.subscribe(1, "r/#")
	if m := next[*packet.Publish](sub); string(m.Payload) != "x" || !m.Retain {
		t.Errorf("%+v", m)
	}
}
