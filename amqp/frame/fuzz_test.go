package frame

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// seeds are some methods of each kind with anything in them, as payloads.
func seeds() (all [][]byte) {
	one := rapid.Custom(func(t *rapid.T) []byte {
		m := drawn(t, rapid.SampledFrom(ids()).Draw(t, "id"))
		b, err := AppendMethod(nil, 1, m)
		if err != nil {
			t.Fatal(err)
		}
		return b
	})
	for seed := range 100 {
		all = append(all, one.Example(seed))
	}
	return all
}

// FuzzFrames reads a stream in pieces and whole, and wants the same.
func FuzzFrames(f *testing.F) {
	var stream []byte // few bytes, or the engine is long at making them fewer
	for i, b := range seeds() {
		if len(stream)+len(b) > 200 {
			f.Add(stream, []byte{byte(i)}, uint16(i))
			f.Add(stream[:len(stream)-3], []byte{3, 200}, uint16(1000))
			stream = nil
		}
		if len(b) < 200 {
			stream = append(stream, b...)
		}
	}
	f.Add(AppendContent(AppendHeartbeat(nil), 1, []byte("\x80\x00\x01a"), make([]byte, 100), MinFrame), []byte{9}, uint16(0))
	f.Add([]byte("\x01\x00\x01\xff\xff\xff\xff"), []byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, sent, sizes []byte, size uint16) {
		p, q := NewReader(&pieces{b: sent, sizes: sizes}, int(size)), NewReader(bytes.NewReader(sent), len(sent))
		p.Burst = 3 * int(size)
		for {
			one, err := p.Next()
			other, same := q.Next()
			if !reflect.DeepEqual(err, same) || one.Kind != other.Kind || one.Channel != other.Channel || !bytes.Equal(one.Payload, other.Payload) {
				t.Fatalf("%+v, %v in pieces and %+v, %v whole", one, err, other, same)
			}
			if err != nil {
				return
			}
			if one.Kind == KindMethod {
				a, err := p.Method(one)
				b, same := DecodeMethod(one.Payload)
				if !reflect.DeepEqual(err, same) || err == nil && equal(a, b) != nil {
					t.Fatalf("%+v, %v and %+v, %v", a, err, b, same)
				}
			}
		}
	})
}

// equal says how two methods are not written the same: NaN is not equal to itself.
func equal(a, b Method) error {
	x, err := AppendMethod(nil, 1, a)
	if err != nil {
		return err
	}
	y, err := AppendMethod(nil, 1, b)
	if err != nil {
		return err
	}
	if !bytes.Equal(x, y) {
		return errors.New("not equal")
	}
	return nil
}

// FuzzMethod reads anything as a method, and reads again what it writes.
func FuzzMethod(f *testing.F) {
	for _, b := range seeds() {
		f.Add(b[head : len(b)-1])
	}
	f.Fuzz(func(t *testing.T, payload []byte) {
		m, err := DecodeMethod(payload)
		if err != nil {
			if !isFault(err) || m != nil {
				t.Fatalf("%v, %v", m, err)
			}
			return
		}
		b, err := AppendMethod(nil, 1, m)
		if err != nil {
			t.Fatal(err)
		}
		again, err := DecodeMethod(b[head : len(b)-1])
		if err != nil || equal(m, again) != nil {
			t.Fatalf("%+v came back as %+v, %v", m, again, err)
		}
	})
}

// FuzzTable reads anything as a table.
func FuzzTable(f *testing.F) {
	for seed := range 50 {
		b, err := tables(3).Example(seed).Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		table, err := DecodeTable(b)
		if err != nil {
			if !isFault(err) {
				t.Fatal(err)
			}
			return
		}
		out, err := table.Append(nil)
		if err != nil || len(out) > len(b) {
			t.Fatalf("%q is %q, %v", b, out, err)
		}
		again, err := DecodeTable(out)
		if err != nil {
			t.Fatal(err)
		}
		if third, err := again.Append(nil); err != nil || !bytes.Equal(out, third) {
			t.Fatalf("%q is %q, %v", out, third, err)
		}
	})
}

// FuzzProperties reads anything as properties, and wants both readers to agree.
func FuzzProperties(f *testing.F) {
	for seed := range 50 {
		p := properties().Example(seed)
		b, err := p.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var p Properties
		err, check := p.Decode(b), CheckProperties(b)
		if !reflect.DeepEqual(err, check) {
			t.Fatalf("%v and %v", err, check)
		}
		if err != nil {
			if !isFault(err) {
				t.Fatal(err)
			}
			return
		}
		out, err := p.Append(nil)
		if err != nil || len(out) > len(b) {
			t.Fatalf("%q is %q, %v", b, out, err)
		}
		if len(p.Headers) == 0 && !bytes.Equal(out, b) {
			t.Fatalf("%q is %q", b, out)
		}
	})
}
