// Package source runs the sources of changes that a fleet keeps, each on one node at a
// time: the one that holds its lease.
package source

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/lease"
)

const (
	// check is how often a node looks for sources to begin or to end.
	check = time.Second
	// tries is how often a node tries to run a source before it lets another one try.
	tries = 3
	// settled is how long a source must have run for its failures to be forgotten.
	settled = 30 * time.Second
	// pause is how long a node leaves a source to others that it could not run.
	pause = 12 * time.Second
)

// A Host is the node that sources run on.
type Host struct {
	Node string
	// Conn is in the account that keeps the leases.
	Conn *nats.Conn
	// Wanted are those that the fleet keeps, by any key that is one source's.
	Wanted func() map[string]admin.Source
	// Open makes the source, and connects nothing.
	Open func(admin.Source) (change.Source, error)
	// Connect connects to the account to publish there, and says how that ends.
	Connect func(account string) (conn *nats.Conn, end func(), err error)
	// Failed is told what is wrong with the source account/name, nil when nothing is.
	Failed func(source string, err error)
	Logger *slog.Logger
}

// A Note is what the node that runs a source tells of it in its lease.
type Note struct {
	Error     string          `json:"error,omitempty"`
	Progress  change.Progress `json:"progress"`
	Announced uint64          `json:"announced"`
	Refused   uint64          `json:"refused"`
}

// Subject is what a source is called in the ledger and among the leases.
func Subject(account, name string) string { return "source." + account + "." + name }

// Run runs each of the sources that no other node runs, until ctx is done.
func Run(ctx context.Context, h Host) {
	leases, err := h.openLeases(ctx)
	if err != nil {
		return
	}
	type run struct {
		source admin.Source
		cancel context.CancelFunc
	}
	running := map[string]run{}
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(check)
	defer tick.Stop()
	for {
		wanted := h.Wanted()
		for full, r := range running {
			if now, ok := wanted[full]; !ok || !same(now, r.source) {
				r.cancel()
				delete(running, full)
			}
		}
		for full, src := range wanted {
			if _, ok := running[full]; ok || src.Node != "" && src.Node != h.Node {
				continue
			}
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			running[full] = run{src, cancel}
			all.Go(func() { h.keep(ctx, leases, src) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func same(a, b admin.Source) bool {
	tables := slices.Equal(a.Tables, b.Tables)
	a.Tables, b.Tables = nil, nil
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return tables && string(x) == string(y)
}

// openLeases tries until there is a quorum, or ctx is done.
func (h Host) openLeases(ctx context.Context) (*lease.Leases, error) {
	js, err := jetstream.New(h.Conn)
	if err != nil {
		return nil, err
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		leases, err := lease.Open(ctx, js, lease.Options{})
		if err == nil {
			return leases, nil
		}
		h.Logger.Debug("leases cannot be opened yet", "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// keep runs a source whenever this node has its lease.
func (h Host) keep(ctx context.Context, leases *lease.Leases, src admin.Source) {
	full := src.Account + "/" + src.Name
	defer h.Failed(full, nil)
	for ctx.Err() == nil {
		t := &tenure{Host: h, source: src, full: full}
		err := leases.Hold(ctx, Subject(src.Account, src.Name), h.Node, t.note, t.run)
		if ctx.Err() != nil {
			return
		}
		h.Logger.Warn("source is given up for a while", "source", full, "error", err)
		// Another node may be able to.
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// A tenure is one time that this node has the lease of a source.
type tenure struct {
	Host
	source admin.Source
	full   string

	mu        sync.Mutex
	publisher *change.Publisher
	err       error
}

func (t *tenure) note() any {
	t.mu.Lock()
	defer t.mu.Unlock()
	var n Note
	if t.err != nil {
		n.Error = t.err.Error()
	}
	if t.publisher != nil {
		stats := t.publisher.Stats()
		n.Progress, n.Announced, n.Refused = t.publisher.Progress(), stats.Announced, stats.Refused
	}
	return n
}

func (t *tenure) set(p *change.Publisher, err error) {
	t.mu.Lock()
	t.err = err
	if p != nil {
		t.publisher = p
	}
	t.mu.Unlock()
	t.Failed(t.full, err)
}

// run runs the source until ctx is done, or it has failed a few times in a row.
func (t *tenure) run(ctx context.Context) error {
	t.Logger.Info("source begins", "source", t.full, "node", t.Node)
	for failed := 0; ; {
		began := time.Now()
		err := t.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > settled {
			failed = 0
		}
		failed++
		t.set(nil, err)
		t.Logger.Error("source failed", "source", t.full, "error", err)
		if failed == tries {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second << failed):
		}
	}
}

var errEnded = errors.New("it returned without an error")

func (t *tenure) once(ctx context.Context) error {
	source, err := t.Open(t.source)
	if err != nil {
		return err
	}
	conn, end, err := t.Connect(t.source.Account)
	if err != nil {
		return err
	}
	defer end()
	p, err := change.NewPublisher(ctx, conn, t.source.Name, change.PublisherOptions{
		Name: t.Node, Opaque: t.source.Opaque, Widen: true, Logger: t.Logger,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	t.set(p, nil)
	if err := source.Run(ctx, p); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errEnded
	}
	return nil
}
