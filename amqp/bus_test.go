package amqp

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/packets"
	"github.com/eclipse/paho.golang/paho"
	"github.com/nats-io/nats.go"
	"github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt"
)

// crossing is a server that speaks AMQP and MQTT, and its clients.
func crossing(t *testing.T) *house {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	p := &Protocol{Logger: log, Options: Options{Passwords: true, Account: "acme"}}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme", "other"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: p},
			fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{Logger: log}})
	})
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})}
	return &house{Server: s, p: p, config: config}
}

// device is an MQTT client.
func (h *house) device(t *testing.T) (*paho.Client, <-chan *paho.Publish) {
	t.Helper()
	conn, err := tls.Dial("tcp", h.Addr("mqtt").String(), h.config)
	if err != nil {
		t.Fatal(err)
	}
	heard := make(chan *paho.Publish, 64)
	c := paho.NewClient(paho.ClientConfig{Conn: packets.NewThreadSafeConn(conn), OnPublishReceived: []func(paho.PublishReceived) (bool, error){
		func(p paho.PublishReceived) (bool, error) { heard <- p.Packet; return true, nil },
	}})
	if _, err := c.Connect(within(t), &paho.Connect{ClientID: "device", KeepAlive: 30, CleanStart: true}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Disconnect(&paho.Disconnect{}) })
	return c, heard
}

// bound makes a queue that is bound to amq.topic, and consumes from it.
func bound(t *testing.T, ch *amqp091.Channel, queue string, keys ...string) <-chan amqp091.Delivery {
	t.Helper()
	declare(t, ch, queue)
	for _, key := range keys {
		if err := ch.QueueBind(queue, key, topicExchange, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	return consumed(t, ch, queue)
}

// TestTopicIsSubjects has amq.topic be what NATS and MQTT clients of the account publish
// and hear, with what messages have beside their bodies.
func TestTopicIsSubjects(t *testing.T) {
	h := crossing(t)
	ch := h.channel(t)
	nc := h.Dial("acme", "app")
	device, mqttHeard := h.device(t)
	if _, err := device.Subscribe(within(t), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "a/#", QoS: 1}}}); err != nil {
		t.Fatal(err)
	}
	heard := make(chan *nats.Msg, 64)
	if _, err := nc.ChanSubscribe("a.>", heard); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	// Each of the keys takes the same messages, and one comes once.
	d := bound(t, ch, "q", "a.*", "a.#", "#", "*.b", "a.b")

	in := amqp091.Publishing{
		Headers: amqp091.Table{"site": "eu", "n": int32(7)}, ContentType: "text/plain", ContentEncoding: "gzip", CorrelationId: "c1", Expiration: "60000",
		MessageId: "id", Timestamp: time.Unix(1e9, 0), Type: "t", AppId: "app", Priority: 3, DeliveryMode: 2, UserId: "device", Body: []byte("amqp"),
	}
	send(t, ch, topicExchange, "a.b", in)
	if got := next(t, d); string(got.Body) != "amqp" || got.UserId != "device" || got.Headers["n"] != int32(7) || got.Exchange != topicExchange || got.RoutingKey != "a.b" {
		t.Errorf("the queue got %+v", got)
	}
	m := next(t, heard)
	if m.Subject != "a.b" || string(m.Data) != "amqp" || m.Header.Get("site") != "eu" || m.Header.Get("n") != "7" || m.Header.Get("Content-Type") != "text/plain" ||
		m.Header.Get("Content-Encoding") != "gzip" || m.Header.Get("Amqp-Message-Id") != "id" || m.Header.Get("Amqp-User-Id") != "device" || m.Header.Get("Amqp-Timestamp") != "1000000000" {
		t.Errorf("NATS heard %s %v %q", m.Subject, m.Header, m.Data)
	}
	p := next(t, mqttHeard)
	if p.Topic != "a/b" || string(p.Payload) != "amqp" || p.Properties.ContentType != "text/plain" || string(p.Properties.CorrelationData) != "c1" ||
		p.Properties.User.Get("site") != "eu" || p.Properties.User.Get("n") != "7" || p.Properties.MessageExpiry == nil || *p.Properties.MessageExpiry > 60 {
		t.Errorf("MQTT heard %+v %+v", p, p.Properties)
	}

	// The other way.
	from := &nats.Msg{Subject: "a.x", Data: []byte("nats"), Header: nats.Header{"Site": {"us"}, "Content-Type": {"a/b"}, "Amqp-Type": {"kind"}, "CC": {"q"}, "Amqp-User-Id": {"root"}}}
	if err := nc.PublishMsg(from); err != nil {
		t.Fatal(err)
	}
	got := next(t, d)
	if string(got.Body) != "nats" || got.RoutingKey != "a.x" || got.ContentType != "a/b" || got.Headers["Site"] != "us" || got.Type != "kind" || got.UserId != "" || len(got.Headers) != 1 {
		t.Errorf("of NATS it got %+v", got)
	}
	expiry := uint32(60)
	if _, err := device.Publish(within(t), &paho.Publish{Topic: "a/y.z", QoS: 1, Payload: []byte("mqtt"), Properties: &paho.PublishProperties{
		CorrelationData: []byte("c2"), ContentType: "c/d", MessageExpiry: &expiry, User: paho.UserProperties{{Key: "k", Value: "v"}}}}); err != nil {
		t.Fatal(err)
	}
	got = next(t, d)
	if string(got.Body) != "mqtt" || got.RoutingKey != "a.y/z" || got.CorrelationId != "c2" || got.ContentType != "c/d" || got.Headers["k"] != "v" || got.Expiration == "" {
		t.Errorf("of MQTT it got %+v", got)
	}

	// What is written in another way is the same address.
	send(t, ch, topicExchange, "a.y/z.", amqp091.Publishing{})
	if got := next(t, d); got.RoutingKey != "a.y/z." {
		t.Errorf("it came by %q", got.RoutingKey)
	}
	for _, want := range []string{"a.x", "a.y//z", "a.y//z./"} {
		if m := next(t, heard); m.Subject != want {
			t.Errorf("NATS heard %q, want %q", m.Subject, want)
		}
	}
	// What is stored and what is not have no order among them.
	var topics []string
	for range 3 {
		topics = append(topics, next(t, mqttHeard).Topic)
	}
	if slices.Sort(topics); !slices.Equal(topics, []string{"a/x", "a/y.z", "a/y.z/"}) {
		t.Errorf("MQTT heard %q", topics)
	}

	// Nobody who is bound no more hears it, and nobody hears of what comes back.
	for _, key := range []string{"a.#", "#", "a.b", "a.*"} {
		if err := ch.QueueUnbind("q", key, topicExchange, nil); err != nil {
			t.Fatal(err)
		}
	}
	for _, subject := range []string{"a.c", "a.b", "c", "d.b"} {
		if err := nc.Publish(subject, []byte(subject)); err != nil {
			t.Fatal(err)
		}
	}
	if got := bodies(t, d, 2); !slices.Equal(got, []string{"a.b", "d.b"}) {
		t.Errorf("bound by *.b it got %v", got)
	}
	if q, err := ch.QueueDeclarePassive("q", false, false, false, false, nil); err != nil || q.Messages != 0 {
		t.Errorf("there is more: %+v, %v", q, err)
	}
}

