package shovel

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/hub"
)

// A route is one link: messages of one queue to one place.
type route struct {
	*Link
	Route
	out  bool
	text string

	mu   sync.Mutex
	view view
	// careful has one message on its way at a time, until the one is found that the
	// other side does not take at all.
	careful bool
}

// view is how a route stands, for people.
type view struct {
	up     bool
	upAt   time.Time // when it was up, the last time
	lastUp time.Time // when it was up last, or was begun
	ill    time.Time // since when nothing passes that should; zero: all is well
	err    error
	// moved were acknowledged; returned found no queue, and nacked were refused, and are
	// tried again; again came marked as redelivered; looped were dropped, because they
	// came through this link; parked were put aside.
	moved, returned, nacked, again, looped, parked uint64
	blocked                                        bool
}

func newRoute(l *Link, r Route, out bool, text string) *route {
	return &route{Link: l, Route: r, out: out, text: text}
}

// name is what the route is called.
func (r *route) name() string {
	if r.out {
		return "out " + r.text
	}
	return "in " + r.text
}

func (r *route) count(change func(*view)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change(&r.view)
}

func (r *route) reset() {
	now := time.Now()
	r.count(func(v *view) { v.up, v.lastUp, v.ill, v.err, v.blocked = false, now, now, nil, false })
}

// pending is how long a route has to be up until it is well, if nothing has passed.
const pending = 5 * time.Second

// illFor is how long nothing has passed that should have.
func (v *view) illFor() time.Duration {
	if v.ill.IsZero() || v.up && time.Since(v.upAt) > pending {
		return 0
	}
	return time.Since(v.ill)
}

func (r *route) upWithin(d time.Duration) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view.up || time.Since(r.view.lastUp) < d
}

// keep carries messages, again and again, until ctx is done.
func (r *route) keep(ctx context.Context, log *slog.Logger) {
	wait := backoff
	for ctx.Err() == nil {
		moved := r.moved()
		err := hub.Brief(r.once(ctx, log))
		if ctx.Err() != nil {
			return
		}
		var told bool
		r.count(func(v *view) {
			told = v.err != nil && v.err.Error() == err.Error()
			now := time.Now()
			if v.illFor() == 0 {
				v.ill = now
			}
			if v.up {
				v.lastUp = now
			}
			v.up, v.err, v.blocked = false, err, false
		})
		if !told {
			log.Warn("a link of queues is down, and is tried again", "error", err)
		}
		if r.moved() > moved {
			wait = backoff
		}
		if pause(ctx, wait/2+rand.N(wait)) != nil {
			return
		}
		wait = min(2*wait, maxBackoff)
	}
}

func (r *route) moved() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.view.moved
}

// dial connects to an end. The connection ends with ctx.
func (r *route) dial(ctx context.Context, remote bool) (c *amqp091.Connection, done func(), err error) {
	e, t := &r.o.Local, r.local
	if remote {
		e, t = &r.o.Remote, r.remote
	}
	config, err := e.config(t)
	if err != nil {
		return nil, nil, err
	}
	config.Dial = func(network, addr string) (net.Conn, error) {
		nc, err := (&net.Dialer{Timeout: dialTimeout}).DialContext(ctx, network, t.addr)
		if err != nil {
			return nil, err
		}
		// A write to a broker that does not read ends with ctx.
		context.AfterFunc(ctx, func() { _ = nc.SetWriteDeadline(time.Now().Add(2 * goodbye)) })
		// The library takes the deadline away when the connection is open.
		if err := nc.SetDeadline(time.Now().Add(dialTimeout)); err != nil {
			return nil, err
		}
		return nc, nil
	}
	scheme := "amqp://"
	if t.tls {
		scheme = "amqps://"
	}
	if c, err = amqp091.DialConfig(scheme+t.addr, config); err != nil {
		return nil, nil, fmt.Errorf("connecting to %s: %w", t.addr, err)
	}
	return c, func() { _ = c.CloseDeadline(time.Now().Add(goodbye)) }, nil
}

