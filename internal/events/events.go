// Package events takes what happens on a node to the bus. Nobody who tells of
// something waits: what is too much is counted, and the count is told.
package events

import (
	"context"
	"encoding/json"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"golang.org/x/time/rate"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/broker"
)

const (
	// eventsWaiting is how many events may wait to be published.
	eventsWaiting = 1 << 14
	// eventRate and eventBurst bound what a node tells of its principals in a second,
	// and at once: a whole fleet may come back when another node has died.
	eventRate, eventBurst = 4000, 50_000
	// refusalRate and refusalBurst bound what it tells of those that anybody can
	// be, so that they hide nothing else.
	refusalRate, refusalBurst = 50, 500
	// Told is how often a node says how much it did not tell, and looks for links
	// that came or went.
	Told = time.Second
)

// A Queue has what happens on a node on its way to the bus. Make it with New. It is
// safe for concurrent use.
type Queue struct {
	// Seen is told of every event, also of those that are too many to tell; it is set
	// before the first and returns at once. Nil: nobody is.
	Seen func(admin.Event)

	node             string
	queue            chan *admin.Event
	refusals, others *rate.Limiter

	mu      sync.Mutex
	dropped map[string]int // by account
	missed  int            // of any account

	// also is told of every event, and lost of those that nobody looked at.
	also func(admin.Event)
	lost func(kind admin.AuditKind, account string, n int)
}

// New makes the queue of the node of that name.
func New(node string) *Queue {
	return &Queue{
		node: node, queue: make(chan *admin.Event, eventsWaiting), dropped: map[string]int{},
		refusals: rate.NewLimiter(refusalRate, refusalBurst), others: rate.NewLimiter(eventRate, eventBurst),
	}
}

// Also has another told of everything, who waits for nothing: also of each event, and
// lost of those that were too many to be looked at. It is called before all else.
func (e *Queue) Also(also func(admin.Event), lost func(kind admin.AuditKind, account string, n int)) {
	e.also, e.lost = also, lost
}

// Tell has e told, unless there is too much to tell.
func (e *Queue) Tell(ev admin.Event) {
	e.see(ev)
	if e.may(ev.Kind, ev.Account) {
		e.put(ev)
		return
	}
	e.tellAlso(ev)
}

func (e *Queue) see(ev admin.Event) {
	if e.Seen != nil {
		e.Seen(ev)
	}
}

// tellAlso tells the other of an event, whether or not the bus hears of it.
func (e *Queue) tellAlso(ev admin.Event) {
	if e.also == nil {
		return
	}
	ev.Node = e.node
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	e.also(ev)
}

// May reports whether one more event of that kind may be told, and counts it if
// not: for those who first have to find out what is to be told.
func (e *Queue) May(kind admin.EventKind, account string) bool {
	if e.may(kind, account) {
		return true
	}
	e.see(admin.Event{Kind: kind, Account: account})
	if e.lost != nil && (kind == admin.EventRefused || kind == admin.EventLimit) {
		e.lost(admin.AuditRefused, account, 1)
	}
	return false
}

func (e *Queue) may(kind admin.EventKind, account string) bool {
	limiter := e.others
	if kind == admin.EventRefused || kind == admin.EventLimit {
		limiter = e.refusals
	}
	if !limiter.Allow() {
		e.drop(account, 1)
		return false
	}
	return true
}

// Put has e told, which May has allowed.
func (e *Queue) Put(ev admin.Event) {
	e.see(ev)
	e.put(ev)
}

func (e *Queue) put(ev admin.Event) {
	ev.Node = e.node
	if ev.Time.IsZero() {
		ev.Time = time.Now()
	}
	e.tellAlso(ev)
	select {
	case e.queue <- &ev:
	default:
		e.drop(ev.Account, 1)
	}
}

func (e *Queue) drop(account string, n int) {
	e.see(admin.Event{Kind: admin.EventDropped, Account: account, Count: n})
	e.mu.Lock()
	defer e.mu.Unlock()
	e.dropped[account] += n
}

// Miss counts what was lost before it was known whose it was.
func (e *Queue) Miss(n int) {
	e.see(admin.Event{Kind: admin.EventDropped, Count: n})
	if e.lost != nil {
		e.lost(admin.AuditLogin, "", n)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.missed += n
}

// gaps are the events that say what was dropped since it was called last. Each of
// accounts is told of what may have been its own.
func (e *Queue) gaps(accounts func() []identity.Account) []*admin.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	var all []*admin.Event
	gap := func(account string, n int, reason string) {
		all = append(all, &admin.Event{Kind: admin.EventDropped, Time: time.Now(), Node: e.node, Account: account, Count: n, Reason: reason})
	}
	for account, n := range e.dropped {
		gap(account, n, "there were more events than this node tells of")
	}
	if e.missed > 0 {
		const whose = "there were more than this node could read, of all accounts together"
		gap("", e.missed, whose)
		for _, a := range accounts() {
			gap(a.Name, e.missed, whose)
		}
	}
	clear(e.dropped)
	e.missed = 0
	return all
}

// Publish puts events on the bus until ctx is done. Each of accounts is told of what
// may have been its own and was lost.
func (e *Queue) Publish(ctx context.Context, nc *nats.Conn, accounts func() []identity.Account) {
	publish := func(ev *admin.Event) {
		data, err := json.Marshal(ev)
		if err == nil {
			err = nc.Publish(ev.Subject(), data)
		}
		if err != nil {
			e.drop(ev.Account, max(1, ev.Count))
		}
	}
	tick := time.NewTicker(Told)
	defer tick.Stop()
	for {
		select {
		case ev := <-e.queue:
			publish(ev)
		case <-tick.C:
			for _, ev := range e.gaps(accounts) {
				publish(ev)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Changed are the events between two looks at the links. A link all of whose
// connections are others now was down in between.
func Changed(before, now []broker.Link) []admin.Event {
	same := func(a, b broker.Link) bool { return a.Kind == b.Kind && a.Name == b.Name && a.Account == b.Account }
	lasts := func(l broker.Link, in []broker.Link) bool {
		i := slices.IndexFunc(in, func(o broker.Link) bool { return same(l, o) })
		return i >= 0 && slices.ContainsFunc(l.IDs, func(id uint64) bool { return slices.Contains(in[i].IDs, id) })
	}
	event := func(l broker.Link, state string) admin.Event {
		return admin.Event{Kind: admin.EventKind(l.Kind), State: state, Peer: l.Name, Account: l.Account, Address: l.Remote}
	}
	var all []admin.Event
	for _, l := range before {
		if !lasts(l, now) {
			all = append(all, event(l, admin.LinkDown))
		}
	}
	for _, l := range now {
		if !lasts(l, before) {
			all = append(all, event(l, admin.LinkUp))
		}
	}
	return all
}