// TestAnswersCross has questions be asked and answered over AMQP, NATS and MQTT.
func TestAnswersCross(t *testing.T) {
	h := crossing(t)
	ch := h.channel(t)
	nc := h.Dial("acme", "app")

	// NATS asks.
	d := bound(t, ch, "service", "sum.*")
	asked := make(chan *nats.Msg, 1)
	go func() {
		m, err := nc.RequestWithContext(within(t), "sum.two", []byte("1+1"))
		if err != nil {
			t.Error(err)
			m = &nats.Msg{}
		}
		asked <- m
	}()
	q := next(t, d)
	if len(q.ReplyTo) == 0 || len(q.ReplyTo) > maxShort {
		t.Fatalf("the answer goes to %q", q.ReplyTo)
	}
	confirms := make(chan amqp091.Confirmation, 1)
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	ch.NotifyPublish(confirms)
	if err := ch.PublishWithContext(t.Context(), "", q.ReplyTo, true, false, amqp091.Publishing{Body: []byte("2")}); err != nil {
		t.Fatal(err)
	}
	if m := next(t, asked); string(m.Data) != "2" {
		t.Errorf("NATS was answered %q", m.Data)
	}
	if c := next(t, confirms); !c.Ack {
		t.Error("the answer was refused")
	}
	// Who makes up where an answer goes reaches nobody.
	returned := ch.NotifyReturn(make(chan amqp091.Return, 1))
	forged := busAnswer + strings.Repeat("A", 22) + ".a.b"
	if err := ch.PublishWithContext(t.Context(), "", forged, true, false, amqp091.Publishing{}); err != nil {
		t.Fatal(err)
	}
	if r := next(t, returned); r.RoutingKey != forged {
		t.Errorf("returned is %+v", r)
	}

	// AMQP asks NATS, which knows nothing of correlation, by a queue of its own and by none.
	if _, err := nc.Subscribe("double.>", func(m *nats.Msg) { _ = m.Respond(append(m.Data, m.Data...)) }); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	other := h.channel(t)
	answers, err := other.Consume(replyTo, "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	send(t, other, topicExchange, "double.it", amqp091.Publishing{ReplyTo: replyTo, CorrelationId: "first", Body: []byte("ab")})
	if a := next(t, answers); string(a.Body) != "abab" || a.CorrelationId != "first" {
		t.Errorf("the answer is %+v", a)
	}
	declare(t, other, "mine")
	mine := consumed(t, other, "mine")
	send(t, other, topicExchange, "double.it", amqp091.Publishing{ReplyTo: "mine", CorrelationId: "second", Body: []byte("c")})
	if a := next(t, mine); string(a.Body) != "cc" || a.CorrelationId != "second" {
		t.Errorf("the answer is %+v", a)
	}
	// Nobody answers without having been asked.
	var inbox string
	heard := make(chan *nats.Msg, 1)
	if _, err := nc.ChanSubscribe("look", heard); err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}
	send(t, other, topicExchange, "look", amqp091.Publishing{ReplyTo: "mine"})
	inbox = next(t, heard).Reply
	parts := strings.Split(inbox, ".")
	parts[len(parts)-2] = "-" + inSubject.EncodeToString([]byte("service"))
	if err := nc.Publish(strings.Join(parts, "."), []byte("forged")); err != nil {
		t.Fatal(err)
	}
	if err := nc.Publish(inbox, []byte("right")); err != nil {
		t.Fatal(err)
	}
	if a := next(t, mine); string(a.Body) != "right" {
		t.Errorf("the answer is %+v", a)
	}

	// MQTT asks, with correlation.
	device, told := h.device(t)
	if _, err := device.Subscribe(within(t), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "answers/me", QoS: 0}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := device.Publish(within(t), &paho.Publish{Topic: "sum/three", Payload: []byte("1+2"), Properties: &paho.PublishProperties{ResponseTopic: "answers/me", CorrelationData: []byte("third")}}); err != nil {
		t.Fatal(err)
	}
	q = next(t, d)
	send(t, ch, "", q.ReplyTo, amqp091.Publishing{CorrelationId: q.CorrelationId, Body: []byte("3")})
	if p := next(t, told); p.Topic != "answers/me" || string(p.Payload) != "3" || string(p.Properties.CorrelationData) != "third" {
		t.Errorf("MQTT was answered %+v", p)
	}
}

