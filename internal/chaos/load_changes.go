//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change"
)

const (
	// changeKeys is how many rows there are that change.
	changeKeys = 20
	// reconcile is how often watchers compare what they heard with what was kept.
	reconcile = 5 * time.Second
)

// changes are those of one source, and what watchers were told of them.
type changes struct {
	mu       sync.Mutex
	version  uint64
	recorded map[string]recorded // the last version of each key that is known to be kept
	watchers []*hearing
	flushed  int
}

// recorded is a version, and when it was announced.
type recorded struct {
	version uint64
	at      time.Time
}

// A hearing is what one watcher was told.
type hearing struct {
	name    string
	mu      sync.Mutex
	told    map[string]uint64 // the latest version of each key
	looked  time.Time         // the last resync of all
	notices int
	resyncs int
	leaks   int
	reasons map[change.Reason]int
}

// announce changes rows until ctx is done.
func (c *changes) announce(ctx context.Context, nc *nats.Conn, a *account) error {
	var p *change.Publisher
	if err := until(ctx, patience, "there is a publisher", func(ctx context.Context) (err error) {
		p, err = change.NewPublisher(ctx, nc, "rows", change.PublisherOptions{})
		return err
	}); err != nil {
		return err
	}
	defer p.Close()
	for pause(ctx, 20*time.Millisecond+rand.N(40*time.Millisecond)) == nil {
		c.mu.Lock()
		c.version++
		n := change.Notice{Key: change.Key{a.name, "row" + strconv.Itoa(rand.IntN(changeKeys))}, Kind: change.Update, Version: c.version}
		c.mu.Unlock()
		at := time.Now()
		if err := p.Announce(n); err != nil {
			return fmt.Errorf("announcing a change: %w", err)
		}
		// Nobody is promised anything before this.
		flush, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience/2)
		err := p.Flush(flush)
		cancel()
		if err != nil {
			continue
		}
		c.mu.Lock()
		c.recorded[n.Key.String()] = recorded{n.Version, at}
		c.flushed++
		c.mu.Unlock()
	}
	return nil
}

// watch hears until ctx is done.
func (c *changes) watch(ctx context.Context, nc *nats.Conn, h *hearing, a *account) error {
	var w *change.Watcher
	if err := until(ctx, patience, "there is a watcher", func(ctx context.Context) (err error) {
		w, err = change.NewWatcher(ctx, nc, "rows", "", change.WatcherOptions{Reconcile: reconcile, Jitter: -1})
		return err
	}); err != nil {
		return err
	}
	defer w.Close()
	for {
		n, err := w.Next(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("watching as %q: %w", h.name, err)
		}
		h.note(n, a)
	}
}

func (h *hearing) note(n change.Notice, a *account) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n.Kind == change.Resync {
		h.resyncs++
		h.reasons[n.Reason]++
		if len(n.Key) == 0 || len(n.Key) == 1 && n.Key[0] == a.name {
			h.looked = time.Now()
		} else if len(n.Key) == 2 {
			h.told[n.Key.String()] = max(h.told[n.Key.String()], n.Version)
		}
		return
	}
	h.notices++
	if n.Key[0] != a.name {
		h.leaks++
	}
	h.told[n.Key.String()] = max(h.told[n.Key.String()], n.Version)
}

// lacking says which kept change a watcher was neither told of nor told to look for.
func (c *changes) lacking() (wrong []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range c.watchers {
		h.mu.Lock()
		for key, r := range c.recorded {
			if h.told[key] < r.version && !h.looked.After(r.at) {
				wrong = append(wrong, fmt.Sprintf("%s was not told of %s at version %d, and last of %d", h.name, key, r.version, h.told[key]))
			}
		}
		if h.leaks > 0 {
			wrong = append(wrong, fmt.Sprintf("%s heard %d changes of another account", h.name, h.leaks))
		}
		h.mu.Unlock()
	}
	return wrong
}

func newChanges(names ...string) *changes {
	c := &changes{recorded: map[string]recorded{}}
	for _, name := range names {
		c.watchers = append(c.watchers, &hearing{name: name, told: map[string]uint64{}, reasons: map[change.Reason]int{}})
	}
	return c
}
