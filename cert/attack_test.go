package cert_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
	"github.com/fleetbus/fleetbus/ledger"
)

// A feed gives a store events without a bus.
type feed struct {
	*runner
	t   testing.TB
	seq uint64
}

func (f *feed) take(events ...certtest.Event) error {
	f.t.Helper()
	var failed error
	for _, e := range events {
		f.seq++
		words := strings.Split(e.Subject, ".")
		if err := f.Apply(words[1], f.seq, e.Subject, e.Data); err != nil {
			failed = err
		}
	}
	f.Install()
	return failed
}

// serial is what is served for a name; empty if nothing is.
func (f *feed) serial(name string) string {
	c, err := f.GetCertificate(&tls.ClientHelloInfo{ServerName: name})
	if err != nil {
		f.t.Fatal(err)
	}
	if c == nil {
		return ""
	}
	return c.Leaf.SerialNumber.Text(16)
}

func newFeed(t testing.TB, m *certtest.Manager, o cert.Options) *feed {
	t.Helper()
	key, enrolled := m.Target("lb1")
	o.Key = key
	f := &feed{runner: open(t, o), t: t}
	if err := f.take(enrolled); err != nil {
		t.Fatal(err)
	}
	return f
}

// evil is a certificate that signs itself, expired for five years, for unrelated.evil.
func evil(t testing.TB) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(666), DNSNames: []string{"unrelated.evil"}, NotBefore: time.Now().AddDate(-6, 0, 0), NotAfter: time.Now().AddDate(-5, 0, 0)}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))(t)))(t), key
}

