package amqp

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

// conn is a connection. Its fields are those of the goroutine that reads, but for what is
// said of others.
type conn struct {
	p      *Protocol
	net    net.Conn
	tls    *tls.ConnectionState // nil: in plain text
	login  fleetbus.Login
	ctx    context.Context
	end    context.CancelFunc
	r      *frame.Reader
	source *metered
	out    *outbox
	id     string
	remote string
	guest  *strangers.Guest

	who        identity.Principal // once it is let in
	there      net.Conn           // the way to the node that has the virtual host; nil: this one has it
	offered    []string
	client     client
	channelMax int
	with       identity.Credentials    // without the secret
	secret     bool                    // there was one
	proof      *identity.ScramExchange // by which it logged in, nil: by another way
	patience   time.Duration           // in which something has to come, 0: any
	vhost      string
	host       host
	channels   map[uint16]*channel
	partial    int // bytes of messages that are not whole yet
	held       hold
	closing    bool                     // it is told to go: only Close and CloseOk count
	said       map[frame.Code]time.Time // when the operator was told of a channel

	mu      sync.Mutex
	session *fleetbus.Session
	open    map[uint16]*channel // the same as channels, for others than who reads
	kicked  *frame.Error        // why it ends, unless the client does it
	left    error               // why it ends if the virtual host is elsewhere
}

// client is what a client says of itself.
type client struct {
	product      string
	capabilities frame.Table
}

// can reports whether the client announced a capability.
func (c client) can(what string) bool {
	can, _ := c.capabilities[what].(bool)
	return can
}

func newConn(ctx context.Context, p *Protocol, nc net.Conn, login fleetbus.Login) *conn {
	c := &conn{
		p: p, net: nc, login: login, id: p.number(), remote: nc.RemoteAddr().String(), out: newOutbox(nc, &p.blocks, p.pending()),
		channels: map[uint16]*channel{}, open: map[uint16]*channel{},
	}
	c.ctx, c.end = context.WithCancel(ctx)
	c.out.drained = c.drained
	c.source = &metered{source: nc, left: strangerBytes}
	c.r = frame.NewReader(c.source, readBuffer)
	c.r.Maximum, c.r.Entries, c.r.Burst = strangerBytes, strangerEntries, readBurst
	return c
}

// metered reads so many bytes of a source, and then an error.
type metered struct {
	source io.Reader
	left   int // negative: any number
}

func (m *metered) Read(b []byte) (int, error) {
	if m.left == 0 {
		return 0, frame.ConnectionError(frame.FrameError, "more than %d bytes before the virtual host is open", strangerBytes)
	}
	if m.left > 0 {
		b = b[:min(len(b), m.left)]
	}
	n, err := m.source.Read(b)
	if m.left > 0 {
		m.left -= n
	}
	return n, err
}

// errGone says that a connection is over and that there is nobody to tell.
var errGone = errors.New("the connection is over")

// run serves the client until it is gone.
func (c *conn) run() {
	stop := context.AfterFunc(c.ctx, c.interrupt)
	greeted := c.greet()
	stop()
	if !greeted {
		c.end()
		return
	}
	c.serveWith(func() error {
		if err := c.handshake(); err != nil {
			return err
		}
		if c.there != nil {
			return c.relay()
		}
		return c.serve()
	})
}

// serveWith serves the client by do, and then ends the connection as that wants it.
func (c *conn) serveWith(do func() error) {
	defer c.end()
	stop := context.AfterFunc(c.ctx, c.interrupt)
	defer stop()
	writing := make(chan struct{})
	go func() {
		defer close(writing)
		c.out.write()
	}()
	err := do()
	c.leave()
	stop()
	cut := time.AfterFunc(2*closeTimeout, func() { _ = c.net.Close() }) // it may not read
	defer cut.Stop()
	c.farewell(err)
	<-writing
	if c.session != nil {
		c.session.Close()
	}
}

// interrupt has who reads look up.
func (c *conn) interrupt() { _ = c.net.SetReadDeadline(time.Now()) }

