package console

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/links"
)

// fleetRow is the fleet at a glance.
type fleetRow struct {
	Fleet    string `json:"fleet"`
	Cluster  string `json:"cluster"`
	Node     string `json:"node"`
	Leader   string `json:"leader"`
	Survives int    `json:"survives"`
	Answered int    `json:"answered"`
	Quorum   int    `json:"quorum"`
	Nodes    int    `json:"nodes"`
	Accounts int    `json:"accounts"`
	Users    int    `json:"users"`
	// Told says that all links are told; else only those are that are not up.
	Told bool `json:"told"`
	// Silent are the nodes that did not answer, since when in milliseconds.
	Silent map[string]int64 `json:"silent"`
}

// siteRow is a site, which is a leaf of the fleet.
type siteRow struct {
	Account string `json:"account"`
	Name    string `json:"name"`
	State   string `json:"state"`
	Node    string `json:"node,omitempty"`
	Remote  string `json:"remote,omitempty"`
	Since   int64  `json:"since,omitempty"`
	Current bool   `json:"current"`
	Machine string `json:"machine,omitempty"`
}

// regionRow is a region, which is a cluster of the fleet.
type regionRow struct {
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Home    bool     `json:"home"`
	Current bool     `json:"current"`
	Since   int64    `json:"since,omitempty"`
	Addrs   []string `json:"addrs"`
}

// hubRow is the link of an account of a node to a central broker.
type hubRow struct {
	Node string `json:"node"`
	admin.Hub
	Peers []admin.HubPeer `json:"-"`
}

// sourceRow is a source of changes.
type sourceRow struct {
	Account   string   `json:"account"`
	Name      string   `json:"name"`
	Type      string   `json:"type"`
	State     string   `json:"state"`
	Runner    string   `json:"runner,omitempty"`
	Error     string   `json:"error,omitempty"`
	Tables    []string `json:"tables,omitempty"`
	Position  string   `json:"position,omitempty"`
	LagMs     int64    `json:"lag_ms"`
	Seen      int64    `json:"seen,omitempty"`
	Retained  uint64   `json:"retained"`
	Warning   string   `json:"warning,omitempty"`
	Announced uint64   `json:"announced"`
	Refused   uint64   `json:"refused"`
}

const (
	// statusEvery is how often all nodes are asked for their status while somebody looks,
	// and statusOld how old the last one may be. How they are linked is asked of one node,
	// which knows it, and far more often.
	statusEvery, statusOld = 2 * time.Second, 10 * time.Second
	// linksTimeout is how long that one may take.
	linksTimeout = 2 * time.Second
)

// A statusKeeper asks for the status in the background, so that a node that does not
// answer delays no news of the others.
type statusKeeper struct {
	mu     sync.Mutex
	last   admin.Status
	at     time.Time // of last
	asked  time.Time
	asking bool
	err    error
	again  bool          // it is asked once more, at once
	came   chan struct{} // closed when the first answer, or the first error, is here
}

