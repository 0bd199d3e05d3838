// Package links watches how the nodes of a fleet reach one another: each asks the
// others again and again, over the bus, and all together they judge.
package links

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
)

const (
	// canarySubject is asked of all nodes, again and again, and each answers.
	canarySubject  = "node.canary"
	canaryInterval = 500 * time.Millisecond
	// linkLost is how long a node may be unheard of before its link is down. The console
	// has half a second more to show it.
	linkLost = 5 * canaryInterval
	// toldOn is how many views of others a node tells on, for those who hear it and not them.
	toldOn = 8
	// Level is what this version can do on the bus; a node of a lower one lacks
	// something that others rely on. 1: changes.
	Level = 1
)

// canary is a question, and its answer.
type canary struct {
	Node  string `json:"node"`
	Count uint64 `json:"count"`
	// Time is the clock of who answers, in nanoseconds; an older node does not tell.
	Time int64 `json:"time,omitempty"`
	// Views are what is amiss as the one who asks sees it, its own first, and as others
	// told it. Who is not among them sees nothing amiss.
	Views []admin.LinkView `json:"views,omitempty"`
}

// Links is what a node knows of its peers by its own ears: whom it heard, and who
// answered it. The zero value knows of nobody. It is safe for concurrent use.
type Links struct {
	mu    sync.Mutex
	peers map[string]*peer
	sent  uint64
	at    time.Time // when the last question went out
	ask   chan struct{}
}

type peer struct {
	heard, answered time.Time
	rtt, skew       time.Duration
	// view is what it said itself, the last time that it was heard; told is what another
	// said that it said, at toldAt.
	view, told *admin.LinkView
	toldAt     time.Time
}

func (l *Links) peer(name string) *peer {
	if l.peers == nil {
		l.peers = map[string]*peer{}
	}
	if l.peers[name] == nil {
		l.peers[name] = &peer{}
	}
	return l.peers[name]
}

// Keep asks the other nodes whether they hear the one of that name, and answers
// them, until ctx is done. It measures the whole way of a message there and back, and
// tells them of which of the others it hears nothing.
func (l *Links) Keep(ctx context.Context, nc *nats.Conn, node string, others func() []string) error {
	inbox := nc.NewRespInbox()
	asked, err := nc.Subscribe(canarySubject, func(msg *nats.Msg) { l.answer(msg, node) })
	if err != nil {
		return fmt.Errorf("watching the links: %w", err)
	}
	defer asked.Unsubscribe()
	answers, err := nc.Subscribe(inbox, l.answered)
	if err != nil {
		return fmt.Errorf("watching the links: %w", err)
	}
	defer answers.Unsubscribe()
	l.mu.Lock()
	l.ask = make(chan struct{}, 1)
	soon := l.ask
	l.mu.Unlock()
	tick := time.NewTicker(canaryInterval)
	defer tick.Stop()
	for {
		l.excuse(time.Now())
		views := l.amiss(node, others(), time.Now())
		l.mu.Lock()
		l.sent++
		l.at = time.Now()
		question, err := json.Marshal(canary{Node: node, Count: l.sent, Views: views})
		l.mu.Unlock()
		if err == nil {
			// A connection that is down is what others see.
			_ = nc.PublishRequest(canarySubject, inbox, question)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-soon:
		}
	}
}

func (l *Links) answer(msg *nats.Msg, node string) {
	var q canary
	if json.Unmarshal(msg.Data, &q) != nil || q.Node == node {
		return
	}
	l.heard(q, time.Now())
	if answer, err := json.Marshal(canary{Node: node, Count: q.Count, Time: time.Now().UnixNano()}); err == nil {
		_ = msg.Respond(answer)
	}
}

// excuse has nobody be silent for a time in which this node itself did nothing: a process
// that the system held up would call all others lost. now is when it asks the next time.
func (l *Links) excuse(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	late := now.Sub(l.at) - canaryInterval
	if l.at.IsZero() || late < canaryInterval {
		return
	}
	for _, p := range l.peers {
		for _, at := range []*time.Time{&p.heard, &p.answered, &p.toldAt} {
			if !at.IsZero() && at.Before(l.at.Add(canaryInterval)) {
				*at = at.Add(late)
			}
		}
	}
}

// heard notes what a node asked, and said of its links.
func (l *Links) heard(q canary, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peer(q.Node)
	if now.Sub(p.heard) >= linkLost {
		select {
		case l.ask <- struct{}{}: // who is there again learns at once that it is heard
		default:
		}
	}
	p.heard, p.view = now, nil
	for i := range q.Views[:min(len(q.Views), 1+toldOn)] {
		v := &q.Views[i]
		switch {
		case v.Node == q.Node:
			p.view = v
		case l.peers[v.Node] != nil && v.Age >= 0 && v.Age < linkLost:
			other := l.peers[v.Node]
			other.told, other.toldAt = v, now.Add(-v.Age)
		}
	}
}

// own is the view of this node, whose others have these names; the lock is held.
func (l *Links) own(node string, others []string, now time.Time) admin.LinkView {
	v := admin.LinkView{Node: node}
	for _, name := range others {
		p := l.peer(name) // from now on it is known, and can be told of
		heard, answered := now.Sub(p.heard), now.Sub(p.answered)
		if heard < linkLost && answered < linkLost {
			continue
		}
		// Of a link that was cut, what comes last comes within one interval.
		if heard >= linkLost-canaryInterval {
			v.Unheard = append(v.Unheard, name)
		}
		if answered >= linkLost-canaryInterval {
			v.Unanswered = append(v.Unanswered, name)
		}
	}
	return v
}

