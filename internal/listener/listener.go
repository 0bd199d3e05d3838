// Package listener accepts connections and does their TLS handshakes: a stranger who
// is silent, slow or has no place here costs one of a bounded number of handshakes,
// for a bounded time.
package listener

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"
)

// Options are the settings of a Listener. All but TLS are required.
type Options struct {
	// Name of the listener, in the log.
	Name string
	// Addr is host:port, port 0 any free one.
	Addr string
	// TLS of its connections; nil is plain text.
	TLS *tls.Config
	// Handshakes bounds those under way, and Timeout each.
	Handshakes int
	Timeout    time.Duration
	// Rate is how many of them there may be in a second, which protocols are told.
	Rate int
	// Refused is told of each stranger, with its address.
	Refused func(listener, remote string, err error)
	Logger  *slog.Logger
}

// A Listener hands a protocol connections whose TLS handshake is done. Make it with
// Listen. It is safe for concurrent use.
type Listener struct {
	net.Listener
	opts       Options
	advertised string
	ready      chan net.Conn
	busy       chan struct{}
	ctx        context.Context
	stop       context.CancelFunc
	running    sync.WaitGroup
}

// handshakeBytes is how much is read of a client until its handshake is done. A hello has
// two thousand, and a chain of four certificates eight. The library takes 64 KiB of the one
// and 256 KiB of the other before it looks at them, and holds more than that meanwhile.
const handshakeBytes = 16 << 10

// errTalkative is why a handshake ends that is longer.
var errTalkative = fmt.Errorf("more than %d bytes before the handshake is done", handshakeBytes)

// metered is a connection of which so many bytes are read, until it is told that it is
// known. Both are done by who does the handshake, and by whoever has the connection then.
type metered struct {
	net.Conn
	left  int
	known bool
}

func (m *metered) Read(b []byte) (int, error) {
	if m.known {
		return m.Conn.Read(b)
	}
	if m.left == 0 && len(b) > 0 {
		return 0, errTalkative
	}
	n, err := m.Conn.Read(b[:min(len(b), m.left)])
	m.left -= n
	return n, err
}

// NetConn is what it is on.
func (m *metered) NetConn() net.Conn { return m.Conn }

// acceptPause is how long a listener rests when it could not accept: most likely
// the process has no file descriptor left, and strangers must not be able to end
// the server by taking them all.
const acceptPause = 100 * time.Millisecond

// Listen opens a listener and starts to accept, until it is closed or ctx is done.
func Listen(ctx context.Context, o Options) (*Listener, error) {
	inner, err := net.Listen("tcp", o.Addr)
	if err != nil {
		return nil, fmt.Errorf("opening listener %q: %w", o.Name, err)
	}
	w := &Listener{Listener: inner, opts: o, ready: make(chan net.Conn), busy: make(chan struct{}, o.Handshakes)}
	w.ctx, w.stop = context.WithCancel(ctx)
	w.running.Go(w.accept)
	return w, nil
}

// accept takes connections until the listener is closed. It waits for a place
// before it takes the next one, so that the rest stay in the kernel's queue.
func (w *Listener) accept() {
	defer w.stop()
	for {
		select {
		case w.busy <- struct{}{}:
		case <-w.ctx.Done():
			return
		}
		conn, err := w.Listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			<-w.busy
			w.opts.Logger.Warn("connection not accepted", "listener", w.opts.Name, "error", err)
			select {
			case <-time.After(acceptPause):
			case <-w.ctx.Done():
			}
			continue
		}
		w.running.Go(func() {
			shaken, err := w.shake(conn)
			<-w.busy
			if err != nil {
				err = clip(err)
				w.opts.Logger.Info("stranger refused", "listener", w.opts.Name, "remote", conn.RemoteAddr().String(), "error", err)
				w.opts.Refused(w.opts.Name, conn.RemoteAddr().String(), err)
				conn.Close()
				return
			}
			select {
			case w.ready <- shaken:
			case <-w.ctx.Done():
				conn.Close()
			}
		})
	}
}

// longest is how much of an error is told of, in bytes: the stranger's certificate may be in
// it, with a name as long as the stranger likes.
const longest = 1000

func clip(err error) error {
	if text := err.Error(); len(text) > longest {
		return errors.New(text[:longest] + " …")
	}
	return err
}

func (w *Listener) shake(conn net.Conn) (net.Conn, error) {
	if w.opts.TLS == nil {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(w.ctx, w.opts.Timeout)
	defer cancel()
	m := &metered{Conn: conn, left: handshakeBytes}
	t := tls.Server(m, w.opts.TLS)
	err := t.HandshakeContext(ctx)
	m.known = true
	return t, err
}

// Accept returns the next connection whose handshake is done.
func (w *Listener) Accept() (net.Conn, error) {
	select {
	case conn := <-w.ready:
		return conn, nil
	case <-w.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Advertise sets what Advertised returns, before the listener is handed to a protocol.
func (w *Listener) Advertise(addr string) { w.advertised = addr }

// Advertised is the host:port at which clients reach the listener; empty: nobody said.
func (w *Listener) Advertised() string { return w.advertised }

// Rate is how many connections there may be in a second.
func (w *Listener) Rate() int { return w.opts.Rate }

// Crowded tells the operator that the protocol ended connections on which nobody was known,
// since there were too many.
func (w *Listener) Crowded(count int, err error) {
	w.opts.Logger.Warn("connections of strangers ended, who are to come again", "listener", w.opts.Name, "count", count, "error", err)
}

// Close stops accepting and waits until no handshake is under way.
func (w *Listener) Close() error {
	w.stop()
	err := w.Listener.Close()
	w.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
