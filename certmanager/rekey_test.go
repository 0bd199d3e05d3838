package certmanager

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/internal/await"
)

func (w *world) make(group string, p cert.Policy) *cert.Record {
	w.t.Helper()
	r, err := w.client().Make(within(w.t), MakeRequest{Group: group, Policy: p, Wait: true})
	if err != nil {
		w.t.Fatal(err)
	}
	return r
}

// A target that is removed opens nothing that is issued after, and what it could open
// gets another private key.
func TestRemovedTarget(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	m, _ := w.run(w.options("m1"))
	stays, stolen := w.target("web", "lb-1"), w.target("web", "lb-2")
	r := w.make("web", cert.Policy{Names: []string{"example.org"}, ReuseKey: true})
	elsewhere := w.make("intranet", cert.Policy{Names: []string{"example.org"}})
	bought := w.buy("bought.example.org")
	bought.Group = "web"
	if _, err := w.client().Import(within(t), bought); err != nil {
		t.Fatal(err)
	}
	for _, g := range []*target{stays, stolen} {
		await.Nil(t, "it is served", func() error { return wantHistory(g, r.ID, 1) })
	}
	info, err := w.client().RemoveTarget(within(t), "web", "lb-2")
	if err != nil || info.State != "removed" || info.Rekeyed != 1 || info.Imported != 1 {
		t.Errorf("%+v %v", info, err)
	}
	again := w.record("web", r.ID, "it has another key", generation(2))
	if again.Current.Reason != cert.ReasonRekey || again.Current.SPKI == r.Current.SPKI || again.Current.KeyGeneration() != 2 {
		t.Errorf("the bundle is %+v", again.Current)
	}
	await.Nil(t, "it is served", func() error { return wantHistory(stays, r.ID, 1, 2) })
	if record, _ := w.state.Target("web", "lb-2"); record.Keys[2].Ciphertext != nil {
		t.Error("the removed target has the new key")
	}
	if other, _ := w.state.Record("intranet", elsewhere.ID); other.Current.Generation != 1 {
		t.Error("a certificate of another group was renewed")
	}
	wantFinding(t, m, CodeKeyKnown, "bought.example.org")
	stolen.stop()
	if _, err := stolen.enroll(); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Errorf("it enrolls again: %v", err)
	}
	// Invited again, it comes with another key, and gets what is served now.
	back := w.target("web", "lb-2")
	await.Nil(t, "it serves the new one", func() error { return wantHistory(back, r.ID, 2) })
}

// A manager is stopped right after a target was removed; the next does the rest.
func TestRemovalIsResumed(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	_, stop := w.run(w.options("m1"))
	w.target("web", "lb-1")
	w.target("web", "lb-2")
	r := w.make("web", cert.Policy{Names: []string{"example.org"}})
	stop()
	before, _ := w.state.Target("web", "lb-2")
	removed := *before
	removed.Removed = true
	removed.Revision++
	w.write(cert.TargetSubject("web", "lb-2"), &removed)
	w.run(w.options("m2"))
	again := w.record("web", r.ID, "it has another key", generation(2))
	if again.Current.Reason != cert.ReasonRekey || again.Current.KeyGeneration() != 2 {
		t.Errorf("the bundle is %+v", again.Current)
	}
}

func TestEnroll(t *testing.T) {
	w := newWorld(t)
	w.run(w.options("m1"))
	key, err := cert.NewSealKey()
	if err != nil {
		t.Fatal(err)
	}
	g := &target{w: w, name: "lb-1", key: key, nc: w.nc}
	if _, err := g.enroll(); !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
		t.Errorf("uninvited: %v", err)
	}
	for _, group := range []string{"web", "mail"} {
		if _, err := w.client().AddTarget(within(t), group, "lb-1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := w.client().AddTarget(within(t), "web", "lb.1"); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Error(err)
	}
	for range 2 { // its answer may have been lost
		e, err := g.enroll()
		if err != nil || !slices.Equal(e.Groups, []string{"mail", "web"}) || !slices.Equal(e.Signers, []cert.Signer{w.key.Signer()}) {
			t.Errorf("%+v %v", e, err)
		}
	}
	if g.key, err = cert.NewSealKey(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.enroll(); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("with another key: %v", err)
	}
	for _, body := range []string{"", "{", `{"public":"AAAA"}`, `{"public":"` + strings.Repeat("A", 1<<16) + `"}`} {
		msg, err := w.nc.RequestWithContext(within(t), cert.EnrollSubject("lb-1"), []byte(body))
		if err != nil || !strings.Contains(string(msg.Data), `"code":"invalid"`) {
			t.Errorf("%.40q: %s %v", body, msg.Data, err)
		}
	}
	all, err := w.client().Targets(within(t), "")
	if err != nil || len(all) != 2 || all[0].State != "enrolled" || all[0].Present {
		t.Errorf("%+v %v", all, err)
	}
}

