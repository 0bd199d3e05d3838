package certmanager

import (
	"context"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/cert"
)

// runSkewed runs a manager on a machine whose clock is wrong.
func (w *world) runSkewed(name string, skew time.Duration) *Manager {
	w.t.Helper()
	o := w.options(name)
	o.Now = nil
	m := w.new(o)
	m.wall = func() time.Time { return time.Now().Add(skew) }
	w.start(m, dial(w.t, w.url))
	return m
}

// start runs a manager until it has made its first pass.
func (w *world) start(m *Manager, nc *nats.Conn) (stop func()) {
	w.t.Helper()
	stop = w.background(func(ctx context.Context) error { return m.Run(ctx, nc) })
	await.Nil(w.t, "the manager runs", func() error {
		if s := m.session(); s == nil || s.passedAt().IsZero() {
			return errLost
		}
		return nil
	})
	return stop
}

// A manager whose clock is two days ahead revokes nothing that is served, and one whose
// clock is two days behind writes challenges and failures that others understand.
func TestWrongClocks(t *testing.T) {
	for _, skew := range []time.Duration{48 * time.Hour, -48 * time.Hour} {
		t.Run(skew.String(), func(t *testing.T) {
			w := newWorld(t)
			w.configure(httpConfig)
			m := w.runSkewed("m1", skew)
			first, slow := w.target("web", "lb-1"), w.target("web", "lb-2")
			var until time.Time
			w.authority.set(func() {
				w.authority.at = func(step string, _ Order) error {
					if step == "presented" {
						until = first.state.Challenges("web")[0].Until
					}
					return nil
				}
			})
			r := w.make("web", cert.Policy{Names: []string{"example.org"}})
			if left := time.Until(until); left < 20*time.Hour || left > 30*time.Hour {
				t.Errorf("the challenge is of use for %s", left)
			}
			if off := time.Since(r.At).Abs(); off > time.Minute {
				t.Errorf("the record is %s off", off)
			}
			w.current(r.ID, 2)
			slow.set(func() { slow.mute = true })
			if _, err := w.client().Renew(within(t), RenewRequest{ID: r.ID, Compromised: true}); err != nil {
				t.Fatal(err)
			}
			w.record("web", r.ID, "it is replaced", generation(2))
			w.make("web", cert.Policy{Names: []string{"other.example.org"}}) // there were many passes
			if now, _ := w.state.Record("web", r.ID); len(now.Revoking) != 1 {
				t.Error("it was revoked while a target serves it")
			}
			side := "ahead of"
			if skew < 0 {
				side = "behind"
			}
			wantFinding(t, m, CodeClock, "48h0m0s "+side)
			slow.set(func() { slow.mute = false })
			slow.poke <- struct{}{}
			w.record("web", r.ID, "it is revoked", func(r *cert.Record) bool { return len(r.Revoking) == 0 })
		})
	}
}
