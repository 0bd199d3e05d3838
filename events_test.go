package fleetbus_test

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// told are the events that a watch has had so far.
type told struct {
	t   testing.TB
	mu  sync.Mutex
	all []admin.Event
}

// watch has the events that nc may see, until the test ends.
func watch(t testing.TB, nc *nats.Conn, account string, kinds ...admin.EventKind) *told {
	t.Helper()
	w, err := admin.WatchEvents(limited(t, 10*time.Second), nc, account, kinds)
	if err != nil {
		t.Fatal(err)
	}
	heard := &told{t: t}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case msg := <-w.Messages:
				e, err := admin.DecodeEvent(msg)
				if err != nil {
					t.Error(err)
				}
				heard.mu.Lock()
				heard.all = append(heard.all, e)
				heard.mu.Unlock()
			case <-done:
				return
			}
		}
	}()
	t.Cleanup(func() {
		w.Stop()
		close(done)
		<-ended
		if n := w.Missed(); n > 0 {
			t.Errorf("%d events were missed", n)
		}
	})
	return heard
}

// administrator connects as the admin that was made with the fleet.
func administrator(t testing.TB, s *fleetbustest.Server) *nats.Conn {
	t.Helper()
	nc, err := s.Connect(s.Founded().AdminCreds)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	return nc
}

func (h *told) those(is func(admin.Event) bool) []admin.Event {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(h.all), func(e admin.Event) bool { return !is(e) })
}

// await waits for an event of a kind about a principal whose reason has part in it.
func (h *told) await(kind admin.EventKind, principal, part string) admin.Event {
	h.t.Helper()
	var found []admin.Event
	fleetbustest.Eventually(h.t, fmt.Sprintf("an event %s of %q with %q", kind, principal, part), func() error {
		found = h.those(func(e admin.Event) bool {
			return e.Kind == kind && e.Principal == principal && strings.Contains(e.Reason, part)
		})
		if len(found) == 0 {
			h.mu.Lock()
			defer h.mu.Unlock()
			return fmt.Errorf("there are %+v", h.all)
		}
		return nil
	})
	return found[0]
}

