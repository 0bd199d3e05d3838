package mqtt_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
)

// cluster is nodes of one fleet with a listener for MQTT each.
func cluster(t *testing.T, n int, edit ...func(*fleetbus.Options)) []*house {
	t.Helper()
	var all []*house
	for _, s := range fleetbustest.StartCluster(t, n, append([]func(*fleetbus.Options){func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "mqtt", Addr: "127.0.0.1:0", Protocol: &mqtt.Protocol{}})
	}}, edit...)...) {
		all = append(all, &house{s, s.TLS()})
	}
	cert := all[0].Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})
	for _, h := range all {
		h.config.Certificates = []tls.Certificate{cert}
	}
	return all
}

// jsModules is where MQTT.js is, or the test is skipped.
func jsModules(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		t.Skipf("node is not installed: %v", err)
	}
	modules, err := filepath.Abs("../.tools/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(modules, "mqtt")); err != nil {
		t.Skipf("MQTT.js is not installed: %v", err)
	}
	return modules
}

// files writes a certificate and its key to files.
func files(t *testing.T, cert tls.Certificate) (certFile, keyFile string) {
	t.Helper()
	var chain bytes.Buffer
	for _, der := range cert.Certificate {
		if err := pem.Encode(&chain, &pem.Block{Type: "CERTIFICATE", Bytes: der}); err != nil {
			t.Fatal(err)
		}
	}
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certFile, keyFile = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	if err := os.WriteFile(certFile, chain.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key}), 0o600); err != nil {
		t.Fatal(err)
	}
	return certFile, keyFile
}

// TestMQTTJS has MQTT.js do what it can, in both versions, over TLS with a
// certificate and over WebSocket with a password.
func TestMQTTJS(t *testing.T) {
	modules := jsModules(t)
	nodes := cluster(t, 3)
	cert, key := files(t, nodes[0].config.Certificates[0])
	password := nodes[0].Password(admin.UserRequest{Name: "acme/page", Role: "client"})
	ca := nodes[0].Founded().CA
	for _, way := range []struct {
		scheme, path string
		options      map[string]string
	}{
		{"mqtts", "", map[string]string{"ca": ca, "cert": cert, "key": key}},
		{"wss", "/mqtt", map[string]string{"ca": ca, "username": "acme/page", "password": password}},
	} {
		options, err := json.Marshal(way.options)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{"5", "4"} {
			t.Run(way.scheme+"/"+version, func(t *testing.T) {
				at := func(i int) string { return way.scheme + "://" + nodes[i].Addr("mqtt").String() + way.path }
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, "node", "testdata/client.js", version, string(options), at(0), at(1))
				cmd.Env = append(os.Environ(), "NODE_PATH="+modules)
				if out, err := cmd.CombinedOutput(); err != nil || strings.TrimSpace(string(out)) != "ok" {
					t.Errorf("%v\n%s", err, out)
				}
			})
		}
	}
}

// goClient is a client of paho.golang.
type goClient struct {
	*autopaho.ConnectionManager
	got  chan *paho.Publish
	up   chan *paho.Connack
	stop context.CancelFunc
}

func dialGo(t *testing.T, config autopaho.ClientConfig, id, where string) *goClient {
	t.Helper()
	u, err := url.Parse(where)
	if err != nil {
		t.Fatal(err)
	}
	c := &goClient{got: make(chan *paho.Publish, 100), up: make(chan *paho.Connack, 10)}
	config.ServerUrls, config.ClientID, config.KeepAlive = []*url.URL{u}, id, 20
	config.ReconnectBackoff = autopaho.NewConstantBackoff(100 * time.Millisecond)
	config.OnConnectionUp = func(_ *autopaho.ConnectionManager, ack *paho.Connack) { c.up <- ack }
	config.OnConnectError = func(err error) { t.Log(err) }
	config.OnPublishReceived = []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
		c.got <- p.Packet
		return true, nil
	}}
	var ctx context.Context
	ctx, c.stop = context.WithCancel(t.Context())
	if c.ConnectionManager, err = autopaho.NewConnection(ctx, config); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.stop()
		<-c.Done()
	})
	return c
}

func (c *goClient) connected(t *testing.T) *paho.Connack {
	t.Helper()
	select {
	case ack := <-c.up:
		return ack
	case <-within(t).Done():
		t.Fatal("it did not connect")
		return nil
	}
}

