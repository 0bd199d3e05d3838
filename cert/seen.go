package cert

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/ledger"
)

const (
	// reportTime bounds one attempt to write a report, in which it is sent again after
	// reportAttempt: a thousand are written one after another. reportsAtOnce is how many
	// are written at once.
	reportTime    = time.Minute
	reportAttempt = 2 * time.Second
	reportsAtOnce = 8
	// reportPause is the longest pause between attempts, because a report is waited for.
	reportPause = 10 * time.Second
)

// An appender is what a store writes to: a *ledger.Ledger.
type appender interface {
	Append(ctx context.Context, subject string, expect uint64, data []byte) (uint64, error)
}

// keepReported writes what was seen to the ledger of reports, until ctx ends.
func (s *Store) keepReported(ctx context.Context, js jetstream.JetStream) {
	o := ledgerOptions(ReportStream, ReportPrefix)
	o.Attempt = reportAttempt
	l, err := openLedger(ctx, js, o, reportPause)
	if err != nil {
		return // who follows the records tells of it
	}
	poke(s.write) // of what an earlier Run did not come to
	for failures := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-s.write:
		}
		if err := s.report(ctx, l); err == nil {
			failures = 0
			continue
		} else if failures == 0 && ctx.Err() == nil {
			s.log.Warn("what is served could not be reported", "error", err)
		}
		_ = pause(ctx, failures, reportPause) // ctx is asked above
		failures++
		poke(s.write)
	}
}

// report writes all reports that are to be written. Those that fail are to be written
// still.
func (s *Store) report(ctx context.Context, l *ledger.Ledger) error {
	s.mu.Lock()
	var keys []certKey
	for key := range s.unwritten {
		keys = append(keys, key)
	}
	clear(s.unwritten)
	s.mu.Unlock()
	var mu sync.Mutex
	var failed error
	var writers sync.WaitGroup
	places := make(chan struct{}, reportsAtOnce)
	for _, g := range s.groups {
		if err := g.loadSeen(ctx, l); err != nil {
			failed = errors.Join(failed, err)
		}
	}
	for _, key := range keys {
		places <- struct{}{}
		writers.Go(func() {
			defer func() { <-places }()
			err := s.groups[key.group].report(ctx, l, key.id)
			if err == nil {
				return
			}
			s.mu.Lock()
			s.unwritten[key] = true
			s.mu.Unlock()
			mu.Lock()
			failed = errors.Join(failed, err)
			mu.Unlock()
		})
	}
	writers.Wait()
	if errors.Is(failed, ledger.ErrConflict) || errors.Is(failed, ledger.ErrUnknown) {
		for _, g := range s.groups {
			g.seen = nil // somebody else wrote, or an earlier attempt did
		}
	}
	return failed
}

// loadSeen reads what their ledger has of this target's reports, once.
func (g *group) loadSeen(ctx context.Context, l *ledger.Ledger) error {
	if g.seen != nil {
		return nil
	}
	prefix := SeenSubject(g.name, g.store.o.Key.Name, "")
	self, err := g.store.o.Key.Signer()
	if err != nil {
		return fmt.Errorf("reading what was reported of group %q: %w", g.name, err)
	}
	state := NewState([]Signer{self}, func(subject string) bool { return strings.HasPrefix(subject, prefix) })
	follower, err := ledger.NewFollower(state.Reports(), ledger.FollowOptions{Filter: []string{prefix + "*"}})
	if err != nil {
		return fmt.Errorf("reading what was reported of group %q: %w", g.name, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- follower.Run(ctx, l) }()
	select {
	case <-follower.CaughtUp():
		cancel()
		<-ended
		g.seen = state
		return nil
	case err := <-ended:
		if err == nil {
			err = ctx.Err()
		}
		return fmt.Errorf("reading what was reported of group %q: %w", g.name, err)
	}
}

// report writes what was seen last of a certificate, if the ledger says otherwise.
func (g *group) report(ctx context.Context, l appender, id string) error {
	if g.seen == nil {
		return fmt.Errorf("reporting certificate %q: it is not known what was reported before", id)
	}
	subject := SeenSubject(g.name, g.store.o.Key.Name, id)
	before, reported := g.seen.Seen(g.name, g.store.o.Key.Name, id)
	now := Seen{Version: version, Target: g.store.o.Key.Name, ID: id} // it was removed
	g.store.mu.Lock()
	if c := g.store.certs[certKey{g.name, id}]; c != nil && c.seen.Version != 0 {
		now = c.seen
	} else if !reported {
		g.store.mu.Unlock()
		return nil
	}
	g.store.mu.Unlock()
	at := g.store.o.Now().UTC()
	if reported {
		now.At = before.At
		if now == *before {
			return nil
		}
		if !at.After(before.At) { // the clock was set back
			at = before.At.Add(1)
		}
	}
	now.At = at
	data, err := g.store.o.Key.Sign(subject, now)
	if err != nil {
		return fmt.Errorf("reporting certificate %q: %w", id, err)
	}
	ctx, cancel := context.WithTimeout(ctx, reportTime)
	defer cancel()
	seq, err := l.Append(ctx, subject, g.seen.Version(subject), data)
	if err != nil {
		return fmt.Errorf("reporting certificate %q: %w", id, err)
	}
	return g.seen.Apply(seq, subject, data)
}
