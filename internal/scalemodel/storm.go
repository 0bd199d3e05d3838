// Package scalemodel computes what more devices take than a machine can show, from what
// one node was measured to take: how many nodes, and how long a storm lasts.
package scalemodel

import (
	"cmp"
	"container/heap"
	"math/rand/v2"
	"time"
)

// A Storm is clients that all come to some nodes at once, because theirs are gone.
type Storm struct {
	Clients, Nodes int
	// Processors of a node, and the time that one of them takes for a login, and for an
	// attempt that is refused.
	Processors    int
	Login, Refuse time.Duration
	// RoundTrip between clients and nodes.
	RoundTrip time.Duration
	// PerSecond bounds the handshakes of a node. 0: it does not.
	PerSecond int
	// Gated says that a node has places for handshakes, as package admission gives them,
	// and refuses who waits for too long. Without, all are served in the order they came.
	Gated bool
	// Longest ends the simulation. Default: an hour.
	Longest time.Duration
}

// What clients and nodes do by default: see packages natsload and admission.
const (
	timeout               = 2 * time.Second
	pause, jitter         = 2 * time.Second, time.Second
	placesPerProcessor    = 32
	patience, longestHold = time.Second, 500 * time.Millisecond
	// trips are the round trips of a login after the first of them: handshake, and login.
	trips = 3
)

// An Outcome is what became of a storm.
type Outcome struct {
	// Half and All are when half of the clients were back, and all; All is 0 if some were
	// not by the end.
	Half, All time.Duration
	// Attempts counts those that did not come in, and Wasted the logins that a node did for
	// a client that had given up.
	Attempts, Wasted int
}

// An event happens at a time of the simulation.
type event struct {
	at time.Duration
	do func()
}

type events []event

func (e events) Len() int           { return len(e) }
func (e events) Less(i, j int) bool { return e[i].at < e[j].at }
func (e events) Swap(i, j int)      { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)        { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// A simulation has the time stand still while something happens.
type simulation struct {
	Storm
	now     time.Duration
	waiting events
	random  *rand.Rand
	back    int
	Outcome
}

func (s *simulation) after(d time.Duration, do func()) { heap.Push(&s.waiting, event{s.now + d, do}) }

// A node serves attempts.
type node struct {
	s *simulation
	// free is when each processor has done what it was given.
	free []time.Duration
	// places that are free, and who waits for one, the last of whom is served first.
	places int
	queue  []*attempt
	// next is when the rate allows another handshake.
	next time.Duration
}

// An attempt is a client's to log in at a node.
type attempt struct {
	c       *client
	n       *node
	started time.Duration
	over    bool // for the client
	left    bool // the queue
}

// A client goes through the nodes in an order of its own.
type client struct {
	s     *simulation
	order []int
	tried int
}

// Run simulates the storm. The same seed gives the same outcome.
func (s Storm) Run(seed uint64) Outcome {
	sim := &simulation{Storm: s, random: rand.New(rand.NewPCG(seed, seed))}
	nodes := make([]*node, s.Nodes)
	for i := range nodes {
		nodes[i] = &node{s: sim, free: make([]time.Duration, s.Processors), places: placesPerProcessor * s.Processors}
	}
	for range s.Clients {
		c := &client{s: sim, order: sim.random.Perm(s.Nodes)}
		// They notice within a moment.
		sim.after(time.Duration(sim.random.Int64N(int64(50*time.Millisecond))), func() { c.try(nodes) })
	}
	for len(sim.waiting) > 0 && sim.back < s.Clients && sim.now < cmp.Or(s.Longest, time.Hour) {
		e := heap.Pop(&sim.waiting).(event)
		sim.now = e.at
		e.do()
	}
	if sim.back == s.Clients {
		sim.All = sim.now
	}
	return sim.Outcome
}

func (c *client) try(nodes []*node) {
	a := &attempt{c: c, n: nodes[c.order[c.tried%len(c.order)]], started: c.s.now}
	c.tried++
	fail := func() {
		if a.over {
			return
		}
		a.over = true
		c.s.Attempts++
		if c.tried%len(c.order) == 0 {
			c.s.after(pause+time.Duration(c.s.random.Int64N(int64(jitter))), func() { c.try(nodes) })
		} else {
			c.try(nodes)
		}
	}
	c.s.after(timeout, fail)
	c.s.after(c.s.RoundTrip, func() { a.n.take(a, fail) })
}

// work has a processor do something, and says when it will be done.
func (n *node) work(d time.Duration) time.Duration {
	first := 0
	for i, at := range n.free {
		if at < n.free[first] {
			first = i
		}
	}
	n.free[first] = max(n.free[first], n.s.now) + d
	return n.free[first]
}

// take has an attempt come to the node.
func (n *node) take(a *attempt, fail func()) {
	if !n.s.Gated {
		n.serve(a)
		return
	}
	refuse := func() {
		n.work(n.s.Refuse)
		n.s.after(n.s.RoundTrip/2, fail)
	}
	if n.places > 0 {
		n.admit(a, refuse)
		return
	}
	n.queue = append(n.queue, a)
	n.s.after(patience, func() {
		if !a.left {
			a.left = true
			refuse()
		}
	})
}

// admit gives an attempt a place, unless the rate makes it wait for too long.
func (n *node) admit(a *attempt, refuse func()) {
	wait := time.Duration(0)
	if n.s.PerSecond > 0 {
		// A second's worth may come at once.
		n.next = max(n.next, n.s.now-time.Second)
		if wait = n.next - n.s.now; wait > patience {
			refuse()
			return
		}
		n.next += time.Second / time.Duration(n.s.PerSecond)
		wait = max(wait, 0)
	}
	n.places--
	n.s.after(wait, func() {
		over := n.serve(a)
		n.s.after(min(over-n.s.now, longestHold), func() {
			n.places++
			for len(n.queue) > 0 && n.places > 0 {
				last := n.queue[len(n.queue)-1]
				n.queue = n.queue[:len(n.queue)-1]
				if last.left {
					continue
				}
				last.left = true
				n.admit(last, func() { n.work(n.s.Refuse) })
			}
		})
	})
}

// serve logs an attempt in, and says when its handshake is over.
func (n *node) serve(a *attempt) time.Duration {
	done := n.work(n.s.Login) + n.s.RoundTrip*trips
	n.s.after(done-n.s.now, func() {
		if a.over {
			n.s.Wasted++
			return
		}
		a.over = true
		if n.s.back++; n.s.back == (n.s.Clients+1)/2 {
			n.s.Half = n.s.now
		}
	})
	return done
}
