// Package wire speaks the engine's own protocol on a connection within the process that
// the client library has too, where a message must cost next to nothing: what is
// published goes out as it was put together, any number of messages at once, and what
// is heard is taken as it came, without memory of its own for each message. Everything
// else, from the greeting to the end, is the library's.
package wire

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// A Conn is a connection within the process. Make it with New, or NewListener if it is
// to hear, and connect with its Option, once. It is safe for concurrent use, but Receive
// is for one goroutine.
type Conn struct {
	net.Conn
	inbox *inbox // nil: it hears nothing

	writing sync.Mutex
	last    uint64 // subscription; writing is held
}

// New makes a Conn that publishes.
func New() *Conn { return &Conn{} }

// NewListener makes a Conn that publishes and hears. What waits for Receive has most
// bytes or so; what is more is dropped.
func NewListener(most int) *Conn { return &Conn{inbox: newInbox(most)} }

// errOutside says that a connection is not within the process.
var errOutside = errors.New("the connection is not within the process")

// Option makes the library connect over c. It comes after what says where the engine is.
func (c *Conn) Option() nats.Option {
	return func(o *nats.Options) error {
		if o.InProcessServer == nil {
			return errOutside
		}
		o.InProcessServer = provider{c, o.InProcessServer}
		return nil
	}
}

type provider struct {
	conn  *Conn
	inner nats.InProcessConnProvider
}

// InProcessConn is the library's.
func (p provider) InProcessConn() (net.Conn, error) {
	inner, err := p.inner.InProcessConn()
	if err != nil {
		return nil, err
	}
	p.conn.Conn = inner
	return p.conn, nil
}

// Read is the library's. It is given what is not for the Conn's own subscriptions.
func (c *Conn) Read(p []byte) (int, error) {
	if c.inbox == nil {
		return c.Conn.Read(p)
	}
	return c.inbox.read(c.Conn, p)
}

// Write is the library's, which writes whole operations.
func (c *Conn) Write(p []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.Conn.Write(p)
}

// Close ends the connection; it is the library's too.
func (c *Conn) Close() error {
	if c.inbox != nil {
		c.inbox.close()
	}
	return c.Conn.Close()
}

// writeTimeout is how long the engine may take to read something; it is the library's.
const writeTimeout = time.Minute

// Send publishes what AppendPublish put together. The library's own publications are
// before it or after it. After an error the connection is closed.
func (c *Conn) Send(publications []byte) error {
	c.writing.Lock()
	defer c.writing.Unlock()
	return c.send(publications)
}

// send is Send with writing held.
func (c *Conn) send(b []byte) error {
	if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return fmt.Errorf("writing to the engine: %w", err)
	}
	if _, err := c.Conn.Write(b); err != nil {
		_ = c.Close() // a part of it may be there
		return fmt.Errorf("writing to the engine: %w", err)
	}
	return nil
}

// Subscribe has the Conn hear a subject, in a queue group unless group is empty. The
// engine knows of it after a Flush of the library's connection. It is for a Conn of
// NewListener.
func (c *Conn) Subscribe(subject, group string) (id uint64, err error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	c.last++
	b := append(append([]byte("SUB "), subject...), ' ')
	if group != "" {
		b = append(append(b, group...), ' ')
	}
	return c.last, c.send(append(strconv.AppendUint(append(b, own), c.last, 10), "\r\n"...))
}

// Unsubscribe undoes Subscribe. What is on its way comes yet.
func (c *Conn) Unsubscribe(id uint64) error {
	return c.Send(append(strconv.AppendUint([]byte{'U', 'N', 'S', 'U', 'B', ' ', own}, id, 10), "\r\n"...))
}

// Receive waits for messages and returns some that there are, for Next, and how many
// were dropped. They are valid until the next call. ok is false when the connection is
// closed and there are no more.
func (c *Conn) Receive() (messages []byte, dropped int, ok bool) { return c.inbox.take() }
