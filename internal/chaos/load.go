//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/rabbitmq/amqp091-go"
)

// lanesEach is how many lanes there are of each protocol in each account.
const lanesEach = 2

// patience is how long what goes wrong by a fault may take to be right again.
const patience = 2 * time.Minute

// A load is all that uses the fleet meanwhile.
type load struct {
	fleet   *fleet
	book    book
	eyes    []*nats.Conn // one connection of each account, to look around with
	changes *changes
	history *history
	certs   *renewals
	stored  Tally // what is wrong with the copies of what was published over NATS

	conns            []*nats.Conn
	sending, reading sync.WaitGroup
	endSending, end  context.CancelFunc

	mu   sync.Mutex
	errs []error
}

// run runs f, whose error spoils the run.
func (l *load) run(all *sync.WaitGroup, what string, f func() error) {
	all.Go(func() {
		if err := f(); err != nil {
			l.mu.Lock()
			l.errs = append(l.errs, fmt.Errorf("%s: %w", what, err))
			l.mu.Unlock()
		}
	})
}

// dial makes a connection that the load closes.
func (l *load) dial(ctx context.Context, a *account, name string, i int) (*nats.Conn, error) {
	nc, err := a.dial(ctx, name, i)
	if err == nil {
		l.conns = append(l.conns, nc)
	}
	return nc, err
}

// startLoad begins everything and returns when every lane has acknowledgements.
func startLoad(ctx context.Context, f *fleet) (*load, error) {
	l := &load{fleet: f, history: newHistory()}
	sending, endSending := context.WithCancel(ctx)
	reading, end := context.WithCancel(ctx)
	l.endSending, l.end = endSending, end
	for i, a := range f.accounts {
		if err := l.startAccount(sending, reading, a, i); err != nil {
			return l, err
		}
	}
	if err := l.startShared(sending, reading, f.accounts[0]); err != nil {
		return l, err
	}
	return l, l.flows(ctx, time.Now())
}

// startAccount begins what both accounts have, under the same names.
func (l *load) startAccount(sending, reading context.Context, a *account, i int) error {
	eye, err := l.dial(sending, a, "eye", i)
	if err != nil {
		return err
	}
	l.eyes = append(l.eyes, eye)
	js, err := jetstream.New(eye)
	if err != nil {
		return err
	}
	if err := makeWork(sending, js, len(l.fleet.nodes)); err != nil {
		return err
	}
	reader, err := l.dial(sending, a, "reader", i+1)
	if err != nil {
		return err
	}
	l.run(&l.reading, "reading over NATS", func() error { return readNATS(reading, a, reader, &l.book) })
	subscribed := make(chan struct{})
	l.run(&l.reading, "reading over MQTT", func() error { return readMQTT(reading, a, &l.book, subscribed) })
	select {
	case <-subscribed:
	case <-time.After(patience):
		return errors.New("subscribing over MQTT: not in time")
	case <-sending.Done():
		return context.Cause(sending)
	}
	for k := range lanesEach {
		name := fmt.Sprintf("line%d", k)
		nc, err := l.dial(sending, a, "publisher", k)
		if err != nil {
			return err
		}
		ours := l.book.open(a, overNATS, name, false)
		l.sending.Go(func() { publishNATS(sending, nc, ours) })

		qos := byte(1 + k%2)
		theirs := l.book.open(a, overMQTT, fmt.Sprintf("%s-qos%d", name, qos), qos == 2)
		device, err := a.connectMQTT(reading, "publisher-"+name, k, func(*autopaho.ClientConfig) {})
		if err != nil {
			return err
		}
		l.sending.Go(func() { publishMQTT(sending, device, theirs, qos) })

		queue := l.book.open(a, overAMQP, name, true)
		l.sending.Go(func() {
			visitAMQP(sending, a, k, func(ctx context.Context, ch *amqp091.Channel) error { return publishAMQP(ctx, ch, queue) })
		})
		l.reading.Go(func() {
			visitAMQP(reading, a, k+1, func(ctx context.Context, ch *amqp091.Channel) error { return readAMQP(ctx, ch, a, name, &l.book) })
		})
	}
	return nil
}

// startShared begins what one account has: changes, a ledger, a lease, certificates.
func (l *load) startShared(sending, reading context.Context, a *account) (err error) {
	announcer, err := l.dial(sending, a, "announcer", 0)
	if err != nil {
		return err
	}
	l.changes = newChanges("watcher0", "watcher1", "watcher2")
	for i, h := range l.changes.watchers {
		nc, err := l.dial(sending, a, h.name, i)
		if err != nil {
			return err
		}
		l.run(&l.reading, "watching changes", func() error { return l.changes.watch(reading, nc, h, a) })
	}
	l.run(&l.sending, "announcing changes", func() error { return l.changes.announce(sending, announcer, a) })
	for i := range writers {
		nc, err := l.dial(sending, a, "writer", i)
		if err != nil {
			return err
		}
		l.run(&l.sending, "writing a ledger", func() error { return l.history.write(sending, nc, i, len(l.fleet.nodes)) })
	}
	for i := range holders {
		nc, err := l.dial(sending, a, "holder", i)
		if err != nil {
			return err
		}
		l.run(&l.sending, "holding a lease", func() error { return l.history.hold(sending, nc, i) })
	}
	l.certs, err = renew(reading, a)
	return err
}

