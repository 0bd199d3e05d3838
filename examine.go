package fleetbus

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/exam"
	"github.com/fleetbus/fleetbus/internal/localcheck"
)

// examineTimeout is how long the nodes have: they dial for a second, and name servers are
// slow.
const examineTimeout = 5 * time.Second

// nodeExamineSubject asks nodes to look at their machines and at one another.
const nodeExamineSubject = "node.examine"

func (s *Server) examine(ctx context.Context, r admin.ExamineRequest) (any, error) {
	out := admin.Examinations{Nodes: []admin.Examination{}}
	expect := s.fleet.up()
	maps.DeleteFunc(expect, func(name string, _ bool) bool { return len(r.Nodes) > 0 && !slices.Contains(r.Nodes, name) })
	_, err := ask.All(ctx, s.conn, nodeExamineSubject, r, examineTimeout, func(e admin.Examination) bool {
		out.Nodes = append(out.Nodes, e)
		delete(expect, e.Node)
		return len(expect) == 0
	})
	slices.SortFunc(out.Nodes, func(a, b admin.Examination) int { return strings.Compare(a.Node, b.Node) })
	out.Missing = append([]string{}, slices.Sorted(maps.Keys(expect))...)
	return out, err
}

func (s *Server) answerExamine(ctx context.Context, msg *nats.Msg) error {
	var r admin.ExamineRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	if len(r.Nodes) > 0 && !slices.Contains(r.Nodes, s.fleet.node) {
		return nil
	}
	m := localcheck.Machine{
		Dir: s.home.Dir, Node: s.fleet.node, Advertise: s.opts.Advertise, MaxFile: s.opts.Store.MaxFile, MaxMemory: s.opts.Store.MaxMemory, Reserve: s.opts.Store.Reserve,
		Connections: s.opts.Limits.Connections, Cert: s.opts.TLS.Cert, Key: s.opts.TLS.Key, Server: os.Getpid(), Env: os.Environ(),
	}
	for name, addr := range s.listening() {
		m.Ports = append(m.Ports, localcheck.Port{Name: name, Addr: addr})
	}
	e := exam.Node(ctx, m, s.fleet.directory.Nodes())
	for _, stream := range s.broker.Leaderless() {
		if name, _ := s.fleet.accountName(stream[0]); name != "" {
			e.Leaderless = append(e.Leaderless, name+"/"+stream[1])
		}
	}
	return ask.Answer(msg, e)
}
