// Package region keeps the regions of a fleet in agreement. Each has a ledger of its
// own; the leader of each asks every other one, again and again, for what is new of the
// records that are the fleet's, and what a region changes for somebody who waits is
// pushed besides. The links between are the engine's gateways, and the messages are in
// an account that only nodes are in.
package region

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// Every is how often another region is asked for what is new.
	Every = time.Second
	// timeout is how long it may take to answer.
	timeout = 5 * time.Second
	// pageBytes bounds one answer.
	pageBytes = 256 << 10
	// behind is how often in a row another region may know less than it did, before
	// its ledger is taken for a new one.
	behind = 30
)

// Subject is where a region is asked for something.
func Subject(region, what string) string { return "region." + region + "." + what }

// question asks for the changes of a region after one.
type question struct {
	From  string          `json:"from"`
	After identity.Change `json:"after"`
	// Regions are those that who asks knows of.
	Regions []identity.Region `json:"regions"`
}

// answer has some of them, oldest first; none if there are no more.
type answer struct {
	Sequence uint64            `json:"sequence"`
	Changes  []identity.Change `json:"changes"`
	Regions  []identity.Region `json:"regions"`
}

// Options are what an Exchange is made of. All are required.
type Options struct {
	// Name of this region.
	Name      string
	Directory *identity.Directory
	// Leads reports whether this node is the one that asks.
	Leads func() bool
	// Addrs are host:port of this region's gateways.
	Addrs func() []string
	// Boxes are Region.Boxes of this one.
	Boxes func() map[string]string
	// Take makes what another region has hold here, and Learn what it knows of
	// regions. Both return when this node has acted on it.
	Take  func(ctx context.Context, from string, changes []identity.Change) error
	Learn func(ctx context.Context, from string, regions []identity.Region) error
	// Logger is told when a region comes or goes.
	Logger *slog.Logger
}

// An Exchange is one node's part. Make it with New. It is safe for concurrent use.
type Exchange struct {
	opts Options

	mu    sync.Mutex
	peers map[string]*peer
}

// peer is another region, as this node learns from it.
type peer struct {
	asking bool
	cursor identity.Change
	behind int
	state  admin.RegionLink
}

// New makes an Exchange.
func New(o Options) *Exchange { return &Exchange{opts: o, peers: map[string]*peer{}} }

