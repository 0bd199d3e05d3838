package broker

import (
	"bytes"
	"net"
	"sync/atomic"

	"github.com/nats-io/nats-server/v2/server"
)

// inside makes connections within the process.
type inside struct{ srv *server.Server }

func (i inside) InProcessConn() (net.Conn, error) {
	conn, err := i.srv.InProcessConn()
	if err != nil {
		return nil, err
	}
	return &pipe{Conn: conn}, nil
}

// A pipe is the client's end of a connection within the process. It has no
// buffer: an engine that refuses a client says why, and reads no further, while
// the client is still writing. So what the client writes until it has its first
// answer waits for nobody.
type pipe struct {
	net.Conn
	answered atomic.Bool
	// greeting is done when all that was written before is; err says why not.
	greeting atomic.Pointer[greeting]
}

type greeting struct {
	done chan struct{}
	err  error
}

func (p *pipe) Read(data []byte) (int, error) {
	n, err := p.Conn.Read(data)
	if p.greeting.Load() != nil {
		p.answered.Store(true)
	}
	return n, err
}

func (p *pipe) Write(data []byte) (int, error) {
	before := p.greeting.Load()
	if p.answered.Load() {
		if err := before.wait(); err != nil {
			return 0, err
		}
		return p.Conn.Write(data)
	}
	next := &greeting{done: make(chan struct{})}
	p.greeting.Store(next)
	data = bytes.Clone(data)
	go func() {
		defer close(next.done)
		if next.err = before.wait(); next.err == nil {
			_, next.err = p.Conn.Write(data)
		}
	}()
	return len(data), nil
}

func (g *greeting) wait() error {
	if g == nil {
		return nil
	}
	<-g.done
	return g.err
}
