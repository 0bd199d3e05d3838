package route

import (
	"reflect"
	"strings"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// targets are where bindings lead, with how many do.
type targets = dict[bound]

type bound struct {
	to target
	n  int
}

func toAlso(h hasher, t targets, to target) targets {
	b, _ := t.get(h, to.id())
	return t.with(h, to.id(), bound{to, b.n + 1})
}

func toLess(h hasher, t targets, to target) targets {
	if b, _ := t.get(h, to.id()); b.n > 1 {
		return t.with(h, to.id(), bound{to, b.n - 1})
	}
	return t.without(h, to.id())
}

func find(t targets, found func(target)) {
	for _, b := range t.all() {
		found(b.to)
	}
}

// directRule takes what has the key of a binding.
type directRule struct{ keys dict[targets] }

func (r directRule) with(h hasher, b *Binding) rule {
	old, _ := r.keys.get(h, b.Key)
	return directRule{r.keys.with(h, b.Key, toAlso(h, old, b.target()))}
}

func (r directRule) without(h hasher, b *Binding) rule {
	old, _ := r.keys.get(h, b.Key)
	if less := toLess(h, old, b.target()); less.len() > 0 {
		return directRule{r.keys.with(h, b.Key, less)}
	}
	return directRule{r.keys.without(h, b.Key)}
}

func (r directRule) match(h hasher, key string, _ func() frame.Table, found func(target)) {
	there, _ := r.keys.get(h, key)
	find(there, found)
}

// fanoutRule takes everything.
type fanoutRule struct{ to targets }

func (r fanoutRule) with(h hasher, b *Binding) rule { return fanoutRule{toAlso(h, r.to, b.target())} }

func (r fanoutRule) without(h hasher, b *Binding) rule {
	return fanoutRule{toLess(h, r.to, b.target())}
}

func (r fanoutRule) match(_ hasher, _ string, _ func() frame.Table, found func(target)) {
	find(r.to, found)
}

// topicRule takes what has a key that fits the pattern of a binding: words between dots,
// of which "*" is any one and "#" any number.
type topicRule struct{ root *twig }

// twig is where the patterns are that begin alike. nil is an empty one.
type twig struct {
	words dict[*twig] // but "*" and "#"
	one   *twig       // behind "*"
	any   *twig       // behind "#"
	here  targets
}

func (r topicRule) with(h hasher, b *Binding) rule {
	return topicRule{r.root.with(h, strings.Split(b.Key, "."), b.target())}
}

func (r topicRule) without(h hasher, b *Binding) rule {
	return topicRule{r.root.without(h, strings.Split(b.Key, "."), b.target())}
}

// with is t with a pattern.
func (t *twig) with(h hasher, words []string, to target) *twig {
	now := twig{}
	if t != nil {
		now = *t
	}
	switch {
	case len(words) == 0:
		now.here = toAlso(h, now.here, to)
	case words[0] == "*":
		now.one = now.one.with(h, words[1:], to)
	case words[0] == "#":
		now.any = now.any.with(h, words[1:], to)
	default:
		next, _ := now.words.get(h, words[0])
		now.words = now.words.with(h, words[0], next.with(h, words[1:], to))
	}
	return &now
}

// without is t without a pattern; nil if nothing is left.
func (t *twig) without(h hasher, words []string, to target) *twig {
	if t == nil {
		return nil
	}
	now := *t
	switch {
	case len(words) == 0:
		now.here = toLess(h, now.here, to)
	case words[0] == "*":
		now.one = now.one.without(h, words[1:], to)
	case words[0] == "#":
		now.any = now.any.without(h, words[1:], to)
	default:
		next, ok := now.words.get(h, words[0])
		if !ok {
			return t
		}
		if next = next.without(h, words[1:], to); next != nil {
			now.words = now.words.with(h, words[0], next)
		} else {
			now.words = now.words.without(h, words[0])
		}
	}
	if now.words.len() == 0 && now.here.len() == 0 && now.one == nil && now.any == nil {
		return nil
	}
	return &now
}

func (r topicRule) match(h hasher, key string, _ func() frame.Table, found func(target)) {
	var room [16]string
	words := room[:0]
	for word := range strings.SplitSeq(key, ".") {
		words = append(words, word)
	}
	m := topicMatch{h: h, words: words, found: found}
	m.walk(r.root, 0)
}

// topicMatch looks for the patterns that fit a key. After a "#" a place can be come to in
// many ways, and is looked at once.
type topicMatch struct {
	h     hasher
	words []string
	found func(target)
	seen  map[place]struct{}
}

type place struct {
	t *twig
	n int
}

func (m *topicMatch) walk(t *twig, n int) {
	if t == nil {
		return
	}
	if m.seen != nil {
		at := place{t, n}
		if _, was := m.seen[at]; was {
			return
		}
		m.seen[at] = struct{}{}
	}
	if n == len(m.words) {
		find(t.here, m.found)
	} else {
		if next, ok := t.words.get(m.h, m.words[n]); ok {
			m.walk(next, n+1)
		}
		m.walk(t.one, n+1)
	}
	if t.any != nil {
		if m.seen == nil {
			m.seen = map[place]struct{}{}
		}
		for ; n <= len(m.words); n++ {
			m.walk(t.any, n)
		}
	}
}

// headersRule takes what has the headers that a binding names.
type headersRule struct{ all dict[headersBinding] }

type headersBinding struct {
	to target
	headersMatch
}

// headersMatch is what a binding wants.
type headersMatch struct {
	any  bool // of them is enough
	want frame.Table
}

// matching reads the arguments of a binding.
func matching(arguments frame.Table) (m headersMatch, err error) {
	withX := false
	switch how := arguments["x-match"]; how {
	case nil, "all":
	case "any":
		m.any = true
	case "all-with-x":
		withX = true
	case "any-with-x":
		m.any, withX = true, true
	default:
		return m, frame.ChannelError(frame.PreconditionFailed, "Invalid x-match field value %q; expected all, any, all-with-x, or any-with-x", how)
	}
	m.want = frame.Table{}
	for name, value := range arguments {
		if name != "x-match" && (withX || !strings.HasPrefix(name, "x-")) {
			m.want[name] = value
		}
	}
	return m, nil
}

// takes reports whether a message with headers is wanted.
func (m *headersMatch) takes(headers frame.Table) bool {
	for name, want := range m.want {
		have, ok := headers[name]
		if ok = ok && (want == nil || equal(have, want)); ok == m.any {
			return ok
		}
	}
	return !m.any
}

// equal reports whether two values are, whatever width their numbers have.
func equal(a, b any) bool {
	if a, ok := whole(a); ok {
		b, ok := whole(b)
		return ok && a == b
	}
	return reflect.DeepEqual(a, b)
}

// whole is the value of a whole number.
func whole(v any) (int64, bool) {
	switch v := reflect.ValueOf(v); v.Kind() {
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64:
		return v.Int(), true
	case reflect.Uint8, reflect.Uint16, reflect.Uint32:
		return int64(v.Uint()), true
	}
	return 0, false
}

func (r headersRule) with(h hasher, b *Binding) rule {
	m, err := matching(b.Arguments)
	if err != nil {
		return r // Bind has refused it
	}
	return headersRule{r.all.with(h, b.id(), headersBinding{to: b.target(), headersMatch: m})}
}

func (r headersRule) without(h hasher, b *Binding) rule { return headersRule{r.all.without(h, b.id())} }

func (r headersRule) match(_ hasher, _ string, ask func() frame.Table, found func(target)) {
	if r.all.len() == 0 {
		return
	}
	headers := ask()
	for _, one := range r.all.all() {
		if one.takes(headers) {
			found(one.to)
		}
	}
}
