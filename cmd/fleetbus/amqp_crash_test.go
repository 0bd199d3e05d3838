package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"
)

// amqpClient is a client of RabbitMQ's, which tries nodes at random.
func (c *crash) amqpClient(ctx context.Context, nodes []*crashNode, visit func(context.Context, *amqp091.Channel) error) {
	for ctx.Err() == nil {
		conn, err := amqp091.DialConfig("amqps://"+nodes[rand.IntN(len(nodes))].amqp, amqp091.Config{
			TLSClientConfig: c.tls.Clone(), SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}, Heartbeat: 10 * time.Second, Dial: amqp091.DefaultDial(5 * time.Second),
		})
		if err == nil {
			var ch *amqp091.Channel
			if ch, err = conn.Channel(); err == nil {
				leave := context.AfterFunc(ctx, func() { conn.Close() })
				_ = visit(ctx, ch) // until the node dies, or ctx is done
				leave()
			}
			conn.Close()
		}
		select {
		case <-ctx.Done():
		case <-time.After(rand.N(200 * time.Millisecond)):
		}
	}
}

// line is a durable queue with one publisher, which sends it the numbers from 0 on, and one
// consumer.
type line struct {
	queue string

	mu    sync.Mutex
	sent  int
	fate  map[int]bool // of those that the publisher was told of: confirmed, or refused
	first int          // the highest number that came
	came  map[int]time.Time
	again int // times that something came again, as it may
	ill   []string
}

func (l *line) declare(ch *amqp091.Channel) error {
	_, err := ch.QueueDeclare(l.queue, true, false, false, false, nil)
	return err
}

// publish publishes with 20 on their way. What was on its way when a connection ends is not
// sent again.
func (l *line) publish(ctx context.Context, ch *amqp091.Channel) error {
	if err := errors.Join(l.declare(ch), ch.Confirm(false)); err != nil {
		return err
	}
	room := make(chan struct{}, 20)
	var waiting sync.WaitGroup
	defer waiting.Wait()
	closed := ch.NotifyClose(make(chan *amqp091.Error, 1))
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	for {
		select {
		case <-ctx.Done():
			return nil
		case err := <-closed:
			return fmt.Errorf("closed: %w", err)
		case <-time.After(rand.N(4 * time.Millisecond)):
			room <- struct{}{} // each that is there leaves, also when the channel is closed
		}
		l.mu.Lock()
		n := l.sent
		l.sent++
		l.mu.Unlock()
		d, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", l.queue, false, false, amqp091.Publishing{DeliveryMode: 2, Body: []byte(strconv.Itoa(n))})
		if err != nil {
			return err
		}
		waiting.Go(func() {
			ok, err := d.WaitContext(ctx)
			select {
			case <-d.Done():
			default:
				err = context.Canceled // the channel is closed, and nobody knows
			}
			if err == nil {
				l.mu.Lock()
				l.fate[n] = ok
				l.mu.Unlock()
			}
			<-room
		})
	}
}

// consume reads, and acknowledges.
func (l *line) consume(ctx context.Context, ch *amqp091.Channel, killed func() time.Time) error {
	if err := errors.Join(l.declare(ch), ch.Qos(10, 0, false)); err != nil {
		return err
	}
	d, err := ch.ConsumeWithContext(ctx, l.queue, "", false, false, false, false, nil)
	if err != nil {
		return err
	}
	for m := range d {
		n, err := strconv.Atoi(string(m.Body))
		if err != nil {
			return err
		}
		l.took(n, m.Redelivered, killed())
		if err := m.Ack(false); err != nil {
			return err
		}
	}
	return nil
}

// settled is how long an acknowledgement may not be known to the fleet: a stream whose leader
// changes takes nothing for a while.
const settled = 3 * time.Second

func (l *line) took(n int, redelivered bool, killed time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, known := l.came[n]
	switch {
	case !known && !redelivered && n < l.first: // what another was given may come later
		l.ill = append(l.ill, fmt.Sprintf("%d came after %d", n, l.first))
	case known && !redelivered:
		l.ill = append(l.ill, fmt.Sprintf("%d came again, and was not marked", n))
	case known && before.Before(killed.Add(-settled)):
		l.ill = append(l.ill, fmt.Sprintf("%d came again %v after it was acknowledged, %v before the kill", n, time.Since(before), killed.Sub(before)))
	case known:
		l.again++
	}
	l.first = max(l.first, n)
	l.came[n] = time.Now()
}

// missing are the numbers that were confirmed and did not come.
func (l *line) missing() (all []int, confirmed int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for n, ok := range l.fate {
		if !ok {
			continue
		}
		confirmed++
		if _, came := l.came[n]; !came {
			all = append(all, n)
		}
	}
	return all, confirmed
}

// TestKilledAMQP kills random nodes of three, again and again, while AMQP clients publish to
// durable queues and read: nothing that was confirmed is lost, all comes in its order, and
// what was acknowledged does not come again. FLEETBUS_KILLS is how often, FLEETBUS_SEED
// which ones.
func TestKilledAMQP(t *testing.T) {
	t.Parallel()
	harmedAMQP(t, "kill", 2, func(c *crash) (*crashNode, func()) {
		n := c.nodes[c.rng.IntN(len(c.nodes))]
		n.kill()
		return n, func() { n.process = c.m.serve(n.name) }
	})
}

// TestPausedAMQP has the node that has the account stand still until another has it, and then
// go on: it says nothing to clients any more that the other does not know of.
func TestPausedAMQP(t *testing.T) {
	t.Parallel()
	harmedAMQP(t, "pause", 1, func(c *crash) (*crashNode, func()) {
		n := c.owner("acme")
		return n, c.pause(n)
	})
}

