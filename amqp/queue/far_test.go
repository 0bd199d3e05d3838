package queue

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestFar has a list be what a plain one is, however many of its messages are far.
func TestFar(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var l list
		var plain, out []item
		next := item{place: 1, seq: 1}
		t.Repeat(map[string]func(*rapid.T){
			"push": func(t *rapid.T) {
				step := rapid.Uint64Range(1, 1<<40).Draw(t, "step")
				size := rapid.Int32Range(0, 1<<30).Draw(t, "size")
				for i := range rapid.IntRange(1, nearby).Draw(t, "n") {
					next.place += step%3 + 1
					next.seq += step
					next.size, next.expires = size, 0
					if i%5 == 0 {
						next.size, next.expires = int32(i), int64(step)
					}
					l.push(next)
					plain = append(plain, next)
				}
			},
			"pop": func(t *rapid.T) {
				for range rapid.IntRange(1, nearby).Draw(t, "n") {
					if len(plain) == 0 {
						break
					}
					if it := l.pop(); it != plain[0] {
						t.Fatalf("%+v, want %+v", it, plain[0])
					}
					out, plain = append(out, plain[0]), plain[1:]
				}
			},
			"put back": func(t *rapid.T) {
				if len(out) == 0 {
					t.Skip("none is out")
				}
				it := out[len(out)-1]
				out = out[:len(out)-1]
				l.putBack(it)
				plain = slices.Insert(plain, 0, it)
			},
			"": func(t *rapid.T) {
				if l.len() != len(plain) {
					t.Fatalf("%d, want %d", l.len(), len(plain))
				}
				if len(plain) > 0 && *l.front() != plain[0] {
					t.Fatalf("%+v is first, want %+v", *l.front(), plain[0])
				}
			},
		})
	})
}

// TestFarHanded has what is far know that it was handed out in another life.
func TestFarHanded(t *testing.T) {
	var l list
	const n, handed = 4 * nearby, 3 * nearby
	for i := range uint64(n) {
		l.push(item{place: i + 1, seq: i + 1})
	}
	l.handed = handed
	for i := range l.fresh {
		l.fresh[i].handed = true
	}
	for i := range uint64(n) {
		if it := l.pop(); it.handed != (i < handed) {
			t.Fatalf("%d was handed out: %v", i, it.handed)
		}
	}
}
