package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/home"
)

// removeNode takes a node out of the group that agrees on streams, and out of
// the fleet.
func (s *Server) removeNode(ctx context.Context, r admin.RemoveNodeRequest) (any, error) {
	began := time.Now()
	n, ok := s.fleet.directory.Node(r.Name)
	if !ok || n.Removed {
		return nil, admin.Errorf(admin.NotFound, "fleetbus node ls", "there is no node %q", r.Name)
	}
	if len(s.fleet.directory.Nodes()) == 1 {
		return nil, admin.Errorf(admin.Conflict, "stop it, and remove its data directory", "node %q is the last one", r.Name)
	}
	if s.fleet.up()[r.Name] && !r.Force {
		return nil, admin.Errorf(admin.Conflict, "run fleetbus leave there", "node %q is up", r.Name)
	}
	if err := s.dropMember(ctx, n); err != nil {
		return nil, err
	}
	seq, err := s.fleet.dropNode(ctx, n.Name)
	if err != nil {
		return nil, err
	}
	return s.fleet.spread(ctx, s.conn, seq, began)
}

// dropNode writes that a node is none any more, nor its local admin.
func (f *fleet) dropNode(ctx context.Context, name string) (uint64, error) {
	local := userSubject(identity.FleetName, localAdmin(name))
	if f.directory.Version(local) > 0 {
		if _, err := f.change(ctx, local, func() (any, error) { return nil, nil }); err != nil {
			return 0, err
		}
	}
	return f.change(ctx, "node."+name, func() (any, error) {
		n, ok := f.directory.Node(name)
		if !ok || n.Removed {
			return nil, errSame
		}
		n.Removed, n.RemovedAt = true, time.Now()
		return n, nil
	})
}

// dropMember removes a node from the engine's group, if it is a member.
func (s *Server) dropMember(ctx context.Context, n identity.Node) error {
	if s.opts.Mode.alone() {
		return nil
	}
	nc, err := s.broker.Connect(s.systemAuth()...)
	if err != nil {
		return fmt.Errorf("connecting to the system account: %w", err)
	}
	defer nc.Close()
	err = broker.RemoveMember(ctx, nc, n.Server())
	if errors.Is(err, broker.ErrNotMember) {
		return nil
	}
	return err
}

// errLeft ends a server whose node has left the fleet.
var errLeft = errors.New("the node has left the fleet")

// answerLeave takes this node out of the fleet: its streams move to others first.
// The server stops when whoever asked has been answered.
func (s *Server) answerLeave(ctx context.Context, msg *nats.Msg) error {
	var req admin.Name
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	if req.Name != s.fleet.node {
		return nil
	}
	left := false
	err := s.answer(func(ctx context.Context, _ *nats.Msg) (any, error) {
		out, err := s.leave(ctx)
		left = err == nil
		return out, err
	})(ctx, msg)
	if left {
		err = errors.Join(err,
			s.conn.FlushTimeout(time.Second),
			// Whoever asked may well be this admin.
			s.fleet.append(ctx, userSubject(identity.FleetName, localAdmin(s.fleet.node)), nil),
			os.Rename(s.home.Path("node.json"), s.home.Path("node.left.json")))
		s.fail(errLeft)
	}
	return err
}

