package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
	"github.com/fleetbus/fleetbus/certmanager/certmanagertest"
	"github.com/fleetbus/fleetbus/certmanager/dns"
)

// testTime bounds what succeeds.
const testTime = 60 * time.Second

// A bench is an authority and who is configured for it.
type bench struct {
	*certmanagertest.Authority
	t      *testing.T
	config Config
}

func newBench(t *testing.T, o certmanagertest.Options) *bench {
	t.Helper()
	a := certmanagertest.NewAuthority(t, o)
	settings, err := json.Marshal(map[string]string{"server": a.DNS.Addr, "key_name": a.DNS.Key, "key": a.DNS.Secret})
	if err != nil {
		t.Fatal(err)
	}
	provider, err := dns.New("rfc2136", settings)
	if err != nil {
		t.Fatal(err)
	}
	key, err := NewKey()
	if err != nil {
		t.Fatal(err)
	}
	return &bench{Authority: a, t: t, config: Config{
		Directory: a.URL, Key: key, Roots: a.Trust, Providers: map[string]Provider{"zones": provider},
		Resolvers: []string{a.DNS.Addr}, Nameservers: []string{a.DNS.Addr}, Interval: 5 * time.Millisecond,
		Propagation: testTime, Validation: testTime,
	}}
}

// issuer is a new one of the same account.
func (b *bench) issuer(edit ...func(*Config)) *Issuer {
	b.t.Helper()
	c := b.config
	for _, e := range edit {
		e(&c)
	}
	i, err := New(c)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(i.client.HTTPClient.CloseIdleConnections)
	return i
}

// order is one for names, each proved by method.
func (b *bench) order(method cert.Method, names ...string) certmanager.Order {
	o := certmanager.Order{
		Names: names, Key: certmanagertest.NewKey(b.t, "p256"), Methods: map[string]cert.Method{},
		Save: func(context.Context, string) error { return nil },
	}
	for _, name := range names {
		o.Methods[name] = method
	}
	return o
}

func byDNS() cert.Method { return cert.Method{Type: "dns-01", Provider: "zones"} }

// issue issues, and verifies for every name.
func (b *bench) issue(i *Issuer, o certmanager.Order) *x509.Certificate {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), testTime)
	defer cancel()
	issued, err := i.Issue(ctx, o)
	if err != nil {
		b.t.Fatalf("issuing for %q: %v", o.Names, err)
	}
	return b.leaf(o, issued)
}

func (b *bench) leaf(o certmanager.Order, issued certmanager.Issued) *x509.Certificate {
	b.t.Helper()
	between := x509.NewCertPool()
	var leaf *x509.Certificate
	for i, der := range issued.Chain {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			b.t.Fatal(err)
		}
		if i == 0 {
			leaf = c
		}
		between.AddCert(c)
	}
	for _, name := range o.Names {
		if _, err := leaf.Verify(x509.VerifyOptions{DNSName: strings.Replace(name, "*", "any", 1), Roots: b.Roots(), Intermediates: between}); err != nil {
			b.t.Errorf("verifying for %s: %v", name, err)
		}
	}
	return leaf
}

// try issues and returns the problem.
func (b *bench) try(i *Issuer, o certmanager.Order) error {
	ctx, cancel := context.WithTimeout(b.t.Context(), testTime)
	defer cancel()
	_, err := i.Issue(ctx, o)
	return err
}

// clean wants all texts to be gone.
func (b *bench) clean() {
	b.t.Helper()
	if n := b.DNS.Texts(); n != 0 {
		b.t.Errorf("%d texts were left behind", n)
	}
}

// A balancer answers http-01 and tls-alpn-01, as a target would.
type balancer struct {
	http, tls string // addresses

	mu    sync.Mutex
	known map[string]cert.Challenge // by name and type
	came  int
}

