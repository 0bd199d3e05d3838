package meter

import (
	"cmp"
	"context"
	"maps"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/metrics"
)

// What is told one by one, as the table of package metrics says.
const (
	mostStreams   = 500
	mostOfStream  = 50
	mostConsumers = 1000
	// readConsumers is how many consumers a node may have for the engine to be asked.
	readConsumers = 5000
	// fresh is for how long what was gathered is told again: whoever asks more often
	// costs nothing.
	fresh = time.Second
)

// A View is what a node lets be measured. All of it is required but what says otherwise.
type View struct {
	// Node, Cluster, Role and Version are the node's.
	Node, Cluster, Role, Version string
	Started                      time.Time
	Broker                       *broker.Broker
	// AccountName is the name of the account with that public key; false for what is
	// nobody's.
	AccountName func(public string) (string, bool)
	// Sessions counts those that protocols let in, by listener and account.
	Sessions func() map[[2]string]int
	// Links are to the other nodes.
	Links func() []admin.Link
	// Conditions and Findings are the node's.
	Conditions func() []metrics.Condition
	Findings   func(context.Context) []doctor.Finding
	// Failed counts services.
	Failed func() int
	// Sources are those of the fleet; may take a second.
	Sources func(context.Context) []admin.SourceInfo
	// Sequence is of the ledger.
	Sequence uint64
	Stale    bool
	// DiskFree is of the data directory, of which Reserve is to stay free; Held says
	// that nothing more is stored.
	DiskFree func() (int64, bool)
	Reserve  int64
	Held     bool
	NotAfter time.Time
	// Others are protocols and services; those that are a metrics.Source tell more.
	Others []any
}

// gathered is what was told last.
type gathered struct {
	at      time.Time
	samples []metrics.Sample
}

// Gather tells everything. Several at once, and those who come within a second, are told
// the same. view is called if something is to be gathered.
func (m *Meter) Gather(ctx context.Context, view func() View) []metrics.Sample {
	m.gathering.Lock()
	defer m.gathering.Unlock()
	began := time.Now()
	if began.Sub(m.gathered.at) < fresh {
		return slices.Clone(m.gathered.samples)
	}
	v := view()
	g := &gatherer{Meter: m, View: v, folded: map[string]int{"account": 0, "stream": 0, "consumer": 0}}
	g.node(ctx)
	g.traffic()
	g.links()
	g.streams()
	g.sources(ctx)
	for _, other := range v.Others {
		if source, ok := other.(metrics.Source); ok {
			g.all = append(g.all, source.Metrics(ctx)...)
		}
	}
	g.all = merged(g.all)
	for kind, n := range g.folded {
		g.tell("fleetbus_metrics_folded", float64(n), kind)
	}
	g.tell("fleetbus_metrics_gather_seconds", time.Since(began).Seconds())
	m.gathered = gathered{time.Now(), g.all}
	return slices.Clone(g.all)
}

// merged are samples of which no two are the same: several protocols, and the managers of
// several accounts, count the same. Of times the first is told.
func merged(samples []metrics.Sample) []metrics.Sample {
	at := map[string]int{}
	out := samples[:0]
	for _, s := range samples {
		key := s.Name + "\x00" + strings.Join(s.Labels, "\x00")
		i, known := at[key]
		switch {
		case !known:
			at[key] = len(out)
			out = append(out, s)
		case strings.Contains(s.Name, "timestamp"):
			out[i].Value = min(out[i].Value, s.Value)
		default:
			out[i].Value += s.Value
		}
	}
	return out
}

// gatherer is one gathering.
type gatherer struct {
	*Meter
	View
	all    []metrics.Sample
	folded map[string]int
	// named are the accounts that are told of by name.
	named map[string]bool
}

func (g *gatherer) tell(name string, value float64, labels ...string) {
	g.all = append(g.all, metrics.Of(name, value, labels...))
}

func seconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1000 }

// Build says which program it is.
func Build(version string) metrics.Sample {
	version, revision, _ := strings.Cut(version, "+")
	if info, ok := debug.ReadBuildInfo(); ok && revision == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				revision = s.Value
			}
		}
	}
	return metrics.Of("fleetbus_build_info", 1, version, revision, runtime.Version())
}

// Readiness says which conditions hold.
func Readiness(conditions []metrics.Condition) (all []metrics.Sample) {
	for _, c := range conditions {
		all = append(all, metrics.Of("fleetbus_ready", metrics.Truth(c.Holds), c.Name))
	}
	return all
}