// TestTopicRights has who may not hear or say something on the bus be refused it by way of
// amq.topic, too.
func TestTopicRights(t *testing.T) {
	h := crossing(t)
	if _, err := h.Admin().AddRole(t.Context(), identity.Role{Name: "narrow", Permissions: identity.Permissions{
		Publish:   identity.Rule{Allow: []string{"amqp.>", "a.>"}},
		Subscribe: identity.Rule{Allow: []string{"amqp.>", "a.>"}, Deny: []string{"a.secret.>"}},
	}}); err != nil {
		t.Fatal(err)
	}
	h.config.Certificates = []tls.Certificate{h.Certificate(admin.UserRequest{Name: "acme/narrow", Role: "narrow"})}
	declare(t, h.channel(t), "q")
	bind := func(key string) func(*amqp091.Channel) error {
		return func(ch *amqp091.Channel) error { return ch.QueueBind("q", key, topicExchange, false, nil) }
	}
	for _, key := range []string{"#", "b", "*", "a.#", "a.*.*", "a.secret.x", "#.a"} {
		h.fails(t, 403, fmt.Sprintf("ACCESS_REFUSED - read access to topic '%s' in exchange 'amq.topic' in vhost '/' refused for user 'narrow'", key), bind(key))
	}
	for _, key := range []string{"a.*", "a.b.#", "a.secret"} {
		if err := bind(key)(h.channel(t)); err != nil {
			t.Errorf("%s: %v", key, err)
		}
	}
	says := func(key string) func(*amqp091.Channel) error {
		return func(ch *amqp091.Channel) error {
			closed := ch.NotifyClose(make(chan *amqp091.Error, 1))
			send(t, ch, topicExchange, key, amqp091.Publishing{})
			select {
			case err := <-closed:
				return err
			case <-time.After(time.Minute):
				return nil
			}
		}
	}
	h.fails(t, 403, "ACCESS_REFUSED - write access to topic 'b' in exchange 'amq.topic' in vhost '/' refused for user 'narrow'", says("b"))
	h.fails(t, 403, "", says("$SYS.x"))
	h.fails(t, 403, "", says("_INBOX.x"))
	for _, do := range []func(*amqp091.Channel) error{
		func(ch *amqp091.Channel) error { return ch.ExchangeBind(topicExchange, "", "amq.fanout", false, nil) },
		func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclare("x", "fanout", false, false, false, false, amqp091.Table{"alternate-exchange": topicExchange})
		},
		func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclare("dead", false, false, false, false, amqp091.Table{"x-dead-letter-exchange": topicExchange})
			return err
		},
	} {
		h.fails(t, 406, "", do)
	}
}

