package acme

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
)

// everyPath are what Issue asks an authority for, but the directory.
func everyPath() []string {
	return []string{
		certmanagertest.NewNonce, certmanagertest.NewAccount, certmanagertest.NewOrder, certmanagertest.PollOrder,
		certmanagertest.Authorize, certmanagertest.Challenge, certmanagertest.Finalize, certmanagertest.Certificate,
	}
}

// TestOneInTwenty fails one request in twenty, before and after it was done, and drops
// connections. Who tries again with the state comes to a certificate by one order.
func TestOneInTwenty(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	b.Fail(certmanagertest.Fault{Every: 20, Answer: certmanagertest.Unavailable()})
	b.Fail(certmanagertest.Fault{Every: 29, Answer: certmanagertest.Drop()})
	b.Fail(certmanagertest.Fault{Every: 23, Answer: certmanagertest.Problem(http.StatusInternalServerError, "serverInternal", "a hiccup"), Path: certmanagertest.PollOrder, Late: true})
	i := b.issuer()
	const certificates = 40
	var all sync.WaitGroup
	places := make(chan struct{}, 4)
	for n := range certificates {
		o := b.order(byDNS(), fmt.Sprintf("n%d.example.test", n))
		o.Save = func(_ context.Context, state string) error { o.State = state; return nil }
		all.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			var err error
			for range 5 {
				if err = b.try(i, o); err == nil {
					return
				}
			}
			t.Errorf("issuing for %q: %v", o.Names, err)
		})
	}
	all.Wait()
	if b.Orders() != certificates || b.Issued() != certificates {
		t.Errorf("%d orders and %d certificates, want %d of both", b.Orders(), b.Issued(), certificates)
	}
	b.clean()
}

// TestKilled ends an attempt at each request in turn, before and after the authority
// has done as it was asked, and goes on with another process.
func TestKilled(t *testing.T) {
	for _, late := range []bool{false, true} {
		for _, stopped := range []bool{false, true} {
			t.Run(fmt.Sprintf("late %v stopped %v", late, stopped), func(t *testing.T) {
				t.Parallel()
				killed(t, late, stopped)
			})
		}
	}
}

// A mortal is a provider that does nothing any more when its process is dead.
type mortal struct {
	Provider
	dead atomic.Bool
}

func (m *mortal) Delete(ctx context.Context, zone, name, text string) error {
	if m.dead.Load() {
		return nil
	}
	return m.Provider.Delete(ctx, zone, name, text)
}

// killed has a process that is stopped, and cleans up, or is killed, and does not.
func killed(t *testing.T, late, stopped bool) {
	b := newBench(t, certmanagertest.Options{})
	for n := 1; ; n++ {
		name := fmt.Sprintf("killed%d.example.test", n)
		o := b.order(byDNS(), name)
		saved := 0
		o.Placing = func(_ context.Context, lost bool) error {
			if o.Unanswered = true; lost {
				t.Errorf("%s: the authority lists orders, and one was lost", name)
			}
			return nil
		}
		o.Save = func(_ context.Context, state string) error {
			o.State, o.Unanswered = state, false
			saved++
			return nil
		}
		ctx, kill := context.WithTimeout(t.Context(), testTime)
		hit := ""
		process := &mortal{Provider: b.config.Providers["zones"]}
		stop := b.Fail(certmanagertest.Fault{Every: n, Times: 1, Late: late, Answer: func(w http.ResponseWriter, r *http.Request) {
			hit = r.URL.Path
			process.dead.Store(!stopped)
			kill()
			certmanagertest.Drop()(w, r)
		}})
		_, err := b.issuer(func(c *Config) { c.Providers = map[string]Provider{"zones": process} }).Issue(ctx, o)
		kill()
		stop()
		if hit == "" {
			if err != nil || n < 10 {
				t.Fatalf("after %d requests: %v", n, err)
			}
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Errorf("killed at request %d, %s: got %v", n, hit, err)
		}
		if stopped {
			b.clean()
		}
		b.issue(b.issuer(), o)
		if got := b.Orders(o.Names...); got != 1 || saved != 1 || b.Issued(o.Names...) != 1 {
			t.Errorf("killed at request %d, %s (late: %v): %d orders, %d certificates, saved %d times", n, hit, late, got, b.Issued(o.Names...), saved)
		}
		if stopped {
			b.clean()
		}
	}
}

