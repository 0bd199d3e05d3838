package mqtt

import (
	"context"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"

	"github.com/fleetbus/fleetbus"
)

// webPath is where MQTT over WebSocket is, on the same port.
const webPath = "/mqtt"

// open serves a connection that begins with CONNECT, or with the request of a
// WebSocket, which no CONNECT looks like.
func (p *Protocol) open(ctx context.Context, conn net.Conn, login fleetbus.Login) {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Now()) })
	first := make([]byte, 1)
	if conn.SetReadDeadline(time.Now().Add(connectTimeout)) != nil {
		return
	}
	_, err := io.ReadFull(conn, first)
	stop()
	if err != nil || ctx.Err() != nil {
		return
	}
	var state *tls.ConnectionState
	if t, ok := conn.(*tls.Conn); ok {
		s := t.ConnectionState()
		state = &s
	}
	conn = &begun{Conn: conn, first: first}
	if first[0] == 'G' {
		p.upgrade(ctx, conn, state, login)
		return
	}
	p.serve(ctx, conn, state, login)
}

// begun is a connection of which the first byte has been read.
type begun struct {
	net.Conn
	first []byte
}

// NetConn is what it is on.
func (b *begun) NetConn() net.Conn { return b.Conn }

func (b *begun) Read(into []byte) (int, error) {
	if len(b.first) > 0 && len(into) > 0 {
		n := copy(into, b.first)
		b.first = b.first[n:]
		return n, nil
	}
	return b.Conn.Read(into)
}

// upgrade serves what speaks HTTP. [MQTT-6.0.0-1]
func (p *Protocol) upgrade(ctx context.Context, conn net.Conn, state *tls.ConnectionState, login fleetbus.Login) {
	one := &lone{conn: conn, done: make(chan struct{})}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+webPath, func(w http.ResponseWriter, r *http.Request) {
		// Pages of other sites are refused by their origin.
		c, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"mqtt"}}) // [MQTT-6.0.0-4]
		if err != nil {
			p.log().Info("MQTT client refused", "remote", conn.RemoteAddr().String(), "error", err)
			return // the server ends it, with its answer
		}
		defer one.end()
		c.SetReadLimit(-1)                                                                                                   // a frame may have many packets, and is not held
		p.serve(ctx, &framed{websocket.NetConn(context.WithoutCancel(ctx), c, websocket.MessageBinary), conn}, state, login) // [MQTT-6.0.0-2]
	})
	srv := &http.Server{
		Handler: mux, ReadHeaderTimeout: connectTimeout, ReadTimeout: connectTimeout, WriteTimeout: connectTimeout, MaxHeaderBytes: 16 << 10,
		ErrorLog: log.New(io.Discard, "", 0),
		ConnState: func(_ net.Conn, now http.ConnState) {
			if now == http.StateClosed {
				one.end()
			}
		},
	}
	srv.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { _ = srv.Close() })
	defer stop()
	_ = srv.Serve(one)
	_ = srv.Close()
}

// framed is a WebSocket as a connection, with the addresses of what it is on.
type framed struct {
	net.Conn
	under net.Conn
}

// NetConn is what it is on.
func (f *framed) NetConn() net.Conn { return f.under }

func (f *framed) RemoteAddr() net.Addr { return f.under.RemoteAddr() }
func (f *framed) LocalAddr() net.Addr  { return f.under.LocalAddr() }

// lone is a listener that accepts one connection, and then nothing until it ends.
type lone struct {
	mu   sync.Mutex
	conn net.Conn
	done chan struct{}
	over bool
}

func (l *lone) Accept() (net.Conn, error) {
	l.mu.Lock()
	conn := l.conn
	l.conn = nil
	l.mu.Unlock()
	if conn != nil {
		return conn, nil
	}
	<-l.done
	return nil, net.ErrClosed
}

func (l *lone) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.over {
		l.over = true
		close(l.done)
	}
}

// Close and Addr are those of a net.Listener.
func (l *lone) Close() error   { l.end(); return nil }
func (l *lone) Addr() net.Addr { return &net.TCPAddr{} }
