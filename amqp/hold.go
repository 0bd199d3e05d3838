package amqp

import (
	"encoding/binary"
	"errors"

	"github.com/fleetbus/fleetbus/amqp/frame"
)

// blocked tells the client that nothing it publishes is read.
func (c *conn) blocked(reason string) {
	if c.client.can("connection.blocked") {
		_ = c.out.send(0, &frame.ConnectionBlocked{Reason: frame.Clip(reason)})
	}
}

// unblocked tells the client that it is over, and has what is held done.
func (c *conn) unblocked() {
	defer c.interrupt()
	if c.client.can("connection.blocked") {
		_ = c.out.send(0, &frame.ConnectionUnblocked{})
	}
}

// hold is what came while nothing that is published was read.
type hold struct {
	frames []frame.Frame
	size   int // in bytes
}

// maxHeld is how many bytes of frames are held of a connection, so that one that is
// blocked can still be closed.
const maxHeld = 128 << 10

// errOver says that what is held can be done.
var errOver = errors.New("the alarm is over")

// holds reports whether f has to wait: it is published while there is an alarm, or came
// after something that waits.
func (c *conn) holds(f frame.Frame) bool {
	switch {
	case f.Kind == frame.KindHeartbeat, f.Channel == 0: // a client that closes is not held up
		return false
	case c.held.size > 0:
		return true
	case f.Kind != frame.KindMethod || len(f.Payload) < 4:
		return false
	}
	published := frame.ID(binary.BigEndian.Uint32(f.Payload)) == (*frame.BasicPublish)(nil).ID()
	return published && c.p.alarm.raised() != nil
}

// hold holds f. If there is no more room it waits until the alarm is over, and then does
// all that is held.
func (c *conn) hold(f frame.Frame) error {
	f.Payload = append([]byte(nil), f.Payload...)
	c.held.frames = append(c.held.frames, f)
	c.held.size += len(f.Payload) + frame.Overhead
	over := c.p.alarm.raised()
	if c.held.size < maxHeld && over != nil {
		return nil
	}
	if over != nil {
		select {
		case <-over:
		case <-c.ctx.Done():
			return c.why()
		}
	}
	return c.release()
}

// release does what is held.
func (c *conn) release() error {
	held := c.held
	c.held = hold{}
	for _, f := range held.frames {
		if err := c.take(f); err != nil {
			return err
		}
	}
	return nil
}
