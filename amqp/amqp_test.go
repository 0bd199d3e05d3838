package amqp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// house is a server with a listener for AMQP, and the fake behind it.
type house struct {
	*fleetbustest.Server
	p      *Protocol
	f      *fake
	config *tls.Config
}

func start(t *testing.T, edit ...func(*Protocol)) *house {
	t.Helper()
	f := newFake()
	p := &Protocol{Logger: slog.New(slog.NewTextHandler(t.Output(), nil)), vhosts: f, Options: Options{Passwords: true, Account: "acme"}}
	for _, e := range edit {
		e(p)
	}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme", "other"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "amqp", Addr: "127.0.0.1:0", Protocol: p})
	})
	config := s.TLS()
	config.Certificates = []tls.Certificate{s.Certificate(admin.UserRequest{Name: "acme/device", Role: "client"})}
	return &house{s, p, f, config}
}

// connect connects the field's client by its certificate, unless edit says otherwise.
func (h *house) connect(t *testing.T, edit ...func(*amqp091.Config)) (*amqp091.Connection, error) {
	t.Helper()
	config := amqp091.Config{TLSClientConfig: h.config.Clone(), SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}, Heartbeat: time.Minute}
	for _, e := range edit {
		e(&config)
	}
	c, err := amqp091.DialConfig("amqps://"+h.Addr("amqp").String(), config)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func (h *house) channel(t *testing.T, edit ...func(*amqp091.Config)) *amqp091.Channel {
	t.Helper()
	c, err := h.connect(t, edit...)
	if err != nil {
		t.Fatal(err)
	}
	ch, err := c.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func declare(t *testing.T, ch *amqp091.Channel, name string) {
	t.Helper()
	if _, err := ch.QueueDeclare(name, false, false, false, false, nil); err != nil {
		t.Fatal(err)
	}
}

func publish(t *testing.T, ch *amqp091.Channel, queue string, bodies ...string) {
	t.Helper()
	for _, b := range bodies {
		if err := ch.PublishWithContext(t.Context(), "", queue, false, false, amqp091.Publishing{Body: []byte(b)}); err != nil {
			t.Fatal(err)
		}
	}
}

// next is what comes next.
func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v, ok := <-from:
		if !ok {
			t.Fatal("nothing comes any more")
		}
		return v
	case <-time.After(2 * time.Minute):
		t.Fatal("nothing came")
	}
	panic("unreachable")
}

// wants holds an error to what a client of RabbitMQ sees.
func wants(t *testing.T, err error, code int, reason string) {
	t.Helper()
	e, ok := errors.AsType[*amqp091.Error](err)
	if !ok || e.Code != code || reason != "" && e.Reason != reason {
		t.Errorf("got %v, want %d %q", err, code, reason)
	}
}

// raw is a client that sends frames one by one.
type raw struct {
	t *testing.T
	net.Conn
	r *frame.Reader
}

func (h *house) raw(t *testing.T) *raw {
	t.Helper()
	conn, err := tls.Dial("tcp", h.Addr("amqp").String(), h.config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(2 * time.Minute)); err != nil {
		t.Fatal(err)
	}
	return &raw{t, conn, frame.NewReader(conn, 4096)}
}

func (r *raw) bytes(b []byte) {
	r.t.Helper()
	if _, err := r.Write(b); err != nil {
		r.t.Fatal(err)
	}
}

func (r *raw) send(channel uint16, methods ...frame.Method) {
	r.t.Helper()
	var b []byte
	var err error
	for _, m := range methods {
		if b, err = frame.AppendMethod(b, channel, m); err != nil {
			r.t.Fatal(err)
		}
	}
	r.bytes(b)
}

// message sends a message.
func (r *raw) message(channel uint16, m *frame.BasicPublish, body string) {
	r.t.Helper()
	b, err := frame.AppendMethod(nil, channel, m)
	if err != nil {
		r.t.Fatal(err)
	}
	r.bytes(frame.AppendContent(b, channel, []byte{0, 0}, []byte(body), frame.MinFrame))
}

// is is the next method, which must be an M; heartbeats do not count.
func is[M frame.Method](r *raw) M {
	r.t.Helper()
	for {
		f, err := r.r.Next()
		if err != nil {
			r.t.Fatal(err)
		}
		if f.Kind == frame.KindHeartbeat {
			continue
		}
		got, err := frame.DecodeMethod(f.Payload)
		if err != nil {
			r.t.Fatalf("%+v: %v", f, err)
		}
		m, ok := got.(M)
		if !ok {
			r.t.Fatalf("got %v %+v", got.ID(), got)
		}
		return m
	}
}

