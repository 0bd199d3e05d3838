package fleetbus

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/broker"
)

// What all nodes are asked: who is connected to you, end this connection, which streams
// do you lead.
const (
	nodeClientsSubject = "node.clients"
	nodeCloseSubject   = "node.close"
	nodeStreamsSubject = "node.streams"
)

const (
	// clientsUsual and clientsMost are how many connections a node tells of.
	clientsUsual, clientsMost = 500, 5000
	// toldBytes bounds what one answer has: the engine takes a message of 1 MiB.
	toldBytes = 700 << 10
	readBytes = 250 << 10 // beside it, what a node knows of the readers of others' streams
)

type clientsReply struct {
	Node    string             `json:"node"`
	Clients []admin.ClientInfo `json:"clients"`
	More    int                `json:"more"`
}

type streamsReply struct {
	Node    string             `json:"node"`
	Streams []admin.StreamInfo `json:"streams"`
	Read    []admin.StreamInfo `json:"read,omitempty"` // of other nodes' streams
	More    int                `json:"more"`
}

func (s *Server) answerClients(_ context.Context, msg *nats.Msg) error {
	var r admin.ConnectionsRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	public := ""
	if r.Account != "" {
		a, ok := s.fleet.account(r.Account)
		if !ok {
			return ask.Answer(msg, clientsReply{Node: s.fleet.node})
		}
		public = a.Public
	}
	all, err := s.fleet.connections(public, "")
	if err != nil {
		return err
	}
	sessions := s.fleet.resting.byClient()
	reply := clientsReply{Node: s.fleet.node, Clients: []admin.ClientInfo{}}
	for _, c := range all {
		one := admin.ClientInfo{Connection: s.connectionHere(c), Name: c.Name, InMsgs: c.InMsgs, OutMsgs: c.OutMsgs, InBytes: c.InBytes, OutBytes: c.OutBytes, Pending: c.Pending, RoundTrip: c.RoundTrip}
		// The engine knows a session of a Protocol as a connection inside the process.
		if session := sessions[c.ID]; c.Inside && engines(one.Connection) {
			if session == nil {
				continue // the node's own
			}
			one.Listener, one.Remote, one.Name = session.listener, session.remote, session.Principal.Name
		}
		one.Account, _ = s.fleet.accountName(c.Account)
		reply.Clients = append(reply.Clients, one)
	}
	slices.SortFunc(reply.Clients, func(a, b admin.ClientInfo) int {
		return cmp.Or(cmp.Compare(b.InBytes+b.OutBytes, a.InBytes+a.OutBytes), a.Started.Compare(b.Started), cmp.Compare(a.ID, b.ID))
	})
	n := min(len(reply.Clients), cmp.Or(max(r.Most, 0), clientsUsual), clientsMost)
	n = ask.Fitting(reply.Clients[:n], toldBytes)
	reply.More = len(reply.Clients) - n
	reply.Clients = reply.Clients[:n]
	return ask.Answer(msg, reply)
}

func (s *Server) listConnections(ctx context.Context, r admin.ConnectionsRequest) (any, error) {
	out := admin.Connections{Time: time.Now(), Connections: []admin.ClientInfo{}}
	missing, err := askAll(ctx, s, nodeClientsSubject, r, func(reply clientsReply) string {
		out.Connections, out.More = append(out.Connections, reply.Clients...), out.More+reply.More
		return reply.Node
	})
	n := ask.Fitting(out.Connections, toldBytes)
	out.Missing, out.More, out.Connections = missing, out.More+len(out.Connections)-n, out.Connections[:n]
	return out, err
}

// askAll asks the nodes that are up, and names those that did not answer.
func askAll[Out any](ctx context.Context, s *Server, subject string, in any, each func(Out) (node string)) (missing []string, err error) {
	expect := s.fleet.up()
	_, err = ask.All(ctx, s.conn, subject, in, infoTimeout, func(reply Out) bool {
		delete(expect, each(reply))
		return s.answered(expect)
	})
	return append([]string{}, slices.Sorted(maps.Keys(expect))...), err
}

func (s *Server) answerClose(_ context.Context, msg *nats.Msg) error {
	var r admin.CloseRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	if r.Node != s.fleet.node {
		return nil
	}
	reply := admin.Applied{Node: s.fleet.node}
	if s.closeConnection(r.Account, admin.Connection{ID: r.ID, Kind: r.Kind}) {
		reply.Closed = 1
		s.log.Info("an administrator ended a connection", "account", r.Account, "id", r.ID)
	}
	return ask.Answer(msg, reply)
}

func (s *Server) endConnection(ctx context.Context, r admin.CloseRequest) (any, error) {
	found, err := ask.All(ctx, s.conn, nodeCloseSubject, r, infoTimeout, func(admin.Applied) bool { return true })
	switch {
	case err != nil:
		return nil, err
	case len(found) == 0:
		return nil, admin.Errorf(admin.Unavailable, "fleetbus status", "node %q does not answer", r.Node)
	case found[0].Closed == 0:
		return nil, admin.Errorf(admin.NotFound, "", "the connection is not there any more")
	}
	return found[0], nil
}

func (s *Server) answerStreams(_ context.Context, msg *nats.Msg) error {
	var r admin.StreamsRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	led, read, err := s.broker.Led()
	if err != nil {
		return err
	}
	reply := streamsReply{Node: s.fleet.node, Streams: []admin.StreamInfo{}}
	asked := func(one *admin.StreamInfo) bool {
		one.Account, _ = s.fleet.accountName(one.Account)
		return one.Account != "" && (r.Account == "" || r.Account == one.Account)
	}
	for _, one := range read {
		if asked(&one) {
			reply.Read = append(reply.Read, one)
		}
	}
	for _, one := range led {
		if !asked(&one) {
			continue
		}
		one.Leader = s.fleet.node
		for i := range one.Copies {
			one.Copies[i].Node, _, _ = strings.Cut(one.Copies[i].Node, ".")
		}
		reply.Streams = append(reply.Streams, one)
	}
	slices.SortFunc(reply.Streams, func(a, b admin.StreamInfo) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Account, b.Account), strings.Compare(a.Name, b.Name))
	})
	n := ask.Fitting(reply.Streams, toldBytes)
	reply.More, reply.Streams = len(reply.Streams)-n, reply.Streams[:n]
	reply.Read = reply.Read[:ask.Fitting(reply.Read, readBytes)]
	return ask.Answer(msg, reply)
}

func (s *Server) listStreams(ctx context.Context, r admin.StreamsRequest) (any, error) {
	out := admin.Streams{Streams: []admin.StreamInfo{}}
	var read []admin.StreamInfo
	missing, err := askAll(ctx, s, nodeStreamsSubject, r, func(reply streamsReply) string {
		out.Streams, out.More = append(out.Streams, reply.Streams...), out.More+reply.More
		read = append(read, reply.Read...)
		return reply.Node
	})
	broker.MergeRead(out.Streams, read)
	n := ask.Fitting(out.Streams, toldBytes)
	out.Missing, out.More, out.Streams = missing, out.More+len(out.Streams)-n, out.Streams[:n]
	return out, err
}

// byClient are the sessions that the engine knows, by its number for them.
func (r *resting) byClient() map[uint64]*Session {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := map[uint64]*Session{}
	for s := range r.all {
		s.mu.Lock()
		nc := s.Conn
		s.mu.Unlock()
		if nc == nil {
			continue
		}
		if id, err := nc.GetClientID(); err == nil {
			all[id] = s
		}
	}
	return all
}