// get returns the last status; it waits for the first alone. urgent says that something
// has changed since.
func (k *statusKeeper) get(ctx context.Context, nc *nats.Conn, urgent bool) (admin.Status, time.Time, error) {
	k.mu.Lock()
	k.again = k.again || urgent
	if !k.asking && (k.again || time.Since(k.asked) > statusEvery) {
		k.asking, k.again, k.asked = true, false, time.Now()
		// It is asked for by the feed, and not by the poll, whose context ends before.
		of := feedOf(ctx)
		of.group.Go(func() { k.ask(of.ctx, of.client(nc)) })
	}
	came := k.came
	k.mu.Unlock()
	select {
	case <-came:
	case <-ctx.Done():
		return admin.Status{}, time.Time{}, ctx.Err()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil && time.Since(k.at) > statusOld {
		return admin.Status{}, time.Time{}, k.err
	}
	return k.last, k.at, nil
}

func (k *statusKeeper) ask(ctx context.Context, c *admin.Client) {
	ctx, cancel := context.WithTimeout(ctx, pollTimeout)
	defer cancel()
	s, err := c.Status(ctx)
	k.mu.Lock()
	defer k.mu.Unlock()
	k.asking, k.err = false, err
	if err == nil {
		k.last, k.at = s, time.Now()
	}
	select {
	case <-k.came:
	default:
		close(k.came)
	}
}

// fleetPoller shows the fleet as an administrator may see it.
func fleetPoller() poller {
	silent := map[string]int64{}
	meters := map[string]meter{}
	status := &statusKeeper{came: make(chan struct{})}
	before := ""
	var known rows
	var seen string
	return func(ctx context.Context, nc *nats.Conn) (rows, error) {
		short, cancel := context.WithTimeout(ctx, linksTimeout)
		views, err := feedOf(ctx).client(nc).LinkViews(short)
		cancel()
		if err != nil {
			return nil, err
		}
		// Who is heard of anew has more to tell than its links.
		heard := ""
		for _, v := range views.Views {
			heard += v.Node + " "
		}
		s, at, err := status.get(ctx, nc, before != "" && heard != before)
		if err != nil {
			return nil, err
		}
		before = heard
		// Most of the time there is nothing new.
		now := fmt.Sprint(at.UnixNano(), amiss(views))
		if known == nil || now != seen {
			known, seen = fleetRows(fresh(s, views), silent, meters, at), now
		}
		return known, nil
	}
}

// amiss is the same text for views that say the same.
func amiss(now admin.LinkViews) string {
	var b strings.Builder
	for _, v := range now.Views {
		fmt.Fprint(&b, v.Node, v.Unheard, v.Unanswered, v.Told, " ")
	}
	return b.String()
}

// fresh is a status whose links are as the nodes see them now.
func fresh(s admin.Status, now admin.LinkViews) admin.Status {
	if len(now.Views) == 0 || now.Node != s.Node {
		return s // of another node, or too old to tell
	}
	views := map[string]*admin.LinkView{}
	for i := range now.Views {
		views[now.Views[i].Node] = &now.Views[i]
	}
	own := &now.Views[0]
	s.Nodes = slices.Clone(s.Nodes)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		v := views[n.Name]
		switch {
		case v == nil || n.Name != s.Node && slices.Contains(own.Unheard, n.Name) && slices.Contains(own.Unanswered, n.Name):
			n.State, n.Connections, n.Routes, n.Remotes, n.Hubs = "down", 0, nil, nil, nil
		case n.State != "up":
			n.State, n.Level = "up", links.Level // it has more to tell the next time
		}
		if v == nil {
			n.Links = nil
			continue
		}
		old := map[string]admin.Link{}
		for _, l := range n.Links {
			old[l.Node] = l
		}
		n.Links = make([]admin.Link, 0, len(s.Nodes)-1)
		for j := range s.Nodes {
			other := s.Nodes[j].Name
			if other == n.Name {
				continue
			}
			l := old[other]
			l.Node, l.Heard, l.Answered = other, !slices.Contains(v.Unheard, other), !slices.Contains(v.Unanswered, other)
			n.Links = append(n.Links, l)
		}
	}
	links.Judge(&s)
	return s
}

// fleetRows are the rows of a status of that time; silent remembers since when a node is.
func fleetRows(s admin.Status, silent map[string]int64, meters map[string]meter, now time.Time) rows {
	out := rows{}
	cluster := s.Fleet
	for _, r := range s.Regions {
		if r.State == admin.RegionHere {
			cluster = r.Name
		}
	}
	nodes, all := judgeNodes(cluster, s, now)
	for _, n := range s.Nodes {
		if n.State == "up" {
			delete(silent, n.Name)
		} else if silent[n.Name] == 0 {
			silent[n.Name] = time.Now().UnixMilli()
		}
	}
	for name := range silent {
		if !slices.ContainsFunc(s.Nodes, func(n admin.NodeInfo) bool { return n.Name == name }) {
			delete(silent, name)
		}
	}
	out.put("fleet", fleetRow{
		Fleet: s.Fleet, Cluster: cluster, Node: s.Node, Leader: s.Leader, Survives: s.Survives, Answered: s.Answered, Quorum: s.Quorum,
		Nodes: len(s.Nodes), Accounts: s.Accounts, Users: s.Users, Told: len(s.Nodes) <= linksDrawn, Silent: silent,
	})
	for _, n := range nodes {
		out.put("node:"+n.Name, n)
	}
	for i := range s.Nodes {
		n := &s.Nodes[i]
		for _, h := range n.Hubs {
			out.put("hub:"+n.Name+"/"+h.Account+"/"+h.Server, hubRow{Node: n.Name, Hub: h})
		}
		all = append(all, remoteLinks(n, s)...)
	}
	for _, l := range all {
		l.Rate = rateOf(s, l, meters, now)
		out.put("link:"+l.Kind+":"+l.A+"|"+l.B, l)
	}
	for _, t := range s.Sites {
		state := stateUp
		switch t.State {
		case admin.SiteAway:
			state = stateDown
		case admin.SiteDenied:
			state = stateDenied
		}
		out.put("site:"+t.Account+"/"+t.Name, siteRow{Account: t.Account, Name: t.Name, State: state, Node: t.Node, Remote: t.Remote, Since: milli(t.Since), Current: t.Current, Machine: t.Machine})
	}
	regionRows(out, s)
	for _, c := range s.Sources {
		out.put("source:"+c.Account+"/"+c.Name, sourceRow{
			Account: c.Account, Name: c.Name, Type: c.Type, State: c.State, Runner: c.Runner, Error: c.Error, Tables: c.Tables, Position: c.Progress.Position,
			LagMs: c.Progress.Lag.Milliseconds(), Seen: milli(c.Progress.Seen), Retained: c.Progress.Retained, Warning: c.Progress.Warning,
			Announced: c.Announced, Refused: c.Refused,
		})
	}
	for i, f := range s.Findings {
		// Two may be of one code about one thing; their order is stable.
		out.put(fmt.Sprintf("finding:%04d:%s:%s", i, f.Code, f.Subject), f)
	}
	return out
}

