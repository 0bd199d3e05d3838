// Package hub links accounts of a node to a central MQTT 5.0 broker that somebody
// else runs, in place of the mesh: what clients of one node announce and publish, the
// clients of all nodes on that broker hear.
//
// What passes is stored in a stream of the account before it goes out, and what comes
// is stored in the engine before the hub is told so. Every message has its origin and
// a number. By the origin a link knows its own messages, and what came from a hub goes
// to no hub again: there is no loop. By the numbers it knows what it has already, and
// what the hub has lost, which it asks the origin for again.
package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// The pause before the next attempt to connect, which doubles.
	backoff, maxBackoff = 100 * time.Millisecond, 3 * time.Second
	// tick is how often a link tells the others of itself, and looks after its queue.
	tick = time.Second
	// gone is how long another link may be silent until it counts as not connected.
	gone = 5 * tick
	// comeback is how long others may take to come back after this link has.
	comeback = 30 * time.Second
	// stall is how long the hub may leave a message unacknowledged.
	stall = 30 * time.Second
)

// A Link links one account to one hub. Make it with New. It is a service of a server,
// which calls Run; everything else is safe for concurrent use.
type Link struct {
	// Logger is told of the hub's coming and going. It is set before Run. Default:
	// nobody is told.
	Logger *slog.Logger

	o       Options
	servers []server
	log     *slog.Logger // of Run

	mu   sync.Mutex
	view view
}

// New makes a Link, and opens nothing. The error is that of Options.Validate, or of a
// name.
func New(o Options) (*Link, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if err := o.checkNames(); err != nil {
		return nil, err
	}
	l := &Link{o: o}
	for _, text := range o.Servers {
		s, err := parseServer(text)
		if err != nil {
			return nil, err
		}
		l.servers = append(l.servers, s)
	}
	return l, nil
}

// Run carries messages between the hub and nc, which belongs to the account and may
// do anything there. That the hub is away is no error. Run ends with ctx, or when the
// engine cannot be used.
func (l *Link) Run(ctx context.Context, nc *nats.Conn) error {
	l.log = slog.New(slog.DiscardHandler)
	if l.Logger != nil {
		l.log = l.Logger.With("hub", l.o.Account)
	}
	closed := nc.StatusChanged(nats.CLOSED)
	defer nc.RemoveStatusListener(closed)
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	go func() {
		select {
		case <-closed:
			fail(nats.ErrConnectionClosed)
		case <-ctx.Done():
		}
	}()
	q, known, err := openQueue(ctx, nc, &l.o)
	if err != nil {
		return err
	}
	// A queue that is full has to be emptied all the same.
	if err := q.recover(ctx); err != nil && ctx.Err() == nil {
		l.log.Warn("changes that were announced before the start may not reach the hub", "error", err)
	}
	r := &run{Link: l, nc: nc, q: q, record: known, told: map[string]told{}, asked: map[string]asking{}}
	var keeping sync.WaitGroup
	keeping.Go(func() { r.keep(ctx, fail) })
	r.connect(ctx)
	keeping.Wait()
	r.disconnected(nil)
	// The engine may be gone.
	if err := r.save(context.WithoutCancel(ctx)); err != nil && context.Cause(ctx) == ctx.Err() {
		return err
	}
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return cause
	}
	return nil
}

// A run is one call of Run.
type run struct {
	*Link
	nc *nats.Conn
	q  *queue

	mu     sync.Mutex // never together with that of the Link
	record record
	dirty  bool
	// reached is the highest number that was sent to the hub.
	reached uint64
	told    map[string]told   // what other origins told last
	asked   map[string]asking // when they were asked to repeat
	purged  uint64
	first   uint64 // that the queue has
	// aged is up to where all was handed on, at each of the last ticks.
	aged  [gone / tick]uint64
	since time.Time // when the hub was connected; zero: it is not
}

// connect connects to the hub, again and again, until ctx is done.
func (r *run) connect(ctx context.Context) {
	wait := backoff
	for i := 0; ctx.Err() == nil; i++ {
		began := time.Now()
		err := r.once(ctx, r.servers[i%len(r.servers)])
		if ctx.Err() != nil {
			return
		}
		r.disconnected(err)
		if time.Since(began) > 4*maxBackoff {
			wait = backoff
			i-- // it was a good one
		}
		pause := time.NewTimer(wait/2 + rand.N(wait))
		select {
		case <-ctx.Done():
			pause.Stop()
			return
		case <-pause.C:
		}
		if i%len(r.servers) == len(r.servers)-1 {
			wait = min(2*wait, maxBackoff)
		}
	}
}

// once is one connection.
func (r *run) once(ctx context.Context, server server) error {
	c, err := dial(ctx, &r.o, server, false)
	if err != nil {
		return err
	}
	defer c.Close()
	return r.serve(ctx, c, server)
}

// keep writes the record, and shortens the queue, until ctx is done.
func (r *run) keep(ctx context.Context, fail context.CancelCauseFunc) {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if err := errors.Join(r.save(ctx), r.shorten(ctx)); err != nil && ctx.Err() == nil {
			r.log.Warn("the hub's queue cannot be looked after", "error", err)
			if errors.Is(err, nats.ErrConnectionClosed) {
				fail(err)
			}
		}
	}
}

