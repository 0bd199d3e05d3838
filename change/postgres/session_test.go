package postgres

import "testing"

func TestScan(t *testing.T) {
	var (
		text       string
		yes        = false
		n          int
		long       int64
		unsigned   uint64
		oid        uint32
		some, none *int64
	)
	row := [][]byte{[]byte("a"), []byte("t"), []byte("-1"), []byte("-9223372036854775808"), []byte("18446744073709551615"), []byte("4294967295"), []byte("7"), nil}
	if err := scan(row, &text, &yes, &n, &long, &unsigned, &oid, &some, &none); err != nil {
		t.Fatal(err)
	}
	if text != "a" || !yes || n != -1 || long != -1<<63 || unsigned != 1<<64-1 || oid != 1<<32-1 || *some != 7 || none != nil {
		t.Errorf("%q %v %d %d %d %d %v %v", text, yes, n, long, unsigned, oid, *some, none)
	}
	for what, c := range map[string]struct {
		row  [][]byte
		dest []any
	}{
		"too few":        {[][]byte{[]byte("a")}, nil},
		"NULL":           {[][]byte{nil}, []any{&text}},
		"no number":      {[][]byte{[]byte("a")}, []any{&n}},
		"too large":      {[][]byte{[]byte("4294967296")}, []any{&oid}},
		"an unknown one": {[][]byte{[]byte("1")}, []any{new(float64)}},
	} {
		if err := scan(c.row, c.dest...); err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

func TestQuote(t *testing.T) {
	for want, names := range map[string][]string{`"a"`: {"a"}, `"a"."b"`: {"a", "b"}, `"a""; DROP"`: {"a\"; DR\x00OP"}} {
		if got := quote(names...); got != want {
			t.Errorf("%q is quoted as %s", names, got)
		}
	}
}
