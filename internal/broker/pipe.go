package broker

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"
	"unsafe"

	"github.com/nats-io/nats-server/v2/server"
)

// inside makes connections within the process. It is safe for concurrent use.
type inside struct {
	srv     *server.Server
	buffers sync.Pool // of *pipeBuffer
	heard   sync.Map  // of *flow: what the engine reads, unless pause keeps it away
}

// pipeSize is how much is under way each way of a connection, in bytes.
const pipeSize = 64 << 10

type pipeBuffer [pipeSize]byte

// errNotRunning says that there is nobody to connect to.
var errNotRunning = errors.New("the engine is not running")

// InProcessConn is what the client library calls. The engine's own hands its end of an
// unbuffered pipe from one goroutine to the other for every 512 bytes: a message waits
// several times for a processor, and an engine that refuses a client waits for it to
// have read why.
func (i *inside) InProcessConn() (net.Conn, error) {
	if !i.srv.Running() {
		return nil, errNotRunning
	}
	a, b := newPipe(&i.buffers)
	i.heard.Store(b.in, nil)
	a.forget = func() { i.heard.Delete(b.in) }
	go createClient(i.srv, b) // it may wait for what the client says first
	return a, nil
}

// urgent makes connections that do not pause.
type urgent struct{ *inside }

func (i urgent) InProcessConn() (net.Conn, error) {
	conn, err := i.inside.InProcessConn()
	if err == nil {
		conn.(*pipe).forget()
	}
	return conn, err
}

// pause keeps what clients within the process say from the engine, until it is called
// with false. What the engine has heard before a first call has happened before a
// second one, if it was done with it.
func (i *inside) pause(pause bool) {
	i.heard.Range(func(key, _ any) bool {
		f := key.(*flow)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.paused = pause && !f.ended
		f.tell()
		return true
	})
}

// newPipe makes the two ends of a connection.
func newPipe(buffers *sync.Pool) (a, b *pipe) {
	there, back := newFlow(buffers), newFlow(buffers)
	return &pipe{in: back, out: there}, &pipe{in: there, out: back}
}

// A pipe is one end of a connection within the process. It has a buffer each way, as a
// socket has, while there is something in it.
type pipe struct {
	in, out *flow
	forget  func() // has pause leave this one alone, if it is not nil
}

func (p *pipe) Read(b []byte) (int, error)  { return p.in.read(b) }
func (p *pipe) Write(b []byte) (int, error) { return p.out.write(b) }

// Close lets the other end read what is there.
func (p *pipe) Close() error {
	p.in.abandon()
	p.out.finish()
	if p.forget != nil {
		p.forget()
	}
	return nil
}

// SetReadDeadline and SetWriteDeadline bound the waiting: what can be done at once is
// done.
func (p *pipe) SetReadDeadline(t time.Time) error  { return p.in.set(&p.in.readBy, t) }
func (p *pipe) SetWriteDeadline(t time.Time) error { return p.out.set(&p.out.writeBy, t) }

func (p *pipe) SetDeadline(t time.Time) error {
	return errors.Join(p.SetReadDeadline(t), p.SetWriteDeadline(t))
}

func (*pipe) LocalAddr() net.Addr  { return pipeAddr{} }
func (*pipe) RemoteAddr() net.Addr { return pipeAddr{} }

// pipeAddr is the address of both ends, as the engine knows it of its own.
type pipeAddr struct{}

func (pipeAddr) Network() string { return "pipe" }
func (pipeAddr) String() string  { return "pipe" }

// A flow is one way of a connection.
type flow struct {
	buffers *sync.Pool

	mu              sync.Mutex
	changed         sync.Cond
	buffer          *pipeBuffer // nil if there is nothing in it
	start, end      int
	ended           bool      // who writes has closed
	abandoned       bool      // who reads has
	paused          bool      // who reads has to wait
	readBy, writeBy time.Time // zero: there is time
	waiting         int       // of the two
}

func newFlow(buffers *sync.Pool) *flow {
	f := &flow{buffers: buffers}
	f.changed.L = &f.mu
	return f
}

func (f *flow) read(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.abandoned:
			return 0, io.ErrClosedPipe
		case f.paused:
		case f.start < f.end:
			n := copy(b, f.buffer[f.start:f.end])
			if f.start += n; f.start == f.end {
				f.buffers.Put(f.buffer)
				f.buffer, f.start, f.end = nil, 0, 0
			}
			f.tell()
			return n, nil
		case f.ended:
			return 0, io.EOF
		case len(b) == 0:
			return 0, nil
		}
		if !f.wait(&f.readBy) {
			return 0, os.ErrDeadlineExceeded
		}
	}
}

func (f *flow) write(b []byte) (n int, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for {
		switch {
		case f.ended || f.abandoned:
			return n, io.ErrClosedPipe
		case len(b) == 0:
			return n, nil
		case f.buffer == nil:
			f.buffer, _ = f.buffers.Get().(*pipeBuffer)
			if f.buffer == nil {
				f.buffer = new(pipeBuffer)
			}
		case f.end == pipeSize && f.start > 0:
			f.end = copy(f.buffer[:], f.buffer[f.start:f.end])
			f.start = 0
		}
		if copied := copy(f.buffer[f.end:], b); copied > 0 {
			f.end, n, b = f.end+copied, n+copied, b[copied:]
			f.tell()
			continue
		}
		if !f.wait(&f.writeBy) {
			return n, os.ErrDeadlineExceeded
		}
	}
}

// finish has the flow end after what is there.
func (f *flow) finish() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ended, f.paused = true, false
	f.tell()
}

// abandon has nobody read any more.
func (f *flow) abandon() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.abandoned = true
	if f.buffer != nil {
		f.buffers.Put(f.buffer)
		f.buffer, f.start, f.end = nil, 0, 0
	}
	f.tell()
}

// wait waits for a change, and reports whether there was time to; mu is held.
func (f *flow) wait(until *time.Time) bool {
	if !until.IsZero() {
		left := time.Until(*until)
		if left <= 0 {
			return false
		}
		timer := time.AfterFunc(left, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.tell()
		})
		defer timer.Stop()
	}
	f.waiting++
	f.changed.Wait()
	f.waiting--
	return true
}

// tell tells who waits of a change; mu is held.
func (f *flow) tell() {
	if f.waiting > 0 {
		f.changed.Broadcast()
	}
}

// set changes one of the deadlines.
func (f *flow) set(until *time.Time, to time.Time) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	*until = to
	f.tell()
	return nil
}

// createClient is how the engine takes a connection within the process. Without it, or
// with another signature, this package does not link, or its tests fail.
//
//go:linkname createClient github.com/nats-io/nats-server/v2/server.(*Server).createClientInProcess
func createClient(*server.Server, net.Conn) unsafe.Pointer
