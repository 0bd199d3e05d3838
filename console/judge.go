package console

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/admin"
)

// How a link, or a node, stands. The page has a color, a glyph and a word for each.
const (
	stateUp = "up"
	// stateOneWay carries messages in one direction only.
	stateOneWay = "one_way"
	// stateCut carries none, between two nodes that are up.
	stateCut = "cut"
	// stateDown: the other end answers nobody.
	stateDown = "down"
	// statePartly: a node that others hear, and the node that answered does not, or
	// that does not reach all.
	statePartly = "partly"
	// stateDeaf: the node that answered hears no other.
	stateDeaf = "deaf"
	// stateUnknown: who could tell does not answer, or is deaf.
	stateUnknown = "unknown"
	// stateOld runs a version that does not tell.
	stateOld = "old"
	// stateDenied may not be linked.
	stateDenied = "denied"
)

// A nodeRow is a node as the page shows it.
type nodeRow struct {
	Name    string `json:"name"`
	Cluster string `json:"cluster"`
	// Here says that it is the node that answered.
	Here  bool   `json:"here,omitempty"`
	State string `json:"state"`
	// Why is the likely cause of what is wrong, and Fix what mends it.
	Why string `json:"why,omitempty"`
	Fix string `json:"fix,omitempty"`
	// Unreached are the nodes that it does not reach, HeardBy those that hear it.
	Unreached []string `json:"unreached,omitempty"`
	HeardBy   int      `json:"heard_by"`
	Addr      string   `json:"addr,omitempty"`
	Clients   string   `json:"clients,omitempty"`
	Version   string   `json:"version,omitempty"`
	Leader    bool     `json:"leader,omitempty"`
	Voter     bool     `json:"voter,omitempty"`
	// Behind counts the events of the ledger that it has not applied yet.
	Behind      uint64 `json:"behind,omitempty"`
	Connections int    `json:"connections"`
	Started     int64  `json:"started,omitempty"`
	Joined      int64  `json:"joined,omitempty"`
	NotAfter    int64  `json:"not_after,omitempty"`
	ClockMs     int64  `json:"clock_ms,omitempty"`
	Findings    int    `json:"findings,omitempty"`
	// RoundTrip is the median of its links, in microseconds.
	RoundTrip int64 `json:"rtt_us,omitempty"`
}

// A linkRow is a link between two of what the page shows, A and B, judged from both
// ends.
type linkRow struct {
	A     string `json:"a"`
	B     string `json:"b"`
	Kind  string `json:"kind"` // route, leaf, gateway or hub
	State string `json:"state"`
	Why   string `json:"why,omitempty"`
	Fix   string `json:"fix,omitempty"`
	// AtA is what A says of it, AtB what B says.
	AtA string `json:"at_a,omitempty"`
	AtB string `json:"at_b,omitempty"`
	// RoundTrip is in microseconds, Rate in bytes a second both ways.
	RoundTrip int64 `json:"rtt_us,omitempty"`
	Rate      int64 `json:"rate,omitempty"`
}

// linksDrawn is how large a cluster may be whose links are all told; of a larger one
// only those are that are not up.
const linksDrawn = 12

