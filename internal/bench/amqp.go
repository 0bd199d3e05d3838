package bench

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/bareserver"
)

const (
	// amqpTimeout bounds everything, and amqpTrial one load.
	amqpTimeout, amqpTrial = 90 * time.Minute, 5 * time.Minute
	// amqpBody is the size of a message, in bytes.
	amqpBody = 256
	// amqpWindow is how many publications are not confirmed yet.
	amqpWindow = 100
	rabbitmq   = "/usr/lib/rabbitmq/bin/rabbitmq-server"
)

// An amqpBroker is a system that speaks AMQP, over TLS.
type amqpBroker struct {
	*system
	addrs  []string
	config amqp091.Config
	queue  amqp091.Table // arguments of a durable queue
}

// AMQP measures the AMQP of this project's servers and of RabbitMQ, where it is installed.
// It is as House is.
func AMQP(ctx context.Context, o Options) (Report, error) {
	ctx, cancel := context.WithTimeout(ctx, amqpTimeout)
	defer cancel()
	h := &house{env: o.Env, progress: o.Progress, only: o.Only, alone: true, effort: effort{rounds: 7, messages: 50_000, stored: 5000, echoes: 500, sessions: 10_000, idle: 1000, settling: 5 * time.Second}}
	if o.Quick {
		h.effort = effort{rounds: 1, messages: 2000, stored: 200, echoes: 50, sessions: 200, idle: 50, settling: 500 * time.Millisecond}
	}
	h.Conditions = append(h.Conditions,
		Condition{"client", "the same for both: amqp091-go over TLS 1.3, in one process; messages of 256 B"},
		Condition{"ours", "fleetbus serve, release build; clients show a certificate; a durable queue's message is written and synced before it is confirmed"},
		Condition{"rabbitmq", "Debian's, as it comes; a classic durable queue on one node, a quorum queue on three"},
		Condition{"rounds", fmt.Sprintf("%d, each load on both in turn, after one to warm up; medians, and the quartiles of the ratios of rounds as spread", h.effort.rounds)})
	return h.measure(ctx, []part{
		{"measuring one node against RabbitMQ", h.measureOneAMQP},
		{"measuring three nodes against RabbitMQ", h.measureThreeAMQP},
		{"measuring queues and idle connections", h.measureIdleAMQP},
	})
}

// amqpFleet runs n nodes of ours.
func (h *house) amqpFleet(ctx context.Context, n int) (*amqpBroker, error) {
	s, addrs, config, err := h.listening(ctx, n, "amqp")
	if err != nil {
		return nil, err
	}
	b := &amqpBroker{system: s, addrs: addrs, config: amqp091.Config{TLSClientConfig: config, SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}}}
	return b, b.await(ctx)
}

