package audit

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/fleetbus/fleetbus/admin"
)

// A Problem is something that is wrong with the audit.
type Problem struct {
	// Kind is "removed", "altered", "reordered" or "forged".
	Kind string `json:"kind"`
	Node string `json:"node,omitempty"`
	// Journal is the public key, Block the place in its chain, and Sequence the message
	// of the stream; zero if there is none.
	Journal  string `json:"journal"`
	Block    uint64 `json:"block,omitempty"`
	Sequence uint64 `json:"sequence,omitempty"`
	// First and Last are the numbers of the entries that it is about, if they are known.
	First uint64 `json:"first,omitempty"`
	Last  uint64 `json:"last,omitempty"`
	Text  string `json:"text"`
}

// Verified is what a Verifier found out of one journal.
type Verified struct {
	Node    string `json:"node"`
	Journal string `json:"journal"`
	// Blocks and Entries that are there, from entry First to Last.
	Blocks  int    `json:"blocks"`
	Entries uint64 `json:"entries"`
	First   uint64 `json:"first"`
	Last    uint64 `json:"last"`
	// Crashes counts beginnings without an end before: what waited then to be written
	// was lost.
	Crashes int       `json:"crashes,omitempty"`
	Since   time.Time `json:"since"`
	Until   time.Time `json:"until"`
	// Witnesses are the others that know of a block of this journal.
	Witnesses int `json:"witnesses"`
}

// A Verifier holds blocks against each other. Make it with NewVerifier, Add all blocks
// in the order of the stream, and call Finish.
type Verifier struct {
	state    admin.AuditState
	journals map[string]*journal
	problems []Problem
	anchors  []anchor
	keeps    []keep
	last     uint64
}

type journal struct {
	Verified
	started, stopped bool
	block, next      uint64
	hash             string
	firstBlock       uint64
	hashes           map[uint64]string
	previousTime     time.Time // of the block before the first
	firstSequence    uint64
	known            bool
	witnesses        map[string]bool
}

// anchor is what by says of a block of a journal.
type anchor struct {
	by, journal string
	sequence    uint64
	head        admin.AuditHead
}

// keep is a change of what is kept, which was so before.
type keep struct {
	at     time.Time
	before admin.AuditKeep
}

// slack is for clocks, and for how often the engine removes what is too old.
const slack = 10 * time.Minute

// NewVerifier verifies against what the nodes say of the stream.
func NewVerifier(state admin.AuditState) *Verifier {
	return &Verifier{state: state, journals: map[string]*journal{}}
}

// found notes a problem.
func (v *Verifier) found(p Problem) { v.problems = append(v.problems, p) }

// Add takes the next block of the stream.
func (v *Verifier) Add(stored admin.AuditBlock) {
	at := Problem{Journal: stored.Journal, Sequence: stored.Sequence, Node: v.state.Keys[stored.Journal]}
	if stored.Sequence <= v.last {
		at.Kind, at.Text = "reordered", "it comes after a later message"
		v.found(at)
		return
	}
	v.last = stored.Sequence
	b, hash, err := open(stored.Journal, stored.Data)
	if err != nil {
		at.Kind, at.Text = "altered", err.Error()
		v.found(at)
		return
	}
	at.Node, at.Block, at.First, at.Last = b.Node, b.Number, b.First, b.Next()-1
	j := v.journals[b.Journal]
	if j == nil {
		j = &journal{
			Verified: Verified{Node: b.Node, Journal: b.Journal, First: b.First, Since: b.Time}, firstBlock: b.Number, hashes: map[uint64]string{},
			previousTime: b.PreviousTime, firstSequence: stored.Sequence, witnesses: map[string]bool{}, next: b.First,
		}
		v.journals[b.Journal] = j
	} else if p, ok := follows(j, b, at); !ok {
		v.found(p)
	}
	if registered, ok := v.state.Keys[b.Journal]; ok && registered != b.Node {
		at.Kind, at.Text = "forged", fmt.Sprintf("it says to be of node %s, and its key is of %s", b.Node, registered)
		v.found(at)
	}
	j.Blocks++
	j.Entries += uint64(len(b.Entries))
	j.Last, j.Until = b.Next()-1, b.Time
	if b.Number >= j.block {
		j.block, j.next, j.hash = b.Number, b.Next(), hash
	}
	j.hashes[b.Number] = hash
	v.read(j, b, stored.Sequence)
}

// follows reports whether b is what comes next, or what is wrong.
func follows(j *journal, b *Block, at Problem) (Problem, bool) {
	switch {
	case b.Number == j.block+1 && b.Previous == j.hash && b.First == j.next:
		return at, true
	case b.Number <= j.block:
		at.Kind, at.Text = "reordered", fmt.Sprintf("it comes after block %d", j.block)
		if known, ok := j.hashes[b.Number]; ok {
			at.Kind, at.Text = "forged", "its key signed two blocks of that number"
			if known == b.Previous || known == j.hash {
				at.Text = "it is there twice"
			}
		}
	case b.Number > j.block+1:
		at.Kind, at.Text = "removed", fmt.Sprintf("before it, %d blocks with entries %d to %d are missing", b.Number-j.block-1, j.next, b.First-1)
		at.First, at.Last = j.next, b.First-1
	default:
		at.Kind, at.Text = "forged", fmt.Sprintf("it does not follow the block %d that is there", j.block)
	}
	return at, false
}