// TestForgedCertificate tries to have another certificate served for bank.example, by
// everything that somebody can do who may append, and by every mistake of a manager.
func TestForgedCertificate(t *testing.T) {
	names := []string{"bank.example"}
	m, stranger := certtest.New(t, "web"), certtest.New(t, "web")
	stranger.Secret = m.Secret // even then
	leaf, key := evil(t)
	forge := func(m *certtest.Manager, change func(*cert.Bundle)) certtest.Event {
		b := m.Issue(certtest.Request{ID: "bank", Names: names, Generation: 2})
		if change != nil {
			change(b)
		}
		return m.Record("bank", cert.Record{Event: cert.Obtained, Current: b})
	}
	reseal := func(b *cert.Bundle, key *ecdsa.PrivateKey) {
		if err := m.Secret.Seal("bank", b, must(x509.MarshalPKCS8PrivateKey(key))(t)); err != nil {
			t.Fatal(err)
		}
	}
	other := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))(t)
	evilRequest := certtest.Request{ID: "bank", Names: names, Generation: 2, Key: key}
	other2 := m.Issue(certtest.Request{ID: "bank", Names: names, Generation: 2})
	for name, c := range map[string]struct {
		event func() certtest.Event
		want  string
	}{
		"unsigned": {func() certtest.Event {
			e := forge(m, nil)
			_, e.Data, _ = bytes.Cut(e.Data, []byte("\n"))
			return e
		}, "no signature"},
		"signed by a stranger": {func() certtest.Event { return forge(stranger, nil) }, cert.ErrSignature.Error()},
		"evil, by a stranger": {func() certtest.Event {
			return stranger.Record("bank", cert.Record{Current: stranger.Bundle(evilRequest, leaf)})
		}, cert.ErrSignature.Error()},
		"evil, by the manager": {func() certtest.Event {
			return m.Record("bank", cert.Record{Current: m.Bundle(evilRequest, leaf)})
		}, `not for "bank.example"`},
		"expired": {func() certtest.Event {
			b := m.Issue(certtest.Request{ID: "bank", Names: names, Generation: 2, From: time.Now().AddDate(0, -3, 0), To: time.Now().Add(-time.Second)})
			return m.Record("bank", cert.Record{Current: b})
		}, "expired"},
		"from the future": {func() certtest.Event {
			b := m.Issue(certtest.Request{ID: "bank", Names: names, Generation: 2, From: time.Now().Add(6 * time.Minute)})
			return m.Record("bank", cert.Record{Current: b})
		}, "not valid before"},
		"another key": {func() certtest.Event { return forge(m, func(b *cert.Bundle) { reseal(b, other) }) }, "private key is that of another"},
		"another leaf": {func() certtest.Event {
			return forge(m, func(b *cert.Bundle) { b.Leaf = other2.Leaf; reseal(b, other) })
		}, "another than the record says"},
		"another public key": {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.SPKI = other2.SPKI }) }, "public key is another"},
		"another serial":     {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.Serial = other2.Serial }) }, "serial number is another"},
		"another chain":      {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.Chain = other2.Chain }) }, "another than the record says"},
		"another name too": {func() certtest.Event {
			return forge(m, func(b *cert.Bundle) { b.Names = []string{"bank.example", "x.example"} })
		}, `not for "x.example"`},
		"no name":  {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.Names = nil }) }, "for 0 names"},
		"no chain": {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.Chain = "" }) }, "chain is empty"},
		"a chain with a key": {func() certtest.Event {
			return forge(m, func(b *cert.Bundle) {
				b.Chain += string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: []byte("x")}))
			})
		}, "something else"},
		"a chain with garbage": {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.Chain += "garbage" }) }, "something else"},
		"a broken chain": {func() certtest.Event {
			return forge(m, func(b *cert.Bundle) {
				b.Chain += string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")}))
			})
		}, "cannot be read"},
		"an altered key": {func() certtest.Event { return forge(m, func(b *cert.Bundle) { b.Key.Ciphertext[40] ^= 1 }) }, cert.ErrSealed.Error()},
		"the key of another certificate": {func() certtest.Event {
			b := m.Issue(certtest.Request{ID: "else", Names: names, Generation: 2})
			return m.Record("bank", cert.Record{Current: b})
		}, cert.ErrSealed.Error()},
		"sealed with a key that it was not given": {func() certtest.Event {
			return forge(m, func(b *cert.Bundle) { b.Key.To = "9" })
		}, "was not given"},
		"an older generation": {func() certtest.Event {
			b := m.Issue(certtest.Request{ID: "bank", Names: names, Generation: 1})
			return m.Record("bank", cert.Record{Current: b, Withdrawn: 0})
		}, "older than what is served"},
		"the record of another": {func() certtest.Event {
			e := m.Obtained(certtest.Request{ID: "else", Names: names, Generation: 2})
			return certtest.Event{Subject: cert.CertSubject("web", "bank"), Data: e.Data}
		}, cert.ErrSignature.Error()},
		"the record of another group": {func() certtest.Event {
			m.Group = "mail"
			defer func() { m.Group = "web" }()
			e := m.Record("bank", cert.Record{Current: other2})
			return certtest.Event{Subject: cert.CertSubject("web", "bank"), Data: e.Data}
		}, cert.ErrSignature.Error()},
		"garbage": {func() certtest.Event {
			return certtest.Event{Subject: cert.CertSubject("web", "bank"), Data: []byte("{}")}
		}, "no signature"},
		"nothing": {func() certtest.Event { return certtest.Event{Subject: cert.CertSubject("web", "bank")} }, cert.ErrSignature.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFeed(t, m, cert.Options{})
			good := m.Issue(certtest.Request{ID: "bank", Names: names})
			if err := f.take(m.Record("bank", cert.Record{Current: good})); err != nil || f.serial("bank.example") != good.Serial {
				t.Fatalf("%v\n%s", err, f.log)
			}
			e := c.event()
			_ = f.take(e)
			if got := f.serial("bank.example"); got != good.Serial {
				t.Errorf("%s is served, and not %s", got, good.Serial)
			}
			if problem := f.problem("bank"); !strings.Contains(problem, c.want) {
				t.Errorf("it was refused because %q, not %q", problem, c.want)
			}
			if f.serial("unrelated.evil") != "" || f.serial("x.example") != "" {
				t.Error("another name is served")
			}
			f.Install()
			if n := f.log.count("certificate refused"); n > 1 {
				t.Errorf("it was logged %d times", n)
			}
			if strings.Contains(f.log.String(), "PRIVATE KEY") {
				t.Error("a key was logged")
			}
			// Nothing is held up by it, and a good one heals it.
			healed := m.Issue(certtest.Request{ID: "bank", Names: names, Generation: 3})
			second := m.Issue(certtest.Request{ID: "b", Names: []string{"b.example"}})
			if err := f.take(m.Record("b", cert.Record{Current: second}), m.Record("bank", cert.Record{Current: healed})); err != nil {
				t.Error(err)
			}
			if f.serial("bank.example") != healed.Serial || f.serial("b.example") != second.Serial || f.problem("bank") != "" {
				t.Errorf("it does not heal: %s", f.problem("bank"))
			}
		})
	}
}

