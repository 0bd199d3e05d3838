// Package mqttload puts the load of MQTT clients on a broker, of any make, and
// measures what comes of it. Its clients do what a load needs and no more.
package mqttload

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

const (
	// payloadSize is the size of all messages, in bytes.
	payloadSize = 256
	// dialTimeout bounds the time to connect, stalled a wait for a single packet.
	dialTimeout, stalled = 5 * time.Second, 10 * time.Second
)

// A Broker is one to measure, as clients see it. Use it by one goroutine.
type Broker struct {
	Addrs []string // of its nodes
	TLS   *tls.Config
}

// A Client is a client of MQTT 3.1.1. Use it by one goroutine.
type Client struct {
	net.Conn
	r *packet.Reader
}

// Connect connects a client to node i.
func (b *Broker) Connect(ctx context.Context, i int, id string) (*Client, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	conn, err := (&tls.Dialer{Config: b.TLS}).DialContext(ctx, "tcp", b.Addrs[i])
	if err != nil {
		return nil, fmt.Errorf("connecting to %q: %w", b.Addrs[i], err)
	}
	c := &Client{conn, packet.NewReader(conn, packet.Server, 4<<10)}
	c.r.Version = packet.V311
	if err = c.send(&packet.Connect{Version: packet.V311, ClientID: id, CleanStart: true}); err == nil {
		_, err = c.expect(packet.CONNACK)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connecting to %q: %w", b.Addrs[i], err)
	}
	return c, nil
}

func (c *Client) send(p packet.Packet) error {
	b, err := p.Append(nil, packet.V311, 0)
	if err == nil {
		_, err = c.Write(b)
	}
	return err
}

// expect reads until a packet of that type comes.
func (c *Client) expect(t packet.Type) (packet.Packet, error) {
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

// Subscribe returns when the broker has granted it.
func (c *Client) Subscribe(qos packet.QoS, filter string) error {
	if err := c.send(&packet.Subscribe{ID: 1, Subscriptions: []packet.Subscription{{Filter: filter, QoS: qos}}}); err != nil {
		return err
	}
	_, err := c.expect(packet.SUBACK)
	return err
}

// Echo publishes to itself at QoS 1, and returns when that comes.
func (c *Client) Echo(topic string) error {
	if err := c.Subscribe(1, topic); err != nil {
		return err
	}
	if err := c.send(message(topic, 1, 1)); err != nil {
		return err
	}
	_, err := c.expect(packet.PUBLISH)
	return err
}

func message(topic string, qos packet.QoS, id uint16) *packet.Publish {
	m := &packet.Publish{Message: packet.Message{Topic: []byte(topic), Payload: make([]byte, payloadSize), QoS: qos}}
	if qos > 0 {
		m.ID = id
	}
	return m
}

// A Load is N messages of 256 bytes to each of the Receivers, of which Ahead are
// under way.
type Load struct {
	QoS                 packet.QoS
	Receivers, N, Ahead int
}

// replies collects answers until there is nothing more to read for now.
type replies struct {
	*Client
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
func (l Load) count(c *Client, size int, arrived func()) error {
	b := make([]byte, 64<<10)
	for got, told := c.r.Buffered(), 0; told < l.N; {
		n, err := c.Read(b)
		if err != nil {
			return fmt.Errorf("receiving, %d of %d arrived: %w", told, l.N, err)
		}
		for got += n; told < got/size; told++ {
			arrived()
		}
	}
	return nil
}

// receive reads n messages and whatever ends them.
func (l Load) receive(c *Client, topic string, arrived func()) error {
	if l.QoS == 0 {
		return l.count(c, message(topic, 0, 0).Size(packet.V311), arrived)
	}
	r := &replies{Client: c}
	published, finished := 0, 0
	for published < l.N || l.QoS == 2 && finished < l.N {
		got, err := c.r.Next()
		if err != nil {
			return fmt.Errorf("receiving, %d of %d arrived: %w", published, l.N, err)
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
func (l Load) confirmed(c *Client) error {
	if l.QoS == 0 {
		return nil
	}
	r := &replies{Client: c}
	for done := 0; done < l.N; {
		got, err := c.r.Next()
		if err != nil {
			return fmt.Errorf("publishing, %d of %d are acknowledged: %w", done, l.N, err)
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
func (l Load) publish(ctx context.Context, c *Client, topic string, permits chan<- struct{}) error {
	var out []byte
	write := func() error {
		_, err := c.Write(out)
		out = out[:0]
		return err
	}
	m := message(topic, l.QoS, 1)
	for i := range l.N {
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
		if l.QoS > 0 {
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

// Carry is how many deliveries a second there are, at the first node.
func (l Load) Carry(ctx context.Context, b *Broker) (float64, error) {
	round := rand.Text()[:8]
	topic := "bench/" + round
	permits, failed := make(chan struct{}, l.Ahead), make(chan error, l.Receivers+2)
	var clients []*Client
	defer func() {
		for _, c := range clients {
			c.Close()
		}
	}()
	client := func(name string) (*Client, error) {
		c, err := b.Connect(ctx, 0, name+round)
		if err == nil {
			clients = append(clients, c)
		}
		return c, err
	}
	for i := range l.Receivers {
		c, err := client(fmt.Sprintf("s%d", i))
		if err != nil {
			return 0, err
		}
		if err := c.Subscribe(l.QoS, topic); err != nil {
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
	for i, c := range clients[:l.Receivers] {
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
	for range l.Receivers + 2 {
		if err := <-failed; err != nil {
			return 0, err
		}
	}
	all.Wait()
	return float64(l.N*l.Receivers) / time.Since(began).Seconds(), nil
}

// Echoes is the median of the times, in milliseconds, from the publication of
// single messages at the first node to their arrival at the last.
func (l Load) Echoes(ctx context.Context, b *Broker) (float64, error) {
	round := rand.Text()[:8]
	topic := "bench/" + round
	sub, err := b.Connect(ctx, len(b.Addrs)-1, "s"+round)
	if err != nil {
		return 0, err
	}
	defer sub.Close()
	if err := sub.Subscribe(l.QoS, topic); err != nil {
		return 0, err
	}
	pub, err := b.Connect(ctx, 0, "p"+round)
	if err != nil {
		return 0, err
	}
	defer pub.Close()
	var took []time.Duration
	for i := range l.N {
		began := time.Now()
		if err := pub.send(message(topic, l.QoS, uint16(i+1))); err != nil {
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
	slices.Sort(took)
	return float64(took[len(took)/2]) / float64(time.Millisecond), nil
}
