package certmanager

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
)

func TestFirstCertificate(t *testing.T) {
	w := newWorld(t)
	w.run(w.options("m1"))
	c := w.client()
	_, err := c.Make(within(t), MakeRequest{Policy: cert.Policy{Names: []string{"example.org"}}})
	if e := (*admin.Error)(nil); !errors.As(err, &e) || !strings.Contains(e.Fix, "conf update") {
		t.Fatalf("without a configuration: %v", err)
	}
	if _, err := c.UpdateConfig(within(t), []byte(fakeConfig)); err != nil {
		t.Fatal(err)
	}
	g := w.target("default", "lb-1")
	var steps []string
	c.Progress = func(step string) { steps = append(steps, step) }
	r, err := c.Make(within(t), MakeRequest{Policy: cert.Policy{Names: []string{"WWW.Example.org.", "example.org", "bücher.example", "192.0.2.1"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"www.example.org", "example.org", "xn--bcher-kva.example", "192.0.2.1"}; !slices.Equal(r.Current.Names, want) || r.Current.Generation != 1 || r.Lease != nil {
		t.Errorf("the record is %+v", r)
	}
	for _, step := range []string{"certificate " + r.ID, "asking fake", "ordered", "publishing it", "generation 1 is for all targets of default"} {
		if !slices.Contains(steps, step) {
			t.Errorf("the steps %q lack %q", steps, step)
		}
	}
	await.Nil(t, "the target serves it", func() error {
		status, err := c.Status(within(t), StatusRequest{ID: r.ID})
		if err != nil {
			return err
		}
		if line := status.Certificates[0].Line(); line != "1 targets: 1 current, 0 pending, 0 failed, 0 away" {
			return errors.New(line)
		}
		return nil
	})
	if !slices.Equal(g.history(r.ID), []uint64{1}) {
		t.Errorf("the target served %v", g.history(r.ID))
	}
	_, err = c.Make(within(t), MakeRequest{Policy: cert.Policy{Names: []string{"example.org", "www.example.org", "192.0.2.1", "xn--bcher-kva.example"}}})
	if !errors.Is(err, &admin.Error{Code: admin.Conflict}) {
		t.Errorf("the same names again: %v", err)
	}
	if placed, issued := w.authority.counts(); placed != 1 || issued != 1 {
		t.Errorf("%d orders, %d certificates", placed, issued)
	}
	all, err := c.Certificates(within(t), "")
	if err != nil || len(all) != 1 || all[0].Current.Chain != "" || len(all[0].Current.Key.Ciphertext) != 0 {
		t.Errorf("%v %v", all, err)
	}
}

func TestBadRequests(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	c := w.client()
	for _, p := range []cert.Policy{
		{}, {Names: []string{""}}, {Names: []string{"*.*.example.org"}}, {Names: []string{"exa mple.org"}}, {Names: []string{"-a.org"}}, {Names: []string{"*.org.", "*"}},
		{Names: []string{strings.Repeat("a", 64) + ".org"}}, {Names: []string{"a.org"}, Issuers: []string{"none"}}, {Names: []string{"a.org"}, KeyType: "dsa"},
		{Names: []string{"a.org"}, Challenge: cert.Method{Type: "smoke"}}, {Names: []string{"*.a.org"}, Challenge: cert.Method{Type: "http-01"}},
		{Names: []string{"a.org"}, Challenges: map[string]cert.Method{"b.org": {Type: "dns-01"}}}, {Names: []string{"a.org"}, Challenge: cert.Method{Provider: "none"}},
		{Names: []string{"a.org"}, Waves: "tidal"},
	} {
		if _, err := c.Make(within(t), MakeRequest{Policy: p, Wait: true}); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
			t.Errorf("%+v: %v", p, err)
		}
	}
	for _, err := range []error{
		second(c.Renew(within(t), RenewRequest{ID: "none"})), second(c.Remove(within(t), RemoveRequest{ID: "none"})),
		second(c.Certificate(within(t), "none")), second(c.RemoveTarget(within(t), "g", "none")), second(c.Status(within(t), StatusRequest{ID: "none"})),
	} {
		if !errors.Is(err, &admin.Error{Code: admin.NotFound}) {
			t.Error(err)
		}
	}
	if _, err := call[any](within(t), c, "fly", nil); !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Error(err)
	}
	if placed, _ := w.authority.counts(); placed != 0 {
		t.Errorf("%d orders", placed)
	}
}

func second[T any](_ T, err error) error { return err }

func TestRenewalInWaves(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	var targets []*target
	for i := range 12 {
		targets = append(targets, w.target("web", fmt.Sprintf("lb-%02d", i)))
	}
	r, err := w.client().Make(within(t), MakeRequest{Group: "web", Policy: cert.Policy{Names: []string{"example.org"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range targets {
		await.Nil(t, "all serve the first", func() error { return wantHistory(g, r.ID, 1) })
	}
	var waves []string
	js := w.follow(func(now *cert.Record) {
		if now.ID == r.ID && now.Wave != nil {
			waves = append(waves, fmt.Sprintf("%d: %d", now.Wave.Number, len(now.Wave.Targets)))
		}
	})
	w.clock.add(61 * 24 * time.Hour)
	renewed := w.record("web", r.ID, "it is renewed", generation(2))
	js()
	for _, g := range targets {
		await.Nil(t, "all serve the second", func() error { return wantHistory(g, r.ID, 1, 2) })
	}
	if !slices.Equal(slices.Compact(waves), []string{"1: 1", "2: 2"}) {
		t.Errorf("the waves were %q", waves)
	}
	if b := renewed.Current; b.Reason != cert.ReasonRenewal || b.Replaces != r.Current.Leaf || b.SPKI == r.Current.SPKI {
		t.Errorf("the bundle is %+v", b)
	}
	if placed, issued := w.authority.counts(); placed != 2 || issued != 2 {
		t.Errorf("%d orders, %d certificates", placed, issued)
	}
}

func wantHistory(g *target, id string, want ...uint64) error {
	if got := g.history(id); !slices.Equal(got, want) {
		return fmt.Errorf("%s served %v, want %v", g.name, got, want)
	}
	return nil
}

func TestRollBack(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	m, _ := w.run(w.options("m1"))
	first, other := w.target("web", "lb-1"), w.target("web", "lb-2")
	r, err := w.client().Make(within(t), MakeRequest{Group: "web", Policy: cert.Policy{Names: []string{"example.org"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	w.current(r.ID, 2)
	first.set(func() {
		first.refuse = func(_ string, b *cert.Bundle) string {
			if b.Generation == 2 {
				return "nginx -t: no such file"
			}
			return ""
		}
	})
	if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	back := w.record("web", r.ID, "it is taken back", func(r *cert.Record) bool { return r.Withdrawn == 2 })
	if back.Current.Generation != 1 || back.Next != nil || back.Failure.Step != stepDeliver || !strings.Contains(back.Failure.Detail, "lb-1 does not serve generation 2: nginx -t: no such file") {
		t.Errorf("the record is %+v %+v", back, back.Failure)
	}
	await.Nil(t, "the first serves what it had", func() error { return wantHistory(first, r.ID, 1, 1) })
	if err := wantHistory(other, r.ID, 1); err != nil {
		t.Error(err)
	}
	wantFinding(t, m, CodeFailing, "nginx -t: no such file")
	// The next one has another number, and goes to all.
	first.set(func() { first.refuse = nil })
	if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	w.record("web", r.ID, "the next is for all", generation(3))
}

// wantFinding waits for a finding: the manager may not have seen what the test has.
func wantFinding(t *testing.T, m *Manager, code, text string) {
	t.Helper()
	await.Nil(t, "a finding", func() error {
		all := m.Check(t.Context())
		for _, f := range all {
			if f.Code == code && strings.Contains(f.Text, text) {
				return nil
			}
		}
		return fmt.Errorf("no %s with %q among %+v", code, text, all)
	})
}

func TestAwayTargetsDoNotBlock(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	away, here := w.target("web", "lb-1"), w.target("web", "lb-2")
	away.set(func() { away.deaf = true })
	r, err := w.client().Make(within(t), MakeRequest{Group: "web", Policy: cert.Policy{Names: []string{"example.org"}}, Wait: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	w.record("web", r.ID, "it is for all", generation(2))
	await.Nil(t, "who is there serves it", func() error { return wantHistory(here, r.ID, 1, 2) })
	away.set(func() { away.deaf = false })
	away.poke <- struct{}{}
	await.Nil(t, "who was away catches up", func() error {
		if h := away.history(r.ID); len(h) == 0 || h[len(h)-1] != 2 {
			return fmt.Errorf("it served %v", h)
		}
		return nil
	})
}

func TestSilentTargetStopsWave(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	o := w.options("m1")
	o.Wave = time.Second
	w.run(o)
	w.target("web", "lb-1")
	w.target("web", "lb-2")
	stuck := w.target("web", "lb-0") // the first by name
	r := w.make("web", cert.Policy{Names: []string{"example.org"}})
	w.current(r.ID, 3)
	stuck.set(func() { stuck.mute = true })
	if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID}); err != nil {
		t.Fatal(err)
	}
	back := w.record("web", r.ID, "it is taken back", func(r *cert.Record) bool { return r.Withdrawn == 2 })
	if !strings.Contains(back.Failure.Detail, "lb-0 was not seen serving generation 2 in 1s") {
		t.Errorf("%+v", back.Failure)
	}
}

// A target that served nothing before a roll-out, because it is broken or silent, stops
// no other.
func TestBrokenTargetsDoNotBlock(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	o := w.options("m1")
	o.Wave = 2 * time.Second
	m, _ := w.run(o)
	broken, silent := w.target("web", "lb-0"), w.target("web", "lb-1")
	broken.set(func() { broken.refuse = func(string, *cert.Bundle) string { return "nginx -t: no such file" } })
	silent.set(func() { silent.mute = true })
	sound := []*target{w.target("web", "lb-2"), w.target("web", "lb-3")}
	r := w.make("web", cert.Policy{Names: []string{"example.org"}})
	w.current(r.ID, len(sound))
	for n := uint64(2); n <= 3; n++ {
		if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID}); err != nil {
			t.Fatal(err)
		}
		if r := w.record("web", r.ID, "it is for all", generation(n)); r.Withdrawn != 0 || r.Failure != nil {
			t.Errorf("the record is %+v", r)
		}
		w.current(r.ID, len(sound))
	}
	w.clock.add(time.Minute)
	wantFinding(t, m, CodeBehind, "lb-0, lb-1 were not seen serving the latest certificate of example.org: nginx -t: no such file")
	// With no other to look at, one of them has a try, and the rest goes on.
	for _, g := range sound {
		if _, err := w.client().RemoveTarget(within(t), "web", g.name); err != nil {
			t.Fatal(err)
		}
	}
	w.record("web", r.ID, "it has another key, for all", func(r *cert.Record) bool {
		return r.Next == nil && r.Current.Generation > 3 && r.Current.Reason == cert.ReasonRekey
	})
}

// A target that served what was before has a say, once: with a next generation that the
// others serve, it alone is left behind. The pauses between grow.
func TestTargetsRefuseOnce(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	var targets []*target
	for _, name := range []string{"lb-1", "lb-2", "lb-3"} {
		targets = append(targets, w.target("web", name))
	}
	r := w.make("web", cert.Policy{Names: []string{"example.org"}})
	w.current(r.ID, 3)
	no := func(_ string, b *cert.Bundle) string {
		if b.Generation == 1 {
			return ""
		}
		return "the disk is full"
	}
	for _, g := range targets[:2] {
		g.set(func() { g.refuse = no })
	}
	w.clock.add(61 * day)
	for n, by := range []string{"lb-1", "lb-2"} {
		back := w.record("web", r.ID, "it is taken back", func(r *cert.Record) bool { return r.Withdrawn == uint64(n+2) })
		if f := back.Failure; f == nil || f.Attempts != n+1 || !strings.HasPrefix(f.Detail, by+" does not serve") || len(back.Refused) != n+1 {
			t.Errorf("the record is %+v %+v", back, f)
		}
		w.current(r.ID, 3)
		w.clock.add(8 * time.Hour)
	}
	if after := w.record("web", r.ID, "it is for all", generation(4)); after.Failure != nil || after.Refused != nil {
		t.Errorf("the record is %+v", after)
	}
	w.current(r.ID, 1)
	if placed, _ := w.authority.counts(); placed != 4 {
		t.Errorf("%d orders", placed)
	}
}

// TestRest has a manager with nothing to do, which does nothing.
func TestRest(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	o := w.options("m1")
	o.Every = time.Hour
	m, _ := w.run(o)
	if _, err := w.client().Make(within(t), MakeRequest{Policy: cert.Policy{Names: []string{"a.example"}}, Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.target(DefaultGroup, "lb-1")
	await.Nil(t, "the manager rests", func() error {
		before := m.session().passedAt()
		<-time.After(500 * time.Millisecond)
		if after := m.session().passedAt(); after != before {
			return fmt.Errorf("it made a pass at %s, and at %s", before.Format(time.StampMilli), after.Format(time.StampMilli))
		}
		return nil
	})
}

// Two who ask for the same names at the same moment, at two managers, get one certificate.
func TestMadeTwice(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	var managers []*Manager
	for _, name := range []string{"m1", "m2", "m3"} {
		m, _ := w.run(w.options(name))
		managers = append(managers, m)
	}
	first := ""
	for round := range 3 {
		var made, refused atomic.Int32
		var all sync.WaitGroup
		names := []string{"example.org", "www.example.org"}
		for i, m := range managers {
			all.Go(func() {
				p := cert.Policy{Names: []string{names[i%2], names[1-i%2]}}
				r, err := m.session().mk(within(t), MakeRequest{Policy: p, Wait: true}, func(string) {})
				switch e := (*admin.Error)(nil); {
				case err == nil:
					made.Add(1)
					if round == 0 {
						first = r.ID
					}
				case errors.As(err, &e) && e.Code == admin.Conflict && strings.HasPrefix(e.Fix, "fleetbus cert renew "):
					refused.Add(1)
				default:
					t.Error(err)
				}
			})
		}
		all.Wait()
		if placed, _ := w.authority.counts(); made.Load() != 1 || refused.Load() != 2 || placed != round+1 {
			t.Fatalf("round %d: %d were made, %d refused, %d ordered in all", round, made.Load(), refused.Load(), placed)
		}
		there, err := w.client().Certificates(within(t), "")
		if err != nil || len(there) != 1 || round > 0 && there[0].ID == first {
			t.Fatalf("round %d: %+v %v", round, there, err)
		}
		if _, err := w.client().Remove(within(t), RemoveRequest{ID: there[0].ID}); err != nil {
			t.Fatal(err)
		}
		for _, m := range managers { // who has not heard of the end of the one before refuses, which is right
			await.Nil(t, "all know", func() error {
				if left := m.session().state.Records(""); len(left) > 0 {
					return fmt.Errorf("%d are left", len(left))
				}
				return nil
			})
		}
	}
	r := w.make("default", cert.Policy{Names: []string{"example.org"}})
	again, err := w.client().Make(within(t), MakeRequest{Policy: r.Policy, Again: true})
	if err != nil || again.ID == r.ID {
		t.Errorf("another for the same names: %+v %v", again, err)
	}
}

// TestChallengeOfName has how a name is proved given for the name as its owner writes it.
func TestChallengeOfName(t *testing.T) {
	w := newWorld(t)
	w.configure(fakeConfig)
	w.run(w.options("m1"))
	r, err := w.client().Make(within(t), MakeRequest{Policy: cert.Policy{
		Names: []string{"Bücher.example."}, Challenges: map[string]cert.Method{"Bücher.example.": {Type: "dns-01", Delegated: "books.acme.example"}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if m := r.Policy.Challenges["xn--bcher-kva.example"]; m.Delegated != "books.acme.example" {
		t.Errorf("it is proved by %+v", r.Policy.Challenges)
	}
}

// TestLongAnswer asks for more than fits into one message.
func TestLongAnswer(t *testing.T) {
	s, c := startNode(t)
	ctx := within(t)
	ops, _ := dialAs(t, s, "ops", identity.RoleCertManager)
	names := make([]string, maxNames)
	for i := range names {
		names[i] = fmt.Sprintf("%s.n%d.example", strings.Repeat("a", 63)+"."+strings.Repeat("b", 63), i)
	}
	const n = 80 // 15 kB each
	for i := range n {
		names[0] = fmt.Sprintf("first%d.example", i)
		if _, err := c.Make(ctx, MakeRequest{Policy: cert.Policy{Names: names, Issuers: []string{"fake"}}}); err != nil {
			t.Fatal(err)
		}
	}
	for who, client := range map[string]*Client{"an administrator": c, "a user": NewClient(ops)} {
		all, err := client.Certificates(ctx, "")
		if err != nil || len(all) != n {
			t.Errorf("%s sees %d certificates of %d: %v", who, len(all), n, err)
		}
	}
}
