package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// A device is an MQTT 5.0 client that does what the specification asks of one
// whose network is bad: it keeps its part of the session in its memory, connects
// again, to any node, and sends again what was not acknowledged, in the order and
// with the identifiers of the first time.
type device struct {
	id      string
	addrs   func() string // where to connect to now
	tls     *tls.Config
	expiry  uint32
	receive uint16 // Receive Maximum
	subs    []packet.Subscription
	will    *packet.Will
	// slow is how long it takes, at most, to look at a message.
	slow time.Duration
	// took is called for each message, by the rules of its QoS once.
	took func(*packet.Publish)
	// settled is called when the server took publication n over, or refused it.
	settled func(n int, refused bool)
	// fault is called when the server does what it must not.
	fault func(string)

	slots chan struct{} // one for each publication under way

	mu         sync.Mutex
	conn       net.Conn
	known      bool // the server has its session
	subscribed bool
	until      time.Time // it is away until then
	visits     int
	next       uint16
	out        []*parcel // in the order of their first time
	in         map[uint16]string
}

// A parcel is a publication that is under way.
type parcel struct {
	n        int
	publish  packet.Publish
	released bool // PUBREC came
}

// subscribeID is an identifier that no publication has.
const subscribeID = 0xFFFF

// run is connected whenever it can be and is not away, until ctx is done.
func (d *device) run(ctx context.Context) {
	for ctx.Err() == nil {
		_ = d.visit(ctx) // it goes on at the next node
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(20+rand.IntN(300)) * time.Millisecond):
		}
	}
}

// visit is one connection.
func (d *device) visit(ctx context.Context) error {
	d.mu.Lock()
	away := time.Now().Before(d.until)
	d.mu.Unlock()
	if away {
		return nil
	}
	dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: 3 * time.Second}, Config: d.tls}
	conn, err := dialer.DialContext(ctx, "tcp", d.addrs())
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if err := write(conn, &packet.Connect{
		Version: packet.V5, ClientID: d.id, KeepAlive: 10, SessionExpiry: d.expiry, ReceiveMaximum: d.receive, Will: d.will,
	}); err != nil {
		return err
	}
	r := packet.NewReader(conn, packet.Server, 4096)
	r.Version, r.Maximum = packet.V5, 1<<20
	got, err := d.read(conn, r, 30*time.Second)
	if err != nil {
		return err
	}
	ack, ok := got.(*packet.Connack)
	if !ok || ack.Code.Failed() {
		return fmt.Errorf("connecting: %v", got)
	}
	if err := d.resume(conn, ack); err != nil {
		return err
	}
	defer d.left()
	live, stop := context.WithCancel(ctx)
	defer stop()
	go d.ping(live, conn)
	for {
		got, err := d.read(conn, r, 15*time.Second)
		if err != nil {
			return err
		}
		if err := d.take(conn, got); err != nil {
			return err
		}
	}
}

func (d *device) read(conn net.Conn, r *packet.Reader, patience time.Duration) (packet.Packet, error) {
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return nil, err
	}
	return r.Next()
}

func write(conn net.Conn, packets ...packet.Packet) error {
	var b []byte
	var err error
	for _, p := range packets {
		if b, err = p.Append(b, packet.V5, 0); err != nil {
			return err
		}
	}
	if err := conn.SetWriteDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	_, err = conn.Write(b)
	return err
}

func (d *device) ping(ctx context.Context, conn net.Conn) {
	tick := time.NewTicker(4 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			d.mu.Lock()
			_ = write(conn, &packet.Pingreq{}) // the reader learns of it
			d.mu.Unlock()
		}
	}
}

// resume goes on with the session. [MQTT-4.4.0-1]
func (d *device) resume(conn net.Conn, ack *packet.Connack) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known && !ack.SessionPresent {
		d.fault(fmt.Sprintf("the session of %s is lost", d.id))
		return errors.New("no session")
	}
	d.known = d.expiry > 0
	d.subscribed = d.subscribed && ack.SessionPresent
	d.conn = conn
	d.visits++
	var packets []packet.Packet
	for _, p := range d.out {
		if p.released {
			packets = append(packets, &packet.Ack{Kind: packet.PUBREL, ID: p.publish.ID})
			continue
		}
		again := p.publish
		again.Dup = true
		packets = append(packets, &again)
	}
	if len(d.subs) > 0 && !d.subscribed {
		packets = append(packets, &packet.Subscribe{ID: subscribeID, Subscriptions: d.subs})
	}
	return write(conn, packets...)
}