// once is one attempt.
func (r *route) once(ctx context.Context, log *slog.Logger) error {
	from, done, err := r.dial(ctx, !r.out)
	if err != nil {
		return err
	}
	defer done()
	to, done, err := r.dial(ctx, r.out)
	if err != nil {
		return err
	}
	defer done()
	p := &passage{route: r, log: log, blocked: to.NotifyBlocked(make(chan amqp091.Blocking, 16))}
	if p.to, err = to.Channel(); err != nil {
		return fmt.Errorf("opening a channel: %w", err)
	}
	if err = p.to.Confirm(false); err != nil {
		return fmt.Errorf("asking for confirms: %w", err)
	}
	p.refused = p.to.NotifyClose(make(chan *amqp091.Error, 1))
	if p.from, err = from.Channel(); err != nil {
		return fmt.Errorf("opening a channel: %w", err)
	}
	r.mu.Lock()
	p.careful = r.careful
	r.mu.Unlock()
	p.window = r.o.Prefetch
	if p.careful {
		p.window = 1
	}
	p.returns = p.to.NotifyReturn(make(chan amqp091.Return, p.window+1))
	if err := p.from.Qos(p.window, 0, false); err != nil {
		return fmt.Errorf("asking for %d messages at a time: %w", p.window, err)
	}
	queue, err := p.source()
	if err != nil {
		return err
	}
	p.deliveries, err = p.from.ConsumeWithContext(context.WithoutCancel(ctx), queue, "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consuming from %q: %w", queue, err)
	}
	r.count(func(v *view) { v.up, v.upAt = true, time.Now() })
	log.Info("a link of queues is up")
	return p.run(ctx)
}

// source is the queue that is consumed: for an exchange, one that is bound to it.
func (p *passage) source() (string, error) {
	if p.FromExchange == "" {
		return p.FromQueue, nil
	}
	name := p.ownQueue(p.o.Account)
	if _, err := p.from.QueueDeclare(name, true, false, false, false, nil); err != nil {
		return "", fmt.Errorf("declaring %q: %w", name, err)
	}
	if err := p.from.QueueBind(name, p.FromKey, p.FromExchange, false, nil); err != nil {
		return "", fmt.Errorf("binding %q to exchange %q: %w", name, p.FromExchange, err)
	}
	return name, nil
}

// A passage is a route while both its connections are up.
type passage struct {
	*route
	log        *slog.Logger
	from, to   *amqp091.Channel
	deliveries <-chan amqp091.Delivery
	returns    chan amqp091.Return
	refused    chan *amqp091.Error // why to was closed; it is read by reason alone
	blocked    chan amqp091.Blocking
	window     int
	careful    bool
	number     int64

	closing sync.Mutex
	closed  *amqp091.Error
	put     bool // a message was put aside, for which the channel was closed: no other is
}

// A letter is a message that was published, and not confirmed yet.
type letter struct {
	amqp091.Delivery
	number  int64
	confirm *amqp091.DeferredConfirmation
}

// The errors after which the messages that were not acknowledged are had again.
var (
	errSourceEnded = errors.New("the queue, or the connection that it is consumed by, has ended")
	errReturned    = errors.New("the other side has no queue for a message")
	errNacked      = errors.New("the other side refuses a message: a queue is full, or cannot store it")
	errCareful     = errors.New("a message was put aside")
	errTargetEnded = errors.New("the connection that messages are handed on by has ended")
)

// run hands messages on until something ends.
func (p *passage) run(ctx context.Context) error {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	underWay := make(chan letter, p.window)
	settled := make(chan error, 1)
	go func() {
		err := p.settle(ctx, underWay)
		end(err)
		settled <- err
	}()
	err := p.publish(ctx, underWay)
	close(underWay)
	end(err)
	// What was published may be confirmed still, and then does not come twice.
	if settle := <-settled; settle != nil && !errors.Is(err, errSourceEnded) && !errors.Is(settle, context.Canceled) {
		return settle
	}
	return err
}

// publish publishes what comes, in order.
func (p *passage) publish(ctx context.Context, underWay chan<- letter) error {
	pausing := false
	for {
		deliveries := p.deliveries
		if pausing { // what is delivered waits; what is under way goes on
			deliveries = nil
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case b, ok := <-p.blocked:
			if !ok {
				return errTargetEnded
			}
			pausing = b.Active
			p.count(func(v *view) { v.blocked = pausing })
		case d, ok := <-deliveries:
			if !ok {
				return errSourceEnded
			}
			if len(p.blocked) > 0 { // it is looked at first
				if b := <-p.blocked; b.Active {
					pausing = true
					p.count(func(v *view) { v.blocked = true })
				}
			}
			if err := p.one(ctx, d, underWay); err != nil {
				return err
			}
		}
	}
}

// one publishes one message, or drops it if it came through this link.
func (p *passage) one(ctx context.Context, d amqp091.Delivery, underWay chan<- letter) error {
	if d.Redelivered {
		p.count(func(v *view) { v.again++ })
	}
	hops := hopsOf(d.Headers)
	switch {
	case came(hops, p.o.name()):
		p.count(func(v *view) { v.looped++ })
		return p.from.Ack(d.DeliveryTag, false)
	case len(hops) >= p.o.MaxHops:
		return p.aside(ctx, d, fmt.Sprintf("it has passed %d links", len(hops)))
	}
	p.number++
	m := p.message(d, hops, p.number)
	exchange, key := "", p.ToQueue
	if p.ToExchange != "" {
		exchange, key = p.ToExchange, d.RoutingKey
		if p.HasKey {
			key = p.ToKey
		}
	}
	confirm, err := p.to.PublishWithDeferredConfirm(exchange, key, true, false, m)
	if err != nil {
		return p.failed(ctx, d, fmt.Errorf("%w: %w", errTargetEnded, err))
	}
	select {
	case underWay <- letter{d, p.number, confirm}:
		return nil
	case <-ctx.Done(): // settle has ended
		return context.Cause(ctx)
	}
}

