package amqp

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/amqp/tunnel"
	"github.com/fleetbus/fleetbus/identity"
)

// handover is a connection as the node that has its virtual host takes it over. The node
// that the client is connected to has let it in, and watches over its session.
type handover struct {
	Principal identity.Principal `json:"principal"`
	// Username is the name that it logged in with.
	Username string `json:"username,omitempty"`
	VHost    string `json:"vhost"`
	Remote   string `json:"remote"`
	// Product and Capabilities are what the client says of itself.
	Product      string `json:"product,omitempty"`
	Capabilities []byte `json:"capabilities,omitempty"` // a table, as on the wire
	Channels     int    `json:"channels"`
	Frame        int    `json:"frame"`     // size, in bytes
	Heartbeat    int    `json:"heartbeat"` // in seconds
}

// handover describes the connection to another node.
func (c *conn) handover(vhost string) ([]byte, error) {
	capabilities, err := c.client.capabilities.Append(nil)
	if err != nil {
		return nil, fmt.Errorf("describing an AMQP client: %w", err)
	}
	return json.Marshal(handover{
		Principal: c.who, Username: c.with.Username, VHost: vhost, Remote: c.remote, Product: c.client.product, Capabilities: capabilities,
		Channels: c.channelMax, Frame: c.r.Maximum, Heartbeat: int(c.patience / (2 * time.Second)),
	})
}

// takeOver serves a client of another node, whose frames come through nc, in a virtual
// host that is here.
func (p *Protocol) takeOver(ctx context.Context, v vhost, hello []byte, nc net.Conn) {
	defer nc.Close()
	var h handover
	err := json.Unmarshal(hello, &h)
	var capabilities frame.Table
	if err == nil && len(h.Capabilities) > 0 {
		capabilities, err = frame.DecodeTable(h.Capabilities)
	}
	if err != nil || h.Frame < frame.MinFrame || h.Channels < 1 || h.Channels > 0xFFFF || h.Heartbeat < 0 {
		p.log().Error("an AMQP client of another node cannot be served: the node is of another version", "error", err)
		return
	}
	c := newConn(ctx, p, nc, nil)
	c.remote, c.who, c.with.Username = h.Remote, h.Principal, h.Username
	c.client = client{product: h.Product, capabilities: capabilities}
	c.channelMax = h.Channels
	c.tuned(h.Frame, time.Duration(h.Heartbeat)*time.Second)
	c.patience = 0 // the client's node waits for the client, and the tunnel for the node
	c.serveWith(func() error {
		ctx, cancel := context.WithTimeout(c.ctx, loginTimeout)
		defer cancel()
		if err := c.enter(ctx, v, h.VHost); err != nil {
			return c.ofHost(err, &frame.ConnectionOpen{})
		}
		return c.serve()
	})
}

// relay has the client be served by the node that has its virtual host.
func (c *conn) relay() error {
	defer c.there.Close()
	if there, ok := c.there.(interface{ Holds() bool }); ok {
		c.out.guard(there.Holds)
	}
	room := make(chan struct{}, 1)
	c.out.drain(func() {
		select {
		case room <- struct{}{}:
		default:
		}
	})
	down := make(chan struct{})
	defer func() {
		_ = c.there.Close()
		<-down
	}()
	go func() {
		defer close(down)
		c.leaveFor(c.down(room))
	}()
	var gathered []byte // what is whole here goes together
	pass := func() error {
		if len(gathered) == 0 {
			return nil
		}
		if _, err := c.there.Write(gathered); err != nil {
			c.leaveFor(err)
			return c.why()
		}
		if gathered = gathered[:0]; cap(gathered) > 2*tunnel.Part {
			gathered = nil
		}
		return nil
	}
	for {
		f, err := c.next(c.alive)
		if errors.Is(err, errQuiet) {
			_ = c.net.Close() // before the other node has others go on
		}
		if err != nil {
			return err
		}
		if f.Channel == 0 && f.Kind == frame.KindMethod {
			m, err := c.r.Method(f)
			if err != nil {
				return errors.Join(pass(), err)
			}
			if m, ok := m.(*frame.ConnectionUpdateSecret); ok { // the session is here
				if err := errors.Join(pass(), c.updateSecret(m)); err != nil {
					return err
				}
				continue
			}
		}
		gathered = frame.AppendFrame(gathered, f)
		if c.r.Buffered() == 0 || len(gathered) >= tunnel.Part {
			if err := pass(); err != nil {
				return err
			}
		}
	}
}

// down takes to the client what the other node says, until that ends.
func (c *conn) down(room <-chan struct{}) error {
	r := frame.NewReader(c.there, readBuffer)
	r.Maximum, r.Burst = c.r.Maximum, readBurst
	for {
		f, err := r.Next()
		if err != nil {
			return err
		}
		for !c.out.room() {
			select {
			case <-room:
			case <-c.ctx.Done():
				return c.ctx.Err()
			}
		}
		c.out.frame(f)
	}
}

// leaveFor ends the connection because of what became of the other node's: it has said
// all there is to say, or it is lost.
func (c *conn) leaveFor(err error) {
	c.mu.Lock()
	if c.left == nil && c.kicked == nil && c.ctx.Err() == nil {
		c.left = errGone
		if !errors.Is(err, io.EOF) {
			c.left = elsewhere()
		}
	}
	c.mu.Unlock()
	c.end()
}

// elsewhere has the client connect again.
func elsewhere() *frame.Error {
	return frame.ConnectionError(frame.ConnectionForced, "the virtual host is about to be elsewhere: connect again")
}
