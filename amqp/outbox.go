package amqp

import (
	"cmp"
	"net"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// slack is how many bytes of answers may wait for a client beside its messages: one that
// asks and does not read is cut.
const slack = 4 << 20

// idle is after how long without heartbeats a connection that is idle has no buffer.
const idle = time.Minute

// block is how many bytes of what waits for a client are together, or about that.
const block = 64 << 10

// blocks is memory that clients share for what waits. Its zero value has none yet.
type blocks struct{ pool sync.Pool }

func (b *blocks) take() []byte {
	if one, ok := b.pool.Get().(*[]byte); ok {
		return (*one)[:0]
	}
	return make([]byte, 0, block)
}

// give gives one back that nobody needs, unless it is of another size.
func (b *blocks) give(one []byte) {
	if cap(one) == block {
		b.pool.Put(&one)
	}
}

// outbox is what goes out to a client. It is safe for concurrent use.
type outbox struct {
	conn     net.Conn
	blocks   *blocks
	most     int // bytes that may wait before there is no room
	maxFrame int
	beat     time.Duration // at which something is sent, 0: never
	// drained is called when there is room again.
	drained func()
	// holds reports whether what waits may still go out; nil: it may.
	holds func() bool

	mu    sync.Mutex
	first [][]byte // what goes out before wait
	size  int      // of first, in bytes
	wait  []byte
	spare []byte
	full  bool              // somebody found no room
	acks  map[*channel]bool // those that have confirms to write
	wake  chan struct{}
	ended bool // nothing more goes out than what waits
}

func newOutbox(nc net.Conn, b *blocks, most int) *outbox {
	return &outbox{conn: nc, blocks: b, most: most, maxFrame: frame.MinFrame, wake: make(chan struct{}, 1), acks: map[*channel]bool{}}
}

// tune sets what was agreed on with the client.
func (o *outbox) tune(maxFrame int, beat time.Duration) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.maxFrame, o.beat = maxFrame, beat
	o.signal()
}

// send appends m on a channel. It reports what cannot be written, which is the server's
// fault.
func (o *outbox) send(channel uint16, m frame.Method) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.put(channel, m, nil, nil)
}

// message appends m and what it carries.
func (o *outbox) message(channel uint16, m frame.Method, properties, body []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.put(channel, m, properties, body)
}

// put appends m, and a message unless properties is nil; mu is held.
func (o *outbox) put(channel uint16, m frame.Method, properties, body []byte) error {
	if o.ended {
		return nil
	}
	if len(o.wait) >= block/2 { // the next may fit, and nothing is copied
		o.first, o.size, o.wait = append(o.first, o.wait), o.size+len(o.wait), o.blocks.take()
	}
	b, err := frame.AppendMethod(o.wait, channel, m)
	if err != nil {
		return err
	}
	if properties != nil {
		b = frame.AppendContent(b, channel, properties, body, o.maxFrame)
	}
	o.wait = b
	if o.size+len(o.wait) > 2*o.most+slack && properties == nil {
		o.ended = true
		_ = o.conn.Close()
	}
	o.signal()
	return nil
}

// frame appends a frame as it is.
func (o *outbox) frame(f frame.Frame) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if !o.ended {
		o.wait = frame.AppendFrame(o.wait, f)
		o.signal()
	}
}

// drain has f be called when there is room again.
func (o *outbox) drain(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.drained = f
}

// guard has nothing go out any more once holds reports false: the connection ends then.
func (o *outbox) guard(holds func() bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.holds = holds
}

// room reports whether there is room for messages. If not, drained is called once there
// is.
func (o *outbox) room() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.size+len(o.wait) < o.most || o.ended {
		return true
	}
	o.full = true
	return false
}

// confirms has the confirms of ch written with what goes out next.
func (o *outbox) confirms(ch *channel) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.acks[ch] = true
	o.signal()
}

func (o *outbox) signal() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// end has what waits written, and nothing more after it.
func (o *outbox) end() {
	o.flushConfirms()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.ended = true
	o.signal()
}

// flushConfirms appends the confirms that wait.
func (o *outbox) flushConfirms() {
	o.mu.Lock()
	var channels []*channel
	for ch := range o.acks {
		channels = append(channels, ch)
	}
	clear(o.acks)
	o.mu.Unlock()
	for _, ch := range channels {
		ch.flushConfirms(false)
	}
}

// write writes until the outbox is ended or the connection fails.
func (o *outbox) write() {
	defer func() {
		o.mu.Lock()
		o.ended, o.first, o.wait = true, nil, nil
		o.mu.Unlock()
	}()
	tick := time.NewTicker(idle)
	defer tick.Stop()
	var every time.Duration
	wrote := true
	for {
		select {
		case <-o.wake:
		case <-tick.C:
			if wrote {
				wrote = false
				continue
			}
			o.mu.Lock()
			o.spare = nil // nobody needs it now
			if len(o.wait) == 0 {
				o.wait = nil
			}
			if !o.ended && o.beat > 0 {
				o.wait = frame.AppendHeartbeat(o.wait)
			}
			o.mu.Unlock()
		}
		o.flushConfirms()
		o.mu.Lock()
		all, ended := o.first, o.ended
		if len(o.wait) > 0 {
			all = append(all, o.wait)
		}
		if every != o.beat {
			every = o.beat
			tick.Reset(cmp.Or(every, idle))
		}
		if len(all) > 0 {
			o.first, o.size, o.wait, o.spare = nil, 0, o.spare[:0], nil
		}
		full, drained, holds := o.full, o.drained, o.holds
		o.full = false
		o.mu.Unlock()
		if full {
			drained()
		}
		for _, b := range all {
			if o.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
				return
			}
			if holds != nil && !holds() {
				_ = o.conn.Close()
				return
			}
			if _, err := o.conn.Write(b); err != nil {
				_ = o.conn.Close()
				return
			}
			o.giveBack(b)
			wrote = true
		}
		if ended {
			return
		}
	}
}

// giveBack takes memory back of what went out: one block stays here until there is nothing
// to do for long.
func (o *outbox) giveBack(b []byte) {
	o.mu.Lock()
	mine := o.spare == nil && cap(b) <= block
	if mine {
		o.spare = b[:0]
	}
	o.mu.Unlock()
	if !mine {
		o.blocks.give(b)
	}
}