// A key that is known to others is replaced everywhere, and only then revoked.
func TestCompromised(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	first, slow := w.target("web", "lb-1"), w.target("web", "lb-2")
	r := w.make("web", cert.Policy{Names: []string{"example.org"}, ReuseKey: true})
	for _, g := range []*target{first, slow} {
		await.Nil(t, "it is served", func() error { return wantHistory(g, r.ID, 1) })
	}
	slow.set(func() { slow.mute = true })
	if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID, Compromised: true}); err != nil {
		t.Fatal(err)
	}
	again := w.record("web", r.ID, "it is replaced", generation(2))
	if again.Current.SPKI == r.Current.SPKI || len(again.Revoking) != 1 {
		t.Errorf("the record is %+v", again)
	}
	revoked := func() bool {
		w.authority.mu.Lock()
		defer w.authority.mu.Unlock()
		return len(w.authority.revoked) > 0
	}
	w.make("web", cert.Policy{Names: []string{"other.example.org"}}) // there were many passes
	if revoked() {
		t.Error("it was revoked while a target serves it")
	}
	slow.set(func() { slow.mute = false })
	slow.poke <- struct{}{}
	w.record("web", r.ID, "it is revoked", func(r *cert.Record) bool { return len(r.Revoking) == 0 && r.Event == cert.Revoked })
	w.authority.mu.Lock()
	if reason, ok := w.authority.revoked[r.Current.Serial]; !ok || reason != KeyCompromise || len(w.authority.revoked) != 1 {
		t.Errorf("revoked are %v", w.authority.revoked)
	}
	w.authority.mu.Unlock()
	// One that ends is revoked at once, if that is asked for.
	if _, err := w.client().Remove(within(t), RemoveRequest{ID: r.ID, Revoke: true}); err != nil {
		t.Fatal(err)
	}
	w.record("web", r.ID, "it is revoked", func(r *cert.Record) bool { return r.Removed && len(r.Revoking) == 0 })
	w.authority.mu.Lock()
	defer w.authority.mu.Unlock()
	if w.authority.revoked[again.Current.Serial] != CessationOfOperation {
		t.Errorf("revoked are %v", w.authority.revoked)
	}
}

// An authority revokes a certificate and says so in its list only.
func TestRevocationList(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	var mu sync.Mutex
	var entries []x509.RevocationListEntry
	var signer = w.authority
	lists := httptest.NewServer(http.HandlerFunc(func(out http.ResponseWriter, _ *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: big.NewInt(1), ThisUpdate: time.Now(), NextUpdate: time.Now().Add(day), RevokedCertificateEntries: entries,
		}, signer.ca, signer.key)
		if err != nil {
			t.Error(err)
		}
		_, _ = out.Write(der)
	}))
	defer lists.Close()
	w.authority.set(func() { w.authority.url = lists.URL + "/list" })
	o := w.options("m1")
	o.Lists = 100 * time.Millisecond
	o.HTTP = lists.Client()
	m, _ := w.run(o)
	r, other := w.make("web", cert.Policy{Names: []string{"example.org"}}), w.make("web", cert.Policy{Names: []string{"other.example.org"}})
	chain, err := parseChain(r.Current.Chain)
	if err != nil {
		t.Fatal(err)
	}
	entry := x509.RevocationListEntry{SerialNumber: chain[0].SerialNumber, RevocationTime: time.Now()}
	mu.Lock()
	signer = w.second // a stranger's list revokes nothing
	entries = append(entries, entry)
	mu.Unlock()
	await.Nil(t, "the stranger's list is refused", func() error {
		for _, f := range m.Check(t.Context()) {
			if f.Code == CodeManager && strings.Contains(f.Text, "verifying the revocation list") {
				return nil
			}
		}
		return errors.New("no finding")
	})
	if now, _ := w.state.Record("web", r.ID); now.Renew != "" || now.Current.Generation != 1 {
		t.Fatalf("the record is %+v", now)
	}
	mu.Lock()
	signer = w.authority
	mu.Unlock()
	again := w.record("web", r.ID, "it is replaced", generation(2))
	if again.Current.Reason != cert.ReasonRevoked {
		t.Errorf("the bundle is %+v", again.Current)
	}
	if now, _ := w.state.Record("web", other.ID); now.Current.Generation != 1 {
		t.Error("another was replaced, too")
	}
}

