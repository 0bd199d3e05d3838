package mqtt

import (
	"net"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/mqtt/packet"
)

// slack is how many bytes of answers may wait for a client beside its messages.
const slack = 2 << 20

// outbox is what goes out to a client. It is safe for concurrent use.
type outbox struct {
	conn net.Conn
	v    packet.Version
	max  int // the client's Maximum Packet Size
	most int // bytes that may wait
	// drained is called when all is written that waited.
	drained func()

	mu    sync.Mutex
	wait  []byte
	wake  chan struct{}
	ended bool
}

func newOutbox(conn net.Conn, most int) outbox {
	return outbox{conn: conn, most: most, wake: make(chan struct{}, 1)}
}

// send appends p, and reports whether it fits the client.
func (o *outbox) send(p packet.Packet) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return true
	}
	b, err := p.Append(o.wait, o.v, o.max)
	if err != nil {
		return false
	}
	o.put(b)
	return true
}

// sendWire appends a packet that is encoded already, and reports whether it is one.
func (o *outbox) sendWire(wire []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended && wire != nil {
		o.put(append(o.wait, wire...))
	}
	return wire != nil
}

// put has b wait, which is what waits and something more; mu is held.
func (o *outbox) put(b []byte) {
	before := len(o.wait)
	o.wait = b
	if len(b) > 2*o.most+slack { // it asks and does not read, and would not take a good-bye
		o.ended, o.wait = true, nil
		_ = beneath(o.conn).Close()
	}
	if before == 0 || o.ended { // else whoever writes was told, and looks again
		o.signal()
	}
}

// beneath is the connection that conn is a layer on, or conn.
func beneath(conn net.Conn) net.Conn {
	if layer, ok := conn.(interface{ NetConn() net.Conn }); ok {
		return beneath(layer.NetConn())
	}
	return conn
}

// full reports whether nothing should be added that can be dropped.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.wait) > o.most
}

// end has the connection closed when all is written.
func (o *outbox) end() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// write writes what comes, until end, or until the client takes nothing any more.
func (o *outbox) write() {
	defer o.conn.Close()
	const keep = 256 << 10 // while it is busy
	var spare []byte
	for range o.wake {
		for {
			o.mu.Lock()
			b, ended := o.wait, o.ended
			o.wait, spare = spare[:0], nil // one of the two buffers at a time
			o.mu.Unlock()
			if len(b) == 0 {
				if ended {
					return
				}
				break
			}
			full := len(b) > o.most
			if o.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
				return
			}
			if _, err := o.conn.Write(b); err != nil {
				o.mu.Lock()
				o.ended, o.wait = true, nil
				o.mu.Unlock()
				return
			}
			if spare = b; cap(b) > keep {
				spare = nil
			}
			if full && o.drained != nil {
				o.drained()
			}
		}
		// An idle client has no buffer.
		o.mu.Lock()
		if len(o.wait) == 0 {
			o.wait, spare = nil, nil
		}
		o.mu.Unlock()
	}
}
