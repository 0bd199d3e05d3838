package certmanager

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/internal/await"
)

// Three managers, whose clocks are an hour apart, renew thirty certificates.
func TestManagersNeverOrderTwice(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	var ids []string
	for i := range 30 {
		ids = append(ids, w.request("web", fmt.Sprintf("n%02d.example.org", i)))
	}
	w.authority.set(func() {
		w.authority.at = func(step string, _ Order) error {
			if step == "validated" {
				<-time.After(50 * time.Millisecond)
			}
			return nil
		}
	})
	for i, skew := range []time.Duration{0, time.Hour, -time.Hour} {
		o := w.options(fmt.Sprintf("m%d", i))
		o.Now = func() time.Time { return w.clock.now().Add(skew) }
		o.Lease = 10 * time.Second // a busy machine is no stopped one
		w.run(o)
	}
	for n := uint64(1); n <= 2; n++ {
		for _, id := range ids {
			w.record("web", id, "it is obtained", generation(n))
		}
		if placed, issued := w.authority.counts(); placed != int(n)*len(ids) || issued != placed {
			t.Errorf("round %d: %d orders, %d certificates, want %d", n, placed, issued, int(n)*len(ids))
		}
		w.clock.add(62 * 24 * time.Hour)
	}
}

// A cutter is the network between a manager and the bus. It ends, for good, at the
// n'th write to the ledger: before it, or after it and before its answer.
type cutter struct {
	mu     sync.Mutex
	after  bool
	left   int
	cut    chan struct{}
	writes int
}

type cutConn struct {
	net.Conn
	c *cutter
}

func (c *cutter) Dial(network, address string) (net.Conn, error) {
	conn, err := net.Dial(network, address)
	if err != nil {
		return nil, err
	}
	return &cutConn{conn, c}, nil
}

func (c *cutConn) Write(b []byte) (int, error) {
	n := bytes.Count(b, []byte("HPUB "+cert.Prefix+".g."))
	c.c.mu.Lock()
	defer c.c.mu.Unlock()
	c.c.writes += n
	if c.c.left == 0 {
		return 0, net.ErrClosed
	}
	if n == 0 || c.c.left > n {
		c.c.left -= n
		return c.Conn.Write(b)
	}
	c.c.left = 0
	if c.c.after {
		if _, err := c.Conn.Write(b); err != nil {
			return 0, err
		}
	}
	c.Conn.Close()
	close(c.c.cut)
	return 0, net.ErrClosed
}

