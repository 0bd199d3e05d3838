package shovel

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/hub"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/internal/rabbittest"
)

// house is a node with a listener for AMQP, and a RabbitMQ.
type house struct {
	*fleetbustest.Server
	rabbit *rabbittest.Server
	dir    string
	config *tls.Config
}

func start(t *testing.T) *house {
	t.Helper()
	r := rabbittest.Start(t)
	r.Control("add_user", "link", "not-used-by-anybody")
	r.Control("clear_password", "link")
	r.Control("set_permissions", "link", ".*", ".*", ".*")
	addr := loopback.Addr(t)
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		p := &amqp.Protocol{Logger: slog.New(slog.NewTextHandler(t.Output(), nil))}
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: addr, Protocol: p})
	})
	h := &house{Server: s, rabbit: r, dir: t.TempDir(), config: s.TLS()}
	pair := s.Certificate(admin.UserRequest{Name: "acme/link", Role: "client"})
	h.config.Certificates = []tls.Certificate{pair}
	var chain []byte
	for _, der := range pair.Certificate {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	der, err := x509.MarshalPKCS8PrivateKey(pair.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"link.crt": chain, "link.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})} {
		if err := os.WriteFile(filepath.Join(h.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return h
}

// options are those of a link with certificates on both sides.
func (h *house) options(edit ...func(*Options)) Options {
	o := Options{
		Account: "acme", Node: "n1",
		Remote: End{URL: "amqps://" + h.rabbit.TLSAddr, CA: h.rabbit.CA, Cert: h.rabbit.Cert, Key: h.rabbit.Key},
		Local:  End{URL: "amqps://" + h.Addr("amqp").String(), CA: h.Founded().CA, Cert: filepath.Join(h.dir, "link.crt"), Key: filepath.Join(h.dir, "link.key")},
	}
	for _, e := range edit {
		e(&o)
	}
	return o
}

// run runs a link, until stop is called or the test ends.
func (h *house) run(t *testing.T, o Options) (l *Link, stop func()) {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	l.Logger = slog.New(slog.NewTextHandler(t.Output(), nil)).With("node", o.Node)
	session, err := h.Session(t.Context(), identity.Principal{Account: "acme", Name: "hub", Permissions: Permissions()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	ended := make(chan error, 1)
	go func() { ended <- l.Run(ctx, session.Conn) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the link ended: %v", err)
		}
		session.Close()
	})
	t.Cleanup(stop)
	return l, stop
}

// side is a channel to one of the two brokers.
type side struct {
	*amqp091.Channel
	t *testing.T
}

func (h *house) here(t *testing.T) side {
	t.Helper()
	c, err := amqp091.DialConfig("amqps://"+h.Addr("amqp").String(), amqp091.Config{TLSClientConfig: h.config.Clone(), SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return open(t, c)
}

func (h *house) there(t *testing.T) side {
	t.Helper()
	return open(t, h.rabbit.Dial())
}

func open(t *testing.T, c *amqp091.Connection) side {
	t.Helper()
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.Confirm(false); err != nil {
		t.Fatal(err)
	}
	return side{ch, t}
}

func (s side) queue(names ...string) {
	s.t.Helper()
	for _, name := range names {
		if _, err := s.QueueDeclare(name, true, false, false, false, nil); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s side) send(exchange, key string, m amqp091.Publishing) {
	s.t.Helper()
	m.DeliveryMode = amqp091.Persistent
	d, err := s.PublishWithDeferredConfirm(exchange, key, true, false, m)
	if err != nil || !d.Wait() {
		s.t.Fatalf("publishing: %v", err)
	}
}

// next is the first message of a queue, once there is one.
func (s side) next(queue string) (m amqp091.Delivery) {
	s.t.Helper()
	await.Nil(s.t, "a message in "+queue, func() error {
		var ok bool
		var err error
		if m, ok, err = s.Get(queue, true); err == nil && !ok {
			err = errors.New("it is empty")
		}
		return err
	})
	return m
}

func link(l *Link, name string) admin.HubLink {
	for _, one := range l.Beside().Links {
		if one.Name == name {
			return one
		}
	}
	return admin.HubLink{}
}

func eventually(t *testing.T, what string, l *Link, name string, is func(admin.HubLink) bool) {
	t.Helper()
	await.Nil(t, what, func() error {
		if one := link(l, name); !is(one) {
			return fmt.Errorf("%+v", one)
		}
		return nil
	})
}

// TestLinks has messages be what they were on the other side, and not come back; what
// cannot pass stops nobody; what is refused waits.
func TestLinks(t *testing.T) {
	h := start(t)
	here, there := h.here(t), h.there(t)
	there.queue("jobs", "large", "dropped", "full")
	here.queue("jobs", "large", "back")
	if err := errors.Join(here.ExchangeDeclare("events", "topic", true, false, false, false, nil), there.ExchangeDeclare("events", "topic", true, false, false, false, nil)); err != nil {
		t.Fatal(err)
	}
	if err := here.QueueBind("back", "order.#", "events", false, nil); err != nil {
		t.Fatal(err)
	}
	l, stop := h.run(t, h.options(func(o *Options) {
		o.In = []string{"jobs", "large", "exchange:events/order.# -> exchange:events", "dropped -> missing"}
		o.Out = []string{"back -> full", "jobs -> jobs"}
	}))

	t.Run("properties", func(t *testing.T) {
		m := amqp091.Publishing{
			ContentType: "text/plain", ContentEncoding: "utf-8", Priority: 3, CorrelationId: "c", ReplyTo: "r", Expiration: "600000", MessageId: "m", Timestamp: time.Unix(1700000000, 0),
			Type: "t", UserId: "guest", AppId: "a", Body: []byte{0, 1, 255},
			Headers: amqp091.Table{"text": "x", "int": int32(5), "long": int64(7), "yes": true, "list": []any{int64(1), "b"}, "table": amqp091.Table{"n": nil}, "at": time.Unix(1, 0), "bytes": []byte{1}, "float": 1.5},
		}
		there.send("", "large", m)
		got := here.next("large")
		hops, _ := got.Headers[headerHops].([]any)
		if len(hops) != 1 || hops[0].(amqp091.Table)[hopKey] != "large" {
			t.Errorf("hops %v", got.Headers)
		}
		if got.Headers[headerUser] != "guest" {
			t.Errorf("user %v", got.Headers)
		}
		delete(got.Headers, headerHops)
		delete(got.Headers, headerUser)
		if !reflect.DeepEqual(got.Headers, m.Headers) {
			t.Errorf("headers %#v\nwant %#v", got.Headers, m.Headers)
		}
		back := published(got)
		m.UserId, m.DeliveryMode, back.Headers, m.Headers = "", amqp091.Persistent, nil, nil
		if !back.Timestamp.Equal(m.Timestamp) {
			t.Errorf("timestamp %v", back.Timestamp)
		}
		back.Timestamp = m.Timestamp
		if !reflect.DeepEqual(back, m) {
			t.Errorf("%+v\nwant %+v", back, m)
		}
	})
	t.Run("no loop", func(t *testing.T) {
		// It is in two links that would hand it to one another for ever.
		there.send("", "jobs", amqp091.Publishing{Body: []byte("round")})
		eventually(t, "it is dropped on its way back", l, "out jobs -> jobs", func(one admin.HubLink) bool { return one.Looped == 1 && one.Moved == 0 })
		// It is counted when its confirmation is here, which may be after it is back.
		eventually(t, "it is counted once", l, "in jobs", func(one admin.HubLink) bool { return one.Moved == 1 })
	})
	t.Run("exchange", func(t *testing.T) {
		await.Nil(t, "the link is up", func() error {
			if one := link(l, "in exchange:events/order.# -> exchange:events"); one.State != admin.HubConnected {
				return fmt.Errorf("%+v", one)
			}
			return nil
		})
		there.send("events", "order.new", amqp091.Publishing{Body: []byte("o")})
		eventually(t, "it came, and does not go back", l, "out back -> full", func(one admin.HubLink) bool { return one.Looped == 1 })
	})
	t.Run("too large", func(t *testing.T) {
		there.send("", "large", amqp091.Publishing{Body: []byte("before")})
		there.send("", "large", amqp091.Publishing{Body: make([]byte, 2<<20), MessageId: "big"})
		there.send("", "large", amqp091.Publishing{Body: []byte("behind")})
		seen := map[string]bool{}
		for !seen["behind"] {
			seen[string(here.next("large").Body)] = true
		}
		if !seen["before"] {
			t.Error("what was before it is lost")
		}
		aside := there.next(defaultPark)
		if reason, _ := aside.Headers[headerReason].(string); aside.MessageId != "big" || len(aside.Body) != 2<<20 || !strings.Contains(reason, "message size") {
			t.Errorf("aside: %s, %d bytes, %v", aside.MessageId, len(aside.Body), aside.Headers)
		}
		eventually(t, "it is counted as put aside", l, "in large", func(one admin.HubLink) bool { return one.Parked == 1 })
		if found := l.Check(t.Context()); len(found) != 1 || found[0].Code != "HUB-LINK-PARKED" {
			t.Errorf("%v", found)
		}
	})
	t.Run("no queue", func(t *testing.T) {
		there.send("", "dropped", amqp091.Publishing{Body: []byte("one")})
		eventually(t, "it is returned", l, "in dropped -> missing", func(one admin.HubLink) bool { return one.Returned > 1 && one.Moved == 0 })
		here.queue("missing")
		if got := here.next("missing"); string(got.Body) != "one" {
			t.Errorf("%s", got.Body)
		}
	})
	t.Run("full", func(t *testing.T) {
		if _, err := there.QueueDelete("full", false, false, false); err != nil {
			t.Fatal(err)
		}
		if _, err := there.QueueDeclare("full", true, false, false, false, amqp091.Table{"x-max-length": 1, "x-overflow": "reject-publish"}); err != nil {
			t.Fatal(err)
		}
		for _, body := range []string{"1", "2", "3"} {
			here.send("events", "order.x", amqp091.Publishing{Body: []byte(body)})
		}
		eventually(t, "it is refused", l, "out back -> full", func(one admin.HubLink) bool { return one.Refused > 0 })
		seen := map[string]bool{}
		for len(seen) < 3 {
			seen[string(there.next("full").Body)] = true
		}
	})
	stop()
	if b := l.Beside(); b.State != admin.HubStandby {
		t.Errorf("%+v", b)
	}
}

// TestBlocked has a link wait for a broker that takes nothing, and go on.
func TestBlocked(t *testing.T) {
	h := start(t)
	here, there := h.here(t), h.there(t)
	here.queue("q")
	there.queue("q")
	h.rabbit.Control("set_vm_memory_high_watermark", "0.0000001")
	l, _ := h.run(t, h.options(func(o *Options) { o.Out = []string{"q"} }))
	for i := range 50 {
		here.send("", "q", amqp091.Publishing{Body: fmt.Appendf(nil, "%d", i)})
	}
	eventually(t, "it is told", l, "out q", func(one admin.HubLink) bool { return one.Blocked })
	h.rabbit.Control("set_vm_memory_high_watermark", "0.4")
	eventually(t, "all are there", l, "out q", func(one admin.HubLink) bool { return one.Moved == 50 && !one.Blocked })
	for i := range 50 {
		if got := string(there.next("q").Body); got != fmt.Sprint(i) {
			t.Fatalf("%s comes at %d", got, i)
		}
	}
}

// TestOneHolds has one of two that are configured alike carry messages, and the other when
// that one is gone.
func TestOneHolds(t *testing.T) {
	h := start(t)
	here, there := h.here(t), h.there(t)
	here.queue("q")
	there.queue("q")
	with := func(node string) Options {
		return h.options(func(o *Options) { o.Node, o.In = node, []string{"q"} })
	}
	first, stop := h.run(t, with("n1"))
	eventually(t, "it is up", first, "in q", func(one admin.HubLink) bool { return one.State == admin.HubConnected })
	second, _ := h.run(t, with("n2"))
	there.send("", "q", amqp091.Publishing{Body: []byte("a")})
	here.next("q")
	if one := link(second, "in q"); one.State != admin.HubStandby || one.Moved != 0 {
		t.Errorf("%+v", one)
	}
	stop()
	there.send("", "q", amqp091.Publishing{Body: []byte("b")})
	if got := here.next("q"); string(got.Body) != "b" {
		t.Errorf("%s", got.Body)
	}
	eventually(t, "it has taken over", second, "in q", func(one admin.HubLink) bool { return one.State == admin.HubConnected && one.Moved == 1 })
}

// TestFindings has a link that moves nothing for a minute be found.
func TestFindings(t *testing.T) {
	l, err := New(Options{Account: "acme", Node: "n1", Remote: End{URL: "amqp://rabbit.example.net", User: "u", PasswordFile: "f"}, Local: End{URL: "amqps://n1:1", Cert: "c", Key: "k"}, In: []string{"q"}})
	if err != nil {
		t.Fatal(err)
	}
	codes := func() (all []string) {
		for _, f := range l.Check(t.Context()) {
			all = append(all, f.Code)
		}
		return all
	}
	if got := codes(); fmt.Sprint(got) != "[HUB-PLAINTEXT]" {
		t.Errorf("%v", got)
	}
	l.held(true)
	if got := codes(); fmt.Sprint(got) != "[HUB-PLAINTEXT]" {
		t.Errorf("at once: %v", got)
	}
	l.routes[0].count(func(v *view) { v.ill, v.err = time.Now().Add(-2*handOver), errNacked })
	if got := codes(); fmt.Sprint(got) != "[HUB-PLAINTEXT HUB-LINK-DOWN]" {
		t.Errorf("after two minutes: %v", got)
	}
	// A minute without any link has another node try, and the finding stays meanwhile.
	l.gaveUp()
	l.held(false)
	l.held(true)
	if got := codes(); fmt.Sprint(got) != "[HUB-PLAINTEXT HUB-LINK-DOWN]" {
		t.Errorf("in between: %v", got)
	}
	l.routes[0].count(func(v *view) { v.up, v.upAt = true, time.Now().Add(-2*pending) })
	if got := codes(); fmt.Sprint(got) != "[HUB-PLAINTEXT]" {
		t.Errorf("when it is up: %v", got)
	}
}

func TestParseRoute(t *testing.T) {
	for text, want := range map[string]Route{
		"q":                          {FromQueue: "q", ToQueue: "q"},
		"a -> b":                     {FromQueue: "a", ToQueue: "b"},
		"a%2Fb->c%2Cd":               {FromQueue: "a/b", ToQueue: "c,d"},
		"exchange:e/k.# -> q":        {FromExchange: "e", FromKey: "k.#", ToQueue: "q"},
		"exchange:e/ -> exchange:f/": {FromExchange: "e", ToExchange: "f", HasKey: true},
		"q -> exchange:f":            {FromQueue: "q", ToExchange: "f"},
		"q -> exchange:f/a/b":        {FromQueue: "q", ToExchange: "f", ToKey: "a/b", HasKey: true},
		"":                           {},
		"-> q":                       {},
		"exchange:e":                 {},
		"exchange:e/k":               {},
		"exchange:e -> q":            {},
		"exchange:/k -> q":           {},
		"a%zz":                       {},
		strings.Repeat("a", 256):     {},
	} {
		got, err := ParseRoute(text)
		if bad := want == (Route{}); bad != (err != nil) || !bad && got != want {
			t.Errorf("%.40q: %+v, %v", text, got, err)
		}
	}
}

func FuzzParseRoute(f *testing.F) {
	f.Add("exchange:e/k -> q")
	f.Add("a%2F")
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRoute(text)
		if err == nil && (r.FromQueue == "") == (r.FromExchange == "") {
			t.Errorf("%q: %+v", text, r)
		}
	})
}

func TestValidate(t *testing.T) {
	good := func() Options {
		return Options{Remote: End{URL: "amqps://r", User: "u", PasswordFile: "f"}, Local: End{URL: "amqps://n1:5671/acme", Cert: "c", Key: "k"}, In: []string{"q"}}
	}
	o := good()
	if err := o.Validate(); err != nil {
		t.Error(err)
	}
	for field, edit := range map[string]func(*Options){
		"servers": func(o *Options) { o.Remote.URL = "http://r" }, "local": func(o *Options) { o.Local.URL = "" }, "cert": func(o *Options) { o.Remote.Cert = "c" },
		"local_user": func(o *Options) { o.Local.Cert, o.Local.Key = "", "" }, "user": func(o *Options) { o.Remote.PasswordFile = "" }, "in": func(o *Options) { o.In = nil },
		"in[0]": func(o *Options) { o.In[0] = "->" }, "in[1]": func(o *Options) { o.In = []string{"q", "q"} }, "prefetch": func(o *Options) { o.Prefetch = -1 },
		"max_hops": func(o *Options) { o.MaxHops = 99 }, "park": func(o *Options) { o.Park = "amq.x" },
	} {
		o := good()
		edit(&o)
		var wrong *hub.FieldError
		if err := o.Validate(); !errors.As(err, &wrong) || wrong.Field != field {
			t.Errorf("%s: %v", field, err)
		}
	}
	secret := (&url.URL{Scheme: "amqps", User: url.UserPassword("u", "planted"), Host: "r"}).String()
	o.Remote.URL = secret
	if err := o.Validate(); err == nil || strings.Contains(err.Error(), "planted") {
		t.Errorf("%v", err)
	}
}
