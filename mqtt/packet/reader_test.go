package packet

import (
	"bytes"
	"errors"
	"io"
	"os"
	"reflect"
	"testing"
	"testing/iotest"

	"github.com/fleetbus/fleetbus/mqtt/packet/packettest"
)

// stream is a CONNECT in version v, the samples of what else a client sends, and a
// payload of size bytes.
func stream(t testing.TB, v Version, size int) (wire []byte, want []Packet) {
	t.Helper()
	want = []Packet{&Connect{Version: v, CleanStart: true, ClientID: "c"}}
	for _, s := range samples() {
		if s.v == v && s.from == Client && s.want.Type() != CONNECT {
			want = append(want, s.want)
		}
	}
	want = append(want, &Publish{Message: Message{Topic: []byte("big"), Payload: bytes.Repeat([]byte("x"), size)}}, &Pingreq{})
	for _, p := range want {
		var err error
		if wire, err = p.Append(wire, v, 0); err != nil {
			t.Fatal(err)
		}
	}
	return wire, want
}

func TestReader(t *testing.T) {
	sources := map[string]func(io.Reader) io.Reader{
		"whole": func(r io.Reader) io.Reader { return r },
		"bytes": iotest.OneByteReader, "halves": iotest.HalfReader, "late": iotest.DataErrReader,
	}
	for _, v := range []Version{V311, V5} {
		sent, want := stream(t, v, 5000)
		for name, cut := range sources {
			for _, size := range []int{0, 100, 4096, 1 << 20} {
				r := NewReader(cut(bytes.NewReader(sent)), Client, size)
				for i, p := range want {
					got, err := r.Next()
					if err != nil || !reflect.DeepEqual(got, p) {
						t.Fatalf("%s, buffer of %d: packet %d of %v was read as %s: %v", name, size, i, v, describe(got), err)
					}
				}
				if got, err := r.Next(); got != nil || err != io.EOF || r.Version != v {
					t.Errorf("%s, buffer of %d: after the end came %v: %v", name, size, got, err)
				}
			}
		}
	}
}

// counted counts the calls of Read, and what was read into at most.
type counted struct {
	io.Reader
	calls, room int
}

func (c *counted) Read(b []byte) (int, error) {
	c.calls++
	c.room = max(c.room, len(b))
	return c.Reader.Read(b)
}

// TestReaderTakesMany wants many packets out of one read, and the bytes that wait
// to be those of whole packets.
func TestReaderTakesMany(t *testing.T) {
	sent := append(bytes.Repeat([]byte{0xC0, 0}, 100), 0x30, 5, 0)
	c := &counted{Reader: bytes.NewReader(sent)}
	r := NewReader(c, Client, 4096)
	r.Version = V311
	for i := range 100 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
		want := len(sent) - 2*(i+1)
		if i == 99 {
			want = 0 // Part of a packet does not count.
		}
		if n := r.Buffered(); n != want {
			t.Fatalf("after %d packets %d bytes wait, want %d", i+1, n, want)
		}
	}
	if c.calls != 1 {
		t.Errorf("it took %d reads", c.calls)
	}
	if _, err := r.Next(); err != io.ErrUnexpectedEOF {
		t.Errorf("a packet that is cut ended with %v", err)
	}
}

// TestReaderMaximum refuses a packet by its header, and has no memory for what was
// only announced.
func TestReaderMaximum(t *testing.T) {
	header := []byte{0x30, 0xFF, 0xFF, 0xFF, 0x7F}
	for _, test := range []struct {
		from   Side
		clause string
	}{{Client, "MQTT-3.2.2-15"}, {Server, "MQTT-3.1.2-24"}} {
		r := NewReader(io.MultiReader(bytes.NewReader(header), iotest.ErrReader(errors.New("read on"))), test.from, 64)
		r.Version = V5
		_, err := r.Next()
		if e, ok := err.(*Error); !ok || e.Code != PacketTooLarge || e.Clause != test.clause {
			t.Errorf("a packet of 256 MB from a %v ended with %v", test.from, err)
		}
		if _, again := r.Next(); again != err {
			t.Errorf("after %v came %v", err, again)
		}
	}
	c := &counted{Reader: io.MultiReader(bytes.NewReader(header), bytes.NewReader(make([]byte, 1000)))}
	r := NewReader(c, Client, 64)
	r.Version, r.Maximum = V5, maxRemaining+5
	if _, err := r.Next(); err != io.ErrUnexpectedEOF || c.room > 2048 {
		t.Errorf("it had room for %d bytes when 1,005 had come: %v", c.room, err)
	}
	exact := []byte{0x30, 5, 0, 1, 'a', 'b', 'c'}
	for limit, want := range map[int]bool{6: false, 7: true} {
		r := NewReader(bytes.NewReader(exact), Client, 64)
		r.Version, r.Maximum = V311, limit
		if _, err := r.Next(); (err == nil) != want {
			t.Errorf("7 bytes where %d are the maximum: %v", limit, err)
		}
	}
}

