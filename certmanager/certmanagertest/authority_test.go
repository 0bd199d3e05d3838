package certmanagertest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"
)

// client is a foreign client of an authority, with an account there.
func client(t *testing.T, a *Authority) (*acmez.Client, acme.Account) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(a.Trust))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}}
	t.Cleanup(transport.CloseIdleConnections)
	c := &acmez.Client{Client: &acme.Client{Directory: a.URL, PollInterval: 5 * time.Millisecond, HTTPClient: &http.Client{Transport: transport}}}
	account := acme.Account{TermsOfServiceAgreed: true, PrivateKey: NewKey(t, "p256")}
	if err := account.SetExternalAccountBinding(t.Context(), c.Client, acme.EAB{KeyID: a.KeyID, MACKey: a.MAC}); err != nil {
		t.Fatal(err)
	}
	account, err := c.NewAccount(t.Context(), account)
	if err != nil {
		t.Fatal(err)
	}
	return c, account
}

// updater is a solver of dns-01 by updates as of RFC 2136.
type updater struct{ d *DNS }

func (u updater) send(c acme.Challenge, class uint16) error {
	rr, err := dns.NewRR(c.DNS01TXTRecordName() + `. 1 IN TXT "` + c.DNS01KeyAuthorization() + `"`)
	if err != nil {
		return err
	}
	m := new(dns.Msg)
	m.SetUpdate("example.test.")
	if m.Insert([]dns.RR{rr}); class == dns.ClassNONE {
		m.Ns = nil
		m.Remove([]dns.RR{rr})
	}
	m.SetTsig(u.d.Key, dns.HmacSHA256, 300, time.Now().Unix())
	client := dns.Client{TsigSecret: map[string]string{u.d.Key: u.d.Secret}}
	reply, _, err := client.Exchange(m, u.d.Addr)
	if err == nil && reply.Rcode != dns.RcodeSuccess {
		err = errors.New(dns.RcodeToString[reply.Rcode])
	}
	return err
}

func (u updater) Present(_ context.Context, c acme.Challenge) error { return u.send(c, dns.ClassINET) }
func (u updater) CleanUp(_ context.Context, c acme.Challenge) error { return u.send(c, dns.ClassNONE) }

func TestAuthority(t *testing.T) {
	a := NewAuthority(t, Options{ExternalAccount: true})
	c, account := client(t, a)
	c.ChallengeSolvers = map[string]acmez.Solver{acme.ChallengeTypeDNS01: updater{a.DNS}}
	names := []string{"example.test", "*.example.test"}
	key := NewKey(t, "p256")
	csr, err := acmez.NewCSR(key, names)
	if err != nil {
		t.Fatal(err)
	}
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		t.Fatal(err)
	}
	params.Profile = "shortlived"
	chains, err := c.ObtainCertificate(t.Context(), params)
	if err != nil {
		t.Fatal(err)
	}
	leaf, between := parse(t, chains[0].ChainPEM)
	if _, err := leaf.Verify(x509.VerifyOptions{DNSName: "any.example.test", Roots: a.Roots(), Intermediates: between}); err != nil {
		t.Error(err)
	}
	if days := leaf.NotAfter.Sub(leaf.NotBefore); days > 7*24*time.Hour {
		t.Errorf("the certificate is valid for %v, and the profile is for 160 hours", days)
	}
	if n := a.Orders("*.example.test", "EXAMPLE.test"); n != 1 || a.Orders() != 1 || a.Issued(names...) != 1 || a.Orders("example.test") != 0 {
		t.Errorf("%d orders of this set and %d in all, %d issued, want 1 of each", n, a.Orders(), a.Issued(names...))
	}
	if n := a.DNS.Texts(); n != 0 || a.DNS.Updates() != 4 {
		t.Errorf("%d texts are left of %d updates, want 0 of 4", n, a.DNS.Updates())
	}
	if err := c.RevokeCertificate(t.Context(), account, leaf, nil, 4); err != nil {
		t.Fatal(err)
	}
	if reason, ok := a.Revoked(leaf.Raw); !ok || reason != 4 {
		t.Errorf("revoked: %v, for %d, want true for 4", ok, reason)
	}
	a.SetRenewal(leaf.Raw, time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour), "https://example.test/why")
	info, err := c.GetRenewalInfo(t.Context(), leaf)
	if err != nil || info.ExplanationURL != "https://example.test/why" || info.SelectedTime.After(time.Now()) {
		t.Errorf("renewal: got %+v, %v", info, err)
	}
}

func parse(t *testing.T, chain []byte) (*x509.Certificate, *x509.CertPool) {
	t.Helper()
	between := x509.NewCertPool()
	between.AppendCertsFromPEM(chain)
	block, _ := pem.Decode(chain)
	leaf, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return leaf, between
}

// TestVantage has two answer for one name in turn.
func TestVantage(t *testing.T) {
	a := NewAuthority(t, Options{})
	var addrs []string
	for _, text := range []string{"one", "two"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(text)) })}
		ended := make(chan error)
		go func() { ended <- server.Serve(ln) }()
		t.Cleanup(func() { server.Close(); <-ended })
		addrs = append(addrs, ln.Addr().String())
	}
	a.AnswerHTTP(addrs...)
	transport := &http.Transport{DisableKeepAlives: true}
	seen := map[string]int{}
	for range 4 {
		answer, err := (&http.Client{Transport: transport}).Get("http://" + a.http.ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		body := make([]byte, 3)
		_, _ = answer.Body.Read(body)
		answer.Body.Close()
		seen[string(body)]++
	}
	if seen["one"] != 2 || seen["two"] != 2 {
		t.Errorf("%v answered, want each twice", seen)
	}
}