// kick ends the connection and tells the client why. Any goroutine may call it.
func (c *conn) kick(why *frame.Error) {
	c.mu.Lock()
	if c.kicked == nil {
		c.kicked = why
	}
	c.mu.Unlock()
	c.end()
}

// why is why the connection is to end now, nil if it is not.
func (c *conn) why() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.kicked != nil:
		return c.kicked
	case c.left != nil:
		return c.left
	case c.ctx.Err() != nil:
		return frame.ConnectionError(frame.ConnectionForced, "the node stops: connect again")
	}
	return nil
}

// next is the next frame; it waits no longer than until the deadline. Errors are those
// of a Reader, those of why, errQuiet, errOver and errGone.
func (c *conn) next(deadline func() time.Time) (frame.Frame, error) {
	for {
		var until time.Time
		if c.r.Buffered() == 0 {
			until = deadline()
			if err := c.net.SetReadDeadline(until); err != nil {
				return frame.Frame{}, errGone
			}
			if c.ctx.Err() != nil && !c.closing {
				c.interrupt()
			}
			if c.held.size > 0 && c.p.alarm.raised() == nil {
				return frame.Frame{}, errOver
			}
		}
		f, err := c.r.Next()
		if err == nil {
			return f, nil
		}
		if _, ok := errors.AsType[*frame.Error](err); ok {
			return f, err
		}
		if why := c.why(); why != nil && !c.closing {
			return f, why
		}
		timeout, ok := errors.AsType[net.Error](err)
		switch {
		case !ok || !timeout.Timeout():
			return f, errGone
		case !until.IsZero() && !time.Now().Before(until):
			return f, errQuiet
		}
		// It was interrupted, and looks again.
	}
}

// errQuiet says that nothing came for too long.
var errQuiet = errors.New("nothing came from the client for too long")

// alive is until when something has to come.
func (c *conn) alive() time.Time {
	if c.patience == 0 {
		return time.Time{}
	}
	return time.Now().Add(c.patience)
}

