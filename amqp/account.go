package amqp

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"

	"github.com/nats-io/nuid"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/journal"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/route"
)

// streamName is the stream of an account that has what is durable.
const streamName = "AMQP"

// openAccount opens an account for this process, which is to be the only one.
// has reports whether it is.
func openAccount(ctx context.Context, conn *fleetbus.Session, name string, has func() bool, timers *queue.Timers, pressure *pressure, log *slog.Logger) (*account, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	a := newAccount(name, has, timers, pressure, log)
	j, queues, err := journal.Open(ctx, conn.Conn, journal.Options{
		Stream: streamName, Prefix: subjects(conn, "amqp"), Metadata: map[string]string{fleetbus.ReplicasKey: "auto"}, Logger: log,
		Failed: a.fail, Refused: pressure.refused, Room: conn.Room,
	}, a.table)
	if err != nil {
		return nil, err
	}
	a.journal, a.largest = j, int(journal.Largest(conn.Conn))-recordOverhead
	if err = a.restore(queues); err == nil {
		a.bus, err = openBus(ctx, conn, a)
	}
	if err != nil {
		a.close()
		return nil, err
	}
	return a, nil
}

// fail has the account be opened anew.
func (a *account) fail(err error) {
	select {
	case a.failed <- err:
	default: // it will be
	}
}

// account is a virtual host: the exchanges and queues of an account. It implements vhost,
// and queue.Outlet for its queues.
type account struct {
	name    string
	log     *slog.Logger
	table   *route.Table
	env     *queue.Env
	journal *journal.Journal
	bus     *bus
	*pressure
	has     func() bool // this process may speak for the account
	largest int         // message that the engine takes, with its properties, in bytes
	failed  chan error  // why nothing is stored any more; it has room

	// changing is held while something durable is made, until it is stored.
	changing sync.Mutex

	mu     sync.RWMutex
	queues map[string]*queue.Queue
	ending map[*queue.Queue]chan error // who waits until its end is stored
	closed bool
	leave  map[*attached]func() // ends connections
}

func newAccount(name string, has func() bool, timers *queue.Timers, pressure *pressure, log *slog.Logger) *account {
	a := &account{
		name: name, has: has, log: log, pressure: pressure, table: route.NewTable(name), queues: map[string]*queue.Queue{}, ending: map[*queue.Queue]chan error{},
		leave: map[*attached]func(){}, failed: make(chan error, 1),
	}
	a.env = &queue.Env{Timers: timers, Outlet: a, Budget: bodyBudget, Held: &pressure.held}
	return a
}

// recordOverhead is what a stored message has beside its body and properties, in bytes.
const recordOverhead = 1 << 10

// fits refuses a message that is too large to be stored, if it has to be.
func (a *account) fits(m *queue.Message, queues []*queue.Queue) error {
	size := len(m.Body) + len(m.Properties)
	if size <= a.largest {
		return nil
	}
	for _, q := range queues {
		if durable(q.Settings()) {
			return frame.ChannelError(frame.PreconditionFailed, "message size %d is larger than configured max size %d of a durable queue", size, a.largest)
		}
	}
	return nil
}

// bodyBudget is how many bytes of bodies a durable queue keeps in memory.
const bodyBudget = 16 << 20

// restore opens the queues that are durable.
func (a *account) restore(queues []journal.Queue) error {
	for _, one := range queues {
		m, err := one.Declaration()
		if err != nil {
			return err
		}
		s, err := queue.Parse(a.name, m, "")
		if err != nil {
			return fmt.Errorf("restoring queue %q: %w", one.Name, err)
		}
		q, err := queue.Open(s, a.env, a.journal.Log(one.ID))
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.queues[s.Name] = q
		a.mu.Unlock()
	}
	return nil
}

// close ends the account here; what is durable stays.
func (a *account) close() {
	a.mu.Lock()
	if a.closed {
		a.mu.Unlock()
		return
	}
	a.closed = true
	queues, leave := a.queues, a.leave
	a.queues, a.leave = map[string]*queue.Queue{}, map[*attached]func(){}
	a.mu.Unlock()
	for _, f := range leave {
		f()
	}
	if a.bus != nil {
		a.bus.close()
	}
	for _, q := range queues {
		q.Close()
	}
	a.journal.Close()
}

