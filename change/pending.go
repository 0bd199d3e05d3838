package change

import "time"

// maxPendingPrefixes is how many resyncs of parts wait before they become one of
// the whole.
const maxPendingPrefixes = 16

// smallPending is how many keys' room a watcher keeps that has nothing to tell.
const smallPending = 16

// pending is what waits for a watcher's reader: the newest notice of each key, in
// the order in which the keys first changed, and the resyncs. It is bounded: what
// is too much becomes a resync of all.
type pending struct {
	resyncs []Notice
	not     time.Time // no resync before
	keys    map[string]Notice
	order   []string
	most    int // keys at once
}

// add takes n. A resync replaces what it covers, and waits until not.
func (p *pending) add(n Notice, most int, not time.Time) {
	if n.Kind == Resync {
		p.addResync(n, not)
		return
	}
	key := n.Key.String()
	if before, ok := p.keys[key]; ok {
		p.keys[key] = newest(before, n)
		return
	}
	// The notice of a key goes on beside a resync that covers it: the resync may
	// be read late, and the key is wanted now.
	if len(p.order) >= most {
		p.addResync(Notice{Source: n.Source, Kind: Resync, Reason: Overflow, Epoch: n.Epoch, Time: n.Time}, time.Time{})
		return
	}
	if p.keys == nil {
		p.keys = map[string]Notice{}
	}
	p.keys[key] = n
	p.order = append(p.order, key)
	p.most = max(p.most, len(p.order))
}

func (p *pending) addResync(n Notice, not time.Time) {
	if len(p.resyncs) == 0 || not.Before(p.not) {
		p.not = not // the most urgent decides
	}
	for i, r := range p.resyncs {
		if n.Key.within(r.Key) {
			p.resyncs[i].Version = max(r.Version, n.Version)
			return
		}
	}
	if len(p.resyncs) >= maxPendingPrefixes {
		n.Key = nil
	}
	rest := p.resyncs[:0]
	for _, r := range p.resyncs {
		if !r.Key.within(n.Key) {
			rest = append(rest, r)
		}
	}
	p.resyncs = append(rest, n)
	order := p.order[:0]
	for _, key := range p.order {
		if p.keys[key].Key.within(n.Key) {
			delete(p.keys, key)
			continue
		}
		order = append(order, key)
	}
	p.order = order
}

// next takes the first notice out. If there is none yet, wait says for how long;
// 0: until something is added.
func (p *pending) next(now time.Time) (n Notice, wait time.Duration, ok bool) {
	if len(p.resyncs) > 0 {
		if wait = p.not.Sub(now); wait <= 0 {
			n, p.resyncs = p.resyncs[0], p.resyncs[1:]
			if len(p.resyncs) == 0 {
				p.resyncs, p.not = nil, time.Time{}
			}
			return n, 0, true
		}
	}
	if len(p.order) == 0 {
		return Notice{}, max(wait, 0), false
	}
	key := p.order[0]
	p.order = p.order[1:]
	n = p.keys[key]
	delete(p.keys, key)
	if len(p.order) == 0 && p.most > smallPending {
		*p = pending{resyncs: p.resyncs, not: p.not} // what grew in a burst is given back
	}
	return n, 0, true
}
