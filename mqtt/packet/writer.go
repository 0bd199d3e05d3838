package packet

import "encoding/binary"

// The most that the protocol has: bytes of a text, and bytes after the length.
const maxString, maxRemaining = 65_535, 268_435_455

// maxVariableSize is the size of the longest variable byte integer.
const maxVariableSize = 4

// A writer appends a packet.
type writer struct {
	b     []byte
	v     Version
	lean  int  // how much of what may be shed is: see answer
	sheds bool // more may be
	err   error
}

// A body is a packet but for its fixed header.
type body interface{ write(w *writer) }

// assemble appends the packet with this first byte and body; see Packet.Append.
func assemble(dst []byte, v Version, max int, first byte, p body) ([]byte, error) {
	for lean := 0; ; lean++ {
		w := writer{b: append(dst, first), v: v, lean: lean}
		p.write(&w)
		if w.err != nil {
			return dst, w.err
		}
		remaining := len(w.b) - len(dst) - 1
		w.measure(len(dst) + 1)
		switch {
		case fits(remaining, max):
			return w.b, nil
		case !w.sheds:
			return dst, ErrSize // [MQTT-3.1.2-24] [MQTT-3.2.2-15]
		}
	}
}

// fits says whether a packet with this remaining length is within max.
func fits(remaining, max int) bool {
	return remaining <= maxRemaining && (max == 0 || 1+variableSize(remaining)+remaining <= max)
}

func (w *writer) byte(n byte)   { w.b = append(w.b, n) }
func (w *writer) two(n uint16)  { w.b = binary.BigEndian.AppendUint16(w.b, n) }
func (w *writer) four(n uint32) { w.b = binary.BigEndian.AppendUint32(w.b, n) }

func (w *writer) flag(on bool) {
	if on {
		w.byte(1)
	} else {
		w.byte(0)
	}
}

func (w *writer) variable(n int) {
	for ; n > 0x7F; n >>= 7 {
		w.byte(byte(n) | 0x80)
	}
	w.byte(byte(n))
}

// variableSize is the size of n as a variable byte integer.
func variableSize(n int) int {
	size := 1
	for ; n > 0x7F; n >>= 7 {
		size++
	}
	return size
}

func (w *writer) text(s string) {
	w.length(len(s))
	w.b = append(w.b, s...)
}

func (w *writer) data(b []byte) {
	w.length(len(b))
	w.b = append(w.b, b...)
}

func (w *writer) length(n int) {
	if n > maxString && w.err == nil {
		w.err = ErrLong // [MQTT-4.7.3-3]
	}
	w.two(uint16(n))
}

// measure inserts the length of what follows at before it.
func (w *writer) measure(at int) {
	n := len(w.b) - at
	size := variableSize(n)
	w.b = append(w.b, make([]byte, size)...)
	copy(w.b[at+size:], w.b[at:])
	head := writer{b: w.b[:at]}
	head.variable(n)
}

// The rest writes properties; those that are absent are not.

func (w *writer) propText(id byte, s string) {
	if s != "" {
		w.byte(id)
		w.text(s)
	}
}

func (w *writer) propData(id byte, b []byte) {
	if b != nil {
		w.byte(id)
		w.data(b)
	}
}

func (w *writer) propTwo(id byte, n uint16) {
	if n != 0 {
		w.byte(id)
		w.two(n)
	}
}

func (w *writer) propFour(id byte, n uint32) {
	if n != 0 {
		w.byte(id)
		w.four(n)
	}
}

// propSet writes a flag that is not the default.
func (w *writer) propSet(id byte, set, value bool) {
	if set {
		w.byte(id)
		w.flag(value)
	}
}

func (w *writer) propPointer(id byte, n *uint32) {
	if n != nil {
		w.byte(id)
		w.four(*n)
	}
}

func (w *writer) users(pairs []Pair) {
	for _, p := range pairs {
		w.byte(propUser)
		w.data(p.Name)
		w.data(p.Value)
	}
}

// answer writes what an answer sheds if it is too large otherwise: first the User
// Properties, then the Reason String. A request sheds nothing.
//
// [MQTT-3.2.2-19] [MQTT-3.2.2-20] [MQTT-3.4.2-2] [MQTT-3.4.2-3] [MQTT-3.5.2-2]
// [MQTT-3.5.2-3] [MQTT-3.6.2-2] [MQTT-3.6.2-3] [MQTT-3.7.2-2] [MQTT-3.7.2-3]
// [MQTT-3.9.2-1] [MQTT-3.9.2-2] [MQTT-3.11.2-1] [MQTT-3.11.2-2] [MQTT-3.14.2-3]
// [MQTT-3.14.2-4] [MQTT-3.15.2-2] [MQTT-3.15.2-3]
func (w *writer) answer(reason string, pairs []Pair) {
	if w.lean < 2 && reason != "" {
		w.propText(propReasonString, reason)
		w.sheds = true
	}
	if w.lean < 1 && len(pairs) > 0 {
		w.users(pairs)
		w.sheds = true
	}
}
