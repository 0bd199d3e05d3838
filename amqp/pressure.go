package amqp

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	// pressureEvery is how often it is looked whether publishers may go on.
	pressureEvery = 100 * time.Millisecond
	// refusedFor is how long publishers are blocked after the engine had no room.
	refusedFor = 5 * time.Second
)

// pressure is what this node has in memory of all accounts, and whether the engine has
// room: it blocks publishers. It is safe for concurrent use.
type pressure struct {
	most  int64
	alarm *alarm
	log   *slog.Logger
	held  atomic.Int64  // bytes
	since atomic.Int64  // when the engine last refused something, in nanoseconds; 0: never
	look  chan struct{} // has room for one

	blocked atomic.Bool
}

func newPressure(p *Protocol) *pressure {
	return &pressure{most: p.maxMemory(), alarm: &p.alarm, log: p.log(), look: make(chan struct{}, 1)}
}

// refused is told that the engine had no room for something.
func (p *pressure) refused(err error) {
	p.log.Debug("the engine did not store a message of AMQP", "error", err)
	p.since.Store(time.Now().UnixNano())
	p.lookNow()
}

// published has it be looked at once if there is too much.
func (p *pressure) published() {
	if p.full() && !p.blocked.Load() {
		p.lookNow()
	}
}

func (p *pressure) lookNow() {
	select {
	case p.look <- struct{}{}:
	default:
	}
}

// full reports whether there is no room for what nobody waits for.
func (p *pressure) full() bool { return p.held.Load() > p.most }

// reason is why nobody may publish, empty if everybody may. Who is blocked goes on when a
// fifth is free.
func (p *pressure) reason(now time.Time) string {
	most := p.most
	if p.blocked.Load() {
		most -= most / 5
	}
	since := p.since.Load()
	switch {
	case p.held.Load() > most:
		return "messages fill the memory that they may have on this node: amqp.max_memory"
	case since != 0 && now.Sub(time.Unix(0, since)) < refusedFor:
		return "the engine has no room to store messages: look at the disk, and at the account's limits"
	}
	return ""
}

// watch blocks publishers and lets them go on, until ctx is done.
func (p *pressure) watch(ctx context.Context) {
	tick := time.NewTicker(pressureEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-p.look:
		}
		reason := p.reason(time.Now())
		switch blocked := p.blocked.Load(); {
		case reason != "" && !blocked:
			p.blocked.Store(true)
			p.log.Warn("AMQP clients may not publish for now", "reason", reason)
			p.alarm.raise(reason)
		case reason == "" && blocked:
			p.blocked.Store(false)
			p.log.Info("AMQP clients may publish again")
			p.alarm.clear()
		}
	}
}
