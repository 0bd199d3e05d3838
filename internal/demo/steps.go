package demo

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/human"
)

// The accounts of the demonstration.
const (
	account      = "shop"
	otherAccount = "press"
)

// steps are what the demonstration shows.
func (d *Demo) steps() []step {
	steps := []step{
		{name: "three nodes ready, linked by mutual TLS", vital: true, try: d.found,
			waiting: "starting three nodes, which elect a leader (4 to 9 s)"},
		{name: "node 1 -> node 3 over TLS, account " + account, try: d.greet,
			waiting: "listening on every node"},
		{name: "the same message in-process, embedded node 2", try: d.greetEmbedded,
			waiting: "listening inside node 2"},
		{name: "a client of account " + otherAccount + " hears nothing of it", try: d.greetNobody,
			waiting: "listening in the other account"},
		{name: "strangers are refused", try: d.refuse,
			waiting: "knocking at every port"},
	}
	steps = append(steps, d.changeSteps()...)
	return append(steps, []step{
		{name: "a user is denied, its live connections close", try: d.deny,
			waiting: "denying a user"},
		{name: "durable messages survive kill -9 of the leader", try: d.survive,
			waiting: "killing the node that leads a stream; an election takes 4 to 9 s"},
		{name: "every certificate renewed under load", try: d.renew,
			waiting: "renewing certificates while clients work"},
		{name: "a certificate, issued once and served by a load balancer", try: d.certify,
			waiting: "having a certificate issued, delivered and renewed"},
		{name: "every node stopped, the load balancer restarted", try: d.without,
			waiting: "stopping all nodes, and starting them again"},
	}...)
}

// dial is connect for a connection that stays until the demonstration ends.
func (d *Demo) dial(n *Node, creds string, opts ...nats.Option) (*nats.Conn, error) {
	nc, err := d.connect(n, creds, opts...)
	if err == nil {
		d.conns = append(d.conns, nc)
	}
	return nc, err
}

// found makes the fleet, waits until all of it is there, and adds the users of
// the other steps.
func (d *Demo) found(ctx context.Context) (measured, error) {
	began := time.Now()
	if err := d.start(); err != nil {
		return measured{}, err
	}
	for _, n := range d.nodes {
		if err := d.ready(ctx, n); err != nil {
			return measured{}, err
		}
	}
	// Its connection is to the node that is not killed.
	nc, err := d.dial(d.nodes[embeddedNode], d.founded.AdminCreds)
	if err != nil {
		return measured{}, err
	}
	d.api, d.apiConn = admin.New(nc), nc
	leader, err := d.whole(ctx)
	if err != nil {
		return measured{}, err
	}
	took := time.Since(began)
	return measured{took: took, detail: fmt.Sprintf("%s leads, %s is in this process", leader, d.nodes[embeddedNode].Name)}, d.addUsers(ctx)
}

// whole returns when every node is up, linked to every other and a voter, and
// names the one that leads them.
func (d *Demo) whole(ctx context.Context) (leader string, err error) {
	err = retry(ctx, "waiting for the fleet to be whole", func(ctx context.Context) error {
		s, err := d.api.Status(ctx)
		if err != nil {
			return err
		}
		for _, n := range s.Nodes {
			if n.State != "up" || !n.Voter || len(n.Routes) != len(d.nodes)-1 {
				return fmt.Errorf("node %s is %s, voter: %t, linked to %d nodes", n.Name, n.State, n.Voter, len(n.Routes))
			}
		}
		if leader = s.Leader; leader == "" || len(s.Nodes) != len(d.nodes) {
			return fmt.Errorf("there are %d nodes, leader: %q", len(s.Nodes), leader)
		}
		return nil
	})
	return leader, err
}

// The subjects of greet. Probes go ahead until they are heard: from then on every
// node knows who listens.
const (
	greetingSubject = "greeting.hello"
	probeSubject    = "greeting.probe"
	barrierSubject  = "greeting.barrier"
)