func TestFaults(t *testing.T) {
	a := NewAuthority(t, Options{})
	c, account := client(t, a)
	ask := func(ctx context.Context, names ...string) error {
		order := acme.Order{Profile: "default"}
		for _, name := range names {
			order.Identifiers = append(order.Identifiers, acme.Identifier{Type: "dns", Value: name})
		}
		_, err := c.NewOrder(ctx, account, order)
		return err
	}
	a.Refuse("bad.example.test")
	err := ask(t.Context(), "good.example.test", "bad.example.test")
	var problem acme.Problem
	if !errors.As(err, &problem) || problem.Type != acme.ProblemTypeRejectedIdentifier || len(problem.Subproblems) != 1 || problem.Subproblems[0].Identifier.Value != "bad.example.test" {
		t.Errorf("ordering a refused name: got %v", err)
	}
	for _, c := range []struct {
		what   string
		answer http.HandlerFunc
		want   string
	}{
		{"unavailable", Unavailable(), "HTTP 503"},
		{"rate limit", RateLimited(time.Hour), "rateLimited"},
		{"dropped", Drop(), "EOF"},
		{"garbage", Garbage(), "JSON"},
		{"huge", Huge(1 << 20), "JSON"},
	} {
		stop := a.Fail(Fault{Path: NewOrder, Answer: c.answer})
		if err := ask(t.Context(), "one.example.test"); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: got %v, want %s", c.what, err, c.want)
		}
		stop()
	}
	if n := a.Orders("one.example.test"); n != 0 {
		t.Errorf("%d orders were placed by requests that failed before", n)
	}
	stop := a.Fail(Fault{Path: NewOrder, Answer: Hang()})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := ask(ctx, "one.example.test"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hanging: got %v", err)
	}
	stop()
	stop = a.Fail(Fault{Path: NewOrder, Answer: Unavailable(), Every: 2, Times: 1, Late: true})
	if err := errors.Join(ask(t.Context(), "late.example.test"), ask(t.Context(), "late.example.test")); err != nil {
		t.Error(err)
	}
	if n := a.Orders("late.example.test"); n != 3 {
		t.Errorf("%d orders were placed, want 2, and 1 whose answer was lost", n)
	}
	stop()
	if n := a.Requests(NewOrder); n < 8 {
		t.Errorf("%d orders were asked for, which is less than the test did", n)
	}
}

// TestDNS tries what is not tried by issuing.
func TestDNS(t *testing.T) {
	d := NewDNS(t, "example.test", "sub.example.test")
	for _, rr := range []string{
		"www.example.test A 192.0.2.7", "alias.example.test CNAME www.example.test.", "*.wild.example.test CNAME alias.example.test.",
		`text.example.test TXT "a" "b"`, "loop.example.test CNAME loop.example.test.", `hidden.example.test TXT "x"`,
	} {
		if err := d.Add(rr); err != nil {
			t.Fatal(err)
		}
	}
	d.Hide("hidden.example.test")
	d.Fail("broken.example.test", dns.RcodeServerFailure)
	for _, c := range []struct {
		name  string
		kind  uint16
		rcode int
		want  []string
	}{
		{"WWW.example.TEST.", dns.TypeA, dns.RcodeSuccess, []string{"192.0.2.7"}},
		{"else.example.test.", dns.TypeA, dns.RcodeSuccess, []string{"127.0.0.1"}},
		{"else.example.test.", dns.TypeTXT, dns.RcodeNameError, nil},
		{"www.example.test.", dns.TypeTXT, dns.RcodeSuccess, nil},
		{"x.wild.example.test.", dns.TypeA, dns.RcodeSuccess, []string{"alias.example.test.", "www.example.test.", "192.0.2.7"}},
		{"text.example.test.", dns.TypeTXT, dns.RcodeSuccess, []string{`"a" "b"`}},
		{"hidden.example.test.", dns.TypeTXT, dns.RcodeSuccess, nil},
		{"loop.example.test.", dns.TypeA, dns.RcodeServerFailure, nil},
		{"broken.example.test.", dns.TypeA, dns.RcodeServerFailure, nil},
		{"example.test.", dns.TypeNS, dns.RcodeSuccess, []string{"ns.example.test."}},
		{"elsewhere.invalid.", dns.TypeA, dns.RcodeRefused, nil},
	} {
		for _, network := range []string{"udp", "tcp"} {
			m := new(dns.Msg)
			m.SetQuestion(c.name, c.kind)
			client := dns.Client{Net: network}
			reply, _, err := client.Exchange(m, d.Addr)
			if err != nil {
				t.Errorf("%s %s: %v", c.name, dns.TypeToString[c.kind], err)
				continue
			}
			var got []string
			for _, rr := range reply.Answer {
				got = append(got, strings.TrimPrefix(rr.String(), rr.Header().String()))
			}
			if reply.Rcode != c.rcode || c.want != nil && !slices.Equal(got, c.want) || c.want == nil && c.rcode == dns.RcodeSuccess && len(got) > 0 {
				t.Errorf("%s %s over %s: got %s %q, want %s %q", c.name, dns.TypeToString[c.kind], network, dns.RcodeToString[reply.Rcode], got, dns.RcodeToString[c.rcode], c.want)
			}
		}
	}
	stranger := &DNS{Addr: d.Addr, Key: d.Key, Secret: "AAAA"}
	if err := (updater{stranger}).send(acme.Challenge{Identifier: acme.Identifier{Value: "example.test"}}, dns.ClassINET); err == nil {
		t.Error("an update that is signed with another secret was accepted")
	}
	if d.Updates() != 0 {
		t.Errorf("%d updates were accepted, want none", d.Updates())
	}
}