// TestEvents has everything happen on a node that it tells of, by every way in.
func TestEvents(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	heard := watch(t, administrator(t, s), "")
	request := admin.UserRequest{Name: "acme/alice"}
	password, cert, creds := s.Password(request), s.Certificate(request), s.Creds("acme", "alice")
	ctx := limited(t, 30*time.Second)
	lines, wrong := s.Addr("lines").String(), password+"x"

	for how, connect := range map[string]func() (*nats.Conn, error){
		"password":    func() (*nats.Conn, error) { return byPassword(s, "acme/alice", password) },
		"certificate": func() (*nats.Conn, error) { return byCertificate(s, cert) },
		"creds":       func() (*nats.Conn, error) { return s.Connect(creds) },
	} {
		t.Run(how, func(t *testing.T) {
			before := time.Now()
			nc, err := connect()
			if err != nil {
				t.Fatal(err)
			}
			if err := nc.Publish("a", []byte("12345")); err != nil {
				t.Fatal(err)
			}
			nc.Close()
			since := func(e admin.Event) bool { return e.Principal == "acme/alice" && !e.Time.Before(before) }
			fleetbustest.Eventually(t, "it came and went", func() error {
				got := heard.those(since)
				if len(got) < 2 {
					return fmt.Errorf("there are %+v", got)
				}
				in, out := got[0], got[1]
				if in.Kind != admin.EventConnect || in.Node != "n1" || in.Account != "acme" || in.Listener != "nats" || in.Address != "127.0.0.1" ||
					out.Kind != admin.EventDisconnect || out.Reason != "Client Closed" || out.InMsgs != 1 || out.InBytes != 5 || out.Duration <= 0 {
					t.Fatalf("it came as %+v and went as %+v", in, out)
				}
				return nil
			})
		})
	}

	t.Run("a session", func(t *testing.T) {
		c, err := loginLines(ctx, lines, s.TLS(), "acme/alice", password)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Publish(ctx, "a", "12345"); err != nil {
			t.Fatal(err)
		}
		c.Close()
		is := func(kind admin.EventKind) func(admin.Event) bool {
			return func(e admin.Event) bool { return e.Kind == kind && e.Listener == "lines" }
		}
		fleetbustest.Eventually(t, "it came and went", func() error {
			in, out := heard.those(is(admin.EventConnect)), heard.those(is(admin.EventDisconnect))
			if len(in) != 1 || len(out) != 1 {
				return fmt.Errorf("it came as %+v and went as %+v", in, out)
			}
			if out[0].InMsgs != 1 || out[0].InBytes != 5 || out[0].Principal != "acme/alice" || in[0].Address != out[0].Address || !strings.Contains(in[0].Address, ":") {
				t.Errorf("it came as %+v and went as %+v", in, out)
			}
			return nil
		})
	})

	t.Run("refused", func(t *testing.T) {
		for _, try := range []struct {
			user, principal, reason string
		}{{"acme/alice", "acme/alice", "checking the password"}, {"acme/nobody", "acme/nobody", "there is no user"}, {"none/alice", "", "there is no user"}, {"what?", "", "reading the username"}} {
			if nc, err := byPassword(s, try.user, wrong); err == nil {
				nc.Close()
				t.Fatalf("%q was let in", try.user)
			}
			e := heard.await(admin.EventRefused, try.principal, try.reason)
			if want, _, _ := strings.Cut(try.principal, "/"); e.Account != want || e.Listener != "nats" || e.Address != "127.0.0.1" {
				t.Errorf("the refusal of %q is %+v", try.user, e)
			}
		}
		c, err := loginLines(ctx, lines, s.TLS(), "acme/bob", wrong)
		if err == nil {
			c.Close()
			t.Fatal("nobody was let in")
		}
		if e := heard.await(admin.EventRefused, "acme/bob", "there is no user"); e.Listener != "lines" {
			t.Errorf("the refusal is %+v", e)
		}
		// A stranger who knows no authority does not even come to that.
		for _, listener := range []string{"nats", "lines"} {
			stranger := s.TLS()
			stranger.RootCAs = nil
			if listener == "nats" {
				_, err = nats.Connect(s.URL(), nats.Secure(stranger))
			} else {
				_, err = loginLines(ctx, lines, stranger, "", "")
			}
			if err == nil {
				t.Fatal("a stranger was let in")
			}
			fleetbustest.Eventually(t, "the stranger is told of", func() error {
				if len(heard.those(func(e admin.Event) bool {
					return e.Kind == admin.EventRefused && e.Listener == listener && e.Account == "" && e.Principal == "" && strings.Contains(strings.ToLower(e.Reason), "tls")
				})) == 0 {
					return errors.New("it is not")
				}
				return nil
			})
		}
	})

	t.Run("limit", func(t *testing.T) {
		if _, err := s.Admin().AddAccount(ctx, admin.AccountRequest{Name: "few", Limits: identity.Limits{Connections: 1}}); err != nil {
			t.Fatal(err)
		}
		creds, password := s.Creds("few", "ann"), s.Password(admin.UserRequest{Name: "few/bea"})
		if _, err := s.Admin().AddAccount(ctx, admin.AccountRequest{Name: "few", Limits: identity.Limits{Connections: 1}}); err != nil {
			t.Fatal(err)
		}
		first, err := s.Connect(creds)
		if err != nil {
			t.Fatal(err)
		}
		defer first.Close()
		if nc, err := s.Connect(creds); err == nil {
			nc.Close()
			t.Error("a second of one was let in")
		}
		heard.await(admin.EventLimit, "few/ann", "Maximum Account Connections Exceeded")
		if nc, err := byPassword(s, "few/bea", password); err == nil {
			nc.Close()
			t.Error("a second of one was let in by password")
		}
		heard.await(admin.EventLimit, "few/bea", "Maximum Account Connections Exceeded")
		if c, err := loginLines(ctx, lines, s.TLS(), "few/bea", password); err == nil {
			c.Close()
			t.Error("a second of one was let in by another protocol")
		}
		heard.await(admin.EventLimit, "few/bea", "as many clients as it may have")
	})

	t.Run("denied", func(t *testing.T) {
		nc, err := s.Connect(creds, nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		c, err := loginLines(ctx, lines, s.TLS(), "acme/alice", password)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if _, err := s.Admin().DenyUser(ctx, "acme/alice"); err != nil {
			t.Fatal(err)
		}
		if e := heard.await(admin.EventDenied, "acme/alice", "the user is denied"); e.Count != 2 || e.Account != "acme" {
			t.Errorf("the denial is %+v", e)
		}
		for _, listener := range []string{"nats", "lines"} {
			fleetbustest.Eventually(t, "the end of each is told", func() error {
				if len(heard.those(func(e admin.Event) bool {
					return e.Kind == admin.EventDisconnect && e.Listener == listener && e.Reason == "Kicked"
				})) != 1 {
					return errors.New("it is not")
				}
				return nil
			})
		}
		if nc, err := s.Connect(creds); err == nil {
			nc.Close()
			t.Error("a denied user was let in")
		}
		heard.await(admin.EventRefused, "acme/alice", "the user is denied since")
	})

	t.Run("removed", func(t *testing.T) {
		nc, err := s.Connect(s.Creds("gone", "zoe"), nats.NoReconnect())
		if err != nil {
			t.Fatal(err)
		}
		defer nc.Close()
		heard.await(admin.EventConnect, "gone/zoe", "")
		if _, err := s.Admin().RemoveAccount(ctx, "gone"); err != nil {
			t.Fatal(err)
		}
		heard.await(admin.EventDenied, "gone/zoe", "the user is removed")
		heard.await(admin.EventDisconnect, "gone/zoe", "")
		if refused := heard.those(func(e admin.Event) bool { return e.Kind == admin.EventRefused && strings.Contains(e.Principal, "zoe") }); len(refused) > 0 {
			t.Errorf("the removal is told of as %+v", refused)
		}
	})

	// Nothing of what a node does by itself is told, and all that was told is
	// about somebody.
	for _, e := range heard.those(func(admin.Event) bool { return true }) {
		text, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "node-") || strings.Contains(string(text), "CALLOUT") || strings.Contains(string(text), "SYS") || !slices.Contains(admin.EventKinds(), e.Kind) {
			t.Errorf("an event is %s", text)
		}
		if strings.Contains(string(text), password) {
			t.Errorf("an event has a password: %s", text)
		}
	}
}