func (d *device) left() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.conn = nil
}

// take takes what the server sent.
func (d *device) take(conn net.Conn, got packet.Packet) error {
	if d.slow > 0 && got.Type() == packet.PUBLISH {
		time.Sleep(rand.N(d.slow)) // it is at work
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch got := got.(type) {
	case *packet.Suback:
		for _, code := range got.Codes {
			if code.Failed() {
				return fmt.Errorf("subscribing: %v", code)
			}
		}
		d.subscribed = true
	case *packet.Publish:
		return d.received(conn, got)
	case *packet.Ack:
		return d.acknowledged(conn, got)
	case *packet.Disconnect:
		return fmt.Errorf("disconnected: %v %s", got.Code, got.ReasonString)
	}
	return nil
}

// received takes a message. One of QoS 2 whose identifier is not released is the
// same once more. [MQTT-4.3.3-8] [MQTT-4.3.3-10]
func (d *device) received(conn net.Conn, m *packet.Publish) error {
	switch m.QoS {
	case 1:
		d.took(m)
		return write(conn, &packet.Ack{Kind: packet.PUBACK, ID: m.ID})
	case 2:
		what := string(m.Topic) + " " + string(m.Payload)
		had, ok := d.in[m.ID]
		if ok && had != what {
			d.fault(fmt.Sprintf("%s has %q under identifier %d, and got %q", d.id, had, m.ID, what))
		}
		if !ok {
			d.in[m.ID] = what
			d.took(m)
		}
		return write(conn, &packet.Ack{Kind: packet.PUBREC, ID: m.ID})
	default:
		d.took(m)
		return nil
	}
}

// acknowledged takes what the server says of a publication, and PUBREL.
func (d *device) acknowledged(conn net.Conn, a *packet.Ack) error {
	if a.Kind == packet.PUBREL {
		done := packet.Ack{Kind: packet.PUBCOMP, ID: a.ID}
		if _, ok := d.in[a.ID]; !ok {
			done.Code = packet.PacketIdentifierNotFound
		}
		delete(d.in, a.ID)
		return write(conn, &done)
	}
	for i, p := range d.out {
		if p.publish.ID != a.ID {
			continue
		}
		if a.Kind == packet.PUBREC && !a.Code.Failed() {
			if !p.released {
				p.released = true
				d.settled(p.n, false)
			}
			return write(conn, &packet.Ack{Kind: packet.PUBREL, ID: a.ID})
		}
		d.out = append(d.out[:i], d.out[i+1:]...)
		if a.Kind != packet.PUBCOMP {
			d.settled(p.n, a.Code.Failed())
		} else if !p.released {
			d.fault(fmt.Sprintf("%s got PUBCOMP for %d before PUBREC", d.id, a.ID))
		}
		<-d.slots
		return nil
	}
	return nil
}

// publish sends publication n as soon as it may.
func (d *device) publish(ctx context.Context, n int, m packet.Message) error {
	select {
	case d.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.next = d.next%1000 + 1
	for d.uses(d.next) {
		d.next = d.next%1000 + 1
	}
	p := &parcel{n: n, publish: packet.Publish{ID: d.next, Message: m}}
	d.out = append(d.out, p)
	if d.conn != nil {
		_ = write(d.conn, &p.publish) // the reader learns of it
	}
	return nil
}

func (d *device) uses(id uint16) bool {
	for _, p := range d.out {
		if p.publish.ID == id {
			return true
		}
	}
	return false
}

// leave goes away for a while, without a word or with one.
func (d *device) leave(away time.Duration, bye bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until = time.Now().Add(away)
	if d.conn != nil {
		if bye {
			_ = write(d.conn, &packet.Disconnect{})
		}
		d.conn.Close()
	}
}

// state tells whether it is connected and has its subscriptions, and how much is
// under way.
func (d *device) state() (ready bool, out, in int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.conn != nil && (d.subscribed || len(d.subs) == 0), len(d.out), len(d.in)
}

// visited is how often it was connected.
func (d *device) visited() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.visits
}

func (d *device) String() string {
	d.mu.Lock()
	defer d.mu.Unlock()
	text := d.id
	if d.conn == nil {
		text += ", away"
	} else {
		text += ", at " + d.conn.RemoteAddr().String()
	}
	for _, p := range d.out {
		text += fmt.Sprintf(", out %d (released: %v)", p.publish.ID, p.released)
	}
	for id, what := range d.in {
		text += fmt.Sprintf(", in %d (%s)", id, what)
	}
	return text
}
