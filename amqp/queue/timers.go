package queue

import (
	"container/heap"
	"context"
	"sync"
	"time"
)

// Timers wake queues when something is due. All queues of a node share one: each queue
// is in it once at most, whatever it has of messages that expire. NewTimers makes one; it
// is safe for concurrent use.
type Timers struct {
	clock func() time.Time

	mu     sync.Mutex
	due    dueHeap
	sooner chan struct{} // has room for one
}

// NewTimers makes timers that tell the time by clock; nil is the machine's. Somebody has
// to run Run, or to call Fire.
func NewTimers(clock func() time.Time) *Timers {
	if clock == nil {
		clock = time.Now
	}
	return &Timers{clock: clock, sooner: make(chan struct{}, 1)}
}

// now is the time in milliseconds since 1970.
func (t *Timers) now() int64 { return t.clock().UnixMilli() }

// due is when a queue wants to be woken.
type due struct {
	at int64
	q  *Queue
}

// dueHeap has the places of queues in it in their field timer, which is one more, so
// that 0 says that it is not in.
type dueHeap []due

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at < h[j].at }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].q.timer, h[j].q.timer = i+1, j+1
}

func (h *dueHeap) Push(x any) {
	d := x.(due)
	*h = append(*h, d)
	d.q.timer = len(*h)
}

func (h *dueHeap) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	(*h)[last] = due{}
	*h = (*h)[:last]
	d.q.timer = 0
	return d
}

// set has q woken at a time.
func (t *Timers) set(q *Queue, at int64) {
	t.mu.Lock()
	if q.timer == 0 {
		heap.Push(&t.due, due{at, q})
	} else {
		t.due[q.timer-1].at = at
		heap.Fix(&t.due, q.timer-1)
	}
	first := t.due[0].q == q
	t.mu.Unlock()
	if first {
		select {
		case t.sooner <- struct{}{}:
		default:
		}
	}
}

// remove has q woken no more.
func (t *Timers) remove(q *Queue) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if q.timer != 0 {
		heap.Remove(&t.due, q.timer-1)
	}
}

// Fire wakes what is due, and says how long it is until something else is; 0: nothing is
// waited for.
func (t *Timers) Fire() time.Duration {
	for {
		now := t.now()
		t.mu.Lock()
		if len(t.due) == 0 {
			t.mu.Unlock()
			return 0
		}
		if wait := t.due[0].at - now; wait > 0 {
			t.mu.Unlock()
			return time.Duration(wait) * time.Millisecond
		}
		d := heap.Pop(&t.due).(due)
		t.mu.Unlock()
		d.q.tick()
	}
}

// Run fires until ctx is done.
func (t *Timers) Run(ctx context.Context) {
	const idle = time.Hour
	timer := time.NewTimer(idle)
	defer timer.Stop()
	for {
		wait := t.Fire()
		if wait == 0 {
			wait = idle
		}
		timer.Reset(wait)
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-t.sooner:
		}
	}
}