// rabbit runs n nodes of RabbitMQ, with a registry of names of their own.
func (h *house) rabbit(ctx context.Context, n int) (*amqpBroker, error) {
	if !exists(rabbitmq) {
		return nil, errMissing
	}
	dir, addrs, err := h.place(2*n + 1)
	if err != nil {
		return nil, err
	}
	port := func(i int) string {
		_, port, _ := net.SplitHostPort(addrs[i])
		return port
	}
	authority, _, err := identity.NewAuthority(benchAccount, time.Now())
	if err != nil {
		return nil, err
	}
	s := &system{name: "rabbitmq", dir: dir, env: slices.Clone(h.env)}
	b := &amqpBroker{system: s, addrs: addrs[:n], config: amqp091.Config{
		TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.ClientRoots()}, SASL: []amqp091.Authentication{&amqp091.PlainAuth{Username: "guest", Password: "guest"}},
	}}
	s.trustPEM = authority.ClientsPEM()
	name := func(i int) string { return fmt.Sprintf("n%d@localhost", i+1) }
	var peers strings.Builder
	if n > 1 {
		b.queue = amqp091.Table{"x-queue-type": "quorum"}
		peers.WriteString("cluster_formation.peer_discovery_backend = classic_config\n")
		for i := range n {
			fmt.Fprintf(&peers, "cluster_formation.classic_config.nodes.%d = %s\n", i+1, name(i))
		}
	}
	for i := range n {
		node := filepath.Join(dir, fmt.Sprintf("n%d", i+1))
		if err := bareserver.WriteCertificates(authority, node, filepath.Base(node), "127.0.0.1", time.Hour, time.Now()); err != nil {
			return nil, err
		}
		config := fmt.Sprintf(`listeners.tcp = none
listeners.ssl.1 = %s
ssl_options.cacertfile = %s
ssl_options.certfile = %s
ssl_options.keyfile = %s
ssl_options.verify = verify_none
ssl_options.versions.1 = tlsv1.3
disk_free_limit.absolute = 50MB
log.console = true
log.file = false
%s`, addrs[i], node+"-clients-ca.pem", node+"-server.pem", node+".key", peers.String())
		for path, text := range map[string]string{node + ".conf": config, node + ".plugins": "[].\n"} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				return nil, fmt.Errorf("writing settings: %w", err)
			}
		}
		s.lines = append(s.lines, []string{
			"env", "HOME=" + dir, "RABBITMQ_NODENAME=" + name(i), "RABBITMQ_MNESIA_BASE=" + node, "RABBITMQ_LOG_BASE=" + node, "RABBITMQ_CONFIG_FILE=" + node + ".conf",
			"RABBITMQ_ENABLED_PLUGINS_FILE=" + node + ".plugins", "RABBITMQ_PID_FILE=" + node + ".pid", "RABBITMQ_DIST_PORT=" + port(n+i), "ERL_EPMD_PORT=" + port(2*n),
			"RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=-start_epmd false", "RABBITMQ_CONF_ENV_FILE=/dev/null", "RUNNING_UNDER_SYSTEMD=1", rabbitmq,
		})
	}
	s.lines = append(s.lines, []string{"epmd", "-port", port(2 * n), "-address", "127.0.0.1"})
	if err := s.start(ctx); err != nil {
		s.stop()
		return nil, err
	}
	return b, b.await(ctx)
}

// connect connects to a node.
func (b *amqpBroker) connect(node int) (*amqp091.Connection, error) {
	config := b.config
	config.TLSClientConfig = config.TLSClientConfig.Clone() // it is changed
	return amqp091.DialConfig("amqps://"+b.addrs[node]+"/", config)
}

// await returns when every node takes a message to a durable queue, and all nodes are one
// broker. On error nothing is left of it.
func (b *amqpBroker) await(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*startTimeout)
	defer cancel()
	for i := range b.addrs {
		err := b.eventually(ctx, "waiting for AMQP of "+b.name, dialTimeout, func(ctx context.Context) error {
			c, err := b.connect(i)
			if err != nil {
				return err
			}
			defer c.Close()
			ch, err := c.Channel()
			if err != nil {
				return err
			}
			_, err = ch.QueueDeclare("await", true, false, false, false, b.queue)
			return err
		})
		if err != nil {
			b.stop()
			return err
		}
	}
	return nil
}

// channels opens a channel to each of some nodes, on connections of their own.
func (b *amqpBroker) channels(nodes ...int) (all []*amqp091.Channel, done func(), err error) {
	var conns []*amqp091.Connection
	done = func() {
		for _, c := range conns {
			c.Close()
		}
	}
	for _, i := range nodes {
		c, err := b.connect(i % len(b.addrs))
		if err != nil {
			done()
			return nil, nil, fmt.Errorf("connecting to %s: %w", b.name, err)
		}
		conns = append(conns, c)
		ch, err := c.Channel()
		if err != nil {
			done()
			return nil, nil, fmt.Errorf("opening a channel of %s: %w", b.name, err)
		}
		all = append(all, ch)
	}
	return all, done, nil
}

// errOver says that a connection ended while something was awaited.
var errOver = errors.New("the connection is over")