func (c *goClient) take(t *testing.T, topic, payload string) *paho.Publish {
	t.Helper()
	for {
		select {
		case m := <-c.got:
			if m.Topic == "kept" && topic != "kept" {
				continue // once more
			}
			if m.Topic != topic || string(m.Payload) != payload {
				t.Errorf("%s: %q, not %s: %q", m.Topic, m.Payload, topic, payload)
			}
			return m
		case <-within(t).Done():
			t.Fatalf("%q did not come", payload)
			return nil
		}
	}
}

func (c *goClient) subscribe(t *testing.T, qos byte, filter string) {
	t.Helper()
	if _, err := c.Subscribe(within(t), &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: filter, QoS: qos}}}); err != nil {
		t.Fatal(err)
	}
}

func (c *goClient) publish(t *testing.T, p *paho.Publish) {
	t.Helper()
	if _, err := c.Publish(within(t), p); err != nil {
		t.Fatal(err)
	}
}

// TestPahoGo has autopaho do what it can, over TLS with a certificate and over
// WebSocket with a password.
func TestPahoGo(t *testing.T) {
	nodes := cluster(t, 3)
	byCert, byPassword := nodes[0].config, nodes[0].TLS()
	password := nodes[0].Password(admin.UserRequest{Name: "acme/page", Role: "client"})
	for scheme, config := range map[string]autopaho.ClientConfig{
		"mqtts": {TlsCfg: byCert},
		"wss":   {TlsCfg: byPassword, ConnectUsername: "acme/page", ConnectPassword: []byte(password)},
	} {
		t.Run(scheme, func(t *testing.T) {
			at := func(i int) string { return scheme + "://" + nodes[i].Addr("mqtt").String() + "/mqtt" }
			config.CleanStartOnInitialConnection = false
			lasting := config
			lasting.SessionExpiryInterval = 600
			sub, pub := dialGo(t, lasting, "sub", at(0)), dialGo(t, config, "pub", at(1))
			if ack := sub.connected(t); ack.SessionPresent {
				t.Error("there was a session")
			}
			pub.connected(t)
			sub.subscribe(t, 2, "go/#")
			for qos := range byte(3) {
				users := paho.UserProperties{{Key: "b", Value: "1"}, {Key: "a", Value: "2"}, {Key: "b", Value: "3"}}
				pub.publish(t, &paho.Publish{Topic: "go/qos", QoS: qos, Payload: []byte(fmt.Sprint(qos)), Properties: &paho.PublishProperties{User: users, ContentType: "t"}})
				if m := sub.take(t, "go/qos", fmt.Sprint(qos)); m.QoS != qos || fmt.Sprint(m.Properties.User) != fmt.Sprint(users) || m.Properties.ContentType != "t" {
					t.Errorf("%+v", m)
				}
			}
			pub.publish(t, &paho.Publish{Topic: "kept", QoS: 1, Retain: true, Payload: []byte("k")})
			sub.subscribe(t, 1, "kept")
			// Published just before at another node, it may come as a new one as well.
			for m := sub.take(t, "kept", "k"); !m.Retain; {
				m = sub.take(t, "kept", "k")
			}
			will := config
			will.WillMessage = &paho.WillMessage{Topic: "go/will", Payload: []byte("died"), QoS: 1}
			will.DisconnectPacketBuilder = func() *paho.Disconnect { return &paho.Disconnect{ReasonCode: 4} }
			dying := dialGo(t, will, "dying", at(2))
			dying.connected(t)
			dying.stop()
			sub.take(t, "go/will", "died")

			m1, m2 := dialGo(t, config, "m1", at(0)), dialGo(t, config, "m2", at(2))
			for _, m := range []*goClient{m1, m2} {
				m.connected(t)
				m.subscribe(t, 1, "$share/g/work")
			}
			for i := range 20 {
				pub.publish(t, &paho.Publish{Topic: "work", QoS: 1, Payload: []byte(fmt.Sprint(scheme, i))})
			}
			for seen := map[string]bool{}; len(seen) < 20; { // at least once
				select {
				case m := <-m1.got:
					seen[string(m.Payload)] = true
				case m := <-m2.got:
					seen[string(m.Payload)] = true
				case <-within(t).Done():
					t.Fatalf("%d of 20 came", len(seen))
				}
			}
			// A request, and its answer.
			asks, answers := dialGo(t, config, "asks", at(0)), dialGo(t, config, "answers", at(2))
			asks.connected(t)
			answers.connected(t)
			answers.subscribe(t, 1, "ask")
			asks.subscribe(t, 1, "answer")
			asks.publish(t, &paho.Publish{Topic: "ask", QoS: 1, Payload: []byte("how much"), Properties: &paho.PublishProperties{ResponseTopic: "answer", CorrelationData: []byte{0, 7}}})
			ask := answers.take(t, "ask", "how much")
			answers.publish(t, &paho.Publish{Topic: ask.Properties.ResponseTopic, QoS: 1, Payload: []byte("42"), Properties: &paho.PublishProperties{CorrelationData: ask.Properties.CorrelationData}})
			if m := asks.take(t, "answer", "42"); !bytes.Equal(m.Properties.CorrelationData, []byte{0, 7}) {
				t.Errorf("%+v", m)
			}
			// It goes on at another node.
			sub.stop()
			<-sub.Done()
			pub.publish(t, &paho.Publish{Topic: "go/away", QoS: 2, Payload: []byte("away")})
			sub = dialGo(t, lasting, "sub", at(2))
			if ack := sub.connected(t); !ack.SessionPresent {
				t.Error("the session is gone")
			}
			sub.take(t, "go/away", "away")
			if err := sub.Disconnect(within(t)); err != nil {
				t.Error(err)
			}
			pub.publish(t, &paho.Publish{Topic: "kept", QoS: 1, Retain: true})
		})
	}
}

