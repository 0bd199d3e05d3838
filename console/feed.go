package console

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
)

// rows are what a feed has to show, by a key that stays the same. Each is JSON.
type rows map[string]json.RawMessage

// put adds a row.
func (r rows) put(key string, v any) {
	if data, err := json.Marshal(v); err == nil {
		r[key] = data
	}
}

// A poller asks for what a feed shows, over the connection of somebody who may.
type poller func(ctx context.Context, nc *nats.Conn) (rows, error)

// A source is what a feed is made of.
type source struct {
	// needs is a subject that who looks at the feed has to be allowed to publish to.
	needs string
	every time.Duration
	// poll makes the poller of one feed, with a memory of its own.
	poll func() poller
	// own is the same for who is in an account of users, if there is something for them.
	ownNeeds string
	own      func(account string) func() poller
}

// feedKey is the key of a context of a poll whose value is the life of its feed.
type feedKey struct{}

// A life is how long a feed is looked at, what may run for it meanwhile, and whether this
// node may be asked rather than any.
type life struct {
	ctx   context.Context
	group *sync.WaitGroup
	here  bool
}

// client asks the fleet for a feed, by this node if it may be.
func (l life) client(nc *nats.Conn) *admin.Client { return clientOf(nc, l.here) }

func clientOf(nc *nats.Conn, here bool) *admin.Client {
	c := admin.New(nc)
	if here {
		c = c.Here()
	}
	return c
}

// feedOf is the life of the feed that a poll is of.
func feedOf(poll context.Context) life {
	of, _ := poll.Value(feedKey{}).(life) // it is always there
	return of
}

// feeds are those that somebody looks at, by name and rights.
type feeds struct {
	mu  sync.Mutex
	all map[string]*feed
}

// A feed is what all see who may do the same: it is asked for once, and written once,
// for all of them, and not at all while nobody looks.
type feed struct {
	name string // as browsers know it
	key  string
	poll poller

	mu      sync.Mutex
	looking map[*watcher]struct{}
	rows    rows
	seq     uint64 // of the last tick that was told
	at      time.Time
	told    time.Time
	delta   []byte // the last tick as an event
	full    []byte // everything as an event; nil until somebody wants it
	failed  *failure
	cancel  context.CancelFunc
}

// A failure is why there is nothing new, since when.
type failure struct {
	Feed  string    `json:"feed"`
	Error string    `json:"error"`
	Fix   string    `json:"fix,omitempty"`
	Since time.Time `json:"since"`
}

// A watcher is one stream to a browser. Its wake holds one element: a slow browser
// misses ticks and then gets everything, instead of a queue.
type watcher struct {
	visitor *visitor
	wake    chan struct{}
	subs    []*subscription
}

// A subscription is what a watcher has of a feed.
type subscription struct {
	*feed
	seen uint64
}

