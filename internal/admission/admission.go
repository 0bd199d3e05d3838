// Package admission lets strangers shake hands with a listener: so many at once and so
// many a second as the processors can handle. The others wait a little, and who came last
// is the first to go on, since it is the likeliest to be still there: of many more than
// can be served some are, in time, in place of all too late.
package admission

import (
	"container/list"
	"context"
	"errors"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

const (
	// perProcessor is how many handshakes are under way for each processor: enough that
	// the way to the clients, there and back, leaves none of them idle.
	perProcessor = 32
	// longest is how long a handshake has its place; one that is silent, or far away, goes
	// on without.
	longest = 500 * time.Millisecond
)

var (
	// ErrStarting says that the gate is not open yet.
	ErrStarting = errors.New("the node is starting")
	// ErrTooMany says that there are more than can be served in time.
	ErrTooMany = errors.New("too many handshakes")
)

// A Gate is what stands before one listener. Make it with New; it is closed until Open.
// It is safe for concurrent use.
type Gate struct {
	open     atomic.Bool
	rate     *rate.Limiter
	patience time.Duration
	refused  atomic.Int64

	mu      sync.Mutex
	places  int       // free ones
	waiting list.List // of chan struct{}
}

// New makes a Gate for atOnce handshakes at most, fewer on few processors, and perSecond.
// Who would wait for longer than patience is refused.
func New(atOnce, perSecond int, patience time.Duration) *Gate {
	return &Gate{
		rate: rate.NewLimiter(rate.Limit(perSecond), perSecond), patience: patience,
		places: max(1, min(atOnce, perProcessor*runtime.GOMAXPROCS(0))),
	}
}

// Open opens the gate for good.
func (g *Gate) Open() { g.open.Store(true) }

// Refused counts those that were too many, since it was asked last.
func (g *Gate) Refused() int { return int(g.refused.Swap(0)) }

// Admit says why a handshake may not go on, or nil. It may wait. handshake is done when
// the handshake is over: see tls.ClientHelloInfo.Context.
func (g *Gate) Admit(handshake context.Context) error {
	if !g.open.Load() {
		return ErrStarting
	}
	began := time.Now()
	if !g.enter() {
		g.refused.Add(1)
		return ErrTooMany
	}
	var once sync.Once
	leave := func() { once.Do(g.leave) }
	turn := g.rate.Reserve()
	wait := turn.Delay()
	if wait+time.Since(began) > g.patience {
		turn.Cancel()
		leave()
		g.refused.Add(1)
		return ErrTooMany
	}
	time.Sleep(wait)
	late := time.AfterFunc(longest, leave)
	context.AfterFunc(handshake, func() {
		late.Stop()
		leave()
	})
	return nil
}

// enter waits for a place, and reports whether there is one.
func (g *Gate) enter() bool {
	g.mu.Lock()
	if g.places > 0 {
		g.places--
		g.mu.Unlock()
		return true
	}
	mine := make(chan struct{})
	at := g.waiting.PushBack(mine)
	g.mu.Unlock()
	timer := time.NewTimer(g.patience)
	defer timer.Stop()
	select {
	case <-mine:
		return true
	case <-timer.C:
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	select {
	case <-mine:
		return true
	default:
		g.waiting.Remove(at)
		return false
	}
}

// leave gives a place to who came last.
func (g *Gate) leave() {
	g.mu.Lock()
	defer g.mu.Unlock()
	last := g.waiting.Back()
	if last == nil {
		g.places++
		return
	}
	close(g.waiting.Remove(last).(chan struct{}))
}
