// Package shovel carries messages between the queues of an account and those of a RabbitMQ
// that keeps running, in both directions, for the days in which clients move from one to
// the other.
//
// A message is acknowledged where it is from only when the other side has confirmed it: so
// none is lost, whatever is killed, and some may come twice, which then are marked. Each
// link hands on in the order of its queue. Of the nodes that are configured alike one does
// it at a time.
package shovel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/lease"
)

const (
	// The pause before the next attempt, which doubles.
	backoff, maxBackoff = 100 * time.Millisecond, 10 * time.Second
	// heartbeat is the silence after which a connection is asked for a sign of life.
	heartbeat = 10 * time.Second
	// dialTimeout bounds a connection's beginning, and goodbye its end.
	dialTimeout, goodbye = 15 * time.Second, 3 * time.Second
	// handOver is how long no link is up until another node is let try.
	handOver = time.Minute
	// leases is the stream that has who holds the link.
	leases = "AMQP_LINK"
)

// A Link is all that is linked of one account with one broker. Make it with New. It is a
// service of a server, which calls Run; everything else is safe for concurrent use.
type Link struct {
	// Logger is told of links that come and go. It is set before Run. Default: nobody is
	// told.
	Logger *slog.Logger

	o             Options
	remote, local target
	routes        []*route

	mu    sync.Mutex
	holds bool      // this node has it
	away  time.Time // when this node gave it up, because it reached nobody
}

// New makes a Link, and opens nothing. The error is that of Options.Validate, or of a name.
func New(o Options) (*Link, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	if err := o.checkNames(); err != nil {
		return nil, err
	}
	l := &Link{o: o}
	var err error
	if l.remote, err = parseURL(o.Remote.URL); err != nil {
		return nil, err
	}
	if l.local, err = parseURL(o.Local.URL); err != nil {
		return nil, err
	}
	for _, out := range []bool{false, true} {
		list := o.In
		if out {
			list = o.Out
		}
		for _, text := range list {
			r, err := ParseRoute(text)
			if err != nil {
				return nil, err
			}
			l.routes = append(l.routes, newRoute(l, r, out, text))
		}
	}
	return l, nil
}

// Tell sets Logger.
func (l *Link) Tell(log *slog.Logger) { l.Logger = log }

// Permissions are what the principal of Run's connection has to have.
func Permissions() identity.Permissions {
	every := identity.Rule{Allow: []string{"$JS.API.>", "_INBOX.>", identity.Private + ">"}}
	return identity.Permissions{Publish: every, Subscribe: every}
}

// Run carries messages whenever no other node does. nc belongs to the account, and has
// Permissions. That a broker is away is no error. Run ends with ctx, or when the engine
// cannot be used.
func (l *Link) Run(ctx context.Context, nc *nats.Conn) error {
	log := slog.New(slog.DiscardHandler)
	if l.Logger != nil {
		log = l.Logger.With("hub", l.o.Account)
	}
	js, err := jetstream.New(nc)
	if err != nil {
		return fmt.Errorf("linking account %q: %w", l.o.Account, err)
	}
	for ctx.Err() == nil {
		err := l.hold(ctx, js, log)
		if ctx.Err() != nil {
			return nil
		}
		if nc.IsClosed() {
			return nats.ErrConnectionClosed
		}
		if err != nil {
			log.Warn("links to an AMQP broker are not held by this node now", "error", err)
		}
		// Another node may be waiting.
		if err := pause(ctx, maxBackoff/2+rand.N(maxBackoff/2)); err != nil {
			return nil
		}
	}
	return nil
}

// errAway says that this node reaches nobody, and another might.
var errAway = errors.New("no link was up for a minute: another node may try")

// hold waits until this node has the link, and carries messages while it does.
func (l *Link) hold(ctx context.Context, js jetstream.JetStream, log *slog.Logger) error {
	all, err := lease.Open(ctx, js, lease.Options{Stream: leases, Prefix: identity.Private + "amqplink.lease"})
	if err != nil {
		return err
	}
	return all.Hold(ctx, "link", l.o.Node, nil, func(ctx context.Context) error {
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		l.held(true)
		defer l.held(false)
		var carrying sync.WaitGroup
		for _, r := range l.routes {
			carrying.Go(func() { r.keep(ctx, log.With("name", r.name())) })
		}
		carrying.Go(func() { l.watch(ctx, cancel) })
		carrying.Wait()
		if cause := context.Cause(ctx); cause != ctx.Err() { // lost, or given up
			return cause
		}
		return nil
	})
}

// watch gives the link up when nothing was up for long.
func (l *Link) watch(ctx context.Context, giveUp context.CancelCauseFunc) {
	for pause(ctx, handOver/20) == nil {
		up := false
		for _, r := range l.routes {
			up = up || r.upWithin(handOver)
		}
		if !up {
			l.gaveUp()
			giveUp(errAway)
			return
		}
	}
}

// tries is how long a node that gave up may take to be the one again.
const tries = 30 * time.Second

func (l *Link) held(holds bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds = holds
	if holds && time.Since(l.away) > tries {
		for _, r := range l.routes {
			r.reset()
		}
	}
}

// gaveUp notes that this node reaches nobody.
func (l *Link) gaveUp() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.away = time.Now()
}

// pause waits; it returns ctx's error if ctx ends first.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
