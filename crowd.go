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
	"sync"
	"sync/atomic"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// nodeCrowdSubject is asked of all nodes: which connections do these users have. A
	// node looks through all of the account for an answer, so that nodeCountSubject is
	// asked first: how many do they have. Who knows that another node has some that are
	// too many tells it by nodeLookSubject.
	nodeCrowdSubject, nodeCountSubject, nodeLookSubject = "node.crowd", "node.crowd.count", "node.crowd.look"
	// crowdAtOnce bounds the users that are asked for at once.
	crowdAtOnce = 500
)

// errCrowd is why a connection above the number that its user may have is closed.
var errCrowd = errors.New("its user has as many connections as the role allows")

// crowd keeps users to the number of connections that their roles allow, on all
// nodes together, which the engine does not. Every node hears of every arrival, and
// closes those of its own that came when the others were enough.
type crowd struct {
	// limits says that some role has such a number.
	limits atomic.Bool

	mu sync.Mutex
	// came are the users, by account, that somebody has come for and that nobody has
	// looked at since. An account that is there is being looked at.
	came map[string]map[string]bool
	// here counts the engine's connections of users who have such a number, on this node,
	// by account/name, and names has those users by connection. They are as the engine's
	// events say; stale says that some were missed, or that others have a number now.
	here  map[string]int
	names map[uint64]string
	stale bool
}

// enter and leave note a connection of this node.
func (c *crowd) enter(account, name string, id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.note(account+"/"+name, id)
}

// note is enter with mu held.
func (c *crowd) note(full string, id uint64) {
	if c.here == nil {
		c.here, c.names = map[string]int{}, map[uint64]string{}
	}
	if _, ok := c.names[id]; !ok {
		c.names[id] = full
		c.here[full]++
	}
}

func (c *crowd) leave(id uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	full, ok := c.names[id]
	if !ok {
		return
	}
	delete(c.names, id)
	if c.here[full]--; c.here[full] == 0 {
		delete(c.here, full)
	}
}

// doubt has the connections looked for again.
func (c *crowd) doubt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stale = true
}

// crowdHere counts the connections of users of an account on this node, by name. They may
// be more than there are, and fewer for a moment: whoever comes is noted, and then looked at.
func (f *fleet) crowdHere(account string, names []string) (map[string]int, error) {
	if err := f.recount(); err != nil {
		return nil, err
	}
	counts := f.resting.ofUsers(account, names)
	f.crowd.mu.Lock()
	defer f.crowd.mu.Unlock()
	for _, name := range names {
		if n := f.crowd.here[account+"/"+name]; n > 0 {
			counts[name] += n
		}
	}
	return counts, nil
}

// recount looks for all connections, if what is noted of them is stale.
func (f *fleet) recount() error {
	c := &f.crowd
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.stale {
		return nil
	}
	all, err := f.broker.Connections("")
	if err != nil {
		return err
	}
	c.here, c.names, c.stale = nil, nil, false
	for _, one := range all {
		if one.Inside {
			continue // a session's, and counted as such
		}
		if account, ok := f.accountName(one.Account); ok && f.quota(account, one.Name) > 0 {
			c.note(account+"/"+one.Name, one.ID)
		}
	}
	return nil
}

// knowLimits notes whether any role has a number of connections.
func (f *fleet) knowLimits() {
	f.crowd.limits.Store(slices.ContainsFunc(f.directory.Roles(), func(r identity.Role) bool { return r.Limits.Connections > 0 }))
	f.crowd.doubt()
}

// add notes that somebody came, and reports whether nobody is looking.
func (c *crowd) add(account, name string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	names, busy := c.came[account]
	if !busy {
		names = map[string]bool{}
		if c.came == nil {
			c.came = map[string]map[string]bool{}
		}
		c.came[account] = names
	}
	names[name] = true
	return !busy
}

// next takes some of those who came; after the last nobody is looking any more.
func (c *crowd) next(account string) (names []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for name := range c.came[account] {
		if len(names) == crowdAtOnce {
			return names
		}
		names = append(names, name)
		delete(c.came[account], name)
	}
	if len(names) == 0 {
		delete(c.came, account)
	}
	return names
}

// quota is how many connections a user may have at once; 0 is any number.
func (f *fleet) quota(account, name string) int64 {
	u, ok := f.directory.User(account, name)
	if !ok {
		return 0
	}
	role, _ := f.directory.Role(u.Role)
	return role.Limits.Connections
}

// arrived looks at the connections of a user who has just come in somewhere.
func (s *Server) arrived(ctx context.Context, account identity.Account, name string) {
	if s.fleet.quota(account.Name, name) == 0 || !s.fleet.crowd.add(account.Name, name) {
		return
	}
	s.group.Go(func() {
		for names := s.fleet.crowd.next(account.Name); len(names) > 0; names = s.fleet.crowd.next(account.Name) {
			if err := s.thin(ctx, account, names); err != nil && ctx.Err() == nil {
				s.log.Warn("the connections of users could not be counted", "account", account.Name, "error", err)
			}
		}
	})
}

// crowdRequest and crowdReply travel on nodeCrowdSubject.
type crowdRequest struct {
	Account string   `json:"account"` // its public key
	Users   []string `json:"users"`
}

type crowdReply struct {
	Node        string                        `json:"node"`
	Connections map[string][]admin.Connection `json:"connections"` // by user
}

