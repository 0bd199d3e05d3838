// Package tunnel carries a stream of bytes between two nodes over the bus, as a net.Conn
// at both ends.
//
// A stream that loses something ends: each part has a number. Who does not read is sent no
// more than a window. An end that hears nothing of the other for a while takes it for dead.
//
// The end that listens may have others go on without the one that dials, which must not pass on
// then what it still has. So what it hears holds for as long as it was granted, by its own
// monotonic clock and from when it asked, and the other end does not give it up before.
package tunnel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// Part is how many bytes go together at most. What is written with one call goes in as few
// messages as that allows.
const Part = 60 << 10

const (
	// window is how many bytes are under way to an end that has not read them.
	window = 1 << 20
	// beat is how often an end says that it is there, and dead how long it may be silent.
	beat, dead = 2 * time.Second, 10 * time.Second
	// grant is for how long what is heard holds, and margin how much longer the end that
	// grants it waits: no two clocks go alike.
	grant, margin = 3 * time.Second, 500 * time.Millisecond
)

// grantHeader has how long what is heard holds, in the answer to Dial. Older nodes grant nothing.
const grantHeader = "Fleetbus-Grant"

// The kinds of messages.
const (
	data  byte = iota // with its number, and bytes
	taken             // so many bytes are read, since the beginning
	alive             // with when that is, since its end of the stream is there
	end
	granted // when it was asked, and for how long what is heard holds since then
)

// noResponders is the engine's status of what nobody hears.
const noResponders = "503"

// ErrLost is the error of a stream whose other end is silent, or that has lost something.
var ErrLost = errors.New("the other end of the tunnel is lost")

// Listen takes streams on a subject: accept is called with what the other end said and the
// stream, from a goroutine of its own, and is to close it. left tells for how long nobody takes
// this end's place: no longer is granted that what it says holds.
func Listen(nc *nats.Conn, subject string, left func() time.Duration, accept func(hello []byte, c net.Conn)) (*nats.Subscription, error) {
	return nc.Subscribe(subject, func(msg *nats.Msg) {
		to, hello, ok := cutHello(msg.Data)
		if !ok || msg.Reply == "" {
			return
		}
		c, err := newConn(nc, to)
		if err != nil {
			return
		}
		c.mu.Lock()
		c.left = left
		first := c.grant()
		c.mu.Unlock()
		answer := &nats.Msg{Data: []byte(c.inbox), Header: nats.Header{grantHeader: {first.String()}}}
		if err := msg.RespondMsg(answer); err != nil {
			c.fail(err)
			return
		}
		go accept(hello, c)
	})
}

// cutHello takes apart what Dial says: the subject to answer on, and the rest.
func cutHello(b []byte) (to string, hello []byte, ok bool) {
	n, size := binary.Uvarint(b)
	if size <= 0 || n == 0 || n > 255 || n > uint64(len(b)-size) {
		return "", nil, false
	}
	b = b[size:]
	return string(b[:n]), b[n:], true
}

// Dial opens a stream to whoever listens on a subject, and says hello.
func Dial(ctx context.Context, nc *nats.Conn, subject string, hello []byte) (net.Conn, error) {
	c, err := newConn(nc, "")
	if err != nil {
		return nil, err
	}
	ask := append(binary.AppendUvarint(nil, uint64(len(c.inbox))), c.inbox...)
	asked := time.Since(c.born)
	answer, err := nc.RequestWithContext(ctx, subject, append(ask, hello...))
	if err != nil {
		c.fail(err)
		return nil, fmt.Errorf("opening a tunnel: %w", err)
	}
	c.mu.Lock()
	if first, err := time.ParseDuration(answer.Header.Get(grantHeader)); err == nil {
		c.until.Store(int64(asked + min(first, grant)))
	}
	c.to = string(answer.Data)
	c.mu.Unlock()
	return c, nil
}

// conn is one end.
type conn struct {
	nc    *nats.Conn
	inbox string
	sub   *nats.Subscription
	timer *time.Timer
	born  time.Time
	until atomic.Int64 // what is heard holds, since born

	mu      sync.Mutex
	changed sync.Cond
	to      string // "" until the other end has said where it listens
	err     error  // why the stream is over; io.EOF: the other end closed it
	closed  bool   // by this end

	left func() time.Duration // nil: this end grants nothing
	gave time.Time            // when it granted something
	lost bool                 // it grants nothing any more, and ends once what it gave is over

	in       []byte
	received uint64 // parts
	read     uint64 // bytes
	told     uint64 // of them, the other end knows
	heard    time.Time
	readBy   time.Time

	sent    uint64 // parts
	written uint64 // bytes
	taken   uint64 // of them, the other end has read
	writeBy time.Time
}