// flows waits until every lane has acknowledgements after a time.
func (l *load) flows(ctx context.Context, since time.Time) error {
	return until(ctx, patience, "every lane flows", func(context.Context) error {
		for _, lane := range l.book.of("") {
			if _, n := lane.acked(since); n < 5 {
				return errors.Join(fmt.Errorf("%s of %s over %s has %d acknowledgements since", lane.name, lane.account.name, lane.protocol, n), l.fleet.gone())
			}
		}
		return nil
	})
}

// finish ends the load, and says what is wrong with what came of it.
func (l *load) finish(ctx context.Context) (wrong []string, err error) {
	l.endSending()
	l.sending.Wait()
	wrong, err = l.judge(ctx)
	l.end()
	if l.certs != nil {
		l.certs.stop()
	}
	l.reading.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return wrong, errors.Join(append(l.errs, err)...)
}

// abandon ends the load without a word. Who is interrupted does not wait for it: it ends with
// the process.
func (l *load) abandon(ctx context.Context) {
	l.endSending()
	l.end()
	if ctx.Err() != nil {
		return
	}
	if l.certs != nil {
		l.certs.stop()
	}
	for _, nc := range l.conns {
		nc.Close()
	}
	l.sending.Wait()
	l.reading.Wait()
}

// judge waits until all that was acknowledged has come, as far as it does, and judges all.
func (l *load) judge(ctx context.Context) (wrong []string, err error) {
	if e := until(ctx, patience, "all that was acknowledged has come", func(context.Context) error {
		for _, lane := range l.book.of("") {
			if missing := lane.missing(); len(missing) > 0 {
				return fmt.Errorf("%s of %s over %s lacks %d, such as %s", lane.name, lane.account.name, lane.protocol, len(missing), some(missing))
			}
		}
		return nil
	}); e != nil && ctx.Err() != nil {
		return nil, e
	}
	// What comes although it came before has a moment to do so.
	if err := pause(ctx, 2*time.Second); err != nil {
		return nil, err
	}
	for _, lane := range l.book.of("") {
		for _, text := range lane.judge(lane.protocol != overNATS) {
			wrong = append(wrong, fmt.Sprintf("%s %s of %s: %s", lane.protocol, lane.name, lane.account.name, text))
		}
	}
	l.book.mu.Lock()
	wrong = append(wrong, l.book.leaks...)
	l.book.mu.Unlock()
	_ = until(ctx, 4*reconcile, "watchers know all", func(context.Context) error {
		if lacking := l.changes.lacking(); len(lacking) > 0 {
			return errors.New(lacking[0])
		}
		return nil
	})
	wrong = append(wrong, l.changes.lacking()...)
	certs, _ := l.certs.judge(ctx)
	for _, text := range certs {
		wrong = append(wrong, "certificates: "+text)
	}
	more, err := l.history.judge(ctx, l.eyes[0])
	wrong = append(wrong, more...)
	if err != nil {
		return wrong, err
	}
	for i, a := range l.fleet.accounts {
		more, err := l.auditNATS(ctx, a, l.eyes[i])
		for _, text := range more {
			wrong = append(wrong, "NATS of "+a.name+": "+text)
		}
		if err != nil {
			return wrong, err
		}
	}
	return wrong, nil
}

// count adds what happened to a result, after it was judged.
func (l *load) count(r *Result) {
	for _, lane := range l.book.of("") {
		r.Protocols[lane.protocol] = r.Protocols[lane.protocol].plus(lane.tally(lane.protocol != overNATS))
	}
	l.book.mu.Lock()
	for protocol, n := range l.book.crossed {
		r.Protocols[protocol] = r.Protocols[protocol].plus(Tally{Crossed: n})
	}
	l.book.mu.Unlock()
	// What lies in the copies counts, and not what a consumer gave.
	t := r.Protocols[overNATS]
	t.Lost, t.Twice, t.Disordered = max(t.Lost, l.stored.Lost), l.stored.Twice, l.stored.Disordered
	r.Protocols[overNATS] = t

	c := l.changes
	c.mu.Lock()
	r.Others.Changes = c.flushed
	for _, h := range c.watchers {
		h.mu.Lock()
		r.Others.Notices, r.Others.Resyncs = r.Others.Notices+h.notices, r.Others.Resyncs+h.resyncs
		h.mu.Unlock()
	}
	c.mu.Unlock()
	placed, signed := l.certs.office.count()
	for name := range placed {
		r.Others.Orders, r.Others.Issued = r.Others.Orders+placed[name], r.Others.Issued+signed[name]
	}
	h := l.history
	h.mu.Lock()
	r.Others.Decided, r.Others.Unknown, r.Others.Held = len(h.decided), len(h.unknown), len(h.held)/2
	h.mu.Unlock()
}