// A greeting is one message and those who listen.
type greeting struct {
	sent time.Time
	// node3 and embedded listen in the account of the message, others in the other
	// account, on every node. stranger publishes there.
	node3, embedded *ear
	others          []*ear
	stranger        *nats.Conn
}

// An ear hears the messages of a subject.
type ear struct {
	probed chan struct{}
	heard  chan sound
}

// A sound is a message that was heard.
type sound struct {
	subject string
	at      time.Time
}

// listen makes an ear. It does not hear what a node asks of its streams in each
// account, and the answers.
func listen(nc *nats.Conn, subject string) (*ear, error) {
	e := &ear{probed: make(chan struct{}, 1), heard: make(chan sound, 16)}
	_, err := nc.Subscribe(subject, func(msg *nats.Msg) {
		if strings.HasPrefix(msg.Subject, "$JS.") || strings.HasPrefix(msg.Subject, "_INBOX.") {
			return
		}
		if msg.Subject == probeSubject {
			select {
			case e.probed <- struct{}{}:
			default:
			}
			return
		}
		select {
		case e.heard <- sound{msg.Subject, time.Now()}:
		default: // a flood is no more telling than what came before it
		}
	})
	if err == nil {
		err = nc.Flush()
	}
	if err != nil {
		return nil, fmt.Errorf("listening on %q: %w", subject, err)
	}
	return e, nil
}

// probe returns when the ear hears what nc publishes.
func (e *ear) probe(ctx context.Context, nc *nats.Conn) error {
	return retry(ctx, "waiting until a listener is known", func(context.Context) error {
		if err := nc.Publish(probeSubject, nil); err != nil {
			return err
		}
		select {
		case <-e.probed:
			return nil
		default:
			return errors.New("not yet")
		}
	})
}

// next returns the next message, which has to be on subject.
func (e *ear) next(ctx context.Context, subject string) (time.Time, error) {
	select {
	case s := <-e.heard:
		if s.subject != subject {
			return s.at, fmt.Errorf("listening for %q: heard %q", subject, s.subject)
		}
		return s.at, nil
	case <-ctx.Done():
		return time.Time{}, fmt.Errorf("listening for %q: %w", subject, context.Cause(ctx))
	}
}

// addUsers makes the accounts and their users.
func (d *Demo) addUsers(ctx context.Context) error {
	for _, name := range []string{account, otherAccount} {
		if _, err := d.api.AddAccount(ctx, admin.AccountRequest{Name: name}); err != nil {
			return fmt.Errorf("adding account %q: %w", name, err)
		}
	}
	for name, creds := range map[string]*string{
		account + "/clerk": &d.clerk, account + "/guest": &d.guest, otherAccount + "/eve": &d.eve,
	} {
		var err error
		if *creds, err = d.addUser(ctx, d.api, name); err != nil {
			return err
		}
	}
	return nil
}

// greet publishes a message on node 1 and waits until it is heard on node 3.
func (d *Demo) greet(ctx context.Context) (measured, error) {
	speaker, err := d.dial(d.nodes[0], d.clerk)
	if err != nil {
		return measured{}, err
	}
	told := greeting{}
	if err := d.gather(ctx, &told, speaker); err != nil {
		return measured{}, err
	}
	told.sent = time.Now()
	if err := speaker.Publish(greetingSubject, []byte("hello")); err != nil {
		return measured{}, fmt.Errorf("publishing on node 1: %w", err)
	}
	d.told = told
	at, err := told.node3.next(ctx, greetingSubject)
	if err != nil {
		return measured{}, err
	}
	return measured{took: at.Sub(told.sent), detail: "a client with a creds file on either node"}, nil
}

