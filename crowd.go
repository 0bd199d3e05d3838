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

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// nodeCrowdSubject is asked of all nodes: which connections do these users have.
	nodeCrowdSubject = "node.crowd"
	// crowdAtOnce bounds the users that are asked for at once: a node looks through
	// all connections of the account for an answer.
	crowdAtOnce = 100
)

// errCrowd is why a connection above the number that its user may have is closed.
var errCrowd = errors.New("its user has as many connections as the role allows")

// crowd keeps users to the number of connections that their roles allow, on all
// nodes together, which the engine does not. Every node hears of every arrival, and
// closes those of its own that came when the others were enough.
type crowd struct {
	mu sync.Mutex
	// came are the users, by account, that somebody has come for and that nobody has
	// looked at since. An account that is there is being looked at.
	came map[string]map[string]bool
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
			reply.Connections[c.Name] = append(reply.Connections[c.Name], admin.Connection{
				Node: s.fleet.node, ID: c.ID, Kind: c.Kind, Remote: c.Remote, Started: c.Started,
			})
		}
	}
	return respond(msg, reply)
}

// thin closes those connections of users on this node that are too many. The
// oldest stay, and all nodes count in the same order. A node that does not answer
// does not count.
func (s *Server) thin(ctx context.Context, account identity.Account, names []string) error {
	expect := s.fleet.up()
	all := map[string][]admin.Connection{}
	_, err := scatter(ctx, s.conn, nodeCrowdSubject, crowdRequest{account.Public, names}, infoTimeout, func(r crowdReply) bool {
		for name, connections := range r.Connections {
			all[name] = append(all[name], connections...)
		}
		delete(expect, r.Node)
		return len(expect) == 0
	})
	if err == nil && len(expect) > 0 {
		err = fmt.Errorf("no answer from %s", strings.Join(slices.Sorted(maps.Keys(expect)), ", "))
	}
	for name, connections := range all {
		most := s.fleet.quota(account.Name, name)
		if most == 0 || int64(len(connections)) <= most {
			continue
		}
		slices.SortFunc(connections, func(a, b admin.Connection) int {
			return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.Node, b.Node), cmp.Compare(a.ID, b.ID))
		})
		for _, c := range connections[most:] {
			if c.Node == s.fleet.node && s.closeConnection(account.Name, c) {
				s.log.Warn("client refused", "listener", c.Kind, "remote", c.Remote, "principal", account.Name+"/"+name, "error", errCrowd)
				if engines(c) { // who logged in is told of by Login
					s.events.Tell(admin.Event{
						Kind: admin.EventLimit, Account: account.Name, Principal: account.Name + "/" + name, Listener: natsListenerName, Address: c.Remote, Reason: errCrowd.Error(),
					})
				}
			}
		}
	}
	return err
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
