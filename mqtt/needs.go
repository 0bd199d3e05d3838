package mqtt

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
)

// need is what a session or a group may still ask for: the stored messages after
// seq that one of its filters takes.
type need struct {
	who     string // the key of the session, or what the group is called
	group   bool
	here    bool // its client is connected
	seq     uint64
	filters []string
}

// everything is the filter of who may need any message.
const everything = ""

// follower is up to where a stream was heard. It is safe for concurrent use.
type follower struct {
	mu    sync.Mutex
	heard uint64
	more  chan struct{} // closed, and made anew, when there is more
}

// reach notes that what is stored up to seq was heard.
func (f *follower) reach(seq uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.heard = max(f.heard, seq)
	if f.more != nil {
		close(f.more)
		f.more = nil
	}
}

// wait returns when what is stored up to seq was heard.
func (f *follower) wait(ctx context.Context, seq uint64) error {
	for {
		f.mu.Lock()
		if f.heard >= seq {
			f.mu.Unlock()
			return nil
		}
		if f.more == nil {
			f.more = make(chan struct{})
		}
		more := f.more
		f.mu.Unlock()
		select {
		case <-more:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// clean removes the stored messages that nobody can ask for any more. If it is
// full, sessions that say only now and then what they have had say so now.
func (a *account) clean(full bool) {
	if !a.conn.Room() || !a.cleaning.TryLock() {
		return
	}
	defer a.cleaning.Unlock()
	ctx, cancel := context.WithTimeout(a.ctx, openTimeout)
	defer cancel()
	if err := a.makeRoom(ctx, full); err != nil && a.ctx.Err() == nil {
		a.p.log().Debug("removing what no MQTT session needs", "account", a.name, "error", err)
	}
}

func (a *account) makeRoom(ctx context.Context, full bool) error {
	last := a.last.Load()
	behind := uint64(holdsBackAtMost)
	if full {
		behind = 0
	}
	for _, s := range a.local() {
		s.catchFloor(last, behind)
	}
	most := min(last, a.floor(), a.index.floor(time.Now(), a.p.run()))
	sift := time.Since(a.sifted) >= a.siftAgain && a.messages.size.Load() >= a.messages.most/2 && a.first()
	// What is not heard yet can only say that less is to be removed.
	if !sift && min(most, a.index.needed(most)) <= a.removed {
		return nil
	}
	needs, err := a.needs(ctx)
	if err != nil {
		return err
	}
	floor := most
	for _, n := range needs {
		floor = min(floor, n.seq)
		if slices.Contains(n.filters, everything) {
			most = min(most, n.seq)
		}
	}
	if floor > a.removed {
		if err := a.messages.Purge(ctx, jetstream.WithPurgeSequence(floor+1)); err != nil {
			return err
		}
		a.removed = floor
	}
	if !sift {
		return nil
	}
	return a.sift(ctx, floor, most, needs)
}

// first reports whether this node does what one node of those that are there is to
// do. It does not matter if two believe it.
func (a *account) first() bool {
	return !slices.ContainsFunc(a.index.others(time.Now(), a.p.run()), func(run string) bool { return run < a.p.run() })
}

// needs are those of all sessions that have a record, and of all groups. What the
// nodes said before about sessions without one may be relied upon then: a session
// whose record came later needs only what came later.
func (a *account) needs(ctx context.Context) ([]need, error) {
	// What was acknowledged before this is stored is before it in the stream.
	mark := &nats.Msg{Subject: a.at.session + a.p.run(), Header: nats.Header{jetstream.MsgTTLHeader: []string{removed.String()}}}
	seq, err := a.storeNow(&a.registry, mark)
	if err != nil {
		return nil, fmt.Errorf("marking the sessions: %w", err)
	}
	if err := a.index.heard.wait(ctx, seq); err != nil {
		return nil, fmt.Errorf("hearing of the sessions: %w", err)
	}
	needs := append(a.index.needs(), a.unforwarded(time.Now())...)
	// A consumer without a leader has a name and tells nothing.
	groups := map[string]bool{}
	names := a.messages.ConsumerNames(ctx)
	for name := range names.Name() {
		if strings.HasPrefix(name, a.at.share) {
			groups[name] = true
		}
	}
	consumers := a.messages.ListConsumers(ctx)
	for c := range consumers.Info() {
		if groups[c.Name] {
			delete(groups, c.Name)
			filter := c.Config.Metadata[filterKey] // absent: everything
			needs = append(needs, need{who: "$share/" + c.Config.Metadata[groupKey] + "/" + filter, group: true, seq: c.AckFloor.Stream, filters: []string{filter}})
		}
	}
	if err := cmp.Or(names.Err(), consumers.Err()); err != nil {
		return nil, fmt.Errorf("listing the groups: %w", err)
	}
	if len(groups) > 0 {
		return nil, fmt.Errorf("listing the groups: %d have no leader", len(groups))
	}
	return needs, nil
}

const (
	// siftParts is into how many parts of what may be removed a place is rounded,
	// and siftMost how many of them are enough of a subtree.
	siftParts, siftMost = 8, 6
	// siftWide is of how many subjects beside each other one pattern is tried.
	siftWide = 16
	// siftAtMost is how many purges are asked for at once.
	siftAtMost = 200
	// siftRest is how long it is left alone if there was nothing to remove.
	siftRest = 3 * time.Second
)

// sift removes messages between those that somebody needs. Up to floor there are
// none any more, and after most somebody may need each. A purge of a subject costs
// the engine the same for one message as for many, so that subjects are taken
// together as far as their places are alike.
func (a *account) sift(ctx context.Context, floor, most uint64, needs []need) error {
	a.sifted, a.siftAgain = time.Now(), 0
	info, err := a.messages.Info(ctx)
	if err != nil {
		return err
	}
	if int64(info.State.Bytes) < a.messages.most/2 || most <= floor {
		return nil
	}
	if info, err = a.messages.Info(ctx, jetstream.WithSubjectFilter(a.at.message+">")); err != nil {
		return err
	}
	w := newWants(needs)
	root := &twig{}
	for subject, count := range info.State.Subjects {
		rest := strings.TrimPrefix(subject, a.at.message)
		root.add(rest, w.place(rest, most, count), count)
	}
	p := &plan{floor: floor, most: most}
	p.add(root, strings.TrimSuffix(a.at.message, "."), nil)
	// A mark is its session's, which is here.
	marks := most
	for _, n := range needs {
		if n.here {
			marks = min(marks, n.seq)
		}
	}
	before := info.State.Msgs
	for _, one := range append(p.best(), purge{filter: a.at.mark + "*", upTo: marks}) {
		if err := a.messages.Purge(ctx, jetstream.WithPurgeSubject(one.filter), jetstream.WithPurgeSequence(one.upTo+1)); err != nil {
			return err
		}
	}
	if info, err = a.messages.Info(ctx); err != nil {
		return err
	}
	a.messages.size.Store(int64(info.State.Bytes))
	full := int64(info.State.Bytes) >= a.messages.most
	a.messages.full.Store(full)
	if len(p.purges) == 0 || full && info.State.Msgs >= before {
		a.siftAgain = siftRest
	}
	if full {
		a.blame(ctx, w)
	}
	return nil
}

// blame says who has most of what fills the account.
func (a *account) blame(ctx context.Context, w *wants) {
	var most *want
	for _, one := range w.all {
		if most == nil || one.count > most.count {
			most = one
		}
	}
	if most == nil {
		return
	}
	who, fix := fmt.Sprintf("the group %q", most.least.who), "have its clients come back and take them, or raise mqtt.max_stored"
	if !most.least.group {
		r, _, err := a.load(ctx, most.least.who)
		if err != nil || r.Gone {
			return
		}
		who = fmt.Sprintf("the session of client %q of %s", clip(r.ID), r.Owner)
		if r.Run == "" {
			who += ", away since " + r.Left.UTC().Format(time.RFC3339)
		}
		fix = "connect the client, or end its session: connect with its identifier and clean start, without a session expiry; or raise mqtt.max_stored"
	}
	text := fmt.Sprintf("publishers with QoS 1 and 2 are refused: %d MiB of stored messages wait, and most of them, of %q, for %s", a.messages.size.Load()>>20, clip(most.filter), who)
	if a.blamed.Swap(&doctor.Finding{Code: "MQTT-STORE-FULL", Severity: doctor.Problem, Subject: a.name, Text: text, Fix: fix}) == nil {
		a.p.log().Warn("an account has no more room for stored messages", "account", a.name, "error", text)
	}
}

// Check is what is wrong with the accounts that have clients on this node, as far
// as it is this node's to say.
func (p *Protocol) Check(context.Context) (all []doctor.Finding) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, o := range p.accounts {
		select {
		case <-o.done:
			if o.account == nil {
				continue
			}
			if found := o.blamed.Load(); found != nil {
				all = append(all, *found)
			}
		default:
		}
	}
	return all
}

// wants are needs by their filters: a message is taken by few filters, however many
// have them.
type wants struct {
	filters tree[*want]
	all     map[string]*want
}

// want is the need of all who have one filter.
type want struct {
	filter string
	least  need // of those who have it, the one that is most behind
	count  uint64
}

func newWants(needs []need) *wants {
	w := &wants{all: map[string]*want{}}
	for _, n := range needs {
		for _, filter := range n.filters {
			one := w.all[filter]
			if one == nil {
				one = &want{filter: filter, least: n}
				w.all[filter] = one
				w.filters.add(filter, one)
			}
			if n.seq < one.least.seq {
				one.least = n
			}
		}
	}
	return w
}

// place is up to where nobody needs count messages of a subject, at most most.
func (w *wants) place(subject string, most, count uint64) uint64 {
	topic, ok := mapping.Topic(subject)
	if !ok || !isName(topic) {
		return most // nobody is sent it
	}
	w.filters.match(topic, func(one *want) {
		most = min(most, one.least.seq)
		one.count += count
	})
	return most
}

// twig is what is known of a subject and of those below it.
type twig struct {
	below     map[string]*twig
	itself    bool   // it is a subject
	place     uint64 // then, up to where nobody needs it
	low, high uint64 // of all places
	count     uint64 // of messages
}

func (t *twig) note(low, high, count uint64) {
	if t.count == 0 {
		t.low, t.high = low, high
	}
	t.low, t.high, t.count = min(t.low, low), max(t.high, high), t.count+count
}

func (t *twig) add(subject string, place, count uint64) {
	t.note(place, place, count)
	for token := range strings.SplitSeq(subject, ".") {
		t = t.next(token)
		t.note(place, place, count)
	}
	t.itself, t.place = true, place
}

func (t *twig) next(token string) *twig {
	next := t.below[token]
	if next == nil {
		if t.below == nil {
			t.below = map[string]*twig{}
		}
		next = &twig{}
		t.below[token] = next
	}
	return next
}

// merge adds other to t, as if both were the same subject.
func (t *twig) merge(other *twig) {
	if other.itself {
		if t.itself {
			t.place = min(t.place, other.place)
		} else {
			t.itself, t.place = true, other.place
		}
	}
	t.note(other.low, other.high, other.count)
	for token, b := range other.below {
		t.next(token).merge(b)
	}
}

// plan is what is to be purged.
type plan struct {
	floor, most uint64
	purges      []purge
}

type purge struct {
	filter string
	upTo   uint64
	count  uint64
}

// part is in which part of what may be removed a place is.
func (p *plan) part(place uint64) uint64 {
	return (max(place, p.floor) - p.floor) * siftParts / (p.most - p.floor)
}

// alike reports whether all of t can be purged up to its lowest place: there is
// little more to be had.
func (p *plan) alike(t *twig) bool {
	low := p.part(t.low)
	return low >= siftMost || low == p.part(t.high)
}

// covered reports whether all of t is planned already, because cover is.
func (p *plan) covered(t, cover *twig) bool {
	if cover == nil || p.alike(cover) {
		return cover != nil
	}
	if t.itself && p.part(cover.place) < min(p.part(t.place), siftMost) {
		return false
	}
	for token, b := range t.below {
		if !p.covered(b, cover.below[token]) {
			return false
		}
	}
	return true
}

// add plans the purges of t, whose subject is path. What cover has, which was made
// of t and of those beside it, is planned as far as it is alike.
func (p *plan) add(t *twig, path string, cover *twig) {
	if p.part(t.high) == 0 || cover != nil && p.alike(cover) {
		return
	}
	if p.alike(t) && p.covered(t, cover) {
		return
	}
	if p.alike(t) {
		if t.itself {
			p.purges = append(p.purges, purge{path, t.low, t.count})
		}
		if len(t.below) > 0 {
			p.purges = append(p.purges, purge{path + ".>", t.low, t.count})
		}
		return
	}
	if t.itself && p.part(t.place) > 0 {
		p.purges = append(p.purges, purge{path, t.place, t.count})
	}
	var all *twig
	if cover == nil && len(t.below) > siftWide && !strings.HasSuffix(path, "*") {
		all = &twig{}
		for _, b := range t.below {
			all.merge(b)
		}
		p.add(all, path+".*", nil)
	}
	for token, b := range t.below {
		under := all
		if cover != nil {
			under = cover.below[token]
		}
		p.add(b, path+"."+token, under)
	}
}

// best are the purges that remove most.
func (p *plan) best() []purge {
	slices.SortFunc(p.purges, func(x, y purge) int { return cmp.Compare(y.count, x.count) })
	return slices.Clip(p.purges[:min(len(p.purges), siftAtMost)])
}
