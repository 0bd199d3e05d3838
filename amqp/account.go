package amqp

import (
	"context"
	"sync"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/queue"
	"github.com/fleetbus/fleetbus/amqp/route"
)

// accounts are the virtual hosts that this process has. It implements opener.
type accounts struct {
	timers *queue.Timers

	mu  sync.Mutex
	all map[string]*account // by the name of the account
}

func newAccounts() *accounts {
	return &accounts{timers: queue.NewTimers(nil), all: map[string]*account{}}
}

// run has time pass for all queues, until ctx is done.
func (a *accounts) run(ctx context.Context) { a.timers.Run(ctx) }

// open implements opener.
func (a *accounts) open(_ context.Context, s *fleetbus.Session) (vhost, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	name := s.Principal.Account
	one := a.all[name]
	if one == nil {
		one = newAccount(name, a.timers)
		a.all[name] = one
	}
	return one, nil
}

// account is a virtual host: the exchanges and queues of an account. It implements vhost,
// and queue.Outlet for its queues.
type account struct {
	table *route.Table
	env   *queue.Env

	mu     sync.RWMutex
	queues map[string]*queue.Queue
}

func newAccount(name string, timers *queue.Timers) *account {
	a := &account{table: route.NewTable(name), queues: map[string]*queue.Queue{}}
	a.env = &queue.Env{Timers: timers, Outlet: a}
	return a
}

// attach implements vhost.
func (a *account) attach(_ context.Context, who peer) (host, error) {
	return &attached{account: a, who: who}, nil
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

// declare returns the queue that s declares, and whether it was made for it.
func (a *account) declare(s *queue.Settings) (q *queue.Queue, made bool, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if q := a.queues[s.Name]; q != nil {
		return q, false, q.Settings().Same(s)
	}
	q = queue.New(s, a.env)
	a.queues[s.Name] = q
	return q, true, nil
}

// bind binds b to a queue, unless that is gone.
func (a *account) bind(q *queue.Queue, b route.Binding) error {
	a.mu.RLock()
	defer a.mu.RUnlock()
	if a.queues[b.Destination] != q {
		return queue.ErrGone
	}
	_, err := a.table.Bind(b)
	return err
}

// Gone implements queue.Outlet.
func (a *account) Gone(q *queue.Queue) {
	name := q.Settings().Name
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.queues[name] == q {
		delete(a.queues, name)
		a.table.DropQueue(name)
	}
}

// DeadLetter implements queue.Outlet. One that has nowhere to go is gone.
func (a *account) DeadLetter(d *queue.Dead) {
	names, err := a.table.Route(nil, routed(d.Message.Exchange, d.Message.Key, d.Headers))
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

// routed is what routing has to know of a message with these headers.
func routed(exchange, key string, headers frame.Table) *route.Message {
	copies, err := route.Copies(headers)
	if err != nil {
		copies = nil // who published it was told
	}
	return &route.Message{Exchange: exchange, Key: key, Headers: func() frame.Table { return headers }, Copies: copies}
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
