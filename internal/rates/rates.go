// Package rates works out, from what meters count, how much goes on.
package rates

import (
	"cmp"
	"slices"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/broker"
)

// Most is how many rates are told of one by one; others are added up.
const Most = 500

// Rates are added up by name.
type Rates map[string]admin.Rate

// Add adds one to those of its name.
func (r Rates) Add(rate admin.Rate) {
	sum := r[rate.Name]
	sum.Name = rate.Name
	sum.Add(rate)
	r[rate.Name] = sum
}

// Busiest are those that are told of one by one, and the sum of the others.
func (r Rates) Busiest() (all []admin.Rate, others admin.Rate) {
	all = make([]admin.Rate, 0, len(r))
	for _, rate := range r {
		all = append(all, rate)
	}
	slices.SortFunc(all, func(a, b admin.Rate) int {
		return cmp.Or(cmp.Compare(b.InMsgs+b.OutMsgs, a.InMsgs+a.OutMsgs), cmp.Compare(b.Connections, a.Connections), cmp.Compare(a.Name, b.Name))
	})
	for _, rate := range all[min(len(all), Most):] {
		others.Add(rate)
	}
	return all[:min(len(all), Most)], others
}

// A Meter has counted since something began; Key tells it from all others, and what
// it counts is Name's.
type Meter struct {
	Key, Name string
	broker.Traffic
}

// Between are the rates of what after counted and before had not.
func Between(before, after []Meter, d time.Duration) Rates {
	first := map[string]broker.Traffic{}
	for _, m := range before {
		first[m.Key] = m.Traffic
	}
	all := Rates{}
	for _, m := range after {
		f := first[m.Key]
		// What was counted from the start again has counted since then.
		per := func(from, to int64) float64 {
			if to < from {
				from = 0
			}
			return float64(to-from) / d.Seconds()
		}
		all.Add(admin.Rate{
			Name: m.Name, Connections: m.Connections, InMsgs: per(f.InMsgs, m.InMsgs), OutMsgs: per(f.OutMsgs, m.OutMsgs),
			InBytes: per(f.InBytes, m.InBytes), OutBytes: per(f.OutBytes, m.OutBytes),
		})
	}
	return all
}