// holds implements vhost.
func (a *account) holds() bool { return a.has() }

// attach implements vhost.
func (a *account) attach(_ context.Context, who peer) (host, error) {
	h := &attached{account: a, who: who}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, elsewhere()
	}
	a.leave[h] = who.leave
	return h, nil
}

// queue is the one of a name, nil if there is none.
func (a *account) queue(name string) *queue.Queue {
	a.mu.RLock()
	defer a.mu.RUnlock()
	return a.queues[name]
}

// find appends the queues of these names that are there.
func (a *account) find(found []*queue.Queue, names []string) []*queue.Queue {
	a.mu.RLock()
	defer a.mu.RUnlock()
	for _, name := range names {
		if q := a.queues[name]; q != nil {
			found = append(found, q)
		}
	}
	return found
}

// durable reports whether a queue outlives the process: an exclusive one does not outlive
// its connection.
func durable(s *queue.Settings) bool { return s.Durable && s.Owner == "" }

// declare returns the queue that s declares, and whether it was made for it. One that is
// durable is stored when it returns.
func (a *account) declare(ctx context.Context, s *queue.Settings) (q *queue.Queue, made bool, err error) {
	if q := a.queue(s.Name); q != nil {
		return q, false, q.Settings().Same(s)
	}
	if !durable(s) {
		return a.add(s, func() (*queue.Queue, error) { return queue.New(s, a.env), nil })
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	if q := a.queue(s.Name); q != nil {
		return q, false, q.Settings().Same(s)
	}
	arguments, err := s.Arguments.Append(nil)
	if err != nil {
		return nil, false, frame.ChannelError(frame.PreconditionFailed, "the arguments of queue '%s' cannot be stored", s.Name)
	}
	id := nuid.Next()
	if err := a.journal.Record(ctx, journal.Change{Declare: &journal.Queue{ID: id, Name: route.Name(s.Name), AutoDelete: s.AutoDelete, Arguments: arguments}}); err != nil {
		return nil, false, err
	}
	q, made, err = a.add(s, func() (*queue.Queue, error) { return queue.Open(s, a.env, a.journal.Log(id)) })
	if !made { // another made one that is not durable meanwhile
		name := route.Name(s.Name)
		err = errors.Join(err, a.journal.Record(ctx, journal.Change{Delete: &name}))
	}
	return q, made, err
}

// add has there be a queue of the name of s.
func (a *account) add(s *queue.Settings, make func() (*queue.Queue, error)) (q *queue.Queue, made bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return nil, false, queue.ErrGone
	}
	if q := a.queues[s.Name]; q != nil {
		return q, false, q.Settings().Same(s)
	}
	if q, err = make(); err != nil {
		return nil, false, err
	}
	a.queues[s.Name] = q
	return q, true, nil
}

// remove deletes a queue, and says how many messages were ready. Of one that is durable
// that is stored when it returns.
func (a *account) remove(ctx context.Context, q *queue.Queue, ifUnused, ifEmpty bool) (n int, err error) {
	var stored chan error
	if durable(q.Settings()) {
		stored = make(chan error, 1)
		a.mu.Lock()
		a.ending[q] = stored
		a.mu.Unlock()
	}
	if n, err = q.Delete(ifUnused, ifEmpty); err != nil {
		a.mu.Lock()
		delete(a.ending, q)
		a.mu.Unlock()
		return n, err
	}
	if stored == nil {
		return n, nil
	}
	select {
	case err := <-stored:
		return n, err
	case <-ctx.Done():
		return n, ctx.Err()
	}
}

// Gone implements queue.Outlet.
func (a *account) Gone(q *queue.Queue) {
	s := q.Settings()
	a.mu.Lock()
	defer a.mu.Unlock()
	stored := a.ending[q]
	delete(a.ending, q)
	tell := func(err error) {
		if stored != nil {
			stored <- err
		}
	}
	if a.queues[s.Name] != q {
		tell(nil)
		return
	}
	delete(a.queues, s.Name)
	also := a.table.DropQueue(s.Name)
	if durable(s) {
		name := route.Name(s.Name)
		a.journal.Write(journal.Change{Delete: &name}, tell)
	}
	a.wentAlso(also)
}