// killed runs a manager until it has written as often as that, and then as if its
// process were killed. It reports whether it came that far.
func (w *world) killed(name string, writes int, after bool, done func() bool) bool {
	w.t.Helper()
	c := &cutter{left: writes, after: after, cut: make(chan struct{})}
	nc, err := nats.Connect(w.url, nats.SetCustomDialer(c), nats.NoReconnect(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		w.t.Fatal(err)
	}
	defer nc.Close()
	ctx, cancel := context.WithCancel(w.t.Context())
	defer cancel()
	ended := make(chan error, 1)
	m := w.new(w.options(name))
	go func() { ended <- m.Run(ctx, nc) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(30 * time.Second)
	for {
		select {
		case <-c.cut:
			nc.Close()
			cancel()
			<-ended
			return true
		case <-deadline:
			w.t.Fatal("it is neither cut nor done")
		case <-tick.C:
			if done() {
				c.mu.Lock()
				came := c.left == 0
				c.mu.Unlock()
				cancel()
				<-ended
				return came
			}
		}
	}
}

// A manager is killed at every write, before it and after it, while it obtains a
// certificate; another goes on. One order is placed, and one certificate issued.
func TestKilledAtEveryWrite(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	writes := 0
	for came := true; came; {
		came = false
		writes++
		for _, after := range []bool{false, true} {
			name := fmt.Sprintf("w%d-%t.example.org", writes, after)
			group := fmt.Sprintf("g%d-%t", writes, after)
			id := w.request(group, name)
			done := func() bool {
				r, ok := w.state.Record(group, id)
				return ok && r.Current != nil
			}
			came = w.killed("first", writes, after, done) || came
			_, stop := w.run(w.options("second"))
			w.record(group, id, name+" is obtained", generation(1))
			stop()
			w.authority.mu.Lock()
			if placed, issued := w.authority.placed[name], w.authority.issued[name]; placed != 1 || issued != 1 {
				t.Errorf("killed at write %d (after it: %t): %d orders, %d certificates", writes, after, placed, issued)
			}
			w.authority.mu.Unlock()
		}
	}
	if writes < 5 { // lease, order, the group's key, obtained
		t.Errorf("a manager wrote %d times", writes-1)
	}
}

// A manager is killed at every step at the authority.
func TestKilledAtEveryStep(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	for _, step := range []string{"begin", "ordered", "saved", "validated", "finalized"} {
		id := w.request("web", step+".example.org")
		nc := dial(t, w.url)
		ctx, cancel := context.WithCancel(t.Context())
		var killed atomic.Bool
		w.authority.set(func() {
			w.authority.at = func(at string, o Order) error {
				if at == step && killed.CompareAndSwap(false, true) {
					nc.Close()
					cancel()
					return context.Canceled
				}
				return nil
			}
		})
		m := w.new(w.options("first"))
		_ = m.Run(ctx, nc) // it ends with its connection
		if !killed.Load() {
			t.Fatalf("it ended before %q", step)
		}
		_, stop := w.run(w.options("second"))
		w.record("web", id, "it is obtained", generation(1))
		stop()
		w.authority.mu.Lock()
		if placed, issued := w.authority.placed[step+".example.org"], w.authority.issued[step+".example.org"]; placed != 1 || issued != 1 {
			t.Errorf("killed at %q: %d orders, %d certificates", step, placed, issued)
		}
		w.authority.mu.Unlock()
	}
}

// The answer to an order is lost, and the authority does not hand it out again. That it was
// asked for is in the ledger before, so the next attempt is told of it, and counted.
func TestLostOrder(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	var asked []bool
	w.authority.set(func() {
		w.authority.forgets = true
		w.authority.at = func(step string, o Order) error {
			if step != "ordered" {
				return nil
			}
			switch asked = append(asked, o.Unanswered); len(asked) {
			case 1, 2:
				return &Problem{Step: stepOrder, Unanswered: true, Err: errors.New("no answer")}
			case 3:
				return &Problem{Step: stepOrder, Err: errors.New("refused")}
			}
			return nil
		}
	})
	var told []string
	done := w.follow(func(r *cert.Record) {
		if r.Lease != nil && r.Lease.Order != nil && r.Event == cert.Ordered {
			told = append(told, fmt.Sprintf("%t %d", r.Lease.Order.State != "", r.Lease.Order.Lost))
		}
	})
	id := w.request("web", "example.org")
	w.run(w.options("m1"))
	for n := 1; n <= 3; n++ {
		r := w.record("web", id, "it failed", func(r *cert.Record) bool { return r.Failure != nil && r.Failure.Attempts == n })
		if kept := r.Lease != nil && r.Lease.Order != nil; kept != (n < 3) {
			t.Errorf("attempt %d: the lease is %+v", n, r.Lease)
		}
		w.clock.add(8 * time.Hour)
	}
	w.record("web", id, "it is obtained", generation(1))
	done()
	if want := []bool{false, true, true, false}; !slices.Equal(asked, want) {
		t.Errorf("it was unanswered before: %v, want %v", asked, want)
	}
	if want := []string{"false 0", "false 1", "false 2", "false 0", "true 0"}; !slices.Equal(told, want) {
		t.Errorf("the ledger has %q, want %q", told, want)
	}
	// Managers that die of it come back to it ever later.
	r := &cert.Record{ID: "a", Lease: &cert.Lease{Order: &cert.Order{Placed: w.clock.now(), Lost: 3}}}
	if p, due := planFor(r, w.clock.now()); !due || p.At.Sub(w.clock.now()) < 20*time.Minute {
		t.Errorf("it is asked for again at %s: %t", p.At, due)
	}
}

// A certificate that is removed while it is renewed stays removed.
func TestRemovedDuringRenewal(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	at, goOn := make(chan struct{}), make(chan struct{})
	w.authority.set(func() {
		w.authority.at = func(step string, _ Order) error {
			if step == "finalized" {
				close(at)
				<-goOn
			}
			return nil
		}
	})
	id := w.request("web", "gone.example.org")
	<-at
	if _, err := w.client().Remove(within(t), RemoveRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	w.authority.set(func() { w.authority.at = nil })
	other := w.request("web", "other.example.org")
	w.record("web", other, "another is obtained", generation(1))
	await.Nil(t, "nobody works", func() error {
		if r, _ := w.state.Record("web", id); !r.Removed || r.Current != nil || r.Next != nil || r.Event != cert.Removed {
			return fmt.Errorf("the record is %+v", r)
		}
		return nil
	})
	if _, err := w.client().Renew(within(t), RenewRequest{ID: id}); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Error(err)
	}
}

// A name that fails backs off alone, and goes on doing so in another process.
func TestFailingNameAlone(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	var tries atomic.Int32
	w.authority.set(func() {
		w.authority.at = func(step string, o Order) error {
			if step == "validated" && slices.ContainsFunc(o.Names, func(n string) bool { return strings.HasPrefix(n, "bad.") }) {
				tries.Add(1)
				return &Problem{Step: "challenge", Type: acmeError + "dns", Err: errors.New("bad.example.org has no TXT record")}
			}
			return nil
		}
	})
	bad := w.request("web", "a.example.org", "b.example.org", "c.example.org", "d.example.org", "bad.example.org")
	var good []string
	for i := range 10 {
		good = append(good, w.request("web", fmt.Sprintf("n%d.example.org", i)))
	}
	o := w.options("m1")
	o.Workers = 1
	m, stop := w.run(o)
	for _, id := range good {
		w.record("web", id, "it is obtained", generation(1))
	}
	failed := func(n int) *cert.Record {
		return w.record("web", bad, "it has failed", func(r *cert.Record) bool { return r.Failure != nil && r.Failure.Attempts == n })
	}
	f := failed(1).Failure
	if pause := f.Next.Sub(f.At); f.Step != "challenge" || f.Problem != acmeError+"dns" || pause < time.Minute || pause > 90*time.Second {
		t.Errorf("the failure is %+v", f)
	}
	wantFinding(t, m, CodeFailing, "bad.example.org has no TXT record")
	stop()
	_, stop = w.run(w.options("m2"))
	last := w.request("web", "last.example.org")
	w.record("web", last, "another is obtained", generation(1))
	if n := tries.Load(); n != 1 {
		t.Errorf("it was tried %d times, although it is to wait", n)
	}
	w.clock.add(2 * time.Minute)
	if f := failed(2).Failure; f.Next.Sub(f.At) < 5*time.Minute {
		t.Errorf("the failure is %+v", f)
	}
	stop()
	// Who asks for it is told of the failure, and does not wait for the pause.
	w.run(w.options("m3"))
	_, err := w.client().Renew(within(t), RenewRequest{ID: bad, Wait: true})
	if e := (*admin.Error)(nil); !errors.As(err, &e) || e.Code != admin.Failed || !strings.Contains(e.Text, "no TXT record") {
		t.Errorf("asked for it: %v", err)
	}
}

// The authority is down for a day. What was ordered before is not ordered again, and
// when it is back, everything is renewed.
func TestAuthorityDownForADay(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	var down atomic.Bool
	down.Store(true)
	var tries atomic.Int32
	w.authority.set(func() {
		w.authority.at = func(step string, _ Order) error {
			if down.Load() && step == "saved" {
				tries.Add(1)
				return errors.New("connection refused")
			}
			return nil
		}
	})
	var ids []string
	for i := range 5 {
		ids = append(ids, w.request("web", fmt.Sprintf("n%d.example.org", i)))
	}
	w.run(w.options("m1"))
	attempts := func(n int) {
		for _, id := range ids {
			w.record("web", id, fmt.Sprintf("attempt %d failed", n), func(r *cert.Record) bool { return r.Failure != nil && r.Failure.Attempts >= n })
		}
	}
	attempts(1)
	for n := 2; n <= 5; n++ {
		w.clock.add(time.Duration(n-1) * 4 * time.Hour)
		attempts(n)
	}
	if n := int(tries.Load()); n != 5*len(ids) {
		t.Errorf("it was tried %d times", n)
	}
	down.Store(false)
	w.clock.add(8 * time.Hour)
	for _, id := range ids {
		r := w.record("web", id, "it is obtained", generation(1))
		if r.Failure != nil {
			t.Errorf("it has the failure %+v", r.Failure)
		}
	}
	if placed, issued := w.authority.counts(); placed != len(ids) || issued != len(ids) {
		t.Errorf("%d orders, %d certificates", placed, issued)
	}
}

const twoIssuers = `{"issuers":[{"name":"fake","type":"fake"},{"name":"second","type":"second"}]}`

func TestSecondIssuer(t *testing.T) {
	for name, c := range map[string]struct {
		problem  error
		chain    func([][]byte) [][]byte
		attempts int // that fail before
	}{
		"refused":      {problem: &Problem{Step: "order", Type: acmeError + "rejectedIdentifier", Permanent: true, Err: errors.New("policy forbids it")}},
		"rate limited": {problem: &Problem{Step: "order", Type: acmeError + "rateLimited", After: time.Now().Add(48 * time.Hour), Err: errors.New("too many")}},
		"wrong chain":  {chain: func(chain [][]byte) [][]byte { return [][]byte{chain[1]} }},
		"broken chain": {chain: func(chain [][]byte) [][]byte { return [][]byte{chain[0], chain[0]} }},
		"no chain":     {chain: func([][]byte) [][]byte { return nil }},
		"down":         {problem: errors.New("connection refused"), attempts: triesPerIssuer},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.configure(twoIssuers)
			w.authority.set(func() {
				w.authority.chain = c.chain
				w.authority.at = func(string, Order) error { return c.problem }
			})
			id := w.request("web", "example.org")
			w.run(w.options("m1"))
			for n := range c.attempts {
				w.record("web", id, "it failed", func(r *cert.Record) bool { return r.Failure != nil && r.Failure.Attempts == n+1 })
				w.clock.add(8 * time.Hour)
			}
			if r := w.record("web", id, "it is obtained", generation(1)); r.Current.Issuer != "second" {
				t.Errorf("it is from %q", r.Current.Issuer)
			}
		})
	}
}

