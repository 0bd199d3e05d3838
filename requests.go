package fleetbus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/audit"
)

const (
	// requestTimeout bounds the work on one request.
	requestTimeout = 30 * time.Second
	// requestsAtOnce bounds the requests under way on one node.
	requestsAtOnce = 32
)

// A handler answers one request; the error, if it is an *admin.Error, is told to
// whoever asked, and any other only to the operator.
type handler func(ctx context.Context, msg *nats.Msg) (any, error)

// on decodes a request for a handler.
func on[In any](do func(context.Context, In) (any, error)) handler {
	return func(ctx context.Context, msg *nats.Msg) (any, error) {
		var in In
		if err := json.Unmarshal(msg.Data, &in); err != nil {
			return nil, admin.Errorf(admin.Invalid, "", "the request cannot be read: %v", err)
		}
		return do(ctx, in)
	}
}

// onToken is on for the holder of an enrollment token. The token's id is the last
// part of the subject, which the engine lets only that token's holder use.
func onToken[In any](do func(ctx context.Context, token string, in In) (any, error)) handler {
	return func(ctx context.Context, msg *nats.Msg) (any, error) {
		token := msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:]
		return on(func(ctx context.Context, in In) (any, error) { return do(ctx, token, in) })(ctx, msg)
	}
}

// handlers are all requests, by name: those of package admin.
func (s *Server) handlers(ctx context.Context) map[string]handler {
	all := map[string]handler{
		"status":           on(s.getStatus),
		"doctor.ls":        on(s.examine),
		"link.ls":          on(s.listLinks),
		"account.ls":       on(s.listAccounts),
		"connection.ls":    on(s.listConnections),
		"connection.close": on(s.endConnection),
		"stream.ls":        on(s.listStreams),
		"account.info":     on(s.getAccount),
		"export.ls":        on(s.listExports),
		"import.ls":        on(s.listImports),
		"adapter.add":      on(s.addAdapter),
		"adapter.ls":       on(s.listAdapters),
		"adapter.rm":       on(s.removeAdapter),
		"user.add":         on(s.addUser),
		"user.ls":          on(s.listUsers),
		"user.info":        on(s.getUser),
		"user.rm":          on(s.removeUser),
		"user.deny":        on(s.denyUser),
		"user.allow":       on(s.allowUser),
		"role.ls":          on(s.listRoles),
		"token.add":        on(s.addToken),
		"token.ls":         on(s.listTokens),
		"token.rm":         on(s.revokeToken),
		"source.setup":     on(s.sourceSetup),
		"source.add":       on(s.addSource),
		"source.ls":        on(s.listSources),
		"source.rm":        on(s.removeSource),
		"leaf.ls":          on(s.listSites),
		"gateway.ls":       on(s.listRegions),
		"gateway.rm":       on(s.removeRegion),

		"provision.open":    on(s.openProvisioner),
		"provision.machine": on(s.provisionMachine),
		"provision.tell":    on(s.tellProvision),

		"node.rm":      on(s.removeNode),
		"node.renew":   on(s.renewNodes),
		"node.profile": on(s.profileNode),

		"key.ls": on(s.listKeys),
	}
	for name, h := range s.homeHandlers() {
		all[name] = s.atHome(name, h)
	}
	all["backup.begin"] = on(s.newBackups(ctx).Begin)
	for name, h := range s.audit.Handlers() {
		all[name] = h
	}
	return all
}