func (s *Server) leave(ctx context.Context) (any, error) {
	others := slices.DeleteFunc(s.fleet.directory.Nodes(), func(n identity.Node) bool { return n.Name == s.fleet.node })
	up := s.fleet.up()
	alive := slices.DeleteFunc(slices.Clone(others), func(n identity.Node) bool { return !up[n.Name] })
	switch {
	case len(others) == 0:
		return nil, admin.Errorf(admin.Conflict, "stop it, and remove its data directory", "node %q is the last one", s.fleet.node)
	case len(alive) < len(others):
		return nil, admin.Errorf(admin.Conflict, "start the nodes that are down, or remove them first: fleetbus node rm",
			"only %d of the %d other nodes are up", len(alive), len(others))
	}
	nc, err := s.broker.Connect(s.systemAuth()...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the system account: %w", err)
	}
	defer nc.Close()
	self, heir := s.home.Node.Node.Server(), alive[0].Server()
	moved, err := s.handOver(ctx, nc, self, heir, len(alive))
	if err != nil {
		return nil, err
	}
	if s.broker.IsLeader() {
		if err := broker.StepDown(ctx, nc, heir); err != nil {
			return nil, err
		}
	}
	if err := broker.RemoveMember(ctx, nc, self); err != nil && !errors.Is(err, broker.ErrNotMember) {
		return nil, err
	}
	// This node's own consumer of the ledger may be gone with its membership, so
	// nothing here waits for it.
	n, _ := s.fleet.directory.Node(s.fleet.node)
	n.Removed, n.RemovedAt = true, time.Now()
	record, err := json.Marshal(n)
	if err != nil {
		return nil, fmt.Errorf("encoding the node: %w", err)
	}
	if err := s.fleet.append(ctx, "node."+n.Name, record); err != nil {
		return nil, err
	}
	return admin.Left{Node: s.fleet.node, Streams: moved, Nodes: len(others)}, nil
}

// append writes a record without waiting until this node has acted on it, and
// nothing if the removal is of what never was.
func (f *fleet) append(ctx context.Context, subject string, record []byte) error {
	version := f.directory.Version(subject)
	if version == 0 && record == nil {
		return nil
	}
	before := f.directory.Record(subject)
	if _, err := f.writer().Append(ctx, subject, version, record); err != nil {
		return fmt.Errorf("writing %q to the ledger: %w", subject, err)
	}
	f.audit.Changed(ctx, subject, before, record)
	return nil
}

// handOver moves every stream off the server named self, as far as there are
// others: with one left, streams have one copy, and that one is led there.
func (s *Server) handOver(ctx context.Context, nc *nats.Conn, self, heir string, others int) (moved int, err error) {
	for _, st := range s.broker.Streams() {
		if st.Replicas > 1 && others > 1 {
			continue
		}
		moved++
		if st.Replicas < 2 {
			continue
		}
		err := s.inAccount(s.accountName(st.Account), func(js jetstream.JetStream) error {
			if st.Leader == self {
				if err := broker.StepDownStream(ctx, js.Conn(), st.Name, heir); err != nil {
					return err
				}
			}
			return setReplicas(ctx, js, st, 1)
		})
		if err != nil {
			return moved, fmt.Errorf("moving stream %q: %w", st.Name, err)
		}
	}
	if err := broker.Evacuate(ctx, nc, self); err != nil {
		return moved, err
	}
	return moved, s.until(ctx, "moving the streams to other nodes", func() bool {
		return !slices.ContainsFunc(s.broker.Streams(), func(st broker.Stream) bool { return st.Replicas < 2 })
	})
}

// setReplicas changes nothing of a stream but the number of its copies.
func setReplicas(ctx context.Context, js jetstream.JetStream, st broker.Stream, n int) error {
	var config jetstream.StreamConfig
	if err := json.Unmarshal(st.Config, &config); err != nil {
		return fmt.Errorf("reading the configuration of stream %q: %w", st.Name, err)
	}
	config.Replicas = n
	_, err := js.UpdateStream(ctx, config)
	return err
}

// until polls, because the engine tells nobody when it is done.
func (s *Server) until(ctx context.Context, what string, done func() bool) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, context.Cause(ctx))
		case <-tick.C:
		}
	}
	return nil
}

// accountName is the name of the account with that public key.
func (s *Server) accountName(public string) string {
	if a, ok := s.fleet.directory.AccountByPublic(public); ok {
		return a.Name
	}
	return identity.FleetName
}

// rescueTimeout bounds a rescue: the engine assumes its old leader for up to 20 s.
const rescueTimeout = 90 * time.Second

// answerRescue is slower than other requests may be.
func (s *Server) answerRescue(ctx context.Context, msg *nats.Msg) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rescueTimeout)
	defer cancel()
	return s.answer(on(s.rescue))(ctx, msg)
}

