package fleetbus

import (
	"context"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/home"
)

// nodeAuditSubject asks every node what it remembers of the audit.
const nodeAuditSubject = "node.audit"

// openAudit opens this node's journal, and has it told who comes and who is refused.
func (s *Server) openAudit() error {
	path := ""
	if s.opts.Dir != "" {
		path = s.home.Path("audit.nk")
	}
	j, err := audit.New(audit.Options{Node: s.home.Node.Node.Name, Path: path, Write: home.WriteFile, Logger: s.log})
	if err != nil {
		return err
	}
	s.fleet.audit = j
	s.events.Also(j.Event, j.Drop)
	s.audit = audit.Desk{
		Journal: j, Directory: s.fleet.directory, Fleet: s.fleet.authority.Fleet(), AccountName: s.fleet.accountName, Where: s.whereIs, Heads: s.auditHeads,
		Streams: func(do func(jetstream.JetStream) error) error { return s.inAccount(identity.FleetName, do) },
	}
	return nil
}

// whereIs are the addresses where a user is connected now, as far as nodes say so at
// once: a node that does not answer, because it is new or dead, holds up nothing.
func (s *Server) whereIs(ctx context.Context, account, name string) (from []string) {
	a, ok := s.fleet.account(account)
	if !ok || name == "" {
		return nil
	}
	const most, atOnce = 4, 500 * time.Millisecond
	ctx, cancel := context.WithTimeout(ctx, atOnce)
	defer cancel()
	some, _, err := s.fleetConnections(ctx, a.Public, name, most)
	if err != nil {
		s.log.Debug("where a request came from is not certain", "principal", name, "error", err)
	}
	for _, c := range some {
		from = append(from, c.Remote)
	}
	return from
}

// auditAnswer is what a node remembers.
type auditAnswer struct {
	Node  string                     `json:"node"`
	Heads map[string]admin.AuditHead `json:"heads"`
}

func (s *Server) answerAudit(_ context.Context, msg *nats.Msg) error {
	return ask.Answer(msg, auditAnswer{s.fleet.node, s.fleet.audit.Heads()})
}

func (s *Server) auditHeads(ctx context.Context) (map[string]map[string]admin.AuditHead, []string, error) {
	heads, missing, expect := map[string]map[string]admin.AuditHead{}, []string{}, s.fleet.up()
	_, err := ask.All(ctx, s.conn, nodeAuditSubject, struct{}{}, infoTimeout, func(a auditAnswer) bool {
		delete(expect, a.Node)
		heads[a.Node] = a.Heads
		return len(expect) == 0
	})
	for _, n := range s.fleet.directory.Nodes() {
		if _, ok := heads[n.Name]; !ok {
			missing = append(missing, n.Name)
		}
	}
	return heads, missing, err
}

// recordAudit is n with the key of this node's journal.
func (s *Server) recordAudit(n identity.Node) identity.Node {
	if n.Audit != "" && n.Audit != s.fleet.audit.Public() {
		n.AuditBefore = append(n.AuditBefore, n.Audit)
	}
	n.Audit = s.fleet.audit.Public()
	return n
}