// TestLostAnswer has the answer to an order lost, in a process that goes on. Where the
// authority lists orders, it is found; else the attempt fails and says that nobody knows,
// and only the next one places another.
func TestLostAnswer(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	hiccup := certmanagertest.Problem(http.StatusInternalServerError, "serverInternal", "a hiccup")
	cut := func(w http.ResponseWriter, _ *http.Request) { // after it has said where the order is
		w.Header().Set("Content-Length", "1000")
		w.WriteHeader(http.StatusCreated)
		_, _ = w.Write([]byte("{"))
	}
	n := 0
	attempt := func(i *Issuer, f certmanagertest.Fault, unanswered bool) (o certmanager.Order, err error) {
		n++
		o = b.order(byDNS(), fmt.Sprintf("lost%d.example.test", n))
		o.Unanswered = unanswered
		f.Path, f.Times = certmanagertest.NewOrder, 1
		defer b.Fail(f)()
		return o, b.try(i, o)
	}
	for what, f := range map[string]certmanagertest.Fault{
		"dropped": {Answer: certmanagertest.Drop()}, "done and dropped": {Answer: certmanagertest.Drop(), Late: true},
		"failed": {Answer: hiccup}, "done and failed": {Answer: hiccup, Late: true}, "cut": {Answer: cut, Late: true}, "out of order": {Answer: certmanagertest.Unavailable()},
	} {
		if o, err := attempt(b.issuer(), f, false); err != nil || b.Orders(o.Names...) != 1 || b.Issued(o.Names...) != 1 {
			t.Errorf("%s: %d orders, %d certificates: %v", what, b.Orders(o.Names...), b.Issued(o.Names...), err)
		}
	}
	silent := b.issuer() // it lists nothing
	if _, err := silent.Account(t.Context()); err != nil {
		t.Fatal(err)
	}
	silent.account.Orders = ""
	for _, late := range []bool{false, true} {
		o, err := attempt(silent, certmanagertest.Fault{Answer: certmanagertest.Drop(), Late: late}, false)
		if p := problemOf(t, err); !p.Unanswered || p.Permanent || !strings.Contains(p.Error(), "whether the order was placed is not known") {
			t.Errorf("done %v, and dropped: %+v", late, p)
		}
		before := b.Orders(o.Names...)
		o.Unanswered = true
		lost := false
		o.Placing = func(_ context.Context, again bool) error { lost = again; return nil }
		if err := b.try(silent, o); err != nil || !lost || b.Orders(o.Names...) != before+1 || b.Issued(o.Names...) != 1 {
			t.Errorf("after one that was lost: %d orders and then %d: %v", before, b.Orders(o.Names...), err)
		}
	}
	if _, err := attempt(silent, certmanagertest.Fault{Answer: certmanagertest.Problem(http.StatusForbidden, "rejectedIdentifier", "no")}, true); problemOf(t, err).Unanswered {
		t.Error("after a refusal it is not known whether there is an order")
	}
	down := b.Down()
	defer down()
	if _, err := attempt(silent, certmanagertest.Fault{}, true); !problemOf(t, err).Unanswered {
		t.Error("an authority that is down has made it forgotten that an order may be there")
	}
}

// TestInvalid has an order whose name cannot be proved: the next attempt places another.
func TestInvalid(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	i := b.issuer()
	o := b.order(cert.Method{Type: "http-01"}, "a.example.test", "b.example.test")
	o.Save = func(_ context.Context, state string) error { o.State = state; return nil }
	cleaned := 0
	var mu sync.Mutex
	o.Present = func(context.Context, cert.Challenge) (func(context.Context), error) {
		return func(ctx context.Context) {
			mu.Lock()
			defer mu.Unlock()
			if _, bounded := ctx.Deadline(); bounded && ctx.Err() == nil {
				cleaned++
			}
		}, nil
	}
	p := problemOf(t, b.try(i, o))
	if p.Step != "challenge" || p.Type != acme.ProblemTypeConnection || p.Permanent || !strings.Contains(p.Error(), "a.example.test: ") {
		t.Errorf("nobody answers: got %+v", p)
	}
	if cleaned != 2 {
		t.Errorf("%d of 2 challenges were taken back", cleaned)
	}
	lb := newBalancer(t)
	b.AnswerHTTP(lb.http)
	o.Present = lb.present
	b.issue(i, o)
	if n := b.Orders(o.Names...); n != 2 {
		t.Errorf("%d orders, want 2", n)
	}
	full := errors.New("no target is there")
	presented := 0
	o = b.order(cert.Method{Type: "http-01"}, "c.example.test", "d.example.test")
	o.Present = func(_ context.Context, c cert.Challenge) (func(context.Context), error) {
		mu.Lock()
		defer mu.Unlock()
		if c.Name == "d.example.test" {
			return nil, full
		}
		presented++
		return func(context.Context) { mu.Lock(); presented--; mu.Unlock() }, nil
	}
	told := b.Requests(certmanagertest.Challenge)
	if err := b.try(i, o); !errors.Is(err, full) || presented != 0 || b.Requests(certmanagertest.Challenge) != told {
		t.Errorf("one that cannot be presented: got %v; %d stayed; the authority was told: %v", err, presented, b.Requests(certmanagertest.Challenge) != told)
	}
}