// What an authority returns wrong is never published.
func TestWrongChain(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	stranger := newAuthority(t, w.clock.now)
	w.authority.set(func() {
		w.authority.chain = func(chain [][]byte) [][]byte { return [][]byte{chain[0], stranger.root.Raw} }
	})
	id := w.request("web", "example.org")
	w.run(w.options("m1"))
	r := w.record("web", id, "it failed", func(r *cert.Record) bool { return r.Failure != nil })
	if r.Current != nil || r.Failure.Step != stepVerify || !strings.Contains(r.Failure.Detail, "not signed by the next") || r.Lease != nil {
		t.Errorf("the record is %+v %+v", r, r.Failure)
	}
	w.authority.set(func() { w.authority.chain = nil })
	w.clock.add(time.Hour)
	w.record("web", id, "it is obtained", generation(1))
}

func TestRateLimited(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	after := w.clock.now().Add(72 * time.Hour).Truncate(time.Second)
	w.authority.set(func() {
		w.authority.at = func(string, Order) error {
			return &Problem{Step: "order", Type: acmeError + "rateLimited", After: after, Err: errors.New("too many certificates")}
		}
	})
	id := w.request("web", "example.org")
	w.run(w.options("m1"))
	r := w.record("web", id, "it failed", func(r *cert.Record) bool { return r.Failure != nil })
	if !r.Failure.Next.Equal(after) {
		t.Errorf("it is tried again at %v, want %v", r.Failure.Next, after)
	}
}

