package fleetbus_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// lines is the smallest protocol that has everything: a client says LOGIN, with a
// name and a password or nothing beside its certificate, or TOKEN, and then PUB
// and SUB. It is answered OK or ERR; messages come as MSG.
type lines struct {
	// patience is how long a client may take to log in.
	patience time.Duration
}

// Serve serves until ctx is done.
func (p lines) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	var clients sync.WaitGroup
	defer clients.Wait()
	for {
		conn, err := ln.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		clients.Go(func() { p.talk(ctx, conn, login) })
	}
}

// talk is over when the client, its session or the server ends.
func (p lines) talk(ctx context.Context, conn net.Conn, login fleetbus.Login) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	_ = conn.SetDeadline(time.Now().Add(p.patience))
	in := bufio.NewScanner(conn)
	in.Buffer(nil, 4096)
	if !in.Scan() {
		return
	}
	c := lineClient{conn: conn}
	session, err := login(ctx, c.credentials(in.Text()))
	_ = conn.SetWriteDeadline(time.Now().Add(p.patience)) // a login waits for others
	if err == nil {
		err = session.Open()
	}
	if err != nil {
		if !errors.Is(err, identity.ErrUnauthorized) {
			err = errors.New("unavailable")
		}
		c.say("ERR", err.Error())
		return
	}
	defer session.Close()
	// It may have ended before there was a handler to tell.
	session.SetClosedHandler(func(*nats.Conn) { conn.Close() })
	if session.IsClosed() {
		return
	}
	_ = conn.SetDeadline(time.Time{})
	c.session = session
	c.say("OK", session.Principal.String())
	for in.Scan() {
		if err := c.obey(in.Text()); err != nil {
			c.say("ERR", err.Error())
		} else {
			c.say("OK")
		}
	}
}

type lineClient struct {
	conn    net.Conn
	session *fleetbus.Session
	mu      sync.Mutex
}

func (c *lineClient) say(words ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	fmt.Fprintln(c.conn, strings.Join(words, " "))
}

func (c *lineClient) credentials(line string) identity.Credentials {
	creds := identity.Credentials{Remote: c.conn.RemoteAddr().String()}
	if t, ok := c.conn.(*tls.Conn); ok {
		state := t.ConnectionState()
		creds.TLS = &state
	}
	verb, rest, _ := strings.Cut(line, " ")
	switch verb {
	case "LOGIN":
		creds.Username, creds.Password, _ = strings.Cut(rest, " ")
	case "TOKEN":
		creds.Token = rest
	}
	return creds
}

func (c *lineClient) obey(line string) error {
	verb, rest, _ := strings.Cut(line, " ")
	subject, text, _ := strings.Cut(rest, " ")
	before := c.session.LastError()
	var err error
	switch verb {
	case "PUB":
		err = c.session.Publish(subject, []byte(text))
	case "SUB":
		_, err = c.session.Subscribe(subject, func(msg *nats.Msg) { c.say("MSG", msg.Subject, string(msg.Data)) })
	default:
		return errors.New("unknown verb")
	}
	if err == nil {
		err = c.session.Flush()
	}
	// The engine tells of a violation before it answers the flush.
	if last := c.session.LastError(); err == nil && last != before {
		return last
	}
	return err
}

// lineConn is a client of lines.
type lineConn struct {
	net.Conn
	in *bufio.Scanner
	// messages came while an answer was awaited.
	messages []string
}