func TestRefused(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	i := b.issuer()
	names := []string{"a.example.test", "b.example.test", "c.example.test", "d.example.test", "e.example.test"}
	b.Refuse("c.example.test")
	p := problemOf(t, b.try(i, b.order(byDNS(), names...)))
	if p.Step != "order" || !p.Permanent || p.Type != acme.ProblemTypeRejectedIdentifier || !strings.Contains(p.Error(), "\nc.example.test: policy forbids") || strings.Contains(p.Error(), "a.example.test") {
		t.Errorf("one name of five: got %+v", p)
	}
	b.Allow("c.example.test")
	stop := b.Fail(certmanagertest.Fault{Path: certmanagertest.NewOrder, Answer: certmanagertest.RateLimited(3 * time.Hour)})
	p = problemOf(t, b.try(i, b.order(byDNS(), names...)))
	if in := time.Until(p.After).Round(time.Minute); p.Permanent || p.Type != acme.ProblemTypeRateLimited || in != 3*time.Hour {
		t.Errorf("rate limited: got %+v, for %v", p, in)
	}
	stop()
	down := b.Down()
	for _, fresh := range []*Issuer{i, b.issuer()} {
		if p := problemOf(t, b.try(fresh, b.order(byDNS(), names...))); p.Permanent || p.Type != "" {
			t.Errorf("down: got %+v", p)
		}
	}
	down()
	b.issue(i, b.order(byDNS(), names...))
	// The authority has lost its accounts.
	other := newBench(t, certmanagertest.Options{})
	i.account.Location = other.URL + "/none"
	if err := b.try(i, b.order(byDNS(), names...)); err == nil {
		t.Error("an account that is not there has issued")
	}
	o := b.order(byDNS(), "*.example.test")
	for _, c := range []struct {
		name   string
		method cert.Method
		want   string
	}{
		{"*.example.test", cert.Method{Type: "http-01"}, "a wildcard is proved by dns-01"},
		{"10.0.0.1", byDNS(), "an address is proved by http-01"},
		{"10.0.0.1", cert.Method{Type: "dns-persist-01"}, "an address is proved by http-01"},
		{"example.test", cert.Method{Type: "dns-01", Provider: "route"}, `no DNS provider "route"; there are: zones`},
		{"example.test", cert.Method{Type: "http-01"}, "nobody is there to answer"},
		{"example.test", cert.Method{}, `"" is no way to prove a name`},
		{"10.0.0.01", cert.Method{Type: "http-01"}, "no name for a certificate"},
	} {
		o.Names, o.Methods = []string{c.name}, map[string]cert.Method{c.name: c.method}
		if p := problemOf(t, b.try(i, o)); !p.Permanent || !strings.Contains(p.Error(), c.want) {
			t.Errorf("%s by %+v: got %v, want %q", c.name, c.method, p, c.want)
		}
	}
}

// What the authority says of times is judged by the clock that is given, and not by that
// of this machine.
func TestClock(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	const behind = 6 * time.Hour
	i := b.issuer(func(c *Config) { c.Now = func() time.Time { return time.Now().Add(-behind) } })
	stop := b.Fail(certmanagertest.Fault{Path: certmanagertest.NewOrder, Answer: certmanagertest.RateLimited(3 * time.Hour)})
	p := problemOf(t, b.try(i, b.order(byDNS(), "a.example.test")))
	if in := time.Until(p.After.Add(behind)).Round(time.Minute); in != 3*time.Hour {
		t.Errorf("it is to come again in %v", in)
	}
	stop()
	if p := problemOf(t, b.try(i, b.order(byDNS(), "a.example.test"))); p.Step != "verify" || !strings.Contains(p.Error(), "is the clock right?") {
		t.Errorf("a certificate of the future: %v", p)
	}
}