func (g *gatherer) node(ctx context.Context) {
	g.all = append(g.all, Build(g.Version))
	g.all = append(g.all, Readiness(g.Conditions())...)
	g.tell("fleetbus_node_info", 1, g.Node, g.Cluster, g.Role)
	g.tell("fleetbus_start_time_seconds", seconds(g.Started))
	severities := map[doctor.Severity]int{doctor.Info: 0, doctor.Warning: 0, doctor.Problem: 0}
	for _, f := range g.Findings(ctx) {
		severities[f.Severity]++
	}
	for severity, n := range severities {
		g.tell("fleetbus_findings", float64(n), severity.String())
	}
	g.tell("fleetbus_ledger_sequence", float64(g.Sequence))
	g.tell("fleetbus_ledger_stale", metrics.Truth(g.Stale))
	leader := g.Broker.Leader()
	g.Led(leader)
	alone := g.Broker.RouteAddr() == nil
	g.tell("fleetbus_meta_leader", metrics.Truth(g.Broker.IsLeader() || alone))
	g.tell("fleetbus_meta_leader_known", metrics.Truth(leader != "" || alone))
	g.tell("fleetbus_services_failed", float64(g.Failed()))
	g.tell("fleetbus_store_held", metrics.Truth(g.Held))
	g.tell("fleetbus_store_limit_bytes", float64(g.Reserve), "reserve")
	if free, ok := g.DiskFree(); ok {
		g.tell("fleetbus_store_free_bytes", float64(free), "disk")
	}
	if st, ok := g.Broker.StoreMeter(); ok {
		g.tell("fleetbus_store_limit_bytes", float64(st.MaxFile), "file")
		g.tell("fleetbus_store_limit_bytes", float64(st.MaxMemory), "memory")
		g.tell("fleetbus_store_free_bytes", float64(max(0, st.MaxFile-st.File)), "file")
		g.tell("fleetbus_store_free_bytes", float64(max(0, st.MaxMemory-st.Memory)), "memory")
	}
	if !g.NotAfter.IsZero() {
		g.tell("fleetbus_node_certificate_not_after_timestamp_seconds", seconds(g.NotAfter))
	}
}

// account is the label of an account.
func (g *gatherer) account(name string) string {
	if name == "" || g.named[name] {
		return name
	}
	return metrics.Other
}

// sums add up samples whose labels are the same.
type sums map[count]float64

func (s sums) add(v float64, name string, labels ...string) {
	c := count{name: name}
	copy(c.labels[:], labels)
	s[c] += v
}

// tellSums tells of sums, which have as many labels as their families.
func (g *gatherer) tellSums(s sums) {
	labels := map[string]int{}
	for _, f := range metrics.Families() {
		labels[f.Name] = len(f.Labels)
	}
	for c, v := range s {
		g.tell(c.name, v, c.labels[:labels[c.name]]...)
	}
}

// traffic tells of accounts, and of what the Meter has counted.
func (g *gatherer) traffic() {
	meters, err := g.Broker.AccountMeters()
	if err != nil {
		meters = nil // the engine is going away
	}
	byName := map[string]broker.AccountMeter{}
	for _, a := range meters {
		if name, ok := g.AccountName(a.Account); ok {
			byName[name] = a
		}
	}
	names := slices.Sorted(maps.Keys(byName))
	g.folded["account"] = max(0, len(names)-metrics.MostAccounts)
	g.named = map[string]bool{}
	for _, name := range names[:min(len(names), metrics.MostAccounts)] {
		g.named[name] = true
	}
	sessions := g.Sessions()
	all := sums{}
	for key, n := range sessions {
		all.add(float64(n), "fleetbus_connections", key[0], g.account(key[1]))
	}
	g.mu.Lock()
	inside := maps.Clone(g.inside)
	counts := maps.Clone(g.counts)
	changes := g.changes
	g.mu.Unlock()
	for name, a := range byName {
		label := g.account(name)
		all.add(float64(max(0, a.Clients-inside[name])), "fleetbus_connections", "nats", label)
		if a.Sites > 0 {
			all.add(float64(a.Sites), "fleetbus_connections", "leaf", label)
		}
		for _, f := range []struct {
			messages, bytes string
			kind            string
			broker.Flow
		}{
			{"fleetbus_messages_received_total", "fleetbus_message_received_bytes_total", "client", a.ClientIn},
			{"fleetbus_messages_sent_total", "fleetbus_message_sent_bytes_total", "client", a.ClientOut},
			{"fleetbus_messages_received_total", "fleetbus_message_received_bytes_total", "leaf", a.SiteIn},
			{"fleetbus_messages_sent_total", "fleetbus_message_sent_bytes_total", "leaf", a.SiteOut},
		} {
			if f.kind == "leaf" && f.Messages == 0 && a.Sites == 0 {
				continue // it has no site
			}
			all.add(float64(f.Messages), f.messages, label, f.kind)
			all.add(float64(f.Bytes), f.bytes, label, f.kind)
		}
	}
	for c, n := range counts {
		switch c.name {
		case "fleetbus_connections_opened_total", "fleetbus_connections_closed_total", "fleetbus_slow_consumers_total":
			c.labels[1] = g.account(c.labels[1])
		case "fleetbus_denials_total":
			c.labels[0] = g.account(c.labels[0])
		}
		all[c] += n
	}
	all.add(0, "fleetbus_events_dropped_total")
	all.add(float64(changes), "fleetbus_meta_leader_changes_total")
	g.tellSums(all)
}

