package cert_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
)

// The epoch of the index's tests.
var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// unsigned makes a certificate that nobody signed, good enough to be found.
func unsigned(key crypto.Signer, names []string, from, to time.Time) *tls.Certificate {
	leaf := &x509.Certificate{DNSNames: names, NotBefore: from, NotAfter: to, PublicKey: key.Public(), Raw: []byte{0}}
	return &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
}

// naive is the rule of SNI as it is written: exact, then a wildcard of one label, then
// the default; of these the first that is valid and can be used, else that can be used;
// of several the latest.
func naive(all []cert.Candidate, fallback string, hello *tls.ClientHelloInfo, now time.Time) *tls.Certificate {
	clean := func(name string) string { return strings.ToLower(strings.TrimSuffix(name, ".")) }
	var lists [][]cert.Candidate
	for _, name := range []string{clean(hello.ServerName), clean(fallback)} {
		_, parent, dotted := strings.Cut(name, ".")
		for _, wanted := range []string{name, "*." + parent} {
			var list []cert.Candidate
			for _, c := range all {
				if name != "" && (wanted == name || dotted && !strings.HasPrefix(name, ".")) && slices.Contains(c.Names, wanted) {
					list = append(list, c)
				}
			}
			slices.SortStableFunc(list, func(a, b cert.Candidate) int {
				if c := b.TLS.Leaf.NotBefore.Compare(a.TLS.Leaf.NotBefore); c != 0 {
					return c
				}
				return int(b.Generation) - int(a.Generation)
			})
			lists = append(lists, list)
		}
	}
	usable := func(c cert.Candidate) bool {
		_, isRSA := c.TLS.PrivateKey.(*rsa.PrivateKey)
		return slices.Contains(hello.SignatureSchemes, tls.PSSWithSHA256) == isRSA || slices.Contains(hello.SignatureSchemes, tls.ECDSAWithP256AndSHA256) != isRSA
	}
	for _, rule := range []func(cert.Candidate) bool{
		func(c cert.Candidate) bool {
			return usable(c) && !now.Before(c.TLS.Leaf.NotBefore) && now.Before(c.TLS.Leaf.NotAfter)
		},
		usable,
	} {
		for _, list := range lists {
			for _, c := range list {
				if rule(c) {
					return c.TLS
				}
			}
		}
	}
	return nil
}

// TestIndexIsNaive compares the index with the rule, with clients that can use all.
func TestIndexIsNaive(t *testing.T) {
	ec := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	known := []string{"a.example", "b.example", "x.a.example", "*.example", "*.a.example", "xn--bcher-kva.example"}
	asked := append([]string{"", "A.Example", "a.example.", "C.EXAMPLE.", "c.a.example", "d.c.a.example", "bücher.example", ".example", "example", "a..example", "*.example", "other.test"}, known[:3]...)
	rapid.Check(t, func(r *rapid.T) {
		var all []cert.Candidate
		for i := range rapid.IntRange(0, 8).Draw(r, "certificates") {
			key := crypto.Signer(ec)
			if rapid.Bool().Draw(r, "rsa") {
				key = rsaKey
			}
			from := epoch.Add(time.Duration(rapid.IntRange(-3, 1).Draw(r, "from")) * time.Hour)
			to := from.Add(time.Duration(rapid.IntRange(1, 4).Draw(r, "for")) * time.Hour)
			names := rapid.SliceOfNDistinct(rapid.SampledFrom(known), 1, 3, rapid.ID[string]).Draw(r, "names")
			all = append(all, cert.Candidate{TLS: unsigned(key, names, from, to), Names: names, Generation: uint64(i)})
		}
		fallback := rapid.SampledFrom([]string{"", "a.example", "none.test", "Z.example"}).Draw(r, "default")
		name := rapid.SampledFrom(asked).Draw(r, "name")
		hello := &tls.ClientHelloInfo{ServerName: name, SupportedVersions: []uint16{tls.VersionTLS13}, SignatureSchemes: []tls.SignatureScheme{tls.PSSWithSHA256, tls.ECDSAWithP256AndSHA256}, CipherSuites: []uint16{tls.TLS_AES_128_GCM_SHA256}, SupportedCurves: []tls.CurveID{tls.X25519}}
		if name == "bücher.example" {
			name = "xn--bcher-kva.example"
		}
		plain := *hello
		plain.ServerName = name
		if got, want := cert.Lookup(all, fallback, hello, epoch), naive(all, fallback, &plain, epoch); got != want {
			r.Fatalf("%q: %v, and not %v", hello.ServerName, show(got), show(want))
		}
	})
}

