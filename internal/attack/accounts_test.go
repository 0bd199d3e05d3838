package attack

import (
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// secret is in all that acme has and sends, planted in all that evil does.
	secret, planted = "secret-of-acme", "planted-by-evil"
	vault           = "vault"
)

// neighbors are two accounts with a user each that may do everything in it.
type neighbors struct {
	*fleetbustest.Server
	t        *testing.T
	victim   *nats.Conn
	password map[string]string
	tried    int

	mu      sync.Mutex
	crossed []string
}

func newNeighbors(t *testing.T) *neighbors {
	t.Helper()
	n := &neighbors{Server: fleetbustest.Start(t, withEverything), t: t, password: map[string]string{}}
	all := identity.Rule{Allow: []string{">"}}
	if _, err := n.Admin().AddRole(within(t, time.Minute), identity.Role{Name: "everything", Permissions: identity.Permissions{Publish: all, Subscribe: all}}); err != nil {
		t.Fatal(err)
	}
	for _, account := range []string{"acme", "evil"} {
		n.password[account] = n.Password(admin.UserRequest{Name: account + "/user", Role: "everything"})
	}
	every := identity.Rule{Allow: []string{">", identity.Private + ">"}}
	watch, err := n.Session(t.Context(), identity.Principal{Account: "acme", Name: "watch", Permissions: identity.Permissions{Publish: every, Subscribe: every}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Close)
	if _, err := watch.Subscribe(">", func(m *nats.Msg) { n.notice("acme", planted, fmt.Sprint(m.Subject, m.Header, string(m.Data))) }); err != nil {
		t.Fatal(err)
	}
	if err := watch.Flush(); err != nil {
		t.Fatal(err)
	}
	n.victim = watch.Conn
	js, err := jetstream.New(n.victim)
	if err != nil {
		t.Fatal(err)
	}
	fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: vault, Subjects: []string{"kept.>"}})
	n.live()
	return n
}