// wentAlso stores that exchanges went with something else. That there is none is no error
// when it is read again.
func (a *account) wentAlso(names []string) {
	for _, name := range names {
		a.journal.Write(journal.Change{Route: &route.Change{Kind: route.DeleteExchange, Name: route.Name(name)}}, func(err error) {
			if err != nil {
				a.log.Debug("that an exchange ended could not be stored", "account", a.name, "error", err)
			}
		})
	}
}

// change changes exchanges and bindings; what is durable of it is stored when it returns.
func (a *account) change(ctx context.Context, c route.Change, durable bool) error {
	if durable {
		a.changing.Lock()
		defer a.changing.Unlock()
	}
	changed, also, err := a.table.Apply(c)
	if err != nil || !changed {
		return err
	}
	a.wentAlso(also)
	if c.Kind == route.BindTo && c.Binding.Source == topicExchange {
		err = a.bus.known(ctx)
	}
	if durable {
		err = errors.Join(err, a.journal.Record(ctx, journal.Change{Route: &c}))
	}
	return err
}

// lasting reports whether an exchange is durable.
func (a *account) lasting(name string) bool {
	e, err := a.table.Known(name)
	return err == nil && e.Durable
}

// bind binds b to a queue, unless that is gone.
func (a *account) bind(ctx context.Context, q *queue.Queue, b route.Binding) error {
	if a.queue(b.Destination) != q {
		return queue.ErrGone
	}
	if err := a.change(ctx, route.Change{Kind: route.BindTo, Binding: &b}, durable(q.Settings()) && a.lasting(b.Source)); err != nil {
		return err
	}
	if a.queue(b.Destination) != q { // it ended meanwhile, and did not take the binding along
		_ = a.change(ctx, route.Change{Kind: route.UnbindFrom, Binding: &b}, false)
		return queue.ErrGone
	}
	return nil
}

// DeadLetter implements queue.Outlet. One that has nowhere to go is gone.
func (a *account) DeadLetter(d *queue.Dead) {
	to, _ := routed(d.Message.Exchange, d.Message.Key, d.Headers) // who published it was told of copies that are none
	names, err := a.table.Route(nil, to)
	if err != nil { // the exchange is not there
		d.Settled()
		return
	}
	open := names[:0]
	for _, name := range names {
		if !d.Cycles(name) {
			open = append(open, name)
		}
	}
	a.put(d.Message, a.find(nil, open), func(bool) { d.Settled() })
}

// routed is what routing has to know of a message with these headers; with an error, all
// but its copies.
func routed(exchange, key string, headers frame.Table) (*route.Message, error) {
	copies, err := route.Copies(headers)
	if err != nil {
		copies = nil
	}
	return &route.Message{Exchange: exchange, Key: key, Headers: func() frame.Table { return headers }, Copies: copies}, err
}

// put publishes m to all queues. done is called once, when the last of them has said
// whether it takes the message, with whether all do. It may be nil.
func (a *account) put(m *queue.Message, queues []*queue.Queue, done func(taken bool)) {
	switch {
	case done == nil:
		for _, q := range queues {
			q.Publish(m, nil)
		}
	case len(queues) == 0:
		done(true)
	default:
		all := &awaited{left: len(queues), taken: true, done: done}
		for _, q := range queues {
			q.Publish(m, all)
		}
	}
}

// awaited waits for several queues. It implements queue.Done.
type awaited struct {
	mu    sync.Mutex
	left  int
	taken bool
	done  func(taken bool)
}

// Done implements queue.Done.
func (w *awaited) Done(taken bool) {
	w.mu.Lock()
	w.left--
	w.taken = w.taken && taken
	last, all := w.left == 0, w.taken
	w.mu.Unlock()
	if last {
		w.done(all)
	}
}
