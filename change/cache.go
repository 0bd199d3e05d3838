package change

import (
	"context"
	"sync"
)

// defaultCacheSize is how many values a Cache holds.
const defaultCacheSize = 10_000

// A Cache holds values that were read from a database, and forgets those that
// change. NewCache makes one. It is safe for concurrent use.
//
// It never holds a value that was read before the last notice of its key: a load
// that was under way when the notice came is given to those who waited for it,
// and not kept. While its Watcher does not hear, nothing is kept, and every Get
// reads.
type Cache[V any] struct {
	load func(context.Context, Key) (V, error)
	size int

	mu      sync.Mutex
	watcher *Watcher
	loads   map[string]*loading[V]
}

// loading is a value, or the wait for one.
type loading[V any] struct {
	key   Key
	done  chan struct{}
	value V
	err   error
}

// NewCache returns an empty Cache of at most size values, 10,000 if size is 0, that
// are read by load. Errors are not kept. Nothing is, until Follow hears.
func NewCache[V any](size int, load func(context.Context, Key) (V, error)) *Cache[V] {
	if size <= 0 {
		size = defaultCacheSize
	}
	return &Cache[V]{load: load, size: size, loads: map[string]*loading[V]{}}
}

// Get returns the value of key. Those who ask for the same key at the same time
// share one load, which ends with the ctx of the first of them.
func (c *Cache[V]) Get(ctx context.Context, key Key) (V, error) {
	text := key.String()
	c.mu.Lock()
	if c.watcher == nil || !c.watcher.nc.IsConnected() {
		clear(c.loads)
		c.mu.Unlock()
		return c.load(ctx, key)
	}
	l, there := c.loads[text]
	if !there {
		l = &loading[V]{key: key, done: make(chan struct{})}
		for other := range c.loads {
			if len(c.loads) < c.size {
				break
			}
			delete(c.loads, other)
		}
		c.loads[text] = l
	}
	c.mu.Unlock()
	if there {
		select {
		case <-l.done:
			return l.value, l.err
		case <-ctx.Done():
			var none V
			return none, ctx.Err()
		}
	}
	l.value, l.err = c.load(ctx, key)
	close(l.done)
	if l.err != nil {
		c.mu.Lock()
		if c.loads[text] == l {
			delete(c.loads, text)
		}
		c.mu.Unlock()
	}
	return l.value, l.err
}

// Follow forgets what w says has changed, until ctx is done or w ends; then it
// forgets everything. changed, if it is not nil, is called after each notice was
// taken. The error is w's.
func (c *Cache[V]) Follow(ctx context.Context, w *Watcher, changed func(Notice)) error {
	defer c.attach(nil)
	for {
		n, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if n.Reason == Started {
			c.attach(w)
		} else {
			c.forget(n)
		}
		if changed != nil {
			changed(n)
		}
	}
}

// attach begins to keep what w watches, with nothing.
func (c *Cache[V]) attach(w *Watcher) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.watcher = w
	clear(c.loads)
}

func (c *Cache[V]) forget(n Notice) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if n.Kind != Resync {
		delete(c.loads, n.Key.String())
		return
	}
	for text, l := range c.loads {
		if l.key.within(n.Key) {
			delete(c.loads, text)
		}
	}
}