// serve takes the client's frames once its virtual host is open.
func (c *conn) serve() error {
	c.p.alarm.add(c)
	defer c.p.alarm.remove(c)
	for {
		f, err := c.next(c.alive)
		if errors.Is(err, errOver) {
			if err := c.release(); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		if c.holds(f) {
			err = c.hold(f)
		} else {
			err = c.take(f)
		}
		if err != nil {
			return err
		}
	}
}

// take does what a frame asks for.
func (c *conn) take(f frame.Frame) error {
	if f.Kind == frame.KindHeartbeat {
		return nil
	}
	if f.Channel == 0 {
		m, err := c.r.Method(f)
		if err != nil {
			return err
		}
		return c.control(m)
	}
	ch := c.channels[f.Channel]
	if ch == nil {
		return c.openChannel(f)
	}
	err := ch.take(f)
	if fault, ok := errors.AsType[*frame.Error](err); ok && fault.Scope == frame.OfChannel {
		return c.closeChannel(ch, fault)
	}
	return err
}

// control does what a method on channel 0 asks for.
func (c *conn) control(m frame.Method) error {
	switch m := m.(type) {
	case *frame.ConnectionClose:
		return errGoodbye
	case *frame.ConnectionUpdateSecret:
		return c.updateSecret(m)
	case *frame.ConnectionCloseOk, *frame.ConnectionBlocked, *frame.ConnectionUnblocked:
		return nil
	}
	return frame.ConnectionError(frame.CommandInvalid, "%v is not expected on channel 0 now", m.ID()).Of(m)
}

// errGoodbye says that the client closed the connection.
var errGoodbye = errors.New("the client closed the connection")

// send sends a method; what cannot be written is the server's fault.
func (c *conn) send(channel uint16, m frame.Method) error {
	if err := c.out.send(channel, m); err != nil {
		c.p.log().Error("an AMQP method could not be written", "name", m.ID().String(), "error", err)
		return frame.ConnectionError(frame.InternalError, "the answer cannot be written").Of(m)
	}
	return nil
}

// leave gives back all that the connection has of its virtual host.
func (c *conn) leave() {
	for id, ch := range c.channels {
		ch.end()
		c.forget(id)
	}
	if c.host != nil {
		c.host.detach()
		c.host = nil
	}
}

// sayEvery is how long the operator is not told of the same of a client, which can bring
// it about as often as it likes.
const sayEvery = 10 * time.Second

// may reports whether the operator is told of a channel that is closed by this code.
func (c *conn) may(code frame.Code) bool {
	if time.Since(c.said[code]) < sayEvery {
		return false
	}
	if c.said == nil {
		c.said = map[frame.Code]time.Time{}
	}
	c.said[code] = time.Now()
	return true
}

// forget has no channel of that number any more.
func (c *conn) forget(id uint16) {
	delete(c.channels, id)
	c.mu.Lock()
	delete(c.open, id)
	c.mu.Unlock()
}

// farewell ends the connection as err wants it.
func (c *conn) farewell(err error) {
	defer c.out.end()
	attrs := []any{"remote", c.remote}
	if c.who.Name != "" {
		attrs = append(attrs, "principal", c.who)
	}
	if fault, ok := errors.AsType[*frame.Error](err); ok {
		if fault.Code != frame.ConnectionForced {
			c.p.log().Info("AMQP client refused", append(attrs, "code", fault.Code.String(), "error", fault.Text)...)
		}
		stranger := c.who.Name == "" && fault.Code == frame.ConnectionForced // others want its place
		if c.client.mayHear(fault) && c.send(0, closing(fault)) == nil && !stranger {
			c.awaitCloseOk()
		}
		return
	}
	switch {
	case errors.Is(err, errGoodbye):
		_ = c.send(0, &frame.ConnectionCloseOk{})
	case errors.Is(err, errGone):
	case errors.Is(err, errQuiet):
		c.p.log().Info("AMQP client is silent", attrs...)
		_ = c.net.Close()
	default:
		c.p.log().Error("an AMQP connection ended by an error", append(attrs, "error", err)...)
		if c.send(0, closing(frame.ConnectionError(frame.InternalError, "the node cannot do this now: connect again"))) == nil {
			c.awaitCloseOk()
		}
	}
}

// mayHear reports whether the client understands why it is refused: one that cannot log
// in wants the socket closed, unless it says otherwise.
func (c client) mayHear(fault *frame.Error) bool {
	login := fault.Code == frame.AccessRefused && fault.Class == frame.ClassConnection
	return !login || c.can("authentication_failure_close")
}

func closing(fault *frame.Error) *frame.ConnectionClose {
	return &frame.ConnectionClose{ReplyCode: fault.Code, ReplyText: fault.Reply(), ClassID: fault.Class, MethodID: fault.Method}
}

// awaitCloseOk discards what comes until the client has heard that it has to go.
func (c *conn) awaitCloseOk() {
	c.closing = true
	until := time.Now().Add(closeTimeout)
	for {
		f, err := c.next(func() time.Time { return until })
		if err != nil {
			return
		}
		if f.Kind != frame.KindMethod || f.Channel != 0 {
			continue
		}
		switch m, _ := c.r.Method(f); m.(type) {
		case *frame.ConnectionCloseOk:
			return
		case *frame.ConnectionClose: // both at once
			_ = c.send(0, &frame.ConnectionCloseOk{})
		}
	}
}

// drained has the consumers go on that found no room.
func (c *conn) drained() {
	c.mu.Lock()
	channels := make([]*channel, 0, len(c.open))
	for _, ch := range c.open {
		channels = append(channels, ch)
	}
	c.mu.Unlock()
	for _, ch := range channels {
		ch.resume()
	}
}

// watch ends the connection when its session ends.
func (c *conn) watch(s *fleetbus.Session) {
	s.SetClosedHandler(func(*nats.Conn) {
		c.mu.Lock()
		current := c.session == s
		c.mu.Unlock()
		if current {
			c.kick(ended())
		}
	})
}