func newBalancer(t *testing.T) *balancer {
	t.Helper()
	b := &balancer{known: map[string]cert.Challenge{}}
	serve := func(ln net.Listener) string {
		server := &http.Server{Handler: b}
		ended := make(chan error, 1)
		go func() { ended <- server.Serve(ln) }()
		t.Cleanup(func() { server.Close(); <-ended })
		return ln.Addr().String()
	}
	listen := func() net.Listener {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	b.http = serve(listen())
	b.tls = serve(tls.NewListener(listen(), &tls.Config{
		NextProtos: []string{acmez.ACMETLS1Protocol},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			c := b.find("tls-alpn-01", hello.ServerName)
			kind := "dns"
			if isIP(c.Name) {
				kind = "ip"
			}
			return acmez.TLSALPN01ChallengeCert(acme.Challenge{
				Type: c.Type, Token: c.Token, KeyAuthorization: c.KeyAuth, Identifier: acme.Identifier{Type: kind, Value: c.Name},
			})
		},
	}))
	return b
}

// find returns the challenge of a name, or of an address that is asked for as its name
// in reverse.
func (b *balancer) find(kind, name string) cert.Challenge {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.came++
	if name == "1.0.0.127.in-addr.arpa" {
		name = "127.0.0.1"
	}
	return b.known[kind+" "+name]
}

// ServeHTTP answers http-01.
func (b *balancer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	host, _, _ := net.SplitHostPort(r.Host)
	c := b.find("http-01", host)
	if c.Token == "" || r.URL.Path != "/.well-known/acme-challenge/"+c.Token {
		http.NotFound(w, r)
		return
	}
	_, _ = w.Write([]byte(c.KeyAuth))
}

func (b *balancer) present(_ context.Context, c cert.Challenge) (func(context.Context), error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.known[c.Type+" "+c.Name] = c
	return func(context.Context) {
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.known, c.Type+" "+c.Name)
	}, nil
}

func (b *balancer) left() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.known)
}

func TestContract(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	certmanagertest.TestIssuer(t, certmanagertest.IssuerContract{
		Issuer: func(*testing.T) certmanager.Issuer { return b.issuer() },
		Domain: "example.test", Method: byDNS(), Roots: b.Roots(), Orders: b.Orders, Profile: "default",
		Revoked: func(leaf *x509.Certificate) bool { _, ok := b.Revoked(leaf.Raw); return ok },
	})
	b.clean()
}