// gone says that the connection is over.
func (r *raw) gone() {
	r.t.Helper()
	for {
		f, err := r.r.Next()
		if err != nil {
			if timeout, ok := errors.AsType[net.Error](err); ok && timeout.Timeout() {
				r.t.Error("the connection is still there")
			}
			return
		}
		if f.Kind != frame.KindHeartbeat {
			r.t.Errorf("got %+v", f)
		}
	}
}

// closed is why the server closes the connection.
func (r *raw) closed(code frame.Code) string {
	r.t.Helper()
	m := is[*frame.ConnectionClose](r)
	if m.ReplyCode != code {
		r.t.Errorf("closed by %d %s", m.ReplyCode, m.ReplyText)
	}
	r.send(0, &frame.ConnectionCloseOk{})
	r.gone()
	return m.ReplyText
}

func (r *raw) start(mechanism, response string) {
	r.t.Helper()
	r.bytes([]byte(frame.ProtocolHeader))
	is[*frame.ConnectionStart](r)
	r.send(0, &frame.ConnectionStartOk{
		ClientProperties: frame.Table{"capabilities": frame.Table{"authentication_failure_close": true, "connection.blocked": true, "consumer_cancel_notify": true}},
		Mechanism:        mechanism, Response: frame.Secret(response), Locale: "en_US",
	})
}

// open opens the virtual host and a channel.
func (r *raw) open() *raw {
	r.t.Helper()
	r.start("EXTERNAL", "")
	is[*frame.ConnectionTune](r)
	r.send(0, &frame.ConnectionTuneOk{ChannelMax: 16, FrameMax: frame.MinFrame}, &frame.ConnectionOpen{VirtualHost: "/"})
	is[*frame.ConnectionOpenOk](r)
	r.send(1, &frame.ChannelOpen{})
	is[*frame.ChannelOpenOk](r)
	return r
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	await.Nil(t, what, func() error {
		if !done() {
			return errors.New("no")
		}
		return nil
	})
}

func TestMessageTravels(t *testing.T) {
	h := start(t)
	ch := h.channel(t)
	declare(t, ch, "q")
	out, err := ch.Consume("q", "me", false, false, false, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	headers := amqp091.Table{
		"bool": true, "int8": int8(-1), "uint8": uint8(1), "int16": int16(-2), "uint16": uint16(2), "int32": int32(-3), "uint32": uint32(3), "int64": int64(-4),
		"float32": float32(1.5), "float64": 2.5, "decimal": amqp091.Decimal{Scale: 2, Value: 31415}, "string": "é", "array": []any{int32(1), "a", nil},
		"time": time.Unix(1e9, 0).UTC(), "table": amqp091.Table{"a": amqp091.Table{"b": true}}, "bytes": []byte{0, 255}, "nil": nil,
	}
	for _, size := range []int{0, 1, 130_000, 131_064, 131_065, 4 << 20} {
		in := amqp091.Publishing{
			Headers: headers, ContentType: "a/b", ContentEncoding: "c", DeliveryMode: 2, Priority: 3, CorrelationId: "d", ReplyTo: "e", Expiration: "60000",
			MessageId: "f", Timestamp: time.Unix(1e9, 0), Type: "g", UserId: "device", AppId: "h", Body: make([]byte, size),
		}
		if err := ch.PublishWithContext(t.Context(), "", "q", false, false, in); err != nil {
			t.Fatal(err)
		}
		got := next(t, out)
		if len(got.Body) != size || got.ConsumerTag != "me" || got.RoutingKey != "q" || got.Redelivered {
			t.Fatalf("%d bytes of %d, %s", len(got.Body), size, got.ConsumerTag)
		}
		got.Timestamp = got.Timestamp.UTC()
		if a, ok := got.Headers["time"].(time.Time); ok {
			got.Headers["time"] = a.UTC()
		}
		if fmt.Sprint(got.Headers) != fmt.Sprint(headers) {
			t.Errorf("headers %v came as %v", headers, got.Headers)
		}
		if got.ContentType != "a/b" || got.ContentEncoding != "c" || got.DeliveryMode != 2 || got.Priority != 3 || got.CorrelationId != "d" || got.ReplyTo != "e" ||
			got.Expiration != "60000" || got.MessageId != "f" || got.Timestamp.Unix() != 1e9 || got.Type != "g" || got.UserId != "device" || got.AppId != "h" {
			t.Errorf("%+v", got)
		}
		if err := got.Ack(false); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all acknowledged", func() bool { ready, given := h.f.waiting("q"); return ready == 0 && given == 0 })
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}
