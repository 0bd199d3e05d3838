package amqp

import (
	"crypto/tls"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"
	scramlib "github.com/xdg-go/scram"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

func TestLogin(t *testing.T) {
	h := start(t)
	password := h.Password(admin.UserRequest{Name: "acme/alice", Role: "client"})
	token, hash, err := identity.NewBearer("acme", "bob")
	if err != nil {
		t.Fatal(err)
	}
	h.User(admin.UserRequest{Name: "acme/bob", Role: "client", Bearer: hash})
	noCertificate := h.TLS()
	for _, c := range []struct {
		what  string
		sasl  amqp091.Authentication
		tls   *tls.Config
		vhost string
		ok    bool
	}{
		{"certificate", &amqp091.ExternalAuth{}, h.config, "", true},
		{"certificate, /", &amqp091.ExternalAuth{}, h.config, "/", true},
		{"certificate, account", &amqp091.ExternalAuth{}, h.config, "acme", true},
		{"certificate, other account", &amqp091.ExternalAuth{}, h.config, "other", false},
		{"certificate, no account", &amqp091.ExternalAuth{}, h.config, "nowhere", false},
		{"no certificate", &amqp091.ExternalAuth{}, noCertificate, "", false},
		{"PLAIN", &amqp091.PlainAuth{Username: "acme/alice", Password: password}, noCertificate, "acme", true},
		{"PLAIN, short name", &amqp091.PlainAuth{Username: "alice", Password: password}, noCertificate, "", true},
		{"PLAIN, wrong password", &amqp091.PlainAuth{Username: "acme/alice", Password: "wrong"}, noCertificate, "", false},
		{"PLAIN, guest", &amqp091.PlainAuth{Username: "guest", Password: "guest"}, noCertificate, "", false},
		{"AMQPLAIN", &amqp091.AMQPlainAuth{Username: "acme/alice", Password: password}, noCertificate, "", true},
		{"AMQPLAIN, wrong password", &amqp091.AMQPlainAuth{Username: "acme/alice", Password: "wrong"}, noCertificate, "", false},
		{"bearer token", &amqp091.PlainAuth{Username: "acme/bob", Password: token}, noCertificate, "", true},
		{"bearer token of another", &amqp091.PlainAuth{Username: "acme/alice", Password: token}, noCertificate, "", false},
	} {
		conn, err := h.connect(t, func(o *amqp091.Config) {
			o.SASL, o.TLSClientConfig, o.Vhost = []amqp091.Authentication{c.sasl}, c.tls, c.vhost
		})
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", c.what, err)
		}
		if err == nil {
			_ = conn.Close()
		}
	}
	eventually(t, "all are gone", func() bool { return h.f.attached() == 0 })
}

