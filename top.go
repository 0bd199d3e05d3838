package fleetbus

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/ask"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/rates"
)

const (
	// topSubject is asked of all nodes: measure for a while how much goes on.
	topSubject = "node.top"
	// topInterval is how long they measure if nobody says, and topLongest at most.
	topInterval, topLongest = time.Second, 10 * time.Second
	// topsAtOnce bounds the measurements under way: each lasts its time.
	topsAtOnce = 8
	// topConnections is how many connections of an account a node tells apart.
	topConnections = 10_000
)

// topReply is one node's answer.
type topReply struct {
	Node   string       `json:"node"`
	Rates  []admin.Rate `json:"rates"`
	Others admin.Rate   `json:"others"`
	Error  string       `json:"error,omitempty"`
}

// getTop has all nodes measure at once.
func (s *Server) getTop(ctx context.Context, r admin.TopRequest) (any, error) {
	if r.Account != "" && r.Account != identity.FleetName {
		if _, err := s.wantAccount(r.Account); err != nil {
			return nil, err
		}
	}
	if r.Users && r.Account == "" {
		return nil, admin.Errorf(admin.Invalid, "name the account", "users can be told apart in one account at a time")
	}
	r.Interval = min(max(cmp.Or(r.Interval, topInterval), 100*time.Millisecond), topLongest)
	top := admin.Top{Rates: []admin.Rate{}, Missing: []string{}, Errors: []string{}}
	expect := s.fleet.up()
	sums := rates.Rates{}
	_, err := ask.All(ctx, s.conn, topSubject, r, r.Interval+infoTimeout, func(reply topReply) bool {
		delete(expect, reply.Node)
		top.Others.Add(reply.Others)
		for _, rate := range reply.Rates {
			sums.Add(rate)
		}
		if reply.Error != "" {
			top.Errors = append(top.Errors, reply.Node+": "+reply.Error)
		}
		return s.answered(expect)
	})
	for name := range expect {
		top.Missing = append(top.Missing, name)
	}
	slices.Sort(top.Missing)
	slices.Sort(top.Errors)
	busiest, others := sums.Busiest()
	top.Time, top.Rates = time.Now(), busiest
	top.Others.Add(others)
	return top, err
}

func (s *Server) answerTop(ctx context.Context, msg *nats.Msg) error {
	var r admin.TopRequest
	if err := json.Unmarshal(msg.Data, &r); err != nil {
		return fmt.Errorf("reading a request: %w", err)
	}
	reply := topReply{Node: s.fleet.node, Rates: []admin.Rate{}}
	found, err := s.measure(ctx, r)
	if err != nil {
		reply.Error = err.Error()
	}
	reply.Rates, reply.Others = found.Busiest()
	return ask.Answer(msg, reply)
}

// measure looks at this node's meters twice.
func (s *Server) measure(ctx context.Context, r admin.TopRequest) (rates.Rates, error) {
	read := s.accountMeters
	if r.Users {
		read = s.userMeters
	}
	before, err := read(r.Account)
	if err != nil {
		return nil, err
	}
	began := time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(r.Interval):
	}
	after, err := read(r.Account)
	if err != nil {
		return nil, err
	}
	return rates.Between(before, after, time.Since(began)), nil
}

// accountMeters are those of the accounts, or of the one that is named. What the
// engine and the nodes have for themselves is not among them.
func (s *Server) accountMeters(account string) ([]rates.Meter, error) {
	all, err := s.broker.Traffic()
	if err != nil {
		return nil, err
	}
	resting := s.fleet.resting.perAccount()
	meters := make([]rates.Meter, 0, len(all))
	for _, t := range all {
		name, ok := s.fleet.accountName(t.Account)
		if !ok || name == identity.SystemName || name == identity.CalloutName || name == identity.RegionsName || account != "" && name != account {
			continue
		}
		t.Connections += resting[name]
		meters = append(meters, rates.Meter{Key: t.Account, Name: name, Traffic: t})
	}
	return meters, nil
}

// userMeters are those of the connections of an account.
func (s *Server) userMeters(account string) ([]rates.Meter, error) {
	a, ok := s.fleet.account(account)
	if !ok {
		return nil, nil
	}
	if n := s.broker.AccountConnections(a.Public); n > topConnections {
		return nil, fmt.Errorf("account %q has %d connections, too many to tell its users apart", account, n)
	}
	conns, err := s.fleet.connections(a.Public, "")
	if err != nil {
		return nil, err
	}
	meters := make([]rates.Meter, 0, len(conns))
	for _, c := range conns {
		meters = append(meters, rates.Meter{Key: fmt.Sprint(c.Kind, c.ID), Name: account + "/" + c.Name, Traffic: broker.Traffic{
			Connections: 1, InMsgs: c.InMsgs, OutMsgs: c.OutMsgs, InBytes: c.InBytes, OutBytes: c.OutBytes,
		}})
	}
	return meters, nil
}
