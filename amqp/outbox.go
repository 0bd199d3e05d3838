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

// outbox is what goes out to a client. It is safe for concurrent use.
type outbox struct {
	conn     net.Conn
	most     int // bytes that may wait before there is no room
	maxFrame int
	beat     time.Duration // at which something is sent, 0: never
	// drained is called when there is room again.
	drained func()

	mu    sync.Mutex
	wait  []byte
	spare []byte
	full  bool              // somebody found no room
	acks  map[*channel]bool // those that have confirms to write
	wake  chan struct{}
	ended bool // nothing more goes out than what waits
}

func newOutbox(nc net.Conn, most int) *outbox {
	return &outbox{conn: nc, most: most, maxFrame: frame.MinFrame, wake: make(chan struct{}, 1), acks: map[*channel]bool{}}
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
	b, err := frame.AppendMethod(o.wait, channel, m)
	if err != nil {
		return err
	}
	if properties != nil {
		b = frame.AppendContent(b, channel, properties, body, o.maxFrame)
	}
	o.wait = b
	if len(o.wait) > 2*o.most+slack && properties == nil {
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

// room reports whether there is room for messages. If not, drained is called once there
// is.
func (o *outbox) room() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if len(o.wait) < o.most || o.ended {
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
		o.ended, o.wait = true, nil
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
			if !o.ended && o.beat > 0 {
				o.wait = frame.AppendHeartbeat(o.wait)
			}
			o.mu.Unlock()
		}
		o.flushConfirms()
		o.mu.Lock()
		b, ended := o.wait, o.ended
		if every != o.beat {
			every = o.beat
			tick.Reset(cmp.Or(every, idle))
		}
		o.wait, o.spare = o.spare[:0], nil
		full, drained := o.full, o.drained
		o.full = false
		o.mu.Unlock()
		if full {
			drained()
		}
		if len(b) > 0 {
			if o.conn.SetWriteDeadline(time.Now().Add(writeTimeout)) != nil {
				return
			}
			if _, err := o.conn.Write(b); err != nil {
				_ = o.conn.Close()
				return
			}
			wrote = true
		}
		if ended {
			return
		}
		o.mu.Lock()
		if cap(b) <= 64<<10 {
			o.spare = b[:0]
		}
		o.mu.Unlock()
	}
}
