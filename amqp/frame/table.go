package frame

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
)

// A Table has named values, as the arguments of a queue and the headers of a message
// do. Decoded values are of these types, and these can be written:
//
//	bool 't', int8 'b', uint8 'B', int16 's', uint16 'u', int32 'I', uint32 'i',
//	int64 'l', float32 'f', float64 'd', Decimal 'D', string 'S', []any 'A',
//	Timestamp 'T', Table 'F', []byte 'x', nil 'V'
//
// The type 'L' is read as int64, as RabbitMQ reads it, and never written. int, and
// uint64 if it is small enough, are written as int64, and map[string]any as a Table. A
// name that comes twice has its last value. Names are written in their order, so that
// equal tables are equal bytes.
type Table map[string]any

// A Timestamp is a number of seconds since 1970.
type Timestamp uint64

// A Decimal is Value divided by ten to the power of Scale.
type Decimal struct {
	Scale uint8
	Value int32
}

// Limits of what is in a frame.
const (
	// MaxDepth is how deep tables and arrays are in one another at most.
	MaxDepth = 32
	// MaxEntries is how many values a table has, with all that are in it.
	MaxEntries = 4096

	maxShort = 255
)

// What cannot be written.
var (
	// ErrLong is the error of a text of more than 255 bytes where there is room for
	// no more.
	ErrLong = errors.New("a short text is longer than 255 bytes")
	// ErrValue is the error of a value of a table that has no type on the wire, or of
	// tables that are too deep in one another.
	ErrValue = errors.New("a value cannot be in a table")
)

// Append appends t with its length to dst. Its errors are ErrLong and ErrValue, and dst
// is then returned as it was.
func (t Table) Append(dst []byte) ([]byte, error) {
	b, err := appendTable(dst, t, 0)
	if err != nil {
		return dst, err
	}
	return b, nil
}

