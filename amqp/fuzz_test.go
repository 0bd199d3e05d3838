package amqp

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
	"github.com/fleetbus/fleetbus/internal/wire"
)

// noPanic fails a test by what is logged of a panic.
type noPanic struct {
	slog.Handler
	t testing.TB
}

func (h noPanic) Enabled(context.Context, slog.Level) bool { return true }

func (h noPanic) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		h.t.Error(r.Message)
		r.Attrs(func(a slog.Attr) bool { h.t.Error(a.String()); return true })
	}
	return nil
}

// piped serves one client over a pipe, which logs in by a name alone and is somebody.
func piped(t testing.TB, f *fake, o Options) (client net.Conn, served chan struct{}) {
	p := &Protocol{Logger: slog.New(noPanic{slog.DiscardHandler, t}), vhosts: f, Options: o}
	client, server := net.Pipe()
	served = make(chan struct{})
	go func() {
		defer close(served)
		p.serve(t.Context(), server, func(_ context.Context, c identity.Credentials) (*fleetbus.Session, error) {
			if c.Username == "" {
				return nil, identity.ErrUnauthorized
			}
			return &fleetbus.Session{Principal: identity.Principal{Account: "acme", Name: c.Username}}, nil
		}, strangers.New(0, nil))
	}()
	return client, served
}

// FuzzConnection sends anything after the handshake, or in its place. Nothing of it ends
// the process, every connection is over when its client is, and every message that was
// handed out is settled then.
func FuzzConnection(f *testing.F) {
	hello := []byte(frame.ProtocolHeader)
	for _, m := range []frame.Method{
		&frame.ConnectionStartOk{Mechanism: "PLAIN", Response: "\x00x\x00y"}, &frame.ConnectionTuneOk{ChannelMax: 9, FrameMax: frame.MinFrame}, &frame.ConnectionOpen{VirtualHost: "/"},
	} {
		hello = append(hello, must(frame.AppendMethod(nil, 0, m))...)
	}
	seed := func(methods ...frame.Method) {
		var b []byte
		for _, m := range methods {
			b = append(b, must(frame.AppendMethod(nil, 1, m))...)
			if frame.HasContent(m) {
				b = frame.AppendContent(b, 1, []byte{0, 0}, []byte("body"), frame.MinFrame)
			}
		}
		f.Add(true, b)
	}
	f.Add(false, hello)
	f.Add(false, hello[:30])
	f.Add(true, must(frame.AppendMethod(nil, 0, &frame.ConnectionClose{})))
	f.Add(true, must(frame.AppendMethod(nil, 0, &frame.ConnectionUpdateSecret{NewSecret: "z"})))
	open, declare := &frame.ChannelOpen{}, &frame.QueueDeclare{Queue: "q", Exclusive: true}
	publish := &frame.BasicPublish{RoutingKey: "q", Mandatory: true}
	seed(open, declare, publish, &frame.BasicGet{Queue: "q"}, &frame.BasicAck{DeliveryTag: 1})
	seed(open, declare, &frame.BasicQos{PrefetchCount: 1}, &frame.BasicConsume{ConsumerTag: "c"}, publish, publish, &frame.BasicNack{DeliveryTag: 1, Requeue: true}, &frame.BasicCancel{ConsumerTag: "c"})
	seed(open, declare, &frame.TxSelect{}, publish, &frame.TxCommit{}, &frame.BasicGet{}, &frame.BasicReject{DeliveryTag: 1}, &frame.TxRollback{}, &frame.BasicRecover{Requeue: true})
	seed(open, &frame.ConfirmSelect{}, publish, declare, publish, &frame.ChannelClose{}, open, &frame.QueueDelete{Queue: "q"})
	seed(open, declare, &frame.BasicConsume{NoAck: true}, &frame.QueueBind{Exchange: "fan"}, &frame.BasicPublish{Exchange: "fan"}, &frame.QueuePurge{}, &frame.BasicAck{DeliveryTag: 5}, &frame.ChannelCloseOk{}, open)
	f.Fuzz(func(t *testing.T, begun bool, sent []byte) {
		vhost := newFake()
		client, served := piped(t, vhost, Options{MaxMessage: 4096, Pending: 1024})
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = io.Copy(io.Discard, client)
		}()
		if begun {
			_, _ = client.Write(hello)
		}
		_, _ = client.Write(sent)
		client.Close()
		<-served
		<-read
		if n := vhost.attached(); n != 0 {
			t.Errorf("%d are attached", n)
		}
		for name, q := range vhost.queues {
			if len(q.given) > 0 || len(q.consumers) > 0 {
				t.Errorf("%q has %d that are handed out, and %d consumers", name, len(q.given), len(q.consumers))
			}
		}
	})
}

