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
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/signed"
	"github.com/fleetbus/fleetbus/internal/source"
	"github.com/fleetbus/fleetbus/lease"
)

// OpenSource makes the change.Source of one type of database. dsn is how to reach
// it and may hold a password: it must be in no error. It connects nothing. An
// *admin.Error reaches whoever adds the source with its fix.
type OpenSource func(s admin.Source, dsn string, log *slog.Logger) (change.Source, error)

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
	source.Run(ctx, source.Host{
		Node: s.fleet.node, Conn: s.conn, Wanted: s.fleet.sources, Open: s.openSource, Logger: s.log,
		Connect: func(account string) (*nats.Conn, func(), error) {
			session, err := s.open(s.nodePrincipal(account), func(o *nats.Options) error {
				o.AllowReconnect, o.MaxReconnect, o.ReconnectWait = true, -1, 50*time.Millisecond
				return nil
			})
			if err != nil {
				return nil, nil, err
			}
			return session.Conn, session.Close, nil
		},
		Failed: func(name string, err error) { s.failures.set("source "+name, err) },
	})
}

// newGates are those that verify signatures on this node.
func (s *Server) newGates() *signed.Gates {
	return signed.New(signed.Host{
		Node: s.fleet.node, Conn: func() *nats.Conn { return s.conn }, Accounts: s.fleet.directory.Accounts, Signer: s.fleet.directory.KeySigner,
		Open: s.dial, Failed: s.failures.set, Tell: s.events.Tell, Logger: s.log,
	})
}

// openSource makes the source of a record, whose secret it opens.
func (s *Server) openSource(src admin.Source) (change.Source, error) {
	open, ok := s.opts.SourceTypes[src.Type]
	if !ok {
		return nil, fmt.Errorf("opening the source: this node knows no type %q", src.Type)
	}
	dsn := ""
	if src.Secret != "" {
		secret, err := s.fleet.authority.OpenSecret(src.Secret)
		if err != nil {
			return nil, err
		}
		dsn = string(secret)
	}
	return open(src, dsn, s.log)
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
	seq, err := s.fleet.change(ctx, source.Subject(r.Account, r.Name), func() (any, error) { return r, nil })
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
		held, err := leases.Look(ctx, source.Subject(src.Account, src.Name))
		if err != nil && !errors.Is(err, lease.ErrFree) {
			return nil, err
		}
		if err == nil {
			var note source.Note
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
	subject := source.Subject(account, name)
	if _, ok := s.fleet.sources()[account+"."+name]; !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus change source ls", "there is no source %q", r.Name)
	}
	seq, err := s.fleet.change(ctx, subject, func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}
