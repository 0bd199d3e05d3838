//go:build linux

package chaos

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// A Result is what a run did and what became of all. Those of several runs can be added up.
type Result struct {
	Seed   uint64    `json:"seed"`
	Nodes  int       `json:"nodes"`
	Memory bool      `json:"memory,omitempty"` // disks were in memory
	Began  time.Time `json:"began"`
	// Injuries are the faults that happened.
	Injuries []Injury `json:"injuries"`
	// Protocols are what was published, by protocol.
	Protocols map[string]Tally `json:"protocols"`
	// Others counts what is not messages: changes, certificates, attempts at a ledger.
	Others Others `json:"others"`
	// Wrong is what was not kept that is promised. Of that, Late was not there in time: it is
	// no promise of a machine that does other work.
	Wrong []string `json:"wrong,omitempty"`
	Late  []string `json:"late,omitempty"`
}

// An Injury is a fault that happened.
type Injury struct {
	Fault string `json:"fault"`
	Where string `json:"where"`
	// Gaps are the longest times without an acknowledgement, of the worst client, by
	// protocol, and Whole is the time from its end until all was as before.
	Gaps  map[string]time.Duration `json:"gaps"`
	Whole time.Duration            `json:"whole"`
}

// A Tally counts messages. Lost, Twice, Disordered and Crossed are those that break a promise.
type Tally struct {
	Sent         int `json:"sent"`
	Acknowledged int `json:"acknowledged"`
	Refused      int `json:"refused"`
	Unknown      int `json:"unknown"`
	Came         int `json:"came"`
	Again        int `json:"again"` // came again, as they may
	Lost         int `json:"lost"`
	Twice        int `json:"twice"`
	Disordered   int `json:"disordered"`
	Crossed      int `json:"crossed"` // came to another account
}

func (t Tally) plus(o Tally) Tally {
	return Tally{
		t.Sent + o.Sent, t.Acknowledged + o.Acknowledged, t.Refused + o.Refused, t.Unknown + o.Unknown, t.Came + o.Came, t.Again + o.Again,
		t.Lost + o.Lost, t.Twice + o.Twice, t.Disordered + o.Disordered, t.Crossed + o.Crossed,
	}
}

// Others counts what is not messages.
type Others struct {
	Changes int `json:"changes"` // that were kept
	Notices int `json:"notices"` // that watchers heard
	Resyncs int `json:"resyncs"` // how often they were told to look again
	Orders  int `json:"orders"`  // that were placed at an authority
	Issued  int `json:"issued"`
	Decided int `json:"decided"` // attempts at a ledger, of which the outcome is known
	Unknown int `json:"unknown"`
	Held    int `json:"held"` // how often the lease was
}

func (o Others) plus(p Others) Others {
	return Others{
		o.Changes + p.Changes, o.Notices + p.Notices, o.Resyncs + p.Resyncs, o.Orders + p.Orders, o.Issued + p.Issued,
		o.Decided + p.Decided, o.Unknown + p.Unknown, o.Held + p.Held,
	}
}

// add appends the result to a file, a line each.
func (r *Result) add(path string) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encoding a result: %w", err)
	}
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("keeping a result: %w", err)
	}
	_, err = f.Write(append(data, '\n'))
	return errors.Join(err, f.Close())
}

// results are those in a file.
func results(path string) (all []Result, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 64<<20)
	for lines.Scan() {
		var r Result
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			return nil, fmt.Errorf("reading result %d of %q: %w", len(all)+1, path, err)
		}
		all = append(all, r)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("reading results: %w", err)
	}
	return all, nil
}

// Sum writes what the runs in files, that Options.Record named, did together, for each number
// of nodes.
func Sum(files []string, out io.Writer) error {
	byNodes := map[int][]Result{}
	for _, path := range files {
		all, err := results(path)
		if err != nil {
			return err
		}
		for _, r := range all {
			byNodes[r.Nodes] = append(byNodes[r.Nodes], r)
		}
	}
	for _, n := range slices.Sorted(maps.Keys(byNodes)) {
		all := byNodes[n]
		fmt.Fprintf(out, "nodes: %d; runs: %d, seeds", n, len(all))
		for _, r := range all {
			fmt.Fprintf(out, " %d", r.Seed)
		}
		fmt.Fprintln(out)
		sum(all).print(out)
		for _, r := range all {
			for _, text := range r.Wrong {
				fmt.Fprintf(out, "BROKEN: seed %d: %s\n", r.Seed, text)
			}
		}
		fmt.Fprintln(out)
	}
	return nil
}

// sum is what several runs did together.
func sum(all []Result) Result {
	total := Result{Protocols: map[string]Tally{}}
	for _, r := range all {
		total.Injuries = append(total.Injuries, r.Injuries...)
		for protocol, t := range r.Protocols {
			total.Protocols[protocol] = total.Protocols[protocol].plus(t)
		}
		total.Others = total.Others.plus(r.Others)
		total.Wrong = append(total.Wrong, r.Wrong...)
	}
	return total
}

// print prints what happened to all.
func (r Result) print(out io.Writer) {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nfault\ttimes")
	for _, p := range protocols() {
		fmt.Fprintf(w, "\tgap %s, median\tmost", p)
	}
	fmt.Fprintf(w, "\twhole, most\n")
	for _, f := range faults() {
		gaps := map[string][]time.Duration{}
		var whole time.Duration
		times := 0
		for _, i := range r.Injuries {
			if i.Fault != f.name {
				continue
			}
			times++
			whole = max(whole, i.Whole)
			for p, d := range i.Gaps {
				gaps[p] = append(gaps[p], d)
			}
		}
		if times == 0 {
			continue
		}
		fmt.Fprintf(w, "%s\t%d", f.what, times)
		for _, p := range protocols() {
			fmt.Fprintf(w, "\t%s\t%s", seconds(median(gaps[p])), seconds(slices.Max(append(gaps[p], 0))))
		}
		fmt.Fprintf(w, "\t%s\n", seconds(whole))
	}
	fmt.Fprintf(w, "all\t%d\n", len(r.Injuries))
	columns := []string{"sent", "acknowledged", "refused", "unknown", "came", "again", "lost", "twice", "out of order", "to another account"}
	fmt.Fprintf(w, "\nprotocol\t%s\n", strings.Join(columns, "\t"))
	for _, p := range protocols() {
		t := r.Protocols[p]
		fmt.Fprint(w, p)
		for _, n := range []int{t.Sent, t.Acknowledged, t.Refused, t.Unknown, t.Came, t.Again, t.Lost, t.Twice, t.Disordered, t.Crossed} {
			fmt.Fprintf(w, "\t%d", n)
		}
		fmt.Fprintln(w)
	}
	_ = w.Flush() // a reader that is gone reads nothing
	o := r.Others
	fmt.Fprintf(out, "\nchanges: %d kept, %d notices heard, told %d times to look again\n", o.Changes, o.Notices, o.Resyncs)
	fmt.Fprintf(out, "certificates: %d orders placed, %d certificates issued\n", o.Orders, o.Issued)
	fmt.Fprintf(out, "ledger: %d attempts decided, %d unknown; lease: held %d times\n", o.Decided, o.Unknown, o.Held)
	if len(r.Wrong) == 0 {
		fmt.Fprintf(out, "all that was acknowledged is there, once, in its order, and nowhere else\n")
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
