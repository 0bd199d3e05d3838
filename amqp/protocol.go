// Package amqp is the protocol AMQP 0-9-1, with RabbitMQ's extensions, on the engine.
//
// A virtual host is an account, and a client is a principal. This package has the
// machine of connections and channels: what is refused, with which code and in which
// words, is as RabbitMQ has it, because clients look at the codes and people at the
// words. Exchanges and queues are behind it.
package amqp

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp/frame"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

// Protocol is the protocol; it implements fleetbus.Protocol. The zero value is ready. It
// is safe for concurrent use; a server needs one of its own.
type Protocol struct {
	// Logger is told what clients did wrong, and what goes wrong. Default: nobody is.
	Logger *slog.Logger
	Options

	vhosts opener
	alarm  alarm
	blocks blocks
	mu     sync.Mutex
	serves int       // listeners
	own    *accounts // that serve them, unless it is nil
	last   uint64    // connection that had a number
}

const (
	// connectTimeout is how long a client may take from its first byte until it has
	// opened its virtual host.
	connectTimeout = 10 * time.Second
	// strangerBytes is how much is read of a client that has not logged in, and
	// strangerEntries how many values its tables have.
	strangerBytes, strangerEntries = 16 << 10, 256
	// loginTimeout bounds a login, which has to wait its turn.
	loginTimeout = 15 * time.Second
	// openTimeout bounds the opening of an account, with all that is durable in it.
	openTimeout = 5 * time.Minute
	// requestTimeout bounds one question to another node.
	requestTimeout = 5 * time.Second
	// writeTimeout is how long a client may take to read something.
	writeTimeout = 30 * time.Second
	// closeTimeout is how long a client may take to answer that it is told to go.
	closeTimeout = 3 * time.Second
	// readBuffer is the size of the buffer of a connection, in bytes, and readBurst that
	// of one whose client sends much.
	readBuffer, readBurst = 2 << 10, 20 << 10
)

func (p *Protocol) log() *slog.Logger {
	if p.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Logger
}

// Serve serves the clients of ln until ctx is done, and tells them then.
func (p *Protocol) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	leave := p.enter(ctx)
	defer leave()
	var clients sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	room := strangers.For(ln, 0)
	var err error
	for {
		var nc net.Conn
		if nc, err = ln.Accept(); err != nil {
			break
		}
		clients.Go(func() { p.serve(ctx, nc, login, room) })
	}
	clients.Wait()
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serving AMQP: %w", err)
}

// enter has there be accounts as long as there is a listener.
func (p *Protocol) enter(ctx context.Context) (leave func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serves++
	if p.serves == 1 && (p.vhosts == nil || p.own != nil) {
		p.own = newAccounts(ctx, p)
		p.vhosts = p.own
	}
	return func() {
		p.mu.Lock()
		p.serves--
		last, own := p.serves == 0, p.own
		p.mu.Unlock()
		if last && own != nil {
			own.close()
		}
	}
}

// number is the number of a connection.
func (p *Protocol) number() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.last++
	return fmt.Sprint(p.last)
}

// serve serves one client.
func (p *Protocol) serve(ctx context.Context, nc net.Conn, login fleetbus.Login, room *strangers.Room) {
	defer nc.Close()
	defer func() { // one client's frame never ends the process
		if what := recover(); what != nil {
			p.log().Error("an AMQP connection failed", "remote", nc.RemoteAddr().String(), "panic", what)
		}
	}()
	c := newConn(ctx, p, nc, login)
	if t, ok := nc.(*tls.Conn); ok {
		s := t.ConnectionState()
		c.tls = &s
	}
	c.guest = room.Enter(c.remote, func() {
		c.kick(frame.ConnectionError(frame.ConnectionForced, "%v: connect again", strangers.ErrTooMany))
	})
	defer c.guest.Leave()
	c.run()
}