// coarse is a duration in microseconds, to two digits: a page that is told of each
// tremble shows nothing but trembling.
func coarse(d time.Duration) int64 {
	us := float64(d.Microseconds())
	if us < 1 {
		return 0
	}
	unit := math.Pow(10, math.Floor(math.Log10(us))-1)
	return int64(max(1, math.Round(us/unit)*unit))
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

// view is how one node sees another.
type view struct {
	known           bool // it says something
	heard, answered bool
	route           bool
	rtt             time.Duration
	bytes           uint64
}

// viewsOf are how n sees the others. Of a node that does not answer, others may have told
// it.
func viewsOf(n *admin.NodeInfo) map[string]view {
	all := make(map[string]view, len(n.Links))
	for _, l := range n.Links {
		all[l.Node] = view{known: true, heard: l.Heard, answered: l.Answered, rtt: l.RoundTrip, bytes: l.Bytes}
	}
	for _, name := range n.Routes {
		v := all[name]
		v.route = true
		all[name] = v
	}
	return all
}

// sight is how the nodes of a cluster see one another.
type sight map[string]map[string]view

func sightOf(s admin.Status) sight {
	all := sight{}
	for i := range s.Nodes {
		all[s.Nodes[i].Name] = viewsOf(&s.Nodes[i])
	}
	return all
}

// hearing counts who hears a node.
func (s sight) hearing(name string) (n int) {
	for other, views := range s {
		if other != name && views[name].heard {
			n++
		}
	}
	return n
}

// says is what a node says of another.
func (v view) says(other string) string {
	switch {
	case !v.known:
		return ""
	case v.heard && v.answered:
		return "hears " + other + " and is answered"
	case v.heard:
		return "hears " + other + " and is not answered"
	case v.answered:
		return "is answered by " + other + " and does not hear it ask"
	case v.route:
		return "is connected to " + other + " and hears nothing"
	}
	return "has no connection to " + other
}

const fixPort = "open the port for other nodes between them, both ways (cluster.addr)"

// judgeLink says how two nodes of a cluster stand with one another.
func judgeLink(a, b *admin.NodeInfo, deaf string, seen sight) linkRow {
	if b.Name < a.Name {
		a, b = b, a
	}
	row := linkRow{A: a.Name, B: b.Name, Kind: string(admin.EventRoute), State: stateUp}
	va, vb := seen[a.Name][b.Name], seen[b.Name][a.Name]
	row.AtA, row.AtB = va.says(b.Name), vb.says(a.Name)
	row.RoundTrip = coarse(max(va.rtt, vb.rtt))
	bad := (va.known && (!va.heard || !va.answered)) || (vb.known && (!vb.heard || !vb.answered))
	ends := []*admin.NodeInfo{a, b}
	down := slices.IndexFunc(ends, func(n *admin.NodeInfo) bool { return n.State != "up" && seen.hearing(n.Name) == 0 })
	switch {
	case deaf != "":
		row.State, row.Why = stateUnknown, "node "+deaf+" answered, and hears no other"
		if a.Name == deaf || b.Name == deaf {
			row.State, row.Why, row.Fix = stateCut, "node "+deaf+" hears nobody: it is the one that is cut off, as far as it can tell", fixPort
		}
	case down >= 0:
		row.State, row.Why, row.RoundTrip = stateDown, "node "+ends[down].Name+" does not answer", 0
		row.Fix = "start node " + ends[down].Name + ", or " + fixPort
	case !va.known && !vb.known && a.State == "up" && b.State == "up":
		row.State, row.Why, row.Fix = stateOld, "both run a version that does not tell", "install the version of the others"
	case !va.known && !vb.known:
		row.State, row.Why, row.Fix = stateUnknown, "neither end answers this console", "open the console of another node"
	case va.heard != va.answered || vb.heard != vb.answered:
		row.State = stateOneWay
		from, to := a.Name, b.Name
		if va.heard || vb.answered { // b's messages arrive at a
			from, to = b.Name, a.Name
		}
		row.Why = fmt.Sprintf("messages of %s reach %s, and not the other way", from, to)
		row.Fix = fixPort
	case bad:
		row.State = stateCut
		row.Why, row.Fix = cause(a, b, va, vb)
	}
	if row.State != stateUp {
		row.RoundTrip = 0
	}
	return row
}

// cause is why nothing passes between two nodes that are both up, as far as what they
// say shows it; the surest first.
func cause(a, b *admin.NodeInfo, va, vb view) (why, fix string) {
	skew := (a.Clock - b.Clock).Abs()
	for _, n := range []*admin.NodeInfo{a, b} {
		if !n.NotAfter.IsZero() && n.NotAfter.Before(time.Now().Add(-skew)) {
			return "the certificate of node " + n.Name + " has expired", "fleetbus node renew " + n.Name
		}
	}
	switch {
	case a.State != "up" || b.State != "up":
		return "nothing passes between them, and other nodes hear both: the port for other nodes is closed between the two, or the network is", fixPort
	case skew > time.Minute:
		return fmt.Sprintf("the clocks of the two are %s apart: a certificate that one makes may not be good yet, or no more, at the other", skew.Round(time.Second)), "synchronize the clocks"
	case a.Version != "" && b.Version != "" && a.Level != b.Level:
		return fmt.Sprintf("%s runs version %s and %s runs %s", a.Name, a.Version, b.Name, b.Version), "install the same version on both"
	case va.route && vb.route:
		return "both have a connection, and nothing passes: the network between them loses everything, or was cut a moment ago", fixPort
	case va.route != vb.route:
		return "one end has a connection and the other has none: it was cut a moment ago, or is held up on the way", fixPort
	}
	return "neither has a connection: the port for other nodes is closed, or each refuses the other's certificate", fixPort + ", and look at the log of each for refused certificates"
}

// deafNode is the node that answered, if it hears no other and there are some.
func deafNode(s admin.Status) string {
	for _, n := range s.Nodes {
		if n.Bus == admin.BusUnknown {
			return s.Node
		}
	}
	return ""
}

// judgeNodes makes the rows of the nodes of one cluster, and of the links between
// them.
func judgeNodes(cluster string, s admin.Status, now time.Time) (nodes []nodeRow, links []linkRow) {
	deaf := deafNode(s)
	seen := sightOf(s)
	for i := range s.Nodes {
		n := &s.Nodes[i]
		row := nodeRow{
			Name: n.Name, Cluster: cluster, Here: n.Name == s.Node, State: stateUp, Addr: n.ClusterAddr, Clients: n.ClientAddr, Version: n.Version,
			Leader: n.Leader, Voter: n.Voter, Connections: n.Connections, Joined: milli(n.Joined), NotAfter: milli(n.NotAfter),
			Unreached: n.Unreached, Findings: len(n.Findings), ClockMs: n.Clock.Round(100 * time.Millisecond).Milliseconds(),
		}
		if n.State == "up" && n.Uptime > 0 {
			row.Started = now.Add(-n.Uptime).Round(5 * time.Second).UnixMilli()
		}
		if n.State == "up" && s.Sequence > n.Applied {
			row.Behind = s.Sequence - n.Applied
		}
		row.HeardBy = seen.hearing(n.Name)
		var trips []time.Duration
		for j := range s.Nodes {
			o := &s.Nodes[j]
			if i == j {
				continue
			}
			if v := seen[n.Name][o.Name]; v.answered && v.rtt > 0 {
				trips = append(trips, v.rtt)
			}
			if j > i {
				l := judgeLink(n, o, deaf, seen)
				if l.State != stateUp || len(s.Nodes) <= linksDrawn {
					links = append(links, l)
				}
			}
		}
		if len(trips) > 0 {
			slices.Sort(trips)
			row.RoundTrip = coarse(trips[len(trips)/2])
		}
		judgeNode(&row, n, s, deaf, seen)
		nodes = append(nodes, row)
	}
	return nodes, links
}

// judgeNode says how a node stands, why, and what mends it.
func judgeNode(row *nodeRow, n *admin.NodeInfo, s admin.Status, deaf string, seen sight) {
	up := slices.DeleteFunc(slices.Clone(n.Unreached), func(name string) bool {
		return !slices.ContainsFunc(s.Nodes, func(o admin.NodeInfo) bool { return o.Name == name && (o.State == "up" || seen.hearing(name) > 0) })
	})
	switch {
	case deaf == n.Name:
		row.State = stateDeaf
		row.Why = "this node hears no other node: it cannot tell whether they are down, and most likely it is the one that is cut off"
		row.Fix = "look at its network and its port for other nodes, or open the console of another node"
	case deaf != "":
		row.State, row.Why = stateUnknown, "node "+deaf+" is deaf and cannot tell"
		row.Fix = "open the console of another node"
	case n.State != "up" && row.HeardBy > 0:
		row.State = statePartly
		row.Why = fmt.Sprintf("it does not answer node %s, and %d of the others hear it: it is up, and cut off from here", s.Node, row.HeardBy)
		row.Fix = fixPort
	case n.State != "up":
		row.State = stateDown
		row.Why = "it answers nobody, and nobody hears it: it is down, or its port for other nodes is closed"
		row.Fix = "start it; if it runs, open its port for other nodes; if it is lost for good: fleetbus node rm " + n.Name
	case n.Bus == admin.BusTooOld:
		row.State, row.Why, row.Fix = stateOld, "it runs version "+n.Version+", which does not tell how it is linked", "install the version of the others on it"
	case len(up) > 0:
		row.State = statePartly
		row.Why = "it does not reach " + list(up)
		row.Fix = fixPort
		for _, name := range up {
			i := slices.IndexFunc(s.Nodes, func(o admin.NodeInfo) bool { return o.Name == name })
			if l := judgeLink(n, &s.Nodes[i], "", seen); l.Why != "" {
				row.Why += ": " + l.Why
				row.Fix = cmp.Or(l.Fix, row.Fix)
				break
			}
		}
	case row.ClockMs > 2000 || row.ClockMs < -2000:
		row.Why, row.Fix = fmt.Sprintf("its clock is off by %s", (time.Duration(row.ClockMs)*time.Millisecond).Abs()), "synchronize its clock"
	}
}

// list names some, and says how many more there are.
func list(names []string) string {
	const most = 5
	if len(names) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
	}
	return strings.Join(names, ", ")
}