// TestEventsOfAnAccount watches as an auditor of an account: its events, and nobody
// else's. Others see none.
func TestEventsOfAnAccount(t *testing.T) {
	s := fleetbustest.Start(t)
	s.User(admin.UserRequest{Name: "acme/alice"})
	s.User(admin.UserRequest{Name: "other/bob"})
	eve, err := byPassword(s, "acme/eve", s.Password(admin.UserRequest{Name: "acme/eve", Role: identity.RoleAuditor}))
	if err != nil {
		t.Fatal(err)
	}
	defer eve.Close()
	heard := watch(t, eve, "")
	if _, err := admin.WatchEvents(limited(t, 10*time.Second), eve, "other", nil); !errors.As(err, new(*admin.Error)) {
		t.Errorf("the events of another account: %v", err)
	}
	everything, err := eve.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	s.Dial("other", "bob").Close()
	alice := s.Dial("acme", "alice")
	if e := heard.await(admin.EventConnect, "acme/alice", ""); e.Account != "acme" {
		t.Errorf("the event is %+v", e)
	}
	for how, connect := range map[string]func() (*nats.Conn, error){
		"creds": func() (*nats.Conn, error) { return s.Connect(s.Creds("acme", "alice")) },
		"password": func() (*nats.Conn, error) {
			return byPassword(s, "acme/ann", s.Password(admin.UserRequest{Name: "acme/ann"}))
		},
	} {
		nc, err := connect()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := admin.WatchEvents(limited(t, 10*time.Second), nc, "", nil); !errors.Is(err, nats.ErrPermissionViolation) {
			t.Errorf("with %s, who is no auditor: %v", how, err)
		}
		nc.Close()
	}
	// Who may use everything in the account neither hears of it nor can make it up.
	sub, err := alice.SubscribeSync(">")
	if err != nil {
		t.Fatal(err)
	}
	forged, err := json.Marshal(admin.Event{Kind: admin.EventDenied, Account: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	if err := alice.Publish(identity.AccountEvents+"denied", forged); err != nil {
		t.Fatal(err)
	}
	s.Dial("acme", "zoe").Close()
	heard.await(admin.EventConnect, "acme/zoe", "")
	if err := errors.Join(alice.Publish("mark", nil), alice.Flush()); err != nil {
		t.Fatal(err)
	}
	for marked := false; !marked; {
		msg, err := sub.NextMsg(10 * time.Second)
		if err != nil || strings.HasPrefix(msg.Subject, identity.AccountEvents) {
			t.Fatalf("alice heard %+v, %v", msg, err)
		}
		marked = msg.Subject == "mark"
	}
	for seen := false; !seen; {
		msg, err := everything.NextMsg(10 * time.Second)
		if err != nil {
			t.Fatalf("eve heard no event among everything: %v", err)
		}
		seen = strings.HasPrefix(msg.Subject, identity.AccountEvents)
	}
	for _, e := range heard.those(func(admin.Event) bool { return true }) {
		if e.Account != "acme" || e.Kind == admin.EventDenied {
			t.Errorf("eve was told %+v", e)
		}
	}
}

// TestEventsOfOneNodeEach watches two nodes from one: each tells of itself, once,
// and of its link to the other.
func TestEventsOfOneNodeEach(t *testing.T) {
	nodes := fleetbustest.StartCluster(t, 2)
	creds := nodes[0].Creds("acme", "alice")
	heard := watch(t, administrator(t, nodes[0]), "acme", admin.EventConnect)
	links := watch(t, administrator(t, nodes[0]), admin.NoAccount, admin.EventRoute)
	for i, n := range nodes {
		var nc *nats.Conn
		fleetbustest.Eventually(t, "the node knows the user", func() (err error) {
			nc, err = n.Connect(creds)
			return err
		})
		defer nc.Close()
		fleetbustest.Eventually(t, "the node tells of it", func() error {
			if got := heard.those(func(admin.Event) bool { return true }); len(got) != i+1 || got[i].Node != n.Options.Name {
				return fmt.Errorf("there are %+v", got)
			}
			return nil
		})
	}
	route := func(state string, n int) {
		t.Helper()
		fleetbustest.Eventually(t, "the route is "+state, func() error {
			got := links.those(func(e admin.Event) bool { return e.State == state && e.Node == "n1" && e.Peer == "n2" })
			if len(got) != n {
				return fmt.Errorf("there are %+v", got)
			}
			return nil
		})
	}
	nodes[1].Stop()
	route(admin.LinkDown, 1)
	nodes[1].Restart()
	route(admin.LinkUp, 1)
}

// TestEventOfASlowClient has a client that does not read: it is closed, and that is
// told.
func TestEventOfASlowClient(t *testing.T) {
	s := fleetbustest.Start(t)
	heard := watch(t, administrator(t, s), "")
	password := s.Password(admin.UserRequest{Name: "acme/slow"})
	conn, err := net.Dial("tcp", s.Addr("nats").String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	for one := []byte{0}; one[0] != '\n'; { // the greeting is in clear text
		if _, err := conn.Read(one); err != nil {
			t.Fatal(err)
		}
	}
	config := s.TLS()
	config.ServerName = "127.0.0.1"
	client := tls.Client(conn, config)
	if _, err := fmt.Fprintf(client, "CONNECT {\"user\":\"acme/slow\",\"pass\":%q}\r\nSUB big 1\r\nPING\r\n", password); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(client).ReadString('G'); err != nil || !strings.Contains(line, "PONG") {
		t.Fatalf("%q, %v", line, err)
	}
	publisher := s.Dial("acme", "fast")
	for i := 0; len(heard.those(func(e admin.Event) bool { return e.Kind == admin.EventSlow })) == 0; i++ {
		if i == 2000 {
			t.Fatal("nobody was slow")
		}
		if err := errors.Join(publisher.Publish("big", make([]byte, 1<<20)), publisher.Flush()); err != nil {
			t.Fatal(err)
		}
	}
	heard.await(admin.EventSlow, "acme/slow", "Slow Consumer") // too much waits for it, or for too long
	heard.await(admin.EventDisconnect, "acme/slow", "Slow Consumer")
}

// TestFloodOfRefusals has more refused than a node tells of: who comes in properly is
// told of all the same, and so is how many were left out.
func TestFloodOfRefusals(t *testing.T) {
	s := fleetbustest.Start(t, withLines)
	heard := watch(t, administrator(t, s), "")
	s.User(admin.UserRequest{Name: "acme/alice"})
	ctx, tries := limited(t, 60*time.Second), 700
	addr := s.Addr("lines").String()
	var strangers sync.WaitGroup
	for range 8 {
		strangers.Go(func() {
			for range tries / 8 {
				conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				_, _ = conn.Write([]byte("GET / HTTP/1.1\r\n\r\n"))
				_, _ = conn.Read(make([]byte, 1)) // the server ends it
				conn.Close()
			}
		})
	}
	strangers.Wait()
	s.Dial("acme", "alice")
	heard.await(admin.EventConnect, "acme/alice", "")
	fleetbustest.Eventually(t, "each is told of or counted", func() error {
		refused, dropped := 0, 0
		for _, e := range heard.those(func(e admin.Event) bool { return e.Account == "" }) {
			switch e.Kind {
			case admin.EventRefused:
				refused++
			case admin.EventDropped:
				dropped += e.Count
			}
		}
		if refused+dropped != tries/8*8 {
			return fmt.Errorf("%d are told and %d dropped, of %d", refused, dropped, tries/8*8)
		}
		t.Logf("%d are told and %d dropped", refused, dropped) // none on a machine that is busy
		return nil
	})
}

// BenchmarkEvent has the engine's word of b.N arrivals at once, and waits until each
// is told of or counted.
func BenchmarkEvent(b *testing.B) {
	s := fleetbustest.Start(b)
	watched, err := admin.WatchEvents(limited(b, time.Minute), administrator(b, s), "acme", nil)
	if err != nil {
		b.Fatal(err)
	}
	defer watched.Stop()
	creds := s.Creds("acme", "alice")
	session, err := s.Session(b.Context(), everywhere(identity.SystemName))
	if err != nil {
		b.Fatal(err)
	}
	defer session.Close()
	arrivals, err := session.SubscribeSync("$SYS.ACCOUNT.*.CONNECT")
	if err != nil {
		b.Fatal(err)
	}
	if err := session.Flush(); err != nil {
		b.Fatal(err)
	}
	nc, err := s.Connect(creds)
	if err != nil {
		b.Fatal(err)
	}
	defer nc.Close()
	var arrival *nats.Msg
	for arrival == nil || !strings.Contains(string(arrival.Data), "name:alice") {
		if arrival, err = arrivals.NextMsg(10 * time.Second); err != nil {
			b.Fatal(err)
		}
	}
	if err := arrivals.Unsubscribe(); err != nil {
		b.Fatal(err)
	}
	<-watched.Messages
	b.ResetTimer()
	go func() {
		for range b.N {
			if err := session.Publish(arrival.Subject, arrival.Data); err != nil {
				b.Error(err)
				return
			}
		}
	}()
	told, dropped := 0, 0
	for told+dropped < b.N {
		select {
		case msg := <-watched.Messages:
			if e, err := admin.DecodeEvent(msg); err != nil {
				b.Fatal(err)
			} else if e.Kind == admin.EventDropped {
				dropped += e.Count
			} else {
				told++
			}
		case <-time.After(30 * time.Second):
			b.Fatalf("%d are told and %d dropped, of %d", told, dropped, b.N)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(dropped)/float64(b.N), "dropped/event")
}
