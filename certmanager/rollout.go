package certmanager

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

// A verdict is what becomes of a generation that is being rolled out.
type verdict struct {
	// Wave is the next one. Nil: there is none.
	Wave *cert.Wave
	// Done says that every target may have it.
	Done bool
	// Failed says why it is taken back, and By whose fault. Empty: it is not.
	Failed string
	By     []string
}

// A watcher is what is known of a group's targets.
type watcher struct {
	// targets that are enrolled, in order, and which of them are present.
	targets []string
	present map[string]bool
	// seen returns what a target was last seen serving; nil if it never was.
	seen func(target string) *cert.Seen
}

// sound reports whether a target has a say in a roll-out of r: it was seen serving what is
// served now, and has not refused before. One that is broken would stop every other else.
func (w watcher) sound(target string, r *cert.Record) bool {
	return r.Current != nil && serves(w.seen(target), r.Current) && !slices.Contains(r.Refused, target)
}

// add returns wave with one target more, and what is to be known of it.
func (w watcher) add(wave cert.Wave, target string, r *cert.Record) cert.Wave {
	wave.Targets = append(slices.Clone(wave.Targets), target)
	if !w.present[target] || !w.sound(target, r) {
		wave.Behind = append(slices.Clone(wave.Behind), target)
	}
	return wave
}

// inOrder are the targets, those first that are present and have a say, then those that
// are present.
func (w watcher) inOrder(r *cert.Record) []string {
	rank := func(name string) int {
		switch {
		case !w.present[name]:
			return 2
		case !w.sound(name, r):
			return 1
		}
		return 0
	}
	all := slices.Clone(w.targets)
	slices.SortStableFunc(all, func(a, b string) int { return rank(a) - rank(b) })
	return all
}

// firstWave is whom a new generation of r goes to first; nil if all targets get it at
// once.
func firstWave(r *cert.Record, waves string, w watcher) *cert.Wave {
	if r.Current == nil || waves == "all" || len(w.targets) < 2 {
		return nil
	}
	wave := w.add(cert.Wave{Number: 1}, w.inOrder(r)[0], r)
	return &wave
}

// judge says how a roll-out goes on, after waited in its present wave. A wave lasts
// until all of its targets that are present, and were sound before, were seen serving the
// generation, and one at least was. The first of them that cannot ends the roll-out.
// bound is how long one may take.
func judge(r *cert.Record, w watcher, waited, bound time.Duration, now time.Time) verdict {
	var served, missing, open []string
	for _, name := range r.Wave.Targets {
		if !slices.Contains(w.targets, name) {
			continue // removed meanwhile
		}
		seen, behind := w.seen(name), slices.Contains(r.Wave.Behind, name)
		failed := seen != nil && seen.Generation == r.Next.Generation && seen.Error != ""
		switch {
		case serves(seen, r.Next):
			served = append(served, name)
		case failed && !behind:
			return verdict{By: []string{name}, Failed: fmt.Sprintf("%s does not serve generation %d: %s", name, r.Next.Generation, seen.Error)}
		case w.present[name] && !behind:
			missing = append(missing, name)
		case w.present[name] && !failed:
			open = append(open, name)
		}
	}
	switch {
	case len(missing) > 0 && waited > bound:
		return verdict{By: missing, Failed: fmt.Sprintf("%s was not seen serving generation %d in %s", strings.Join(missing, ", "), r.Next.Generation, bound)}
	case len(missing) > 0:
		return verdict{}
	case len(served) > 0:
		return next(r, w)
	case len(open) > 0 && waited <= bound:
		return verdict{}
	}
	return elsewhere(r, w, now)
}

// serves reports whether a target was seen serving b.
func serves(seen *cert.Seen, b *cert.Bundle) bool {
	return seen != nil && seen.Error == "" && seen.Generation == b.Generation && strings.EqualFold(seen.Serial, b.Serial)
}

// elsewhere goes on when no target of a wave can tell: those that are left are away, or
// were behind before.
func elsewhere(r *cert.Record, w watcher, now time.Time) verdict {
	if len(w.targets) < 2 || r.Current == nil || !now.Before(r.Current.NotAfter) {
		return verdict{Done: true} // nothing is lost by it
	}
	others := slices.DeleteFunc(w.inOrder(r), func(name string) bool { return slices.Contains(r.Wave.Targets, name) })
	tried, last := false, true // last: nobody is left who could lose by it
	for _, name := range w.targets {
		inWave := slices.Contains(r.Wave.Targets, name)
		tried = tried || inWave && w.present[name]
		last = last && !(inWave && !slices.Contains(r.Wave.Behind, name)) && !(!inWave && w.sound(name, r))
	}
	switch {
	case tried && last:
		return verdict{Done: true}
	case len(others) > 0 && w.present[others[0]]:
		wave := w.add(*r.Wave, others[0], r)
		return verdict{Wave: &wave}
	}
	return verdict{}
}

// next is the wave after one that went well: a tenth of the targets, then all.
func next(r *cert.Record, w watcher) verdict {
	wanted := (len(w.targets) + 9) / 10
	if r.Wave.Number > 1 || wanted <= len(r.Wave.Targets) {
		return verdict{Done: true}
	}
	wave := *r.Wave
	wave.Number = 2
	for _, name := range w.inOrder(r) {
		if len(wave.Targets) < wanted && !slices.Contains(wave.Targets, name) {
			wave = w.add(wave, name, r)
		}
	}
	return verdict{Wave: &wave}
}
