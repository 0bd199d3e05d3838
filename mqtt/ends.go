package mqtt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

// ends is where the streams of an account end, as their leaders say.
type ends struct {
	stored uint64 // what was acknowledged before is not after it
	kept   uint64 // the same of retained messages
}

// asking asks the leaders once for all who want to know at the same time, so that
// a storm of subscriptions is not one of questions.
type asking struct {
	mu   sync.Mutex
	next *asked // for who asks from now on
	busy bool
}

type asked struct {
	done chan struct{}
	ends
	err error
}

// ends asks where the streams end now.
func (a *account) ends(ctx context.Context) (ends, error) {
	q := &a.asking
	q.mu.Lock()
	if q.next == nil {
		q.next = &asked{done: make(chan struct{})}
	}
	mine := q.next
	if !q.busy {
		q.busy = true
		a.running.Go(a.answer)
	}
	q.mu.Unlock()
	select {
	case <-mine.done:
		return mine.ends, mine.err
	case <-ctx.Done():
		return ends{}, ctx.Err()
	}
}

// answer answers until nobody asks.
func (a *account) answer() {
	q := &a.asking
	for {
		q.mu.Lock()
		mine := q.next
		q.next = nil
		q.busy = mine != nil
		q.mu.Unlock()
		if mine == nil {
			return
		}
		mine.ends, mine.err = a.askEnds()
		close(mine.done)
	}
}

func (a *account) askEnds() (e ends, err error) {
	ctx, cancel := context.WithTimeout(a.ctx, requestTimeout)
	defer cancel()
	stored := make(chan error, 1)
	go func() {
		info, err := a.messages.Info(ctx)
		if err == nil {
			e.stored = info.State.LastSeq
		}
		stored <- err
	}()
	info, err := a.retained.Info(ctx)
	if err == nil {
		e.kept = info.State.LastSeq
	}
	if err = errors.Join(<-stored, err); err != nil {
		return e, fmt.Errorf("asking where streams end: %w", err)
	}
	return e, nil
}

// knowKept returns when the retained messages up to end are known here.
func (a *account) knowKept(ctx context.Context, end uint64) error {
	k := &a.keep
	soon, cancel := context.WithTimeout(ctx, sweepEvery)
	defer cancel()
	if k.heard.wait(soon, end) == nil {
		return nil
	}
	// The last ones may have been removed before they were heard.
	msg, err := a.retained.GetLastMsgForSubject(ctx, a.at.retained+">")
	switch {
	case errors.Is(err, jetstream.ErrMsgNotFound):
	case err != nil:
		return fmt.Errorf("reading the last retained message: %w", err)
	default:
		if err := k.heard.wait(ctx, min(end, msg.Sequence)); err != nil {
			return fmt.Errorf("hearing of retained messages: %w", err)
		}
	}
	k.heard.reach(end)
	return nil
}

// start lets new subscriptions of keys begin at end, and what is held back goes
// out. found are the retained messages that they are sent. What was acknowledged
// before end is not new to them: only a retained message that is not among those
// found was still on its way there, and is.
func (s *session) start(ctx context.Context, keys []string, end uint64, found []message) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	known := len(keys) > 0 && s.a.heard.wait(ctx, end) == nil // or something comes again
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asking = false
	if !known || s.reading || s.behind > 0 {
		return
	}
	shown := make(map[string]*message, len(found))
	for i := range found {
		shown[found[i].topic] = &found[i]
	}
	for i := len(s.queue) - 1; i >= 0; i-- {
		m := &s.queue[i]
		if m.seq > end || !m.retain || m.kept || m.shared != nil {
			continue
		}
		if kept, ok := shown[m.topic]; ok && (kept == nil || kept.repeats(m)) {
			shown[m.topic] = nil // what is before m is older than what it is shown
		} else {
			m.late = true
		}
	}
	for _, key := range keys {
		if sub, ok := s.rec.Subs[key]; ok {
			sub.From = max(sub.From, end)
			s.rec.Subs[key] = sub
		}
	}
}