// TestRefusedAtRestart: what was served before a record came that is refused, is served
// after a restart too.
func TestRefusedAtRestart(t *testing.T) {
	b := newBus(t)
	key, dir := b.target("lb1"), storeDir(t)
	names := []string{"a.example"}
	r := open(t, cert.Options{Key: key, Dir: dir}).run(t, b.server.ClientURL())
	good := b.Issue(certtest.Request{ID: "a", Names: names})
	b.publish(b.Record("a", cert.Record{Current: good}))
	waitFor(t, "the first generation", func() bool { return r.generation("a") == 1 })
	bad := b.Issue(certtest.Request{ID: "a", Names: names, Generation: 2})
	bad.SPKI = good.SPKI
	b.publish(b.Record("a", cert.Record{Current: bad}))
	waitFor(t, "the refusal to be reported", func() bool {
		seen := b.lastSeen("lb1", "a")
		return seen != nil && seen.Generation == 2 && seen.Serial == good.Serial && strings.Contains(seen.Error, "public key is another")
	})
	r.stop()
	again := open(t, cert.Options{Key: key, Dir: dir})
	if again.generation("a") != 1 || again.problem("a") == "" {
		t.Errorf("after a restart it serves %+v", again.Certificates())
	}
}

// TestFlippedBits alters an event at every byte: it is never believed, or says the same.
func TestFlippedBits(t *testing.T) {
	m := certtest.New(t, "web")
	good := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	e := m.Record("a", cert.Record{Current: good})
	_, enrolled := m.Target("lb1")
	for _, e := range []certtest.Event{e, enrolled, m.Challenge("c", "http-01", "a.example")} {
		_, payload, _ := bytes.Cut(e.Data, []byte("\n"))
		for i := range e.Data {
			data := bytes.Clone(e.Data)
			data[i] ^= 1 << mathrand.IntN(8)
			got, err := cert.Verify([]cert.Signer{m.Key.Signer()}, e.Subject, data)
			if err == nil && !bytes.Equal(got, payload) {
				t.Fatalf("with byte %d altered, it was believed", i)
			}
		}
	}
}

