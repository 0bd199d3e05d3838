package stranger_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/provision/stranger"
)

func TestMain(m *testing.M) { await.Main(m) }

const name = "abcdefghijklmnop"

func start(t *testing.T, p *stranger.Protocol) *fleetbustest.Server {
	t.Helper()
	return fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"provisioning", "acme"}
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "provision", Addr: "127.0.0.1:0", Protocol: p, Plaintext: true, Account: "provisioning"})
	})
}

func dial(s *fleetbustest.Server, opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("nats://"+s.Addr("provision").String(), append([]nats.Option{
		nats.NoReconnect(), nats.Timeout(time.Minute), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)...)
}

// TestIsolated has clients show every sort of credentials: they are strangers, whatever
// they show, and may do next to nothing.
func TestIsolated(t *testing.T) {
	s := start(t, &stranger.Protocol{})
	alice := s.Creds("acme", "alice")
	inside := s.Dial("acme", "alice")
	heard, err := inside.SubscribeSync(">")
	if err == nil {
		err = inside.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	host := s.Dial("provisioning", "host")
	hosted, err := host.SubscribeSync("provision.>")
	if err == nil {
		err = host.Flush()
	}
	if err != nil {
		t.Fatal(err)
	}
	for what, opts := range map[string][]nats.Option{
		"a name":            {nats.UserInfo(name, "")},
		"a password":        {nats.UserInfo(name, "secret")},
		"a creds file":      {nats.UserInfo(name, ""), nats.UserCredentials(alice)},
		"a token of admins": {nats.UserInfo(name, ""), nats.Token("fb1.x")},
	} {
		nc, err := dial(s, opts...)
		if err != nil && strings.Contains(what, "token") {
			continue // the library sends one of the two
		}
		if err != nil {
			t.Errorf("%s: %v", what, err)
			continue
		}
		if ip, err := nc.GetClientIP(); err != nil || ip.String() != "127.0.0.1" {
			t.Errorf("%s: it is at %v, %v", what, ip, err)
		}
		for _, subject := range []string{"orders", "provision.hello.127-0-0-2", "provision.ask.x.127-0-0-2", "$JS.API.INFO", "$FLEET.renew", "$FLEETBUS.provision.token.x",
			"_INBOX.qrstuvwxyzabcdef.1", "admin.status", "provision.hello.127-0-0-1.more"} {
			if err := denied(nc, func() error { return nc.Publish(subject, []byte("x")) }); err != nil {
				t.Errorf("%s: publishing to %s: %v", what, subject, err)
			}
		}
		for _, subject := range []string{">", "*", "_INBOX.>", "_INBOX.qrstuvwxyzabcdef.>", "provision.hello.*", "provision.hello.127-0-0-1", "$SYS.>"} {
			if err := denied(nc, func() error { _, err := nc.SubscribeSync(subject); return err }); err != nil {
				t.Errorf("%s: subscribing to %s: %v", what, subject, err)
			}
		}
		// What it may, it can: somebody who serves the account hears it, and it the answer.
		answer, err := nc.SubscribeSync("_INBOX." + name + ".1")
		if err == nil {
			err = nc.PublishRequest("provision.hello.127-0-0-1", "_INBOX."+name+".1", []byte(what))
		}
		if err != nil {
			t.Fatal(err)
		}
		msg, err := hosted.NextMsg(time.Minute)
		if err != nil || string(msg.Data) != what {
			t.Fatalf("%s: %v, %v", what, msg, err)
		}
		if err := msg.Respond([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if msg, err := answer.NextMsg(time.Minute); err != nil || string(msg.Data) != "hello" {
			t.Errorf("%s: %v, %v", what, msg, err)
		}
		nc.Close()
	}
	if msg, err := heard.NextMsg(10 * time.Millisecond); err == nil {
		t.Errorf("another account heard %s", msg.Subject)
	}
}

// denied runs do and says what the engine did not.
func denied(nc *nats.Conn, do func() error) error {
	before := nc.LastError()
	if err := do(); err != nil {
		return err
	}
	if err := nc.FlushTimeout(time.Minute); err != nil {
		return err
	}
	if err := nc.LastError(); !errors.Is(err, nats.ErrPermissionViolation) || err == before {
		return fmt.Errorf("it is allowed: %w", errors.Join(err, errors.New("no violation")))
	}
	return nil
}

// TestRefused has clients say what they may not, too much of it, or nothing.
func TestRefused(t *testing.T) {
	s := start(t, &stranger.Protocol{PerAddress: 2, Connections: 3})
	say := func(text string) string {
		conn, err := net.Dial("tcp", s.Addr("provision").String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		in := bufio.NewReader(conn)
		line, err := in.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "INFO ") || strings.Contains(line, "nonce") || strings.Contains(line, "connect_urls") {
			return line
		}
		if _, err := conn.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Minute))
		line, err = in.ReadString('\n')
		if err != nil {
			return "closed: " + err.Error()
		}
		return line
	}
	const ping = "PING\r\n"
	for text, want := range map[string]string{
		"PING\r\n":                                  "first line",
		"GET / HTTP/1.1\r\n\r\n":                    "first line",
		"CONNECT hello\r\n":                         "first line",
		"CONNECT " + strings.Repeat("x", 5000):      "first line",
		"CONNECT {}\r\n":                            "give yourself a user",
		`CONNECT {"user":"short"}` + "\r\n":         "give yourself a user",
		`CONNECT {"user":"a.b.c.d.e.f.>"}` + "\r\n": "give yourself a user",
		`CONNECT {"user":"` + name + `","jwt":"x","sig":"y","nkey":"z"}` + "\r\n" + ping:  "PONG",
		`connect	{"user":"` + name + `"}` + "\r\n" + ping:                                 "PONG",
		`CONNECT {"user":"` + name + `"}` + "\r\nSUB > 1\r\n" + ping:                      "Permissions Violation",
		`CONNECT {"user":"` + name + `"}` + "\r\nPUB provision.hello.127-0-0-1 99999\r\n": "Maximum Payload",
	} {
		if got := say(text); !strings.Contains(got, want) {
			t.Errorf("%.60q is answered %q", text, got)
		}
	}
	var all []*nats.Conn
	for range 2 {
		nc, err := dial(s, nats.UserInfo(name, ""))
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		all = append(all, nc)
	}
	if _, err := dial(s, nats.UserInfo(name, "")); err == nil {
		t.Error("one address has more than it may")
	}
	all[0].Close()
	await.Nil(t, "another may come", func() error {
		nc, err := dial(s, nats.UserInfo(name, ""))
		if err == nil {
			nc.Close()
		}
		return err
	})
}

// TestFlows has strangers shut out of an account that exchanges something, and of one
// that is gone.
func TestFlows(t *testing.T) {
	s := start(t, &stranger.Protocol{})
	c := s.Admin()
	nc, err := dial(s, nats.UserInfo(name, ""))
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
	if _, err := c.AddExport(t.Context(), admin.ExportRequest{Account: "provisioning", Subject: "provision.>", To: []string{"acme"}}); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(s, nats.UserInfo(name, "")); err == nil {
		t.Error("strangers come into an account that is not isolated")
	}
}

// TestEvents has an administrator see strangers come, go and be refused.
func TestEvents(t *testing.T) {
	s := start(t, &stranger.Protocol{})
	nc, err := s.Connect(s.Founded().AdminCreds)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	w, err := admin.WatchEvents(ctx, nc, "", []admin.EventKind{admin.EventConnect, admin.EventDisconnect, admin.EventRefused})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	conn, err := dial(s, nats.UserInfo(name, ""))
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
	if _, err := dial(s); err == nil {
		t.Error("a stranger without a name comes in")
	}
	want := map[admin.EventKind]bool{admin.EventConnect: true, admin.EventDisconnect: true, admin.EventRefused: true}
	deadline := time.After(time.Minute)
	for len(want) > 0 {
		select {
		case msg := <-w.Messages:
			e, err := admin.DecodeEvent(msg)
			if err != nil {
				t.Fatal(err)
			}
			if e.Listener == "provision" && strings.HasPrefix(e.Address, "127.0.0.1:") && (e.Kind == admin.EventRefused || e.Principal == "provisioning/127-0-0-1-"+name) {
				delete(want, e.Kind)
			}
		case <-deadline:
			t.Fatalf("no events of %v", want)
		}
	}
}

// TestPlaintext has a listener without TLS on the network be for strangers alone.
func TestPlaintext(t *testing.T) {
	options := func(edit func(*fleetbus.Listener)) error {
		l := fleetbus.Listener{Name: "provision", Addr: "0.0.0.0:4280", Protocol: &stranger.Protocol{}, Plaintext: true, Account: "provisioning"}
		edit(&l)
		o := fleetbustest.Options(t, "n1")
		o.Listeners = append(o.Listeners, l)
		return o.Validate()
	}
	if err := options(func(*fleetbus.Listener) {}); err != nil {
		t.Error(err)
	}
	for want, edit := range map[string]func(*fleetbus.Listener){
		"open to the network": func(l *fleetbus.Listener) { l.Account = "" },
		"kept for the fleet":  func(l *fleetbus.Listener) { l.Account = identity.FleetName },
		"of this protocol":    func(l *fleetbus.Listener) { l.Name, l.Protocol = "other", fleetbus.NATS() },
	} {
		if err := options(edit); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("of options of which %q is to be said: %v", want, err)
		}
	}
}
