package strangers

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"
)

// waits is how many wait.
func (q *Queue) waits() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.waiting)
}

// TestQueue has each wait its turn, the network with the most lose its newest, and who gives up
// be forgotten.
func TestQueue(t *testing.T) {
	told := 0
	q := NewQueue(1, func(int, error) { told++ })
	leave, err := q.Enter(t.Context(), "192.0.2.1:1")
	if err != nil {
		t.Fatal(err)
	}
	type end struct {
		n   int
		err error
	}
	crowd, other := make(chan end, 2*waitMost), make(chan end, 1)
	giveUp, cancel := context.WithCancel(t.Context())
	defer cancel()
	enter := func(ctx context.Context, ends chan end, n int, remote string) {
		t.Helper()
		before := q.waits()
		go func() {
			leave, err := q.Enter(ctx, remote)
			ends <- end{n, err}
			if err == nil {
				leave()
			}
		}()
		if !await.True(time.Minute, func() bool { return q.waits() > before || before == waitMost && len(crowd) > 0 }) {
			t.Fatal("it does not wait")
		}
	}
	enter(giveUp, crowd, 0, "[2001:db8::]:1")
	for n := range waitMost - 1 {
		enter(t.Context(), crowd, n+1, "[2001:db8::1]:1")
	}
	enter(t.Context(), other, 0, "192.0.2.2:1")
	if e := <-crowd; e.n != waitMost-1 || !errors.Is(e.err, ErrQueue) {
		t.Errorf("%d goes with %v, and it is the turn of the newest", e.n, e.err)
	}
	if _, err := q.Enter(t.Context(), "[2001:db8::2]:1"); !errors.Is(err, ErrQueue) {
		t.Errorf("one more of the crowd: %v", err)
	}
	cancel()
	if e := <-crowd; e.n != 0 || !errors.Is(e.err, context.Canceled) {
		t.Errorf("who gave up is told %v", e.err)
	}
	leave()
	for n := range waitMost - 2 {
		if e := <-crowd; e.n != n+1 || e.err != nil {
			t.Errorf("the turn of %d is that of %d: %v", n+1, e.n, e.err)
		}
	}
	if e := <-other; e.err != nil {
		t.Errorf("who came from elsewhere: %v", e.err)
	}
	if q.waits() != 0 || q.places != 1 || told != 1 {
		t.Errorf("%d wait, there are %d places, and the operator was told %d times", q.waits(), q.places, told)
	}
}

// TestQueueRaces has many come, wait, give up and leave: no place is lost.
func TestQueueRaces(t *testing.T) {
	q := NewQueue(2, nil)
	var all sync.WaitGroup
	for n := range 400 {
		all.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Duration(n%7)*time.Millisecond)
			defer cancel()
			if leave, err := q.Enter(ctx, "192.0.2.1:1"); err == nil {
				<-ctx.Done()
				leave()
			}
		})
	}
	all.Wait()
	if q.waits() != 0 || q.places != 2 {
		t.Errorf("%d wait, and there are %d places", q.waits(), q.places)
	}
}