func (g *gatherer) links() {
	nodes := g.Links()
	answering := 1
	pending := sums{}
	rtts := map[[2]string]time.Duration{}
	for _, l := range g.Broker.Links() {
		peer := l.Name
		if l.Kind == broker.RouteLink {
			peer, _, _ = strings.Cut(peer, ".")
		}
		pending.add(float64(l.Pending), "fleetbus_link_pending_bytes", peer, l.Kind)
		if l.Kind != broker.RouteLink {
			rtts[[2]string{peer, l.Kind}] = max(rtts[[2]string{peer, l.Kind}], l.RoundTrip)
		}
	}
	for key, rtt := range rtts {
		g.tell("fleetbus_link_up", 1, key[0], key[1])
		if rtt > 0 {
			g.tell("fleetbus_link_rtt_seconds", rtt.Seconds(), key[0], key[1])
		}
	}
	for _, l := range nodes {
		up := l.Heard && l.Answered
		if up {
			answering++
		}
		g.tell("fleetbus_link_up", metrics.Truth(up), l.Node, broker.RouteLink)
		if l.RoundTrip > 0 {
			g.tell("fleetbus_link_rtt_seconds", l.RoundTrip.Seconds(), l.Node, broker.RouteLink)
		}
		if up {
			g.tell("fleetbus_clock_skew_seconds", l.Skew.Seconds(), l.Node)
		}
	}
	g.tellSums(pending)
	g.tell("fleetbus_nodes", float64(len(nodes)+1))
	g.tell("fleetbus_nodes_answering", float64(answering))
}

func (g *gatherer) streams() {
	all, uncounted, err := g.Broker.StreamMeters(readConsumers)
	if err != nil {
		return // the engine is going away
	}
	g.folded["consumer"] += uncounted
	type named struct {
		broker.StreamMeter
		account string
	}
	var streams []named
	for _, st := range all {
		if name, ok := g.AccountName(st.Account); ok {
			streams = append(streams, named{st, name})
		}
	}
	slices.SortFunc(streams, func(a, b named) int { return cmp.Or(cmp.Compare(a.account, b.account), cmp.Compare(a.Name, b.Name)) })
	out := sums{}
	consumers := 0
	for i, st := range streams {
		account, name := g.account(st.account), st.Name
		if i >= mostStreams || account == metrics.Other {
			name = metrics.Other
			g.folded["stream"]++
		}
		if st.Leads {
			out.add(float64(st.Messages), "fleetbus_stream_messages", account, name)
			out.add(float64(st.Bytes), "fleetbus_stream_bytes", account, name)
			out.add(float64(st.Consumers), "fleetbus_stream_consumers", account, name)
		}
		for _, c := range st.Copies {
			peer, _, _ := strings.Cut(c.Name, ".")
			if name == metrics.Other {
				continue // of many streams the worst is not a sum
			}
			out.add(float64(c.Lag), "fleetbus_stream_replica_lag_messages", account, name, peer)
			out.add(metrics.Truth(c.Current && !c.Offline), "fleetbus_stream_replica_current", account, name, peer)
		}
		slices.SortFunc(st.Of, func(a, b broker.ConsumerMeter) int { return cmp.Compare(a.Name, b.Name) })
		for j, c := range st.Of {
			label := c.Name
			if name == metrics.Other || j >= mostOfStream || consumers >= mostConsumers {
				label = metrics.Other
				g.folded["consumer"]++
			} else {
				consumers++
			}
			out.add(float64(c.Pending), "fleetbus_consumer_pending_messages", account, name, label)
			out.add(float64(c.AckPending), "fleetbus_consumer_ack_pending_messages", account, name, label)
			out.add(float64(c.Redelivered), "fleetbus_consumer_redelivered", account, name, label)
		}
	}
	g.tellSums(out)
}

// sources tells of those that this node runs, and of those that no node does.
func (g *gatherer) sources(ctx context.Context) {
	for _, s := range g.Sources(ctx) {
		if s.Runner != "" && s.Runner != g.Node || !g.named[s.Account] {
			continue
		}
		labels := []string{s.Account, s.Name}
		g.tell("fleetbus_source_up", metrics.Truth(s.State == admin.SourceRunning), labels...)
		if s.Runner == "" {
			continue
		}
		g.tell("fleetbus_source_changes_total", float64(s.Announced), labels...)
		g.tell("fleetbus_source_refused_total", float64(s.Refused), labels...)
		g.tell("fleetbus_source_lag_seconds", s.Progress.Lag.Seconds(), labels...)
		if !s.Progress.Seen.IsZero() {
			g.tell("fleetbus_source_seen_timestamp_seconds", seconds(s.Progress.Seen), labels...)
		}
		g.tell("fleetbus_source_retained_bytes", float64(s.Progress.Retained), labels...)
	}
}
