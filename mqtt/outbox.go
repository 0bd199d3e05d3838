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

	buffers *buffers
	mu      sync.Mutex
	wait    []byte
	wake    chan struct{}
	ended   bool
}

func newOutbox(conn net.Conn, most int, buffers *buffers) outbox {
	return outbox{conn: conn, most: most, buffers: buffers, wake: make(chan struct{}, 1)}
}

// chunk is how much is worth a write, in bytes: what TLS encrypts at once.
const chunk = 16 << 10

// A batch are messages that are sent at once: who is sent some of it is told at its end,
// or when there is enough to write. nil is a batch of one.
type batch struct{ boxes []*outbox }

// tell ends the batch.
func (b *batch) tell() {
	for i, o := range b.boxes {
		o.signal()
		b.boxes[i] = nil
	}
	b.boxes = b.boxes[:0]
}

// send appends p, and reports whether it fits the client.
func (o *outbox) send(p packet.Packet) bool { return o.sendIn(nil, p) }

// sendIn is send for what is one of a batch.
func (o *outbox) sendIn(in *batch, p packet.Packet) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		return true
	}
	o.ready(in)
	b, err := p.Append(o.wait, o.v, o.max)
	if err != nil {
		return false
	}
	o.put(in, b)
	return true
}

// sendWire appends a packet that is encoded already, and reports whether it is one.
func (o *outbox) sendWire(in *batch, wire []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended && wire != nil {
		o.ready(in)
		o.put(in, append(o.wait, wire...))
	}
	return wire != nil
}

// ready makes room for a batch; mu is held.
func (o *outbox) ready(in *batch) {
	if in != nil && o.wait == nil {
		o.wait = o.buffers.get()
	}
}

// put has b wait, which is what waits and something more; mu is held.
func (o *outbox) put(in *batch, b []byte) {
	before := len(o.wait)
	o.wait = b
	if len(b) > 2*o.most+slack { // it asks and does not read, and would not take a good-bye
		o.ended, o.wait = true, nil
		_ = beneath(o.conn).Close()
	}
	switch {
	case o.ended || in != nil && before < chunk && len(b) >= chunk:
		o.signal()
	case before > 0: // whoever writes was told, or is told soon, and looks again
	case in == nil:
		o.signal()
	default:
		in.boxes = append(in.boxes, o)
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
			o.buffers.put(o.wait)
			o.buffers.put(spare)
			o.wait, spare = nil, nil
		}
		o.mu.Unlock()
	}
}

// buffers are of chunk bytes and some, for those who are busy. They are safe for
// concurrent use.
type buffers struct{ pool sync.Pool }

// bufferSize is the size of one, in bytes.
const bufferSize = 2 * chunk

func (b *buffers) get() []byte {
	if one, ok := b.pool.Get().(*[bufferSize]byte); ok {
		return one[:0]
	}
	return new([bufferSize]byte)[:0]
}

// put takes one back, which nobody uses; what is none is left alone.
func (b *buffers) put(one []byte) {
	if cap(one) == bufferSize {
		b.pool.Put((*[bufferSize]byte)(one[:bufferSize]))
	}
}