// Ten thousand certificates have expired. A manager works on a few at once.
func TestTenThousandExpired(t *testing.T) {
	if testing.Short() {
		t.Skip("it writes ten thousand records")
	}
	w := newWorld(t)
	w.configure(fakeConfig)
	n := 10_000
	if racing {
		n = 1_000
	}
	var now, most atomic.Int32
	hold := make(chan struct{})
	w.authority.set(func() {
		w.authority.at = func(step string, _ Order) error {
			switch step {
			case "begin":
				most.Store(max(most.Load(), now.Add(1)))
				<-hold
			case "finalized":
				now.Add(-1)
			}
			return nil
		}
	})
	js, err := jetstream.New(w.nc, jetstream.WithPublishAsyncMaxPending(200))
	if err != nil {
		t.Fatal(err)
	}
	key, err := newKey("p256")
	if err != nil {
		t.Fatal(err)
	}
	chain, err := w.authority.makeChain([]string{"example.org"}, key.Public())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		t.Fatal(err)
	}
	bundle := newBundle([]*x509.Certificate{leaf}, []string{"example.org"})
	bundle.Generation, bundle.Issuer = 1, "fake"
	bundle.Key.To = "1"
	for i := range n {
		id := cert.NewID()
		data, err := w.key.Sign(cert.CertSubject("web", id), &cert.Record{Version: 1, ID: id, Group: "web", Event: cert.Obtained, Revision: 1, Current: bundle,
			Policy: cert.Policy{Names: []string{fmt.Sprintf("n%d.example.org", i)}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := js.PublishAsync(cert.Prefix+"."+cert.CertSubject("web", id), data, jetstream.WithStallWait(time.Minute)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-js.PublishAsyncComplete():
	case <-time.After(3 * time.Minute):
		t.Fatal("they are not written")
	}
	if err := w.ledgers.Wait(within(t), cert.ConfigSubject, uint64(n)+1); err != nil || len(w.state.Records("web")) != n {
		t.Fatal(err, len(w.state.Records("web")))
	}
	w.clock.add(91 * 24 * time.Hour)
	o := w.options("m1")
	o.Logger = nil
	o.Lease = 5 * time.Minute // that none is lost while they are held up
	m, _ := w.run(o)
	await.Nil(t, "all workers work", func() error {
		if now := now.Load(); now != 16 {
			return fmt.Errorf("%d do", now)
		}
		return nil
	})
	if found := m.Check(t.Context()); len(found) > 4*maxFindings {
		t.Errorf("there are %d findings", len(found))
	}
	close(hold)
	await.Nil(t, "some are renewed", func() error {
		if _, issued := w.authority.counts(); issued < 200 {
			return fmt.Errorf("%d are", issued)
		}
		return nil
	})
	if most.Load() > 16 {
		t.Errorf("%d were worked on at once", most.Load())
	}
}

// What later versions write, and what nobody should have written, is left alone.
func TestUnknownRecords(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	id := w.request("web", "example.org")
	m, _ := w.run(w.options("m1"))
	r := w.record("web", id, "it is obtained", generation(1))
	subject := cert.CertSubject("web", id)
	w.write(subject, map[string]any{
		"v": 9, "id": id, "group": "web", "event": "blessed", "revision": r.Revision + 1, "policy": r.Policy, "current": r.Current, "moon": map[string]int{"phase": 3},
	})
	w.write("g.web.moon", map[string]int{"phase": 3})
	w.append("moon", []byte("full"))
	w.append(cert.CertSubject("web", "forged"), []byte("fleetbus-signed-1 x y\n{}"))
	if _, err := w.client().Renew(within(t), RenewRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	w.record("web", id, "it is renewed", generation(2))
	wantFinding(t, m, CodeRecord, cert.ErrSignature.Error())
	// One that somebody wrote over is still written to.
	w.append(subject, []byte("scribble"))
	if _, err := w.client().Renew(within(t), RenewRequest{ID: id}); err != nil {
		t.Fatal(err)
	}
	w.record("web", id, "it is renewed again", generation(3))
}