// buy is a certificate from elsewhere.
func (w *world) buy(names ...string) ImportRequest {
	w.t.Helper()
	key, err := newKey("p256")
	if err != nil {
		w.t.Fatal(err)
	}
	chain, err := w.second.makeChain(names, key.Public())
	if err != nil {
		w.t.Fatal(err)
	}
	der, err := x509.MarshalECPrivateKey(key.(*ecdsa.PrivateKey))
	if err != nil {
		w.t.Fatal(err)
	}
	var text strings.Builder
	for _, c := range chain {
		_ = pem.Encode(&text, &pem.Block{Type: "CERTIFICATE", Bytes: c})
	}
	return ImportRequest{Chain: text.String(), Key: string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}))}
}

func TestImport(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	m, _ := w.run(w.options("m1"))
	g := w.target("default", "lb-1")
	bought, stranger := w.buy("bought.example.org", "192.0.2.1"), w.buy("stranger.example.org")
	for what, bad := range map[string]ImportRequest{
		"another key": {Chain: bought.Chain, Key: stranger.Key}, "no key": {Chain: bought.Chain}, "no chain": {Key: bought.Key},
		"the wrong order": {Chain: bought.Chain[strings.LastIndex(bought.Chain, "-----BEGIN"):] + bought.Chain, Key: bought.Key},
		"an old one":      {ID: "none", Chain: bought.Chain, Key: bought.Key},
	} {
		if _, err := w.client().Import(within(t), bad); !errors.Is(err, &admin.Error{Code: admin.Invalid}) && !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
			t.Errorf("%s: %v", what, err)
		}
	}
	r, err := w.client().Import(within(t), bought)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(r.Policy.Names, []string{"bought.example.org", "192.0.2.1"}) || strings.Count(r.Current.Chain, "BEGIN") != 2 { // without the root
		t.Errorf("the record is %+v", r)
	}
	await.Nil(t, "it is served", func() error { return wantHistory(g, r.ID, 1) })
	if _, err := w.client().Import(within(t), bought); !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("again: %v", err)
	}
	if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID}); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Errorf("renewing it: %v", err)
	}
	w.clock.add(88 * day)
	wantFinding(t, m, CodeExpiring, "bought.example.org ends on")
	w.clock.add(-88 * day)
	next := w.buy("bought.example.org", "more.example.org")
	next.ID = r.ID
	if _, err := w.client().Import(within(t), next); err != nil {
		t.Fatal(err)
	}
	if r := w.record("default", r.ID, "it is replaced", generation(2)); !slices.Contains(r.Policy.Names, "more.example.org") {
		t.Errorf("the record is %+v", r)
	}
	await.Nil(t, "it is served", func() error { return wantHistory(g, r.ID, 1, 2) })
	if placed, _ := w.authority.counts(); placed != 0 {
		t.Errorf("%d orders", placed)
	}
}

const httpConfig = `{"issuers":[{"name":"fake","type":"fake"}],"defaults":{"challenge":{"type":"http-01"}}}`