// pause has a node stand still, until what it returns is called.
func (c *crash) pause(n *crashNode) (goOn func()) {
	signal := func(s syscall.Signal) {
		if err := n.cmd.Process.Signal(s); err != nil {
			c.t.Error(err)
		}
	}
	signal(syscall.SIGSTOP)
	goOn = sync.OnceFunc(func() { signal(syscall.SIGCONT) })
	c.t.Cleanup(goOn)
	return goOn
}

// TestPausedPassingAMQP has a node that only passes on what the owner says stand still, until
// another reader has what was on its way there, and then go on: its client has none of it again
// without the mark.
func TestPausedPassingAMQP(t *testing.T) {
	t.Parallel()
	c := newCrash(t, 1)
	ctx, stop := context.WithCancel(t.Context())
	defer c.devices.Wait()
	defer stop()
	l := &line{queue: "line", fate: map[int]bool{}, came: map[int]time.Time{}, first: -1}
	came := func(n int, by string) {
		c.until(fmt.Sprintf("all up to %d came, %s", n, by), func() error {
			missing, _ := l.missing()
			l.mu.Lock()
			defer l.mu.Unlock()
			if l.first < n || len(missing) > 0 && slices.Min(missing) < n {
				return fmt.Errorf("%d came, and of %d are missing %v", l.first, l.sent, missing)
			}
			return nil
		})
	}
	read := func(ctx context.Context, n *crashNode) {
		c.devices.Go(func() {
			c.amqpClient(ctx, []*crashNode{n}, func(ctx context.Context, ch *amqp091.Channel) error {
				return l.consume(ctx, ch, func() time.Time { return time.Time{} })
			})
		})
	}
	owner, passing := c.nodes[0], c.nodes[1]
	c.devices.Go(func() { c.amqpClient(ctx, c.nodes[:1], l.publish) }) // alone, so that its node is the owner
	c.until("the account has an owner", func() error {
		if _, n := l.missing(); n < 50 {
			return fmt.Errorf("%d are confirmed", n)
		}
		return nil
	})
	read(ctx, passing)
	came(200, "through the node that will stand still")
	goOn := c.pause(passing)
	l.mu.Lock()
	paused := l.sent
	l.mu.Unlock()
	other, leave := context.WithCancel(ctx)
	defer leave()
	read(other, owner)
	came(paused+50, "while it stands still")
	leave()
	goOn()
	l.mu.Lock()
	after := l.sent
	l.mu.Unlock()
	came(after+200, "when it goes on")
	l.mu.Lock()
	defer l.mu.Unlock()
	t.Logf("%d sent, %d came, %d again", l.sent, len(l.came), l.again)
	if len(l.ill) > 0 {
		t.Errorf("%q", l.ill)
	}
}

// harmedAMQP has harm done to nodes, which returns what ends it.
func harmedAMQP(t *testing.T, what string, times int, harm func(c *crash) (n *crashNode, heal func())) {
	kills, seed := fromEnv(t, "FLEETBUS_KILLS", times), fromEnv(t, "FLEETBUS_SEED", int(time.Now().UnixNano()%1e6))
	c := newCrash(t, uint64(seed))
	ctx, stop := context.WithCancel(t.Context())
	defer c.devices.Wait()
	defer stop()
	var mu sync.Mutex
	var last time.Time
	killed := func() time.Time {
		mu.Lock()
		defer mu.Unlock()
		return last
	}
	sending, end := context.WithCancel(ctx)
	defer end()
	var senders sync.WaitGroup
	var lines []*line
	for i := range 3 {
		l := &line{queue: fmt.Sprintf("line.%d", i), fate: map[int]bool{}, came: map[int]time.Time{}, first: -1}
		lines = append(lines, l)
		senders.Go(func() { c.amqpClient(sending, c.nodes, l.publish) })
		c.devices.Go(func() {
			c.amqpClient(ctx, c.nodes, func(ctx context.Context, ch *amqp091.Channel) error { return l.consume(ctx, ch, killed) })
		})
	}
	progress := func(what string) {
		var before []int
		for _, l := range lines {
			_, n := l.missing()
			before = append(before, n)
		}
		c.until(what, func() error {
			for i, l := range lines {
				if _, n := l.missing(); n < before[i]+50 {
					return fmt.Errorf("of %s %d are confirmed since", l.queue, n-before[i])
				}
			}
			return nil
		})
	}
	progress("clients publish")
	for i := range kills {
		c.current(ctx, "AMQP", "AMQP_OWNER")
		mu.Lock()
		last = time.Now()
		mu.Unlock()
		n, heal := harm(c)
		progress(fmt.Sprintf("clients publish without %s, after %s %d", n.name, what, i+1))
		heal()
		progress(fmt.Sprintf("clients publish with %s again", n.name))
	}
	end()
	senders.Wait()
	c.until("all that was confirmed has come", func() error {
		for _, l := range lines {
			if missing, _ := l.missing(); len(missing) > 0 {
				return fmt.Errorf("of %s %d are missing, such as %d", l.queue, len(missing), missing[0])
			}
		}
		return nil
	})
	for _, l := range lines {
		l.mu.Lock()
		refused := 0
		for _, ok := range l.fate {
			if !ok {
				refused++
			}
		}
		t.Logf("%d times %s, seed %d: %s: %d sent, %d confirmed, %d refused, %d came, %d again, ill: %q", kills, what, seed, l.queue, l.sent, len(l.fate)-refused, refused, len(l.came), l.again, l.ill)
		if len(l.ill) > 0 {
			t.Errorf("%s: %q", l.queue, l.ill)
		}
		l.mu.Unlock()
	}
	if t.Failed() {
		for _, n := range c.nodes {
			t.Logf("%s:\n%s", n.name, warnings(n.log.String()))
		}
	}
}
