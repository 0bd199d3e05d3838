package certmanagertest

import (
	"bytes"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/letsencrypt/pebble/v2/ca"
	"github.com/letsencrypt/pebble/v2/db"
	"github.com/letsencrypt/pebble/v2/va"
	"github.com/letsencrypt/pebble/v2/wfe"
)

// Where Pebble serves what: the beginning of a path, for [Fault].
const (
	Directory   = "/dir"
	NewNonce    = "/nonce-plz"
	NewAccount  = "/sign-me-up"
	NewOrder    = "/order-plz"
	PollOrder   = "/my-order/"
	Finalize    = "/finalize-order/"
	Challenge   = "/chalZ/"
	Authorize   = "/authZ/"
	Certificate = "/certZ/"
	Revoke      = "/revoke-cert"
	ListOrders  = "/list-orderz/"
	RenewalInfo = "/draft-ietf-acme-ari-03/renewalInfo/"
)

// Issuer is the domain of the authority in CAA and dns-persist-01 records.
const Issuer = "authority.test"

// Pebble wants every request to name its program.
const userAgent = "certmanagertest"

// Options of an authority. The zero value is one that needs no external account, and
// is asked for the profile "default" or "shortlived".
type Options struct {
	// Zones that DNS serves. Default: example.test and other.test.
	Zones []string
	// Profiles and how long their certificates are valid. Default: "default", 90 days,
	// and "shortlived", 160 hours. An order that names none gets any of them, which is
	// what Pebble does to clients that do not say what they want.
	Profiles map[string]time.Duration
	// ExternalAccount demands external account binding, with Authority.KeyID.
	ExternalAccount bool
	// ReuseAuthorizations lets an account order again without a challenge. Without it,
	// one name in a hundred is still reused.
	ReuseAuthorizations bool
	// AlternateRoots are further chains to choose from.
	AlternateRoots int
}

// An Authority is an ACME authority (Pebble) of a test, in its process, on loopback
// ports of its own, with the DNS that it asks. It validates at once and really: over
// DNS, HTTP and TLS. It is safe for concurrent use.
type Authority struct {
	// URL of its directory.
	URL string
	// Trust is the certificate, in PEM, that its HTTPS is to be trusted by.
	Trust string
	// KeyID and MAC are an external account, the MAC key in base64url.
	KeyID, MAC string
	// DNS is what it asks for records.
	DNS *DNS

	t         testing.TB
	ca        *ca.CAImpl
	db        *db.MemoryStore
	manage    http.Handler
	alone     sync.RWMutex // for what Pebble does without locks
	web       http.Handler
	http, tls *vantage

	mu       sync.Mutex
	requests map[string]int // by the beginning of the path
	orders   map[string]string
	placed   map[string]int
	issued   map[string]int
	faults   []*Fault
	refused  map[string]bool
	wrong    []byte
}

// environment guards the variables by which Pebble is set up.
var environment sync.Mutex

// NewAuthority starts an authority. It ends with the test; only a goroutine of
// Pebble's, which waits for work, stays.
func NewAuthority(t testing.TB, o Options) *Authority {
	t.Helper()
	if o.Zones == nil {
		o.Zones = []string{"example.test", "other.test"}
	}
	if o.Profiles == nil {
		o.Profiles = map[string]time.Duration{"default": 90 * 24 * time.Hour, "shortlived": 160 * time.Hour}
	}
	a := &Authority{
		t: t, DNS: NewDNS(t, o.Zones...), http: newVantage(t), tls: newVantage(t),
		KeyID: "kid-1", MAC: base64.RawURLEncoding.EncodeToString(bytes.Repeat([]byte("mac-key."), 4)),
		requests: map[string]int{}, orders: map[string]string{}, placed: map[string]int{}, issued: map[string]int{}, refused: map[string]bool{},
	}
	a.pebble(t, o)
	server := httptest.NewUnstartedServer(http.HandlerFunc(a.serve))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // strangers to its certificate are a test's business
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	a.URL = server.URL + Directory
	a.Trust = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}))
	return a
}

func (a *Authority) pebble(t testing.TB, o Options) {
	t.Helper()
	quiet := log.New(io.Discard, "", 0)
	profiles := map[string]ca.Profile{}
	for name, validity := range o.Profiles {
		profiles[name] = ca.Profile{Description: "valid for " + validity.String(), ValidityPeriod: uint64(validity / time.Second)}
	}
	a.db = db.NewMemoryStore()
	if err := a.db.AddExternalAccountKeyByID(a.KeyID, a.MAC); err != nil {
		t.Fatal(err)
	}
	reuse := "0"
	if o.ReuseAuthorizations {
		reuse = "100"
	}
	environment.Lock()
	defer environment.Unlock()
	for name, value := range map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "0", "PEBBLE_AUTHZREUSE": reuse} {
		before, was := os.LookupEnv(name)
		if err := os.Setenv(name, value); err != nil {
			t.Fatal(err)
		}
		defer func() {
			if _ = os.Unsetenv(name); was {
				_ = os.Setenv(name, before)
			}
		}()
	}
	a.ca = ca.New(quiet, a.db, "", "ecdsa", o.AlternateRoots, 1, profiles)
	validation := va.New(quiet, a.http.port(), a.tls.port(), true, a.DNS.Addr, a.db)
	front := wfe.New(quiet, a.db, validation, a.ca, []string{Issuer}, true, o.ExternalAccount, 0, 0)
	a.web, a.manage = front.Handler(), front.ManagementHandler()
}

