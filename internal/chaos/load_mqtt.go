//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/url"
	"time"

	"github.com/eclipse/paho.golang/autopaho"
	"github.com/eclipse/paho.golang/paho"
)

// notFound is what a server says of a message of QoS 2 that it is done with, or never had.
const notFound = 0x92

// mqttTry is when a publisher gives a message up as unknown; its session may send it again
// all the same.
const mqttTry = 30 * time.Second

// device connects a device of the account, which tries the nodes from the i-th on and keeps
// its session for an hour.
func (a *account) connectMQTT(ctx context.Context, id string, i int, edit func(*autopaho.ClientConfig)) (*autopaho.ConnectionManager, error) {
	config := autopaho.ClientConfig{
		TlsCfg: a.tls(), KeepAlive: 3, SessionExpiryInterval: 3600, ConnectTimeout: 3 * time.Second,
		ReconnectBackoff: autopaho.NewConstantBackoff(100 * time.Millisecond),
	}
	config.ClientID, config.PacketTimeout = id, mqttTry
	for k := range a.fleet.nodes {
		u, err := url.Parse("mqtts://" + a.fleet.nodes[(i+k)%len(a.fleet.nodes)].addr + ":" + mqttPort)
		if err != nil {
			return nil, err
		}
		config.ServerUrls = append(config.ServerUrls, u)
	}
	edit(&config)
	c, err := autopaho.NewConnection(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connecting device %q: %w", id, err)
	}
	return c, nil
}

// publishMQTT publishes the numbers of a lane until ctx is done, one after the other. What
// was not acknowledged in time stays unknown.
func publishMQTT(ctx context.Context, c *autopaho.ConnectionManager, l *lane, qos byte) {
	for pause(ctx, between/2+rand.N(between)) == nil {
		if err := c.AwaitConnection(ctx); err != nil {
			return
		}
		n := l.next()
		try, cancel := context.WithTimeout(context.WithoutCancel(ctx), mqttTry)
		r, err := c.Publish(try, &paho.Publish{Topic: "load/" + l.name, QoS: qos, Payload: l.payload(n)})
		cancel()
		switch {
		case r != nil && r.ReasonCode == notFound: // it was stored, or never was
		case r != nil && r.ReasonCode >= 0x80:
			l.settle(n, refused, 0)
		case err == nil:
			l.settle(n, acknowledged, 0)
		}
	}
}

// readMQTT keeps a session that hears all lanes of an account until ctx is done. subscribed
// is closed when the subscription is acknowledged.
func readMQTT(ctx context.Context, a *account, b *book, subscribed chan<- struct{}) error {
	once := make(chan struct{}, 1)
	once <- struct{}{}
	c, err := a.connectMQTT(ctx, "reader", 1, func(config *autopaho.ClientConfig) {
		config.OnConnectionUp = func(c *autopaho.ConnectionManager, ack *paho.Connack) {
			if ack.SessionPresent {
				return
			}
			select {
			case <-once:
			default: // it is made once, and is not to be lost
				b.leak(fmt.Sprintf("the session of a reader of %s was lost at %s", a.name, time.Now().Format(clock)))
			}
			go func() {
				for ctx.Err() == nil {
					try, cancel := context.WithTimeout(ctx, tryTimeout)
					_, err := c.Subscribe(try, &paho.Subscribe{Subscriptions: []paho.SubscribeOptions{{Topic: "load/#", QoS: 2}}})
					cancel()
					if err == nil {
						close(subscribed)
						return
					}
				}
			}()
		}
		config.OnPublishReceived = []func(paho.PublishReceived) (bool, error){func(p paho.PublishReceived) (bool, error) {
			b.receive(a, overMQTT, p.Packet.Payload, p.Packet.Duplicate())
			return true, nil
		}}
	})
	if err != nil {
		return err
	}
	<-c.Done()
	return nil
}
