package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/lease"
)

// OpenSource makes the change.Source of one type of database. dsn is how to reach
// it and may hold a password: it must be in no error. It connects nothing. An
// *admin.Error reaches whoever adds the source with its fix.
type OpenSource func(s admin.Source, dsn string, log *slog.Logger) (change.Source, error)

const (
	// sourcesCheck is how often a node looks for sources to begin or to end.
	sourcesCheck = time.Second
	// sourceTries is how often a node tries to run a source before it lets another
	// one try.
	sourceTries = 3
)

// sourceNote is what the node that runs a source tells of it in its lease.
type sourceNote struct {
	Error     string          `json:"error,omitempty"`
	Progress  change.Progress `json:"progress"`
	Announced uint64          `json:"announced"`
	Refused   uint64          `json:"refused"`
}

func sourceSubject(account, name string) string { return "source." + account + "." + name }

// sources are those that the fleet keeps, by account.name.
func (f *fleet) sources() map[string]admin.Source {
	all := map[string]admin.Source{}
	for full, record := range f.directory.Records("source") {
		var src admin.Source
		if err := json.Unmarshal(record, &src); err != nil {
			f.log.Error("a source cannot be read", "source", full, "error", err)
			continue
		}
		src.Account, src.Name, _ = strings.Cut(full, ".")
		all[full] = src
	}
	return all
}