// through publishes n messages and consumes them, without confirms and acknowledgements, and
// returns how many a second.
func (b *amqpBroker) through(ctx context.Context, n int) (float64, error) {
	ch, done, err := b.channels(0, 0)
	if err != nil {
		return 0, err
	}
	defer done()
	q, err := ch[1].QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		return 0, err
	}
	in, err := ch[1].Consume(q.Name, "", true, true, false, false, nil)
	if err != nil {
		return 0, err
	}
	if err := ch[1].QueueBind(q.Name, q.Name, "amq.direct", false, nil); err != nil { // another connection's queue is reached by its binding
		return 0, err
	}
	failed := make(chan error, 1)
	began := time.Now()
	go func() {
		for range n {
			if err := ch[0].PublishWithContext(ctx, "amq.direct", q.Name, false, false, amqp091.Publishing{Body: make([]byte, amqpBody)}); err != nil {
				failed <- err
				return
			}
		}
	}()
	for range n {
		select {
		case _, ok := <-in:
			if !ok {
				return 0, errOver
			}
		case err := <-failed:
			return 0, err
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}
	return float64(n) / time.Since(began).Seconds(), nil
}

// stored publishes n messages to a durable queue, with a window of confirms, and returns how
// many are confirmed a second. The queue is led by the first node, where it is declared: the
// peer has a queue's leader there, and the first node is the first of ours that had a client,
// which has the account since.
func (b *amqpBroker) stored(ctx context.Context, n, node int) (float64, error) {
	ch, done, err := b.channels(node, 0)
	if err != nil {
		return 0, err
	}
	defer done()
	queue := fmt.Sprint("stored-", node)
	if _, err := ch[1].QueueDeclare(queue, true, false, false, false, b.queue); err != nil {
		return 0, err
	}
	if err := ch[0].Confirm(false); err != nil {
		return 0, err
	}
	window := make(chan *amqp091.DeferredConfirmation, amqpWindow)
	failed := make(chan error, 1)
	began := time.Now()
	go func() {
		defer close(window)
		for range n {
			d, err := ch[0].PublishWithDeferredConfirmWithContext(ctx, "", queue, false, false, amqp091.Publishing{DeliveryMode: amqp091.Persistent, Body: make([]byte, amqpBody)})
			if err != nil {
				failed <- err
				return
			}
			window <- d
		}
	}()
	for d := range window {
		if ok, err := d.WaitContext(ctx); err != nil || !ok {
			return 0, errors.Join(err, errors.New("a message was not confirmed"))
		}
	}
	took := time.Since(began)
	select {
	case err := <-failed:
		return 0, err
	default:
	}
	_, err = ch[0].QueuePurge(queue, false)
	return float64(n) / took.Seconds(), err
}

