package bench

import (
	"cmp"
	"fmt"
	"math"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A Figure is one promise and what became of it.
type Figure struct {
	Name string  `json:"figure"`
	Unit string  `json:"unit"`
	Ours float64 `json:"ours"`
	// Peer and Ratio of ours to it, and the quartiles of the ratios of the rounds,
	// where there is a peer.
	Peer   float64   `json:"peer,omitempty"`
	Ratio  float64   `json:"ratio,omitempty"`
	Spread []float64 `json:"spread,omitempty"`
	// Target and Verdict, "met" or "not met", where there is a target.
	Target  string `json:"target,omitempty"`
	Verdict string `json:"verdict,omitempty"`
}

// aim gives f its target: what is promised is met if ok.
func (f Figure) aim(target string, ok bool) Figure {
	f.Target, f.Verdict = target, "not met"
	if ok {
		f.Verdict = "met"
	}
	return f
}

// atMost gives f a target for ours.
func (f Figure) atMost(limit float64) Figure {
	return f.aim(strings.TrimSpace(Significant(limit)+" "+f.Unit)+" or less", f.Ours <= limit)
}

// Significant writes three digits of f, and no fewer than it has before the
// point.
func Significant(f float64) string {
	if f >= 100 {
		return strconv.FormatFloat(f, 'f', 0, 64)
	}
	return strconv.FormatFloat(f, 'g', 3, 64)
}

// versus is the figure of what ours and the peer measured in each round.
func versus(name, unit string, ours, peer []float64) Figure {
	ratios := make([]float64, len(ours))
	for i := range ours {
		ratios[i] = ours[i] / peer[i]
	}
	f := Figure{Name: name, Unit: unit, Ours: percentile(slices.Clone(ours), 0.5), Peer: percentile(slices.Clone(peer), 0.5)}
	f.Ratio, f.Spread = f.Ours/f.Peer, []float64{percentile(ratios, 0.25), percentile(ratios, 0.75)}
	return f
}

// A Condition is something that a figure depends on.
type Condition struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Machine is the condition of where this process runs, and when.
func Machine() Condition {
	return Condition{"machine", fmt.Sprintf("%d CPUs, %s/%s, %s, on %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, runtime.Version(), time.Now().UTC().Format(time.DateOnly))}
}

// percentile is the value that q of all values do not exceed, 0 < q <= 1, by the
// nearest rank. It sorts values, of which there is at least one.
func percentile[T cmp.Ordered](values []T, q float64) T {
	slices.Sort(values)
	return values[max(0, int(math.Ceil(q*float64(len(values))))-1)]
}
