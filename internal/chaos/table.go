//go:build linux

package chaos

import (
	"fmt"
	"slices"
	"text/tabwriter"
	"time"
)

// table prints what happened to all, and what is wrong.
func (r *run) table(l *load) {
	w := tabwriter.NewWriter(r.out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nfault\ttimes")
	for _, p := range protocols() {
		fmt.Fprintf(w, "\tgap %s, median\tmost", p)
	}
	fmt.Fprintf(w, "\twhole, most\n")
	for _, f := range faults() {
		gaps := map[string][]time.Duration{}
		var took time.Duration
		times := 0
		for _, row := range r.rows {
			if row.fault != f.name {
				continue
			}
			times++
			took = max(took, row.took)
			for p, d := range row.gaps {
				gaps[p] = append(gaps[p], d)
			}
		}
		if times == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%d", f.what, times)
		for _, p := range protocols() {
			fmt.Fprintf(w, "\t%s\t%s", seconds(median(gaps[p])), seconds(slices.Max(gaps[p])))
		}
		fmt.Fprintf(w, "\t%s\n", seconds(took))
	}
	fmt.Fprintf(w, "\nprotocol\tlane\tsent\tacknowledged\trefused\tunknown\tcame\tagain\n")
	for _, lane := range l.book.of("") {
		sent, acked, denied, came, again := lane.counts()
		fmt.Fprintf(w, "%s\t%s of %s\t%d\t%d\t%d\t%d\t%d\t%d\n", lane.protocol, lane.name, lane.account.name, sent, acked, denied, sent-acked-denied, came, again)
	}
	_ = w.Flush() // a reader that is gone reads nothing
	c := l.changes
	c.mu.Lock()
	fmt.Fprintf(r.out, "\nchanges: %d kept", c.flushed)
	for _, h := range c.watchers {
		h.mu.Lock()
		fmt.Fprintf(r.out, "; %s: %d notices, %d resyncs %v", h.name, h.notices, h.resyncs, h.reasons)
		h.mu.Unlock()
	}
	c.mu.Unlock()
	placed, signed := l.certs.office.count()
	n, m := 0, 0
	for name := range placed {
		n, m = n+placed[name], m+signed[name]
	}
	h := l.history
	h.mu.Lock()
	fmt.Fprintf(r.out, "\ncertificates: %d orders placed, %d certificates issued\nledger: %d attempts decided, %d unknown; lease: held %d times\n", n, m, len(h.decided), len(h.unknown), len(h.held)/2)
	h.mu.Unlock()
	if len(r.wrong) == 0 {
		fmt.Fprintf(r.out, "all that was acknowledged is there, once, in its order, and nowhere else\n")
	}
	for _, text := range r.wrong {
		fmt.Fprintf(r.out, "BROKEN: %s\n", text)
	}
}

// median is the middle one, the upper of two.
func median(all []time.Duration) time.Duration {
	if len(all) == 0 {
		return 0
	}
	all = slices.Clone(all)
	slices.Sort(all)
	return all[len(all)/2]
}
