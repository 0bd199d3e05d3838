package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/nats-io/nuid"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/tunnel"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/lease"
)

const (
	// ownersStream has which node has the account.
	ownersStream = "AMQP_OWNER"
	// lookEvery is how long it is until an account that nobody has is looked for again,
	// and claimEvery until it is claimed again after something failed.
	lookEvery, claimEvery = 50 * time.Millisecond, time.Second
)

// accounts are the virtual hosts that somebody here uses: each is at one node, of those
// whose clients use it. It implements opener.
type accounts struct {
	p      *Protocol
	timers *queue.Timers
	*pressure
	log *slog.Logger
	run string // of this process, among all

	ctx   context.Context
	stop  context.CancelFunc
	ended chan struct{}

	mu    sync.Mutex
	all   map[string]*claim
	group sync.WaitGroup
}

// newAccounts has time pass for all queues until ctx is done, and then has other nodes have
// the accounts.
func newAccounts(ctx context.Context, p *Protocol) *accounts {
	a := &accounts{p: p, timers: queue.NewTimers(nil), pressure: newPressure(p), log: p.log(), run: nuid.Next(), all: map[string]*claim{}, ended: make(chan struct{})}
	a.ctx, a.stop = context.WithCancel(ctx)
	go func() {
		defer close(a.ended)
		a.group.Go(func() { a.watch(a.ctx) })
		a.timers.Run(a.ctx)
		a.group.Wait()
	}()
	return a
}

// close returns when no account is here.
func (a *accounts) close() {
	a.stop()
	<-a.ended
}

// claim is an account that this node would have, and has if no other does.
type claim struct {
	name string
	at   string // before the subjects of owners
	conn *fleetbus.Session

	mu      sync.Mutex
	account *account // nil: another has it, or nobody yet
}

func (c *claim) here() *account {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.account
}

// open implements opener.
func (a *accounts) open(ctx context.Context, s *fleetbus.Session, hello func() ([]byte, error)) (vhost, net.Conn, error) {
	c, err := a.claim(s)
	if err != nil {
		return nil, nil, err
	}
	said, err := hello()
	if err != nil {
		return nil, nil, err
	}
	for {
		if here := c.here(); here != nil {
			return here, nil, nil
		}
		try, cancel := context.WithTimeout(ctx, requestTimeout)
		there, err := tunnel.Dial(try, c.conn.Conn, c.at+"open", said)
		cancel()
		if err == nil {
			return nil, there, nil
		}
		// Nobody has it: somebody will in a moment.
		select {
		case <-ctx.Done():
			return nil, nil, fmt.Errorf("looking for the node that has account %q: %w", c.name, err)
		case <-time.After(lookEvery):
		}
	}
}

// claim has this node have the account of a session, if no other does.
func (a *accounts) claim(s *fleetbus.Session) (*claim, error) {
	name := s.Principal.Account
	a.mu.Lock()
	defer a.mu.Unlock()
	if c := a.all[name]; c != nil {
		return c, nil
	}
	if a.ctx.Err() != nil {
		return nil, context.Canceled
	}
	every := identity.Rule{Allow: []string{">", identity.Private + ">"}}
	conn, err := s.Account("amqp", identity.Permissions{Publish: every, Subscribe: every})
	if err != nil {
		return nil, err
	}
	c := &claim{name: name, at: subjects(conn, "amqpowner"), conn: conn}
	a.all[name] = c
	ctx, cancel := context.WithCancel(a.ctx)
	conn.SetClosedHandler(func(*nats.Conn) { cancel() })
	if conn.IsClosed() {
		cancel()
	}
	a.group.Go(func() {
		defer cancel()
		a.keep(ctx, c)
		a.mu.Lock()
		delete(a.all, name)
		a.mu.Unlock()
		conn.Close()
	})
	return c, nil
}

// subjects are what begins the subjects of a kind: each region has its own.
func subjects(conn *fleetbus.Session, kind string) string {
	if region, _, _ := conn.Regions(); region != "" {
		kind += "-" + region
	}
	return identity.Private + kind + "."
}

// keep has the account whenever it can be had, until ctx is done.
func (a *accounts) keep(ctx context.Context, c *claim) {
	for ctx.Err() == nil {
		err := a.hold(ctx, c)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("an account cannot be had for AMQP now: it is tried again", "account", c.name, "error", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(claimEvery):
		}
	}
}

// hold waits until the account can be had, and has it.
func (a *accounts) hold(ctx context.Context, c *claim) error {
	js, err := jetstream.New(c.conn.Conn)
	if err != nil {
		return err
	}
	leases, err := lease.Open(ctx, js, lease.Options{Stream: ownersStream, Prefix: c.at + "lease"})
	if err != nil {
		return err
	}
	return leases.Hold(ctx, "owner", a.run, nil, func(ctx context.Context) error { return a.own(ctx, c) })
}

// own has the account, until ctx is done or it cannot be had any more.
func (a *accounts) own(ctx context.Context, c *claim) error {
	one, err := openAccount(ctx, c.conn, c.name, lease.Holds(ctx), a.timers, a.pressure, a.log)
	if err != nil {
		return err
	}
	clients := &guests{p: a.p, v: one}
	defer clients.end()
	defer one.close()
	sub, err := tunnel.Listen(c.conn.Conn, c.at+"open", lease.Left(ctx), func(hello []byte, nc net.Conn) { clients.serve(ctx, hello, nc) })
	if err == nil {
		err = c.conn.Flush()
	}
	if err != nil {
		return fmt.Errorf("listening for clients of other nodes: %w", err)
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	c.mu.Lock()
	c.account = one
	c.mu.Unlock()
	a.log.Info("an account is open for AMQP", "account", c.name)
	defer func() {
		c.mu.Lock()
		c.account = nil
		c.mu.Unlock()
	}()
	select {
	case <-ctx.Done():
		if cause := context.Cause(ctx); errors.Is(cause, lease.ErrLost) {
			return cause
		}
		return nil
	case err := <-one.failed:
		return err
	}
}

// guests are the clients of other nodes in a virtual host that is here.
type guests struct {
	p *Protocol
	v vhost

	mu    sync.Mutex
	over  bool
	group sync.WaitGroup
}

func (g *guests) serve(ctx context.Context, hello []byte, nc net.Conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.over {
		_ = nc.Close()
		return
	}
	g.group.Go(func() { g.p.takeOver(ctx, g.v, hello, nc) })
}

// end waits for all, and lets nobody in any more.
func (g *guests) end() {
	g.mu.Lock()
	g.over = true
	g.mu.Unlock()
	g.group.Wait()
}
