package packet

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"github.com/fleetbus/fleetbus/mqtt/packet/packettest"
)

// chosen are a version and a side for a byte.
func chosen(n byte) (Version, Side) {
	return []Version{0, V311, V5}[int(n>>1)%3], Side(n & 1)
}

// FuzzDecode reads anything as a packet, and reads again what it writes.
func FuzzDecode(f *testing.F) {
	for _, s := range samples() {
		first, body := packettest.Wire(s.spec)
		for choice := range byte(6) {
			f.Add(choice, first, body)
		}
	}
	for _, b := range packettest.Breaches() {
		first, body := packettest.Wire(b.Spec)
		for choice := range byte(6) {
			if v, side := chosen(choice); v == Version(b.Version) && side == Side(b.From) && len(body) < 200 {
				f.Add(choice, first, body)
			}
		}
	}
	f.Add(byte(4), byte(0x82), []byte("\x12\x34\x00\x00\x01\x50"))
	f.Fuzz(func(t *testing.T, choice, first byte, body []byte) {
		v, side := chosen(choice)
		p, err := Decode(first, body, v, side)
		if err != nil {
			if _, ok := err.(*Error); !ok || p != nil {
				t.Errorf("it was read as %v and %v", p, err)
			}
			return
		}
		if c, ok := p.(*Connect); ok {
			v = c.Version
		}
		again(t, p, v, side)
	})
}

// cuts reads source in pieces as long as the bytes of sizes say.
type cuts struct {
	source io.Reader
	sizes  []byte
	i      int
}

func (c *cuts) Read(b []byte) (int, error) {
	if len(c.sizes) > 0 {
		size := int(c.sizes[c.i%len(c.sizes)])
		c.i++
		b = b[:min(len(b), size+1)]
	}
	return c.source.Read(b)
}

// FuzzReader reads a stream in pieces and whole, and wants the same packets and
// the same end.
func FuzzReader(f *testing.F) {
	for _, v := range []Version{V311, V5} {
		sent, _ := stream(f, v, 100)
		f.Add(byte(0), sent, []byte{0}, uint16(64))
		f.Add(byte(0), sent, []byte{3, 200, 1}, uint16(1000))
		f.Add(byte(0), sent[:len(sent)-30], []byte{100}, uint16(1000))
	}
	f.Add(byte(4), []byte("\x82\x06\x12\x34\x00\x00\x01\x50"), []byte{1}, uint16(0))
	f.Fuzz(func(t *testing.T, choice byte, sent, sizes []byte, size uint16) {
		v, side := chosen(choice)
		pieces := NewReader(&cuts{source: bytes.NewReader(sent), sizes: sizes}, side, int(size))
		pieces.Burst = 3 * int(size)
		whole := NewReader(bytes.NewReader(sent), side, len(sent))
		pieces.Version, whole.Version = v, v
		for {
			p, err := pieces.Next()
			q, same := whole.Next()
			if !reflect.DeepEqual(p, q) || !reflect.DeepEqual(err, same) || pieces.Version != whole.Version {
				t.Fatalf("in pieces came %s, %v, and whole %s, %v", describe(p), err, describe(q), same)
			}
			if err != nil {
				return
			}
			if n := whole.Buffered(); n > len(sent) || n > 0 && n != len(sent)-whole.start {
				t.Fatalf("%d bytes wait of %d", n, len(sent))
			}
		}
	})
}