// dialLines connects and sends the opening line.
func dialLines(ctx context.Context, addr string, config *tls.Config, opening string) (*lineConn, error) {
	conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &lineConn{Conn: conn, in: bufio.NewScanner(conn)}
	if err := c.ask(ctx, opening); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

func loginLines(ctx context.Context, addr string, config *tls.Config, user, password string) (fleetbustest.ProtocolClient, error) {
	c, err := dialLines(ctx, addr, config, strings.TrimSpace("LOGIN "+user+" "+password))
	if err != nil {
		return nil, err
	}
	return c, nil
}

// refused is what the server said after ERR.
type refused string

func (r refused) Error() string { return string(r) }

// next is the next line.
func (c *lineConn) next(ctx context.Context) (string, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	if !c.in.Scan() {
		if err := c.in.Err(); err != nil {
			return "", err
		}
		return "", net.ErrClosed
	}
	return c.in.Text(), nil
}

// ask sends a line and waits for its answer.
func (c *lineConn) ask(ctx context.Context, line string) error {
	if _, err := fmt.Fprintln(c.Conn, line); err != nil {
		return err
	}
	for {
		answer, err := c.next(ctx)
		if err != nil {
			return err
		}
		verb, rest, _ := strings.Cut(answer, " ")
		switch verb {
		case "MSG":
			c.messages = append(c.messages, rest)
		case "ERR":
			return refused(rest)
		default:
			return nil
		}
	}
}

func (c *lineConn) Publish(ctx context.Context, subject, text string) error {
	return c.ask(ctx, "PUB "+subject+" "+text)
}

func (c *lineConn) Subscribe(ctx context.Context, subject string) error {
	return c.ask(ctx, "SUB "+subject)
}

func (c *lineConn) Receive(ctx context.Context) (subject, text string, err error) {
	if len(c.messages) == 0 {
		line, err := c.next(ctx)
		if err != nil {
			return "", "", err
		}
		c.messages = []string{strings.TrimPrefix(line, "MSG ")}
	}
	subject, text, _ = strings.Cut(c.messages[0], " ")
	c.messages = c.messages[1:]
	return subject, text, nil
}

// withLines adds a listener named "lines", and shortens the drain.
func withLines(o *fleetbus.Options) {
	o.Grace = 100 * time.Millisecond
	o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "lines", Addr: "127.0.0.1:0", Protocol: lines{patience: 2 * time.Second}})
}

func TestLinesKeepTheContract(t *testing.T) {
	fleetbustest.TestProtocol(t, fleetbustest.ProtocolContract{Protocol: func() fleetbus.Protocol { return lines{patience: 2 * time.Second} }, Dial: loginLines})
}

// TestEngineRefuses shows that it is the engine that refuses, in its own words,
// and that the session lives on.
func TestEngineRefuses(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	role := identity.Role{Name: "orders", Permissions: identity.Permissions{
		Publish:   identity.Rule{Allow: []string{"orders.>"}, Deny: []string{"orders.secret"}},
		Subscribe: identity.Rule{Allow: []string{"orders.>"}, Deny: []string{"orders.secret"}},
	}}
	if _, err := s.Admin().AddRole(limited(t, 10*time.Second), role); err != nil {
		t.Fatal(err)
	}
	password := s.Password(admin.UserRequest{Name: "acme/alice", Role: "orders"})
	c, err := loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), s.TLS(), "acme/alice", password)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := limited(t, 10*time.Second)
	for _, subject := range []string{"other", "orders.secret"} {
		if err := c.Publish(ctx, subject, "x"); err == nil || !strings.Contains(strings.ToLower(err.Error()), "permissions violation for publish") {
			t.Errorf("publishing to %q: %v", subject, err)
		}
		if err := c.Subscribe(ctx, subject); err == nil || !strings.Contains(strings.ToLower(err.Error()), "permissions violation for subscription") {
			t.Errorf("subscribing to %q: %v", subject, err)
		}
	}
	if err := c.Publish(ctx, "orders.new", "x"); err != nil {
		t.Errorf("publishing to what is allowed: %v", err)
	}
}

// A protocol that cannot go on.
type broken struct{ err error }

func (b broken) Serve(context.Context, net.Listener, fleetbus.Login) error { return b.err }

// run starts a server that is expected to end by itself, and returns its error.
func run(t *testing.T, o fleetbus.Options) error {
	t.Helper()
	s, err := fleetbus.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx := limited(t, 60*time.Second)
	err = s.Run(ctx)
	if ctx.Err() != nil {
		t.Fatal("the server did not end by itself")
	}
	return err
}

func TestFailedListenerStopsTheServer(t *testing.T) {
	o := fleetbustest.Options(t, "n1")
	failure := errors.New("the printer is on fire")
	o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "broken", Addr: "127.0.0.1:0", Protocol: broken{failure}})
	if err := run(t, o); !errors.Is(err, failure) || !strings.Contains(err.Error(), `"broken"`) {
		t.Errorf("the server ended with: %v", err)
	}
}

// TestPortInUse starts a server whose last port is taken: it says by whom, and
// undoes the rest, so that the next start finds nothing in its way.
func TestPortInUse(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	o := fleetbustest.Options(t, "n1")
	for _, protocol := range []fleetbus.Protocol{fleetbus.NATS(), lines{patience: time.Second}} {
		failing := o
		second := fleetbus.Listener{Name: "second", Addr: taken.Addr().String(), Protocol: protocol}
		if protocol == fleetbus.NATS() {
			second.Name = "nats"
			failing.Listeners = []fleetbus.Listener{second}
		} else {
			failing.Listeners = append(slices.Clone(o.Listeners), second)
		}
		err := run(t, failing)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d", os.Getpid())) || !strings.Contains(err.Error(), taken.Addr().String()) {
			t.Errorf("the server ended with: %v", err)
		}
	}
	// The ports and the directory are free again.
	for _, addr := range []string{o.Listeners[0].Addr, o.Cluster.Addr} {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Errorf("the failed start holds a port: %v", err)
			continue
		}
		ln.Close()
	}
	s, err := fleetbus.New(o)
	if err != nil {
		t.Fatal(err)
	}
	embed(t, s)
}