func TestPropagation(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	b.DNS.Hide("_acme-challenge.slow.example.test")
	i := b.issuer(func(c *Config) { c.Propagation = 100 * time.Millisecond })
	told := b.Requests(certmanagertest.Challenge)
	o := b.order(byDNS(), "slow.example.test", "fast.example.test")
	p := problemOf(t, b.try(i, o))
	want := fmt.Sprintf("slow.example.test: the TXT record _acme-challenge.slow.example.test. is written and not seen after 100ms: 1 of 1 nameservers do not have it: %s", b.DNS.Addr)
	if p.Step != "challenge" || p.Permanent || !strings.Contains(p.Error(), want) || strings.Contains(p.Error(), "fast.example.test") {
		t.Errorf("got %+v, want %s", p, want)
	}
	if b.Requests(certmanagertest.Challenge) != told {
		t.Error("the authority was told")
	}
	b.clean()
	// It comes while it is waited for.
	waiting := make(chan struct{})
	o.Progress = func(step string) {
		if strings.HasPrefix(step, "waiting until DNS") {
			close(waiting)
		}
	}
	go func() {
		<-waiting
		b.DNS.Show("_acme-challenge.slow.example.test")
	}()
	b.issue(b.issuer(), o)
	// Nameservers that are asked for, at the port that they have here.
	found := b.issuer(func(c *Config) { c.Nameservers = nil })
	_, found.resolver.port, _ = net.SplitHostPort(b.DNS.Addr)
	b.issue(found, b.order(byDNS(), "found.example.test", "*.found.example.test"))
	// One of two cannot be reached.
	dead, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	b.issue(b.issuer(func(c *Config) { c.Nameservers = []string{b.DNS.Addr, dead.LocalAddr().String()} }), b.order(byDNS(), "half.example.test"))
	none := b.issuer(func(c *Config) {
		c.Nameservers, c.Propagation = []string{dead.LocalAddr().String()}, 50*time.Millisecond
	})
	if err := b.try(none, b.order(byDNS(), "none.example.test")); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("no nameserver: got %v", err)
	}
	nowhere := b.issuer()
	if err := b.try(nowhere, b.order(byDNS(), "elsewhere.invalid")); err == nil || !strings.Contains(err.Error(), "REFUSED") {
		t.Errorf("no zone: got %v", err)
	}
	b.clean()
}

// TestHostile has answers that no authority gives.
func TestHostile(t *testing.T) {
	for what, answer := range map[string]http.HandlerFunc{
		"garbage": certmanagertest.Garbage(), "huge": certmanagertest.Huge(64 << 20), "later": certmanagertest.RateLimited(100000 * time.Hour),
		"elsewhere": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://127.0.0.1/", http.StatusTemporaryRedirect)
		},
		"control": certmanagertest.Problem(http.StatusForbidden, "malformed", "\x1b[2J"+strings.Repeat("long ", 10000)),
		"null":    jsonAnswer(`null`),
		"odd":     jsonAnswer(`{"status": "pending", "challenges": [{"type": "dns-01"}, {}], "authorizations": ["", "x"], "identifier": {"type": "dns", "value": "bank.example"}}`),
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			hostile(t, what, answer)
		})
	}
}

func hostile(t *testing.T, what string, answer http.HandlerFunc) {
	b := newBench(t, certmanagertest.Options{})
	for n, path := range append(everyPath(), certmanagertest.Directory) {
		if path == certmanagertest.NewNonce && what != "huge" {
			continue // it has no body
		}
		i := b.issuer(func(c *Config) { c.Validation, c.Propagation = 50*time.Millisecond, time.Second })
		stop := b.Fail(certmanagertest.Fault{Path: path, Answer: answer})
		ctx, cancel := context.WithTimeout(t.Context(), testTime)
		began := time.Now()
		_, err := i.Issue(ctx, b.order(byDNS(), fmt.Sprintf("hostile%d.example.test", n)))
		cancel()
		stop()
		harmless := path == certmanagertest.Challenge || path == certmanagertest.NewNonce // what was told there is not needed
		if err == nil && !harmless {
			t.Errorf("%s from %s: a certificate was issued", what, path)
		}
		if err != nil && (len(err.Error()) > 3000 || strings.ContainsRune(err.Error(), '\x1b')) {
			t.Errorf("%s from %s: the error has %d characters: %.200q", what, path, len(err.Error()), err.Error())
		}
		if took := time.Since(began); took > testTime/2 {
			t.Errorf("%s from %s took %v: %v", what, path, took, err)
		}
		b.clean()
	}
}

