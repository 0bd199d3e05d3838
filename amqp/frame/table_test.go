package frame

import (
	"errors"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// values draws what a table can have, so many levels deep.
func values(depth int) *rapid.Generator[any] {
	simple := []*rapid.Generator[any]{
		rapid.Just[any](nil), rapid.Bool().AsAny(), rapid.Int8().AsAny(), rapid.Uint8().AsAny(), rapid.Int16().AsAny(), rapid.Uint16().AsAny(),
		rapid.Int32().AsAny(), rapid.Uint32().AsAny(), rapid.Int64().AsAny(), rapid.Float32().AsAny(), rapid.Float64().AsAny(), rapid.String().AsAny(),
		rapid.Map(rapid.Uint64(), func(n uint64) any { return Timestamp(n) }),
		rapid.Custom(func(t *rapid.T) any { return Decimal{rapid.Uint8().Draw(t, "scale"), rapid.Int32().Draw(t, "value")} }),
		rapid.Custom(func(t *rapid.T) any { return append([]byte{}, rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")...) }),
	}
	if depth == 0 {
		return rapid.OneOf(simple...)
	}
	return rapid.OneOf(append(simple,
		rapid.Custom(func(t *rapid.T) any {
			return append([]any{}, rapid.SliceOfN(values(depth-1), 0, 4).Draw(t, "array")...)
		}),
		tables(depth-1).AsAny(),
	)...)
}

func tables(depth int) *rapid.Generator[Table] {
	return rapid.Custom(func(t *rapid.T) Table {
		return Table(rapid.MapOfN(rapid.StringN(0, 40, 255), values(depth), 0, 5).Draw(t, "table"))
	})
}

func TestTableRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := tables(3).Draw(t, "table")
		b, err := in.Append([]byte("x"))
		if err != nil {
			t.Fatal(err)
		}
		out, err := DecodeTable(b[1:])
		if err != nil || !reflect.DeepEqual(in, out) {
			t.Fatalf("%#v came back as %#v, %v", in, out, err)
		}
		if again, err := out.Append([]byte("x")); err != nil || string(again) != string(b) {
			t.Fatalf("equal tables are %q and %q, %v", b, again, err)
		}
	})
}

func TestTableTypes(t *testing.T) {
	for _, c := range []struct {
		in, out any
		wire    string
	}{
		{true, true, "t\x01"}, {int8(-1), int8(-1), "b\xFF"}, {uint8(255), uint8(255), "B\xFF"}, {int16(-2), int16(-2), "s\xFF\xFE"},
		{uint16(258), uint16(258), "u\x01\x02"}, {int32(-1), int32(-1), "I\xFF\xFF\xFF\xFF"}, {uint32(1), uint32(1), "i\x00\x00\x00\x01"},
		{int64(-1), int64(-1), "l\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"}, {7, int64(7), "l\x00\x00\x00\x00\x00\x00\x00\x07"}, {uint64(7), int64(7), "l\x00\x00\x00\x00\x00\x00\x00\x07"},
		{float32(1), float32(1), "f\x3F\x80\x00\x00"}, {1.0, 1.0, "d\x3F\xF0\x00\x00\x00\x00\x00\x00"}, {Decimal{2, -1}, Decimal{2, -1}, "D\x02\xFF\xFF\xFF\xFF"},
		{"é", "é", "S\x00\x00\x00\x02\xC3\xA9"}, {[]byte{1}, []byte{1}, "x\x00\x00\x00\x01\x01"}, {Timestamp(1), Timestamp(1), "T\x00\x00\x00\x00\x00\x00\x00\x01"},
		{[]any{nil, false}, []any{nil, false}, "A\x00\x00\x00\x03Vt\x00"}, {map[string]any{"a": nil}, Table{"a": nil}, "F\x00\x00\x00\x03\x01aV"}, {nil, nil, "V"},
	} {
		b, err := Table{"n": c.in}.Append(nil)
		if err != nil || string(b[4:]) != "\x01n"+c.wire {
			t.Errorf("%#v is %q, %v", c.in, b, err)
			continue
		}
		if out, err := DecodeTable(b); err != nil || !reflect.DeepEqual(out["n"], c.out) {
			t.Errorf("%#v came back as %#v, %v", c.in, out["n"], err)
		}
	}
	got, err := DecodeTable([]byte("\x00\x00\x00\x0B\x01nL\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFE"))
	if err != nil || got["n"] != int64(-2) {
		t.Errorf("L is %#v, %v", got["n"], err)
	}
}

func TestTableRefused(t *testing.T) {
	deep := func(open string, n int) []byte {
		var v any = "bottom"
		for range n {
			if open == "F" {
				v = Table{"a": v}
			} else {
				v = []any{v}
			}
		}
		// Around what Append refuses.
		c := coder{}
		var write func(v any) []byte
		write = func(v any) []byte {
			switch v := v.(type) {
			case Table:
				inner := append([]byte("\x01a"), write(v["a"])...)
				return append([]byte{'F', 0, 0, byte(len(inner) >> 8), byte(len(inner))}, inner...)
			case []any:
				inner := write(v[0])
				return append([]byte{'A', 0, 0, byte(len(inner) >> 8), byte(len(inner))}, inner...)
			}
			return []byte{'V'}
		}
		c.out = append([]byte("\x01a"), write(v)...)
		return append([]byte{0, 0, byte(len(c.out) >> 8), byte(len(c.out))}, c.out...)
	}
	for what, b := range map[string][]byte{
		"nothing":                {},
		"half a length":          {0, 0},
		"more than there is":     {0, 0, 0, 5, 0},
		"negative":               {0xFF, 0xFF, 0xFF, 0xFF, 0},
		"something behind":       {0, 0, 0, 0, 0},
		"name that is cut":       []byte("\x00\x00\x00\x03\x05ab"),
		"name alone":             []byte("\x00\x00\x00\x02\x01a"),
		"unknown type":           []byte("\x00\x00\x00\x03\x01a?"),
		"cut number":             []byte("\x00\x00\x00\x05\x01aI\x00\x00"),
		"long text":              []byte("\x00\x00\x00\x07\x01aS\x7F\xFF\xFF\xFF"),
		"negative bytes":         []byte("\x00\x00\x00\x07\x01ax\xFF\xFF\xFF\xFF"),
		"array that is too long": []byte("\x00\x00\x00\x08\x01aA\x00\x00\x00\x09V"),
		"table that is too long": []byte("\x00\x00\x00\x08\x01aF\x00\x00\x00\x09V"),
		"deep tables":            deep("F", MaxDepth+1),
		"deep arrays":            deep("A", MaxDepth+1),
		"many values":            append([]byte{0, 0, 0x30, 0x03}, []byte(strings.Repeat("\x01aV", MaxEntries+1))...),
	} {
		_, err := DecodeTable(b)
		if e, ok := errors.AsType[*Error](err); !ok || e.Scope != OfConnection || e.Code != SyntaxError {
			t.Errorf("%s: %v", what, err)
		}
	}
	for what, b := range map[string][]byte{"deep tables": deep("F", MaxDepth), "deep arrays": deep("A", MaxDepth), "many values": append([]byte{0, 0, 0x30, 0x00}, []byte(strings.Repeat("\x01aV", MaxEntries))...)} {
		if _, err := DecodeTable(b); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	var loop any = "bottom"
	for range MaxDepth + 1 {
		loop = []any{loop}
	}
	for _, bad := range []any{uint64(1 << 63), struct{}{}, loop, Table{strings.Repeat("x", 256): 1}} {
		if b, err := (Table{"a": bad}).Append([]byte("x")); err == nil || string(b) != "x" {
			t.Errorf("%T was written as %q, %v", bad, b, err)
		}
	}
}
