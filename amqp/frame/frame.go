package frame

import (
	"encoding/binary"
	"math"
)

// Kind is a frame's type.
type Kind byte

// The types of frames.
const (
	KindMethod    Kind = 1
	KindHeader    Kind = 2
	KindBody      Kind = 3
	KindHeartbeat Kind = 8
)

// String is the type's name.
func (k Kind) String() string {
	switch k {
	case KindMethod:
		return "method"
	case KindHeader:
		return "header"
	case KindBody:
		return "body"
	case KindHeartbeat:
		return "heartbeat"
	}
	return "unknown"
}

// ProtocolHeader is what a client begins with, and what a server says that speaks
// nothing else.
const ProtocolHeader = "AMQP\x00\x00\x09\x01"

const (
	// MinFrame is the size of frames that everybody takes, in bytes.
	MinFrame = 4096
	// Overhead is what a frame is larger than its payload, in bytes.
	Overhead = head + 1

	head     = 7 // type, channel and length
	frameEnd = 0xCE
)

// A Frame is one of a stream.
type Frame struct {
	Kind    Kind
	Channel uint16
	// Payload is what is in it.
	Payload []byte
}

// begin appends the head of a frame, and returns where its payload starts.
func begin(dst []byte, kind Kind, channel uint16) ([]byte, int) {
	dst = binary.BigEndian.AppendUint16(append(dst, byte(kind)), channel)
	dst = append(dst, 0, 0, 0, 0)
	return dst, len(dst)
}

// finish writes the length of the payload that starts at start, and the end.
func finish(dst []byte, start int) []byte {
	binary.BigEndian.PutUint32(dst[start-4:], uint32(len(dst)-start))
	return append(dst, frameEnd)
}

// AppendMethod appends a frame with m to dst. Its errors are ErrLong and ErrValue, and dst
// is then returned as it was. It does not know the size of frames that the peer takes.
func AppendMethod(dst []byte, channel uint16, m Method) ([]byte, error) {
	b, start := begin(dst, KindMethod, channel)
	c := m.code(coder{out: binary.BigEndian.AppendUint32(b, uint32(m.ID())), writes: true})
	if c.err != nil {
		return dst, c.err
	}
	return finish(c.out, start), nil
}

// AppendFrame appends f to dst as it is.
func AppendFrame(dst []byte, f Frame) []byte {
	b, start := begin(dst, f.Kind, f.Channel)
	return finish(append(b, f.Payload...), start)
}

// AppendHeartbeat appends a heartbeat to dst.
func AppendHeartbeat(dst []byte) []byte {
	b, start := begin(dst, KindHeartbeat, 0)
	return finish(b, start)
}

// A Header is what a header frame has.
type Header struct {
	Class uint16
	// Size is how many bytes the body has, in all its frames.
	Size uint64
	// Properties are as Properties.Append writes them.
	Properties []byte
}

// DecodeHeader is the header that is the payload of a header frame; its Properties are
// in payload, and judged. An error is an *Error of the connection.
func DecodeHeader(payload []byte) (Header, error) {
	if len(payload) < 14 {
		return Header{}, ConnectionError(SyntaxError, "a header frame of %d bytes", len(payload))
	}
	h := Header{Class: binary.BigEndian.Uint16(payload), Size: binary.BigEndian.Uint64(payload[4:]), Properties: payload[12:]}
	if binary.BigEndian.Uint16(payload[2:]) != 0 {
		return Header{}, ConnectionError(SyntaxError, "a header frame with a weight")
	}
	if h.Size > math.MaxInt64 {
		return Header{}, ConnectionError(SyntaxError, "a header frame with a body of %d bytes", h.Size)
	}
	return h, CheckProperties(h.Properties)
}

// AppendHeader appends a header frame to dst.
func AppendHeader(dst []byte, channel uint16, h Header) []byte {
	b, start := begin(dst, KindHeader, channel)
	b = binary.BigEndian.AppendUint16(b, h.Class)
	b = append(b, 0, 0)
	b = binary.BigEndian.AppendUint64(b, h.Size)
	return finish(append(b, h.Properties...), start)
}

// AppendBody appends body to dst, in as many frames as it needs where none is larger
// than maxFrame, which is at least MinFrame. No body is no frame.
func AppendBody(dst []byte, channel uint16, body []byte, maxFrame int) []byte {
	most := max(maxFrame, MinFrame) - Overhead
	for len(body) > 0 {
		n := min(len(body), most)
		b, start := begin(dst, KindBody, channel)
		dst = finish(append(b, body[:n]...), start)
		body = body[n:]
	}
	return dst
}

// AppendContent appends what follows a method that has content: the header of a message
// of class basic, with properties as Properties.Append writes them, and its body.
func AppendContent(dst []byte, channel uint16, properties, body []byte, maxFrame int) []byte {
	dst = AppendHeader(dst, channel, Header{Class: ClassBasic, Size: uint64(len(body)), Properties: properties})
	return AppendBody(dst, channel, body, maxFrame)
}
