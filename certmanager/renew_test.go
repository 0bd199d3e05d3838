package certmanager

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus/cert"
)

const day = 24 * time.Hour

func TestPlan(t *testing.T) {
	start := time.Date(2026, 3, 31, 0, 0, 0, 0, time.UTC)
	at := func(days float64) time.Time { return start.Add(time.Duration(days * float64(day))) }
	bundle := func(days float64, r *cert.Renewal) *cert.Bundle {
		return &cert.Bundle{Generation: 1, Leaf: "00", NotBefore: start, NotAfter: at(days), Renewal: r}
	}
	ari := func(days float64) *cert.Renewal { return &cert.Renewal{Selected: at(days)} }
	for name, c := range map[string]struct {
		r        cert.Record
		none     bool
		from, to time.Time // when it is due; both zero: at once
		reason   cert.Reason
	}{
		"new":                {r: cert.Record{}, reason: cert.ReasonNew},
		"a year":             {r: cert.Record{Current: bundle(360, nil)}, from: at(222), to: at(240), reason: cert.ReasonRenewal},
		"90 days":            {r: cert.Record{Current: bundle(90, nil)}, from: at(55.5), to: at(60), reason: cert.ReasonRenewal},
		"47 days":            {r: cert.Record{Current: bundle(47, nil)}, from: at(28.9), to: at(31.34), reason: cert.ReasonRenewal},
		"six days":           {r: cert.Record{Current: bundle(6, nil)}, from: at(2.7), to: at(3), reason: cert.ReasonRenewal},
		"the authority says": {r: cert.Record{Current: bundle(90, ari(20))}, from: at(20), to: at(20), reason: cert.ReasonARI},
		"it says too late":   {r: cert.Record{Current: bundle(100, ari(99))}, from: at(95), to: at(95), reason: cert.ReasonRenewal},
		"it says long ago":   {r: cert.Record{Current: bundle(90, ari(-100))}, from: at(-100), to: at(-100), reason: cert.ReasonARI},
		"forced":             {r: cert.Record{Current: bundle(90, nil), Renew: cert.ReasonForced}, reason: cert.ReasonForced},
		"revoked":            {r: cert.Record{Current: bundle(90, ari(80)), Renew: cert.ReasonRevoked}, reason: cert.ReasonRevoked},
		"failed": {r: cert.Record{Current: bundle(90, ari(20)), Failure: &cert.Failure{Next: at(30)}},
			from: at(30), to: at(30), reason: cert.ReasonARI},
		"failed long ago": {r: cert.Record{Current: bundle(90, ari(20)), Failure: &cert.Failure{Next: at(10)}},
			from: at(20), to: at(20), reason: cert.ReasonARI},
		"removed":     {r: cert.Record{Removed: true}, none: true},
		"imported":    {r: cert.Record{Current: bundle(90, nil), Policy: cert.Policy{Imported: true}}, none: true},
		"rolling out": {r: cert.Record{Current: bundle(90, nil), Next: bundle(90, nil), Renew: cert.ReasonForced}, none: true},
		"no validity": {r: cert.Record{Current: &cert.Bundle{NotBefore: start, NotAfter: start}}, from: start.Add(-2 * time.Second), to: start, reason: cert.ReasonRenewal},
	} {
		c.r.ID = "nd3oD6CfiY0"
		p, ok := planFor(&c.r, start)
		if ok == c.none {
			t.Errorf("%s: %+v %t", name, p, ok)
		}
		if ok && (p.At.Before(c.from) || p.At.After(c.to) || p.Reason != c.reason) {
			t.Errorf("%s: %s for %q, want from %s to %s for %q", name, p.At, p.Reason, c.from, c.to, c.reason)
		}
	}
}

