package hub

import (
	"encoding/binary"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// TestHostileHub has a broker say as much as it can, and what would do something to a
// terminal, in all that it may say: little of it is told, and nothing of that does something.
func TestHostileHub(t *testing.T) {
	evil := strings.Repeat("\x1b]0;evil\a\u202e\u009b2J\r\nlevel=ERROR msg=forged ", 1500)
	evil = strings.ToValidUTF8(evil[:60_000], "")
	property := func(kind byte, text string) []byte {
		b := binary.BigEndian.AppendUint16([]byte{kind}, uint16(len(text)))
		return append(b, text...)
	}
	connack := func(code byte, properties []byte) []byte {
		body := binary.AppendUvarint([]byte{0, code}, uint64(len(properties)))
		body = append(body, properties...)
		return append(binary.AppendUvarint([]byte{0x20}, uint64(len(body))), body...)
	}
	disconnect := func() []byte {
		properties := property(0x1F, evil)
		body := append(binary.AppendUvarint([]byte{0x8B}, uint64(len(properties))), properties...)
		return append(binary.AppendUvarint([]byte{0xE0}, uint64(len(body))), body...)
	}
	for what, said := range map[string][]byte{
		"a reason":               connack(0x87, property(0x1F, evil)),
		"a reason of its own":    connack(0x80, property(0x1F, evil)),
		"another server":         connack(0x9D, property(0x1C, evil)),
		"a reason and an end":    append(connack(0, nil), disconnect()...),
		"an identifier":          connack(0x85, property(0x12, evil)),
		"a property of the user": connack(0x87, append(property(0x26, evil[:30_000]), property(0, evil[:100])[1:]...)),
	} {
		t.Run(what, func(t *testing.T) {
			e, _ := probed(t, Options{Servers: []string{fakeHub(t, answer(said...))}})
			if e == nil {
				t.Fatal("it is taken for a hub")
			}
			for _, text := range []string{e.Error(), e.Fix} {
				if len(text) > 2*longest || !utf8.ValidString(text) {
					t.Errorf("%d bytes are told of it: %.100q", len(text), text)
				}
				if i := strings.IndexFunc(text, func(r rune) bool { return unicode.IsControl(r) || unicode.Is(unicode.Cf, r) }); i >= 0 {
					t.Errorf("what is told has a character that does something: %.300q", text)
				}
			}
		})
	}
}
