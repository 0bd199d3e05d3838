package wire

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"
)

// stream is what an engine may send: operations of the library's, and messages that are
// not, in any order. It returns each of the two.
func stream(random *rand.Rand, n int) (all, foreign, own []byte) {
	for range n {
		var one []byte
		size := random.IntN(300)
		if random.IntN(20) == 0 {
			size = random.IntN(3 * readBuffer)
		}
		payload := strings.Repeat("x\r\nMSG a w1 1\r\n", size/15+1)[:size]
		mine := random.IntN(2) == 0
		id := fmt.Sprint(random.IntN(100))
		if mine {
			id = "w" + id
		}
		reply := ""
		if random.IntN(2) == 0 {
			reply = "_INBOX.x "
		}
		switch kind := random.IntN(6); {
		case kind == 0 && !mine:
			one = fmt.Appendf(nil, "PING\r\n")
		case kind == 1 && !mine:
			one = fmt.Appendf(nil, "-ERR 'Permissions Violation for Publish to \"a\"'\r\n")
		case kind < 4:
			one = fmt.Appendf(nil, "MSG a.b %s %s%d\r\n%s\r\n", id, reply, size, payload)
		default:
			const header = "NATS/1.0\r\nA: b\r\n\r\n"
			one = fmt.Appendf(nil, "HMSG a.b %s %s%d %d\r\n%s%s\r\n", id, reply, len(header), len(header)+size, header, payload)
		}
		all = append(all, one...)
		if mine {
			own = append(own, one...)
		} else {
			foreign = append(foreign, one...)
		}
	}
	return all, foreign, own
}

// rest is all that waits in an inbox that is closed.
func (i *inbox) rest() (all []byte, dropped int) {
	for {
		messages, lost, ok := i.take()
		dropped += lost
		if !ok {
			return all, dropped
		}
		all = append(all, messages...)
	}
}

// TestInbox parts streams that come in pieces of any size: nothing is lost, and
// everybody has what is theirs in order.
func TestInbox(t *testing.T) {
	for seed := range uint64(50) {
		random := rand.New(rand.NewPCG(seed, 1))
		all, foreign, own := stream(random, 40)
		sources := map[string]io.Reader{"whole": bytes.NewReader(all), "halves": iotest.HalfReader(bytes.NewReader(all)), "with its end": iotest.DataErrReader(bytes.NewReader(all))}
		if seed < 3 {
			sources["bytes"] = iotest.OneByteReader(bytes.NewReader(all))
		}
		for name, source := range sources {
			i := newInbox(1 << 30)
			var got []byte
			p := make([]byte, 1+random.IntN(40_000))
			for {
				n, err := i.read(source, p)
				got = append(got, p[:n]...)
				if err != nil {
					break
				}
			}
			if !bytes.Equal(got, foreign) {
				t.Fatalf("seed %d, %s: the library has %d bytes, not %d", seed, name, len(got), len(foreign))
			}
			if kept, dropped := i.rest(); !bytes.Equal(kept, own) || dropped != 0 {
				t.Fatalf("seed %d, %s: there are %d bytes of messages, not %d", seed, name, len(kept), len(own))
			}
		}
	}
}

// TestInboxFull has nobody take: what is more than may wait is dropped as whole
// messages, and counted.
func TestInboxFull(t *testing.T) {
	one := []byte("MSG a w1 3\r\nabc\r\n")
	const n, most = 1000, 100
	i := newInbox(most * len(one))
	source := iotest.OneByteReader(io.MultiReader(bytes.NewReader(bytes.Repeat(one, n)), strings.NewReader("PING\r\n")))
	if got, err := i.read(source, make([]byte, 100)); err != nil || got == 0 {
		t.Fatalf("%d %v", got, err)
	}
	i.close()
	kept, dropped := i.rest()
	if count := len(kept) / len(one); count+dropped != n || count < most || count > most+1 {
		t.Errorf("%d are kept and %d dropped", count, dropped)
	}
	for len(kept) > 0 {
		var m Message
		if m, kept = Next(kept); m.ID != 1 || string(m.Payload) != "abc" {
			t.Fatalf("%+v", m)
		}
	}
}

// FuzzInbox parts any bytes, in pieces of any size: the pieces make no difference, and
// nobody has what was not sent.
func FuzzInbox(f *testing.F) {
	for _, seed := range []string{
		"MSG a w1 3\r\nabc\r\nPING\r\n", "HMSG a w1 r 12 13\r\nNATS/1.0\r\n\r\nx\r\n", "HMSG a w1 5 3\r\nabc\r\n", "MSG a w1 999999999\r\n", "MSG a w1\r\n",
		"MSG a w 0\r\n\r\n", "MSG  w1 0\r\n\r\n", "MSG a w1 -1\r\n", "INFO {}\r\nMSG a 1 2\r\nab\r\nMSG a w2 0\r\n\r\n", "\r\n\n\n", "MSG a w1 1 1 1 1\r\n",
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, sent []byte, piece uint8) {
		part := func(source io.Reader) (foreign, own []byte) {
			i := newInbox(1 << 30)
			i.buf = make([]byte, 64) // what announces much has much memory only as it comes
			p := make([]byte, 50)
			for {
				n, err := i.read(source, p)
				foreign = append(foreign, p[:n]...)
				if err != nil {
					own, _ = i.rest()
					return foreign, own
				}
			}
		}
		foreign, own := part(bytes.NewReader(sent))
		if len(foreign)+len(own) > len(sent) {
			t.Fatalf("%d and %d bytes of %d", len(foreign), len(own), len(sent))
		}
		again, ownAgain := part(&pieces{sent, int(piece) + 1})
		if !bytes.Equal(foreign, again) || !bytes.Equal(own, ownAgain) {
			t.Fatalf("in pieces: %q and %q, not %q and %q", again, ownAgain, foreign, own)
		}
		for len(own) > 0 {
			_, own = Next(own)
		}
	})
}

// pieces reads so many bytes at once.
type pieces struct {
	rest []byte
	size int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.rest[:min(p.size, len(p.rest))])
	p.rest = p.rest[n:]
	return n, nil
}