func show(c *tls.Certificate) string {
	if c == nil {
		return "nothing"
	}
	return strings.Join(c.Leaf.DNSNames, ",") + " from " + c.Leaf.NotBefore.String()
}

// TestChoiceByClient: of two kinds of keys, a client gets the one that it can use.
func TestChoiceByClient(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	rsaKey := must(rsa.GenerateKey(rand.Reader, 2048))(t)
	old := m.Issue(certtest.Request{ID: "rsa", Names: []string{"a.example"}, Key: rsaKey, From: time.Now().Add(-2 * time.Hour)})
	latest := m.Issue(certtest.Request{ID: "ecdsa", Names: []string{"a.example"}})
	if err := f.take(m.Record("rsa", cert.Record{Current: old}), m.Record("ecdsa", cert.Record{Current: latest})); err != nil {
		t.Fatal(err)
	}
	for want, suite := range map[string]uint16{old.Serial: tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, latest.Serial: tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256} {
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			_ = tls.Server(far, f.TLSConfig(nil)).Handshake()
		}()
		client := tls.Client(near, &tls.Config{ServerName: "a.example", InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{suite}})
		if err := client.Handshake(); err != nil {
			t.Error(err)
		} else if got := client.ConnectionState().PeerCertificates[0].SerialNumber.Text(16); got != want {
			t.Errorf("suite %x got %s and not %s", suite, got, want)
		}
		near.Close()
	}
	for _, c := range f.Certificates() {
		if c.Err != nil {
			t.Error(c.Err)
		}
	}
}

// TestNames asks for names as strangers do.
func TestNames(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{Default: "Default.Example."})
	b := m.Issue(certtest.Request{ID: "a", Names: []string{"prod4.fn61.net", "*.fn61.net", "xn--bcher-kva.example", "127.0.0.1", "2001:db8::1"}})
	d := m.Issue(certtest.Request{ID: "d", Names: []string{"default.example"}})
	if err := f.take(m.Record("a", cert.Record{Current: b}), m.Record("d", cert.Record{Current: d})); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"prod4.fn61.net", "PROD4.fn61.net", "prod4.fn61.net.", "other.FN61.net.", "bücher.example", "BÜCHER.example", "xn--bcher-kva.example."} {
		if f.serial(name) != b.Serial {
			t.Errorf("%q is not found", name)
		}
	}
	thousand := strings.Repeat("a.", 1000) + "fn61.net"
	for _, name := range []string{"", "fn61.net", "a.b.fn61.net", ".fn61.net", "..", ".", "*.fn61.net.x", thousand, strings.Repeat("x", 64<<10), "a\x00.example", "\x00", "prod4.fn61.net\x00", "\xff\xfe.fn61.net.\xff", "127.0.0.1", "prod4.fn61.net.."} {
		if got := f.serial(name); got != d.Serial {
			t.Errorf("%.40q gets %s and not the default", name, got)
		}
	}
	for address, want := range map[string]string{"127.0.0.1": b.Serial, "2001:db8::1": b.Serial, "::ffff:127.0.0.1": b.Serial, "10.0.0.1": d.Serial} {
		c, _ := f.GetCertificate(&tls.ClientHelloInfo{Conn: local{ip: net.ParseIP(address)}})
		if c == nil || c.Leaf.SerialNumber.Text(16) != want {
			t.Errorf("at %s another certificate is served", address)
		}
	}
	for _, name := range []string{"prod4.fn61.net", "PROD4.FN61.NET.", "x.fn61.net", "", thousand, strings.Repeat("x", 64<<10)} {
		hello := &tls.ClientHelloInfo{ServerName: name}
		if n := testing.AllocsPerRun(100, func() { _, _ = f.GetCertificate(hello) }); n != 0 {
			t.Errorf("%.40q costs %v allocations", name, n)
		}
	}
	refusing := newFeed(t, m, cert.Options{})
	if err := refusing.take(m.Record("a", cert.Record{Current: b})); err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(t, refusing.TLSConfig(nil), "unknown.example", m.Root); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
		t.Errorf("without a default: %v", err)
	}
}

