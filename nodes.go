package fleetbus

import (
	"cmp"
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
	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/links"
	"github.com/fleetbus/fleetbus/internal/overview"
)

// infoTimeout is how long a node may take to tell of itself.
const infoTimeout = 2 * time.Second

// answerNodeInfo tells of this node.
func (s *Server) answerNodeInfo(ctx context.Context, msg *nats.Msg) error {
	return ask.Answer(msg, s.nodeInfo(ctx))
}

func (s *Server) nodeInfo(ctx context.Context) admin.NodeInfo {
	n, ok := s.fleet.directory.Node(s.fleet.node)
	if !ok {
		n = s.home.Node.Node
	}
	n.Version = Version()
	info := admin.NodeInfo{
		Node: n, State: "up", Applied: s.fleet.directory.Seq(), Connections: s.broker.NumConnections() + s.fleet.resting.count(""),
		Routes: s.nodeNames(s.broker.Routes()), NotAfter: s.certs.NotAfter(), Uptime: time.Since(s.started),
		Findings: s.Check(ctx), Level: links.Level, Links: s.nodeLinks(), Remotes: s.remotes(), Hubs: s.hubs(),
		Sites: s.siteLinks(), Uplink: s.uplink(), Regions: s.regionLinks(),
	}
	// Travels as the clock; whoever asked takes the difference.
	info.Clock = time.Duration(time.Now().UnixNano())
	return info
}