// serveRequests subscribes to everything that this node answers.
func (s *Server) serveRequests(ctx context.Context) error {
	// What nodes ask one another is counted apart: it is asked by requests that are
	// under way.
	people, nodes := make(chan struct{}, requestsAtOnce), make(chan struct{}, requestsAtOnce)
	conn := s.conn
	tops, measurements := make(chan struct{}, topsAtOnce), make(chan struct{}, topsAtOnce)
	subscribe := func(subject, queue string, busy chan struct{}, answer func(context.Context, *nats.Msg) error) error {
		serve := func(msg *nats.Msg) {
			select {
			case busy <- struct{}{}:
			case <-ctx.Done():
				return
			}
			s.group.Go(func() {
				defer func() { <-busy }()
				ctx, cancel := context.WithTimeout(ctx, requestTimeout)
				defer cancel()
				if err := answer(ctx, msg); err != nil && ctx.Err() == nil {
					s.log.Warn("a request failed", "subject", msg.Subject, "error", err)
				}
			})
		}
		var err error
		if queue == "" {
			_, err = conn.Subscribe(subject, serve)
		} else {
			_, err = conn.QueueSubscribe(subject, queue, serve)
		}
		if err != nil {
			return fmt.Errorf("subscribing to %q: %w", subject, err)
		}
		return nil
	}
	request := func(name, queue string, busy chan struct{}, answer func(context.Context, *nats.Msg) error) (err error) {
		for _, subject := range audit.BothWays(admin.Prefix + name) {
			err = errors.Join(err, subscribe(subject, queue, busy, answer))
		}
		return err
	}
	all := s.handlers(ctx)
	for name, h := range all {
		if err := request(name, "admin", people, s.answer(h)); err != nil {
			return err
		}
	}
	all["top"], all["console.login"] = on(s.getTop), on(s.addLoginLink)
	err := errors.Join(
		request(admin.AtPrefix+s.fleet.node+".>", "", people, s.answer(func(ctx context.Context, msg *nats.Msg) (any, error) {
			_, name := admin.ParseSubject(msg.Subject)
			if h, ok := all[name]; ok {
				return h(ctx, msg)
			}
			return nil, admin.Errorf(admin.Invalid, "ask the fleet, and not one node", "there is no request %q to one node", name)
		})),
		subscribe(nodeAuditSubject, "", nodes, s.answerAudit),
		// A node's answer to a denial may not wait behind other requests.
		s.subscribeSync(ctx),
		s.serveCerts(ctx),
		subscribe(nodeInfoSubject, "", nodes, s.answerNodeInfo),
		subscribe(nodeRenewSubject, "", nodes, s.answerNodeRenew),
		subscribe(nodeProfileSubject, "", nodes, s.answerProfile),
		subscribe(nodeExamineSubject, "", nodes, s.answerExamine),
		subscribe(topSubject, "", measurements, s.answerTop),
		request("top", "admin", tops, s.answer(on(s.getTop))),
		subscribe(nodeConnectionsSubject, "", nodes, s.answerConnections),
		subscribe(nodeAdaptersSubject, "", nodes, s.answerAdapters),
		subscribe(nodeClientsSubject, "", nodes, s.answerClients),
		subscribe(nodeCloseSubject, "", nodes, s.answerClose),
		subscribe(nodeStreamsSubject, "", nodes, s.answerStreams),
		subscribe(nodeCrowdSubject, "", nodes, s.answerCrowd),
		subscribe(nodeCountSubject, "", nodes, s.answerCount),
		subscribe(nodeLookSubject, "", people, s.answerLook),
		request("node.leave", "", people, s.answerLeave),
		request("rescue", "admin", people, s.answerRescue),
		subscribe(enroll.PreflightSubject+".*", "", people, s.answerPreflight),
		subscribe(enroll.NodeSubject+".*", "enroll", people, s.answer(onToken(s.enrollNode))),
		subscribe(enroll.LeafSubject+".*", "enroll", people, s.answer(onToken(s.enrollLeaf))),
		subscribe(enroll.RegionSubject+".*", "enroll", people, s.answer(onToken(s.enrollRegion))),
		subscribe(enroll.UserSubject+".*", "enroll", people, s.answer(onToken(s.enrollUser))),
	)
	if p, _ := s.page(); p != nil {
		err = errors.Join(err, request("console.login", "admin", people, s.answer(on(s.addLoginLink))))
	}
	// What follows believes what the engine says of who asks.
	conn = s.exact
	err = errors.Join(err,
		subscribe(identity.RenewRequests, "renew", people, s.answer(s.renewUser)),
		s.serveAdapters(ctx, conn),
	)
	if err != nil {
		return err
	}
	return errors.Join(s.conn.Flush(), conn.Flush())
}

