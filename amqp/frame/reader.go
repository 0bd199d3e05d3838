package frame

import (
	"cmp"
	"encoding/binary"
	"io"
)

// DefaultMaximum is the size of the largest frame that a Reader takes unless it is told
// otherwise, in bytes. RabbitMQ proposes it.
const DefaultMaximum = 128 << 10

// A Reader takes frames out of a stream. Its fields may be set between two calls. It is
// not safe for concurrent use.
type Reader struct {
	// Maximum is the size of the largest frame, in bytes; 0 is DefaultMaximum. A larger
	// one is refused before there is memory for it.
	Maximum int
	// Entries is how many values a table in a method may have; 0 is MaxEntries.
	Entries int
	// Burst is the size of the buffer while the peer sends more at once than fits the
	// one that NewReader made, in bytes; 0: there is no other.
	Burst int

	source     io.Reader
	small      []byte // the buffer of most frames
	buf        []byte // small, or one that a burst or a frame has grown
	busy       int    // there is a burst until so many reads brought little
	start, end int    // what is read and not taken
	late       error  // of the source, after what it read with it
	broken     error
	recent     recent
	own        struct {
		publish BasicPublish
		deliver BasicDeliver
		ack     BasicAck
	}
}

// minBuffer is the size of the smallest buffer, in bytes.
const minBuffer = 64

// maxEmpty is how often a source may read nothing without an error.
const maxEmpty = 100

// NewReader makes a Reader of what comes through source, with a buffer of size bytes. A
// frame that does not fit in it gets a larger one, for a while, as its bytes arrive.
func NewReader(source io.Reader, size int) *Reader {
	r := &Reader{source: source, small: make([]byte, max(size, minBuffer))}
	r.buf = r.small
	return r
}

// ProtocolHeader takes the eight bytes that a client begins with. An error is the
// source's.
func (r *Reader) ProtocolHeader() (header [8]byte, err error) {
	for r.end-r.start < len(header) {
		if err := r.fill(len(header)); err != nil {
			return header, err
		}
	}
	copy(header[:], r.buf[r.start:])
	r.start += len(header)
	return header, nil
}

// Next returns the next frame. Its payload is in the buffer, and valid until the next
// call.
//
// An *Error is the peer's, and then the error of every further call. Others are the
// source's as they are: io.EOF between two frames, io.ErrUnexpectedEOF within one. After
// a timeout Next may be called again, and loses nothing.
func (r *Reader) Next() (Frame, error) {
	for r.broken == nil {
		size := r.judge()
		if r.broken != nil {
			break
		}
		if size == 0 || r.end-r.start < size {
			if err := r.fill(size); err != nil {
				return Frame{}, err
			}
			continue
		}
		b := r.buf[r.start : r.start+size]
		if b[size-1] != frameEnd {
			r.broken = ConnectionError(FrameError, "a frame that does not end with 0xCE")
			break
		}
		r.start += size
		return Frame{Kind: Kind(b[0]), Channel: binary.BigEndian.Uint16(b[1:]), Payload: b[head : size-1 : size-1]}, nil
	}
	return Frame{}, r.broken
}

// judge judges the head of the frame that is in the buffer, as far as it is there, and
// returns the size of the frame, 0 if it is not known yet.
func (r *Reader) judge() int {
	b := r.buf[r.start:r.end]
	if len(b) == 0 {
		return 0
	}
	kind := Kind(b[0])
	switch kind {
	case KindMethod, KindHeader, KindBody, KindHeartbeat:
	default:
		r.broken = ConnectionError(FrameError, "a frame of the unknown type %d", b[0])
		return 0
	}
	if len(b) < head {
		return 0
	}
	channel, n := binary.BigEndian.Uint16(b[1:]), binary.BigEndian.Uint32(b[3:])
	limit := cmp.Or(r.Maximum, DefaultMaximum)
	switch {
	case uint64(n)+Overhead > uint64(limit):
		r.broken = ConnectionError(FrameError, "a frame of %d bytes, where %d are the maximum", uint64(n)+Overhead, limit)
	case kind == KindHeartbeat && (channel != 0 || n != 0):
		r.broken = ConnectionError(FrameError, "a heartbeat on channel %d, or with a payload", channel)
	case (kind == KindHeader || kind == KindBody) && channel == 0:
		r.broken = ConnectionError(UnexpectedFrame, "a %v frame on channel 0", kind)
	default:
		return int(n) + Overhead
	}
	return 0
}

// Method is the method in f, which is a method frame that Next just returned. A
// *BasicPublish, *BasicDeliver or *BasicAck is the Reader's and valid until the next
// call; all others, and all texts, are the caller's. An error is an *Error of the
// connection.
func (r *Reader) Method(f Frame) (Method, error) {
	return decodeMethod(f.Payload, &r.recent, cmp.Or(r.Entries, MaxEntries), r.method)
}

// method is a method to read into.
func (r *Reader) method(id ID) Method {
	switch id {
	case (*BasicPublish)(nil).ID():
		return &r.own.publish
	case (*BasicDeliver)(nil).ID():
		return &r.own.deliver
	case (*BasicAck)(nil).ID():
		return &r.own.ack
	}
	return newMethod(id)
}

// Buffered is how many bytes of the stream are in the buffer if a whole frame is among
// them, so that Next returns without reading. 0: Next may wait for the peer, who may be
// waiting for an answer.
func (r *Reader) Buffered() int {
	b := r.buf[r.start:r.end]
	if len(b) < head || uint64(len(b)) < uint64(binary.BigEndian.Uint32(b[3:]))+Overhead {
		return 0
	}
	return len(b)
}

// fill reads once, behind what is there, for size bytes; 0 is any number.
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
		case r.busy > 0 && have <= r.Burst && len(r.buf) < r.Burst:
			to = make([]byte, r.Burst)
		case r.busy == 0 && have <= len(r.small) && size <= len(r.small):
			to = r.small
		}
		copy(to, r.buf[r.start:r.end])
		r.buf, r.start, r.end = to, 0, have
	}
	if r.end == len(r.buf) {
		grown := make([]byte, min(2*len(r.buf), max(size, len(r.buf)+1)))
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

// weigh judges by what a read brought whether there is a burst.
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

// ended is err of the source when have bytes of a frame are there.
func ended(err error, have int) error {
	if err == io.EOF && have > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}