// Whatever the authority says, a certificate is renewed while it is valid, and with a
// twentieth of its life left; and where it says nothing, not in the first half of it.
func TestPlanProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		life := time.Duration(rapid.Int64Range(int64(time.Hour), int64(400*day)).Draw(t, "life"))
		start := time.Unix(rapid.Int64Range(0, 4e9).Draw(t, "start"), 0)
		b := &cert.Bundle{NotBefore: start, NotAfter: start.Add(life), Leaf: rapid.String().Draw(t, "leaf")}
		said := rapid.Bool().Draw(t, "said")
		if said {
			b.Renewal = &cert.Renewal{Selected: start.Add(time.Duration(rapid.Int64Range(int64(-800*day), int64(800*day)).Draw(t, "selected")))}
		}
		id := rapid.String().Draw(t, "id")
		p := renewalOf(id, b)
		if p.At.After(b.NotAfter.Add(-life / 20)) {
			t.Fatalf("it is renewed at %s, and ends at %s", p.At, b.NotAfter)
		}
		if !said && p.At.Before(start.Add(life*2/5)) {
			t.Fatalf("it is renewed at %s, and began at %s", p.At, start)
		}
		if again := renewalOf(id, b); again != p {
			t.Fatal("it is another moment when it is asked again")
		}
	})
}

func TestBackoff(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id, attempts := rapid.String().Draw(t, "id"), rapid.IntRange(1, 1000).Draw(t, "attempts")
		for step, longest := range map[string]time.Duration{stepOrder: maxBackoff, stepDeliver: maxDeliverBackoff} {
			now, next := backoff(id, step, attempts), backoff(id, step, attempts+1)
			if now < firstBackoff || now > longest*5/4 || next < now*4/5 {
				t.Fatalf("%s: %s, and then %s", step, now, next)
			}
		}
	})
}