func TestChallenges(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	i := b.issuer()
	lbs := []*balancer{newBalancer(t), newBalancer(t)}
	b.AnswerHTTP(lbs[0].http, lbs[1].http)
	b.AnswerTLS(lbs[0].tls, lbs[1].tls)
	present := func(ctx context.Context, c cert.Challenge) (func(context.Context), error) {
		var undo []func(context.Context)
		for _, lb := range lbs {
			u, err := lb.present(ctx, c)
			if err != nil {
				return nil, err
			}
			undo = append(undo, u)
		}
		return func(ctx context.Context) {
			for _, u := range undo {
				u(ctx)
			}
		}, nil
	}
	for _, kind := range []string{"http-01", "tls-alpn-01"} {
		o := b.order(cert.Method{Type: kind}, "a."+kind+".example.test", "b."+kind+".example.test", "127.0.0.1")
		o.Present = present
		b.issue(i, o)
		for _, lb := range lbs {
			if lb.came == 0 || lb.left() > 0 {
				t.Errorf("%s: a load balancer was asked %d times and keeps %d challenges", kind, lb.came, lb.left())
			}
			lb.came = 0
		}
	}
	// All four ways in one order.
	account, err := i.Account(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := b.order(byDNS(), "*.mixed.example.test", "mixed.example.test", "h.example.test", "t.example.test", "p.example.test", "*.p.example.test")
	o.Present = present
	o.Methods["h.example.test"] = cert.Method{Type: "http-01"}
	o.Methods["t.example.test"] = cert.Method{Type: "tls-alpn-01"}
	o.Methods["p.example.test"] = cert.Method{Type: "dns-persist-01"}
	o.Methods["*.p.example.test"] = cert.Method{Type: "dns-persist-01"}
	record := `_validation-persist.p.example.test. IN TXT "` + certmanagertest.Issuer + `; accounturi=` + account + `; policy=wildcard"`
	problem := b.try(i, o)
	if problem == nil || !strings.Contains(problem.Error(), "create "+record) {
		t.Fatalf("without the record of dns-persist-01: got %v, want the record %s", problem, record)
	}
	if lbs[0].left() > 0 {
		t.Error("challenges stayed after an order that failed")
	}
	b.clean()
	if err := b.DNS.Add(record); err != nil {
		t.Fatal(err)
	}
	b.issue(i, o)
	b.DNS.Remove("_validation-persist.p.example.test", "TXT")
	b.clean()
}

func TestDelegation(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	i := b.issuer()
	delegated := byDNS()
	delegated.Delegated = "example.other.test"
	o := b.order(delegated, "example.test", "*.example.test")
	refused := func(what, want string) {
		t.Helper()
		before := b.Requests(certmanagertest.Challenge)
		if err := b.try(i, o); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", what, err, want)
		}
		if b.Requests(certmanagertest.Challenge) != before {
			t.Errorf("%s: the authority was told", what)
		}
	}
	refused("no CNAME", "add the record _acme-challenge.example.test. CNAME example.other.test.")
	add := func(rr string) {
		t.Helper()
		if err := b.DNS.Add(rr); err != nil {
			t.Fatal(err)
		}
	}
	add("_acme-challenge.example.test CNAME elsewhere.other.test.")
	refused("another CNAME", "leads to elsewhere.other.test.")
	o.Methods = b.order(byDNS(), o.Names...).Methods
	refused("undeclared", "delegated: elsewhere.other.test")
	b.DNS.Remove("_acme-challenge.example.test", "CNAME")
	o.Methods = b.order(delegated, o.Names...).Methods
	add("_acme-challenge.example.test CNAME hop.example.test.")
	add("hop.example.test CNAME example.other.test.")
	b.issue(i, o)
	if n := b.DNS.Updates(); n < 4 {
		t.Errorf("%d updates, want 4 at least", n)
	}
	b.clean()
	// A wildcard's CNAME looks like one that was meant.
	add("*.wild.example.test CNAME www.example.test.")
	o = b.order(byDNS(), "x.wild.example.test")
	refused("a wildcard's", "delegated: www.example.test")
}

