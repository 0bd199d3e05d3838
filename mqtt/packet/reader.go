package packet

import (
	"cmp"
	"io"
)

// DefaultMaximum is the size of the largest packet that a Reader takes unless it is
// told otherwise, in bytes.
const DefaultMaximum = 64 << 10

// A Reader takes packets out of a stream. Its fields may be set between two calls
// of Next. It is not safe for concurrent use.
type Reader struct {
	// Version is what the packets are in. CONNECT sets it, also a CONNECT that is
	// wrong, whose answer is in it; until then it is 0, and any other packet is
	// refused. Who reads a server's packets sets it first.
	Version Version
	// Maximum is the size of the largest packet, in bytes; 0 is DefaultMaximum. A
	// larger one is refused before there is memory for it.
	Maximum int
	// Burst is the size of the buffer while the peer sends more at once than fits the
	// one that NewReader made, in bytes; 0: there is no other.
	Burst int
	// Limits bound what is in a packet.
	Limits Limits

	source     io.Reader
	small      []byte // the buffer of most packets
	buf        []byte // small, or one that a burst or a packet in it has grown
	busy       int    // there is a burst until so many reads brought little
	start, end int    // what is read and not taken
	late       error  // of the source, after what it read with it
	broken     *Error
	c          cursor
	own        struct {
		publish Publish
		ack     Ack
	}
}

// minBuffer is the size of the smallest buffer, in bytes.
const minBuffer = 64

// maxEmpty is how often a source may read nothing without an error.
const maxEmpty = 100

// NewReader makes a Reader of what side from sends through source, with a buffer of
// size bytes. A packet that does not fit in it gets a larger one, for a while, as
// its bytes arrive.
func NewReader(source io.Reader, from Side, size int) *Reader {
	r := &Reader{source: source, small: make([]byte, max(size, minBuffer))}
	r.buf = r.small
	r.c.from = from
	r.c.publish, r.c.ack = &r.own.publish, &r.own.ack
	return r
}

// Next returns the next packet. A *Publish or *Ack is the Reader's and valid until
// the next call; a *Publish has its texts and payload in the buffer. All others are
// the caller's.
//
// An *Error is the peer's, and then the error of every further call. Others are the
// source's as they are: io.EOF between two packets, io.ErrUnexpectedEOF within one.
// After a timeout Next may be called again, and loses nothing.
func (r *Reader) Next() (Packet, error) {
	for r.broken == nil {
		head, size := r.header()
		if r.broken != nil {
			break
		}
		if size == 0 || r.end-r.start < size {
			if err := r.fill(size); err != nil {
				return nil, err
			}
			continue
		}
		body := r.buf[r.start+head : r.start+size]
		r.start += size
		p, err := r.c.decode(body)
		r.Version = r.c.version
		if err != nil {
			r.broken = r.c.err
			break
		}
		return p, nil
	}
	return nil, r.broken
}

// Buffered is how many bytes of the stream are in the buffer if a whole packet is
// among them, so that Next returns without reading. 0: Next may wait for the peer,
// who may be waiting for an answer.
func (r *Reader) Buffered() int {
	waiting := r.buf[r.start:r.end]
	if len(waiting) < 2 {
		return 0
	}
	remaining, size := variable(waiting[1:])
	if size == 0 || size > 0 && 1+size+int(remaining) > len(waiting) {
		return 0
	}
	return len(waiting)
}

// header judges the fixed header that is in the buffer, as far as it is there. head
// is its size and size that of the packet, 0 if it is not known yet.
func (r *Reader) header() (head, size int) {
	if r.start == r.end {
		return 0, 0
	}
	c := &r.c
	c.version, c.limits = r.Version, r.Limits
	c.begin(r.buf[r.start])
	remaining, n := variable(r.buf[r.start+1 : r.end])
	if n < 0 {
		c.badVariable("remaining length", n)
	}
	head, size = 1+n, 1+n+int(remaining)
	if limit := cmp.Or(r.Maximum, DefaultMaximum); n > 0 && size > limit {
		clause := "[MQTT-3.2.2-15]"
		if c.from == Server {
			clause = "[MQTT-3.1.2-24]"
		}
		c.fail(PacketTooLarge, clause, "of %d bytes, where %d are the maximum", size, limit)
	}
	r.broken = c.err
	if n == 0 {
		return 0, 0
	}
	return head, size
}

// fill reads once, behind what is there, for a packet of size bytes; 0 is any size.
func (r *Reader) fill(size int) error {
	have := r.end - r.start
	if r.late != nil {
		err := r.late
		r.late = nil
		return ended(err, have)
	}
	if have == 0 || r.start > 0 && (r.busy > 0 || r.start+size > len(r.buf) || r.end == len(r.buf)) {
		to := r.buf
		switch {
		case r.busy > 0 && have <= r.Burst && (len(r.buf) < r.Burst || len(r.buf) > r.Burst && size <= r.Burst):
			to = make([]byte, r.Burst)
		case r.busy == 0 && have <= len(r.small) && size <= len(r.small):
			to = r.small
			if len(r.buf) > len(to) {
				r.forget()
			}
		}
		copy(to, r.buf[r.start:r.end])
		r.buf, r.start, r.end = to, 0, have
	}
	if r.end == len(r.buf) {
		grown := make([]byte, min(2*len(r.buf), size))
		copy(grown, r.buf[:r.end])
		r.buf = grown
	}
	for range maxEmpty {
		room := len(r.buf) - r.end
		n, err := r.source.Read(r.buf[r.end:])
		r.end += n
		switch {
		case n > 0:
			r.late = err
			r.weigh(n, room)
			return nil
		case err != nil:
			return ended(err, have)
		}
	}
	return io.ErrNoProgress
}

// weigh judges by what a read brought whether there is a burst: not by the rest of a
// packet that the buffer was grown for.
func (r *Reader) weigh(n, room int) {
	const patience = 2
	switch {
	case r.Burst == 0:
	case n == room && room >= len(r.small) || r.busy > 0 && n >= r.Burst/4:
		r.busy = patience
	case r.busy > 0:
		r.busy--
	}
}

// forget drops what the last packet has of a grown buffer, so that a connection which
// is idle after a large packet does not hold it.
func (r *Reader) forget() {
	r.own.publish = Publish{}
	clear(r.c.lent[:cap(r.c.lent)])
}

// ended is err of the source when have bytes of a packet are there.
func ended(err error, have int) error {
	if err == io.EOF && have > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}
