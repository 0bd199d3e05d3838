package demo

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/fleetbustest"
)

func attempt(name string, vital bool, err error) step {
	return step{name: name, vital: vital, try: func(context.Context) (measured, error) {
		return measured{detail: "found", took: 12 * time.Millisecond}, err
	}}
}

// TestSteps checks that a step that does not hold is told, and what needs it is not
// tried.
func TestSteps(t *testing.T) {
	broken := errors.New("it broke")
	holds := func(name string) StepResult { return StepResult{Name: name, Held: true, Took: 0.012, Detail: "found"} }
	fails := StepResult{Name: "a", Took: 0.012, Detail: "it broke"}
	for _, c := range []struct {
		name  string
		steps []step
		want  []StepResult
		held  int
	}{
		{"all hold", []step{attempt("a", true, nil), attempt("b", false, nil)}, []StepResult{holds("a"), holds("b")}, 2},
		{"one does not", []step{attempt("a", false, broken), attempt("b", false, nil)}, []StepResult{fails, holds("b")}, 1},
		{"a vital one does not", []step{attempt("a", true, broken), attempt("b", false, nil)}, []StepResult{fails, {Name: "b", Detail: "not tried: it needs a"}}, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var told []StepResult
			o := Options{Tried: func(r StepResult) { told = append(told, r) }}
			result := o.tryAll(t.Context(), c.steps)
			if !slices.Equal(result.Steps, c.want) || !slices.Equal(told, c.want) {
				t.Errorf("%+v, told %+v, not %+v", result.Steps, told, c.want)
			}
			if result.HeldSteps() != c.held || result.Held != (c.held == len(c.steps)) {
				t.Errorf("%d held, %t", result.HeldSteps(), result.Held)
			}
		})
	}
}

// TestNodeEnds checks that the end of the fleet, unlike the user's interrupt,
// is a reason that is told.
func TestNodeEnds(t *testing.T) {
	ctx, fail := context.WithCancelCause(t.Context())
	fail(errors.New("node n1 ended"))
	waits := step{name: "a", try: func(ctx context.Context) (measured, error) {
		<-ctx.Done()
		return measured{}, ctx.Err()
	}}
	if result := (Options{}).tryAll(ctx, []step{waits}); result.Held || !strings.Contains(result.Steps[0].Detail, "node n1 ended") {
		t.Errorf("%+v", result)
	}
	ctx, fail = context.WithCancelCause(t.Context())
	fail(nil)
	if result := (Options{}).tryAll(ctx, []step{waits}); len(result.Steps) > 0 {
		t.Errorf("after an interrupt: %+v", result)
	}
}

// TestHears checks that a message of another account would be noticed.
func TestHears(t *testing.T) {
	nc := fleetbustest.Start(t).Dial("acme", "client")
	other, err := listen(nc, ">")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := other.probe(ctx, nc); err != nil {
		t.Fatal(err)
	}
	d := &Demo{fleet: &fleet{nodes: []*Node{{Name: "n1"}}}, told: greeting{stranger: nc, others: []*ear{other}}}
	if err := nc.Publish("$JS.API.STREAM.LIST", nil); err != nil {
		t.Fatal(err)
	}
	if _, err := d.greetNobody(ctx); err != nil {
		t.Errorf("nobody spoke, and: %v", err)
	}
	if err := nc.Publish(greetingSubject, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := d.greetNobody(ctx); err == nil || !strings.Contains(err.Error(), greetingSubject) {
		t.Errorf("the message was not noticed: %v", err)
	}
}

// TestReads checks that an acknowledged message that is lost, or another in
// its place, is noticed.
func TestReads(t *testing.T) {
	nc := fleetbustest.Start(t).Dial("acme", "client")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.*"}})
	if err != nil {
		t.Fatal(err)
	}
	w := &writer{js: js}
	stop := w.start(ctx)
	if err := w.acked(ctx, 3); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := w.read(ctx, stream); err != nil {
		t.Errorf("nothing is lost, and: %v", err)
	}
	w.sequences[0], w.sequences[1] = w.sequences[1], w.sequences[0]
	if err := w.read(ctx, stream); err == nil || !strings.Contains(err.Error(), "in its place") {
		t.Errorf("another message was not noticed: %v", err)
	}
	w.sequences[0], w.sequences[1] = w.sequences[1], w.sequences[0]
	if err := stream.DeleteMsg(ctx, w.sequences[1]); err != nil {
		t.Fatal(err)
	}
	if err := w.read(ctx, stream); err == nil || !strings.Contains(err.Error(), "it is lost") {
		t.Errorf("a lost message was not noticed: %v", err)
	}
}

// TestKnocks checks that a node that lets a stranger in, or is not there, is
// no node that refuses.
func TestKnocks(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	foreign, err := foreignCertificates()
	if err != nil {
		t.Fatal(err)
	}
	anyone := &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{foreign.mesh}}
	dial := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	strict := anyone.Clone()
	strict.ClientAuth = tls.RequireAnyClientCert

	open := serveEach(t, func(conn net.Conn) {
		bufio.NewReader(conn).ReadString('\n')
		io.WriteString(conn, "PONG\r\n")
	})
	if err := knockPlain(ctx, port{addr: open}); !errors.Is(err, errNotRefused) {
		t.Errorf("plain, let in: %v", err)
	}
	shut := serveEach(t, func(conn net.Conn) { conn.Read(make([]byte, 1)) })
	if err := knockPlain(ctx, port{addr: shut}); err != nil {
		t.Errorf("plain, refused: %v", err)
	}
	lax := serveEach(t, func(conn net.Conn) { tls.Server(conn, anyone).Write([]byte("+OK")) })
	if err := knockTLS(ctx, port{addr: lax}, dial); !errors.Is(err, errNotRefused) {
		t.Errorf("TLS, let in: %v", err)
	}
	mutual := serveEach(t, func(conn net.Conn) { tls.Server(conn, strict).Handshake() })
	if err := knockTLS(ctx, port{addr: mutual}, dial); err != nil {
		t.Errorf("TLS, refused: %v", err)
	}
	ended := serveEach(t, func(conn net.Conn) { tls.Server(conn, anyone).Handshake() })
	if err := knockTLS(ctx, port{addr: ended}, dial); err == nil {
		t.Error("TLS, closed without an alert: that is no refusal")
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	away := port{addr: ln.Addr().String()}
	for what, err := range map[string]error{"plain": knockPlain(ctx, away), "TLS": knockTLS(ctx, away, dial)} {
		if !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s, nobody there: %v", what, err)
		}
	}
}

// serveEach serves each connection and closes it.
func serveEach(t *testing.T, serve func(net.Conn)) (addr string) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			serve(conn)
			conn.Close()
		}
	}()
	return ln.Addr().String()
}

// TestLoad checks that a dropped connection and a lost message are noticed.
func TestLoad(t *testing.T) {
	lost := errors.New("no answer")
	for name, spoil := range map[string]func(*load){
		"dropped": func(l *load) { l.dropped.Add(1) },
		"lost":    func(l *load) { l.clients[0].lost.Store(&lost) },
	} {
		l := &load{clients: []*loadClient{{}}}
		if err := l.failed(); err != nil {
			t.Errorf("%s: at first: %v", name, err)
		}
		spoil(l)
		if err := l.failed(); err == nil {
			t.Errorf("%s: not noticed", name)
		}
		if err := l.answeredEach(t.Context(), 1); err == nil {
			t.Errorf("%s: waited for", name)
		}
	}
}
