package certmanager

import (
	"hash/fnv"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

const (
	// shortLife is the lifetime under which half of it, not a third, must be left.
	shortLife = 10 * 24 * time.Hour
	// The pause after the first failure, its growth, and the longest.
	firstBackoff, backoffGrowth, maxBackoff = time.Minute, 5, 6 * time.Hour
	// What could not be delivered was paid for with an order: it is not tried soon.
	deliverBackoff, maxDeliverBackoff = time.Hour, 24 * time.Hour
)

// A plan is when the next generation of a certificate is wanted, and why.
type plan struct {
	At     time.Time
	Reason cert.Reason
	// Urgency is the share of its lifetime that is left at the time of the question:
	// the least is the most urgent. What is revoked comes before all, and what was
	// never obtained before what expired.
	Urgency float64
}

// planFor says when the next generation of r is wanted. It is false if none is, before
// something else happens.
func planFor(r *cert.Record, now time.Time) (plan, bool) {
	if r.Removed || r.Policy.Imported || r.Next != nil {
		return plan{}, false
	}
	var p plan
	switch {
	case r.Current == nil:
		p = plan{Reason: cert.ReasonNew, Urgency: -1}
	case r.Renew == cert.ReasonRevoked:
		p = plan{Reason: r.Renew, Urgency: -2}
	default:
		p = renewalOf(r.ID, r.Current)
		p.Urgency = max(0, float64(r.Current.NotAfter.Sub(now))/float64(lifetime(r.Current)))
		if r.Renew != "" {
			p.At, p.Reason = time.Time{}, r.Renew
		}
	}
	if f := r.Failure; f != nil && f.Next.After(p.At) {
		p.At = f.Next
	}
	if l := r.Lease; l != nil && l.Order != nil && l.Order.State == "" && l.Order.Lost > 0 { // managers die of it, and order again and again
		if at := l.Order.Placed.Add(backoff(r.ID, stepOrder, l.Order.Lost)); at.After(p.At) {
			p.At = at
		}
	}
	return p, true
}

func lifetime(b *cert.Bundle) time.Duration { return max(time.Second, b.NotAfter.Sub(b.NotBefore)) }

// renewalOf is when b is to be renewed: at the moment that its authority asks for, else
// when a third of its life is left, or half of a short one, and a little earlier, so
// that what was obtained at once is not renewed at once. Whatever the authority says, a
// twentieth is left.
func renewalOf(id string, b *cert.Bundle) plan {
	life := lifetime(b)
	last := b.NotAfter.Add(-life / 20)
	if b.Renewal != nil && !b.Renewal.Selected.IsZero() {
		if b.Renewal.Selected.Before(last) {
			return plan{At: b.Renewal.Selected, Reason: cert.ReasonARI}
		}
		return plan{At: last, Reason: cert.ReasonRenewal}
	}
	left := life / 3
	if life < shortLife {
		left = life / 2
	}
	jitter := time.Duration(share(id, b.Leaf) * float64(life/20))
	return plan{At: b.NotAfter.Add(-left - jitter), Reason: cert.ReasonRenewal}
}

// share is a number from 0 to 1, always the same for the same words.
func share(words ...string) float64 {
	h := fnv.New64a()
	for _, w := range words {
		h.Write([]byte(w + "\n"))
	}
	x := h.Sum64() // FNV's upper bits are poor for short words
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x>>11) / (1 << 53)
}

// selected is the moment in the window of a renewal that is taken, if the authority's
// answer did not choose one.
func selected(id string, r cert.Renewal) time.Time {
	return r.Start.Add(time.Duration(share(id, r.Start.String()) * float64(max(0, r.End.Sub(r.Start)))))
}

// backoff is the pause after the attempts'th failure in a row.
func backoff(id, step string, attempts int) time.Duration {
	first, longest := firstBackoff, maxBackoff
	if step == stepDeliver {
		first, longest = deliverBackoff, maxDeliverBackoff
	}
	pause := first
	for n := 1; n < attempts && pause < longest; n++ {
		pause *= backoffGrowth
	}
	pause = min(pause, longest)
	return pause + time.Duration(share(id, string(rune(attempts)))*float64(pause/4))
}