// The authority is asked to look only when every target that is there would answer.
func TestChallenge(t *testing.T) {
	w := newWorld(t)
	w.configure(httpConfig)
	w.run(w.options("m1"))
	nobody := w.request("empty", "nobody.example.org")
	r := w.record("empty", nobody, "nobody is there", func(r *cert.Record) bool { return r.Failure != nil })
	if !strings.Contains(r.Failure.Detail, `no target of group "empty" is there`) || r.Failure.Step != "challenge" {
		t.Errorf("%+v", r.Failure)
	}
	one, two, away := w.target("web", "lb-1"), w.target("web", "lb-2"), w.target("web", "lb-3")
	away.set(func() { away.deaf = true })
	var known atomic.Int32
	w.authority.set(func() {
		w.authority.at = func(step string, _ Order) error {
			if step == "presented" {
				for _, g := range []*target{one, two} {
					if len(g.state.Challenges("web")) == 1 {
						known.Add(1)
					}
				}
			}
			return nil
		}
	})
	id := w.request("web", "example.org")
	w.record("web", id, "it is obtained", generation(1))
	if known.Load() != 2 {
		t.Errorf("%d targets knew of the challenge", known.Load())
	}
	await.Nil(t, "the challenge is taken back", func() error {
		if left := w.state.Challenges(""); len(left) > 0 {
			return fmt.Errorf("%d are left", len(left))
		}
		return nil
	})
	two.set(func() { two.silent = true })
	id = w.request("web", "silent.example.org")
	r = w.record("web", id, "it fails", func(r *cert.Record) bool { return r.Failure != nil })
	if !strings.Contains(r.Failure.Detail, `lb-2 did not take it over`) {
		t.Errorf("%+v", r.Failure)
	}
	// What somebody left behind is removed.
	old := cert.Challenge{Version: 1, Revision: 1, Group: "web", ID: "old", Type: "http-01", At: w.clock.now().Add(-2 * time.Hour), Until: w.clock.now().Add(time.Hour)}
	w.write(cert.ChallengeSubject("web", "old"), &old)
	await.Nil(t, "what is old is removed", func() error {
		if left := w.state.Challenges(""); len(left) > 0 {
			return fmt.Errorf("%d are left", len(left))
		}
		return nil
	})
}