func TestAccounts(t *testing.T) {
	b := newBench(t, certmanagertest.Options{ExternalAccount: true})
	o := b.order(byDNS(), "example.test")
	err := b.try(b.issuer(), o)
	if p := problemOf(t, err); p.Type != acme.ProblemTypeExternalAccountRequired || !p.Permanent {
		t.Errorf("without an external account: got %+v", p)
	}
	wrong := &EAB{KeyID: b.KeyID, MAC: "d3Jvbmc"}
	if err := b.try(b.issuer(func(c *Config) { c.EAB = wrong }), o); err == nil || strings.Contains(err.Error(), wrong.MAC) {
		t.Errorf("with a wrong key: got %v", err)
	}
	right := func(c *Config) { c.EAB, c.Mail = &EAB{KeyID: b.KeyID, MAC: b.MAC}, "ops@example.org" }
	i := b.issuer(right)
	b.issue(i, o)
	first, err := i.Account(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again, err := b.issuer().Account(t.Context()) // it has the key, and the account is there
	if err != nil || again != first {
		t.Errorf("the account is %q, %v, want %q", again, err, first)
	}
}

func problemOf(t *testing.T, err error) *certmanager.Problem {
	t.Helper()
	var p *certmanager.Problem
	if !errors.As(err, &p) {
		t.Fatalf("got %v, want a problem", err)
	}
	return p
}

func TestProfiles(t *testing.T) {
	b := newBench(t, certmanagertest.Options{AlternateRoots: 2})
	for profile, want := range map[string]time.Duration{"shortlived": 160 * time.Hour, "default": 90 * 24 * time.Hour, "": 90 * 24 * time.Hour} {
		o := b.order(byDNS(), "p"+profile+".example.test")
		o.Profile = profile
		leaf := b.issue(b.issuer(), o)
		if got := leaf.NotAfter.Sub(leaf.NotBefore).Round(time.Hour); got != want {
			t.Errorf("profile %q: valid for %v, want %v", profile, got, want)
		}
	}
	o := b.order(byDNS(), "example.test")
	o.Profile = "six-day"
	if p := problemOf(t, b.try(b.issuer(), o)); !p.Permanent || !strings.Contains(p.Error(), "it has: default, shortlived") {
		t.Errorf("an unknown profile: got %v", p)
	}
	for n := range 3 {
		i := b.issuer(func(c *Config) { c.PreferredChain = b.RootName(n) })
		issued, err := i.Issue(t.Context(), b.order(byDNS(), "chain.example.test"))
		if err != nil {
			t.Fatal(err)
		}
		last, err := x509.ParseCertificate(issued.Chain[len(issued.Chain)-1])
		if err != nil || last.Issuer.CommonName != b.RootName(n) {
			t.Errorf("the chain leads to %q, %v, want %q", last.Issuer.CommonName, err, b.RootName(n))
		}
	}
	b.clean()
}

func TestRenewal(t *testing.T) {
	b := newBench(t, certmanagertest.Options{})
	i := b.issuer()
	o := b.order(byDNS(), "example.test")
	leaf := b.issue(i, o)
	for leaf.SerialNumber.BitLen()%8 == 0 { // Pebble would not know it again
		leaf = b.issue(i, o)
	}
	other := b.issuer()
	first, err := i.Renewal(t.Context(), leaf)
	if err != nil {
		t.Fatal(err)
	}
	second, err := other.Renewal(t.Context(), leaf)
	if err != nil || !second.Selected.Equal(first.Selected) {
		t.Errorf("two managers selected %v and %v, %v", first.Selected, second.Selected, err)
	}
	if again := time.Until(first.Again).Round(time.Minute); again != 6*time.Hour {
		t.Errorf("it is to be asked again in %v, want 6h", again)
	}
	start := time.Now().Add(-2 * time.Hour).UTC().Truncate(time.Second)
	for _, length := range []time.Duration{time.Hour, time.Second} {
		b.SetRenewal(leaf.Raw, start, start.Add(length), "https://example.test/incident")
		r, err := i.Renewal(t.Context(), leaf)
		if err != nil || !r.Start.Equal(start) || r.Selected.Before(start) || r.Selected.After(start.Add(length)) || r.Explanation != "https://example.test/incident" {
			t.Errorf("a window of %v in the past: got %+v, %v", length, r, err)
		}
	}
	for _, answer := range []string{"{}", `{"suggestedWindow":{"start":"2030-01-01T00:00:00Z","end":"2030-01-01T00:00:00Z"}}`, `{"suggestedWindow":7}`, "\x00"} {
		b.SetRenewalAnswer(leaf.Raw, answer)
		if r, err := i.Renewal(t.Context(), leaf); err == nil {
			t.Errorf("%q: got %+v, want an error", answer, r)
		}
	}
	// The renewal says what it replaces; only one can.
	o.Replaces = leaf
	b.issue(i, o)
	before := b.Requests(certmanagertest.NewOrder)
	b.issue(i, o)
	if n := b.Requests(certmanagertest.NewOrder) - before; n != 2 {
		t.Errorf("%d requests for an order that may replace nothing any more, want 2", n)
	}
	unknown := newBench(t, certmanagertest.Options{})
	foreign := unknown.order(byDNS(), "example.test")
	foreign.Replaces = leaf // of another authority
	unknown.issue(unknown.issuer(), foreign)
	if err := i.Revoke(t.Context(), leaf, certmanager.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	if reason, ok := b.Revoked(leaf.Raw); !ok || reason != 1 {
		t.Errorf("revoked: %v for %d, want true for 1", ok, reason)
	}
	if err := unknown.issuer().Revoke(t.Context(), leaf, certmanager.Superseded); err == nil {
		t.Error("an authority revoked what it has not issued")
	}
}
