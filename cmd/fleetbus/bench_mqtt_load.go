package main

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// mqttClient is a client of MQTT 3.1.1 that does what a load needs and no more.
type mqttClient struct {
	net.Conn
	r *packet.Reader
}

// connect connects a client to node i.
func (b *mqttBroker) connect(ctx context.Context, i int, id string) (*mqttClient, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: b.tls}).DialContext(ctx, "tcp", b.addrs[i])
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", b.name, err)
	}
	c := &mqttClient{conn, packet.NewReader(conn, packet.Server, 4<<10)}
	c.r.Version = packet.V311
	if err = c.send(&packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true}); err == nil {
		_, err = c.expect(packet.CONNACK)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting to %s: %w", b.name, err)
	}
	return c, nil
}

func (c *mqttClient) send(p packet.Packet) error {
	b, err := p.Append(nil, packet.V311, 0)
	if err == nil {
		_, err = c.Write(b)
	}
	return err
}

// expect reads until a packet of that type comes.
func (c *mqttClient) expect(t packet.Type) (packet.Packet, error) {
	if err := c.SetReadDeadline(time.Now().Add(stalled)); err != nil {
		return nil, err
	}
	for {
		got, err := c.r.Next()
		if err != nil {
			return nil, err
		}
		switch got := got.(type) {
		case *packet.Connack:
			if got.Code != packet.Success {
				return nil, errors.New(got.Code.String())
			}
		case *packet.Suback:
			if got.Codes[0].Failed() {
				return nil, errors.New(got.Codes[0].String())
			}
		}
		if got.Type() == t {
			return got, nil
		}
	}
}

func (c *mqttClient) subscribe(qos packet.QoS, filter string) error {
	if err := c.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}}); err != nil {
		return err
	}
	_, err := c.expect(packet.SUBACK)
	return err
}

// echo publishes to itself at QoS 1.
func (c *mqttClient) echo(topic string) error {
	if err := c.subscribe(1, topic); err != nil {
		return err
	}
	if err := c.send(mqttMessage(topic, 1, 1)); err != nil {
		return err
	}
	_, err := c.expect(packet.PUBLISH)
	return err
}

func mqttMessage(topic string, qos packet.QoS, id uint16) *packet.Publish {
	m := &packet.Publish{Message: packet.Message{Topic: []byte(topic), Payload: make([]byte, payloadSize), QoS: qos}}
	if qos > 0 {
		m.ID = id
	}
	return m
}

// A mqttLoad is n messages to each of the receivers, of which ahead are under way.
type mqttLoad struct {
	qos                 packet.QoS
	receivers, n, ahead int
}

// replies collects answers until there is nothing more to read for now.
type replies struct {
	*mqttClient
	out []byte
}

func (r *replies) add(kind packet.Type, id uint16) {
	r.out, _ = (&packet.Ack{Kind: kind, ID: id}).Append(r.out, packet.V311, 0) // it cannot be too large
}

func (r *replies) flush() error {
	if len(r.out) == 0 || r.r.Buffered() > 0 {
		return nil
	}
	_, err := r.Write(r.out)
	r.out = r.out[:0]
	return err
}

// count reads n messages of QoS 0 of size bytes each. It looks at nothing but how
// much there is, so that what is measured is the broker and not this client.
func (l mqttLoad) count(c *mqttClient, size int, arrived func()) error {
	b := make([]byte, 64<<10)
	for got, told := c.r.Buffered(), 0; told < l.n; {
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("receiving, %d of %d arrived: %w", told, l.n, err)
		}
		for got += n; told < got/size; told++ {
			arrived()
		}
	}
	return nil
}

// receive reads n messages and whatever ends them.
func (l mqttLoad) receive(c *mqttClient, topic string, arrived func()) error {
	if l.qos == 0 {
		return l.count(c, mqttMessage(topic, 0, 0).Size(packet.V311), arrived)
	}
	r := &replies{mqttClient: c}
	published, finished := 0, 0
	for published < l.n || l.qos == 2 && finished < l.n {
		got, err := c.r.Next()
		if err != nil {
			return fmt.Errorf("receiving, %d of %d arrived: %w", published, l.n, err)
		}
		switch got := got.(type) {
		case *packet.Publish:
			published++
			arrived()
			switch got.QoS {
			case 1:
				r.add(packet.PUBACK, got.ID)
			case 2:
				r.add(packet.PUBREC, got.ID)
			}
		case *packet.Ack:
			finished++
			r.add(packet.PUBCOMP, got.ID)
		}
		if err := r.flush(); err != nil {
			return err
		}
	}
	return nil
}