// gather makes everybody listen, and waits until speaker would be heard.
func (d *Demo) gather(ctx context.Context, told *greeting, speaker *nats.Conn) error {
	nc, err := d.dial(d.nodes[2], d.clerk)
	if err != nil {
		return err
	}
	if told.node3, err = listen(nc, "greeting.*"); err != nil {
		return err
	}
	session, err := d.embedded.Session(ctx, identity.Principal{Account: account, Name: "embedded"})
	if err != nil {
		return err
	}
	d.conns = append(d.conns, session.Conn)
	if told.embedded, err = listen(session.Conn, "greeting.*"); err != nil {
		return err
	}
	if told.stranger, err = d.dial(d.nodes[0], d.eve); err != nil {
		return err
	}
	for _, n := range d.nodes {
		nc, err := d.dial(n, d.eve)
		if err != nil {
			return err
		}
		other, err := listen(nc, ">")
		if err != nil {
			return err
		}
		if err := other.probe(ctx, told.stranger); err != nil {
			return err
		}
		told.others = append(told.others, other)
	}
	return errors.Join(told.node3.probe(ctx, speaker), told.embedded.probe(ctx, speaker))
}

// greetEmbedded waits until the message is heard inside node 2.
func (d *Demo) greetEmbedded(ctx context.Context) (measured, error) {
	if d.told.embedded == nil {
		return measured{}, errors.New("there was no message")
	}
	at, err := d.told.embedded.next(ctx, greetingSubject)
	if err != nil {
		return measured{}, err
	}
	return measured{took: at.Sub(d.told.sent), detail: "no socket between node and listener"}, nil
}

// greetNobody checks that whoever listens to everything in another account hears
// nothing but what is published there: a barrier, after the message has arrived
// on all nodes.
func (d *Demo) greetNobody(ctx context.Context) (measured, error) {
	if d.told.stranger == nil {
		return measured{}, errors.New("there was no message")
	}
	if err := d.told.stranger.Publish(barrierSubject, nil); err != nil {
		return measured{}, fmt.Errorf("publishing in account %q: %w", otherAccount, err)
	}
	for i, other := range d.told.others {
		if _, err := other.next(ctx, barrierSubject); err != nil {
			return measured{}, fmt.Errorf("on node %s: %w", d.nodes[i].Name, err)
		}
	}
	return measured{detail: `">" on three nodes heard only its own account`}, nil
}

// deny denies a user that is connected to every node.
func (d *Demo) deny(ctx context.Context) (measured, error) {
	closed := make(chan string, len(d.nodes))
	for _, n := range d.nodes {
		nc, err := d.connect(n, d.guest, nats.NoReconnect(), nats.ClosedHandler(func(*nats.Conn) { closed <- n.Name }))
		if err != nil {
			return measured{}, err
		}
		defer nc.Close()
	}
	name := account + "/guest"
	began := time.Now()
	spread, err := d.api.DenyUser(ctx, name)
	if err != nil {
		return measured{}, fmt.Errorf("denying %q: %w", name, err)
	}
	if len(spread.Missing) > 0 || spread.Closed() != len(d.nodes) {
		return measured{}, fmt.Errorf("denying %q: %d of %d connections closed, no answer from %q", name, spread.Closed(), len(d.nodes), strings.Join(spread.Missing, ", "))
	}
	for i := range d.nodes {
		select {
		case <-closed:
		case <-ctx.Done():
			return measured{}, fmt.Errorf("waiting for connections to close: %d of %d: %w", i, len(d.nodes), context.Cause(ctx))
		}
	}
	took := time.Since(began)
	for _, n := range d.nodes {
		nc, err := d.connect(n, d.guest, nats.NoReconnect())
		if err == nil {
			nc.Close()
			return measured{}, fmt.Errorf("node %s let %q in again", n.Name, name)
		}
		if !errors.Is(err, nats.ErrAuthorization) && !errors.Is(err, nats.ErrAuthRevoked) {
			return measured{}, fmt.Errorf("node %s did not refuse %q, but: %w", n.Name, name, err)
		}
	}
	return measured{took: took, detail: fmt.Sprintf("%d closed on %d of %d nodes in %s by the servers' count; none gets in again",
		spread.Closed(), len(spread.Nodes), len(d.nodes), human.Duration(spread.Took))}, nil
}