// countReply answers a crowdRequest on nodeCountSubject.
type countReply struct {
	Node   string         `json:"node"`
	Counts map[string]int `json:"counts"` // by user
}

func (s *Server) answerCount(_ context.Context, msg *nats.Msg) error {
	var req crowdRequest
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	account, ok := s.fleet.accountName(req.Account)
	if !ok {
		return respond(msg, countReply{Node: s.fleet.node})
	}
	counts, err := s.fleet.crowdHere(account, req.Users)
	if err != nil {
		return err
	}
	return respond(msg, countReply{Node: s.fleet.node, Counts: counts})
}

// answerLook looks at users who have too many connections here. Nobody waits for it.
func (s *Server) answerLook(ctx context.Context, msg *nats.Msg) error {
	var req crowdRequest
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	account, ok := s.fleet.accountName(req.Account)
	if !ok {
		return nil
	}
	a, _ := s.fleet.account(account)
	_, err := s.thinHere(ctx, a, req.Users)
	return err
}

// crowding are those of names who have more connections than they may, as far as the
// nodes have noted.
func (s *Server) crowding(ctx context.Context, account identity.Account, names []string) ([]string, error) {
	expect, sums := s.fleet.up(), map[string]int{}
	_, err := scatter(ctx, s.conn, nodeCountSubject, crowdRequest{account.Public, names}, infoTimeout, func(r countReply) bool {
		for name, n := range r.Counts {
			sums[name] += n
		}
		delete(expect, r.Node)
		return len(expect) == 0
	})
	if err != nil || len(expect) > 0 {
		return names, err // a node that is older does not count; the other way asks it again
	}
	return slices.DeleteFunc(slices.Clone(names), func(name string) bool {
		most := s.fleet.quota(account.Name, name)
		return most == 0 || int64(sums[name]) <= most
	}), nil
}

func (s *Server) answerCrowd(_ context.Context, msg *nats.Msg) error {
	var req crowdRequest
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	all, err := s.fleet.connections(req.Account, "")
	if err != nil {
		return err
	}
	reply := crowdReply{Node: s.fleet.node, Connections: map[string][]admin.Connection{}}
	for _, c := range all {
		if slices.Contains(req.Users, c.Name) {
			reply.Connections[c.Name] = append(reply.Connections[c.Name], s.connectionHere(c))
		}
	}
	return respond(msg, reply)
}

// thin closes those connections of users on this node that are too many. The
// oldest stay, and all nodes count in the same order. A node that does not answer
// does not count.
func (s *Server) thin(ctx context.Context, account identity.Account, names []string) error {
	elsewhere, err := s.thinHere(ctx, account, names)
	if err != nil || len(elsewhere) == 0 {
		return err
	}
	return s.tellLook(account, elsewhere)
}

// thinHere is thin, and names the users who have too many on other nodes.
func (s *Server) thinHere(ctx context.Context, account identity.Account, names []string) ([]string, error) {
	names, err := s.crowding(ctx, account, names)
	if err != nil || len(names) == 0 {
		return nil, err
	}
	expect := s.fleet.up()
	all := map[string][]admin.Connection{}
	_, err = scatter(ctx, s.conn, nodeCrowdSubject, crowdRequest{account.Public, names}, infoTimeout, func(r crowdReply) bool {
		for name, connections := range r.Connections {
			all[name] = append(all[name], connections...)
		}
		delete(expect, r.Node)
		return len(expect) == 0
	})
	if err == nil && len(expect) > 0 {
		err = fmt.Errorf("no answer from %s", strings.Join(slices.Sorted(maps.Keys(expect)), ", "))
	}
	elsewhere := map[string]bool{} // users who have too many on other nodes
	for name, connections := range all {
		most := s.fleet.quota(account.Name, name)
		if most == 0 || int64(len(connections)) <= most {
			continue
		}
		slices.SortFunc(connections, func(a, b admin.Connection) int {
			return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
		})
		for _, c := range connections[most:] {
			if c.Node != s.fleet.node {
				elsewhere[name] = true
			} else if s.closeConnection(account.Name, c) {
				s.log.Warn("client refused", "listener", c.Kind, "remote", c.Remote, "principal", account.Name+"/"+name, "error", errCrowd)
				if engines(c) { // who logged in is told of by Login
					s.events.Tell(admin.Event{
						Kind: admin.EventLimit, Account: account.Name, Principal: account.Name + "/" + name, Listener: natsListenerName, Address: c.Remote, Reason: errCrowd.Error(),
					})
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(elsewhere)), err
}

// tellLook has the other nodes look at users. One that looked before the last of their
// connections came does not see it by itself.
func (s *Server) tellLook(account identity.Account, names []string) error {
	body, err := json.Marshal(crowdRequest{account.Public, names})
	if err != nil {
		return fmt.Errorf("encoding a request: %w", err)
	}
	return s.conn.Publish(nodeLookSubject, body)
}

// closeConnection ends one of this node's, whether the engine knows it or not.
func (s *Server) closeConnection(account string, c admin.Connection) bool {
	for _, one := range s.fleet.resting.of(account) {
		if one.id == c.ID && one.listener == c.Kind {
			return one.end(errCrowd.Error())
		}
	}
	return engines(c) && s.broker.Close(c.ID)
}

// engines reports whether a connection is the engine's, whose kinds are two words.
func engines(c admin.Connection) bool { return strings.Contains(c.Kind, "/") }