type local struct {
	net.Conn
	ip net.IP
}

func (l local) LocalAddr() net.Addr { return &net.TCPAddr{IP: l.ip} }

// TestOverlap: of two certificates for a name the latest wins, whichever was renewed or
// came last; one that is not valid wins over none but others that are not.
func TestOverlap(t *testing.T) {
	m := certtest.New(t, "web")
	now := time.Now()
	f := newFeed(t, m, cert.Options{Now: func() time.Time { return now }})
	short := m.Issue(certtest.Request{ID: "short", Names: []string{"a.example"}, From: now.Add(-time.Hour), To: now.Add(time.Hour)})
	wide := m.Issue(certtest.Request{ID: "wide", Names: []string{"*.example", "a.example"}, From: now.Add(-2 * time.Hour)})
	// The older one comes last.
	if err := f.take(m.Record("short", cert.Record{Current: short}), m.Record("wide", cert.Record{Current: wide})); err != nil {
		t.Fatal(err)
	}
	if f.serial("a.example") != short.Serial || f.serial("b.example") != wide.Serial {
		t.Error("the latest does not win")
	}
	now = now.Add(90 * time.Minute)
	if f.serial("a.example") != wide.Serial {
		t.Error("one that expired wins")
	}
	now = now.AddDate(1, 0, 0)
	if f.serial("a.example") == "" {
		t.Error("when all have expired, nothing is served")
	}
	now = now.AddDate(-10, 0, 0) // the clock is off
	f.Install()
	if f.serial("a.example") == "" {
		t.Error("a clock that is off threw a certificate away")
	}
}

// TestHandshakeOpensNothing: whatever happens to others, a handshake finds the very same
// parsed certificate.
func TestHandshakeOpensNothing(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	b := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	if err := f.take(m.Record("a", cert.Record{Current: b})); err != nil {
		t.Fatal(err)
	}
	hello := &tls.ClientHelloInfo{ServerName: "a.example"}
	before, _ := f.GetCertificate(hello)
	for i := range 20 {
		_ = f.take(m.Obtained(certtest.Request{ID: "b", Names: []string{"b.example"}, Generation: uint64(i + 1)}), m.Record("a", cert.Record{Event: cert.Scheduled, Current: b}))
		if after, _ := f.GetCertificate(hello); after != before || after.Leaf == nil {
			t.Fatal("it was opened again")
		}
	}
}

func FuzzServerName(f *testing.F) {
	m := certtest.New(f, "web")
	store := newFeed(f, m, cert.Options{})
	b := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example", "*.a.example"}})
	if err := store.take(m.Record("a", cert.Record{Current: b})); err != nil {
		f.Fatal(err)
	}
	for _, name := range []string{"a.example", "A.EXAMPLE.", "x.a.example", "bücher.a.example", "\x00", "a..", "xn--", "xn--a.example"} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		c, err := store.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
		if err != nil {
			t.Fatal(err)
		}
		if c == nil {
			return
		}
		plain := strings.ToLower(strings.TrimSuffix(name, "."))
		for i := range len(plain) {
			if plain[i] >= 0x80 {
				return // as IDNA has it
			}
		}
		if label, ok := strings.CutSuffix(plain, ".a.example"); plain != "a.example" && (!ok || label == "" || strings.Contains(label, ".")) {
			t.Errorf("%q was found", name)
		}
	})
}

func FuzzVerify(f *testing.F) {
	m := certtest.New(f, "web")
	e := m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}})
	f.Add(e.Subject, e.Data)
	f.Add("config", []byte("fleetbus-signed-1 a b\n{}"))
	_, want, _ := strings.Cut(string(e.Data), "\n")
	f.Fuzz(func(t *testing.T, subject string, data []byte) {
		got, err := cert.Verify([]cert.Signer{m.Key.Signer()}, subject, data)
		if err == nil && (subject != e.Subject || string(got) != want) {
			t.Errorf("%q was believed", data)
		}
	})
}

