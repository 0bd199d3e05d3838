package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/adapter"
	"github.com/fleetbus/fleetbus/internal/ask"
)

// nodeAdaptersSubject is asked of all nodes: what did your adapters do.
const nodeAdaptersSubject = "node.adapters"

// adapterInput is before the subjects by which a stream takes from its adapter. They
// are private, so that nobody else can write there, and each region's own, so that no
// adapter of that name elsewhere does. The stream stores them with admin.AdapterPrefix
// in its place, so that they can be read.
func (s *Server) adapterInput() string {
	if region := s.fleet.authority.Region(); region != "" {
		return identity.Private + "adapter-" + region + "."
	}
	return identity.Private + "adapter."
}

func adapterSubject(name string) string { return "adapter." + name }

// newAdapters are those of this node, none yet.
func (s *Server) newAdapters() *adapter.Adapters {
	return adapter.New(adapter.Host{
		Input: s.adapterInput, Logger: s.log,
		Find: func(name string) (identity.Adapter, bool) { return s.fleet.directory.Adapter(name) },
		Open: s.dial,
	})
}

// dial is open for who wants the connection alone, and how it ends.
func (s *Server) dial(p identity.Principal) (*nats.Conn, func(), error) {
	session, err := s.open(p)
	if err != nil {
		return nil, nil, err
	}
	return session.Conn, session.Close, nil
}

// serveAdapters takes the messages of all accounts for all adapters. The nodes
// share them. It never blocks: who cannot be served at once is told so.
func (s *Server) serveAdapters(ctx context.Context, nc *nats.Conn) error {
	_, err := nc.QueueSubscribe(identity.AdapterRequests, "adapter", func(msg *nats.Msg) {
		taken, err := s.adapters.Take(msg)
		if err != nil {
			s.answerMessage(msg, nil, err)
			return
		}
		s.group.Go(func() {
			stored, err := taken.Store(ctx)
			s.answerMessage(msg, stored, err)
		})
	})
	if err != nil {
		return fmt.Errorf("subscribing to %q: %w", identity.AdapterRequests, err)
	}
	return nil
}

// answerMessage tells the sender, if it asked.
func (s *Server) answerMessage(msg *nats.Msg, stored *admin.Stored, err error) {
	if msg.Reply == "" {
		return
	}
	var reply admin.Reply
	if err == nil {
		reply.Data, err = json.Marshal(stored)
	}
	if err != nil && !errors.As(err, &reply.Error) {
		reply.Error = admin.Errorf(admin.Failed, "", "the message was not stored")
	}
	if err := ask.Answer(msg, reply); err != nil {
		s.log.Debug("a sender could not be answered", "error", err)
	}
}

// actAdapter gives the engine the new terms of the accounts that an adapter takes
// from, or took from.
func (f *fleet) actAdapter(name string) error {
	names := f.adapting[name]
	delete(f.adapting, name)
	if a, ok := f.directory.Adapter(name); ok {
		f.adapting[name] = accountsOf(a)
		names = append(names, f.adapting[name]...)
	}
	slices.Sort(names)
	return f.storeNamed(slices.Compact(names))
}

// accountsOf names the accounts that an adapter takes from.
func accountsOf(a identity.Adapter) (names []string) {
	for _, p := range a.From {
		names = append(names, p.Account)
	}
	return names
}