// Keep asks and answers over nc, in the account of the regions, until ctx is done.
func (e *Exchange) Keep(ctx context.Context, nc *nats.Conn) error {
	var running sync.WaitGroup
	defer running.Wait()
	sub, err := nc.QueueSubscribe(Subject(e.opts.Name, "changes"), "region", func(msg *nats.Msg) {
		running.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			if err := e.answer(ctx, msg); err != nil && ctx.Err() == nil {
				e.opts.Logger.Warn("a region was not answered", "error", err)
			}
		})
	})
	if err != nil {
		return fmt.Errorf("answering other regions: %w", err)
	}
	defer sub.Unsubscribe()
	tick := time.NewTicker(Every)
	defer tick.Stop()
	for {
		if e.opts.Leads() {
			for _, r := range e.others() {
				running.Go(func() { e.ask(ctx, nc, r.Name) })
			}
		}
		e.forget()
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// others are the regions besides this one.
func (e *Exchange) others() []identity.Region {
	return slices.DeleteFunc(e.opts.Directory.Regions(), func(r identity.Region) bool { return r.Name == e.opts.Name })
}

// forget drops what is known of regions that are none any more, and of all if others
// ask now.
func (e *Exchange) forget() {
	leads, others := e.opts.Leads(), e.others()
	e.mu.Lock()
	defer e.mu.Unlock()
	for name, p := range e.peers {
		if known := slices.ContainsFunc(others, func(r identity.Region) bool { return r.Name == name }); !p.asking && (!leads || !known) {
			delete(e.peers, name)
		}
	}
}

// known are the regions as this one tells others, its own newest addresses and boxes among them.
func (e *Exchange) known() []identity.Region {
	all := e.opts.Directory.AllRegions()
	for i := range all {
		if all[i].Name == e.opts.Name {
			all[i].Addrs, all[i].Boxes = e.opts.Addrs(), e.opts.Boxes()
		}
	}
	return all
}

func (e *Exchange) answer(ctx context.Context, msg *nats.Msg) error {
	var q question
	if err := json.Unmarshal(msg.Data, &q); err != nil {
		return fmt.Errorf("reading a question: %w", err)
	}
	a := answer{Sequence: e.opts.Directory.Seq(), Changes: e.opts.Directory.Changes(q.After, pageBytes), Regions: e.known()}
	body, err := json.Marshal(a)
	if err != nil {
		return fmt.Errorf("encoding an answer: %w", err)
	}
	return errors.Join(msg.Respond(body), e.opts.Learn(ctx, q.From, q.Regions))
}

// ask takes all that is new in one region.
func (e *Exchange) ask(ctx context.Context, nc *nats.Conn, region string) {
	e.mu.Lock()
	p := e.peers[region]
	if p == nil {
		p = &peer{state: admin.RegionLink{Name: region, State: admin.RegionAway, Since: time.Now()}}
		e.peers[region] = p
	}
	if p.asking {
		e.mu.Unlock()
		return
	}
	p.asking = true
	e.mu.Unlock()
	took, err := e.catchUp(ctx, nc, region, p)
	e.mu.Lock()
	defer e.mu.Unlock()
	p.asking = false
	switch now := time.Now(); {
	case ctx.Err() != nil:
	case err != nil && p.state.State == admin.RegionLinked:
		p.state.State, p.state.Since, p.state.Current, p.state.RoundTrip = admin.RegionAway, now, false, 0
		e.opts.Logger.Warn("region is away", "region", region, "error", err)
	case err != nil:
		e.opts.Logger.Debug("region is away", "region", region, "error", err)
	default:
		if p.state.State != admin.RegionLinked {
			p.state.State, p.state.Since = admin.RegionLinked, now
			e.opts.Logger.Info("region is linked", "region", region)
		}
		p.state.Current, p.state.RoundTrip, p.state.Sequence = true, took, p.cursor.Version
	}
}

// catchUp asks until there is nothing new; it returns how long the last answer took.
// Nobody else touches the cursor of p meanwhile.
func (e *Exchange) catchUp(ctx context.Context, nc *nats.Conn, region string, p *peer) (time.Duration, error) {
	for {
		began := time.Now()
		a, err := e.request(ctx, nc, region, p.cursor)
		if err != nil {
			return 0, err
		}
		took := time.Since(began)
		if err := e.opts.Learn(ctx, region, a.Regions); err != nil {
			return 0, fmt.Errorf("learning of regions from %q: %w", region, err)
		}
		// A node that lags knows less than another one did. A ledger that was lost and
		// begun anew is read from its start.
		if p.behind++; a.Sequence >= p.cursor.Version {
			p.behind = 0
		} else if p.behind > behind {
			p.cursor, p.behind = identity.Change{}, 0
		}
		if len(a.Changes) == 0 {
			return took, nil
		}
		if err := e.opts.Take(ctx, region, a.Changes); err != nil {
			return 0, fmt.Errorf("taking what is new in region %q: %w", region, err)
		}
		last := a.Changes[len(a.Changes)-1]
		p.cursor = identity.Change{Subject: last.Subject, Version: last.Version}
	}
}

func (e *Exchange) request(ctx context.Context, nc *nats.Conn, region string, after identity.Change) (a answer, err error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	body, err := json.Marshal(question{From: e.opts.Name, After: after, Regions: e.known()})
	if err != nil {
		return a, fmt.Errorf("encoding a question: %w", err)
	}
	msg, err := nc.RequestWithContext(ctx, Subject(region, "changes"), body)
	if err != nil {
		return a, fmt.Errorf("asking region %q: %w", region, err)
	}
	if err := json.Unmarshal(msg.Data, &a); err != nil {
		return a, fmt.Errorf("reading the answer of region %q: %w", region, err)
	}
	return a, nil
}

// Tell has another region learn of regions at once.
func (e *Exchange) Tell(ctx context.Context, nc *nats.Conn, region string, regions []identity.Region) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	last := identity.Change{Version: 1<<64 - 1}
	body, err := json.Marshal(question{From: e.opts.Name, After: last, Regions: regions})
	if err != nil {
		return fmt.Errorf("encoding a question: %w", err)
	}
	if _, err := nc.RequestWithContext(ctx, Subject(region, "changes"), body); err != nil {
		return fmt.Errorf("telling region %q: %w", region, err)
	}
	return nil
}

// Links are how the other regions stand, as this node knows it if it is the one that
// asks; none if it is not.
func (e *Exchange) Links() []admin.RegionLink {
	e.mu.Lock()
	defer e.mu.Unlock()
	all := []admin.RegionLink{}
	for _, p := range e.peers {
		all = append(all, p.state)
	}
	slices.SortFunc(all, func(a, b admin.RegionLink) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Learned is what a region's records have to be after another one, from, told what it
// knows of regions: those that change. own is the region that learns.
func Learned(d *identity.Directory, own, from string, told []identity.Region) (changed []identity.Region) {
	for _, theirs := range told {
		mine, ok := d.Region(theirs.Name)
		if identity.CheckRegionName(theirs.Name) != nil {
			continue
		}
		if theirs.Name == own {
			// Who is removed is one no more, and the others are none of its own.
			if theirs.Removed && !mine.Removed && theirs.Joined.Equal(mine.Joined) {
				for _, r := range d.Regions() {
					r.Removed, r.RemovedAt = true, theirs.RemovedAt
					changed = append(changed, r)
				}
				return changed
			}
			continue
		}
		now := theirs
		if ok {
			now = identity.MergeRegions(mine, theirs)
			if theirs.Name == from && now.Joined.Equal(theirs.Joined) && len(theirs.Addrs) > 0 {
				now.Addrs, now.Boxes = theirs.Addrs, theirs.Boxes
			}
		}
		if !ok || now.Removed != mine.Removed || !now.Joined.Equal(mine.Joined) || !slices.Equal(now.Addrs, mine.Addrs) || !maps.Equal(now.Boxes, mine.Boxes) {
			changed = append(changed, now)
		}
	}
	return changed
}