func (w *watcher) wakeUp() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// join has w look at a feed. ok is false if there is none of that name for it.
func (h *Handler) join(w *watcher, name string) (ok bool) {
	poll, every := h.pollerFor(name, w.visitor)
	if poll == nil {
		return false
	}
	key := name + "\x00" + w.visitor.rights
	h.feeds.mu.Lock()
	defer h.feeds.mu.Unlock()
	if h.feeds.all == nil {
		h.feeds.all = map[string]*feed{}
	}
	f := h.feeds.all[key]
	if f == nil {
		f = &feed{name: name, key: key, poll: poll, looking: map[*watcher]struct{}{}}
		h.feeds.all[key] = f
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.looking[w] = struct{}{}
	w.subs = append(w.subs, &subscription{feed: f})
	if f.cancel == nil {
		ctx, cancel := context.WithCancel(h.ctx)
		f.cancel = cancel
		h.running.Go(func() { h.run(ctx, f, every) })
	}
	return true
}

// leave has w look at nothing any more.
func (h *Handler) leave(w *watcher) {
	h.feeds.mu.Lock()
	defer h.feeds.mu.Unlock()
	for _, s := range w.subs {
		s.mu.Lock()
		delete(s.looking, w)
		if len(s.looking) == 0 {
			s.cancel()
			delete(h.feeds.all, s.key)
		}
		s.mu.Unlock()
	}
}

const (
	// pollTimeout is how long the fleet may take to answer for a feed.
	pollTimeout = 5 * time.Second
	// pollShare is which part of the time is spent on asking at most.
	pollShare = 4
	// quiet is how often those who look are told that nothing has changed.
	quiet = time.Second
)

// run asks again and again, until ctx is done.
func (h *Handler) run(ctx context.Context, f *feed, every time.Duration) {
	for {
		began := time.Now()
		if v := f.anyone(); v != nil {
			asked, cancel := context.WithTimeout(context.WithValue(ctx, feedKey{}, life{ctx, &h.running, v.mayHere()}), pollTimeout)
			found, err := f.poll(asked, v.Conn)
			cancel()
			// Whoever was asked for may have left meanwhile; another one is asked for next.
			if ctx.Err() == nil && (err == nil || !v.IsClosed()) {
				f.tick(h.epoch, found, err, time.Now())
			}
		}
		rest := max(every-time.Since(began), time.Since(began)/pollShare, every/10)
		select {
		case <-ctx.Done():
			return
		case <-time.After(rest):
		}
	}
}

// anyone is somebody who looks, for whom to ask.
func (f *feed) anyone() *visitor {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w := range f.looking {
		if !w.visitor.IsClosed() {
			return w.visitor
		}
	}
	return nil
}

// delta is what has changed, as browsers get it.
type delta struct {
	Feed string `json:"feed"`
	// At is the node's time, in milliseconds.
	At   int64    `json:"at"`
	Set  rows     `json:"set,omitempty"`
	Gone []string `json:"gone,omitempty"`
}

// event is one server-sent event. Its id carries the epoch: after a restart of the
// node a number that is larger is not newer.
func event(kind, epoch string, seq uint64, data any) []byte {
	text, err := json.Marshal(data)
	if err != nil {
		return nil
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "event: %s\nid: %s.%d\ndata: %s\n\n", kind, epoch, seq, text)
	return b.Bytes()
}

// tick takes what was found, and wakes those who look.
func (f *feed) tick(epoch string, found rows, err error, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := delta{Feed: f.name, At: now.UnixMilli(), Set: rows{}}
	if err == nil {
		for key, row := range found {
			if !bytes.Equal(f.rows[key], row) {
				d.Set[key] = row
			}
		}
		for key := range f.rows {
			if _, still := found[key]; !still {
				d.Gone = append(d.Gone, key)
			}
		}
		if f.rows != nil && f.failed == nil && len(d.Set)+len(d.Gone) == 0 && now.Sub(f.told) < quiet {
			f.at = now
			return
		}
	}
	f.told = now
	f.seq++
	f.full = nil
	if err != nil {
		// What was known stays, and is said to be old.
		if f.failed == nil {
			f.failed = &failure{Feed: f.name, Since: now}
		}
		f.failed.Error, f.failed.Fix = tell(err)
		f.delta = event("silent", epoch, f.seq, f.failed)
	} else {
		first := f.rows == nil
		f.failed, f.rows, f.at = nil, found, now
		f.delta = event("delta", epoch, f.seq, d)
		if first {
			f.delta = f.whole(epoch)
		}
	}
	for w := range f.looking {
		w.wakeUp()
	}
}

// whole is everything as an event; f's lock is held.
func (f *feed) whole(epoch string) []byte {
	if f.full == nil {
		if f.rows != nil {
			f.full = event("full", epoch, f.seq, delta{Feed: f.name, At: f.at.UnixMilli(), Set: f.rows})
		}
		if f.failed != nil {
			f.full = append(f.full, event("silent", epoch, f.seq, f.failed)...)
		}
	}
	return f.full
}

// next is what s has not seen.
func (s *subscription) next(epoch string) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	seen := s.seen
	s.seen = s.seq
	switch {
	case seen == s.seq:
		return nil
	case seen > 0 && seen+1 == s.seq:
		return s.delta
	}
	return s.whole(epoch)
}

// tell puts an error of the fleet in words, with what mends it.
func tell(err error) (what, fix string) {
	var refused *admin.Error
	switch {
	case errors.As(err, &refused):
		return refused.Text, refused.Fix
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, nats.ErrTimeout):
		return "no node answered in time", "look at the nodes; fleetbus status asks again"
	case errors.Is(err, nats.ErrNoResponders):
		return "nobody is there to answer", "look at the nodes; an older node does not know this question"
	case errors.Is(err, nats.ErrConnectionClosed):
		return "the session is over", "log in again"
	}
	return err.Error(), ""
}