// nodeNames turns the engine's names of servers into nodes'.
func (s *Server) nodeNames(servers []string) []string {
	names := []string{}
	for _, server := range servers {
		name, _, _ := strings.Cut(server, ".")
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

func (s *Server) getStatus(ctx context.Context, _ struct{}) (any, error) {
	d := s.fleet.directory
	status := admin.Status{
		Fleet: s.fleet.authority.Fleet(), Node: s.fleet.node, Sequence: d.Seq(), Accounts: len(d.Accounts()),
		Nodes: []admin.NodeInfo{}, Findings: []doctor.Finding{},
	}
	for _, a := range d.Accounts() {
		status.Users += d.NumUsers(a.Name)
	}
	expect := s.fleet.up()
	up := map[string]admin.NodeInfo{}
	_, err := ask.All(ctx, s.conn, nodeInfoSubject, struct{}{}, infoTimeout, func(n admin.NodeInfo) bool {
		n.Clock -= time.Duration(time.Now().UnixNano())
		up[n.Name] = n
		delete(expect, n.Name)
		return s.answered(expect)
	})
	if err != nil {
		return nil, err
	}
	members := s.broker.Members()
	status.Leader, _, _ = strings.Cut(s.broker.Leader(), ".")
	if s.opts.Mode.alone() {
		status.Leader = s.fleet.node
	}
	alive := 0
	for _, n := range d.Nodes() {
		info, ok := up[n.Name]
		if !ok {
			info = admin.NodeInfo{Node: n, State: "down", Routes: []string{}, Links: []admin.Link{}, Remotes: []admin.Remote{}, Hubs: []admin.Hub{}, Findings: []doctor.Finding{}}
		} else {
			alive++
		}
		info.Leader = n.Name == status.Leader
		info.Voter = slices.ContainsFunc(members, func(m broker.Member) bool { return m.Name == n.Server() }) || s.opts.Mode.alone()
		status.Nodes = append(status.Nodes, info)
		status.Findings = append(status.Findings, info.Findings...)
	}
	links.Judge(&status)
	status.Sources = s.knownSources(ctx)
	status.Sites = s.siteList(status.Nodes)
	status.Regions = s.regionList(ctx, status.Nodes)
	copies, behind := s.stateCopies(ctx, len(members))
	status.Survives = max(0, min(alive-(len(members)/2+1), copies))
	status.Findings = doctor.Run(ctx, doctor.CheckerFunc(func(context.Context) []doctor.Finding {
		return slices.Concat(status.Findings, behind, s.fleet.keys.Findings(time.Now(), s.fleet.downNodes()), overview.Findings(status), links.Findings(status), s.regionFindings(status.Regions))
	}))
	return status, nil
}

// stateCopies is how many copies of what the fleet agrees on may be lost, and what
// is to be said of those that are not there yet: a fleet that has just grown is not
// at once as safe as it is large. Nodes that are down are told of elsewhere.
func (s *Server) stateCopies(ctx context.Context, members int) (spare int, behind []doctor.Finding) {
	if s.opts.Mode == Local || members < replicasWanted {
		return 0, nil
	}
	ctx, cancel := context.WithTimeout(ctx, infoTimeout)
	defer cancel()
	js, err := jetstream.New(s.conn)
	if err != nil {
		return 0, nil
	}
	stream, err := js.Stream(ctx, ledgerStream)
	if err != nil {
		return 0, nil // nobody leads it, which is told of elsewhere
	}
	info := stream.CachedInfo()
	current := 1 // the leader's
	var waiting []string
	if info.Cluster != nil {
		for _, r := range info.Cluster.Replicas {
			if r.Current {
				current++
			} else if !r.Offline {
				waiting = append(waiting, r.Name)
			}
		}
	}
	if info.Config.Replicas < replicasWanted || len(waiting) > 0 {
		behind = append(behind, doctor.Finding{
			Code: "STATE-COPYING", Severity: doctor.Info, Subject: s.fleet.authority.Fleet(),
			Text: fmt.Sprintf("what the fleet agrees on is on %d of %d nodes so far", current, replicasWanted), Fix: "wait until it is copied before any node stops",
		})
	}
	return current - (info.Config.Replicas/2 + 1), behind
}

// connectionsRequest asks every node for the connections of a user, or how many there
// are of it, or of a whole account.
type connectionsRequest struct {
	Account string `json:"account"`
	Name    string `json:"name"`
	Count   bool   `json:"count,omitempty"`
}

// connectionsReply is one of a node's: More says that others follow.
type connectionsReply struct {
	Node        string             `json:"node"`
	Connections []admin.Connection `json:"connections"`
	Count       int                `json:"count,omitempty"`
	More        bool               `json:"more,omitempty"`
}

// connectionsPage is how many connections go in a message, whose size is bounded.
const connectionsPage = 2000

func (s *Server) answerConnections(_ context.Context, msg *nats.Msg) error {
	var req connectionsRequest
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	if req.Count && req.Name == "" {
		return ask.Answer(msg, connectionsReply{Node: s.fleet.node, Count: s.fleet.numConnections(req.Account)})
	}
	all, err := s.fleet.connections(req.Account, req.Name)
	if err != nil {
		return err
	}
	if req.Count {
		return ask.Answer(msg, connectionsReply{Node: s.fleet.node, Count: len(all)})
	}
	for {
		page := all[:min(len(all), connectionsPage)]
		all = all[len(page):]
		reply := connectionsReply{Node: s.fleet.node, More: len(all) > 0}
		for _, c := range page {
			reply.Connections = append(reply.Connections, s.connectionHere(c))
		}
		if err := ask.Answer(msg, reply); err != nil || !reply.More {
			return err
		}
	}
}

// connectionHere is a connection of this node as the administrative API has it.
func (s *Server) connectionHere(c broker.Connection) admin.Connection {
	return admin.Connection{Node: s.fleet.node, ID: c.ID, Kind: c.Kind, Remote: c.Remote, Started: c.Started}
}

// fleetConnections lists the connections of a user on every node that has a route, those
// that began first, and counts all.
func (s *Server) fleetConnections(ctx context.Context, public, name string, most int) (some []admin.Connection, all int, err error) {
	err = s.askConnections(ctx, connectionsRequest{Account: public, Name: name}, func(r connectionsReply) {
		all += len(r.Connections)
		some = append(some, r.Connections...)
		slices.SortFunc(some, func(a, b admin.Connection) int {
			return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
		})
		some = some[:min(len(some), most)]
	})
	return some, all, err
}

// countConnections counts those of an account on every node that has a route.
func (s *Server) countConnections(ctx context.Context, public string) (all int, err error) {
	err = s.askConnections(ctx, connectionsRequest{Account: public, Count: true}, func(r connectionsReply) {
		all += r.Count + len(r.Connections) // an older node lists them
	})
	return all, err
}

func (s *Server) askConnections(ctx context.Context, r connectionsRequest, each func(connectionsReply)) error {
	expect := s.fleet.up()
	_, err := ask.All(ctx, s.conn, nodeConnectionsSubject, r, infoTimeout, func(r connectionsReply) bool {
		each(r)
		if !r.More {
			delete(expect, r.Node)
		}
		return s.answered(expect)
	})
	if err == nil && len(expect) > 0 {
		err = fmt.Errorf("no answer from %s", strings.Join(slices.Sorted(maps.Keys(expect)), ", "))
	}
	return err
}

func (s *Server) answerNodeRenew(_ context.Context, msg *nats.Msg) error {
	var req admin.Name
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	if req.Name != "" && req.Name != s.fleet.node {
		return nil
	}
	reply := admin.Renewed{Node: s.fleet.node}
	if err := s.certs.Renew(time.Now()); err != nil {
		s.log.Error("certificates were not renewed", "error", err)
		reply.Error = err.Error()
	}
	reply.NotAfter = s.certs.NotAfter()
	return ask.Answer(msg, reply)
}

func (s *Server) renewNodes(ctx context.Context, r admin.Name) (any, error) {
	expect := s.fleet.up()
	if r.Name != "" {
		if !expect[r.Name] {
			return nil, admin.Errorf(admin.NotFound, "fleetbus node ls", "there is no node %q that is up", r.Name)
		}
		expect = map[string]bool{r.Name: true}
	}
	all := []admin.Renewed{}
	_, err := ask.All(ctx, s.conn, nodeRenewSubject, r, syncTimeout, func(n admin.Renewed) bool {
		all = append(all, n)
		delete(expect, n.Node)
		return len(expect) == 0
	})
	for name := range expect {
		all = append(all, admin.Renewed{Node: name, Error: "no answer"})
	}
	slices.SortFunc(all, func(a, b admin.Renewed) int { return strings.Compare(a.Node, b.Node) })
	return all, err
}

// profileNode has a node take a profile of itself.
func (s *Server) profileNode(ctx context.Context, r admin.ProfileRequest) (any, error) {
	if !s.fleet.up()[r.Node] {
		return nil, admin.Errorf(admin.NotFound, "fleetbus node ls", "there is no node %q that is up", r.Node)
	}
	all, err := ask.All(ctx, s.conn, nodeProfileSubject, r, max(0, r.Duration)+infoTimeout+profileSlack, func(admin.Profile) bool { return true })
	if err != nil || len(all) == 0 {
		return nil, errors.Join(err, admin.Errorf(admin.Unavailable, "fleetbus status", "node %s did not answer in time", r.Node))
	}
	if all[0].Error != nil {
		return nil, all[0].Error
	}
	return all[0], nil
}

// profileSlack is how much longer than it watches a node may take for a profile.
const profileSlack = 2 * time.Second

func (s *Server) answerProfile(ctx context.Context, msg *nats.Msg) error {
	var r admin.ProfileRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	if r.Node != s.fleet.node {
		return nil
	}
	s.log.Warn("a profile is taken of this node", "kind", string(r.Kind), "duration", r.Duration)
	reply := admin.Profile{Node: s.fleet.node}
	var err error
	if reply.Data, err = s.profiler.Take(ctx, r); err != nil && !errors.As(err, &reply.Error) {
		return err
	}
	return ask.Answer(msg, reply)
}

// Check lists what is wrong with this node.
func (s *Server) Check(ctx context.Context) []doctor.Finding {
	return doctor.Run(ctx, doctor.CheckerFunc(s.findings))
}
