package amqp

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/rabbitmq/amqp091-go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
)

// TestContract tries what every protocol owes.
func TestContract(t *testing.T) {
	fleetbustest.TestProtocol(t, fleetbustest.ProtocolContract{
		Protocol: func() fleetbus.Protocol { return &Protocol{Options: Options{Passwords: true}} },
		Dial: func(ctx context.Context, addr string, config *tls.Config, user, password string) (fleetbustest.ProtocolClient, error) {
			login := amqp091.Authentication(&amqp091.ExternalAuth{})
			if user != "" {
				login = &amqp091.PlainAuth{Username: user, Password: password}
			}
			nc, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Now()) })
			defer stop()
			conn, err := amqp091.Open(undated{nc}, amqp091.Config{SASL: []amqp091.Authentication{login}, Vhost: "/", Heartbeat: time.Minute, Locale: "en_US"})
			if err != nil {
				nc.Close()
				return nil, errors.New(strings.ReplaceAll(err.Error(), amqp091.ErrCredentials.Reason, "refused")) // words of the client's
			}
			return &contractClient{conn: conn, gone: conn.NotifyClose(make(chan *amqp091.Error, 1)), in: make(chan amqp091.Delivery, 1024)}, nil
		},
	})
}

// undated is a connection whose time the client does not set.
type undated struct{ net.Conn }

func (undated) SetReadDeadline(time.Time) error { return nil }

// contractClient publishes to amq.topic with confirms, and hears by queues of its own.
type contractClient struct {
	conn *amqp091.Connection
	gone chan *amqp091.Error
	in   chan amqp091.Delivery
}

// on does something on a channel of its own, and returns why that is closed if it is.
func (c *contractClient) on(ctx context.Context, do func(*amqp091.Channel) error) error {
	ch, err := c.conn.Channel()
	if err != nil {
		return err
	}
	closed := ch.NotifyClose(make(chan *amqp091.Error, 1))
	done := make(chan error, 1)
	go func() { done <- do(ch) }()
	select {
	case err := <-done:
		return err
	case why := <-closed:
		if why == nil { // do has closed it
			return <-done
		}
		return why
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (c *contractClient) Publish(ctx context.Context, subject, text string) error {
	return c.on(ctx, func(ch *amqp091.Channel) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		d, err := ch.PublishWithDeferredConfirmWithContext(ctx, topicExchange, keyOfSubject(subject), false, false, amqp091.Publishing{Body: []byte(text)})
		if err != nil {
			return err
		}
		if ok, err := d.WaitContext(ctx); err != nil || !ok {
			return errors.Join(err, errors.New("it was not confirmed"))
		}
		return ch.Close()
	})
}

func (c *contractClient) Subscribe(ctx context.Context, subject string) error {
	key := keyOfSubject(subject)
	if above, ok := strings.CutSuffix(subject, ">"); ok {
		key = keyOfSubject(above + "x")[:len(above)] + "*.#"
	} else if strings.Contains(subject, "*") {
		key = subject
	}
	return c.on(ctx, func(ch *amqp091.Channel) error {
		q, err := ch.QueueDeclare("", false, false, true, false, nil)
		if err == nil {
			err = ch.QueueBind(q.Name, key, topicExchange, false, nil)
		}
		if err != nil {
			return err
		}
		d, err := ch.Consume(q.Name, "", true, true, false, false, nil)
		if err != nil {
			return err
		}
		go func() {
			for m := range d {
				c.in <- m
			}
		}()
		return nil
	})
}

func (c *contractClient) Receive(ctx context.Context) (subject, text string, err error) {
	select {
	case m := <-c.in:
		return subjectOfKey(m.RoutingKey), string(m.Body), nil
	case why := <-c.gone:
		if why == nil {
			return "", "", amqp091.ErrClosed
		}
		return "", "", why
	case <-ctx.Done():
		return "", "", ctx.Err()
	}
}

func (c *contractClient) Close() error { return c.conn.Close() }
