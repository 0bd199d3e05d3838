// Package mqtt is the protocol MQTT, in its versions 5.0 and 3.1.1, on the engine.
//
// A topic is a subject, and a client is a principal: it may publish and subscribe
// what its permissions say, over MQTT as over NATS. Messages of QoS 0 are messages
// of the engine and nothing else. Those of QoS 1 and 2 are stored in a stream of
// the account before they are acknowledged, and every node hands them from there
// to the clients that are connected to it. What a session is when its client is
// away is one small record in another stream, which is written only over the
// record that was read: a client goes on at any node, and two nodes cannot both
// have it.
package mqtt

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

// Protocol is the protocol; it implements fleetbus.Protocol. The zero value is
// ready. It is safe for concurrent use; a server needs one of its own.
type Protocol struct {
	// Logger is told what clients of 3.1.1 cannot be told, and what goes wrong.
	// Default: nobody is.
	Logger *slog.Logger
	Options

	once     sync.Once
	dropped  atomic.Uint64
	buffers  buffers
	name     string
	addr     atomic.Pointer[string] // at which clients reach this node; nil: they are not told
	mu       sync.Mutex
	accounts map[string]*opening
}

// opening is an account that is open, or being opened.
type opening struct {
	done chan struct{}
	*account
	err error
}

const (
	// connectTimeout bounds the wait for CONNECT, connectMax its size in bytes: nobody knows
	// yet who sends it, and the buffer for it is a stranger's.
	connectTimeout, connectMax = 10 * time.Second, 16 << 10
	// writeTimeout is how long a client may take to read something.
	writeTimeout = 30 * time.Second
	// readBuffer is the size of the buffer of a connection, in bytes, and readBurst that
	// of one whose client sends much: what TLS encrypts at once, and then some.
	readBuffer, readBurst = 2 << 10, 20 << 10
)

// advertised is at which address clients reach this node; empty: they are not told.
func (p *Protocol) advertised() string {
	if addr := p.addr.Load(); addr != nil {
		return *addr
	}
	return ""
}

func (p *Protocol) log() *slog.Logger {
	if p.Logger == nil {
		return slog.New(slog.DiscardHandler)
	}
	return p.Logger
}

// run names this run of this node.
func (p *Protocol) run() string {
	p.once.Do(func() { p.name = rand.Text() })
	return p.name
}

// account returns the account of s, which is opened when its first client comes.
func (p *Protocol) account(ctx context.Context, s *fleetbus.Session) (*account, error) {
	name := s.Principal.Account
	p.mu.Lock()
	o := p.accounts[name]
	first := o == nil
	if !first {
		select {
		case <-o.done:
			first = o.err != nil || o.ctx.Err() != nil
		default:
		}
	}
	if first {
		if p.accounts == nil {
			p.accounts = map[string]*opening{}
		}
		o = &opening{done: make(chan struct{})}
		p.accounts[name] = o
	}
	p.mu.Unlock()
	if first {
		o.account, o.err = openAccount(ctx, p, s)
		close(o.done)
	}
	select {
	case <-o.done:
		return o.account, o.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Serve serves the clients of ln, which is of TLS on TCP, until ctx is done, and
// tells them then. [MQTT-4.2-1] [MQTT311-7.0.0-2]
func (p *Protocol) Serve(ctx context.Context, ln net.Listener, login fleetbus.Login) error {
	if l, ok := ln.(interface{ Advertised() string }); ok {
		addr := l.Advertised()
		p.addr.Store(&addr)
	}
	var clients sync.WaitGroup
	stop := context.AfterFunc(ctx, func() { _ = ln.Close() })
	defer stop()
	room := strangers.For(ln, 0)
	var err error
	for {
		var conn net.Conn
		if conn, err = ln.Accept(); err != nil {
			break
		}
		clients.Go(func() { p.enter(ctx, conn, login, room) })
	}
	clients.Wait()
	p.mu.Lock()
	accounts := p.accounts
	p.accounts = nil
	p.mu.Unlock()
	for _, o := range accounts {
		<-o.done
		if o.account != nil {
			o.account.close()
		}
	}
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return fmt.Errorf("serving MQTT: %w", err)
}

// enter serves a connection, on which nobody is known until somebody logs in.
func (p *Protocol) enter(ctx context.Context, conn net.Conn, login fleetbus.Login, room *strangers.Room) {
	ctx, end := context.WithCancel(ctx)
	defer end()
	guest := room.Enter(conn.RemoteAddr().String(), end)
	defer guest.Leave()
	p.open(ctx, conn, func(ctx context.Context, c identity.Credentials) (*fleetbus.Session, error) {
		s, err := login(ctx, c)
		if err == nil {
			guest.Leave()
		}
		return s, err
	})
}