func (s *Server) subscribeSync(ctx context.Context) error {
	_, err := s.conn.Subscribe(syncSubject, func(msg *nats.Msg) {
		s.group.Go(func() {
			if err := s.fleet.answerSync(ctx, msg); err != nil && ctx.Err() == nil {
				s.log.Warn("a request failed", "subject", msg.Subject, "error", err)
			}
		})
	})
	if err != nil {
		return fmt.Errorf("subscribing to %q: %w", syncSubject, err)
	}
	return nil
}

// answer puts what a handler returns into an admin.Reply.
func (s *Server) answer(h handler) func(context.Context, *nats.Msg) error {
	return func(ctx context.Context, msg *nats.Msg) error {
		out, err := s.audit.Auditing(h)(ctx, msg)
		var reply admin.Reply
		if err == nil {
			reply.Data, err = json.Marshal(out)
		}
		if err != nil && !errors.As(err, &reply.Error) {
			_, what := admin.ParseSubject(msg.Subject)
			reply.Error = admin.Errorf(admin.Failed, "look at the log of node "+s.fleet.node, "%s could not be done: node %s says why in its log",
				what, s.fleet.node)
			if errors.Is(err, context.DeadlineExceeded) {
				reply.Error = admin.Errorf(admin.Unavailable, "fleetbus status", "the fleet did not agree in time")
				if s.disk.Held() {
					reply.Error.Text += ", and the disk of node " + s.fleet.node + " is short"
				}
			}
			return errors.Join(err, ask.Answer(msg, reply))
		}
		return ask.Answer(msg, reply)
	}
}

// The requests between nodes, beside syncSubject.
const (
	nodeInfoSubject        = "node.info"
	nodeRenewSubject       = "node.renew"
	nodeProfileSubject     = "node.profile"
	nodeConnectionsSubject = "node.connections"
)

// answerPreflight tells a joiner what this node sees of it.
func (s *Server) answerPreflight(ctx context.Context, msg *nats.Msg) error {
	var req enroll.Preflight
	if err := json.Unmarshal(msg.Data, &req); err != nil {
		return fmt.Errorf("reading a preflight: %w", err)
	}
	reply := enroll.PreflightReply{
		Node: s.fleet.node, Version: Version(), Time: time.Now(), Nodes: len(s.fleet.up()),
		Unreachable: map[string]string{}, Refused: refuseVersion(req.Version),
	}
	reply.Token = s.unfit(msg.Subject[strings.LastIndexByte(msg.Subject, '.')+1:], req.Name)
	n, _ := s.fleet.directory.Node(s.fleet.node)
	reply.Cluster, reply.Clients = n.ClusterAddr, n.ClientAddr
	if n, ok := s.fleet.directory.Node(req.Name); ok && !n.Removed && !req.Replace {
		reply.NameTaken = fmt.Sprintf("%s, which joined at %s from %s", n.Name, n.Joined.UTC().Format(time.RFC3339), n.Advertise)
	}
	var mu sync.Mutex
	var dials sync.WaitGroup
	for i, addr := range req.Dial {
		if i == maxPreflightDials {
			break
		}
		dials.Go(func() {
			if err := dialBack(ctx, addr, req.Echo); err != nil {
				mu.Lock()
				reply.Unreachable[addr] = err.Error()
				mu.Unlock()
			}
		})
	}
	dials.Wait()
	return ask.Answer(msg, reply)
}

// maxPreflightDials bounds what a token's holder can make a node dial.
const maxPreflightDials = 4

// dialBack reads the joiner's echo at its address.
func dialBack(ctx context.Context, addr, echo string) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	defer conn.Close()
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	buf := make([]byte, 128)
	n, err := conn.Read(buf)
	if err != nil {
		return fmt.Errorf("something else answers there: %w", err)
	}
	if got := strings.TrimSpace(string(buf[:n])); got != strings.TrimSpace(echo) {
		return errors.New("something else answers there")
	}
	return nil
}