// amiss is what a node tells the others: its own view, if there is something in it, and
// those of others whom it hears.
func (l *Links) amiss(node string, others []string, now time.Time) (all []admin.LinkView) {
	for _, v := range l.Views(node, others, now) {
		if !v.Told && len(v.Unheard)+len(v.Unanswered) > 0 && len(all) <= toldOn {
			all = append(all, v)
		}
	}
	return all
}

// Views are how this node and the others see their links, as far as this one knows: its
// own first. Of whom neither it nor another has heard, there is none.
func (l *Links) Views(node string, others []string, now time.Time) []admin.LinkView {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := []admin.LinkView{l.own(node, others, now)}
	for _, name := range others {
		p := l.peer(name)
		switch {
		case now.Sub(p.heard) < linkLost:
			v := admin.LinkView{Node: name}
			if p.view != nil {
				v = *p.view
			}
			v.Age = now.Sub(p.heard)
			all = append(all, v)
		case p.told != nil && now.Sub(p.toldAt) < linkLost:
			v := *p.told
			v.Age, v.Told = now.Sub(p.toldAt), true
			all = append(all, v)
		}
	}
	return all
}

// Lost reports whether a node was heard, and is not any more: nobody has to wait for its
// answer.
func (l *Links) Lost(name string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p, now := l.peers[name], time.Now()
	if p == nil || p.heard.IsZero() && p.answered.IsZero() {
		return false // it may be about to come
	}
	return now.Sub(p.heard) >= linkLost && now.Sub(p.answered) >= linkLost
}

func (l *Links) answered(msg *nats.Msg) {
	var a canary
	if json.Unmarshal(msg.Data, &a) != nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.peer(a.Node)
	p.answered = time.Now()
	if a.Count == l.sent {
		p.rtt = time.Since(l.at)
		if a.Time != 0 {
			// The answer was given half of the way ago.
			p.skew = time.Duration(a.Time-time.Now().UnixNano()) + p.rtt/2
		}
	}
}

// List is what is known of each of the other nodes of the fleet.
func (l *Links) List(names []string) []admin.Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	all := []admin.Link{}
	for _, name := range names {
		link := admin.Link{Node: name}
		if p := l.peers[name]; p != nil {
			link.Heard = now.Sub(p.heard) < linkLost
			link.Answered = now.Sub(p.answered) < linkLost
			link.RoundTrip, link.Skew = p.rtt, p.skew
		}
		all = append(all, link)
	}
	return all
}

// Judge says of every node of status how it stands on the bus, from what
// both ends of each link know.
func Judge(status *admin.Status) {
	answered := map[string]*admin.NodeInfo{}
	for i := range status.Nodes {
		n := &status.Nodes[i]
		if n.State == "up" {
			answered[n.Name] = n
		}
	}
	// Who asks the others and hears nobody cannot tell whether they are down.
	deaf := len(answered) <= 1 && len(status.Nodes) > 1
	for i := range status.Nodes {
		n := &status.Nodes[i]
		n.Unreached = []string{}
		for _, other := range status.Nodes {
			if other.Name != n.Name && !linked(answered, n.Name, other.Name) {
				n.Unreached = append(n.Unreached, other.Name)
			}
		}
		switch {
		case deaf && answered[n.Name] == nil:
			n.Bus = admin.BusUnknown
		case n.State == "up" && n.Level < Level:
			n.Bus = admin.BusTooOld
		case len(n.Unreached) == 0:
			n.Bus = admin.BusConnected
		case len(n.Unreached) < len(status.Nodes)-1:
			n.Bus = admin.BusCannotReachAll
		default:
			n.Bus = admin.BusBlocked
		}
	}
	status.Answered, status.Quorum = len(answered), len(status.Nodes)/2+1
}

// linked reports whether a message goes from a to b and back, as far as either end
// that answered knows.
func linked(answered map[string]*admin.NodeInfo, a, b string) bool {
	known := false
	for _, end := range [][2]string{{a, b}, {b, a}} {
		n := answered[end[0]]
		if n == nil {
			continue
		}
		i := slices.IndexFunc(n.Links, func(l admin.Link) bool { return l.Node == end[1] })
		if i < 0 {
			continue // it is too old to tell
		}
		if !n.Links[i].Heard || !n.Links[i].Answered {
			return false
		}
		known = true
	}
	return known
}

// Findings are the links that are down between nodes that are up, and who
// cannot see.
func Findings(status admin.Status) []doctor.Finding {
	var all []doctor.Finding
	for _, n := range status.Nodes {
		switch n.Bus {
		case admin.BusTooOld:
			all = append(all, doctor.Finding{Code: "NODE-OLD", Severity: doctor.Warning, Subject: n.Name,
				Text: fmt.Sprintf("node %s runs version %s, which does not tell how it is linked", n.Name, n.Version), Fix: "install the version of the others on it"})
		case admin.BusUnknown:
			all = append(all, doctor.Finding{Code: "NODE-DEAF", Severity: doctor.Problem, Subject: status.Node,
				Text: fmt.Sprintf("node %s hears no other node: it cannot tell whether they are down", status.Node), Fix: "look at its network and its port for other nodes, or ask another node: --server"})
			return all
		case admin.BusCannotReachAll:
			up := slices.DeleteFunc(slices.Clone(n.Unreached), func(name string) bool {
				return !slices.ContainsFunc(status.Nodes, func(o admin.NodeInfo) bool { return o.Name == name && o.State == "up" })
			})
			if n.State == "up" && len(up) > 0 {
				all = append(all, doctor.Finding{Code: "LINK-DOWN", Severity: doctor.Problem, Subject: n.Name,
					Text: fmt.Sprintf("node %s does not reach %s, and others do", n.Name, strings.Join(up, ", ")), Fix: "open the port for other nodes between them, both ways, and look at the log of each for refused certificates"})
			}
		}
	}
	return all
}