func newConn(nc *nats.Conn, to string) (*conn, error) {
	now := time.Now()
	c := &conn{nc: nc, inbox: nc.NewRespInbox(), to: to, born: now, heard: now}
	c.until.Store(math.MaxInt64)
	c.changed.L = &c.mu
	var err error
	if c.sub, err = nc.Subscribe(c.inbox, c.hear); err != nil {
		return nil, fmt.Errorf("opening a tunnel: %w", err)
	}
	// What is in the window is bounded by it, and not by a number of messages.
	_ = c.sub.SetPendingLimits(-1, -1)
	c.timer = time.AfterFunc(beat, c.tick)
	return c, nil
}

// tick says that this end is there, and looks whether the other is.
func (c *conn) tick() {
	c.mu.Lock()
	over, to, silent := c.closed || c.err != nil, c.to, time.Since(c.heard) > dead || c.lost && c.outstanding() <= 0
	said := time.Since(c.gave) < beat // what it grants says that it is there
	if !over {
		c.timer.Reset(beat)
	}
	c.mu.Unlock()
	switch {
	case over:
	case silent || c.nc.IsClosed():
		c.fail(ErrLost)
	case to != "" && !said:
		c.ask(to)
	}
}

// ask says that this end is there. If nobody listens there any more, the engine answers.
func (c *conn) ask(to string) {
	now := binary.AppendUvarint([]byte{alive}, uint64(time.Since(c.born)))
	_ = c.nc.PublishRequest(to, c.inbox, now) // if it cannot be said, that shows
}

// grant is for how long from now on this end does not give the stream up; mu is held.
func (c *conn) grant() time.Duration {
	if c.left == nil || c.lost || c.closed || c.err != nil {
		return 0
	}
	d := min(c.left(), grant)
	if d > 0 {
		c.gave = time.Now()
	}
	return d
}

// outstanding is how long the other end may still go by what was granted; mu is held.
func (c *conn) outstanding() time.Duration {
	if c.gave.IsZero() {
		return 0
	}
	return grant + margin - time.Since(c.gave)
}

// Holds reports whether the other end cannot have given up the stream at this very moment: what
// was heard may be passed on. If this end stood still, or heard nothing for a while, it asks
// first, and waits for the answer. It is safe for concurrent use.
func (c *conn) Holds() bool {
	if c.holds() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.closed && c.err == nil {
		c.ask(c.to)
	}
	for by := time.Now().Add(dead); !c.holds(); {
		if c.closed || c.err != nil || !c.wait(by) {
			return false
		}
	}
	return true
}

func (c *conn) holds() bool { return time.Since(c.born) < time.Duration(c.until.Load()) }

// lose ends the stream once the other end cannot go by it any more.
func (c *conn) lose() {
	c.mu.Lock()
	left := c.outstanding()
	if left > 0 && !c.lost && !c.closed {
		c.lost = true
		c.timer.Reset(left)
	}
	c.mu.Unlock()
	if left <= 0 {
		c.fail(ErrLost)
	}
}

// fail ends the stream.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.err == nil {
		c.err = err
	}
	c.changed.Broadcast()
	c.mu.Unlock()
	c.timer.Stop()
	_ = c.sub.Unsubscribe()
}

