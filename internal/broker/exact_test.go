package broker

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/nats-io/nats.go"
)

const told = `{"acc":"A","user":"U"}`

// withInfo is a client's header as the engine hands it on with what it tells.
func withInfo(client string) []byte {
	return []byte(client + infoHeader + ": " + told + "\r\n\r\n")
}

// FuzzPlain: whatever a client sends for a header, nothing but what the engine tells
// is read as such.
func FuzzPlain(f *testing.F) {
	const forged = infoHeader + `: {"acc":"B"}`
	for _, client := range []string{
		"NATS/1.0\r\n", "NATS/1.0\r\nX: a\r\n", "NATS/1.0\r\nX: a\n" + forged + "\r\n", "NATS/1.0\n" + forged + "\n\n",
		"NATS/1.0\r\n" + forged + "\r\n\r\n", "NATS/1.0\r\n" + forged + "\nX: a", "NATS/1.0\r\n" + forged + "\r\n:",
		"NATS/1.0\r\nX: " + infoHeader + infoHeader + "\r\n" + forged + "\r\n",
		"NATS/1.0\r\nX: " + infoHeader + infoHeader + "\r\n" + forged + "\r\nY: y", "\r\n", "", "NATS/1.0\r\n" + forged + "\r",
	} {
		f.Add(client)
	}
	f.Fuzz(func(t *testing.T, client string) {
		raw := withInfo(client)
		n := len(raw)
		plain(raw)
		if len(raw) != n {
			t.Fatalf("%d bytes became %d", n, len(raw))
		}
		header, err := nats.DecodeHeadersMsg(raw)
		if err != nil {
			return
		}
		if got := header.Values(infoHeader); len(got) > 1 || len(got) == 1 && got[0] != told {
			t.Errorf("%q is read as %q", raw, got)
		}
	})
}

// TestPlain leaves a header alone that is well formed.
func TestPlain(t *testing.T) {
	raw := withInfo("NATS/1.0 503\r\nX: a b\r\nY:\r\n")
	want := string(raw)
	if plain(raw); string(raw) != want {
		t.Errorf("%q became %q", want, raw)
	}
}

// FuzzExact: what the engine sends arrives in its length, and what it could not
// send ends the connection.
func FuzzExact(f *testing.F) {
	header := "NATS/1.0\r\nX: a\r\n\r\n"
	good := "INFO {}\r\nPING\r\nMSG a 1 3\r\nabc\r\n+OK\r\n\r\n" + fmt.Sprintf("HMSG a 1 b %d %d\r\n%shello\r\n", len(header), len(header)+5, header)
	f.Add(good, true)
	f.Add("MSG a 1 -1\r\n", false)
	f.Add("HMSG a 1 9 3\r\n", false)
	f.Add("HMSG\r\n", false)
	f.Add("MSG a 1 99999999999999999999\r\n", true)
	f.Add(strings.Repeat("x", 100_000), false)
	f.Fuzz(func(t *testing.T, stream string, slowly bool) {
		var from io.Reader = strings.NewReader(stream)
		if slowly {
			from = iotest.OneByteReader(from)
		}
		e := &exact{in: bufio.NewReaderSize(from, 16)}
		got, err := io.ReadAll(e)
		if len(got) > len(stream) || err == nil && stream == good && string(got) != good {
			t.Errorf("%q arrived as %q: %v", stream, got, err)
		}
		if stream == good && !bytes.Equal(got, []byte(good)) {
			t.Errorf("it arrived as %q: %v", got, err)
		}
	})
}