// save writes the record if it has changed.
func (r *run) save(ctx context.Context) error {
	r.mu.Lock()
	dirty := r.dirty
	r.dirty = false
	data, err := json.Marshal(r.record)
	r.mu.Unlock()
	if err == nil && dirty {
		if err = r.q.save(ctx, data); err != nil {
			r.mu.Lock()
			r.dirty = true
			r.mu.Unlock()
		}
	}
	return err
}

// shorten removes from the queue what is handed on and every other link has. One that
// was not heard of for long is not waited for; if the queue is half full, only those
// are that are there, or may still come back after the hub did.
func (r *run) shorten(ctx context.Context) error {
	state, err := r.q.state(ctx)
	if err != nil {
		return err
	}
	r.mu.Lock()
	r.first = state.FirstSeq
	// Another link may have come a moment ago, and not be heard yet.
	limit := r.aged[0]
	copy(r.aged[:], r.aged[1:])
	r.aged[len(r.aged)-1] = r.record.Done
	for origin, p := range r.record.Peers {
		switch {
		case time.Since(p.Heard) > r.o.SessionExpiry:
			delete(r.record.Peers, origin)
			r.dirty = true
		case p.Has >= r.record.Last: // what is behind it came from the hub
		case state.Bytes < uint64(r.o.Queue)/2, time.Since(p.Heard) < gone, r.since.IsZero(), time.Since(r.since) < comeback:
			limit = min(limit, p.Has)
		}
	}
	done, purged := r.record.Done, r.purged
	r.mu.Unlock()
	r.queued(state, done)
	if limit <= purged || limit < state.FirstSeq {
		return nil
	}
	if err := r.q.forget(ctx, limit); err != nil {
		return err
	}
	r.mu.Lock()
	r.purged = limit
	r.mu.Unlock()
	return nil
}

// A session is one connection that has logged in.
type session struct {
	*run
	c   *conn
	qos packet.QoS
	out outgoing
	in  incoming
}

// serve runs a connection until it ends, and says why.
func (r *run) serve(ctx context.Context, c *conn, server server) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s := &session{run: r, c: c, qos: c.qos(&r.o)}
	s.out.init(c.window())
	s.in.init(r)
	stop := context.AfterFunc(ctx, func() {
		if errors.Is(context.Cause(ctx), context.Canceled) {
			_ = c.send(&packet.Disconnect{})
		}
		c.Close()
	})
	defer stop()
	var running sync.WaitGroup
	defer func() { // what was given to the engine is noted, whatever ends the session

		end(nil)
		close(s.in.arrivals)
		running.Wait()
	}()
	spawn := func(do func(context.Context) error) {
		running.Go(func() {
			if err := do(ctx); err != nil {
				end(err)
			}
		})
	}
	running.Go(func() { s.settle(end) })
	if err := c.subscribe(s.qos, s.take, s.filters()...); err != nil {
		return s.why(ctx, err)
	}
	r.mu.Lock()
	r.since = time.Now()
	r.mu.Unlock()
	r.connected(server, c)
	s.log.Info("hub is connected", "server", server.url, "session", c.connack.SessionPresent)
	if err := s.announce(""); err != nil {
		return s.why(ctx, err)
	}
	spawn(s.send)
	spawn(s.beat)
	for {
		p, err := c.next()
		if err == nil {
			err = s.take(p)
		}
		if err != nil {
			return s.why(ctx, err)
		}
	}
}

// why is what ended the session: what ended ctx, if that was first.
func (s *session) why(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// beat keeps the connection, tells the other links, and watches over the hub.
func (s *session) beat(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	pinged := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if time.Since(pinged) > s.c.silence/3 {
			pinged = time.Now()
			if err := s.c.send(&packet.Pingreq{}); err != nil {
				return fmt.Errorf("sending PINGREQ: %w", err)
			}
		}
		if err := s.announce(""); err != nil {
			return err
		}
		s.retry()
		if s.out.stalled() {
			return &Error{Step: StepPublish, Err: fmt.Errorf("the hub has acknowledged nothing for %v", stall), Fix: "look at the hub's log, its disk and its load"}
		}
	}
}

// take handles a packet.
func (s *session) take(p packet.Packet) error {
	switch p := p.(type) {
	case *packet.Publish:
		return s.receive(p)
	case *packet.Ack:
		if p.Kind == packet.PUBACK {
			s.acknowledged(p)
		}
	case *packet.Disconnect:
		return disconnected(p)
	case *packet.Pingresp:
	default:
		return fmt.Errorf("the hub sent %v, which was not expected", p.Type())
	}
	return nil
}

// filters are the topic filters of what passes, and of what links tell one another.
func (s *session) filters() []string {
	filters := []string{s.o.base() + controlTopic}
	for _, subject := range s.o.passing() {
		filters = append(filters, s.o.filter(subject))
	}
	return filters
}