// However many challenges there were, the ledger keeps no more subjects of them than were
// presented at once, and what is over takes nothing from what has its place.
func TestChallengesLeaveNothing(t *testing.T) {
	w := newWorld(t)
	w.configure(httpConfig)
	m, _ := w.run(w.options("m1"))
	w.target("web", "lb-1")
	var tokens []string
	w.authority.set(func() {
		w.authority.at = func(step string, _ Order) error {
			if step == "presented" {
				over := cert.Challenge{Group: "web", ID: "1", Token: "of before"}
				if err := m.session().withdraw(t.Context(), &over); err != nil {
					return err
				}
				c, ok := m.session().state.Challenge("web", "1")
				if !ok {
					return errors.New("the challenge is gone")
				}
				tokens = append(tokens, c.Token)
			}
			return nil
		}
	})
	for n := range 4 {
		w.make("web", cert.Policy{Names: []string{fmt.Sprintf("n%d.example.org", n)}})
	}
	if slices.Sort(tokens); len(slices.Compact(tokens)) != 4 {
		t.Errorf("there were the challenges %q", tokens)
	}
	js, err := jetstream.New(w.nc)
	if err != nil {
		t.Fatal(err)
	}
	stream, err := js.Stream(within(t), cert.Stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := stream.Info(within(t), jetstream.WithSubjectFilter(cert.Prefix+"."+cert.ChallengeSubject("web", "*")))
	if err != nil || len(info.State.Subjects) != 1 {
		t.Errorf("%v are left: %v", info.State.Subjects, err)
	}
	// Many at once have a place each.
	s := m.session()
	var all sync.WaitGroup
	for n := range 20 {
		all.Go(func() {
			if err := s.post(within(t), &cert.Challenge{Version: 1, Revision: 1, Group: "mail", Token: fmt.Sprint(n), At: s.now(), Until: s.now().Add(time.Hour)}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if there := s.state.Challenges("mail"); len(there) != 20 {
		t.Errorf("%d of 20 challenges are there", len(there))
	}
}

// The authority moves its window into the past, and the certificate is renewed.
func TestRenewalInformation(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	start := w.clock.now().Add(50 * day).UTC().Truncate(time.Second)
	var early atomic.Bool
	w.authority.set(func() {
		w.authority.renewal = func(*x509.Certificate) (cert.Renewal, error) {
			r := cert.Renewal{Start: start, End: start.Add(day), Again: w.clock.now().Add(6 * time.Hour)}
			if early.Load() {
				r.Start, r.End, r.Explanation = start.Add(-60*day), start.Add(-59*day), "https://authority.example/why"
			}
			return r, nil
		}
	})
	w.run(w.options("m1"))
	id := w.make("web", cert.Policy{Names: []string{"example.org"}}).ID
	r := w.record("web", id, "the authority's window is kept", func(r *cert.Record) bool { return r.Current != nil && r.Current.Renewal != nil })
	if a := r.Current.Renewal; a.Selected.Before(start) || a.Selected.After(start.Add(day)) || r.Event != cert.Scheduled {
		t.Errorf("%+v", a)
	}
	revision := r.Revision
	w.clock.add(7 * time.Hour) // it is asked again, and says the same
	await.Nil(t, "it is asked again", func() error {
		w.authority.mu.Lock()
		defer w.authority.mu.Unlock()
		if w.authority.asked < 2 {
			return errors.New("not yet")
		}
		return nil
	})
	if r, _ := w.state.Record("web", id); r.Revision != revision {
		t.Errorf("an event was written for nothing: %+v", r)
	}
	early.Store(true)
	w.clock.add(7 * time.Hour)
	r = w.record("web", id, "it is renewed", func(r *cert.Record) bool { return r.Current.Generation == 2 })
	if r.Current.Reason != cert.ReasonARI {
		t.Errorf("%+v", r.Current)
	}
}

func TestDeadMan(t *testing.T) {
	w := newWorld(t)
	var told atomic.Int32
	alive := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && r.URL.Path == "/alive" {
			told.Add(1)
		}
	}))
	defer alive.Close()
	w.configure(strings.TrimSuffix(fakeConfig, "}") + `,"dead_man":{"url":"` + alive.URL + `/alive","method":"GET","every":"15m"}}`)
	o := w.options("m1")
	o.HTTP = alive.Client()
	w.run(o)
	for n := int32(1); n <= 2; n++ {
		await.Nil(t, "it is told", func() error {
			if told.Load() != n {
				return fmt.Errorf("%d times", told.Load())
			}
			return nil
		})
		w.clock.add(16 * time.Minute)
	}
}

// Once does what is due, resumes what was begun, and ends.
func TestOnce(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	good, bad := w.request("web", "good.example.org"), w.request("web", "bad.example.org")
	w.authority.set(func() {
		w.authority.at = func(_ string, o Order) error {
			if o.Names[0] == "bad.example.org" {
				return errors.New("connection refused")
			}
			return nil
		}
	})
	once := func() []Outcome {
		t.Helper()
		done, err := w.new(w.options("cron")).Once(within(t), dial(t, w.url))
		if err != nil {
			t.Fatal(err)
		}
		return done
	}
	done := once()
	slices.SortFunc(done, func(a, b Outcome) int { return strings.Compare(a.Names[0], b.Names[0]) })
	if len(done) != 2 || done[0].ID != bad || done[0].Event != cert.Failed || !strings.Contains(done[0].Detail, "refused") || done[1].ID != good || done[1].Event != cert.Obtained {
		t.Errorf("it did %+v", done)
	}
	if done := once(); len(done) != 0 {
		t.Errorf("with nothing to do it did %+v", done)
	}
	// One that was killed left a lease; who comes next waits until it is silent.
	left := w.request("web", "left.example.org")
	before, _ := w.state.Record("web", left)
	held := *before
	held.Revision++
	held.Lease = &cert.Lease{Holder: "killed/1", Generation: 1, Until: w.clock.now().Add(time.Hour)}
	w.write(cert.CertSubject("web", left), &held)
	began := time.Now()
	if done := once(); len(done) != 1 || done[0].ID != left || time.Since(began) < w.options("x").Lease {
		t.Errorf("after %s it did %+v", time.Since(began), done)
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := w.new(w.options("cron")).Once(canceled, dial(t, w.url)); err == nil {
		t.Error("it did all, although it was canceled")
	}
}

func TestRenewable(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	var ids []string
	for i := range 3 {
		ids = append(ids, w.make("web", cert.Policy{Names: []string{fmt.Sprintf("n%d.example.org", i)}}).ID)
	}
	all, err := w.client().Renewable(within(t), RenewableRequest{})
	if err != nil || len(all) != 0 {
		t.Errorf("%+v %v", all, err)
	}
	all, err = w.client().Renewable(within(t), RenewableRequest{At: w.clock.now().Add(61 * day)})
	if err != nil || len(all) != 3 || all[0].At.After(all[2].At) || !slices.Contains(ids, all[0].ID) {
		t.Errorf("%+v %v", all, err)
	}
	if _, err := w.client().Renewable(within(t), RenewableRequest{Renew: "some"}); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Error(err)
	}
	if all, err := w.client().Renewable(within(t), RenewableRequest{Renew: "all"}); err != nil || len(all) != 0 {
		t.Errorf("%+v %v", all, err)
	}
}