// TestReaderHeaders refuses what a header shows at once, and before the rest.
func TestReaderHeaders(t *testing.T) {
	for _, test := range []struct {
		sent   string
		clause string
	}{
		{"\xC1", "MQTT-2.1.3-1"}, {"\x16", "MQTT-3.1.0-2"}, {"\x36", "MQTT-3.3.1-4"}, {"\x20", "MQTT-4.13.1-1"},
		{"\xC0\x80\x00", "MQTT-1.5.5-1"}, {"\xC0\xFF\xFF\xFF\xFF", "MQTT 1.5.5"}, {"\xC0\x80\x80\x80\x00", "MQTT-1.5.5-1"},
	} {
		r := NewReader(io.MultiReader(bytes.NewReader([]byte(test.sent)), iotest.ErrReader(errors.New("read on"))), Client, 64)
		r.Version = V5
		_, err := r.Next()
		if e, ok := err.(*Error); !ok || e.Clause != test.clause {
			t.Errorf("% X ended with %v, want %s", test.sent, err, test.clause)
		}
	}
}

// TestReaderVersion looks for the version to answer in.
func TestReaderVersion(t *testing.T) {
	for _, test := range []struct {
		spec string
		want Version
	}{
		{`10 "MQIsdp" 03 02 0000 "c"`, V311}, {`10 "MQTT" 03 02 0000 "c"`, V311}, {`10 "MQTT" 84 02 0000 "c"`, V311},
		{`10 "MQTT" 06 02 0000 {} "c"`, V5}, {`10 "MQTT" 85 02 0000 {} "c"`, V5}, {`10 "HTTP" 05 02 0000 {} "c"`, 0},
		{`10 "MQTT" 05 03 0000 {} "c"`, V5}, {`10 "MQTT" 04 03 0000 "c"`, V311}, {`10 "MQTT"`, 0},
	} {
		first, body := packettest.Wire(test.spec)
		r := NewReader(bytes.NewReader(append([]byte{first, byte(len(body))}, body...)), Client, 64)
		if p, err := r.Next(); p != nil || err == nil || r.Version != test.want {
			t.Errorf("%s is to be answered in %v, want %v: %v", test.spec, r.Version, test.want, err)
		}
	}
}

// TestReaderTimeout reads on after a timeout within a packet.
func TestReaderTimeout(t *testing.T) {
	sent := []byte{0x30, 5, 0, 1, 'a', 'b', 'c'}
	r := NewReader(iotest.TimeoutReader(iotest.OneByteReader(bytes.NewReader(sent[:2]))), Client, 64)
	r.Version = V311
	if _, err := r.Next(); err != iotest.ErrTimeout {
		t.Fatalf("it ended with %v", err)
	}
	if n := r.end - r.start; n != 1 {
		t.Fatalf("%d bytes are left, want 1", n)
	}
	// The source fails for good, so that the rest comes from another.
	r.source = bytes.NewReader(sent[1:])
	if p, err := r.Next(); err != nil || string(p.(*Publish).Payload) != "bc" {
		t.Errorf("it read %v: %v", p, err)
	}
	deadline := NewReader(iotest.ErrReader(os.ErrDeadlineExceeded), Client, 64)
	if _, err := deadline.Next(); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a timeout became %v", err)
	}
}

// idle reads nothing and says nothing.
type idle struct{}

func (idle) Read([]byte) (int, error) { return 0, nil }

func TestReaderNoProgress(t *testing.T) {
	if _, err := NewReader(idle{}, Client, 64).Next(); err != io.ErrNoProgress {
		t.Errorf("it ended with %v", err)
	}
}

// TestReaderShrinks wants the small buffer back when a connection waits.
func TestReaderShrinks(t *testing.T) {
	big := Publish{Message: Message{Topic: []byte("a"), Payload: make([]byte, 60_000), UserProperties: []Pair{{[]byte("n"), []byte("v")}}}}
	sent, err := big.Append(nil, V5, 0)
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(iotest.HalfReader(io.MultiReader(bytes.NewReader(sent), bytes.NewReader([]byte{0xC0, 0}))), Client, 1024)
	r.Version = V5
	if p, err := r.Next(); err != nil || len(p.(*Publish).Payload) != 60_000 || cap(r.buf) < 60_000 {
		t.Fatalf("it read %v: %v", p.Type(), err)
	}
	if _, err := r.Next(); err != nil || cap(r.buf) != 1024 || r.own.publish.Payload != nil || r.c.lent[:1][0].Name != nil {
		t.Errorf("it holds a buffer of %d bytes: %v", cap(r.buf), err)
	}
}

// records are read one by one, as TLS has them.
type records struct {
	all   [][]byte
	reads int
}

func (r *records) Read(b []byte) (int, error) {
	if len(r.all) == 0 {
		return 0, io.EOF
	}
	r.reads++
	n := copy(b, r.all[0])
	if r.all[0] = r.all[0][n:]; len(r.all[0]) == 0 {
		r.all = r.all[1:]
	}
	return n, nil
}