// regionRows adds the other clusters, with their nodes as they tell of themselves.
func regionRows(out rows, s admin.Status) {
	for _, r := range s.Regions {
		state := stateUp
		if r.State == admin.RegionAway {
			state = stateDown
		}
		out.put("region:"+r.Name, regionRow{Name: r.Name, State: state, Home: r.Home, Current: r.Current, Since: milli(r.Since), Addrs: r.Addrs})
		if r.State == admin.RegionHere {
			continue
		}
		for _, n := range r.Nodes {
			row := nodeRow{
				Name: n.Name, Cluster: r.Name, State: stateUp, Addr: n.ClusterAddr, Clients: n.ClientAddr, Version: n.Version, Leader: n.Leader, Voter: n.Voter,
				Connections: n.Connections, NotAfter: milli(n.NotAfter), Unreached: n.Unreached,
			}
			switch {
			case state != stateUp:
				row.State, row.Why = stateUnknown, "region "+r.Name+" is away"
			case n.State != "up":
				row.State, row.Why = stateDown, "its region says that it does not answer"
			case len(n.Unreached) > 0:
				row.State, row.Why = statePartly, "its region says that it does not reach "+list(n.Unreached)
			}
			out.put("node:"+r.Name+"/"+n.Name, row)
		}
	}
}

// remoteLinks are the links of a node to sites, other regions and a hub.
func remoteLinks(n *admin.NodeInfo, s admin.Status) (all []linkRow) {
	for _, r := range n.Remotes {
		l := linkRow{A: n.Name, B: r.Name, Kind: string(r.Kind), State: stateUp, RoundTrip: coarse(r.RoundTrip)}
		if r.Kind == admin.EventLeaf {
			l.B = r.Account + "/" + r.Name
		}
		for _, other := range s.Regions {
			if r.Kind == admin.EventGateway && other.Name == r.Name && other.State == admin.RegionAway {
				l.State, l.Why, l.Fix = stateCut, "there is a connection, and region "+r.Name+" does not answer on it", "look at the nodes of region "+r.Name
			}
		}
		all = append(all, l)
	}
	for _, h := range n.Hubs {
		l := linkRow{A: n.Name, B: h.Server, Kind: "hub", State: stateUp, Why: h.Error}
		if h.State == admin.HubNotConnected {
			l.State, l.Fix = stateDown, "fleetbus hub check"
			if h.Links != nil {
				l.Fix = "fleetbus doctor"
			}
		}
		all = append(all, l)
	}
	if u := n.Uplink; u != nil {
		l := linkRow{A: n.Name, B: u.Fleet, Kind: string(admin.EventLeaf), State: stateUp, RoundTrip: coarse(u.RoundTrip)}
		if u.State != admin.SiteLinked {
			l.State, l.Why, l.Fix = stateDown, "this site does not reach its hub "+u.Fleet, "open the way to "+u.Remote+", and look whether the site is denied there"
		}
		all = append(all, l)
	}
	return all
}

// A meter is what a link had carried at a time, as one end says.
type meter struct {
	bytes uint64
	at    time.Time
	rate  int64
}

// carried is what the link of n to another has carried, as n says.
func carried(n *admin.NodeInfo, other string) uint64 {
	for _, l := range n.Links {
		if l.Node == other {
			return l.Bytes
		}
	}
	return 0
}

// rateOf is what a link carries in a second, by what it had carried the time before.
func rateOf(s admin.Status, l linkRow, meters map[string]meter, now time.Time) int64 {
	var bytes uint64
	for i := range s.Nodes {
		n := &s.Nodes[i]
		switch {
		case l.Kind == string(admin.EventRoute) && n.Name == l.A:
			bytes = max(bytes, carried(n, l.B))
		case l.Kind == string(admin.EventRoute) && n.Name == l.B:
			bytes = max(bytes, carried(n, l.A))
		case n.Name == l.A:
			for _, r := range n.Remotes {
				if r.Name == l.B || r.Account+"/"+r.Name == l.B {
					bytes = max(bytes, r.Bytes)
				}
			}
		}
	}
	if bytes == 0 || l.State != stateUp {
		return 0
	}
	key := l.Kind + ":" + l.A + "|" + l.B
	before, known := meters[key]
	if known && !now.After(before.at) {
		return coarseNumber(before.rate) // it was told once
	}
	one := meter{bytes: bytes, at: now}
	if known && bytes >= before.bytes && now.After(before.at) {
		one.rate = int64(float64(bytes-before.bytes) / now.Sub(before.at).Seconds())
		if before.rate > 0 { // so that the page does not tremble
			one.rate = (one.rate + 2*before.rate) / 3
		}
	}
	meters[key] = one
	return coarseNumber(one.rate)
}

// coarseNumber is n to two digits.
func coarseNumber(n int64) int64 {
	unit := int64(1)
	for n/unit >= 100 {
		unit *= 10
	}
	return n / unit * unit
}
