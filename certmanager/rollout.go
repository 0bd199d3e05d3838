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
	// Failed says why it is taken back. Empty: it is not.
	Failed string
}

// A watcher is what is known of a group's targets.
type watcher struct {
	// targets that are enrolled, in order, and which of them are present.
	targets []string
	present map[string]bool
	// seen returns what a target was last seen serving; nil if it never was.
	seen func(target string) *cert.Seen
}

// firstWave is whom the first wave of a new generation has; nil if all targets get it
// at once.
func firstWave(r *cert.Record, waves string, w watcher) []string {
	if r.Current == nil || waves == "all" || len(w.targets) < 2 {
		return nil
	}
	for _, name := range w.targets {
		if w.present[name] {
			return []string{name}
		}
	}
	return w.targets[:1]
}

// judge says how a roll-out goes on, after waited in its present wave. A wave lasts
// until all of its targets that are present were seen serving the generation, and one
// at least was. bound is how long one may take.
func judge(r *cert.Record, w watcher, waited, bound time.Duration, now time.Time) verdict {
	var served, missing []string
	for _, name := range r.Wave.Targets {
		if !slices.Contains(w.targets, name) {
			continue // removed meanwhile
		}
		seen := w.seen(name)
		switch {
		case seen != nil && seen.Generation == r.Next.Generation && seen.Error != "":
			return verdict{Failed: fmt.Sprintf("%s does not serve generation %d: %s", name, r.Next.Generation, seen.Error)}
		case serves(seen, r.Next):
			served = append(served, name)
		case w.present[name]:
			missing = append(missing, name)
		}
	}
	switch {
	case len(missing) > 0 && waited > bound:
		return verdict{Failed: fmt.Sprintf("%s was not seen serving generation %d in %s", strings.Join(missing, ", "), r.Next.Generation, bound)}
	case len(missing) > 0:
		return verdict{}
	case len(served) == 0:
		return elsewhere(r, w, now)
	}
	return next(r, w, now)
}

// serves reports whether a target was seen serving b.
func serves(seen *cert.Seen, b *cert.Bundle) bool {
	return seen != nil && seen.Error == "" && seen.Generation == b.Generation && strings.EqualFold(seen.Serial, b.Serial)
}

// elsewhere goes on when no target of a wave is there any more.
func elsewhere(r *cert.Record, w watcher, now time.Time) verdict {
	if len(w.targets) < 2 || r.Current == nil || !now.Before(r.Current.NotAfter) {
		return verdict{Done: true} // nothing is lost by it
	}
	for _, name := range w.targets {
		if w.present[name] && !slices.Contains(r.Wave.Targets, name) {
			return verdict{Wave: &cert.Wave{Number: r.Wave.Number, Targets: append(slices.Clone(r.Wave.Targets), name)}}
		}
	}
	return verdict{}
}

// next is the wave after one that went well: a tenth of the targets, then all.
func next(r *cert.Record, w watcher, now time.Time) verdict {
	wanted := (len(w.targets) + 9) / 10
	if r.Wave.Number > 1 || wanted <= len(r.Wave.Targets) {
		return verdict{Done: true}
	}
	wave := &cert.Wave{Number: 2, Targets: slices.Clone(r.Wave.Targets)}
	for _, there := range []bool{true, false} { // those who are present first
		for _, name := range w.targets {
			if len(wave.Targets) < wanted && w.present[name] == there && !slices.Contains(wave.Targets, name) {
				wave.Targets = append(wave.Targets, name)
			}
		}
	}
	return verdict{Wave: wave}
}
