package frame

import (
	"bytes"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// pieces reads its bytes in pieces of these sizes.
type pieces struct {
	b     []byte
	sizes []byte
	i     int
}

func (p *pieces) Read(b []byte) (int, error) {
	if len(p.b) == 0 {
		return 0, io.EOF
	}
	n := len(p.b)
	if len(p.sizes) > 0 {
		n = min(n, int(p.sizes[p.i%len(p.sizes)])+1)
		p.i++
	}
	n = copy(b, p.b[:n])
	p.b = p.b[n:]
	return n, nil
}

type taken struct {
	Kind    Kind
	Channel uint16
	Payload string
}

func all(r *Reader) (frames []taken, err error) {
	for {
		f, err := r.Next()
		if err != nil {
			return frames, err
		}
		frames = append(frames, taken{f.Kind, f.Channel, string(f.Payload)})
	}
}

func TestReaderInPieces(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var b []byte
		var want []taken
		for range rapid.IntRange(0, 20).Draw(t, "frames") {
			channel := rapid.Uint16Range(1, 9).Draw(t, "channel")
			switch rapid.IntRange(0, 2).Draw(t, "kind") {
			case 0:
				b = AppendHeartbeat(b)
				want = append(want, taken{KindHeartbeat, 0, ""})
			case 1:
				body := bytes.Repeat([]byte("b"), rapid.IntRange(1, 3000).Draw(t, "size"))
				b = AppendBody(b, channel, body, 0)
				want = append(want, taken{KindBody, channel, string(body)})
			case 2:
				b, _ = AppendMethod(b, channel, &BasicAck{DeliveryTag: 1})
				want = append(want, taken{KindMethod, channel, "\x00\x3c\x00\x50\x00\x00\x00\x00\x00\x00\x00\x01\x00"})
			}
		}
		r := NewReader(&pieces{b: b, sizes: rapid.SliceOf(rapid.Byte()).Draw(t, "sizes")}, rapid.IntRange(0, 500).Draw(t, "buffer"))
		r.Burst = rapid.SampledFrom([]int{0, 1000, 5000}).Draw(t, "burst")
		if got, err := all(r); err != io.EOF || !reflect.DeepEqual(got, want) {
			t.Fatalf("%v, %v", got, err)
		}
	})
}

func TestBodyIsCut(t *testing.T) {
	body := strings.Repeat("0123456789", 1000)
	b := AppendContent(nil, 3, []byte("\x00\x00"), []byte(body), 5)
	r := NewReader(bytes.NewReader(b), 64)
	r.Maximum = MinFrame
	frames, err := all(r)
	if err != io.EOF || len(frames) != 4 || len(frames[1].Payload) != MinFrame-Overhead || frames[1].Payload+frames[2].Payload+frames[3].Payload != body {
		t.Errorf("%d frames, %v", len(frames), err)
	}
	h, err := DecodeHeader([]byte(frames[0].Payload))
	if err != nil || h.Class != ClassBasic || h.Size != 10000 || string(h.Properties) != "\x00\x00" {
		t.Errorf("%+v, %v", h, err)
	}
	if b := AppendContent(nil, 3, []byte("\x00\x00"), nil, 5); len(b) != 14+Overhead {
		t.Errorf("an empty body is %q", b)
	}
}