// rescue makes the nodes that are up the whole fleet, after the others, and with
// them the quorum, were lost for good.
func (s *Server) rescue(ctx context.Context, _ struct{}) (any, error) {
	up := s.fleet.up()
	result := admin.Rescued{Removed: []string{}}
	var lost []identity.Node
	for _, n := range s.fleet.directory.Nodes() {
		if !up[n.Name] {
			lost = append(lost, n)
			result.Removed = append(result.Removed, n.Name)
		}
	}
	if 2*len(up) > len(lost)+len(up) {
		return nil, admin.Errorf(admin.Conflict, "fleetbus node rm, for nodes that are gone", "%d of %d nodes are up: they are a quorum, and there is nothing to rescue",
			len(up), len(lost)+len(up))
	}
	nc, err := s.broker.Connect(s.systemAuth()...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the system account: %w", err)
	}
	defer nc.Close()
	s.log.Warn("rescue: the quorum is lowered to the nodes that are up", "lost", result.Removed)
	if err := s.takeLead(ctx, nc); err != nil {
		return nil, err
	}
	for _, n := range lost {
		if err := broker.RemoveMember(ctx, nc, n.Server()); err != nil && !errors.Is(err, broker.ErrNotMember) {
			return nil, err
		}
	}
	if result.Streams, err = s.bringBack(ctx, len(up)); err != nil {
		return nil, err
	}
	for _, n := range lost {
		if _, err := s.fleet.dropNode(ctx, n.Name); err != nil {
			return nil, err
		}
	}
	return result, nil
}

// bringBack waits until every stream that this node keeps has a leader again, and
// no more servers than there are nodes. The groups of those with several copies
// have shrunk to the nodes that are left, and grow by themselves when there are
// others; to ask for fewer copies besides would only move them once more. A stream
// that was to be copied when the quorum was lost is agreed on only now, and begins
// a group, which waits for a route.
func (s *Server) bringBack(ctx context.Context, nodes int) (streams int, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, bringBackTimeout,
		admin.Errorf(admin.Unavailable, "restart this node, and run fleetbus rescue again", "a stream has no leader yet"))
	defer cancel()
	end, err := s.broker.Accompany()
	if err != nil {
		return 0, err
	}
	defer end()
	err = s.until(ctx, "bringing back the streams", func() bool {
		streams = 0
		for _, st := range s.broker.Streams() {
			// A leader of a group that has not shrunk yet is one in name only.
			if st.Leader == "" || st.Others >= nodes {
				return false
			}
			if st.Replicas > 1 {
				streams++
			}
		}
		return true
	})
	return streams, err
}

// bringBackTimeout bounds the wait for the streams of a rescue.
const bringBackTimeout = 30 * time.Second

// takeLead lowers the quorum until there is a leader; a node that is alone in its
// group, as after a rescue that was cut off, leads already.
func (s *Server) takeLead(ctx context.Context, nc *nats.Conn) error {
	if s.broker.IsLeader() && len(s.broker.Members()) == 1 {
		return nil
	}
	for {
		err := broker.Rescue(ctx, nc)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
	return s.until(ctx, "electing a leader", func() bool { return s.broker.Leader() != "" })
}

// localAdmin is the admin whose credentials lie in a node's data directory.
func localAdmin(node string) string { return "admin-" + node }

// ensureAdmin gives a node that joined an admin of its own, so that commands work
// on its machine as they do on the first.
func (s *Server) ensureAdmin(ctx context.Context) error {
	path := s.home.Path("admin", "admin.creds")
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return fmt.Errorf("making the local admin: %w", err)
	}
	name := localAdmin(s.fleet.node)
	g, err := s.newGrant(identity.FleetName, name, admin.UserRequest{Name: identity.FleetName + "/" + name, Key: public, Expires: adminLife})
	if err != nil {
		return err
	}
	_, err = s.fleet.change(ctx, userSubject(identity.FleetName, name), func() (any, error) { return g.User(s.fleet.directory) })
	if err != nil {
		return fmt.Errorf("making the local admin: %w", err)
	}
	var reply admin.UserReply
	if err := g.Issue(&reply); err != nil {
		return err
	}
	creds, err := identity.CreateCreds(reply.JWT, seed)
	if err != nil {
		return err
	}
	return home.WriteFile(path, creds, 0o600)
}