// hear takes what the other end says.
func (c *conn) hear(msg *nats.Msg) {
	if len(msg.Data) == 0 {
		if msg.Header.Get("Status") == noResponders {
			c.lose()
		}
		return
	}
	kind, body := msg.Data[0], msg.Data[1:]
	c.mu.Lock()
	c.heard = time.Now()
	var answer []byte
	switch kind {
	case data:
		n, size := binary.Uvarint(body)
		if size <= 0 || n != c.received || len(c.in)+len(body)-size > window {
			c.mu.Unlock()
			c.lose()
			return
		}
		c.received++
		c.in = append(c.in, body[size:]...)
	case taken:
		if n, size := binary.Uvarint(body); size > 0 && n > c.taken && n <= c.written {
			c.taken = n
		}
	case alive:
		if asked, size := binary.Uvarint(body); size > 0 {
			if d := c.grant(); d > 0 {
				answer = binary.AppendUvarint(binary.AppendUvarint([]byte{granted}, asked), uint64(d))
			}
		}
	case granted:
		asked, size := binary.Uvarint(body)
		d, more := binary.Uvarint(body[max(size, 0):])
		if size > 0 && more > 0 && asked <= uint64(time.Since(c.born)) && d <= uint64(grant) {
			c.until.Store(max(c.until.Load(), int64(asked+d)))
		}
	case end:
		c.mu.Unlock()
		c.fail(io.EOF)
		return
	}
	c.changed.Broadcast()
	to := c.to
	c.mu.Unlock()
	if answer != nil {
		_ = c.nc.Publish(to, answer) // if it cannot be said, nothing holds
	}
}

// wait waits until something changes, or the deadline; mu is held. It reports false after
// the deadline.
func (c *conn) wait(by time.Time) bool {
	if by.IsZero() {
		c.changed.Wait()
		return true
	}
	left := time.Until(by)
	if left <= 0 {
		return false
	}
	t := time.AfterFunc(left, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.changed.Broadcast()
	})
	c.changed.Wait()
	t.Stop()
	return true
}

// Read implements net.Conn.
func (c *conn) Read(b []byte) (int, error) {
	c.mu.Lock()
	for len(c.in) == 0 {
		switch {
		case c.closed:
			c.mu.Unlock()
			return 0, net.ErrClosed
		case c.err != nil:
			err := c.err
			c.mu.Unlock()
			return 0, err
		case !c.wait(c.readBy):
			c.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		}
	}
	n := copy(b, c.in)
	c.in = c.in[n:]
	if len(c.in) == 0 {
		c.in = nil
	}
	c.read += uint64(n)
	tell := uint64(0)
	if c.read-c.told >= window/4 {
		tell, c.told = c.read, c.read
	}
	to := c.to
	c.mu.Unlock()
	if tell > 0 {
		if err := c.nc.Publish(to, binary.AppendUvarint([]byte{taken}, tell)); err != nil {
			c.fail(err)
		}
	}
	return n, nil
}

// Write implements net.Conn. Of several at once, each part is whole.
func (c *conn) Write(b []byte) (n int, err error) {
	for len(b) > 0 {
		m, err := c.writePart(b[:min(len(b), Part)])
		n += m
		if err != nil {
			return n, err
		}
		b = b[m:]
	}
	return n, nil
}

func (c *conn) writePart(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for c.to == "" || c.written-c.taken+uint64(len(b)) > window {
		switch {
		case c.closed:
			return 0, net.ErrClosed
		case c.err != nil:
			return 0, io.ErrClosedPipe
		case !c.wait(c.writeBy):
			return 0, os.ErrDeadlineExceeded
		}
	}
	if c.closed {
		return 0, net.ErrClosed
	}
	if c.err != nil {
		return 0, io.ErrClosedPipe
	}
	msg := binary.AppendUvarint(append(make([]byte, 0, len(b)+11), data), c.sent)
	if err := c.nc.Publish(c.to, append(msg, b...)); err != nil { // mu is held: parts go out in order
		return 0, fmt.Errorf("writing to a tunnel: %w", err)
	}
	c.sent++
	c.written += uint64(len(b))
	return len(b), nil
}

// Close implements net.Conn. What was written before is read by the other end.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	to := c.to
	c.changed.Broadcast()
	c.mu.Unlock()
	if to != "" {
		_ = c.nc.Publish(to, []byte{end}) // else it hears nothing any more, and that says it
	}
	c.timer.Stop()
	return c.sub.Unsubscribe()
}

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error { return c.set(&c.readBy, t) }

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(t time.Time) error { return c.set(&c.writeBy, t) }

func (c *conn) set(by *time.Time, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	*by = t
	c.changed.Broadcast()
	return nil
}

// LocalAddr and RemoteAddr implement net.Conn: it is no place that somebody could dial.
func (*conn) LocalAddr() net.Addr  { return addr{} }
func (*conn) RemoteAddr() net.Addr { return addr{} }

type addr struct{}

func (addr) Network() string { return "tunnel" }
func (addr) String() string  { return "tunnel" }
