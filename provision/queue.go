package provision

import (
	"context"
	"sync"
)

const (
	// maxQueued bounds the requests that wait to be looked at, in all and from one
	// address.
	maxQueued, maxQueuedEach = 4096, 512
)

// A queue hands out what was put in so that every address has its turn: one that
// floods waits behind itself. It is safe for concurrent use.
type queue[T any] struct {
	mu    sync.Mutex
	all   int
	of    map[string][]T
	turns []string // addresses that have something, in the order of their turns
	more  chan struct{}
}

func newQueue[T any]() *queue[T] {
	return &queue[T]{of: map[string][]T{}, more: make(chan struct{}, maxQueued)}
}

// put reports whether there was room.
func (q *queue[T]) put(from string, v T) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.all >= maxQueued || len(q.of[from]) >= maxQueuedEach {
		return false
	}
	if len(q.of[from]) == 0 {
		q.turns = append(q.turns, from)
	}
	q.all++
	q.of[from] = append(q.of[from], v)
	q.more <- struct{}{} // there is room for as many as all
	return true
}

// take waits for something; false when ctx is done.
func (q *queue[T]) take(ctx context.Context) (v T, ok bool) {
	select {
	case <-q.more:
	case <-ctx.Done():
		return v, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	from := q.turns[0]
	q.turns = q.turns[1:]
	list := q.of[from]
	if v = list[0]; len(list) > 1 {
		q.of[from] = list[1:]
		q.turns = append(q.turns, from)
	} else {
		delete(q.of, from)
	}
	q.all--
	return v, true
}