func TestFramesRefused(t *testing.T) {
	for what, b := range map[string]string{
		"unknown type":           "\x04",
		"HTTP":                   "GET / HTTP/1.1\r\n\r\n",
		"large":                  "\x01\x00\x01\x00\x00\x10\x00",
		"largest":                "\x01\x00\x01\xff\xff\xff\xff",
		"no end":                 "\x01\x00\x01\x00\x00\x00\x01x\xCD",
		"heartbeat on a channel": "\x08\x00\x01\x00\x00\x00\x00\xCE",
		"heartbeat with more":    "\x08\x00\x00\x00\x00\x00\x01x\xCE",
		"body on channel 0":      "\x03\x00\x00\x00\x00\x00\x01x\xCE",
		"header on channel 0":    "\x02\x00\x00\x00\x00\x00\x01x\xCE",
	} {
		r := NewReader(strings.NewReader(b), 64)
		r.Maximum = MinFrame
		_, err := r.Next()
		e, ok := errors.AsType[*Error](err)
		if !ok || e.Scope != OfConnection || e.Code != FrameError && e.Code != UnexpectedFrame {
			t.Errorf("%s: %v", what, err)
		}
		if _, again := r.Next(); again != err {
			t.Errorf("%s: then %v", what, again)
		}
	}
	for what, b := range map[string]string{
		"short": "\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00", "weight": "\x00\x3c\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
		"negative": "\x00\x3c\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00\x00\x00", "properties": "\x00\x3c\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80\x00",
	} {
		if _, err := DecodeHeader([]byte(b)); !isFault(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestNothingForWhatIsDeclared has peers declare much and send little.
func TestNothingForWhatIsDeclared(t *testing.T) {
	r := NewReader(io.MultiReader(strings.NewReader("\x01\x00\x01\x00\xff\xff\x00abc")), 64)
	r.Maximum = 64 << 20
	if _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
	if len(r.buf) > 128 {
		t.Errorf("there are %d bytes for it", len(r.buf))
	}
	table := []byte("\x00\x00\x00\x07\x01aS\x7f\xff\xff\xff")
	if n := testing.AllocsPerRun(100, func() { _, _ = DecodeTable(table) }); n > 20 {
		t.Errorf("%v allocations", n)
	}
}

func TestReaderComesBackToItsBuffer(t *testing.T) {
	b := AppendBody(nil, 1, make([]byte, 100_000), 1<<20)
	for range 5 {
		b = AppendHeartbeat(b)
	}
	r := NewReader(&pieces{b: b, sizes: []byte{7}}, 256)
	r.Maximum, r.Burst = 1<<20, 4096
	if frames, err := all(r); err != io.EOF || len(frames) != 6 || len(r.buf) != 256 {
		t.Errorf("%d frames, %v, a buffer of %d", len(frames), err, len(r.buf))
	}
}

func TestProtocolHeader(t *testing.T) {
	r := NewReader(&pieces{b: AppendHeartbeat([]byte(ProtocolHeader)), sizes: []byte{0}}, 64)
	if h, err := r.ProtocolHeader(); err != nil || string(h[:]) != ProtocolHeader {
		t.Errorf("%q, %v", h, err)
	}
	if f, err := r.Next(); err != nil || f.Kind != KindHeartbeat {
		t.Errorf("%+v, %v", f, err)
	}
	if _, err := NewReader(strings.NewReader("AMQP"), 64).ProtocolHeader(); err != io.ErrUnexpectedEOF {
		t.Error(err)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	publish, err := AppendMethod(nil, 1, &BasicPublish{Exchange: "orders", RoutingKey: "a.b.c"})
	if err != nil {
		t.Fatal(err)
	}
	p := Properties{ContentType: "application/json", DeliveryMode: 2, Headers: Table{"trace": "00-abc"}}
	properties, err := p.Append(nil)
	if err != nil {
		t.Fatal(err)
	}
	one := AppendContent(publish, 1, properties, make([]byte, 256), DefaultMaximum)
	r := NewReader(&endless{b: one}, 4096)
	read := func() {
		for {
			f, err := r.Next()
			if err != nil {
				t.Fatal(err)
			}
			switch f.Kind {
			case KindMethod:
				_, err = r.Method(f)
			case KindHeader:
				_, err = DecodeHeader(f.Payload)
			default:
				return
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	read()
	if n := testing.AllocsPerRun(100, read); n > 0 {
		t.Errorf("reading a message takes %v allocations", n)
	}
	out := make([]byte, 0, 4096)
	deliver := &BasicDeliver{ConsumerTag: "ctag", DeliveryTag: 1, Exchange: "orders", RoutingKey: "a.b.c"}
	write := func() {
		out, _ = AppendMethod(out[:0], 1, deliver)
		out = AppendContent(out, 1, properties, one[:256], DefaultMaximum)
	}
	if n := testing.AllocsPerRun(100, write); n > 0 {
		t.Errorf("writing a message takes %v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { out, _ = p.Append(out[:0]) }); n > 0 {
		t.Errorf("writing properties takes %v allocations", n)
	}
}

// endless is its bytes again and again.
type endless struct {
	b []byte
	i int
}

func (e *endless) Read(b []byte) (int, error) {
	n := copy(b, e.b[e.i:])
	e.i = (e.i + n) % len(e.b)
	return n, nil
}
