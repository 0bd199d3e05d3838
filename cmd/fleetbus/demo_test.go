package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// TestDemo runs the demonstration as the command line does. This test's own
// binary is the program that its nodes run.
func TestDemo(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a quarter of a minute")
	}
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	a, stdout, stderr := testApp("", os.Environ()...)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	if code := a.run(ctx, []string{"demo", "-o", "json"}); code != exitOK {
		t.Errorf("exit code %d", code)
	}
	if stderr.Len() > 0 {
		t.Errorf("stderr: %s", stderr)
	}
	var result demoResult
	if err := json.Unmarshal(stdout.Bytes(), &result); err != nil {
		t.Fatalf("stdout is not JSON alone: %v:\n%s", err, stdout)
	}
	if !result.Held || len(result.Steps) != 11 {
		t.Errorf("held: %t, %d steps", result.Held, len(result.Steps))
	}
	for _, s := range result.Steps {
		if !s.Held || s.Took <= 0 || s.Detail == "" {
			t.Errorf("step %+v", s)
		}
		t.Logf("%-48s %6.3f s  %s", s.Name, s.Took, s.Detail)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// TestDemoInterrupted ends it while its nodes start.
func TestDemoInterrupted(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	a, stdout, stderr := testApp("", os.Environ()...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	done := make(chan exitCode, 1)
	go func() { done <- a.run(ctx, []string{"demo"}) }()
	// A log is there once its node has been started.
	logs := os.DirFS(dir)
	within(t, "a node to start", func() bool {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) == 0 {
			return false
		}
		f, err := logs.Open(entries[0].Name() + "/n3.log")
		if err == nil {
			f.Close()
		}
		return err == nil
	})
	cancel()
	select {
	case code := <-done:
		if code != exitInterrupted || stdout.Len() > 0 {
			t.Errorf("exit code %d, %s, %s", code, stdout, stderr)
		}
	case <-time.After(time.Minute):
		t.Fatal("it did not end")
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// within waits until done is true.
func within(t *testing.T, what string, done func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	err := retry(ctx, "waiting for "+what, func(context.Context) error {
		if !done() {
			return errors.New("not yet")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func step(name string, vital bool, err error) demoStep {
	return demoStep{name: name, vital: vital, try: func(context.Context) (demoFinding, error) {
		return demoFinding{detail: "measured", took: 12 * time.Millisecond}, err
	}}
}

// TestDemoSteps checks that a step that does not hold is told and fails the
// command.
func TestDemoSteps(t *testing.T) {
	broken := errors.New("it broke")
	for _, c := range []struct {
		name  string
		steps []demoStep
		held  int
		lines []string
	}{
		{"all hold", []demoStep{step("a", true, nil), step("b", false, nil)}, 2, []string{"  ok   a ", "  ok   b "}},
		{"one does not", []demoStep{step("a", false, broken), step("b", false, nil)}, 1, []string{"  FAIL a ", "  ok   b "}},
		{"a vital one does not", []demoStep{step("a", true, broken), step("b", false, nil)}, 0, []string{"  FAIL a ", "not tried: it needs a"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			a, stdout, _ := testApp("")
			a.format = formatTable
			result := a.tryAll(t.Context(), c.steps)
			if err := a.show(report{value: result, text: result.conclude(false)}); err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(stdout.String(), "\n")
			for i, want := range c.lines {
				if !strings.Contains(lines[i], want) {
					t.Errorf("line %q, not %q", lines[i], want)
				}
			}
			if strings.Contains(lines[0], "it broke") != (c.held < len(c.steps)) || !strings.Contains(lines[0], " 12 ms ") {
				t.Errorf("line %q", lines[0])
			}
			code := exitOK
			if err := result.failure(); err != nil {
				code = explain(t.Context(), err).code
			}
			if whole := c.held == len(c.steps); result.held() != c.held || result.Held != whole || (code == exitOK) != whole || code != exitOK && code != exitFailed {
				t.Errorf("%d held, %t, exit code %d", result.held(), result.Held, code)
			}
		})
	}
}

// TestDemoNodeEnds checks that the end of the fleet, unlike the user's interrupt,
// is a reason that is told.
func TestDemoNodeEnds(t *testing.T) {
	a, stdout, _ := testApp("")
	a.format = formatTable
	ctx, fail := context.WithCancelCause(t.Context())
	fail(errors.New("node n1 ended"))
	waits := demoStep{name: "a", try: func(ctx context.Context) (demoFinding, error) {
		<-ctx.Done()
		return demoFinding{}, ctx.Err()
	}}
	if result := a.tryAll(ctx, []demoStep{waits}); result.Held || !strings.Contains(stdout.String(), "node n1 ended") {
		t.Errorf("%+v, %s", result, stdout)
	}
	ctx, fail = context.WithCancelCause(t.Context())
	fail(nil)
	if result := a.tryAll(ctx, []demoStep{waits}); len(result.Steps) > 0 {
		t.Errorf("after an interrupt: %+v", result)
	}
}

// TestDemoHears checks that a message of another account would be noticed.
func TestDemoHears(t *testing.T) {
	f := newTestFleet(t)
	nc := must[*nats.Conn](t)(nats.Connect("tls://"+f.server, nats.RootCAs(f.dir+"/admin/ca.pem"),
		nats.UserCredentials(writeFile(t, t.TempDir()+"/u.creds", f.creds(t, "acme", "client")))))
	defer nc.Close()
	other, err := listen(nc, ">")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := other.probe(ctx, nc); err != nil {
		t.Fatal(err)
	}
	d := &demo{demoFleet: &demoFleet{nodes: []*demoNode{{name: "n1"}}}, told: greeting{stranger: nc, others: []*ear{other}}}
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

// TestDemoReads checks that an acknowledged message that is lost, or another in
// its place, is noticed.
func TestDemoReads(t *testing.T) {
	f := newTestFleet(t)
	nc := must[*nats.Conn](t)(nats.Connect("tls://"+f.server, nats.RootCAs(f.dir+"/admin/ca.pem"),
		nats.UserCredentials(writeFile(t, t.TempDir()+"/u.creds", f.creds(t, "acme", "client")))))
	defer nc.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	js := must[jetstream.JetStream](t)(jetstream.New(nc))
	stream := must[jetstream.Stream](t)(js.CreateStream(ctx, jetstream.StreamConfig{Name: "ORDERS", Subjects: []string{"orders.*"}}))
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

// TestDemoKnocks checks that a node that lets a stranger in, or is not there, is
// no node that refuses.
func TestDemoKnocks(t *testing.T) {
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

	open := serveDemo(t, func(conn net.Conn) {
		bufio.NewReader(conn).ReadString('\n')
		io.WriteString(conn, "PONG\r\n")
	})
	if err := knockPlain(ctx, port{addr: open}); !errors.Is(err, errNotRefused) {
		t.Errorf("plain, let in: %v", err)
	}
	shut := serveDemo(t, func(conn net.Conn) { conn.Read(make([]byte, 1)) })
	if err := knockPlain(ctx, port{addr: shut}); err != nil {
		t.Errorf("plain, refused: %v", err)
	}
	lax := serveDemo(t, func(conn net.Conn) { tls.Server(conn, anyone).Write([]byte("+OK")) })
	if err := knockTLS(ctx, port{addr: lax}, dial); !errors.Is(err, errNotRefused) {
		t.Errorf("TLS, let in: %v", err)
	}
	mutual := serveDemo(t, func(conn net.Conn) { tls.Server(conn, strict).Handshake() })
	if err := knockTLS(ctx, port{addr: mutual}, dial); err != nil {
		t.Errorf("TLS, refused: %v", err)
	}
	ended := serveDemo(t, func(conn net.Conn) { tls.Server(conn, anyone).Handshake() })
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

// serveDemo serves each connection and closes it.
func serveDemo(t *testing.T, serve func(net.Conn)) (addr string) {
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

// TestDemoLoad checks that a dropped connection and a lost message are noticed.
func TestDemoLoad(t *testing.T) {
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

// TestDemoShows checks that --keep without a fleet says where the logs are.
func TestDemoShows(t *testing.T) {
	a, stdout, stderr := testApp("")
	a.format = formatJSON
	a.showDemo(&demo{demoFleet: &demoFleet{dir: "/tmp/demo", ctx: t.Context()}})
	if stdout.Len() > 0 || !bytes.Contains(stderr.Bytes(), []byte("/tmp/demo")) {
		t.Errorf("stdout %q, stderr %q", stdout, stderr)
	}
}