// TestFlippedSnapshot alters a snapshot at every byte, with a checksum that is wrong
// then, and with one that somebody made right: what is served is right or not there.
func TestFlippedSnapshot(t *testing.T) {
	m := certtest.New(t, "web")
	key, enrolled := m.Target("lb1")
	good := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	dir := snapshotOf(t, key, []certtest.Event{enrolled, m.Record("a", cert.Record{Current: good})})
	path := must(filepath.Glob(filepath.Join(dir, "*.certs")))(t)[0]
	file := must(os.ReadFile(path))(t)
	seq, payload, err := ledger.ReadSnapshot(path)
	if err != nil {
		t.Fatal(err)
	}
	check := func(i int, mayServe bool) {
		t.Helper()
		f := &feed{runner: open(t, cert.Options{Key: key, Dir: dir}), t: t}
		switch got := f.serial("a.example"); {
		case got == "":
		case got != good.Serial || !mayServe:
			t.Fatalf("with byte %d altered, %s is served", i, got)
		}
	}
	for i := 0; i < len(file); i += 1 + mathrand.IntN(12) {
		data := bytes.Clone(file)
		data[i] ^= 1 << mathrand.IntN(8)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		check(i, false)
		aside := must(filepath.Glob(path + ".corrupt-*"))(t)
		if len(aside) != 1 {
			t.Fatalf("with byte %d altered, it was not set aside", i)
		}
		if err := os.Remove(aside[0]); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < len(payload); i += 1 + mathrand.IntN(12) {
		data := bytes.Clone(payload)
		data[i] ^= 1 << mathrand.IntN(8)
		if err := ledger.WriteSnapshot(path, seq, data); err != nil {
			t.Fatal(err)
		}
		check(i, true)
		for _, aside := range must(filepath.Glob(path + ".corrupt-*"))(t) {
			if err := os.Remove(aside); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// TestRemovedTarget: what is sealed after a target was removed, its key does not open,
// and what it has it serves on.
func TestRemovedTarget(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	before := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	if err := f.take(m.Record("a", cert.Record{Current: before})); err != nil {
		t.Fatal(err)
	}
	if err := f.take(m.Remove("lb1")); err != nil {
		t.Fatal(err)
	}
	for _, e := range m.RotateKey() {
		_ = f.take(e)
	}
	after := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 2})
	_ = f.take(m.Record("a", cert.Record{Event: cert.Obtained, Current: after}))
	if got := f.serial("a.example"); got != before.Serial {
		t.Errorf("it serves %s", got)
	}
	if problem := f.problem("a"); !strings.Contains(problem, "was not given") {
		t.Errorf("it does not open it because %q", problem)
	}
	if f.log.count("was removed") != 1 {
		t.Errorf("its log does not say that it was removed, once: %s", f.log)
	}
}

// TestNewKey: a target that is given the next key opens what is sealed with it, also if
// the certificate comes before the key.
func TestNewKey(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	given := m.RotateKey()
	b := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	_ = f.take(m.Record("a", cert.Record{Current: b}))
	if f.serial("a.example") != "" || f.problem("a") == "" {
		t.Error("it was opened without the key")
	}
	if err := f.take(given...); err != nil || f.serial("a.example") != b.Serial {
		t.Errorf("%v, %s", err, f.problem("a"))
	}
}

// TestRemovedCertificate is not resurrected by its own older records, nor by one that a
// stranger makes.
func TestRemovedCertificate(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	first := m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}})
	second := m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 2})
	if err := f.take(first, second, m.Record("a", cert.Record{Event: cert.Removed, Removed: true})); err != nil {
		t.Fatal(err)
	}
	for _, e := range []certtest.Event{first, second, {Subject: first.Subject}} {
		if err := f.take(e); err == nil {
			t.Error("an older record was taken")
		}
	}
	if f.serial("a.example") != "" || len(f.Certificates()) != 0 {
		t.Errorf("it is back: %+v", f.Certificates())
	}
}

// TestUnknownEvents stop nothing: kinds and fields of later versions are left alone.
func TestUnknownEvents(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	if err := f.take(certtest.Event{Subject: "g.web.later.x.y", Data: []byte("?")}, certtest.Event{Subject: "g.web", Data: []byte("?")}); err != nil {
		t.Error(err)
	}
	b := m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}})
	subject := cert.CertSubject("web", "a")
	err := f.take(m.Sign(subject, func(revision uint64) any {
		return map[string]any{"v": 99, "id": "a", "group": "web", "revision": revision, "event": "of-later", "current": b, "later": []int{1}}
	}))
	if err != nil || f.serial("a.example") != b.Serial {
		t.Errorf("%v %s", err, f.problem("a"))
	}
}