func jsonAnswer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Location", "https://127.0.0.1:1/none")
		w.Header().Set("Replay-Nonce", "none")
		_, _ = w.Write([]byte(text))
	}
}

// TestHung has an authority that does not answer: a context ends that, and a request's
// time does, and another authority is not held up.
func TestHung(t *testing.T) {
	for _, path := range append(everyPath(), certmanagertest.Directory) {
		t.Run(path, func(t *testing.T) {
			t.Parallel()
			hung(t, path)
		})
	}
}

func hung(t *testing.T, path string) {
	b, other := newBench(t, certmanagertest.Options{}), newBench(t, certmanagertest.Options{})
	i := b.issuer()
	stop := b.Fail(certmanagertest.Fault{Path: path, Answer: certmanagertest.Hang()})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	var held sync.WaitGroup
	held.Go(func() { other.issue(other.issuer(), other.order(byDNS(), "free.example.test")) })
	began := time.Now()
	_, err := i.Issue(ctx, b.order(byDNS(), "hung.example.test"))
	if took := time.Since(began); !errors.Is(err, context.DeadlineExceeded) || took > settleTime+3*time.Second {
		t.Errorf("%s hangs: got %v after %v", path, err, took)
	}
	cancel()
	held.Wait()
	short := b.issuer(func(c *Config) { c.Request = 50 * time.Millisecond })
	if err := b.try(short, b.order(byDNS(), "hung.example.test")); err == nil {
		t.Errorf("%s hangs: a certificate was issued", path)
	}
	stop()
	b.clean()
}

func TestWrongChain(t *testing.T) {
	b, other := newBench(t, certmanagertest.Options{}), newBench(t, certmanagertest.Options{})
	i := b.issuer()
	o := b.order(byDNS(), "example.test")
	o.Save = func(_ context.Context, state string) error { o.State = state; return nil }
	stranger := other.order(byDNS(), "example.test")
	issued, err := other.issuer().Issue(t.Context(), stranger)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		chain [][]byte
		want  string
	}{
		"another's leaf": {issued.Chain, "for another key"},
		"no leaf":        {issued.Chain[1:], "the certificate is for "},
		"disorder":       {[][]byte{issued.Chain[0], issued.Chain[0]}, "not signed by the next"},
		"no certificate": {[][]byte{[]byte("x")}, "cannot be read"},
	} {
		b.WrongChain(c.chain...)
		o.State = ""
		orders := b.Orders()
		p := problemOf(t, b.try(i, o))
		if p.Step != "verify" && p.Step != "finalize" || !strings.Contains(p.Error(), c.want) {
			t.Errorf("%s: got %+v, want %q", what, p, c.want)
		}
		b.WrongChain()
		b.issue(i, o)
		if n := b.Orders() - orders; n != 1 {
			t.Errorf("%s: %d orders, want the same one for the right chain", what, n)
		}
	}
	// The key of an order that is resumed was lost: another order is placed.
	o.Key = certmanagertest.NewKey(t, "p256")
	before := o.State
	b.issue(i, o)
	if o.State == before {
		t.Error("no new order was placed for another key")
	}
}