// live has acme say something everywhere.
func (n *neighbors) live() {
	n.t.Helper()
	for _, subject := range []string{"orders.new", "kept.x", "a", "_INBOX.x.y", "$KV.vault.k", "amq.x"} {
		if err := n.victim.Publish(subject, []byte(secret)); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := n.victim.Flush(); err != nil {
		n.t.Fatal(err)
	}
}

func (n *neighbors) notice(who, what, text string) {
	if strings.Contains(text, what) {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.crossed = append(n.crossed, who+" has "+text)
	}
}

// judge says what crossed.
func (n *neighbors) judge(what string) {
	n.t.Helper()
	n.live()
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, c := range n.crossed {
		n.t.Errorf("%s: crossed: %.200s", what, c)
	}
	n.crossed = nil
	n.tried++
}

// rabbit connects by AMQP.
func (n *neighbors) rabbit(account, vhost string) (*amqp091.Connection, error) {
	return amqp091.DialConfig("amqps://"+n.Addr("amqp").String(), amqp091.Config{
		SASL:            []amqp091.Authentication{&amqp091.PlainAuth{Username: account + "/user", Password: n.password[account]}},
		TLSClientConfig: n.TLS(), Vhost: vhost, Dial: amqp091.DefaultDial(30 * time.Second),
	})
}

// TestAttackAccountsByAMQP has a user of one account try by AMQP to read or to write
// another.
func TestAttackAccountsByAMQP(t *testing.T) {
	n := newNeighbors(t)
	info, err := n.Admin().Account(within(t, time.Minute), "acme")
	if err != nil {
		t.Fatal(err)
	}
	open := func(account string) *amqp091.Connection {
		conn, err := n.rabbit(account, "/")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	mine, theirs := open("acme"), open("evil")
	channel := func(c *amqp091.Connection) *amqp091.Channel {
		ch, err := c.Channel()
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	own := channel(mine)
	for _, q := range []string{"work", vault} {
		if _, err := own.QueueDeclare(q, q == vault, false, false, false, nil); err != nil {
			t.Fatal(err)
		}
		if err := own.PublishWithContext(t.Context(), "", q, false, false, amqp091.Publishing{Body: []byte(secret)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := own.ExchangeDeclare("orders", "fanout", false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
	if err := own.QueueBind("work", "", "orders", false, nil); err != nil {
		t.Fatal(err)
	}
	answers, err := own.Consume("amq.rabbitmq.reply-to", "", true, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	// What acme's answers come by, as whoever it asks would see it.
	asked, err := own.Consume("work", "asked", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	<-asked
	if err := own.PublishWithContext(t.Context(), "", "work", false, false, amqp091.Publishing{Body: []byte(secret), ReplyTo: "amq.rabbitmq.reply-to"}); err != nil {
		t.Fatal(err)
	}
	replyTo := (<-asked).ReplyTo
	if err := own.Cancel("asked", false); err != nil {
		t.Fatal(err)
	}

	for _, vhost := range []string{"acme", "/acme", "acme/", "//acme", "%2facme", "../acme", "ACME", "acme\x00", "*", ">", info.Public, "$SYS", "fleet"} {
		conn, err := n.rabbit("evil", vhost)
		if err == nil {
			conn.Close()
			t.Errorf("evil opened the virtual host %q", vhost)
		}
		n.judge("virtual host " + vhost)
	}
	hear := func(ch *amqp091.Channel, queue string) {
		in, err := ch.Consume(queue, "", true, false, false, false, nil)
		if err != nil {
			return
		}
		go func() {
			for m := range in {
				n.notice("evil", secret, m.RoutingKey+string(m.Body))
			}
		}()
	}
	for _, key := range []string{"#", "*", "*.*", "orders.#", "kept.#", "$SYS.#", "$JS.#", "$KV.#", "_INBOX.#", ">", "acme.#", info.Public + ".#", "$FLEETBUS.#", "$O.#", "work", vault} {
		ch := channel(theirs)
		q, err := ch.QueueDeclare("", false, true, true, false, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := ch.QueueBind(q.Name, key, "amq.topic", false, nil); err == nil {
			hear(ch, q.Name)
		}
		n.judge("binding " + key)
	}
	for what, do := range map[string]func(*amqp091.Channel) error{
		"passive queue": func(ch *amqp091.Channel) error {
			_, err := ch.QueueDeclarePassive(vault, true, false, false, false, nil)
			return err
		},
		"passive exchange": func(ch *amqp091.Channel) error {
			return ch.ExchangeDeclarePassive("orders", "fanout", false, false, false, false, nil)
		},
		"get": func(ch *amqp091.Channel) error { _, _, err := ch.Get(vault, true); return err },
		"consume": func(ch *amqp091.Channel) error {
			_, err := ch.Consume("work", "", true, false, false, false, nil)
			return err
		},
		"purge": func(ch *amqp091.Channel) error { _, err := ch.QueuePurge(vault, false); return err },
		"bind":  func(ch *amqp091.Channel) error { return ch.QueueBind("work", "", "orders", false, nil) },
	} {
		if err := do(channel(theirs)); err == nil {
			t.Errorf("%s: evil may, with what is acme's", what)
		}
		n.judge(what)
	}
	_, _ = channel(theirs).QueueDelete(vault, false, false, false)
	_ = channel(theirs).ExchangeDelete("orders", false, false)
	n.judge("delete")
	for _, to := range [][2]string{
		{"amq.topic", "orders.new"}, {"amq.topic", "kept.x"}, {"amq.topic", "$JS.API.STREAM.DELETE.vault"}, {"amq.topic", "$SYS.REQ.SERVER.PING"}, {"amq.topic", ">"}, {"amq.topic", "acme.orders.new"},
		{"amq.topic", info.Public + ".orders.new"}, {"amq.topic", "$JS/API/STREAM/PURGE/vault"}, {"amq.topic", "orders\r\nPUB x 1\r\nx"}, {"amq.topic", "orders new"}, {"", "work"}, {"", vault}, {"", replyTo}, {"amq.fanout", ""}, {"amq.direct", "work"}, {"orders", ""},
	} {
		ch := channel(theirs)
		err := ch.PublishWithContext(t.Context(), to[0], to[1], false, false, amqp091.Publishing{
			Body: []byte(planted), ReplyTo: replyTo, Headers: amqp091.Table{"CC": []any{"work", vault, "orders.new"}, "BCC": []any{"work"}, "Nats-Trace-Dest": "orders.trace", "x": planted},
		})
		// A question, to which the answer comes when all before it is done.
		_, gone := ch.QueueDeclare("own", false, true, false, false, nil)
		n.judge(fmt.Sprintf("publishing to %q %q: %v %v", to[0], to[1], err, gone))
	}
	// What evil's queues send on.
	ch := channel(theirs)
	if _, err := ch.QueueDeclare("dying", false, true, false, false, amqp091.Table{"x-message-ttl": 1, "x-dead-letter-exchange": "", "x-dead-letter-routing-key": "work"}); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := ch.PublishWithContext(t.Context(), "", "dying", false, false, amqp091.Publishing{Body: []byte(planted)}); err != nil {
			t.Fatal(err)
		}
	}
	n.judge("dead letters")
	if err := channel(theirs).PublishWithContext(t.Context(), "amq.topic", "orders.new", false, false, amqp091.Publishing{Body: []byte(planted), UserId: "acme/user"}); err != nil && !errors.Is(err, amqp091.ErrClosed) {
		t.Error(err)
	}
	n.judge("another's user-id")
	// Acme has all that it had, and was answered nothing.
	for q, want := range map[string]int{vault: 1} {
		if info, err := channel(mine).QueueDeclarePassive(q, q == vault, false, false, false, nil); err != nil || info.Messages != want {
			t.Errorf("acme's %s has %+v: %v", q, info, err)
		}
	}
	select {
	case m, ok := <-answers:
		if ok {
			t.Errorf("acme was answered %q", m.Body)
		}
	case <-time.After(50 * time.Millisecond):
	}
	t.Logf("figure: accounts | by AMQP | %d tries, nothing crossed", n.tried)
}

// TestAttackAccountsByMQTT tries by MQTT what means something else to the engine: its
// wildcards, and its own subjects.
func TestAttackAccountsByMQTT(t *testing.T) {
	n := newNeighbors(t)
	device := func(account, id string) (send func(...packet.Packet), next func(packet.Type) packet.Packet) {
		conn, err := tls.Dial("tcp", n.Addr("mqtt").String(), n.TLS())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		r := packet.NewReader(conn, packet.Server, 4096)
		r.Version, r.Maximum = packet.V5, 1<<20
		send = func(all ...packet.Packet) {
			t.Helper()
			for _, p := range all {
				b, err := p.Append(nil, packet.V5, 0)
				if err == nil {
					_, err = conn.Write(b)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
		}
		next = func(until packet.Type) packet.Packet {
			t.Helper()
			_ = conn.SetReadDeadline(time.Now().Add(20 * time.Second))
			for {
				p, err := r.Next()
				if err != nil {
					return nil // it was cut off
				}
				if m, ok := p.(*packet.Publish); ok {
					n.notice("evil", secret, string(m.Topic)+string(m.Payload))
					n.notice("evil", "said-elsewhere", string(m.Topic)+string(m.Payload))
				}
				if p.Type() == until {
					return p
				}
			}
		}
		user := account + "/user"
		send(&packet.Connect{Version: packet.V5, CleanStart: true, ClientID: id, Username: &user, Password: packet.Secret(n.password[account])})
		next(packet.CONNACK)
		return send, next
	}
	// A filter that has the engine's wildcards is text to MQTT: it hears what it says, and
	// nothing else, also of its own account.
	for i, filter := range []string{"*", ">", "a/*", "a/>", "*/b", "a.*", "a.>", "$share/g/*", "$share/g/>", "*.>"} {
		send, next := device("evil", fmt.Sprint("w", i))
		send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filter}}})
		next(packet.SUBACK)
		for _, topic := range []string{"a", "b", "a/b", "a/b/c", "x/b"} {
			send(&packet.Publish{Message: packet.Message{Topic: []byte(topic), Payload: []byte("said-elsewhere")}})
		}
		n.live()
		send(&packet.Pingreq{})
		next(packet.PINGRESP)
		n.judge("filter " + filter)
	}
	refused := 0
	for i, topic := range []string{
		"$JS/API/STREAM/DELETE/vault", "$JS/API/STREAM/PURGE/vault", "$JS/API/STREAM/NAMES", "$JS/API/INFO", "$JS/ACK/vault/c/1/1/1/1/1", "$SYS/REQ/SERVER/PING", "$SYS/REQ/USER/INFO", "$KV/vault/k", "$O/x", "$FLEETBUS/x",
		"$FLEET/renew", "_INBOX/x/y", "_R_/x", "_GR_/x", "$GNR/x", "orders/new", "*", ">", "orders.new", "kept.x", "acme/orders/new", "orders/new\r\nPUB x 1", "orders/ new", "$share/x/orders", "//orders//new",
	} {
		send, next := device("evil", fmt.Sprint("p", i))
		send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: topic, QoS: 1}, {Filter: strings.TrimSuffix(topic, "x") + "/#", QoS: 1}}})
		if ack, ok := next(packet.SUBACK).(*packet.Suback); ok && ack.Codes[0].Failed() {
			refused++
		}
		send, next = device("evil", fmt.Sprint("q", i))
		response := "orders/answer"
		send(&packet.Publish{ID: 1, Message: packet.Message{Topic: []byte(topic), Payload: []byte(planted), QoS: 1, ResponseTopic: []byte(response)}})
		if ack, ok := next(packet.PUBACK).(*packet.Ack); ok && ack.Code.Failed() {
			refused++
		}
		n.judge("topic " + topic)
	}
	js, err := jetstream.New(n.victim)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(within(t, time.Minute), vault)
	if err != nil || stream.CachedInfo().State.FirstSeq != 1 {
		t.Errorf("acme's stream is not what it was: %v", err)
	}
	t.Logf("figure: accounts | by MQTT | %d tries, nothing crossed, %d refused", n.tried, refused)
}
