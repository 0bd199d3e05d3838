package fleetbus

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/broker"
)

const (
	// canarySubject is asked of all nodes, again and again, and each answers.
	canarySubject  = "node.canary"
	canaryInterval = time.Second
	// linkLost is how long a node may be unheard of before its link is down.
	linkLost = 5 * canaryInterval
	// busLevel is what this version can do on the bus; a node of a lower one lacks
	// something that others rely on. 1: changes.
	busLevel = 1
)

// canary is a question, and its answer.
type canary struct {
	Node  string `json:"node"`
	Count uint64 `json:"count"`
}

// links is what this node knows of its peers by its own ears: whom it heard, and
// who answered it.
type links struct {
	mu    sync.Mutex
	peers map[string]*peer
	sent  uint64
	at    time.Time // when the last question went out
}

type peer struct {
	heard, answered time.Time
	rtt             time.Duration
}

func (l *links) peer(name string) *peer {
	if l.peers == nil {
		l.peers = map[string]*peer{}
	}
	if l.peers[name] == nil {
		l.peers[name] = &peer{}
	}
	return l.peers[name]
}

// keepLinks asks the other nodes whether they hear this one, and answers them,
// until ctx is done. It measures the whole way of a message there and back.
func (s *Server) keepLinks(ctx context.Context) {
	inbox := s.conn.NewRespInbox()
	asked, err := s.conn.Subscribe(canarySubject, s.answerCanary)
	if err != nil {
		s.log.Error("links cannot be watched", "error", err)
		return
	}
	defer asked.Unsubscribe()
	answers, err := s.conn.Subscribe(inbox, s.canaryAnswered)
	if err != nil {
		s.log.Error("links cannot be watched", "error", err)
		return
	}
	defer answers.Unsubscribe()
	tick := time.NewTicker(canaryInterval)
	defer tick.Stop()
	for {
		s.links.mu.Lock()
		s.links.sent++
		s.links.at = time.Now()
		question, err := json.Marshal(canary{s.fleet.node, s.links.sent})
		s.links.mu.Unlock()
		if err == nil {
			// A connection that is down is what others see.
			_ = s.conn.PublishRequest(canarySubject, inbox, question)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *Server) answerCanary(msg *nats.Msg) {
	var q canary
	if json.Unmarshal(msg.Data, &q) != nil || q.Node == s.fleet.node {
		return
	}
	s.links.mu.Lock()
	s.links.peer(q.Node).heard = time.Now()
	s.links.mu.Unlock()
	_ = respond(msg, canary{s.fleet.node, q.Count})
}

func (s *Server) canaryAnswered(msg *nats.Msg) {
	var a canary
	if json.Unmarshal(msg.Data, &a) != nil {
		return
	}
	s.links.mu.Lock()
	defer s.links.mu.Unlock()
	p := s.links.peer(a.Node)
	p.answered = time.Now()
	if a.Count == s.links.sent {
		p.rtt = time.Since(s.links.at)
	}
}

// list is what is known of each of the other nodes of the fleet.
func (l *links) list(names []string) []admin.Link {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	all := []admin.Link{}
	for _, name := range names {
		link := admin.Link{Node: name}
		if p := l.peers[name]; p != nil {
			link.Heard = now.Sub(p.heard) < linkLost
			link.Answered = now.Sub(p.answered) < linkLost
			link.RoundTrip = p.rtt
		}
		all = append(all, link)
	}
	return all
}

// remotes are this node's links to sites and to other clusters.
func (s *Server) remotes() []admin.Remote {
	all := []admin.Remote{}
	for _, l := range s.broker.Links() {
		if l.Kind == broker.RouteLink {
			continue
		}
		account, _ := s.fleet.accountName(l.Account)
		all = append(all, admin.Remote{Kind: admin.EventKind(l.Kind), Name: l.Name, Account: account, RoundTrip: l.RoundTrip})
	}
	return all
}

// otherNodes names the fleet's nodes but this one.
func (s *Server) otherNodes() []string {
	var names []string
	for _, n := range s.fleet.directory.Nodes() {
		if n.Name != s.fleet.node {
			names = append(names, n.Name)
		}
	}
	return names
}

// judgeLinks says of every node of status how it stands on the bus, from what
// both ends of each link know.
func judgeLinks(status *admin.Status) {
	answered := map[string]*admin.NodeInfo{}
	for i := range status.Nodes {
		n := &status.Nodes[i]
		if n.State == "up" {
			answered[n.Name] = n
		}
	}
	// Who asks the others and hears nobody cannot tell whether they are down.
	deaf := len(answered) <= 1 && len(status.Nodes) > 1
	for i := range status.Nodes {
		n := &status.Nodes[i]
		n.Unreached = []string{}
		for _, other := range status.Nodes {
			if other.Name != n.Name && !linked(answered, n.Name, other.Name) {
				n.Unreached = append(n.Unreached, other.Name)
			}
		}
		switch {
		case deaf && answered[n.Name] == nil:
			n.Bus = admin.BusUnknown
		case n.State == "up" && n.Level < busLevel:
			n.Bus = admin.BusTooOld
		case len(n.Unreached) == 0:
			n.Bus = admin.BusConnected
		case len(n.Unreached) < len(status.Nodes)-1:
			n.Bus = admin.BusCannotReachAll
		default:
			n.Bus = admin.BusBlocked
		}
	}
	status.Answered, status.Quorum = len(answered), len(status.Nodes)/2+1
}

// linked reports whether a message goes from a to b and back, as far as either end
// that answered knows.
func linked(answered map[string]*admin.NodeInfo, a, b string) bool {
	known := false
	for _, end := range [][2]string{{a, b}, {b, a}} {
		n := answered[end[0]]
		if n == nil {
			continue
		}
		i := slices.IndexFunc(n.Links, func(l admin.Link) bool { return l.Node == end[1] })
		if i < 0 {
			continue // it is too old to tell
		}
		if !n.Links[i].Heard || !n.Links[i].Answered {
			return false
		}
		known = true
	}
	return known
}

// linkFindings are the links that are down between nodes that are up, and who
// cannot see.
func linkFindings(status admin.Status) []doctor.Finding {
	var all []doctor.Finding
	for _, n := range status.Nodes {
		switch n.Bus {
		case admin.BusTooOld:
			all = append(all, doctor.Finding{Code: "NODE-OLD", Severity: doctor.Warning, Subject: n.Name,
				Text: fmt.Sprintf("node %s runs version %s, which does not tell how it is linked", n.Name, n.Version), Fix: "install the version of the others on it"})
		case admin.BusUnknown:
			all = append(all, doctor.Finding{Code: "NODE-DEAF", Severity: doctor.Problem, Subject: status.Node,
				Text: fmt.Sprintf("node %s hears no other node: it cannot tell whether they are down", status.Node), Fix: "look at its network and its port for other nodes, or ask another node: --server"})
			return all
		case admin.BusCannotReachAll:
			up := slices.DeleteFunc(slices.Clone(n.Unreached), func(name string) bool {
				return !slices.ContainsFunc(status.Nodes, func(o admin.NodeInfo) bool { return o.Name == name && o.State == "up" })
			})
			if n.State == "up" && len(up) > 0 {
				all = append(all, doctor.Finding{Code: "LINK-DOWN", Severity: doctor.Problem, Subject: n.Name,
					Text: fmt.Sprintf("node %s does not reach %s, and others do", n.Name, strings.Join(up, ", ")), Fix: "open the port for other nodes between them, both ways, and look at the log of each for refused certificates"})
			}
		}
	}
	return all
}
