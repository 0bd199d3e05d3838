package certmanager

import (
	"context"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/cert"
)

const (
	// clockAge is how long the ledger's clock is counted on from its last answer.
	clockAge = time.Minute
	// clockTime bounds a question for it.
	clockTime = 5 * time.Second
	// clockSkew is how far the clock of a manager may be from the ledger's until it is a
	// finding.
	clockSkew = time.Minute
)

// A ledgerClock is the ledger's. It goes on between two answers by the monotonic clock, so that
// nobody who sets that of this machine moves it. Its zero value does not know the time.
type ledgerClock struct {
	mu    sync.Mutex
	told  time.Time // by the ledger
	asked time.Time // when that was, monotonic
}

// now is the time, if it is known.
func (c *ledgerClock) now() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.told.Add(time.Since(c.asked)), !c.asked.IsZero()
}

// due reports whether the ledger is to be asked again.
func (c *ledgerClock) due() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Since(c.asked) > clockAge
}

// ask asks the ledger. If that does not answer, the clock goes on as it did.
func (c *ledgerClock) ask(ctx context.Context, l *cert.Ledgers) {
	ctx, cancel := context.WithTimeout(ctx, clockTime)
	defer cancel()
	now, err := l.Now(ctx)
	if err != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.told, c.asked = now, time.Now()
}

// ahead is how far the clock of this machine is ahead of the ledger's; 0 if that is not
// known, or does not matter.
func (s *session) ahead() time.Duration {
	now, ok := s.clock.now()
	if !ok || s.m.o.Now != nil {
		return 0
	}
	return s.m.wall().Sub(now)
}
