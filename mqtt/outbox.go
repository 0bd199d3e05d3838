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
	before  [][]byte // what waits before wait
	wait    []byte
	size    int // of both, in bytes
	wake    chan struct{}
	ended   bool
}

func newOutbox(conn net.Conn, most int, buffers *buffers) outbox {
	return outbox{conn: conn, most: most, buffers: buffers, wake: make(chan struct{}, 1)}
}

// chunk is how much is worth a write, in bytes: what TLS encrypts at once, less a small
// message.
const chunk = 16<<10 - 512

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
	o.ready()
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
		o.ready()
		o.put(in, append(o.wait, wire...))
	}
	return wire != nil
}

// ready has room in wait: little, because there may be very many clients who are sent
// one message each, until there is more; mu is held.
func (o *outbox) ready() {
	switch n := len(o.wait); {
	case n >= chunk:
		o.before = append(o.before, o.wait)
		o.wait = o.buffers.large()
	case n >= smallSize/2 && cap(o.wait) < largeSize:
		wait := append(o.buffers.large(), o.wait...)
		o.buffers.put(o.wait)
		o.wait = wait
	case o.wait == nil:
		o.wait = o.buffers.small()
	}
}

// put has b wait, which is wait and something more; mu is held.
func (o *outbox) put(in *batch, b []byte) {
	before := o.size
	o.size += len(b) - len(o.wait)
	o.wait = b
	if o.size > 2*o.most+slack { // it asks and does not read, and would not take a good-bye
		o.drop()
		_ = beneath(o.conn).Close()
	}
	switch {
	case o.ended || in != nil && before < chunk && o.size >= chunk:
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

// drop ends the outbox without what waits; mu is held.
func (o *outbox) drop() { o.ended, o.before, o.wait, o.size = true, nil, nil, 0 }

// full reports whether nothing should be added that can be dropped.
func (o *outbox) full() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.size > o.most
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
	for range o.wake {
		for {
			o.mu.Lock()
			all, last, size, ended := o.before, o.wait, o.size, o.ended
			o.before, o.wait, o.size = nil, nil, 0
			o.mu.Unlock()
			if size == 0 {
				if ended {
					return
				}
				break // an idle client has no buffer
			}
			for _, b := range append(all, last) {
				if !o.writeOne(b) {
					o.mu.Lock()
					o.drop()
					o.mu.Unlock()
					return
				}
			}
			if size > o.most && o.drained != nil {
				o.drained()
			}
		}
	}
}

// writeOne writes one buffer, and reports whether the client took it.
func (o *outbox) writeOne(b []byte) bool {
	if o.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
		return false
	}
	if _, err := o.conn.Write(b); err != nil {
		return false
	}
	o.buffers.put(b)
	return true
}

// buffers are lent to whoever has something to write. They are safe for concurrent use.
type buffers struct{ smalls, larges sync.Pool }

// smallSize and largeSize are the sizes of buffers, in bytes. A large one has a chunk,
// and most packets beside.
const smallSize, largeSize = 2 << 10, 20 << 10

func (b *buffers) small() []byte {
	if one, ok := b.smalls.Get().(*[smallSize]byte); ok {
		return one[:0]
	}
	return new([smallSize]byte)[:0]
}

func (b *buffers) large() []byte {
	if one, ok := b.larges.Get().(*[largeSize]byte); ok {
		return one[:0]
	}
	return new([largeSize]byte)[:0]
}

// put takes one back, which nobody uses; what is none is left alone.
func (b *buffers) put(one []byte) {
	switch cap(one) {
	case smallSize:
		b.smalls.Put((*[smallSize]byte)(one[:smallSize]))
	case largeSize:
		b.larges.Put((*[largeSize]byte)(one[:largeSize]))
	}
}