// TestScram has a client of another make prove that it has its password, and the node that it
// knows the client.
func TestScram(t *testing.T) {
	h := start(t)
	const password = "correct horse battery"
	both, err := identity.HashPasswordToo(password)
	if err != nil {
		t.Fatal(err)
	}
	h.User(admin.UserRequest{Name: "acme/alice", Role: "client", Password: both})
	// What a client derives takes seconds under the race detector, and may take longer than
	// a node waits: it is derived before, and but for one user it costs less.
	b64 := base64.StdEncoding
	hash, verifier, _ := strings.Cut(both, " ")
	text, _, _ := strings.Cut(strings.TrimPrefix(verifier, "SCRAM-SHA-256$600000:"), "$")
	salt, err := b64.DecodeString(text)
	if err != nil {
		t.Fatalf("%v: the verifier is %q", err, verifier)
	}
	dear, little := scramlib.KeyFactors{Salt: string(salt), Iters: 600_000}, scramlib.KeyFactors{Salt: "sixteen bytes ..", Iters: 4096}
	carol, err := scramlib.SHA256.NewClient("carol", password, "")
	if err != nil {
		t.Fatal(err)
	}
	cheap := carol.GetStoredCredentials(little)
	h.User(admin.UserRequest{Name: "acme/carol", Role: "client", Password: fmt.Sprintf("%s SCRAM-SHA-256$%d:%s$%s:%s",
		hash, cheap.Iters, b64.EncodeToString([]byte(cheap.Salt)), b64.EncodeToString(cheap.StoredKey), b64.EncodeToString(cheap.ServerKey))})
	alone := h.Password(admin.UserRequest{Name: "acme/bob", Role: "client"})
	h.config.Certificates = nil
	// login returns the connection after the node has proved itself.
	login := func(user, password string) (*raw, bool) {
		t.Helper()
		client, err := scramlib.SHA256.NewClient(user, password, "")
		if err != nil {
			t.Fatal(err)
		}
		if user == "acme/alice" {
			client.GetStoredCredentials(dear) // and it remembers
		}
		talk := client.NewConversation()
		step := func(said string) string {
			t.Helper()
			answer, err := talk.Step(said)
			if err != nil {
				t.Fatalf("%s: %v", user, err)
			}
			return answer
		}
		r := h.raw(t)
		r.start(scram, step(""))
		challenge := is[*frame.ConnectionSecure](r).Challenge
		proof, _, _ := strings.Cut(challenge, ",")
		proof = "c=biws," + proof + ",p=" + b64.EncodeToString(make([]byte, 32))
		if user != "acme/bob" && user != "nobody" { // the node does not know what these prove
			proof = step(challenge)
		}
		r.send(0, &frame.ConnectionSecureOk{Response: frame.Secret(proof)})
		if password == "wrong" || user == "acme/bob" || user == "nobody" {
			if text := r.closed(frame.AccessRefused); !strings.HasPrefix(text, "ACCESS_REFUSED - Login was refused using authentication mechanism SCRAM-SHA-256. ") {
				t.Errorf("%s is told %q", user, text)
			}
			return r, false
		}
		step(is[*frame.ConnectionSecure](r).Challenge)
		r.send(0, &frame.ConnectionSecureOk{})
		return r, talk.Valid()
	}
	for _, user := range []string{"acme/alice", "acme/carol", "carol", "acme.carol"} {
		r, valid := login(user, password)
		if !valid {
			t.Errorf("the node did not prove to %s that it knows it", user)
		}
		tune := is[*frame.ConnectionTune](r)
		r.send(0, &frame.ConnectionTuneOk{ChannelMax: tune.ChannelMax, FrameMax: tune.FrameMax}, &frame.ConnectionOpen{VirtualHost: "/"})
		is[*frame.ConnectionOpenOk](r)
	}
	login("acme/carol", "wrong")
	login("acme/bob", alone)
	login("nobody", password)
	if _, err := h.connect(t, func(o *amqp091.Config) {
		o.SASL, o.TLSClientConfig = []amqp091.Authentication{&amqp091.PlainAuth{Username: "acme/alice", Password: password}}, h.config
	}); err != nil {
		t.Errorf("the same password by PLAIN: %v", err)
	}
}

