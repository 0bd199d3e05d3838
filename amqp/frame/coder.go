package frame

import (
	"encoding/binary"
	"fmt"
	"math"
)

// A coder reads fields one after another out of in, or writes them to out: what a
// method has is said once, for both. Reading goes on after an error and gives zeros.
type coder struct {
	in     []byte
	out    []byte
	writes bool
	what   string // what is read, for errors
	id     ID     // the method that is read
	err    error
	recent *recent
	// entries is how many values each table may have.
	entries int
}

// recent are texts that came before: what comes again and again is not allocated again.
type recent struct {
	exchange, key string
}

// fail says what is wrong, once.
func (c *coder) fail(code Code, format string, args ...any) {
	if c.err == nil {
		c.err = &Error{Code: code, Text: fmt.Sprintf(format, args...), Class: c.id.Class(), Method: c.id.Method(), Scope: OfConnection}
	}
	c.in = nil
}

// take is the next n bytes, which are of in. Every read goes through it.
func (c *coder) take(n int) []byte {
	if n < 0 || n > len(c.in) {
		c.fail(SyntaxError, "%s: it ends within a field", c.what)
		return nil
	}
	b := c.in[:n:n]
	c.in = c.in[n:]
	return b
}

func (c *coder) takeByte() byte {
	if b := c.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (c *coder) takeShort() []byte { return c.take(int(c.takeByte())) }

// takeLong takes bytes with a length of 32 bits before them.
func (c *coder) takeLong() []byte {
	b := c.take(4)
	if b == nil {
		return nil
	}
	n := binary.BigEndian.Uint32(b)
	if n > math.MaxInt32 {
		c.fail(SyntaxError, "%s: a field of %d bytes", c.what, n)
		return nil
	}
	return c.take(int(n))
}

// done says that nothing is to be left.
func (c *coder) done() {
	if len(c.in) > 0 {
		c.fail(SyntaxError, "%s: there are %d bytes behind it", c.what, len(c.in))
	}
}

func (c *coder) octet(n *uint8) {
	if c.writes {
		c.out = append(c.out, *n)
	} else {
		*n = c.takeByte()
	}
}

func (c *coder) two(n *uint16) {
	if c.writes {
		c.out = binary.BigEndian.AppendUint16(c.out, *n)
	} else if b := c.take(2); b != nil {
		*n = binary.BigEndian.Uint16(b)
	}
}

func (c *coder) four(n *uint32) {
	if c.writes {
		c.out = binary.BigEndian.AppendUint32(c.out, *n)
	} else if b := c.take(4); b != nil {
		*n = binary.BigEndian.Uint32(b)
	}
}

func (c *coder) eight(n *uint64) {
	if c.writes {
		c.out = binary.BigEndian.AppendUint64(c.out, *n)
	} else if b := c.take(8); b != nil {
		*n = binary.BigEndian.Uint64(b)
	}
}

func (c *coder) code(n *Code) { c.two((*uint16)(n)) }

// short codes a text of up to 255 bytes.
func (c *coder) short(s *string) {
	if !c.writes {
		*s = string(c.takeShort())
		return
	}
	var err error
	if c.out, err = appendShort(c.out, *s); err != nil && c.err == nil {
		c.err = err
	}
}

// again is short for a text that is likely to be the one of before.
func (c *coder) again(s, before *string) {
	if c.writes {
		c.short(s)
		return
	}
	if b := c.takeShort(); string(b) != *before {
		*before = string(b)
	}
	*s = *before
}

// long codes a text of any length.
func (c *coder) long(s *string) {
	if !c.writes {
		*s = string(c.takeLong())
		return
	}
	c.out = append(binary.BigEndian.AppendUint32(c.out, uint32(len(*s))), *s...)
}

// bits codes up to eight bits in one byte. What is set beyond them is ignored.
func (c *coder) bits(bits ...*bool) {
	if !c.writes {
		b := c.takeByte()
		for i, bit := range bits {
			*bit = b&(1<<i) != 0
		}
		return
	}
	var b byte
	for i, bit := range bits {
		if *bit {
			b |= 1 << i
		}
	}
	c.out = append(c.out, b)
}

func (c *coder) table(t *Table) {
	if !c.writes {
		entries := c.entries
		*t = c.readTable(0, &entries, true)
		return
	}
	var err error
	if c.out, err = appendTable(c.out, *t, 0); err != nil && c.err == nil {
		c.err = err
	}
}

// exchange codes the exchange of a message, and key its routing key.
func (c *coder) exchange(s *string) {
	if c.recent == nil {
		c.short(s)
		return
	}
	c.again(s, &c.recent.exchange)
}

func (c *coder) key(s *string) {
	if c.recent == nil {
		c.short(s)
		return
	}
	c.again(s, &c.recent.key)
}