// TestAcross has one message go from mosquitto at one node to MQTT.js at another
// and to a NATS client at a third.
func TestAcross(t *testing.T) {
	if _, err := exec.LookPath("mosquitto_pub"); err != nil {
		t.Skipf("mosquitto_pub is not installed: %v", err)
	}
	modules := jsModules(t)
	nodes := cluster(t, 3)
	heard, err := nodes[1].Dial("acme", "app").SubscribeSync("plant.*.heat")
	if err != nil {
		t.Fatal(err)
	}
	password := nodes[0].Password(admin.UserRequest{Name: "acme/sensor", Role: "client"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	script := `const c = require('mqtt').connect(process.argv[1], { ca: require('fs').readFileSync(process.argv[2]), username: 'acme/sensor', password: process.argv[3], protocolVersion: 5 })
c.on('message', (topic, payload, packet) => { console.log(topic, payload.toString(), packet.qos, packet.properties.userProperties.unit); process.exit(0) })
c.subscribe('plant/+/heat', { qos: 1 }, err => console.log(err ?? 'subscribed'))`
	js := exec.CommandContext(ctx, "node", "-e", script, "wss://"+nodes[2].Addr("mqtt").String()+"/mqtt", nodes[2].Founded().CA, password)
	js.Env = append(os.Environ(), "NODE_PATH="+modules)
	out := &lines{got: make(chan string, 10)}
	js.Stdout, js.Stderr = out, out
	if err := js.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = js.Wait() }()
	if line := out.next(t); line != "subscribed" {
		t.Fatal(line)
	}
	host, port, _ := strings.Cut(nodes[0].Addr("mqtt").String(), ":")
	pub := exec.CommandContext(ctx, "mosquitto_pub", "-h", host, "-p", port, "--cafile", nodes[0].Founded().CA, "-u", "acme/sensor", "-P", password,
		"-V", "5", "-q", "1", "-t", "plant/1/heat", "-m", "21.5", "-D", "publish", "user-property", "unit", "C")
	if out, err := pub.CombinedOutput(); err != nil {
		t.Fatalf("%v %s", err, out)
	}
	if line := out.next(t); line != "plant/1/heat 21.5 1 C" {
		t.Error(line)
	}
	msg, err := heard.NextMsgWithContext(within(t))
	if err != nil || string(msg.Data) != "21.5" || msg.Header.Get("unit") != "C" {
		t.Errorf("%+v %v", msg, err)
	}
}

// lines hands on what is written to it by lines.
type lines struct {
	rest []byte
	got  chan string
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, found := bytes.Cut(l.rest, []byte("\n"))
		if !found {
			return len(b), nil
		}
		l.got <- string(line)
		l.rest = rest
	}
}

func (l *lines) next(t *testing.T) string {
	t.Helper()
	select {
	case line := <-l.got:
		return line
	case <-within(t).Done():
		t.Fatal("it says nothing")
		return ""
	}
}