// TestReaderBurst reads large records with small ones between them, all at once each,
// and wants the small buffer back when pings come.
func TestReaderBurst(t *testing.T) {
	one, err := (&Publish{Message: Message{Topic: []byte("a"), Payload: make([]byte, 256)}}).Append(nil, V5, 0)
	if err != nil {
		t.Fatal(err)
	}
	const n, record, rest = 570, 16 << 10, 100
	source, sent := &records{}, bytes.Repeat(one, n)
	for len(sent) > 0 {
		for _, size := range []int{record, rest} {
			size = min(size, len(sent))
			source.all, sent = append(source.all, sent[:size]), sent[size:]
		}
	}
	want := len(source.all) + 2 // the first one comes in three: two do not fit the small buffer
	ping := []byte{0xC0, 0}
	source.all = append(source.all, ping, ping, ping)
	r := NewReader(source, Client, 2<<10)
	r.Version, r.Burst = V5, 20<<10
	for i := range n {
		if p, err := r.Next(); err != nil || p.Type() != PUBLISH {
			t.Fatalf("%d: %v", i, err)
		}
	}
	if source.reads > want || cap(r.buf) != r.Burst {
		t.Errorf("%d reads, not %d, into a buffer of %d", source.reads, want, cap(r.buf))
	}
	for range 3 {
		if _, err := r.Next(); err != nil {
			t.Fatal(err)
		}
	}
	if cap(r.buf) != 2<<10 {
		t.Errorf("it holds a buffer of %d bytes", cap(r.buf))
	}
}

// endless repeats a packet for ever.
type endless struct {
	packet []byte
	at     int
}

func (e *endless) Read(b []byte) (int, error) {
	n := 0
	for n < len(b) {
		k := copy(b[n:], e.packet[e.at:])
		n, e.at = n+k, (e.at+k)%len(e.packet)
	}
	return n, nil
}

func full(payload int) *Publish {
	return &Publish{
		Message: Message{
			Topic: []byte("plant/7/line/3/temperature"), Payload: make([]byte, payload), QoS: 1, Format: Text, Expires: true, Expiry: 60,
			ContentType: []byte("application/json"), ResponseTopic: []byte("r/s"), CorrelationData: []byte("12345678"),
			UserProperties: []Pair{{[]byte("name"), []byte("value")}, {[]byte("other"), []byte("value")}},
		},
		ID: 7, SubscriptionIDs: []uint32{1, 300},
	}
}

// TestAllocations wants none for what there is most of.
func TestAllocations(t *testing.T) {
	for _, v := range []Version{V311, V5} {
		for _, p := range []Packet{full(256), &Ack{Kind: PUBACK, ID: 7}, &Pingresp{}} {
			sent, err := p.Append(nil, v, 0)
			if err != nil {
				t.Fatal(err)
			}
			r := NewReader(&endless{packet: sent}, Server, 64<<10)
			r.Version = v
			if n := testing.AllocsPerRun(10_000, func() {
				if _, err := r.Next(); err != nil {
					t.Fatal(err)
				}
			}); n > 0 {
				t.Errorf("reading a %v of %v allocates %v times", p.Type(), v, n)
			}
			out := make([]byte, 0, 1024)
			if n := testing.AllocsPerRun(1000, func() {
				if out, err = p.Append(out[:0], v, 0); err != nil {
					t.Fatal(err)
				}
			}); n > 0 {
				t.Errorf("writing a %v of %v allocates %v times", p.Type(), v, n)
			}
		}
	}
	// On the stack of who writes it, too.
	out := make([]byte, 0, 1024)
	payload := make([]byte, 10)
	if n := testing.AllocsPerRun(1000, func() {
		ack := Ack{Kind: PUBACK, ID: 7, Code: NoMatchingSubscribers}
		out, _ = ack.Append(out[:0], V5, 100)
		m := Publish{Message: Message{Topic: payload, Payload: payload}}
		out, _ = m.Append(out, V5, 1000)
	}); n > 0 {
		t.Errorf("writing packets of the stack allocates %v times", n)
	}
}

func BenchmarkReadPublish(b *testing.B) {
	plain := &Publish{Message: Message{Topic: full(0).Topic, Payload: make([]byte, 256), QoS: 1}, ID: 7}
	for _, bench := range []struct {
		name string
		p    *Publish
		v    Version
	}{{"3.1.1", plain, V311}, {"5.0", plain, V5}, {"properties", full(256), V5}} {
		b.Run(bench.name, func(b *testing.B) {
			sent, err := bench.p.Append(nil, bench.v, 0)
			if err != nil {
				b.Fatal(err)
			}
			r := NewReader(&endless{packet: sent}, Server, 64<<10)
			r.Version = bench.v
			b.SetBytes(int64(len(sent)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := r.Next(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkAppendPublish(b *testing.B) {
	plain := &Publish{Message: Message{Topic: full(0).Topic, Payload: make([]byte, 256), QoS: 1}, ID: 7}
	for _, bench := range []struct {
		name string
		p    *Publish
		v    Version
	}{{"3.1.1", plain, V311}, {"5.0", plain, V5}, {"properties", full(256), V5}} {
		b.Run(bench.name, func(b *testing.B) {
			out := make([]byte, 0, 4096)
			b.SetBytes(int64(bench.p.Size(bench.v)))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if out, err = bench.p.Append(out[:0], bench.v, 1<<20); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