func TestJudge(t *testing.T) {
	now := time.Now()
	names := func(n int) (all []string) {
		for i := range n {
			all = append(all, string(rune('a'+i%26))+string(rune('a'+i/26)))
		}
		return all
	}
	next := &cert.Bundle{Generation: 2, Serial: "0a"}
	good, bad, old := &cert.Seen{Generation: 2, Serial: "0A"}, &cert.Seen{Generation: 2, Error: "no"}, &cert.Seen{Generation: 1, Serial: "09"}
	for name, c := range map[string]struct {
		targets, wave int
		number        int
		away          []int // of the targets
		seen          map[int]*cert.Seen
		waited        time.Duration
		ended         bool // the current one
		behind        []int
		refused       []int
		want          string
	}{
		"nobody yet":           {targets: 30, wave: 1, number: 1, want: "wait"},
		"the old one":          {targets: 30, wave: 1, number: 1, seen: map[int]*cert.Seen{0: {Generation: 1, Serial: "09"}}, want: "wait"},
		"another serial":       {targets: 30, wave: 1, number: 1, seen: map[int]*cert.Seen{0: {Generation: 2, Serial: "0b"}}, want: "wait"},
		"the first":            {targets: 30, wave: 1, number: 1, seen: map[int]*cert.Seen{0: good}, want: "wave 2 of 3"},
		"the first of few":     {targets: 10, wave: 1, number: 1, seen: map[int]*cert.Seen{0: good}, want: "done"},
		"not all of a tenth":   {targets: 30, wave: 3, number: 2, seen: map[int]*cert.Seen{0: good, 1: good}, want: "wait"},
		"a tenth":              {targets: 30, wave: 3, number: 2, seen: map[int]*cert.Seen{0: good, 1: good, 2: good}, want: "done"},
		"one is away":          {targets: 30, wave: 3, number: 2, away: []int{2}, seen: map[int]*cert.Seen{0: good, 1: good}, want: "done"},
		"one failed":           {targets: 30, wave: 3, number: 2, seen: map[int]*cert.Seen{0: good, 1: {Generation: 2, Error: "no"}}, want: "failed"},
		"it failed before":     {targets: 30, wave: 1, number: 1, seen: map[int]*cert.Seen{0: {Generation: 1, Error: "no"}}, want: "wait"},
		"too long":             {targets: 30, wave: 1, number: 1, waited: time.Hour, want: "failed"},
		"too long, but away":   {targets: 1, wave: 1, number: 1, waited: time.Hour, away: []int{0}, want: "done"},
		"the first went away":  {targets: 30, wave: 1, number: 1, away: []int{0}, want: "wave 1 of 2"},
		"all are away":         {targets: 3, wave: 1, number: 1, away: []int{0, 1, 2}, want: "wait"},
		"all away and expired": {targets: 3, wave: 1, number: 1, away: []int{0, 1, 2}, ended: true, want: "done"},
		"nobody is left":       {targets: 0, wave: 1, number: 1, want: "done"},

		"broken before, next":       {targets: 30, wave: 1, number: 1, behind: []int{0}, seen: map[int]*cert.Seen{0: bad, 1: old}, want: "wave 1 of 2"},
		"broken before, nobody is":  {targets: 3, wave: 1, number: 1, behind: []int{0}, seen: map[int]*cert.Seen{0: bad}, want: "done"},
		"broken before, others not": {targets: 30, wave: 3, number: 2, behind: []int{2}, seen: map[int]*cert.Seen{0: good, 1: good, 2: bad}, want: "done"},
		"broken before, one now":    {targets: 30, wave: 3, number: 2, behind: []int{2}, seen: map[int]*cert.Seen{0: good, 1: bad, 2: bad}, want: "failed"},
		"broken before, one to go":  {targets: 30, wave: 3, number: 2, behind: []int{2}, seen: map[int]*cert.Seen{0: good, 2: bad}, waited: time.Hour, want: "failed"},
		"silent before":             {targets: 30, wave: 1, number: 1, behind: []int{0}, seen: map[int]*cert.Seen{1: old}, want: "wait"},
		"silent before, too long":   {targets: 30, wave: 1, number: 1, behind: []int{0}, seen: map[int]*cert.Seen{1: old}, waited: time.Hour, want: "wave 1 of 2"},
		"repaired meanwhile":        {targets: 30, wave: 1, number: 1, behind: []int{0}, seen: map[int]*cert.Seen{0: good, 1: old}, want: "wave 2 of 3"},
		"refused before, next":      {targets: 30, wave: 1, number: 1, behind: []int{0}, refused: []int{0, 1}, seen: map[int]*cert.Seen{0: bad, 1: old, 2: old}, want: "wave 1 of 2"},
		"all have refused":          {targets: 2, wave: 1, number: 1, behind: []int{0}, refused: []int{0, 1}, seen: map[int]*cert.Seen{0: bad, 1: old}, want: "done"},
		"the sound one is away":     {targets: 2, wave: 1, number: 1, behind: []int{0}, away: []int{1}, seen: map[int]*cert.Seen{0: bad, 1: old}, want: "wait"},
		"the sound one, and it was": {targets: 2, wave: 1, number: 1, behind: []int{0}, away: []int{1}, seen: map[int]*cert.Seen{0: bad, 1: old}, ended: true, want: "done"},
	} {
		t.Run(name, func(t *testing.T) {
			w := watcher{targets: names(c.targets), present: map[string]bool{}}
			for i, n := range w.targets {
				w.present[n] = true
				for _, gone := range c.away {
					if gone == i {
						w.present[n] = false
					}
				}
			}
			w.seen = func(target string) *cert.Seen {
				for i, n := range names(30) {
					if n == target {
						return c.seen[i]
					}
				}
				return nil
			}
			r := &cert.Record{Next: next, Current: &cert.Bundle{Generation: 1, Serial: "09", NotAfter: now.Add(time.Hour)}, Wave: &cert.Wave{Number: c.number, Targets: names(c.wave)}}
			for _, i := range c.behind {
				r.Wave.Behind = append(r.Wave.Behind, names(30)[i])
			}
			for _, i := range c.refused {
				r.Refused = append(r.Refused, names(30)[i])
			}
			if c.ended {
				r.Current.NotAfter = now
			}
			v := judge(r, w, c.waited, time.Minute, now)
			got := "wait"
			switch {
			case v.Failed != "":
				got = "failed"
			case v.Done:
				got = "done"
			case v.Wave != nil:
				got = "wave " + string(rune('0'+v.Wave.Number)) + " of " + string(rune('0'+len(v.Wave.Targets)))
			}
			if got != c.want {
				t.Errorf("%s, want %s: %+v", got, c.want, v)
			}
		})
	}
}