// runSources runs the sources of the fleet, each if no other node does, until ctx
// is done.
func (s *Server) runSources(ctx context.Context) {
	leases, err := s.openLeases(ctx)
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
	tick := time.NewTicker(sourcesCheck)
	defer tick.Stop()
	for {
		wanted := s.fleet.sources()
		for full, r := range running {
			if now, ok := wanted[full]; !ok || !sameSource(now, r.source) {
				r.cancel()
				delete(running, full)
			}
		}
		for full, src := range wanted {
			if _, ok := running[full]; ok || src.Node != "" && src.Node != s.fleet.node {
				continue
			}
			run, cancel := context.WithCancel(ctx)
			defer cancel()
			running[full] = struct {
				source admin.Source
				cancel context.CancelFunc
			}{src, cancel}
			all.Go(func() { s.runSource(run, leases, src) })
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func sameSource(a, b admin.Source) bool {
	tables := slices.Equal(a.Tables, b.Tables)
	a.Tables, b.Tables = nil, nil
	x, _ := json.Marshal(a)
	y, _ := json.Marshal(b)
	return tables && string(x) == string(y)
}

// openLeases tries until there is a quorum, or ctx is done.
func (s *Server) openLeases(ctx context.Context) (*lease.Leases, error) {
	js, err := jetstream.New(s.conn)
	if err != nil {
		return nil, err
	}
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		leases, err := lease.Open(ctx, js, lease.Options{})
		if err == nil {
			return leases, nil
		}
		s.log.Debug("leases cannot be opened yet", "error", err)
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(wait):
		}
	}
}

// runSource runs a source whenever this node has its lease.
func (s *Server) runSource(ctx context.Context, leases *lease.Leases, src admin.Source) {
	full := src.Account + "/" + src.Name
	defer s.failures.set("source "+full, nil)
	for ctx.Err() == nil {
		r := &sourceRun{Server: s, source: src}
		err := leases.Hold(ctx, sourceSubject(src.Account, src.Name), s.fleet.node, r.note, r.run)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("source is given up for a while", "source", full, "error", err)
		// Another node may be able to.
		select {
		case <-ctx.Done():
		case <-time.After(2 * serviceBackoffMax / 5):
		}
	}
}

// sourceRun is one time that this node has the lease of a source.
type sourceRun struct {
	*Server
	source admin.Source

	mu        sync.Mutex
	publisher *change.Publisher
	err       error
}

func (r *sourceRun) note() any {
	r.mu.Lock()
	defer r.mu.Unlock()
	var n sourceNote
	if r.err != nil {
		n.Error = r.err.Error()
	}
	if r.publisher != nil {
		stats := r.publisher.Stats()
		n.Progress, n.Announced, n.Refused = r.publisher.Progress(), stats.Announced, stats.Refused
	}
	return n
}

func (r *sourceRun) set(p *change.Publisher, err error) {
	r.mu.Lock()
	r.err = err
	if p != nil {
		r.publisher = p
	}
	r.mu.Unlock()
	r.failures.set("source "+r.source.Account+"/"+r.source.Name, err)
}

// run runs the source until ctx is done, or it has failed a few times in a row.
func (r *sourceRun) run(ctx context.Context) error {
	r.log.Info("source begins", "source", r.source.Account+"/"+r.source.Name, "node", r.fleet.node)
	for failed := 0; ; {
		began := time.Now()
		err := r.once(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > serviceBackoffMax {
			failed = 0
		}
		failed++
		r.set(nil, err)
		r.log.Error("source failed", "source", r.source.Account+"/"+r.source.Name, "error", err)
		if failed == sourceTries {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second << failed):
		}
	}
}

func (r *sourceRun) once(ctx context.Context) error {
	open, ok := r.opts.SourceTypes[r.source.Type]
	if !ok {
		return fmt.Errorf("opening the source: this node knows no type %q", r.source.Type)
	}
	dsn := ""
	if r.source.Secret != "" {
		secret, err := r.fleet.authority.OpenSecret(r.source.Secret)
		if err != nil {
			return err
		}
		dsn = string(secret)
	}
	source, err := open(r.source, dsn, r.log)
	if err != nil {
		return err
	}
	session, err := r.open(r.nodePrincipal(r.source.Account), func(o *nats.Options) error {
		o.AllowReconnect, o.MaxReconnect, o.ReconnectWait = true, -1, 50*time.Millisecond
		return nil
	})
	if err != nil {
		return err
	}
	defer session.Close()
	p, err := change.NewPublisher(ctx, session.Conn, r.source.Name, change.PublisherOptions{
		Name: r.fleet.node, Opaque: r.source.Opaque, Widen: true, Logger: r.log,
	})
	if err != nil {
		return err
	}
	defer p.Close()
	r.set(p, nil)
	if err := source.Run(ctx, p); err != nil {
		return err
	}
	if ctx.Err() == nil {
		return errServiceEnded
	}
	return nil
}

func (s *Server) sourceSetup(context.Context, struct{}) (any, error) {
	public, err := s.fleet.authority.SecretPublic()
	return admin.SourceSetup{SecretPublic: public, Types: slices.Sorted(maps.Keys(s.opts.SourceTypes))}, err
}

func (s *Server) addSource(ctx context.Context, r admin.Source) (any, error) {
	began := time.Now()
	if _, err := s.wantAccount(r.Account); err != nil {
		return nil, err
	}
	if err := identity.CheckName(r.Name); err != nil {
		return nil, admin.Errorf(admin.Invalid, "choose another name", "%v", err)
	}
	if _, ok := s.opts.SourceTypes[r.Type]; !ok {
		return nil, admin.Errorf(admin.Invalid, "", "%q is not a type of source: they are %s", r.Type, strings.Join(slices.Sorted(maps.Keys(s.opts.SourceTypes)), ", "))
	}
	if n, ok := s.fleet.directory.Node(r.Node); r.Node != "" && (!ok || n.Removed) {
		return nil, admin.Errorf(admin.NotFound, "fleetbus node ls", "there is no node %q", r.Node)
	}
	dsn, err := s.fleet.authority.OpenSecret(r.Secret)
	if err != nil {
		return nil, admin.Errorf(admin.Invalid, "seal it with the key that source.setup tells", "%v", err)
	}
	if _, err := s.opts.SourceTypes[r.Type](r, string(dsn), slog.New(slog.DiscardHandler)); err != nil {
		var refused *admin.Error
		if errors.As(err, &refused) {
			return nil, refused
		}
		return nil, admin.Errorf(admin.Invalid, "", "%v", err)
	}
	seq, err := s.fleet.change(ctx, sourceSubject(r.Account, r.Name), func() (any, error) { return r, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

func (s *Server) listSources(ctx context.Context, r admin.Name) (any, error) {
	all := []admin.SourceInfo{}
	sources := s.fleet.sources()
	if len(sources) == 0 {
		return all, nil
	}
	js, err := jetstream.New(s.conn)
	if err != nil {
		return nil, err
	}
	leases, err := lease.Open(ctx, js, lease.Options{})
	if err != nil {
		return nil, err
	}
	for _, full := range slices.Sorted(maps.Keys(sources)) {
		src := sources[full]
		if r.Name != "" && r.Name != src.Account {
			continue
		}
		info := admin.SourceInfo{Source: src, State: admin.SourceWaiting}
		info.Secret = ""
		held, err := leases.Look(ctx, sourceSubject(src.Account, src.Name))
		if err != nil && !errors.Is(err, lease.ErrFree) {
			return nil, err
		}
		if err == nil {
			var note sourceNote
			if err := json.Unmarshal(held.Note, &note); err != nil {
				return nil, fmt.Errorf("reading the lease of source %q: %w", full, err)
			}
			info.State, info.Runner, info.Since, info.Error = admin.SourceRunning, held.Holder, held.Since, note.Error
			info.Progress, info.Announced, info.Refused = note.Progress, note.Announced, note.Refused
			if note.Error != "" {
				info.State = admin.SourceFailed
			}
		}
		all = append(all, info)
	}
	return all, nil
}

// knownSources are the sources for a glance, which must not wait for a quorum.
func (s *Server) knownSources(ctx context.Context) []admin.SourceInfo {
	if len(s.fleet.sources()) == 0 {
		return []admin.SourceInfo{}
	}
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	all, err := s.listSources(ctx, admin.Name{})
	if err != nil {
		s.log.Debug("sources cannot be listed now", "error", err)
		return []admin.SourceInfo{}
	}
	return all.([]admin.SourceInfo)
}

func (s *Server) removeSource(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	account, name, _ := strings.Cut(r.Name, "/")
	subject := sourceSubject(account, name)
	if _, ok := s.fleet.sources()[account+"."+name]; !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus change source ls", "there is no source %q", r.Name)
	}
	seq, err := s.fleet.change(ctx, subject, func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}
