package route

import (
	"hash/maphash"
	"iter"
	"math/bits"
	"slices"
)

// dict has values by their names, and is never changed: with and without return another
// one, which shares with it all but the way to what is different. So whoever has one may
// read it without a lock, and a change costs the same however many there are. It is a
// tree by the hash of the names, five bits a level.
type dict[V any] struct {
	root *branch[V]
	n    int
}

type branch[V any] struct {
	has  uint32
	kids []kid[V] // one for each bit of has
}

// kid is one of both.
type kid[V any] struct {
	down *branch[V]
	leaf *leaf[V]
}

// leaf has what has one hash.
type leaf[V any] struct {
	hash uint64
	name string
	of   V
	next *leaf[V]
}

const (
	hashBits  = 64
	levelBits = 5
)

// A hasher hashes names; all dicts of a table have the same.
type hasher func(string) uint64

func newHasher() hasher {
	seed := maphash.MakeSeed()
	return func(name string) uint64 { return maphash.String(seed, name) }
}

func (d dict[V]) len() int { return d.n }

func (d dict[V]) get(h hasher, name string) (of V, ok bool) {
	hash := h(name)
	for b, level := d.root, 0; b != nil; level += levelBits {
		bit := uint32(1) << (hash >> level & (1<<levelBits - 1))
		if b.has&bit == 0 {
			return of, false
		}
		k := &b.kids[bits.OnesCount32(b.has&(bit-1))]
		if k.leaf == nil {
			b = k.down
			continue
		}
		for l := k.leaf; l != nil; l = l.next {
			if l.hash == hash && l.name == name {
				return l.of, true
			}
		}
		return of, false
	}
	return of, false
}

// with is d with a value of a name.
func (d dict[V]) with(h hasher, name string, of V) dict[V] {
	root, more := d.root.set(&leaf[V]{hash: h(name), name: name, of: of}, 0)
	if more {
		d.n++
	}
	d.root = root
	return d
}

func (b *branch[V]) set(l *leaf[V], level int) (_ *branch[V], more bool) {
	bit := uint32(1) << (l.hash >> level & (1<<levelBits - 1))
	if b == nil {
		return &branch[V]{has: bit, kids: []kid[V]{{leaf: l}}}, true
	}
	at := bits.OnesCount32(b.has & (bit - 1))
	if b.has&bit == 0 {
		kids := make([]kid[V], 0, len(b.kids)+1)
		kids = append(append(append(kids, b.kids[:at]...), kid[V]{leaf: l}), b.kids[at:]...)
		return &branch[V]{has: b.has | bit, kids: kids}, true
	}
	old := b.kids[at]
	var now kid[V]
	switch {
	case old.down != nil:
		now.down, more = old.down.set(l, level+levelBits)
	case old.leaf.hash == l.hash:
		rest, was := old.leaf.without(l.name)
		l.next, more = rest, !was
		now.leaf = l
	default:
		below, _ := (*branch[V])(nil).set(old.leaf, level+levelBits)
		below, _ = below.set(l, level+levelBits)
		now.down, more = below, true
	}
	kids := slices.Clone(b.kids)
	kids[at] = now
	return &branch[V]{has: b.has, kids: kids}, more
}

// without is l without a name, and whether it was there.
func (l *leaf[V]) without(name string) (*leaf[V], bool) {
	if l == nil {
		return nil, false
	}
	if l.name == name {
		return l.next, true
	}
	rest, was := l.next.without(name)
	if !was {
		return l, false
	}
	one := *l
	one.next = rest
	return &one, true
}

// without is d without a name.
func (d dict[V]) without(h hasher, name string) dict[V] {
	root, was := d.root.cut(h(name), name, 0)
	if was {
		d.root, d.n = root, d.n-1
	}
	return d
}

func (b *branch[V]) cut(hash uint64, name string, level int) (_ *branch[V], was bool) {
	if b == nil {
		return nil, false
	}
	bit := uint32(1) << (hash >> level & (1<<levelBits - 1))
	if b.has&bit == 0 {
		return b, false
	}
	at := bits.OnesCount32(b.has & (bit - 1))
	now := b.kids[at]
	if now.down != nil {
		if now.down, was = now.down.cut(hash, name, level+levelBits); now.down != nil && len(now.down.kids) == 1 && now.down.kids[0].leaf != nil {
			now = now.down.kids[0]
		}
	} else {
		now.leaf, was = now.leaf.without(name)
	}
	if !was {
		return b, false
	}
	if now.down == nil && now.leaf == nil {
		if len(b.kids) == 1 {
			return nil, true
		}
		return &branch[V]{has: b.has &^ bit, kids: slices.Delete(slices.Clone(b.kids), at, at+1)}, true
	}
	kids := slices.Clone(b.kids)
	kids[at] = now
	return &branch[V]{has: b.has, kids: kids}, true
}

// all are the names and their values, in no order.
func (d dict[V]) all() iter.Seq2[string, V] {
	return func(yield func(string, V) bool) { d.root.each(yield) }
}

func (b *branch[V]) each(yield func(string, V) bool) bool {
	if b == nil {
		return true
	}
	for i := range b.kids {
		if !b.kids[i].down.each(yield) {
			return false
		}
		for l := b.kids[i].leaf; l != nil; l = l.next {
			if !yield(l.name, l.of) {
				return false
			}
		}
	}
	return true
}

// names are the names, in their order.
func (d dict[V]) names() []string {
	names := make([]string, 0, d.n)
	for name := range d.all() {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