// BenchmarkThrough publishes messages of 256 bytes with confirms, 500 at once, and
// consumes them on the same connection. It is the machine alone: the queue is the tests'
// own, and there is no TLS.
func BenchmarkThrough(b *testing.B) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	p := &Protocol{vhosts: newFake()}
	ctx, cancel := context.WithCancel(b.Context())
	served := make(chan error, 1)
	go func() {
		served <- p.Serve(ctx, ln, func(_ context.Context, c identity.Credentials) (*fleetbus.Session, error) {
			return &fleetbus.Session{Principal: identity.Principal{Account: "acme", Name: c.Username}}, nil
		})
	}()
	defer func() {
		cancel()
		if err := <-served; err != nil {
			b.Error(err)
		}
	}()
	conn, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	out := []byte(frame.ProtocolHeader)
	for _, m := range []frame.Method{
		&frame.ConnectionStartOk{Mechanism: "PLAIN", Response: "\x00x\x00y"}, &frame.ConnectionTuneOk{ChannelMax: 9, FrameMax: frame.DefaultMaximum}, &frame.ConnectionOpen{VirtualHost: "/"},
	} {
		out = append(out, must(frame.AppendMethod(nil, 0, m))...)
	}
	for _, m := range []frame.Method{&frame.ChannelOpen{}, &frame.ConfirmSelect{}, &frame.QueueDeclare{Queue: "q"}, &frame.BasicConsume{NoAck: true}} {
		out = append(out, must(frame.AppendMethod(nil, 1, m))...)
	}
	if _, err := conn.Write(out); err != nil {
		b.Fatal(err)
	}
	one := must(frame.AppendMethod(nil, 1, &frame.BasicPublish{RoutingKey: "q"}))
	one = frame.AppendContent(one, 1, []byte{0, 0}, make([]byte, 256), frame.DefaultMaximum)
	const window = 500
	room := make(chan struct{}, window)
	got := make(chan error, 1)
	go func() {
		r := frame.NewReader(conn, 64<<10)
		delivered, told := 0, uint64(0)
		for delivered < b.N || told < uint64(b.N) {
			f, err := r.Next()
			if err != nil {
				got <- err
				return
			}
			if f.Kind != frame.KindMethod {
				continue
			}
			m, err := r.Method(f)
			if err != nil {
				got <- err
				return
			}
			switch m := m.(type) {
			case *frame.BasicDeliver:
				delivered++
			case *frame.BasicAck:
				for ; told < m.DeliveryTag; told++ {
					<-room
				}
			case *frame.BasicNack, *frame.ConnectionClose, *frame.ChannelClose:
				got <- errors.New("it was refused")
				return
			}
		}
		got <- nil
	}()
	b.ReportAllocs()
	b.ResetTimer()
	batch := make([]byte, 0, 64<<10)
	for range b.N {
		select {
		case room <- struct{}{}:
		default:
			if _, err := conn.Write(batch); err != nil {
				b.Fatal(err)
			}
			batch = batch[:0]
			room <- struct{}{}
		}
		if batch = append(batch, one...); len(batch) > 16<<10 {
			if _, err := conn.Write(batch); err != nil {
				b.Fatal(err)
			}
			batch = batch[:0]
		}
	}
	if _, err := conn.Write(batch); err != nil {
		b.Fatal(err)
	}
	select {
	case err := <-got:
		if err != nil {
			b.Fatal(err)
		}
	case <-time.After(time.Minute):
		b.Fatal("not all came")
	}
}

// FuzzInward reads headers of any bytes: what comes of them can be a message's.
func FuzzInward(f *testing.F) {
	f.Add([]byte("NATS/1.0\r\nContent-Type: a/b\r\nMqtt-Expires: 99999999999999\r\nAmqp-Priority: 3\r\nAmqp-Headers: AAAAAA==\r\nMqtt-User: AWEBYg==\r\n\r\n"))
	f.Add([]byte("NATS/1.0\r\nSite: \"x\\r\\n\"\r\nCC: q\r\nAmqp-Timestamp: 7\r\n\r\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, over := properties(&wire.Message{Header: b})
		if over {
			return
		}
		encoded, err := p.Append(nil)
		if err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		if err := frame.CheckProperties(encoded); err != nil {
			t.Fatalf("%+v: %v", p, err)
		}
		if _, is := p.Headers["CC"]; is || p.UserID != "" {
			t.Fatalf("%+v", p)
		}
	})
}