// embed runs a server until the test ends.
func embed(t *testing.T, s *fleetbus.Server) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("the server ended with: %v", err)
			}
		case <-time.After(30 * time.Second):
			t.Error("the server did not stop")
		}
	})
	t.Cleanup(stop)
	select {
	case <-s.Ready():
	case err := <-done:
		t.Fatalf("the server did not start: %v", err)
	case <-time.After(60 * time.Second):
		t.Fatal("the server was not ready in a minute")
	}
	return stop
}

// A moody service fails until it is cheered up.
type moody struct {
	mood chan error
	ran  chan struct{}
}

func (m moody) Run(ctx context.Context, nc *nats.Conn) error {
	if err := nc.Publish("moody.here", nil); err != nil {
		return err
	}
	select {
	case m.ran <- struct{}{}:
	default:
	}
	select {
	case err := <-m.mood:
		return err
	case <-ctx.Done():
		return nil
	}
}

// TestFailingService fails, is restarted, is a finding, and recovers; the server
// goes on all the time.
func TestFailingService(t *testing.T) {
	service := moody{mood: make(chan error, 1), ran: make(chan struct{}, 1)}
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Services = []fleetbus.ServiceBinding{{Name: "moody", Principal: identity.Principal{Account: "acme", Name: "moody"}, Service: service}}
	})
	s.ExpectError("service failed")
	finding := func() string {
		for _, f := range s.Problems() {
			if f.Code == "SERVICE-FAILED" && f.Subject == "moody" {
				return f.Text
			}
		}
		return ""
	}
	for range 3 {
		receive(t, service.ran)
		service.mood <- errors.New("it rains")
		fleetbustest.Eventually(t, "the finding", func() error {
			if got := finding(); got != "it rains" {
				return fmt.Errorf("it is %q", got)
			}
			return nil
		})
	}
	receive(t, service.ran)
	fleetbustest.Eventually(t, "recovery", func() error {
		if got := finding(); got != "" {
			return errors.New(got)
		}
		return nil
	})
	service.mood <- nil
	fleetbustest.Eventually(t, "the finding of a service that ended", func() error {
		if got := finding(); got == "" {
			return errors.New("there is none")
		}
		return nil
	})
}

func receive[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case v := <-from:
		return v
	case <-time.After(20 * time.Second):
		t.Fatal("nothing came")
	}
	var none T
	return none
}

// TestServiceElsewhere runs a service in a server without an engine, against
// another server.
func TestServiceElsewhere(t *testing.T) {
	s := fleetbustest.Start(t)
	heard, err := s.Dial("acme", "listener").SubscribeSync("moody.here")
	if err != nil {
		t.Fatal(err)
	}
	service := moody{mood: make(chan error, 1), ran: make(chan struct{}, 1)}
	client, err := fleetbus.New(fleetbus.Options{
		Mode: fleetbus.Client, TLS: fleetbus.TLS{CA: []string{s.Founded().CA}},
		Client:   fleetbus.ClientOptions{Endpoints: []string{s.Addr("nats").String()}, Creds: s.Creds("acme", "service")},
		Services: []fleetbus.ServiceBinding{{Name: "moody", Service: service}},
	})
	if err != nil {
		t.Fatal(err)
	}
	stop := embed(t, client)
	if _, err := heard.NextMsg(20 * time.Second); err != nil {
		t.Errorf("the service was not heard: %v", err)
	}
	stop()
	fleetbustest.Eventually(t, "the service's connection ends", func() error {
		info, err := s.Admin().User(limited(t, 10*time.Second), "acme/service")
		if err == nil && len(info.Connections) > 0 {
			err = fmt.Errorf("it is %+v", info.Connections)
		}
		return err
	})
}

// listening counts the sockets on which this process listens.
func listening(t *testing.T) int {
	t.Helper()
	ours := map[string]bool{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skipf("this machine has no /proc: %v", err)
	}
	for _, fd := range fds {
		if link, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil {
			ours[link] = true
		}
	}
	n := 0
	for _, table := range []string{"tcp", "tcp6", "udp", "udp6"} {
		data, err := os.ReadFile("/proc/self/net/" + table)
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(data)) {
			// The state is field 3, 0A for listening; the inode is field 9.
			fields := strings.Fields(line)
			if len(fields) > 9 && (fields[3] == "0A" || strings.HasPrefix(table, "udp")) && ours["socket:["+fields[9]+"]"] {
				n++
			}
		}
	}
	return n
}