// settle acknowledges what is confirmed, in order. It returns when underWay is closed and
// empty, or at the first message that is not confirmed.
func (p *passage) settle(ctx context.Context, underWay <-chan letter) error {
	returned := map[int64]bool{}
	over := ctx.Done()
	var late <-chan time.Time
	for l := range underWay {
		for waiting := true; waiting; {
			select {
			case <-l.confirm.Done():
				waiting = false
			case <-over: // there is a moment for what is on its way
				over, late = nil, time.After(goodbye)
			case <-late:
				return context.Cause(ctx)
			}
		}
		if !l.confirm.Acked() {
			if p.to.IsClosed() {
				return p.failed(ctx, l.Delivery, errTargetEnded)
			}
			p.count(func(v *view) { v.nacked++ })
			return errNacked
		}
		for len(p.returns) > 0 {
			back, ok := <-p.returns
			if !ok {
				break
			}
			returned[numberOf(back.Headers)] = true
		}
		if returned[l.number] {
			p.count(func(v *view) { v.returned++ })
			return errReturned
		}
		if err := p.from.Ack(l.DeliveryTag, false); err != nil {
			return fmt.Errorf("acknowledging: %w", err)
		}
		p.count(func(v *view) { v.moved, v.ill, v.err = v.moved+1, time.Time{}, nil })
	}
	return nil
}

// reason is why the other side closed its channel, nil if it did not say.
func (p *passage) reason() *amqp091.Error {
	p.closing.Lock()
	defer p.closing.Unlock()
	select {
	case e := <-p.refused: // nil once it was read
		if e != nil {
			p.closed = e
		}
	default:
	}
	return p.closed
}

// failed is what follows when the other side ended its channel, or the connection, over a
// message: one that it does not take at all is looked for, and put aside.
func (p *passage) failed(ctx context.Context, d amqp091.Delivery, err error) error {
	closed := p.reason()
	if closed == nil {
		return err
	}
	if !closed.Server { // it is the connection that failed: the library calls that a frame error, too
		return closed
	}
	if closed.Code != amqp091.PreconditionFailed && closed.Code != amqp091.ContentTooLarge && closed.Code != amqp091.FrameError {
		return closed
	}
	if !p.careful { // one of those under way
		p.setCareful(true)
		return closed
	}
	// One is on its way at a time, and the next comes when this one is acknowledged: it
	// meets the same closed channel, and is not why.
	p.closing.Lock()
	again := p.put
	p.put = true
	p.closing.Unlock()
	if again {
		return errCareful
	}
	if aside := p.aside(ctx, d, closed.Reason); aside != nil {
		return errors.Join(closed, aside)
	}
	p.setCareful(false)
	return errCareful
}

func (p *passage) setCareful(careful bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.route.careful = careful
}

// aside puts a message into the queue for those that cannot pass, where it is from, and
// acknowledges it then.
func (p *passage) aside(ctx context.Context, d amqp091.Delivery, why string) error {
	conn, done, err := p.dial(context.WithoutCancel(ctx), !p.out)
	if err != nil {
		return err
	}
	defer done()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("putting a message aside: %w", err)
	}
	if _, err := ch.QueueDeclare(p.o.Park, true, false, false, false, nil); err != nil {
		return fmt.Errorf("putting a message aside: %w", err)
	}
	if err := ch.Confirm(false); err != nil {
		return fmt.Errorf("putting a message aside: %w", err)
	}
	m := published(d)
	m.Headers[headerReason], m.Headers[headerLink] = cut(why), p.name()
	confirm, err := ch.PublishWithDeferredConfirm("", p.o.Park, true, false, m)
	if err != nil {
		return fmt.Errorf("putting a message aside: %w", err)
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), dialTimeout)
	defer cancel()
	if ok, err := confirm.WaitContext(patience); err != nil || !ok {
		return errors.Join(errors.New("putting a message aside: it was not confirmed"), err)
	}
	p.count(func(v *view) { v.parked++ })
	p.log.Warn("a message cannot pass, and was put aside", "reason", why, "size", len(d.Body))
	return p.from.Ack(d.DeliveryTag, false)
}