// read learns from a block what others are held against.
func (v *Verifier) read(j *journal, b *Block, sequence uint64) {
	for journal, head := range b.Anchors {
		v.anchors = append(v.anchors, anchor{by: b.Node, journal: journal, sequence: sequence, head: head})
	}
	for _, e := range b.Entries {
		switch {
		case e.Kind == admin.AuditStart:
			if j.started && !j.stopped {
				j.Crashes++
			}
			j.started, j.stopped = true, false
		case e.Kind == admin.AuditStop:
			j.stopped = true
		case e.What == KeepRequest && e.Kind == admin.AuditWrite && e.Result == ResultOK:
			if before, ok := keepBefore(e); ok {
				v.keeps = append(v.keeps, keep{e.Time, before})
			}
		}
	}
}

// Report is what Finish found.
type Report struct {
	Journals []Verified `json:"journals"`
	// Problems in the order of the stream; none if the audit is as it was written.
	Problems []Problem `json:"problems"`
	Entries  uint64    `json:"entries"`
}

// Finish holds journals against what others say of them.
func (v *Verifier) Finish() Report {
	for by, heads := range v.state.Heads {
		for journal, head := range heads {
			v.anchors = append(v.anchors, anchor{by: by, journal: journal, head: head})
		}
	}
	ends := map[string]anchor{} // the highest that is known and missing, by journal
	for _, a := range v.anchors {
		j := v.journals[a.journal]
		if j == nil {
			if a.head.Block > ends[a.journal].head.Block {
				ends[a.journal] = a
			}
			continue
		}
		if a.by != j.Node {
			j.witnesses[a.by] = true
		}
		j.known = true
		hash, there := j.hashes[a.head.Block]
		switch {
		case there && hash != a.head.Hash:
			v.found(Problem{Kind: "forged", Node: j.Node, Journal: a.journal, Block: a.head.Block, Sequence: a.sequence,
				Text: fmt.Sprintf("node %s saw another block of that number", a.by)})
		case !there && a.head.Block > j.block && a.head.Block > ends[a.journal].head.Block:
			ends[a.journal] = a
		}
	}
	for journal, a := range ends {
		v.missing(journal, a)
	}
	for _, j := range v.journals {
		v.beginning(j)
		if _, ok := v.state.Keys[j.Journal]; !ok && !j.known {
			v.found(Problem{Kind: "forged", Node: j.Node, Journal: j.Journal, Sequence: j.firstSequence, First: j.First, Last: j.Last,
				Text: "no node has registered its key, nor does any other journal know of it"})
		}
	}
	return v.report()
}

// missing notes that a journal ends before a block that somebody saw.
func (v *Verifier) missing(journal string, a anchor) {
	p := Problem{Kind: "removed", Node: a.head.Node, Journal: journal, Block: a.head.Block}
	j := v.journals[journal]
	if j == nil {
		if v.gone(a.head.Time) {
			return
		}
		p.First, p.Last, p.Text = 1, a.head.Next-1, fmt.Sprintf("the whole journal is missing: node %s saw its entries up to %d", a.by, a.head.Next-1)
	} else {
		p.Node, p.First, p.Last = j.Node, j.next, a.head.Next-1
		p.Text = fmt.Sprintf("its end is missing: node %s saw block %d, and the last one is %d", a.by, a.head.Block, j.block)
	}
	v.found(p)
}

// beginning notes that what came before the first block of a journal is gone, and was
// not old enough to be.
func (v *Verifier) beginning(j *journal) {
	if j.firstBlock == 1 || v.gone(j.previousTime) {
		return
	}
	v.found(Problem{Kind: "removed", Node: j.Node, Journal: j.Journal, Block: j.firstBlock - 1, Sequence: j.firstSequence, First: 1, Last: j.First - 1,
		Text: fmt.Sprintf("its beginning is missing: block %d was written at %s, and is to be kept", j.firstBlock-1, j.previousTime.Format(time.RFC3339))})
}

// gone reports whether the stream may have lost what was written at t by its bounds.
func (v *Verifier) gone(t time.Time) bool {
	if size := v.state.MaxSize; size > 0 && int64(v.state.Bytes)+2*maxBlock > size {
		return true
	}
	old := func(keep admin.AuditKeep, at time.Time) bool {
		return keep.MaxAge > 0 && t.Before(at.Add(slack-keep.MaxAge))
	}
	return old(v.state.AuditKeep, v.state.Time) || slices.ContainsFunc(v.keeps, func(k keep) bool { return old(k.before, k.at) || k.before.MaxSize > 0 && t.Before(k.at) })
}

func (v *Verifier) report() Report {
	r := Report{Journals: []Verified{}, Problems: v.problems}
	for _, key := range slices.Sorted(maps.Keys(v.journals)) {
		j := v.journals[key]
		j.Witnesses = len(j.witnesses)
		r.Journals = append(r.Journals, j.Verified)
		r.Entries += j.Entries
	}
	slices.SortStableFunc(r.Journals, func(a, b Verified) int {
		if a.Node != b.Node {
			return compare(a.Node, b.Node)
		}
		return a.Since.Compare(b.Since)
	})
	// What has no message of its own comes last.
	slices.SortStableFunc(r.Problems, func(a, b Problem) int { return compare(a.Sequence-1, b.Sequence-1) })
	if r.Problems == nil {
		r.Problems = []Problem{}
	}
	return r
}

func compare[T string | uint64](a, b T) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// String says what is wrong, and where.
func (p Problem) String() string {
	where := "node " + p.Node
	if p.Node == "" {
		where = "journal " + p.Journal
	}
	if p.Block > 0 {
		where += fmt.Sprintf(", block %d", p.Block)
	}
	if p.Sequence > 0 {
		where += fmt.Sprintf(" (message %d)", p.Sequence)
	}
	if p.Last >= p.First && p.First > 0 {
		where += fmt.Sprintf(", entries %d to %d", p.First, p.Last)
	}
	return fmt.Sprintf("%s: %s: %s", p.Kind, where, p.Text)
}
