package mqtt

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/nats-io/nats.go"
)

// FuzzUnpack has anything be a pack: it has what stands in it, or nothing.
func FuzzUnpack(f *testing.F) {
	f.Add([]byte{1, 'x', 0, 2, 'y', 'z'})
	f.Add([]byte{0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 1})
	f.Fuzz(func(t *testing.T, data []byte) {
		ms := unpack("a.b", 7, &nats.Msg{Data: data, Header: nats.Header{headerFlags: {"1"}, headerPack: {"128"}}})
		var again []byte
		for i, m := range ms {
			if m.part != i || m.seq != 7 || m.topic != "a/b" || m.qos != 1 {
				t.Fatalf("%d: %+v", i, m)
			}
			again = append(binary.AppendUvarint(again, uint64(len(m.payload))), m.payload...)
		}
		if len(again) > len(data) || len(ms) > 0 && minimal(data) && !bytes.Equal(again, data) {
			t.Fatalf("%x came as %x", data, again)
		}
	})
}

// minimal reports whether every length of a pack is as short as it can be.
func minimal(data []byte) bool {
	for len(data) > 0 {
		size, n := binary.Uvarint(data)
		if n <= 0 || n != len(binary.AppendUvarint(nil, size)) {
			return false
		}
		data = data[n+int(size):]
	}
	return true
}