func TestRefusalsHaveCodes(t *testing.T) {
	h := start(t)
	table, err := frame.Table{"LOGIN": "acme/alice", "PASSWORD": "wrong"}.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mechanism, response string
		code                frame.Code
		text                string
	}{
		{"PLAIN", "\x00acme/alice\x00wrong", frame.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN."},
		{"AMQPLAIN", string(table[4:]), frame.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism AMQPLAIN."},
		{"PLAIN", "nonsense", frame.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism PLAIN: the response is malformed"},
		{"AMQPLAIN", "nonsense", frame.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism AMQPLAIN: the response is malformed"},
		{"SCRAM-SHA-256", "nonsense", frame.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism SCRAM-SHA-256: the client's first message of SCRAM cannot be read"},
		{"SCRAM-SHA-256", "p=tls-exporter,,n=alice,r=0123456789", frame.AccessRefused, "ACCESS_REFUSED - Login was refused using authentication mechanism SCRAM-SHA-256: the client asks for channel binding, which is not offered"},
		{"SCRAM-SHA-1", "n,,n=alice,r=0123456789", frame.CommandInvalid, "COMMAND_INVALID - unknown authentication mechanism 'SCRAM-SHA-1'"},
	} {
		r := h.raw(t)
		r.start(c.mechanism, c.response)
		if text := r.closed(c.code); !strings.HasPrefix(text, c.text) {
			t.Errorf("%s: %q", c.mechanism, text)
		}
	}
	// A client that does not say that it understands why is just cut.
	r := h.raw(t)
	r.bytes([]byte(frame.ProtocolHeader))
	is[*frame.ConnectionStart](r)
	r.send(0, &frame.ConnectionStartOk{Mechanism: "PLAIN", Response: "\x00a\x00b"})
	r.gone()
	r = h.raw(t)
	r.start("EXTERNAL", "")
	is[*frame.ConnectionTune](r)
	r.send(0, &frame.ConnectionTuneOk{ChannelMax: 2047, FrameMax: 131072, Heartbeat: 60}, &frame.ConnectionOpen{VirtualHost: "other"})
	if text := r.closed(frame.NotAllowed); text != "NOT_ALLOWED - vhost other not found" {
		t.Error(text)
	}
}

func TestPasswordsAreOff(t *testing.T) {
	h := start(t, func(p *Protocol) { p.Passwords = false })
	r := h.raw(t)
	r.bytes([]byte(frame.ProtocolHeader))
	if m := is[*frame.ConnectionStart](r); m.Mechanisms != "EXTERNAL" {
		t.Errorf("offered: %s", m.Mechanisms)
	}
	r = h.raw(t)
	r.start("AMQPLAIN", "")
	if text := r.closed(frame.AccessRefused); !strings.Contains(text, "EXTERNAL") {
		t.Error(text)
	}
}

func TestTune(t *testing.T) {
	h := start(t)
	for _, c := range []struct {
		channels uint16
		frame    uint32
		ok       bool
	}{
		{2047, 131072, true}, {1, 4096, true}, {0, 131072, false}, {2048, 131072, false}, {2047, 0, false}, {2047, 4095, false}, {2047, 131073, false},
	} {
		r := h.raw(t)
		r.start("EXTERNAL", "")
		if m := is[*frame.ConnectionTune](r); m.ChannelMax != 2047 || m.FrameMax != 131072 || m.Heartbeat != 60 {
			t.Errorf("%+v", m)
		}
		r.send(0, &frame.ConnectionTuneOk{ChannelMax: c.channels, FrameMax: c.frame})
		if !c.ok {
			r.closed(frame.NotAllowed)
			continue
		}
		r.send(0, &frame.ConnectionOpen{})
		is[*frame.ConnectionOpenOk](r)
	}
}

func TestStrangers(t *testing.T) {
	h := start(t)
	for what, hello := range map[string]string{"AMQP 1.0": "AMQP\x00\x01\x00\x00", "AMQP 0-8": "AMQP\x01\x01\x00\x09", "HTTP": "GET / HTTP/1.1\r\n\r\n"} {
		r := h.raw(t)
		r.bytes([]byte(hello))
		answer, err := r.r.ProtocolHeader()
		if err != nil || string(answer[:]) != frame.ProtocolHeader {
			t.Errorf("%s: %q, %v", what, answer, err)
		}
		r.gone()
	}
	for what, after := range map[string][]byte{
		"a large frame":     []byte("\x01\x00\x00\x00\x01\x00\x00"),
		"no frame":          []byte("\xff"),
		"another method":    must(frame.AppendMethod(nil, 0, &frame.ConnectionOpen{})),
		"another channel":   must(frame.AppendMethod(nil, 1, &frame.ChannelOpen{})),
		"a table too large": must(frame.AppendMethod(nil, 0, &frame.ConnectionStartOk{ClientProperties: frame.Table{"x": make([]any, strangerEntries)}})),
	} {
		r := h.raw(t)
		r.bytes([]byte(frame.ProtocolHeader))
		is[*frame.ConnectionStart](r)
		r.bytes(after)
		if m := is[*frame.ConnectionClose](r); m.ReplyCode < 500 {
			t.Errorf("%s: %+v", what, m)
		}
	}
	// So many bytes in all, in small frames.
	r := h.raw(t)
	r.bytes([]byte(frame.ProtocolHeader))
	is[*frame.ConnectionStart](r)
	var beats []byte
	for len(beats) <= strangerBytes {
		beats = frame.AppendHeartbeat(beats)
	}
	_, _ = r.Write(beats)
	if m := is[*frame.ConnectionClose](r); m.ReplyCode != frame.FrameError {
		t.Errorf("%+v", m)
	}
}

func must(b []byte, err error) []byte {
	if err != nil {
		panic(err)
	}
	return b
}

func TestUpdateSecret(t *testing.T) {
	h := start(t)
	password := h.Password(admin.UserRequest{Name: "acme/alice", Role: "client"})
	alice := func(o *amqp091.Config) {
		o.SASL, o.TLSClientConfig = []amqp091.Authentication{&amqp091.PlainAuth{Username: "acme/alice", Password: password}}, h.TLS()
	}
	conn, err := h.connect(t, alice)
	if err != nil {
		t.Fatal(err)
	}
	if err := conn.UpdateSecret(password, "again"); err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Channel(); err != nil {
		t.Fatal(err)
	}
	closed := conn.NotifyClose(make(chan *amqp091.Error, 1))
	_ = conn.UpdateSecret("wrong", "")
	wants(t, next(t, closed), 530, "NOT_ALLOWED - the new secret was refused")
	conn, err = h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	closed = conn.NotifyClose(make(chan *amqp091.Error, 1))
	_ = conn.UpdateSecret(password, "")
	wants(t, next(t, closed), 530, "NOT_ALLOWED - the connection was not opened with a secret")
}

func TestDeniedIsCut(t *testing.T) {
	h := start(t)
	conn, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	closed := conn.NotifyClose(make(chan *amqp091.Error, 1))
	if _, err := h.Admin().DenyUser(within(t), "acme/device"); err != nil {
		t.Fatal(err)
	}
	wants(t, next(t, closed), 320, "CONNECTION_FORCED - its right to be connected ended")
	eventually(t, "it is gone", func() bool { return h.f.attached() == 0 })
}

func TestStopTellsClients(t *testing.T) {
	h := start(t)
	conn, err := h.connect(t)
	if err != nil {
		t.Fatal(err)
	}
	closed := conn.NotifyClose(make(chan *amqp091.Error, 1))
	h.Stop()
	wants(t, next(t, closed), 320, "CONNECTION_FORCED - the node stops: connect again")
}

// TestPlaintext has strangers come in, in plain text, to an account of their own.
func TestPlaintext(t *testing.T) {
	p := &Protocol{vhosts: newFake()}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: p, Plaintext: true, Account: "acme", Role: "client"})
	})
	conn, err := amqp091.Dial("amqp://guest:guest@" + s.Addr("amqp").String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	declare(t, ch, "q")
	if err := ch.PublishWithContext(t.Context(), "", "q", false, false, amqp091.Publishing{UserId: "guest"}); err != nil {
		t.Fatal(err)
	}
	if _, ok, err := ch.Get("q", true); !ok || err != nil {
		t.Error(ok, err)
	}
	config := amqp091.Config{SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}}
	if c, err := amqp091.DialConfig("amqp://"+s.Addr("amqp").String(), config); err == nil {
		c.Close()
		t.Error("EXTERNAL without TLS")
	}
}

func TestOptions(t *testing.T) {
	if problems := new(Options).Validate(); len(problems) > 0 {
		t.Error(problems)
	}
	bad := Options{MaxMessage: 1, MaxFrame: 100, Channels: 70_000, Heartbeat: time.Millisecond, Pending: 1}
	if problems := bad.Validate(); len(problems) != 5 {
		t.Error(problems)
	}
}