func appendTable(dst []byte, t Table, depth int) ([]byte, error) {
	if depth > MaxDepth {
		return dst, fmt.Errorf("%w: there are tables more than %d deep", ErrValue, MaxDepth)
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	var few [16]string
	names := few[:0]
	for name := range t {
		names = append(names, name)
	}
	slices.Sort(names)
	var err error
	for _, name := range names {
		if dst, err = appendShort(dst, name); err != nil {
			return dst, err
		}
		if dst, err = appendValue(dst, t[name], depth); err != nil {
			return dst, err
		}
	}
	return measured(dst, start)
}

// measured writes the length of what is behind start before it.
func measured(dst []byte, start int) ([]byte, error) {
	n := len(dst) - start - 4
	if n > math.MaxInt32 {
		return dst, fmt.Errorf("%w: it has %d bytes", ErrValue, n)
	}
	binary.BigEndian.PutUint32(dst[start:], uint32(n))
	return dst, nil
}

func appendShort(dst []byte, s string) ([]byte, error) {
	if len(s) > maxShort {
		return dst, ErrLong
	}
	return append(append(dst, byte(len(s))), s...), nil
}

func appendValue(dst []byte, value any, depth int) ([]byte, error) {
	big := binary.BigEndian
	switch v := value.(type) {
	case nil:
		return append(dst, 'V'), nil
	case bool:
		if v {
			return append(dst, 't', 1), nil
		}
		return append(dst, 't', 0), nil
	case int8:
		return append(dst, 'b', byte(v)), nil
	case uint8:
		return append(dst, 'B', v), nil
	case int16:
		return big.AppendUint16(append(dst, 's'), uint16(v)), nil
	case uint16:
		return big.AppendUint16(append(dst, 'u'), v), nil
	case int32:
		return big.AppendUint32(append(dst, 'I'), uint32(v)), nil
	case uint32:
		return big.AppendUint32(append(dst, 'i'), v), nil
	case int64:
		return big.AppendUint64(append(dst, 'l'), uint64(v)), nil
	case int:
		return big.AppendUint64(append(dst, 'l'), uint64(v)), nil
	case uint64:
		if v > math.MaxInt64 {
			return dst, fmt.Errorf("%w: it is %d", ErrValue, v)
		}
		return big.AppendUint64(append(dst, 'l'), v), nil
	case float32:
		return big.AppendUint32(append(dst, 'f'), math.Float32bits(v)), nil
	case float64:
		return big.AppendUint64(append(dst, 'd'), math.Float64bits(v)), nil
	case Decimal:
		return big.AppendUint32(append(dst, 'D', v.Scale), uint32(v.Value)), nil
	case Timestamp:
		return big.AppendUint64(append(dst, 'T'), uint64(v)), nil
	case string:
		return append(big.AppendUint32(append(dst, 'S'), uint32(len(v))), v...), nil
	case []byte:
		return append(big.AppendUint32(append(dst, 'x'), uint32(len(v))), v...), nil
	case Table:
		return appendTable(append(dst, 'F'), v, depth+1)
	case map[string]any:
		return appendTable(append(dst, 'F'), v, depth+1)
	case []any:
		return appendArray(append(dst, 'A'), v, depth+1)
	}
	return dst, fmt.Errorf("%w: it is a %T", ErrValue, value)
}

func appendArray(dst []byte, values []any, depth int) ([]byte, error) {
	if depth > MaxDepth {
		return dst, fmt.Errorf("%w: there are arrays more than %d deep", ErrValue, MaxDepth)
	}
	start := len(dst)
	dst = append(dst, 0, 0, 0, 0)
	var err error
	for _, v := range values {
		if dst, err = appendValue(dst, v, depth); err != nil {
			return dst, err
		}
	}
	return measured(dst, start)
}

// DecodeTable is the table that b is, with its length and nothing behind it. All of it
// is the caller's. An error is an *Error of the connection.
func DecodeTable(b []byte) (Table, error) {
	c := coder{in: b, what: "table", entries: MaxEntries}
	var t Table
	c.table(&t)
	c.done()
	if c.err != nil {
		return nil, c.err
	}
	return t, nil
}

// readTable takes a table without its length; entries counts down what it may have.
func (c *coder) readTable(depth int, entries *int, keep bool) Table {
	body := c.nested(depth, "table")
	outer := c.in
	c.in = body
	var t Table
	if keep {
		t = Table{}
	}
	for len(c.in) > 0 && c.err == nil {
		name := c.takeShort()
		v := c.readValue(depth, entries, keep)
		if keep && c.err == nil {
			t[string(name)] = v
		}
	}
	c.in = outer
	return t
}

func (c *coder) readArray(depth int, entries *int, keep bool) []any {
	body := c.nested(depth, "array")
	outer := c.in
	c.in = body
	var values []any
	if keep {
		values = []any{}
	}
	for len(c.in) > 0 && c.err == nil {
		v := c.readValue(depth, entries, keep)
		if keep && c.err == nil {
			values = append(values, v)
		}
	}
	c.in = outer
	return values
}

// nested takes the bytes of a table or an array.
func (c *coder) nested(depth int, what string) []byte {
	if depth > MaxDepth {
		c.fail(SyntaxError, "%s: a %s more than %d deep", c.what, what, MaxDepth)
		return nil
	}
	return c.takeLong()
}

// readValue takes a value. Unless it is kept it is only judged.
func (c *coder) readValue(depth int, entries *int, keep bool) any {
	if *entries--; *entries < 0 {
		c.fail(SyntaxError, "%s: a table with more than %d values", c.what, c.entries)
	}
	kind := c.takeByte()
	if c.err != nil {
		return nil
	}
	switch kind {
	case 'V':
		return nil
	case 'A':
		return c.readArray(depth+1, entries, keep)
	case 'F':
		return c.readTable(depth+1, entries, keep)
	case 'S', 'x':
		b := c.takeLong()
		switch {
		case !keep || c.err != nil:
			return nil
		case kind == 'S':
			return string(b)
		}
		return append([]byte{}, b...)
	}
	size := sizes(kind)
	if size == 0 {
		c.fail(SyntaxError, "%s: a table with a value of the unknown type 0x%02x", c.what, kind)
		return nil
	}
	b := c.take(size)
	if !keep || c.err != nil {
		return nil
	}
	return fixed(kind, b)
}

// sizes is how many bytes a value of a type has, 0 if there is none of the type.
func sizes(kind byte) int {
	switch kind {
	case 't', 'b', 'B':
		return 1
	case 's', 'u':
		return 2
	case 'I', 'i', 'f':
		return 4
	case 'D':
		return 5
	case 'l', 'L', 'd', 'T':
		return 8
	}
	return 0
}

// fixed is the value of a type that is always as many bytes.
func fixed(kind byte, b []byte) any {
	big := binary.BigEndian
	switch kind {
	case 't':
		return b[0] != 0
	case 'b':
		return int8(b[0])
	case 'B':
		return b[0]
	case 's':
		return int16(big.Uint16(b))
	case 'u':
		return big.Uint16(b)
	case 'I':
		return int32(big.Uint32(b))
	case 'i':
		return big.Uint32(b)
	case 'l', 'L':
		return int64(big.Uint64(b))
	case 'f':
		return math.Float32frombits(big.Uint32(b))
	case 'd':
		return math.Float64frombits(big.Uint64(b))
	case 'D':
		return Decimal{Scale: b[0], Value: int32(big.Uint32(b[1:]))}
	}
	return Timestamp(big.Uint64(b))
}