func (s *Server) addAdapter(ctx context.Context, r admin.AdapterRequest) (any, error) {
	began := time.Now()
	a := identity.Adapter{Name: r.Name, Subject: r.Subject, Stream: r.Stream, Created: began}
	slices.Sort(r.From)
	for _, name := range slices.Compact(r.From) {
		from, err := s.wantAccount(name)
		if err != nil {
			return nil, err
		}
		a.From = append(a.From, from.Party())
	}
	to, err := s.wantAccount(r.To)
	if err != nil {
		return nil, err
	}
	a.To = to.Party()
	if err := s.fleet.directory.CheckAdapter(a); err != nil {
		return nil, flowError(err)
	}
	if err := s.ensureStream(ctx, a); err != nil {
		return nil, err
	}
	seq, err := s.fleet.change(ctx, adapterSubject(a.Name), func() (any, error) {
		if known, ok := s.fleet.directory.Adapter(a.Name); ok {
			a.Created = known.Created
			if sameRecord(known, a) {
				return nil, errSame
			}
		}
		if err := s.fleet.directory.CheckAdapter(a); err != nil {
			return nil, flowError(err)
		}
		return a, nil
	})
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// ensureStream makes the stream of an adapter, if it is missing, or says why the
// one that is there does not do.
func (s *Server) ensureStream(ctx context.Context, a identity.Adapter) error {
	replicas := 1
	if len(s.broker.Members()) >= replicasWanted {
		replicas = replicasWanted
	}
	return adapter.Ensure(ctx, func(do func(jetstream.JetStream) error) error { return s.inAccount(a.To.Account, do) }, a, s.adapterInput(), replicas, map[string]string{ReplicasKey: "auto"})
}

func (s *Server) removeAdapter(ctx context.Context, r admin.Name) (any, error) {
	began := time.Now()
	if _, ok := s.fleet.directory.Adapter(r.Name); !ok {
		return nil, admin.Errorf(admin.NotFound, "fleetbus adapter ls", "there is no adapter %q", r.Name)
	}
	seq, err := s.fleet.change(ctx, adapterSubject(r.Name), func() (any, error) { return nil, nil })
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// adaptersReply is one node's answer on nodeAdaptersSubject, by adapter.
type adaptersReply struct {
	Node     string                        `json:"node"`
	Adapters map[string]admin.AdapterCount `json:"adapters"`
}

func (s *Server) answerAdapters(_ context.Context, msg *nats.Msg) error {
	return ask.Answer(msg, adaptersReply{Node: s.fleet.node, Adapters: s.adapters.Counts(s.fleet.node)})
}

func (s *Server) listAdapters(ctx context.Context, _ struct{}) (any, error) {
	expect := s.fleet.up()
	counts, err := ask.All(ctx, s.conn, nodeAdaptersSubject, struct{}{}, infoTimeout, func(r adaptersReply) bool {
		delete(expect, r.Node)
		return len(expect) == 0
	})
	if err != nil {
		return nil, err
	}
	all := []admin.AdapterInfo{}
	for _, a := range s.fleet.directory.Adapters() {
		info := admin.AdapterInfo{Adapter: a, Nodes: []admin.AdapterCount{}, Missing: slices.Sorted(maps.Keys(expect)), Waiting: []string{}}
		for _, r := range counts {
			count := r.Adapters[a.Name]
			count.Node = r.Node
			info.Nodes = append(info.Nodes, count)
		}
		slices.SortFunc(info.Nodes, func(a, b admin.AdapterCount) int { return strings.Compare(a.Node, b.Node) })
		for _, p := range a.From {
			if !s.fleet.directory.Flows(p.Account).Adapts(a.Name) {
				info.Waiting = append(info.Waiting, p.Account)
			}
		}
		all = append(all, info)
	}
	return all, nil
}

// removeAdapters takes an account from all adapters, and ends those that wrote to
// it, or have no other.
func (s *Server) removeAdapters(ctx context.Context, account string) error {
	for _, a := range s.fleet.directory.Adapters() {
		if a.To.Account != account && !slices.Contains(accountsOf(a), account) {
			continue
		}
		_, err := s.fleet.change(ctx, adapterSubject(a.Name), func() (any, error) {
			a, ok := s.fleet.directory.Adapter(a.Name)
			if !ok {
				return nil, errSame
			}
			a.From = slices.DeleteFunc(a.From, func(p identity.Party) bool { return p.Account == account })
			if a.To.Account == account || len(a.From) == 0 {
				return nil, nil
			}
			return a, nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