// Roots are those that its certificates are verified with.
func (a *Authority) Roots() *x509.CertPool {
	roots := x509.NewCertPool()
	for i := range a.ca.GetNumberOfRootCerts() {
		roots.AddCert(a.ca.GetRootCert(i).Cert)
	}
	return roots
}

// RootPEM are the same in PEM.
func (a *Authority) RootPEM() string {
	var all []byte
	for i := range a.ca.GetNumberOfRootCerts() {
		all = append(all, a.ca.GetRootCert(i).PEM()...)
	}
	return string(all)
}

// RootName is the common name of the i'th root, which clients prefer chains by.
func (a *Authority) RootName(i int) string { return a.ca.GetRootCert(i).Cert.Subject.CommonName }

// AnswerHTTP says who answers for all names on port 80: each request goes to the
// next of addrs, as several load balancers would share them. None: nobody does.
func (a *Authority) AnswerHTTP(addrs ...string) { a.http.set(addrs) }

// AnswerTLS is AnswerHTTP for port 443.
func (a *Authority) AnswerTLS(addrs ...string) { a.tls.set(addrs) }

// setOf is the key of a set of names.
func setOf(names []string) string {
	set := slices.Clone(names)
	for i, name := range set {
		set[i] = strings.ToLower(name)
	}
	slices.Sort(set)
	return strings.Join(slices.Compact(set), " ")
}

// Orders is how many orders were placed for exactly that set of names; of all sets
// if there are no names.
func (a *Authority) Orders(names ...string) int { return a.count(a.placed, names) }

// Issued is how many certificates were issued for that set of names; of all sets if
// there are no names.
func (a *Authority) Issued(names ...string) int { return a.count(a.issued, names) }

func (a *Authority) count(counts map[string]int, names []string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(names) > 0 {
		return counts[setOf(names)]
	}
	n := 0
	for _, count := range counts {
		n += count
	}
	return n
}

// Requests is how many requests came whose path begins with one of the constants of
// this package, failed ones included.
func (a *Authority) Requests(path string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[path]
}

// SetRenewal says when the authority wants leaf, in DER, to be renewed, and why. A
// window of a second or less is what Pebble has for those that are revoked.
func (a *Authority) SetRenewal(leaf []byte, start, end time.Time, explanation string) {
	a.t.Helper()
	type window struct {
		Start time.Time `json:"start"`
		End   time.Time `json:"end"`
	}
	answer, err := json.Marshal(struct {
		Window      window `json:"suggestedWindow"`
		Explanation string `json:"explanationURL,omitempty"`
	}{window{start.UTC(), end.UTC()}, explanation})
	if err != nil {
		a.t.Fatal(err)
	}
	a.SetRenewalAnswer(leaf, string(answer))
}

// SetRenewalAnswer is SetRenewal with any text for an answer.
func (a *Authority) SetRenewalAnswer(leaf []byte, answer string) {
	a.t.Helper()
	body, err := json.Marshal(map[string]string{
		"Certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf})), "ARIResponse": answer,
	})
	if err != nil {
		a.t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r := httptest.NewRequest(http.MethodPost, "/set-renewal-info/", bytes.NewReader(body))
	r.Header.Set("User-Agent", userAgent)
	a.manage.ServeHTTP(w, r)
	if w.Code != http.StatusOK {
		a.t.Fatalf("setting the renewal of a certificate: %d: %s", w.Code, w.Body)
	}
}

// Revoked says whether leaf, in DER, was revoked, and why: the reason's number in RFC
// 5280.
func (a *Authority) Revoked(leaf []byte) (reason int, revoked bool) {
	c := a.db.GetRevokedCertificateByDER(leaf)
	if c == nil {
		return 0, false
	}
	if c.Reason != nil {
		reason = int(*c.Reason)
	}
	return reason, true
}

// A vantage is a port that the authority validates at, for whoever answers.
type vantage struct {
	ln net.Listener

	mu    sync.Mutex
	addrs []string
	next  int
}

func newVantage(t testing.TB) *vantage {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	v := &vantage{ln: ln}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() { v.pass(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		all.Wait()
	})
	return v
}

func (v *vantage) port() int { return v.ln.Addr().(*net.TCPAddr).Port }

func (v *vantage) set(addrs []string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.addrs, v.next = slices.Clone(addrs), 0
}

func (v *vantage) choose() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	if len(v.addrs) == 0 {
		return ""
	}
	v.next++
	return v.addrs[v.next%len(v.addrs)]
}

// pass copies between the authority and who answers.
func (v *vantage) pass(c net.Conn) {
	defer c.Close()
	addr := v.choose()
	if addr == "" {
		return
	}
	to, err := net.DialTimeout("tcp", addr, serveTimeout)
	if err != nil {
		return
	}
	defer to.Close()
	deadline := time.Now().Add(serveTimeout)
	_ = c.SetDeadline(deadline)
	_ = to.SetDeadline(deadline)
	var both sync.WaitGroup
	both.Go(func() {
		_, _ = io.Copy(to, c)
		to.Close()
	})
	_, _ = io.Copy(c, to)
	c.Close()
	both.Wait()
}
