package fleetbus

import (
	"context"
	"fmt"
	"slices"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/admission"
	"github.com/fleetbus/fleetbus/internal/meter"
	"github.com/fleetbus/fleetbus/metrics"
)

// A watched is a Protocol for those who watch the node. It is served from before the node
// joins its fleet until all else is over, because it tells of both.
type watched interface {
	Protocol
	Watch(metrics.Node)
}

// openWatched opens the listeners of those who watch the node.
func (s *Server) openWatched(ctx context.Context, undo *cleanup) error {
	for _, l := range s.opts.Listeners {
		p, ok := l.Protocol.(watched)
		if !ok {
			continue
		}
		p.Watch(s)
		longer := context.WithoutCancel(ctx)
		w, err := s.openListener(longer, l)
		if err != nil {
			return s.explainPort(err)
		}
		s.gates[len(s.gates)-1].Open()
		s.bound(l.Name, w.Addr())
		login := s.loginOf(l)
		undo.background(longer, func(ctx context.Context) {
			defer w.Close()
			err := p.Serve(ctx, w, func(ctx context.Context, c identity.Credentials) (*Session, error) {
				select {
				case <-s.ready:
					return login(ctx, c)
				default:
					return nil, admission.ErrStarting
				}
			})
			if ctx.Err() == nil {
				s.fail(fmt.Errorf("serving listener %q: %w", l.Name, err))
			}
		})
	}
	return nil
}

// Conditions are those of the node's readiness, told at once, whatever it does.
func (s *Server) Conditions() []metrics.Condition { return s.life.Conditions(s.disk.Held()) }

// Metrics is what the node counts and measures. Whoever asks again within a second is told
// the same. In Client mode, and before the node is ready, it is little.
func (s *Server) Metrics(ctx context.Context) []metrics.Sample {
	select {
	case <-s.ready:
		if s.broker != nil {
			return s.meter.Gather(ctx, s.view)
		}
	default:
	}
	return append(meter.Readiness(s.Conditions()), meter.Build(Version()))
}

// view is what is measured.
func (s *Server) view() meter.View {
	v := meter.View{
		Node: s.fleet.node, Cluster: s.home.Node.Cluster, Role: string(s.opts.Mode), Version: Version(), Started: s.started, Broker: s.broker,
		AccountName: func(public string) (string, bool) {
			name, ok := s.fleet.accountName(public)
			return name, ok && !slices.Contains([]string{identity.SystemName, identity.CalloutName, identity.RegionsName}, name)
		},
		Sessions: s.fleet.resting.perListener, Links: func() []admin.Link { return s.links.List(s.otherNodes()) },
		Conditions: s.Conditions, Findings: s.Check, Failed: func() int { return len(s.failures.findings()) }, Sources: s.knownSources,
		Sequence: s.fleet.directory.Seq(), Stale: s.life.Stale.Load(), DiskFree: s.disk.Free, Reserve: s.opts.Store.Reserve, Held: s.disk.Held(), NotAfter: s.certs.NotAfter(),
	}
	v.Others = append(v.Others, s.signed)
	for _, l := range s.opts.Listeners {
		v.Others = append(v.Others, l.Protocol)
	}
	for _, b := range s.opts.Services {
		v.Others = append(v.Others, b.Service)
	}
	for _, one := range s.managers.services() {
		v.Others = append(v.Others, one)
	}
	return v
}

// perListener counts sessions by listener and account.
func (r *resting) perListener() map[[2]string]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[[2]string]int{}
	for s := range r.all {
		all[[2]string{s.listener, s.Principal.Account}]++
	}
	return all
}
