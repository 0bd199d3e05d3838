package queue

import "slices"

// item is a message in a queue.
type item struct {
	m       *Message // nil: its body is only in the log
	place   uint64   // what is lower goes first
	seq     uint64   // in the log; 0: it is in none
	expires int64    // in milliseconds since 1970; 0: never
	size    int32    // of its body
	returns uint32   // how often it came back
	// priority is the list it is in; handed says that it had been handed out.
	priority uint8
	handed   bool
}

// What a message costs in memory beside its body, in bytes, or about that, and one whose
// body is only in the log: most are far then, and the log knows its number.
const itemBytes, readBytes = 256, 24

// cost is what it costs in memory, in bytes.
func (it *item) cost() int64 {
	if it.m == nil {
		return readBytes
	}
	return itemBytes + int64(it.size)
}

// list has the messages of one priority that are ready, in the order of their places. What
// came back had been at the front, so that all of back goes before all of fresh, and that
// before all of far, which is empty if fresh is.
type list struct {
	fresh   []item // from head on
	head    int
	back    []item // a heap
	far     []chunk
	distant int    // messages in far
	handed  uint64 // those in far up to that one had been handed out
}

// roomy is how many items are kept room for when there are none.
const roomy = 16

func (l *list) len() int { return len(l.fresh) - l.head + len(l.back) + l.distant }

// front is the first message; there is one.
func (l *list) front() *item {
	if len(l.back) > 0 {
		return &l.back[0]
	}
	return &l.fresh[l.head]
}

// push puts a message behind all others. Its body is only in the log if there are some that
// are far.
func (l *list) push(it item) {
	if it.m == nil && (l.distant > 0 || len(l.fresh)-l.head >= nearby) {
		l.pushFar(it)
		return
	}
	l.fresh = append(l.fresh, it)
}

func (l *list) pop() item {
	if len(l.back) > 0 {
		return l.popBack()
	}
	it := l.fresh[l.head]
	l.fresh[l.head] = item{}
	l.head++
	if l.distant > 0 {
		l.approach()
	}
	switch n := len(l.fresh) - l.head; {
	case n == 0 && cap(l.fresh) > roomy:
		l.fresh, l.head = nil, 0
	case n == 0:
		l.fresh, l.head = l.fresh[:0], 0
	case l.head > roomy && l.head > n:
		copy(l.fresh, l.fresh[l.head:])
		clear(l.fresh[n:])
		l.fresh, l.head = l.fresh[:n], 0
	}
	return it
}

// putBack puts a message in its old place.
func (l *list) putBack(it item) {
	l.back = append(l.back, it)
	for i := len(l.back) - 1; i > 0; {
		above := (i - 1) / 2
		if l.back[above].place < l.back[i].place {
			break
		}
		l.back[above], l.back[i] = l.back[i], l.back[above]
		i = above
	}
}

func (l *list) popBack() item {
	it, last := l.back[0], len(l.back)-1
	l.back[0] = l.back[last]
	l.back[last] = item{}
	l.back = l.back[:last]
	for i := 0; ; {
		least := i
		for below := 2*i + 1; below <= 2*i+2 && below < last; below++ {
			if l.back[below].place < l.back[least].place {
				least = below
			}
		}
		if least == i {
			break
		}
		l.back[i], l.back[least] = l.back[least], l.back[i]
		i = least
	}
	if last == 0 && cap(l.back) > roomy {
		l.back = nil
	}
	return it
}

// bySeq finds a message that never was handed out.
func (l *list) bySeq(seq uint64) *item {
	fresh := l.fresh[l.head:]
	i, ok := slices.BinarySearchFunc(fresh, seq, func(it item, seq uint64) int {
		switch {
		case it.seq < seq:
			return -1
		case it.seq > seq:
			return 1
		}
		return 0
	})
	if !ok {
		return nil
	}
	return &fresh[i]
}

// given is a message that was handed out and is not settled.
type given struct {
	item
	id   uint64
	sub  *Subscription // nil: it was got
	done bool
}

// unacked are the messages that are handed out, in the order of their ids.
type unacked struct {
	all  []given
	head int // what is below is settled
	done int // settled, from head on
}

func (u *unacked) len() int { return len(u.all) - u.head - u.done }

func (u *unacked) add(g given) { u.all = append(u.all, g) }

// take removes the message of an id.
func (u *unacked) take(id uint64) (given, bool) {
	live := u.all[u.head:]
	if len(live) == 0 {
		return given{}, false
	}
	// Mostly there are no gaps.
	i := int(id - live[0].id)
	if id < live[0].id || i >= len(live) || live[i].id != id {
		var ok bool
		i, ok = slices.BinarySearchFunc(live, id, func(g given, id uint64) int {
			switch {
			case g.id < id:
				return -1
			case g.id > id:
				return 1
			}
			return 0
		})
		if !ok {
			return given{}, false
		}
	}
	g := live[i]
	if g.done {
		return given{}, false
	}
	live[i] = given{id: id, done: true}
	u.done++
	u.tidy()
	return g, true
}

// tidy forgets what is settled: at the front, and everywhere if it is half.
func (u *unacked) tidy() {
	for u.head < len(u.all) && u.all[u.head].done {
		u.head++
		u.done--
	}
	switch n := len(u.all) - u.head; {
	case n == 0 && cap(u.all) > roomy:
		u.all, u.head = nil, 0
	case n == 0:
		u.all, u.head = u.all[:0], 0
	case u.done > roomy && u.done > n/2, u.head > roomy && u.head > n:
		kept := u.all[:0]
		for _, g := range u.all[u.head:] {
			if !g.done {
				kept = append(kept, g)
			}
		}
		clear(u.all[len(kept):])
		u.all, u.head, u.done = kept, 0, 0
	}
}