// confirmed reads what the publisher is answered.
func (l mqttLoad) confirmed(c *mqttClient) error {
	if l.qos == 0 {
		return nil
	}
	r := &replies{mqttClient: c}
	for done := 0; done < l.n; {
		got, err := c.r.Next()
		if err != nil {
			return fmt.Errorf("publishing, %d of %d are acknowledged: %w", done, l.n, err)
		}
		ack, ok := got.(*packet.Ack)
		switch {
		case !ok:
		case ack.Kind == packet.PUBREC:
			r.add(packet.PUBREL, ack.ID)
		default:
			done++
		}
		if err := r.flush(); err != nil {
			return err
		}
	}
	return nil
}

// publish sends n messages, each when there is a permit.
func (l mqttLoad) publish(ctx context.Context, c *mqttClient, topic string, permits chan<- struct{}) error {
	var out []byte
	write := func() error {
		_, err := c.Write(out)
		out = out[:0]
		return err
	}
	m := mqttMessage(topic, l.qos, 1)
	for i := range l.n {
		select {
		case permits <- struct{}{}:
		default:
			if err := write(); err != nil {
				return err
			}
			select {
			case permits <- struct{}{}:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if l.qos > 0 {
			m.ID = uint16(i%60_000 + 1)
		}
		var err error
		if out, err = m.Append(out, packet.V311, 0); err != nil {
			return err
		}
		if len(out) > 16<<10 {
			if err := write(); err != nil {
				return err
			}
		}
	}
	return write()
}

// carry is how many deliveries a second there are.
func (l mqttLoad) carry(ctx context.Context, b *mqttBroker) (float64, error) {
	round := rand.Text()[:8]
	topic := "bench/" + round
	permits, failed := make(chan struct{}, l.ahead), make(chan error, l.receivers+2)
	var clients []*mqttClient
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	client := func(name string) (*mqttClient, error) {
		c, err := b.connect(ctx, 0, name+round)
		if err == nil {
			clients = append(clients, c)
		}
		return c, err
	}
	for i := range l.receivers {
		c, err := client(fmt.Sprintf("s%d", i))
		if err != nil {
			return 0, err
		}
		if err := c.subscribe(l.qos, topic); err != nil {
			return 0, err
		}
	}
	pub, err := client("p")
	if err != nil {
		return 0, err
	}
	for _, c := range clients {
		if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
			return 0, err
		}
	}
	var all sync.WaitGroup
	began := time.Now()
	for i, c := range clients[:l.receivers] {
		all.Go(func() {
			failed <- l.receive(c, topic, func() {
				if i == 0 {
					<-permits
				}
			})
		})
	}
	all.Go(func() { failed <- l.confirmed(pub) })
	all.Go(func() { failed <- l.publish(ctx, pub, topic, permits) })
	for range l.receivers + 2 {
		if err := <-failed; err != nil {
			return 0, err
		}
	}
	all.Wait()
	return float64(l.n*l.receivers) / time.Since(began).Seconds(), nil
}

// echoes is the median of the times, in milliseconds, from the publication of
// single messages at the first node to their arrival at the last.
func (l mqttLoad) echoes(ctx context.Context, b *mqttBroker) (float64, error) {
	round := rand.Text()[:8]
	topic := "bench/" + round
	sub, err := b.connect(ctx, len(b.addrs)-1, "s"+round)
	if err != nil {
		return 0, err
	}
	defer sub.Close()
	if err := sub.subscribe(l.qos, topic); err != nil {
		return 0, err
	}
	pub, err := b.connect(ctx, 0, "p"+round)
	if err != nil {
		return 0, err
	}
	defer pub.Close()
	var took []time.Duration
	for i := range l.n {
		began := time.Now()
		if err := pub.send(mqttMessage(topic, l.qos, uint16(i+1))); err != nil {
			return 0, err
		}
		got, err := sub.expect(packet.PUBLISH)
		if err != nil {
			return 0, err
		}
		took = append(took, time.Since(began))
		if err := sub.send(&packet.Ack{Kind: packet.PUBACK, ID: got.(*packet.Publish).ID}); err != nil {
			return 0, err
		}
		if _, err := pub.expect(packet.PUBACK); err != nil {
			return 0, err
		}
	}
	return milliseconds(percentile(took, 0.5)), nil
}
