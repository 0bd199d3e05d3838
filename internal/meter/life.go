package meter

import (
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/metrics"
)

// A Stage is where a node is in its life.
type Stage int32

// The stages, in their order.
const (
	// Starting reads the streams.
	Starting Stage = iota
	// Joining reads what the fleet agrees on.
	Joining
	// Serving accepts clients.
	Serving
	// Draining stops.
	Draining
)

// A Life is what a node knows of itself, without asking anybody. The zero value has just
// started. It is safe for concurrent use.
type Life struct {
	stage  atomic.Int32
	engine atomic.Pointer[broker.Broker]
	// Stale says that the node serves from its snapshot.
	Stale atomic.Bool
}

// Reach enters a stage, if the node is not beyond it.
func (l *Life) Reach(stage Stage) {
	for at := l.stage.Load(); at < int32(stage) && !l.stage.CompareAndSwap(at, int32(stage)); at = l.stage.Load() {
	}
}

// Serve enters Serving, with the engine that serves; nil has none.
func (l *Life) Serve(engine *broker.Broker) {
	l.engine.Store(engine)
	l.Reach(Serving)
}

// Conditions are those of readiness. held says that nothing more is stored.
//
// The engine's own word for its health is not among them: one that leads its group says
// for twenty seconds after it has lost the others that all is well. Here the quorum does
// not count, because a node that is taken out of service for lack of one mends nothing;
// whether the fleet has one is for those to say who ask all nodes.
func (l *Life) Conditions(held bool) []metrics.Condition {
	at, engine := Stage(l.stage.Load()), l.engine.Load()
	all := []metrics.Condition{
		{Name: "started", Counts: true, Holds: at > Starting, Why: "the node reads its streams"},
		{Name: "state", Counts: true, Holds: at > Joining, Why: "the node does not know yet what the fleet agrees on"},
		{Name: "serving", Counts: true, Holds: at < Draining, Why: "the node drains"},
	}
	if engine != nil {
		led := engine.Leader() != "" || engine.RouteAddr() == nil
		all = append(all,
			metrics.Condition{Name: "streams", Counts: true, Holds: engine.Enabled() && (!led || engine.Current()), Why: "the engine has closed its streams, or catches up with the others"},
			metrics.Condition{Name: "quorum", Holds: led, Why: "no leader is known: nothing durable can change"},
			metrics.Condition{Name: "snapshot", Holds: !l.Stale.Load(), Why: "the node serves from its snapshot: it has not caught up with the fleet"},
			metrics.Condition{Name: "store", Holds: !held, Why: "the disk is short: nothing more is stored here"})
	}
	for i := range all {
		if all[i].Holds {
			all[i].Why = ""
		}
	}
	return all
}

// Inside counts a connection inside the process from now on: done ends it, and so does
// the connection's end. The option is the last of its.
func (m *Meter) Inside(account string) (last nats.Option, done func()) {
	m.Opened(account)
	done = sync.OnceFunc(func() { m.Closed(account) })
	return func(o *nats.Options) error {
		closed := o.ClosedCB
		o.ClosedCB = func(nc *nats.Conn) {
			done()
			if closed != nil {
				closed(nc)
			}
		}
		return nil
	}, done
}
