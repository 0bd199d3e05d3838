package signed_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	amqp091 "github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/packet"
	"github.com/fleetbus/fleetbus/signing"
)

// house is a fleet that speaks MQTT and AMQP, with an account that requires signatures, a
// device that has a certificate, and somebody who hears everything there.
type house struct {
	nodes    []*fleetbustest.Server
	device   tls.Certificate
	signer   *signing.Signer
	heard    *nats.Subscription
	verifier *signing.Verifier
}

func open(t *testing.T, n int) *house {
	t.Helper()
	log := slog.New(slog.NewTextHandler(t.Output(), nil))
	h := &house{nodes: fleetbustest.StartCluster(t, n, func(o *fleetbus.Options) {
		o.Listeners = append(o.Listeners,
			fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{Logger: log}},
			fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: &amqp.Protocol{Logger: log}})
	})}
	s := h.nodes[0]
	demand(t, s, "acme", "required")
	h.device = s.Certificate(admin.UserRequest{Name: "acme/device"})
	creds := s.MoreCreds("acme", "alice")
	nc := connect(t, s, creds, "alice")
	ready(t, nc, signerOf(t, creds))
	var err error
	if h.signer, err = signing.FromCertificate(h.device, signerOf(t, creds).Audience()); err != nil {
		t.Fatal(err)
	}
	h.verifier = signing.NewVerifier(h.signer.Audience(), signing.KeyList{h.signer.Key(): "device"}, signing.Options{Since: time.Now().Add(-time.Minute)})
	if h.heard, err = nc.SubscribeSync("orders.>"); err == nil {
		err = nc.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (h *house) tls(node int) *tls.Config {
	config := h.nodes[node].TLS()
	config.Certificates = []tls.Certificate{h.device}
	return config
}

// hears wants the next message to be this one, with a good signature.
func (h *house) hears(t *testing.T, subject, body string) {
	t.Helper()
	msg, err := h.heard.NextMsg(30 * time.Second)
	if err != nil {
		t.Fatalf("waiting for %s: %v", subject, err)
	}
	if msg.Subject != subject || string(msg.Data) != body {
		t.Errorf("%q on %s came, and not %q on %s", msg.Data, msg.Subject, body, subject)
	}
	if p, err := h.verifier.Verify(t.Context(), msg); err != nil || p.Name != "device" {
		t.Errorf("%s is signed by %v, %v: %v", subject, p, err, msg.Header)
	}
}

// client is one of MQTT that sends and judges packets one by one.
type client struct {
	t *testing.T
	net.Conn
	r *packet.Reader
	v packet.Version
}

func (h *house) mqtt(t *testing.T, node int, c *packet.Connect) (*client, *packet.Connack) {
	t.Helper()
	conn, err := tls.Dial("tcp", h.nodes[node].Addr("mqtt").String(), h.tls(node))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	r := packet.NewReader(conn, packet.Server, 4096)
	r.Version, r.Maximum = c.Version, 1<<20
	m := &client{t, conn, r, c.Version}
	m.send(c)
	ack, ok := m.next().(*packet.Connack)
	if !ok {
		t.Fatal("there is no CONNACK")
	}
	return m, ack
}

func (c *client) send(p packet.Packet) {
	c.t.Helper()
	b, err := p.Append(nil, c.v, 0)
	if err == nil {
		_, err = c.Write(b)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

func (c *client) next() packet.Packet {
	c.t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		c.t.Fatal(err)
	}
	p, err := c.r.Next()
	if err != nil {
		c.t.Fatal(err)
	}
	return p
}

// acked publishes and returns the answer.
func (c *client) acked(qos packet.QoS, id uint16, topic, body, text string) packet.Ack {
	c.t.Helper()
	p := &packet.Publish{ID: id, Message: packet.Message{Topic: []byte(topic), Payload: []byte(body), QoS: qos}}
	if text != "" {
		p.UserProperties = []packet.Pair{{Name: []byte(signing.Header), Value: []byte(text)}}
	}
	c.send(p)
	if qos == 0 {
		return packet.Ack{}
	}
	ack, ok := c.next().(*packet.Ack)
	if !ok {
		c.t.Fatal("there is no PUBACK or PUBREC")
	}
	return *ack
}

func (h *house) text(t *testing.T, subject, body string) string {
	t.Helper()
	text, err := h.signer.Text(subject, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// TestMQTT publishes signed and unsigned over MQTT, on two nodes, and replays across
// protocols.
func TestMQTT(t *testing.T) {
	h := open(t, 3)
	v5 := &packet.Connect{Version: packet.V5, ClientID: "c", CleanStart: true}
	c, ack := h.mqtt(t, 0, v5)
	if ack.Code.Failed() {
		t.Fatal(ack.Code)
	}
	refused := func(what string, ack packet.Ack, why string) {
		t.Helper()
		if ack.Code != packet.NotAuthorized || !strings.Contains(ack.ReasonString, why) {
			t.Errorf("%s: %v %q, want %q", what, ack.Code, ack.ReasonString, why)
		}
	}
	refused("unsigned", c.acked(1, 1, "orders/1", "a", ""), "not signed")
	refused("unsigned with QoS 2", c.acked(2, 2, "orders/1", "a", ""), "not signed")
	c.acked(0, 0, "orders/1", "a", "") // nobody hears it
	text := h.text(t, "orders.1", "a")
	refused("another topic", c.acked(1, 3, "orders/2", "a", text), "does not match")
	refused("another body", c.acked(1, 4, "orders/1", "b", text), "does not match")
	if ack := c.acked(1, 5, "orders/1", "a", text); ack.Code.Failed() {
		t.Errorf("signed: %v %q", ack.Code, ack.ReasonString)
	}
	h.hears(t, "orders.1", "a")
	refused("again", c.acked(1, 6, "orders/1", "a", text), "accepted before")
	second, _ := h.mqtt(t, 1, &packet.Connect{Version: packet.V5, ClientID: "c2", CleanStart: true})
	refused("again at another node", second.acked(1, 1, "orders/1", "a", text), "accepted before")
	if ack := c.acked(2, 7, "orders/3", "c", h.text(t, "orders.3", "c")); ack.Code.Failed() {
		t.Errorf("signed with QoS 2: %v %q", ack.Code, ack.ReasonString)
	}
	h.hears(t, "orders.3", "c")
	zero := h.text(t, "orders.4", "d")
	c.acked(0, 0, "orders/4", "d", zero)
	h.hears(t, "orders.4", "d")

	// What was accepted over one protocol is not over another.
	nc := connect(t, h.nodes[0], h.nodes[0].MoreCreds("acme", "bob"), "bob")
	want(t, "again over NATS", raw(t, nc, "orders.4", zero, []byte("d")), signing.ErrReplayed)

	will := &packet.Connect{Version: packet.V5, ClientID: "w", CleanStart: true, Will: &packet.Will{Message: packet.Message{Topic: []byte("orders/will")}}}
	if _, ack := h.mqtt(t, 0, will); ack.Code != packet.NotAuthorized || !strings.Contains(ack.ReasonString, "will") {
		t.Errorf("a will: %v %q", ack.Code, ack.ReasonString)
	}
	old, ack := h.mqtt(t, 0, &packet.Connect{Version: packet.V311, ClientID: "old", CleanStart: true})
	if ack.Code.Failed() {
		t.Fatal(ack.Code)
	}
	old.send(&packet.Publish{ID: 1, Message: packet.Message{Topic: []byte("orders/5"), QoS: 1}})
	if err := old.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if p, err := old.r.Next(); !errors.Is(err, io.EOF) {
		t.Errorf("3.1.1 is told %v, %v", p, err)
	}
	if msg, err := h.heard.NextMsg(200 * time.Millisecond); err == nil {
		t.Errorf("%q on %s came as well", msg.Data, msg.Subject)
	}
}

// TestAMQP publishes signed and unsigned to amq.topic, to a queue and in a transaction.
func TestAMQP(t *testing.T) {
	h := open(t, 3)
	dial := func(node int) *amqp091.Channel {
		t.Helper()
		conn, err := amqp091.DialConfig("amqps://"+h.nodes[node].Addr("amqp").String(), amqp091.Config{TLSClientConfig: h.tls(node), SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}, Heartbeat: time.Minute})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		ch, err := conn.Channel()
		if err == nil {
			_, err = ch.QueueDeclare("tasks", false, false, false, false, nil)
		}
		if err != nil {
			t.Fatal(err)
		}
		return ch
	}
	said := func(node int, exchange, key, body, text, why string) {
		t.Helper()
		ch := dial(node)
		closed := ch.NotifyClose(make(chan *amqp091.Error, 1))
		m := amqp091.Publishing{Body: []byte(body), Headers: amqp091.Table{}}
		if text != "" {
			m.Headers[signing.Header] = text
		}
		if err := ch.Confirm(false); err != nil {
			t.Fatal(err)
		}
		confirmed := ch.NotifyPublish(make(chan amqp091.Confirmation, 1))
		if err := ch.PublishWithContext(t.Context(), exchange, key, false, false, m); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-closed:
			if why == "" || err == nil || err.Code != amqp091.AccessRefused || !strings.Contains(err.Reason, why) {
				t.Errorf("%q to %q %q: %v, want %q", body, exchange, key, err, why)
			}
		case c := <-confirmed:
			if why != "" || !c.Ack {
				t.Errorf("%q to %q %q is taken: %v, want %q", body, exchange, key, c.Ack, why)
			}
		case <-time.After(30 * time.Second):
			t.Errorf("%q to %q %q: nothing was said", body, exchange, key)
		}
	}
	said(0, "amq.topic", "orders.1", "a", "", "not signed")
	said(0, "", "tasks", "a", "", "not signed")
	topic := h.text(t, "orders.1", "a")
	said(0, "", "tasks", "a", topic, "does not match")
	said(0, "amq.topic", "orders.2", "a", topic, "does not match")
	said(0, "amq.topic", "orders.1", "a", topic, "")
	h.hears(t, "orders.1", "a")
	said(1, "amq.topic", "orders.1", "a", topic, "accepted before")
	queue := h.text(t, signing.Exchange("", "tasks"), "b")
	said(1, "", "tasks", "b", queue, "")
	said(2, "", "tasks", "b", queue, "accepted before")

	ch := dial(0)
	got, ok, err := ch.Get("tasks", true)
	if err != nil || !ok || string(got.Body) != "b" {
		t.Fatalf("the queue has %q, %v, %v", got.Body, ok, err)
	}
	text, _ := got.Headers[signing.Header].(string)
	if p, err := h.verifier.VerifyText(t.Context(), text, signing.Exchange(got.Exchange, got.RoutingKey), got.Body); err != nil || p.Name != "device" {
		t.Errorf("what the queue has is signed by %v, %v", p, err)
	}
	if err := ch.Tx(); err != nil {
		t.Fatal(err)
	}
	closed := ch.NotifyClose(make(chan *amqp091.Error, 1))
	m := amqp091.Publishing{Body: []byte("c"), Headers: amqp091.Table{signing.Header: h.text(t, signing.Exchange("", "tasks"), "c")}}
	if err := errors.Join(ch.PublishWithContext(t.Context(), "", "tasks", false, false, m), ch.PublishWithContext(t.Context(), "", "tasks", false, false, amqp091.Publishing{Body: []byte("d")})); err != nil {
		t.Fatal(err)
	}
	if err := ch.TxCommit(); err == nil {
		t.Error("a transaction with an unsigned message is committed")
	}
	if err := <-closed; err == nil || err.Code != amqp091.AccessRefused {
		t.Errorf("a transaction with an unsigned message: %v", err)
	}
	if got, ok, err := dial(0).Get("tasks", true); ok || err != nil {
		t.Errorf("the queue has %q as well, %v", got.Body, err)
	}
}

// TestPython has the example of docs/signing.md sign and publish with the clients of
// Python.
func TestPython(t *testing.T) {
	const python = "/usr/bin/python3"
	for _, module := range []string{"cryptography", "paho.mqtt.client", "pika"} {
		if err := exec.CommandContext(t.Context(), python, "-c", "import "+module).Run(); err != nil {
			t.Skipf("%s has no module %s: install python3-cryptography, python3-paho-mqtt and python3-pika", python, module)
		}
	}
	h := open(t, 1)
	dir := t.TempDir()
	var chain []byte
	for _, c := range h.device.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c})...)
	}
	private, err := x509.MarshalPKCS8PrivateKey(h.device.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, key := filepath.Join(dir, "client.crt"), filepath.Join(dir, "client.key")
	if err := errors.Join(os.WriteFile(cert, chain, 0o600), os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), 0o600)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	_, mqttPort, _ := net.SplitHostPort(h.nodes[0].Addr("mqtt").String())
	_, amqpPort, _ := net.SplitHostPort(h.nodes[0].Addr("amqp").String())
	cmd := exec.CommandContext(ctx, python, filepath.Join("..", "..", "signing", "testdata", "publish.py"), mqttPort, amqpPort, h.nodes[0].Founded().CA, cert, key, h.signer.Audience())
	cmd.Env = append(os.Environ(), "PYTHONDONTWRITEBYTECODE=1")
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "mqtt ok\namqp ok\nunsigned 403 ACCESS_REFUSED") {
		t.Fatalf("%v\n%s", err, out)
	}
	h.hears(t, "orders.mqtt", "over MQTT")
	h.hears(t, "orders.amqp", "over AMQP")
}
