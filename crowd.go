package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/crowd"
)

// nodeCrowdSubject is asked of all nodes: which connections do these users have. A
// node looks through all of the account for an answer, so that nodeCountSubject is
// asked first: how many do they have. Who knows that another node has some that are
// too many tells it by nodeLookSubject.
const nodeCrowdSubject, nodeCountSubject, nodeLookSubject = "node.crowd", "node.crowd.count", "node.crowd.look"

// errCrowd is why a connection above the number that its user may have is closed.
var errCrowd = errors.New("its user has as many connections as the role allows")

// crowdHere counts the connections of users of an account on this node, by name. They may
// be more than there are, and fewer for a moment: whoever comes is noted, and then looked at.
func (f *fleet) crowdHere(account string, names []string) (map[string]int, error) {
	if err := f.recount(); err != nil {
		return nil, err
	}
	counts := f.resting.ofUsers(account, names)
	f.crowd.Count(account, names, counts)
	return counts, nil
}

// recount looks for all connections, if what is noted of them is stale.
func (f *fleet) recount() error {
	return f.crowd.Recount(func() (map[uint64]string, error) {
		all, err := f.broker.Connections("")
		if err != nil {
			return nil, err
		}
		users := map[uint64]string{}
		for _, one := range all {
			if one.Inside {
				continue // a session's, and counted as such
			}
			if account, ok := f.accountName(one.Account); ok && f.quota(account, one.Name) > 0 {
				users[one.ID] = account + "/" + one.Name
			}
		}
		return users, nil
	})
}

// knowLimits notes whether any role has a number of connections.
func (f *fleet) knowLimits() {
	f.crowd.Limit(slices.ContainsFunc(f.directory.Roles(), func(r identity.Role) bool { return r.Limits.Connections > 0 }))
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
	if s.fleet.quota(account.Name, name) == 0 || !s.fleet.crowd.Add(account.Name, name) {
		return
	}
	s.group.Go(func() {
		for names := s.fleet.crowd.Next(account.Name); len(names) > 0; names = s.fleet.crowd.Next(account.Name) {
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
		return ask.Answer(msg, countReply{Node: s.fleet.node})
	}
	counts, err := s.fleet.crowdHere(account, req.Users)
	if err != nil {
		return err
	}
	return ask.Answer(msg, countReply{Node: s.fleet.node, Counts: counts})
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
	_, err := ask.All(ctx, s.conn, nodeCountSubject, crowdRequest{account.Public, names}, infoTimeout, func(r countReply) bool {
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
	return ask.Answer(msg, reply)
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
	_, err = ask.All(ctx, s.conn, nodeCrowdSubject, crowdRequest{account.Public, names}, infoTimeout, func(r crowdReply) bool {
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
		for _, c := range crowd.Surplus(connections, s.fleet.quota(account.Name, name)) {
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
