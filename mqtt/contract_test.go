package mqtt_test

import (
	"context"
	"crypto/tls"
	"errors"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/mqtt/mapping"
	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// TestContract tries what every protocol owes.
func TestContract(t *testing.T) {
	fleetbustest.TestProtocol(t, fleetbustest.ProtocolContract{
		Protocol: func() fleetbus.Protocol { return &mqtt.Protocol{} },
		Dial: func(ctx context.Context, addr string, config *tls.Config, user, password string) (fleetbustest.ProtocolClient, error) {
			conn, err := (&tls.Dialer{Config: config}).DialContext(ctx, "tcp", addr)
			if err != nil {
				return nil, err
			}
			c := &contractClient{Conn: conn.(*tls.Conn), r: packet.NewReader(conn, packet.Server, 4096)}
			c.r.Version = packet.V5
			hello := &packet.Connect{Version: packet.V5, CleanStart: true}
			if user != "" {
				hello.Username, hello.Password = &user, packet.Secret(password)
			}
			answer, err := ask[*packet.Connack](ctx, c, hello)
			if err == nil && answer.Code != packet.Success {
				err = errors.New(answer.ReasonString)
			}
			if err != nil {
				conn.Close()
				return nil, err
			}
			return c, nil
		},
	})
}

// contractClient publishes at QoS 1, and hears at QoS 0.
type contractClient struct {
	*tls.Conn
	r        *packet.Reader
	messages []*packet.Publish
	id       uint16
}

// ask sends a packet and returns its answer.
func ask[P packet.Packet](ctx context.Context, c *contractClient, p packet.Packet) (answer P, err error) {
	b, err := p.Append(nil, packet.V5, 0)
	if err != nil {
		return answer, err
	}
	if _, err := c.Write(b); err != nil {
		return answer, err
	}
	for {
		got, err := c.next(ctx)
		if err != nil {
			return answer, err
		}
		if answer, ok := got.(P); ok {
			return answer, nil
		}
	}
}

// next is the next packet; of a PUBLISH it keeps a copy.
func (c *contractClient) next(ctx context.Context) (packet.Packet, error) {
	stop := context.AfterFunc(ctx, func() { _ = c.SetReadDeadline(time.Now()) })
	defer stop()
	got, err := c.r.Next()
	switch got := got.(type) {
	case *packet.Publish:
		m := *got
		m.Topic, m.Payload = []byte(string(m.Topic)), []byte(string(m.Payload))
		c.messages = append(c.messages, &m)
	case *packet.Disconnect:
		return nil, errors.New(got.ReasonString)
	}
	return got, err
}

func (c *contractClient) Publish(ctx context.Context, subject, text string) error {
	topic, ok := mapping.Topic(subject)
	if !ok {
		return errors.New("no topic has this subject")
	}
	c.id++
	ack, err := ask[*packet.Ack](ctx, c, publish(topic, text, 1, c.id))
	if err == nil && ack.Code.Failed() {
		err = errors.New(ack.Code.String())
	}
	return err
}

func (c *contractClient) Subscribe(ctx context.Context, subject string) error {
	filter, ok := mapping.Filter(subject)
	if !ok {
		return errors.New("no filter has this subject")
	}
	c.id++
	ack, err := ask[*packet.Suback](ctx, c, &packet.Subscribe{ID: c.id, Subscriptions: []packet.Subscription{{Filter: filter}}})
	if err == nil && ack.Codes[0].Failed() {
		err = errors.New(ack.Codes[0].String())
	}
	return err
}

func (c *contractClient) Receive(ctx context.Context) (subject, text string, err error) {
	for len(c.messages) == 0 {
		if _, err := c.next(ctx); err != nil {
			return "", "", err
		}
	}
	m := c.messages[0]
	c.messages = c.messages[1:]
	return mapping.Subject(string(m.Topic)), string(m.Payload), nil
}