// FuzzApply feeds a store what anybody could append. Where kind says so it is signed, as
// if managers wrote nonsense.
func FuzzApply(f *testing.F) {
	m := certtest.New(f, "web")
	for _, e := range []certtest.Event{m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}}), m.Challenge("c", "tls-alpn-01", "a.example"), m.Challenge("d", "http-01", "\x00")} {
		_, payload, _ := strings.Cut(string(e.Data), "\n")
		f.Add(e.Subject, []byte(payload), true)
		f.Add(e.Subject, e.Data, false)
	}
	f.Add("g.web.target.lb1", []byte(`{"group":"web","name":"lb1","revision":9,"keys":{"1":{}}}`), true)
	f.Add("g.web.cert.a", []byte(`{"group":"web","id":"a","revision":9,"next":{"chain":"x"},"wave":{"targets":["lb1"]}}`), true)
	f.Add("seen.web.lb1.a", []byte(`{}`), false)
	f.Add("report.web.lb1.a", []byte(`{}`), false)
	key, enrolled := m.Target("lb1")
	subject := cert.SeenSubject("web", "lb1", "a")
	f.Add(subject, must(key.Sign(subject, cert.Seen{Version: 1, Target: "lb1", ID: "a", Generation: 1, At: time.Now()}))(f), false)
	good := m.Issue(certtest.Request{ID: "good", Names: []string{"good.example"}})
	obtained := m.Record("good", cert.Record{Current: good})
	f.Fuzz(func(t *testing.T, subject string, data []byte, signed bool) {
		store := &feed{runner: open(t, cert.Options{Key: key}), t: t}
		if err := store.take(enrolled, obtained); err != nil {
			t.Fatal(err)
		}
		if signed {
			if !json.Valid(data) {
				return
			}
			var err error
			if data, err = m.Key.Sign(subject, json.RawMessage(data)); err != nil {
				return
			}
		}
		_ = store.Apply("web", 100, subject, data)
		store.Install()
		if got := store.serial("good.example"); got != good.Serial && subject != cert.CertSubject("web", "good") {
			t.Errorf("%q is served", got)
		}
		_ = store.Certificates()
	})
}

func FuzzUnmarshal(f *testing.F) {
	m := certtest.New(f, "web")
	key, enrolled := m.Target("lb1")
	state := cert.NewState(key.Signers, nil)
	for i, e := range []certtest.Event{enrolled, m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}}), m.Challenge("c", "http-01", "x")} {
		if err := state.Apply(uint64(i+1), e.Subject, e.Data); err != nil {
			f.Fatal(err)
		}
	}
	data := must(state.Marshal())(f)
	f.Add(data)
	f.Add(cert.SnapshotOf(data))
	f.Fuzz(func(t *testing.T, data []byte) {
		state := cert.NewState(key.Signers, nil)
		if err := state.Unmarshal(data); err == nil {
			again := must(state.Marshal())(t)
			if err := cert.NewState(key.Signers, nil).Unmarshal(again); err != nil {
				t.Errorf("what was read cannot be read again: %v", err)
			}
		}
		store := must(cert.Open(cert.Options{Key: key}))(t)
		_ = store.Unmarshal("web", data)
		store.Install()
		for _, c := range store.Certificates() {
			if c.Generation > 1 || c.Generation == 1 && c.ID != "a" {
				t.Errorf("%+v is served", c)
			}
		}
	})
}

// TestSerialIsNumber: the serial number is compared as a number, whoever writes it.
func TestSerialIsNumber(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	b := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	n, _ := new(big.Int).SetString(b.Serial, 16)
	b.Serial = "00" + strings.ToUpper(n.Text(16))
	if err := f.take(m.Record("a", cert.Record{Current: b})); err != nil || f.problem("a") != "" {
		t.Errorf("%v %s", err, f.problem("a"))
	}
}
