package mqtt

import "strings"

// tree finds the values whose topic filters take a topic. The zero value is empty.
// It is not safe for concurrent use.
type tree[V comparable] struct{ root branch[V] }

type branch[V comparable] struct {
	below  map[string]*branch[V]
	values map[V]struct{}
}

func (b *branch[V]) bare() bool { return len(b.below) == 0 && len(b.values) == 0 }

func (t *tree[V]) empty() bool { return t.root.bare() }

// add puts v at filter.
func (t *tree[V]) add(filter string, v V) {
	b := &t.root
	for level := range strings.SplitSeq(filter, "/") {
		next := b.below[level]
		if next == nil {
			if b.below == nil {
				b.below = map[string]*branch[V]{}
			}
			next = &branch[V]{}
			b.below[level] = next
		}
		b = next
	}
	if b.values == nil {
		b.values = map[V]struct{}{}
	}
	b.values[v] = struct{}{}
}

// remove takes v away from filter.
func (t *tree[V]) remove(filter string, v V) { t.root.remove(filter, v) }

func (b *branch[V]) remove(filter string, v V) {
	level, rest, more := strings.Cut(filter, "/")
	next := b.below[level]
	if next == nil {
		return
	}
	if more {
		next.remove(rest, v)
	} else {
		delete(next.values, v)
	}
	if next.bare() {
		delete(b.below, level)
	}
}

// match calls found for each value whose filter takes topic.
func (t *tree[V]) match(topic string, found func(V)) {
	t.root.match(topic, strings.HasPrefix(topic, "$"), found) // [MQTT-4.7.2-1]
}

func (b *branch[V]) match(topic string, plainOnly bool, found func(V)) {
	level, rest, more := strings.Cut(topic, "/")
	if !plainOnly {
		b.below["#"].all(found)
		b.below["+"].step(rest, more, found)
	}
	b.below[level].step(rest, more, found)
}

// step goes on below a level that took its part of the topic.
func (b *branch[V]) step(rest string, more bool, found func(V)) {
	if b == nil {
		return
	}
	if more {
		b.match(rest, false, found)
		return
	}
	b.all(found)
	b.below["#"].all(found) // [MQTT-4.7.1-1]
}

func (b *branch[V]) all(found func(V)) {
	if b == nil {
		return
	}
	for v := range b.values {
		found(v)
	}
}