// TestPlain has a directory that leads away from HTTPS.
func TestPlain(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	var asked sync.Map
	plain := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked.Store(r.URL.Path, true) }))
	defer plain.Close()
	directory, err := json.Marshal(acme.Directory{NewNonce: plain.URL + "/nonce", NewAccount: plain.URL + "/account", NewOrder: plain.URL + "/order", RevokeCert: plain.URL + "/revoke"})
	if err != nil {
		t.Fatal(err)
	}
	b.Fail(certmanagertest.Fault{Path: certmanagertest.Directory, Answer: jsonAnswer(string(directory))})
	if err := b.try(b.issuer(), b.order(byDNS(), "example.test")); err == nil || !strings.Contains(err.Error(), "no https URL") {
		t.Errorf("got %v", err)
	}
	asked.Range(func(path, _ any) bool { t.Errorf("%v was asked for in plain", path); return true })
	key, _ := NewKey()
	for what, c := range map[string]Config{
		"plain directory": {Directory: "http://example.test/dir", Key: key}, "no directory": {Key: key},
		"no key": {Directory: "https://example.test/dir"}, "broken key": {Directory: "https://example.test/dir", Key: strings.ReplaceAll(key, "M", "N")},
		"no roots": {Directory: "https://example.test/dir", Key: key, Roots: "x"}, "no mail": {Directory: "https://example.test/dir", Key: key, Mail: "a, b@c"},
		"half an account": {Directory: "https://example.test/dir", Key: key, EAB: &EAB{KeyID: "x"}},
	} {
		if _, err := New(c); err == nil || strings.Contains(err.Error(), "MIG") {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

func TestSecrets(t *testing.T) {
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	c := Config{Directory: "https://example.test/dir", Key: key, EAB: &EAB{KeyID: "kid", MAC: "c2VjcmV0"}}
	i, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	var log strings.Builder
	slog.New(slog.NewTextHandler(&log, nil)).Info("opened", "issuer", i, "config", c)
	shown := fmt.Sprintf("%v %+v %#v %s %v %+v %#v", i, i, i, i, c, c, c) + log.String()
	if strings.Contains(shown, "PRIVATE") || strings.Contains(shown, "c2Vj") || strings.Contains(shown, "Curve") {
		t.Errorf("a secret is shown: %s", shown)
	}
}

func TestPersistent(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	issuers := []string{"authority.test"}
	for text, want := range map[string]string{
		"authority.test; accounturi=https://a/1":                          "",
		" Authority.Test ;AccountURI=https://a/1;policy=other":            "",
		"authority.test; accounturi=https://a/1; persistUntil=1800000001": "",
		"authority.test; accounturi=https://a/1; persistUntil=1799999999": "one ended at",
		"authority.test; accounturi=https://a/1; persistUntil=soon":       "malformed",
		"authority.test; accounturi=https://a/2":                          "one is for account https://a/2",
		"authority.test":                                                  "one is for account ",
		"authority.test; accounturi=https://a/1; accounturi=https://a/1":  "malformed",
		"authority.test; accounturi=https://a/1;":                         "malformed",
		"other.test; accounturi=https://a/1":                              otherIssuer,
		"":                                                                otherIssuer,
	} {
		got := persistent(text, issuers, "https://a/1", false, now)
		if want == "" && got != "" || !strings.Contains(got, want) {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	if got := persistent("authority.test; accounturi=https://a/1", issuers, "https://a/1", true, now); got != "one does not allow wildcards" {
		t.Errorf("for a wildcard: got %q", got)
	}
	if got := persistent("authority.test; accounturi=https://a/1; policy=WILDCARD", issuers, "https://a/1", true, now); got != "" {
		t.Errorf("for a wildcard: got %q", got)
	}
}

func TestMoment(t *testing.T) {
	start := time.Unix(1_800_000_000, 0)
	var early int
	for n := range 200 {
		at := moment(&x509.Certificate{Raw: []byte{byte(n)}}, start, start.Add(time.Hour))
		if at.Before(start) || !at.Before(start.Add(time.Hour)) {
			t.Fatalf("%v is not in the window", at)
		}
		if at.Before(start.Add(30 * time.Minute)) {
			early++
		}
	}
	if early < 60 || early > 140 {
		t.Errorf("%d of 200 are in the first half", early)
	}
	for header, want := range map[string]time.Duration{"": -1, "x": -1, "-1": -1, "60": time.Minute, "9999999999": 365 * 24 * time.Hour, start.Add(time.Hour).UTC().Format(http.TimeFormat): time.Hour} {
		got := retryAfter(header, start)
		if want < 0 && !got.IsZero() || want >= 0 && !got.Equal(start.Add(want)) {
			t.Errorf("Retry-After %q: got %v", header, got)
		}
	}
}

func FuzzChain(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nMA==\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if chain, err := parseChain(text); err == nil && len(chain) == 0 {
			t.Error("neither a chain nor an error")
		}
	})
}

func FuzzPersistent(f *testing.F) {
	f.Add("authority.test; accounturi=https://a/1; policy=wildcard; persistUntil=1")
	f.Fuzz(func(t *testing.T, text string) {
		if persistent(text, []string{"authority.test"}, "https://a/1", true, time.Now()) == "" && !strings.Contains(text, "https://a/1") {
			t.Errorf("%q holds for an account that it does not name", text)
		}
	})
}
