package fleetbus

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/time/rate"
)

// admission is what stands before a listener: closed until the node has caught
// up, and then so many handshakes a second.
type admission struct {
	open atomic.Bool
	rate *rate.Limiter
}

func newAdmission(perSecond int) *admission {
	return &admission{rate: rate.NewLimiter(rate.Limit(perSecond), perSecond)}
}

var errTooMany = errors.New("too many handshakes")

// admit says why a handshake may not go on, or nil.
func (a *admission) admit() error {
	if !a.open.Load() {
		return errStarting
	}
	if !a.rate.Allow() {
		return errTooMany
	}
	return nil
}

// listener hands a Protocol connections whose TLS handshake is done. A stranger
// who is silent, slow or has no place here costs one of a bounded number of
// handshakes, for a bounded time.
type listener struct {
	net.Listener
	name    string
	config  *tls.Config
	timeout time.Duration
	// refused is told of each stranger, with its address.
	refused func(listener, remote string, err error)
	log     *slog.Logger
	// advertised is the host:port that clients are told; empty: there is none.
	advertised string
	ready      chan net.Conn
	busy       chan struct{}
	ctx        context.Context
	stop       context.CancelFunc
	running    sync.WaitGroup
}

// acceptPause is how long a listener rests when it could not accept: most likely
// the process has no file descriptor left, and strangers must not be able to end
// the server by taking them all.
const acceptPause = 100 * time.Millisecond

// listen opens a listener and starts to accept. config is nil for plain text.
func listen(ctx context.Context, l Listener, config *tls.Config, limits Limits, refused func(listener, remote string, err error), log *slog.Logger) (*listener, error) {
	inner, err := net.Listen("tcp", l.Addr)
	if err != nil {
		return nil, fmt.Errorf("opening listener %q: %w", l.Name, err)
	}
	w := &listener{
		Listener: inner, name: l.Name, config: config, timeout: limits.HandshakeTimeout, refused: refused, log: log,
		ready: make(chan net.Conn), busy: make(chan struct{}, limits.Handshakes),
	}
	w.ctx, w.stop = context.WithCancel(ctx)
	w.running.Go(w.accept)
	return w, nil
}

// accept takes connections until the listener is closed. It waits for a place
// before it takes the next one, so that the rest stay in the kernel's queue.
func (w *listener) accept() {
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
			w.log.Warn("connection not accepted", "listener", w.name, "error", err)
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
				w.log.Info("stranger refused", "listener", w.name, "remote", conn.RemoteAddr().String(), "error", err)
				w.refused(w.name, conn.RemoteAddr().String(), err)
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

func (w *listener) shake(conn net.Conn) (net.Conn, error) {
	if w.config == nil {
		return conn, nil
	}
	ctx, cancel := context.WithTimeout(w.ctx, w.timeout)
	defer cancel()
	t := tls.Server(conn, w.config)
	return t, t.HandshakeContext(ctx)
}

// Accept returns the next connection whose handshake is done.
func (w *listener) Accept() (net.Conn, error) {
	select {
	case conn := <-w.ready:
		return conn, nil
	case <-w.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Advertised is the host:port at which clients reach the listener.
func (w *listener) Advertised() string { return w.advertised }

// Close stops accepting and waits until no handshake is under way.
func (w *listener) Close() error {
	w.stop()
	err := w.Listener.Close()
	w.running.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