// TestTopicAfterRestart has a durable queue be bound to the bus after a restart.
func TestTopicAfterRestart(t *testing.T) {
	h := crossing(t)
	ch := h.channel(t)
	if _, err := ch.QueueDeclare("kept", true, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind("kept", "a.#", topicExchange, false, nil); err != nil {
		t.Fatal(err)
	}
	h.Stop()
	h.Server = h.Restart()
	again := h.channel(t)
	nc := h.Dial("acme", "app")
	if err := nc.Publish("a.b.c", []byte("heard")); err != nil {
		t.Fatal(err)
	}
	if got := bodies(t, consumed(t, again, "kept"), 1); got[0] != "heard" {
		t.Errorf("got %v", got)
	}
}

// TestPatterns holds what the engine is asked for to what a binding matches.
func TestPatterns(t *testing.T) {
	for key, want := range map[string]string{
		"": "/", "a.b": "a.b", "a.*": "a.*", "#": ">", "a.#": "a a.>", "a.#.b": "a.>", "#.b": ">", "*.#": "* *.>", "a.#.#": "a a.>", "a b.*": "a/20b.*", "a/b": "a//b", "a>": "a/3E", "a..b": "a./.b",
	} {
		if got := strings.Join(patterns(key), " "); got != want {
			t.Errorf("%q asks for %q, want %q", key, got, want)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		key := rapid.StringMatching(`[ab/.*> #é]{0,8}`).Draw(t, "key")
		if subject := subjectOfKey(key); keyOfSubject(subject) != key || strings.ContainsAny(subject, " *>") || strings.Contains("."+subject+".", "..") {
			t.Errorf("%q is subject %q, which is %q", key, subject, keyOfSubject(subject))
		}
	})
}

// TestTranslation has properties be the same after they were headers.
func TestTranslation(t *testing.T) {
	now := time.UnixMilli(1e12)
	in := frame.Properties{
		ContentType: "a", ContentEncoding: "b", Headers: frame.Table{"n": int32(1), "t": frame.Table{"x": "y"}, "s": "line\r\nline", "Amqp-X": "no"}, DeliveryMode: 1, Priority: 9,
		CorrelationID: "c\x00", Expiration: "5000", MessageID: "d ", Type: "e", AppID: "f", Timestamp: 7,
	}
	out, over := inward(outward(&in, now), now)
	in.Flags, out.Flags = 0, 0
	if over || fmt.Sprint(in) != fmt.Sprint(out) {
		t.Errorf("%+v\n%+v", in, out)
	}
	if _, over := inward(outward(&in, now), now.Add(6*time.Second)); !over {
		t.Error("it does not expire")
	}
	if p, _ := inward(nats.Header{"Amqp-Headers": {"//8="}, "X": {"y"}, "Amqp-Priority": {"300"}, "Amqp-Type": {strings.Repeat("x", 256)}}, now); p.Priority != 0 || p.Type != "" || p.Headers["X"] != "y" {
		t.Errorf("%+v", p)
	}
}

// TestMemoryBlocks has publishers wait, and be told, while messages fill the memory that
// they may have, and go on when others have read.
func TestMemoryBlocks(t *testing.T) {
	h := start(t, real, func(p *Protocol) { p.MaxMemory = 1 << 20 })
	c, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	told := c.NotifyBlocked(make(chan amqp091.Blocking, 8))
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	declare(t, ch, "q")
	reader := h.channel(t)
	const n = 64
	published := make(chan error, 1)
	go func() {
		for range n {
			if err := ch.PublishWithContext(t.Context(), "", "q", false, false, amqp091.Publishing{Body: make([]byte, 64<<10)}); err != nil {
				published <- err
				return
			}
		}
		published <- nil
	}()
	if b := next(t, told); !b.Active || !strings.Contains(b.Reason, "amqp.max_memory") {
		t.Fatalf("told %+v", b)
	}
	held := h.p.own.held.Load()
	d := consumed(t, reader, "q")
	for range n {
		next(t, d)
	}
	if err := next(t, published); err != nil {
		t.Error(err)
	}
	if held > 4<<20 {
		t.Errorf("%d bytes are in memory, and %d may be", held, 1<<20)
	}
	for b := next(t, told); b.Active; b = next(t, told) {
	}
	eventually(t, "all memory is free", func() bool { return h.p.own.held.Load() == 0 })
}
