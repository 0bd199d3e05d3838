//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rabbitmq/amqp091-go"
)

// visitAMQP connects a client of the account again and again until ctx is done, each time to
// the next node, and has it do visit.
func visitAMQP(ctx context.Context, a *account, i int, visit func(context.Context, *amqp091.Channel) error) {
	for ; ctx.Err() == nil; i++ {
		conn, err := amqp091.DialConfig("amqps://"+a.fleet.nodes[i%len(a.fleet.nodes)].addr+":"+amqpPort, amqp091.Config{
			TLSClientConfig: a.tls(), SASL: []amqp091.Authentication{&amqp091.ExternalAuth{}}, Heartbeat: 2 * time.Second, Dial: amqp091.DefaultDial(3 * time.Second),
		})
		if err == nil {
			var ch *amqp091.Channel
			if ch, err = conn.Channel(); err == nil {
				leave := context.AfterFunc(ctx, func() { conn.CloseDeadline(time.Now().Add(time.Second)) })
				_ = visit(ctx, ch) // until the node is lost, or ctx is done
				leave()
			}
			_ = conn.CloseDeadline(time.Now().Add(time.Second))
		}
		_ = pause(ctx, 50*time.Millisecond+rand.N(100*time.Millisecond))
	}
}

func declare(ch *amqp091.Channel, queue string) error {
	if _, err := ch.QueueDeclare(queue, true, false, false, false, nil); err != nil {
		return fmt.Errorf("declaring queue %q: %w", queue, err)
	}
	return nil
}

// window is how many messages of a lane are on their way.
const window = 10

// publishAMQP publishes the numbers of a lane. What was on its way when a connection ends is
// not sent again, and stays unknown.
func publishAMQP(ctx context.Context, ch *amqp091.Channel, l *lane) error {
	if err := errors.Join(declare(ch, l.name), ch.Confirm(false)); err != nil {
		return err
	}
	room := make(chan struct{}, window)
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
			return fmt.Errorf("publishing to %q: %w", l.name, err)
		case <-time.After(between/2 + rand.N(between)):
		}
		select {
		case <-ctx.Done():
			return nil
		case err := <-closed:
			return fmt.Errorf("publishing to %q: %w", l.name, err)
		case room <- struct{}{}:
		}
		n := l.next()
		d, err := ch.PublishWithDeferredConfirmWithContext(ctx, "", l.name, false, false, amqp091.Publishing{DeliveryMode: amqp091.Persistent, Body: l.payload(n)})
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
			switch {
			case err != nil:
			case ok:
				l.settle(n, acknowledged, 0)
			case !ch.IsClosed(): // with a channel the client takes all that is open for refused
				l.settle(n, refused, 0)
			}
			<-room
		})
	}
}

// readAMQP reads the queue of a lane, and acknowledges.
func readAMQP(ctx context.Context, ch *amqp091.Channel, a *account, queue string, b *book) error {
	if err := errors.Join(declare(ch, queue), ch.Qos(window, 0, false)); err != nil {
		return err
	}
	d, err := ch.ConsumeWithContext(ctx, queue, "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("reading queue %q: %w", queue, err)
	}
	for m := range d {
		b.receive(a, overAMQP, m.Body, m.Redelivered)
		if err := m.Ack(false); err != nil {
			return err
		}
	}
	return nil
}