func TestLocalOpensNoPort(t *testing.T) {
	before := listening(t)
	s, err := fleetbus.New(fleetbus.Options{Dir: t.TempDir(), Accounts: []string{"app"}})
	if err != nil {
		t.Fatal(err)
	}
	embed(t, s)
	if after := listening(t); after != before {
		t.Errorf("the process listens on %d sockets, %d before", after, before)
	}
	for _, name := range []string{"nats", "cluster", "monitor"} {
		if addr := s.Addr(name); addr != nil {
			t.Errorf("listener %q is at %v", name, addr)
		}
	}
}

// TestLocalIsDurable finds in a second run what the first one stored.
func TestLocalIsDurable(t *testing.T) {
	o := fleetbus.Options{Dir: t.TempDir(), Accounts: []string{"app"}}
	within := func(do func(jetstream.JetStream)) {
		t.Helper()
		s, err := fleetbus.New(o)
		if err != nil {
			t.Fatal(err)
		}
		stop := embed(t, s)
		session, err := s.Session(t.Context(), identity.Principal{Account: "app", Name: "keeper"})
		if err != nil {
			t.Fatal(err)
		}
		js, err := jetstream.New(session.Conn)
		if err != nil {
			t.Fatal(err)
		}
		do(js)
		session.Close()
		stop()
	}
	within(func(js jetstream.JetStream) {
		fleetbustest.Stream(t, js, jetstream.StreamConfig{Name: "KEPT", Subjects: []string{"kept"}})
		if _, err := js.Publish(limited(t, 10*time.Second), "kept", []byte("forever")); err != nil {
			t.Fatal(err)
		}
	})
	within(func(js jetstream.JetStream) {
		stream, err := js.Stream(limited(t, 10*time.Second), "KEPT")
		if err != nil {
			t.Fatal(err)
		}
		msg, err := stream.GetMsg(limited(t, 10*time.Second), 1)
		if err != nil || string(msg.Data) != "forever" {
			t.Errorf("the message is %v, %v", msg, err)
		}
	})
}

// TestTwoEmbeddedServersDoNotMeet runs two in one process, with accounts of the
// same name.
func TestTwoEmbeddedServersDoNotMeet(t *testing.T) {
	var sessions []*fleetbus.Session
	for range 2 {
		s, err := fleetbus.New(fleetbus.Options{Dir: t.TempDir(), Accounts: []string{"app"}})
		if err != nil {
			t.Fatal(err)
		}
		embed(t, s)
		session, err := s.Session(t.Context(), identity.Principal{Account: "app", Name: "worker"})
		if err != nil {
			t.Fatal(err)
		}
		defer session.Close()
		sessions = append(sessions, session)
	}
	heard, err := sessions[1].SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	for i, session := range sessions {
		if err := session.Publish("from", []byte{byte('0' + i)}); err != nil {
			t.Fatal(err)
		}
		if err := session.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if msg, err := heard.NextMsg(5 * time.Second); err != nil || string(msg.Data) != "1" {
		t.Errorf("the second server heard %v, %v", msg, err)
	}
}

// TestSessionsEndWithTheServer has clients of each kind connected when the server
// drains: they are closed, and Run leaves nothing behind.
func TestSessionsEndWithTheServer(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	password := s.Password(admin.UserRequest{Name: "acme/alice"})
	var clients []fleetbustest.ProtocolClient
	for range 20 {
		c, err := loginLines(limited(t, 10*time.Second), s.Addr("lines").String(), s.TLS(), "acme/alice", password)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	closed := make(chan struct{}, 2)
	ended := func(*nats.Conn) { closed <- struct{}{} }
	s.Dial("acme", "bob", nats.NoReconnect(), nats.ClosedHandler(ended))
	session, err := s.Session(t.Context(), identity.Principal{Account: "acme", Name: "inside"})
	if err != nil {
		t.Fatal(err)
	}
	session.SetClosedHandler(ended)
	s.Stop()
	for _, c := range clients {
		ctx := limited(t, 10*time.Second)
		if _, _, err := c.Receive(ctx); err == nil || ctx.Err() != nil {
			t.Errorf("a client outlived the server: %v", err)
		}
	}
	for range 2 {
		receive(t, closed)
	}
}