// calls asks n questions one after the other, as oslo.messaging does: question and answer are
// each confirmed, and answers come to a queue of who asks. It returns how long each took, in
// milliseconds.
func (b *amqpBroker) calls(ctx context.Context, n int) ([]float64, error) {
	ch, done, err := b.channels(0, 0)
	if err != nil {
		return nil, err
	}
	defer done()
	client, server := ch[0], ch[1]
	const topic, answers, exchange = "calls", "answers", "rpc"
	in := make([]<-chan amqp091.Delivery, 2)
	for i, queue := range []string{answers, topic} {
		if err := errors.Join(ch[i].Confirm(false), ch[i].ExchangeDeclare(exchange, "topic", false, false, false, false, nil)); err != nil {
			return nil, err
		}
		if _, err := ch[i].QueueDeclare(queue, false, false, false, false, nil); err != nil {
			return nil, err
		}
		if in[i], err = ch[i].Consume(queue, "", false, false, false, false, nil); err != nil {
			return nil, err
		}
	}
	if err := server.QueueBind(topic, topic, exchange, false, nil); err != nil {
		return nil, err
	}
	say := func(ch *amqp091.Channel, exchange, key string, m amqp091.Publishing) error {
		m.DeliveryMode, m.Body = amqp091.Persistent, make([]byte, amqpBody)
		d, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, false, false, m)
		if err == nil {
			_, err = d.WaitContext(ctx)
		}
		return err
	}
	failed := make(chan error, 1)
	go func() {
		for m := range in[1] {
			if err := errors.Join(m.Ack(false), say(server, "", m.ReplyTo, amqp091.Publishing{CorrelationId: m.CorrelationId})); err != nil {
				failed <- err
				return
			}
		}
	}()
	times := make([]float64, 0, n)
	for range n {
		began := time.Now()
		if err := say(client, exchange, topic, amqp091.Publishing{ReplyTo: answers, CorrelationId: "c"}); err != nil {
			return nil, err
		}
		select {
		case m, ok := <-in[0]:
			if !ok {
				return nil, errOver
			}
			times = append(times, float64(time.Since(began).Microseconds())/1000)
			if err := m.Ack(false); err != nil {
				return nil, err
			}
		case err := <-failed:
			return nil, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return times, nil
}

// An amqpLoad is a load, what it measures, and what is to come of it.
type amqpLoad struct {
	names []string
	unit  string
	do    func(context.Context, *amqpBroker) ([]float64, error)
	aim   func(Figure) Figure
}

// compareAMQP does the loads on both in turns, and adds their figures.
func (h *house) compareAMQP(ctx context.Context, ours, peer *amqpBroker, loads []amqpLoad) error {
	for _, l := range loads {
		values := make([][2][]float64, len(l.names))
		for round := range 1 + h.effort.rounds {
			for turn := range 2 {
				which := (round + turn) % 2
				b := [2]*amqpBroker{ours, peer}[which]
				try, cancel := context.WithTimeout(ctx, amqpTrial)
				got, err := l.do(try, b)
				cancel()
				if err != nil {
					return fmt.Errorf("%s of %s, round %d: %w", l.names[0], b.name, round, err)
				}
				for i := range l.names {
					if round > 0 {
						values[i][which] = append(values[i][which], got[i])
					}
				}
			}
		}
		for i, name := range l.names {
			h.Figures = append(h.Figures, l.aim(versus(name, l.unit, values[i][0], values[i][1])))
		}
	}
	return nil
}

func atLeastRatio(least float64) func(Figure) Figure {
	return func(f Figure) Figure { return f.aim(fmt.Sprintf("ratio %v or more", least), f.Ratio >= least) }
}

func atMostRatio(most float64) func(Figure) Figure {
	return func(f Figure) Figure { return f.aim(fmt.Sprintf("ratio %v or less", most), f.Ratio <= most) }
}

// pair starts n nodes of both.
func (h *house) pair(ctx context.Context, n int) (ours, peer *amqpBroker, err error) {
	if peer, err = h.rabbit(ctx, n); err != nil {
		return nil, nil, fmt.Errorf("starting rabbitmq: %w", err)
	}
	if ours, err = h.amqpFleet(ctx, n); err != nil {
		peer.stop()
		return nil, nil, fmt.Errorf("starting ours: %w", err)
	}
	return ours, peer, nil
}

// at is stored with a publisher at a node.
func at(node int) func(*amqpBroker, context.Context, int) (float64, error) {
	return func(b *amqpBroker, ctx context.Context, n int) (float64, error) { return b.stored(ctx, n, node) }
}

func one(do func(*amqpBroker, context.Context, int) (float64, error), n int) func(context.Context, *amqpBroker) ([]float64, error) {
	return func(ctx context.Context, b *amqpBroker) ([]float64, error) {
		f, err := do(b, ctx, n)
		return []float64{f}, err
	}
}

func (h *house) measureOneAMQP(ctx context.Context) error {
	ours, peer, err := h.pair(ctx, 1)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer peer.stop()
	percentiles := func(calls func(*amqpBroker, context.Context, int) ([]float64, error)) func(context.Context, *amqpBroker) ([]float64, error) {
		return func(ctx context.Context, b *amqpBroker) ([]float64, error) {
			times, err := calls(b, ctx, h.effort.echoes)
			if err != nil {
				return nil, err
			}
			return []float64{percentile(times, 0.5), percentile(times, 0.99)}, nil
		}
	}
	loads := []amqpLoad{
		{[]string{"transient, publish to consume"}, "msg/s", one((*amqpBroker).through, h.effort.messages), atLeastRatio(3)},
		{[]string{"durable, confirmed, window 100, one node"}, "msg/s", one(at(0), h.effort.stored), atLeastRatio(1.5)},
		{[]string{"call as oslo.messaging does it, p50", "call as oslo.messaging does it, p99"}, "ms", percentiles((*amqpBroker).calls), atMostRatio(0.8)},
	}
	if hasOslo(ctx) {
		loads = append(loads, amqpLoad{[]string{"call by oslo.messaging itself, p50", "call by oslo.messaging itself, p99"}, "ms", percentiles((*amqpBroker).osloCalls), atMostRatio(0.8)})
	} else {
		h.Conditions = append(h.Conditions, Condition{"oslo.messaging", "is not installed, and was not measured: python3-oslo.messaging"})
	}
	return h.compareAMQP(ctx, ours, peer, loads)
}

func (h *house) measureThreeAMQP(ctx context.Context) error {
	ours, peer, err := h.pair(ctx, 3)
	if err != nil {
		return err
	}
	defer ours.stop()
	defer peer.stop()
	return h.compareAMQP(ctx, ours, peer, []amqpLoad{
		{[]string{"durable, confirmed, window 100, three nodes"}, "msg/s", one(at(0), h.effort.stored), atLeastRatio(2)},
		{[]string{"the same, by another node than the queue's leader"}, "msg/s", one(at(1), h.effort.stored), atLeastRatio(2)},
	})
}

// measureIdleAMQP takes the memory of queues with a consumer and of idle connections, and how
// long the queues take to be made.
func (h *house) measureIdleAMQP(ctx context.Context) error {
	var figures [2][3]float64
	names := []string{"transient queue with a consumer, memory", "transient queues with a consumer, time to declare all", "idle connection with a channel, memory"}
	units := []string{"KiB", "s", "KiB"}
	for which, start := range []func(context.Context, int) (*amqpBroker, error){h.amqpFleet, h.rabbit} {
		b, err := start(ctx, 1)
		if err != nil {
			return err
		}
		figures[which], err = h.idleAMQP(ctx, b)
		b.stop()
		if err != nil {
			return fmt.Errorf("measuring %s: %w", b.name, err)
		}
	}
	for i, name := range names {
		ours, peer := figures[0][i], figures[1][i]
		h.Figures = append(h.Figures, atMostRatio(0.5)(Figure{Name: name, Unit: units[i], Ours: ours, Peer: peer, Ratio: ours / peer}))
	}
	h.Conditions = append(h.Conditions, Condition{"memory", fmt.Sprintf("resident, of a node with %d queues or %d connections less that without, each after %v", h.effort.sessions, h.effort.idle, h.effort.settling)})
	return nil
}

func (h *house) idleAMQP(ctx context.Context, b *amqpBroker) (figures [3]float64, err error) {
	const perChannel = 1000
	var nodes []int
	for range (h.effort.sessions + perChannel - 1) / perChannel {
		nodes = append(nodes, 0)
	}
	channels, done, err := b.channels(nodes...)
	if err != nil {
		return figures, err
	}
	before, err := b.resident(ctx, h.effort.settling)
	if err != nil {
		done()
		return figures, err
	}
	began := time.Now()
	for i := range h.effort.sessions {
		ch := channels[i/perChannel]
		q, err := ch.QueueDeclare(fmt.Sprintf("idle-%d", i), false, true, false, false, nil)
		if err == nil {
			_, err = ch.Consume(q.Name, "", true, false, false, false, nil)
		}
		if err != nil {
			done()
			return figures, err
		}
	}
	figures[1] = time.Since(began).Seconds()
	after, err := b.resident(ctx, h.effort.settling)
	done()
	if err != nil {
		return figures, err
	}
	figures[0] = (after - before) / float64(h.effort.sessions)
	if before, err = b.resident(ctx, h.effort.settling); err != nil {
		return figures, err
	}
	var idle []int
	for range h.effort.idle {
		idle = append(idle, 0)
	}
	_, done, err = b.channels(idle...)
	if err != nil {
		return figures, err
	}
	defer done()
	after, err = b.resident(ctx, h.effort.settling)
	figures[2] = (after - before) / float64(h.effort.idle)
	return figures, err
}
