package admission

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestGate lets in as many at once as there are places, then who came last, and nobody who
// has waited for too long.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := New(2, 1000, time.Second)
		ctx, end := context.WithCancel(t.Context())
		if err := g.Admit(ctx); !errors.Is(err, ErrStarting) {
			t.Errorf("before it is open: %v", err)
		}
		g.Open()
		other, endOther := context.WithCancel(t.Context())
		for _, handshake := range []context.Context{ctx, other} {
			if err := g.Admit(handshake); err != nil {
				t.Fatal(err)
			}
		}
		var mu sync.Mutex
		var order []int
		var all sync.WaitGroup
		for i := range 3 {
			all.Go(func() {
				if err := g.Admit(t.Context()); err != nil {
					t.Errorf("%d: %v", i, err)
				}
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			})
			time.Sleep(time.Millisecond)
			synctest.Wait()
		}
		end()
		synctest.Wait()
		endOther()
		synctest.Wait()
		mu.Lock()
		if len(order) != 2 || order[0] != 2 || order[1] != 1 {
			t.Errorf("the order is %v", order)
		}
		mu.Unlock()
		// Those two are silent, and lose their places before the first has waited enough.
		all.Wait()
		if len(order) != 3 {
			t.Errorf("the order is %v", order)
		}
	})
}

// TestCrowd has more come than can be served: the places are always taken, nobody waits
// for longer than the patience, and those who are refused are counted.
func TestCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, takes, patience, comers = 4, 100 * time.Millisecond, time.Second, 400
		g := New(most, 1<<20, patience)
		g.Open()
		var mu sync.Mutex
		served, refused, atOnce := 0, 0, 0
		var all sync.WaitGroup
		for i := range comers {
			all.Go(func() {
				time.Sleep(time.Duration(i) * 5 * time.Millisecond)
				ctx, end := context.WithCancel(t.Context())
				defer end()
				came := time.Now()
				err := g.Admit(ctx)
				waited := time.Since(came)
				mu.Lock()
				if waited > patience {
					t.Errorf("one waited for %v", waited)
				}
				if err != nil {
					refused++
					mu.Unlock()
					return
				}
				served++
				if atOnce++; atOnce > most {
					t.Errorf("%d at once", atOnce)
				}
				mu.Unlock()
				time.Sleep(takes)
				mu.Lock()
				atOnce--
				mu.Unlock()
			})
		}
		all.Wait()
		// They come for two seconds and wait for one.
		if least := int(2 * time.Second / takes * most); served < least || served+refused != comers {
			t.Errorf("%d were served, of %d at least, and %d refused", served, least, refused)
		}
		if n := g.Refused(); n != refused {
			t.Errorf("%d were refused, and it says %d", refused, n)
		}
		if g.Refused() != 0 {
			t.Error("they are counted twice")
		}
	})
}

// TestRate holds a fleet to a rate: who has to wait for too long is refused.
func TestRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond = 10
		g := New(1000, perSecond, time.Second)
		g.Open()
		var mu sync.Mutex
		served := 0
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				ctx, end := context.WithCancel(t.Context())
				defer end()
				if g.Admit(ctx) == nil {
					mu.Lock()
					served++
					mu.Unlock()
				}
			})
		}
		all.Wait()
		// A second's at once, and those of the second that they wait; the others who
		// took a place meanwhile are fewer than there are.
		if served < perSecond || served > 2*perSecond+1 {
			t.Errorf("%d were served", served)
		}
	})
}

func TestPlaces(t *testing.T) {
	if n := New(1<<20, 1, time.Second).places; n != perProcessor*runtime.GOMAXPROCS(0) {
		t.Errorf("there are %d places", n)
	}
	if n := New(3, 1, time.Second).places; n != min(3, perProcessor*runtime.GOMAXPROCS(0)) {
		t.Errorf("there are %d places", n)
	}
}
