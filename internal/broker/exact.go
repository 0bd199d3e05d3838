package broker

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
)

// ConnectExact is Connect for who believes infoHeader, by which the engine says who
// sent a message. The engine passes a client's header on and adds to it. It finds
// what it has to take away by lines that end in CR LF, and not always; a client
// library also takes an LF for the end of a line, and an empty line for the end of
// the header. So a client could show one of its own to the library. On this
// connection there is one infoHeader, the engine's.
func (b *Broker) ConnectExact(opts ...nats.Option) (*nats.Conn, error) {
	return nats.Connect("", append([]nats.Option{nats.InProcessServer(exactInside{b.inside})}, opts...)...)
}

type exactInside struct{ *inside }

func (i exactInside) InProcessConn() (net.Conn, error) {
	conn, err := i.inside.InProcessConn()
	if err != nil {
		return nil, err
	}
	return &exact{Conn: conn, in: bufio.NewReaderSize(conn, 64<<10)}, nil
}

const (
	// infoHeader is the engine's word on who sent a message.
	infoHeader = server.ClientInfoHdr
	// maxLine bounds a line of the engine's protocol; its INFO is the longest.
	maxLine = 1 << 20
	// maxMessage bounds a message; the engine's own bound is not above it.
	maxMessage = 64 << 20
)

// exact is the client's end of a connection within the process, on which headers
// are made plain.
type exact struct {
	net.Conn
	in *bufio.Reader
	// ready is what was read of the engine and is to be handed on; pass counts the
	// bytes after it that are handed on as they are.
	ready []byte
	pass  int
}

func (e *exact) Read(data []byte) (int, error) {
	for len(e.ready) == 0 && e.pass == 0 {
		if err := e.next(); err != nil {
			return 0, err
		}
	}
	if len(e.ready) > 0 {
		n := copy(data, e.ready)
		e.ready = e.ready[n:]
		return n, nil
	}
	n, err := e.in.Read(data[:min(len(data), e.pass)])
	e.pass -= n
	return n, err
}

// next reads a line of the protocol, and the header that follows.
func (e *exact) next() error {
	var line []byte
	for {
		part, err := e.in.ReadSlice('\n')
		line = append(line, part...)
		if err == nil {
			break
		}
		if err != bufio.ErrBufferFull || len(line) > maxLine {
			return err
		}
	}
	e.ready = line
	args := bytes.Fields(line)
	size := func(fromEnd int) (int, error) {
		if len(args) < 4 {
			return 0, fmt.Errorf("reading the engine's protocol: %q is short", args[0])
		}
		n, err := strconv.Atoi(string(args[len(args)-fromEnd]))
		if err != nil || n < 0 || n > maxMessage {
			return 0, fmt.Errorf("reading the engine's protocol: %q has a size that is none", args[0])
		}
		return n, nil
	}
	switch {
	case len(args) == 0:
		return nil
	case bytes.EqualFold(args[0], []byte("MSG")):
		n, err := size(1)
		e.pass = n + len("\r\n")
		return err
	case bytes.EqualFold(args[0], []byte("HMSG")):
		header, err1 := size(2)
		total, err2 := size(1)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if header > total {
			return fmt.Errorf("reading the engine's protocol: a header of %d in %d bytes", header, total)
		}
		start := len(e.ready)
		e.ready = append(e.ready, make([]byte, header)...)
		if _, err := io.ReadFull(e.in, e.ready[start:]); err != nil {
			return err
		}
		plain(e.ready[start:])
		e.pass = total - header + len("\r\n")
	}
	return nil
}

// plain makes sure, without changing the length, that a reader of header finds one
// infoHeader at most, which is the last: nothing but CR LF ends a line, and nothing
// but the end the header.
func plain(header []byte) {
	end := bytes.TrimSuffix(header, []byte("\r\n\r\n"))
	last := byte('\n') // before the first line
	for i := 0; i < len(end); i++ {
		switch {
		case end[i] == '\r' && i+1 < len(end) && end[i+1] == '\n' && last != '\n':
			i++ // the end of a line that is not empty
		case end[i] == '\r' || end[i] == '\n':
			end[i] = ' '
		}
		last = end[i]
	}
	at := bytes.LastIndex(header, []byte(infoHeader+": "))
	if at < len("\r\n") {
		return
	}
	for i := bytes.Index(header[:at], []byte(infoHeader)); i >= 0; i = bytes.Index(header[:at], []byte(infoHeader)) {
		header[i] = '-'
	}
	// What a client did not end would go on there.
	copy(header[at-len("\r\n"):], "\r\n")
}
