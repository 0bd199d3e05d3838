package packet

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"strings"
	"unicode/utf8"
)

// A cursor goes through the body of a packet. Every read is bounded in take, and
// the first thing that is wrong stays: reads after it give zero, and nothing is
// left to read, so that every loop ends.
type cursor struct {
	version Version
	from    Side
	limits  Limits
	// What a Reader lends to each of its packets in turn; nil: each has its own.
	publish *Publish
	ack     *Ack
	lent    []Pair
	lentIDs []uint32

	kind  Type
	flags byte
	b     []byte // what is left of the body, or of the properties while they are read
	after []byte // what follows the properties
	block bool   // properties are read
	id    byte   // of the property
	seen  uint64 // a bit for each property of the block
	pairs int    // User Properties of the packet
	// pairBytes is the size of their names and values.
	pairBytes int
	// rule is the clause of what is missing or too much where it is not of the
	// packet at large.
	rule string
	err  *Error
}

// fail says what is wrong, after the packet's name.
func (c *cursor) fail(code Code, clause, format string, args ...any) {
	if c.err == nil {
		c.err = &Error{Code: code, Clause: strings.Trim(clause, "[]"), What: c.kind.String() + " " + fmt.Sprintf(format, args...)}
	}
	c.b, c.after, c.block = nil, nil, false
}

// take is the next n bytes; they are of the body. Every read goes through it.
func (c *cursor) take(n int, what string) []byte {
	if n > len(c.b) {
		c.fail(MalformedPacket, cmp.Or(c.rule, "[MQTT-4.13.1-1]"), "that ends before or in its %s", what)
		return nil
	}
	taken := c.b[:n:n]
	c.b = c.b[n:]
	return taken
}

func (c *cursor) byte(what string) byte {
	if b := c.take(1, what); b != nil {
		return b[0]
	}
	return 0
}

func (c *cursor) two(what string) uint16 {
	if b := c.take(2, what); b != nil {
		return binary.BigEndian.Uint16(b)
	}
	return 0
}

func (c *cursor) four(what string) uint32 {
	if b := c.take(4, what); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

// variable reads a variable byte integer.
func (c *cursor) variable(what string) uint32 {
	n, size := variable(c.b)
	switch {
	case c.err != nil:
		return 0
	case size == 0:
		c.take(len(c.b)+1, what)
		return 0
	case size < 0:
		c.badVariable(what, size)
		return 0
	}
	c.b = c.b[size:]
	return n
}

func (c *cursor) badVariable(what string, size int) {
	if size == tooLong {
		c.fail(MalformedPacket, "[MQTT 1.5.5]", "with a %s of more than four bytes", what)
		return
	}
	c.fail(MalformedPacket, "[MQTT-1.5.5-1]", "with a %s of more bytes than it takes", what)
}

// What variable says instead of a size.
const tooLong, notShortest = -1, -2

// variable is the variable byte integer that b begins with, and its size: 0 if b
// ends within it.
func variable(b []byte) (n uint32, size int) {
	for i, x := range b {
		n |= uint32(x&0x7F) << (7 * i)
		switch {
		case x&0x80 == 0 && x == 0 && i > 0:
			return 0, notShortest // [MQTT-1.5.5-1]
		case x&0x80 == 0:
			return n, i + 1
		case i == 3:
			return 0, tooLong
		}
	}
	return 0, 0
}

// identifier reads a packet identifier.
func (c *cursor) identifier(clause string) uint16 {
	id := c.two("packet identifier")
	if id == 0 {
		c.fail(ProtocolError, clause, "with packet identifier 0")
	}
	return id
}

// raw reads binary data; it is of the body.
func (c *cursor) raw(what string) []byte { return c.take(int(c.two(what)), what) }

// data reads binary data and keeps a copy, unless it is a PUBLISH.
func (c *cursor) data(what string) []byte { return c.keep(c.raw(what)) }

// text reads a string and keeps a copy, unless it is a PUBLISH. A byte order mark
// is a character like others [MQTT-1.5.4-3].
func (c *cursor) text(what string) []byte { return c.keep(c.rawText(what)) }

func (c *cursor) str(what string) string { return string(c.rawText(what)) }

func (c *cursor) rawText(what string) []byte {
	b := c.raw(what)
	c.judgeText(b, what)
	return b
}

// keep is b, or a copy. What is absent is nil, and what is empty is not.
func (c *cursor) keep(b []byte) []byte {
	if c.kind == PUBLISH || b == nil {
		return b
	}
	return append([]byte{}, b...)
}

func (c *cursor) judgeText(b []byte, what string) {
	if !utf8.Valid(b) { // Surrogates are not.
		c.fail(MalformedPacket, "[MQTT-1.5.4-1]", "with a %s that is not UTF-8", what)
	}
	if bytes.IndexByte(b, 0) >= 0 {
		c.fail(MalformedPacket, "[MQTT-1.5.4-2]", "with U+0000 in its %s", what)
	}
}

// topic reads a topic name, empty only if it may be.
func (c *cursor) topic(what string, mayBeEmpty bool) []byte {
	b := c.text(what)
	if c.err == nil && (len(b) > 0 || !mayBeEmpty) {
		c.adopt(judgeTopic(b, what, c.limits.levels()))
	}
	return b
}

// adopt makes what is wrong with a part of the packet wrong with the packet.
func (c *cursor) adopt(err *Error) {
	if err != nil {
		c.fail(err.Code, err.Clause, "with %s", err.What)
	}
}
