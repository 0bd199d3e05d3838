package strangers

import (
	"context"
	"errors"
	"slices"
	"sync"
)

// waitMost is how many wait in a Queue: so few that each has its turn before it, or its protocol,
// has waited for too long, at 20 a second, and fewer than Most, so that they do not fill a
// Room, where the oldest, whose turn is next, would have to go.
const waitMost = Most / 4

// ErrQueue says that too many wait.
var ErrQueue = errors.New("too many passwords are being verified")

// A Queue has so many at once do what is slow. The others wait, for as long as their contexts
// are good. When too many do, the network with the most of them loses its newest: who comes from
// elsewhere waits for no more than those before it. Make it with NewQueue. It is safe for
// concurrent use.
type Queue struct {
	mu      sync.Mutex
	places  int // free ones
	waiting []*waiter
	tell    teller
}

type waiter struct {
	network string
	turn    chan error // it is told once
}

// NewQueue makes a Queue of that many places. tell is as that of New.
func NewQueue(places int, tell func(count int, err error)) *Queue {
	return &Queue{places: places, tell: teller{tell: tell, why: ErrQueue}}
}

// Enter waits for the turn of who comes from that address, until ctx is done. Errors are ErrQueue
// and those of ctx.
func (q *Queue) Enter(ctx context.Context, remote string) (leave func(), err error) {
	w := &waiter{Network(remote), make(chan error, 1)}
	q.mu.Lock()
	if q.places > 0 {
		q.places--
		w.turn <- nil
	} else {
		q.waiting = append(q.waiting, w)
		q.thin()
	}
	q.mu.Unlock()
	select {
	case err = <-w.turn:
	case <-ctx.Done():
		err = ctx.Err()
		q.mu.Lock()
		if i := slices.Index(q.waiting, w); i >= 0 {
			q.waiting = slices.Delete(q.waiting, i, i+1)
		} else if <-w.turn == nil { // it had its turn meanwhile
			q.next()
		}
		q.mu.Unlock()
	}
	if err != nil {
		return nil, err
	}
	return q.leave, nil
}

func (q *Queue) leave() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.next()
}

// next gives a place to who has waited longest. It is called with mu held.
func (q *Queue) next() {
	if len(q.waiting) == 0 {
		q.places++
		return
	}
	q.waiting[0].turn <- nil
	q.waiting = slices.Delete(q.waiting, 0, 1)
}

// thin refuses one if too many wait. It is called with mu held.
func (q *Queue) thin() {
	if len(q.waiting) <= waitMost {
		return
	}
	counts, out := map[string]int{}, 0
	for _, w := range q.waiting {
		counts[w.network]++
	}
	for i, w := range q.waiting {
		if counts[w.network] >= counts[q.waiting[out].network] {
			out = i
		}
	}
	q.waiting[out].turn <- ErrQueue
	q.waiting = slices.Delete(q.waiting, out, out+1)
	q.tell.one()
}
