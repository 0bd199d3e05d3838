package change

import (
	"bytes"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestNoticeTravels(t *testing.T) {
	when := time.Date(2026, 11, 26, 8, 0, 0, 123456789, time.UTC)
	for _, n := range []Notice{
		{Source: "orders", Key: Key{"customers", "42"}, Kind: Update},
		{Source: "orders", Key: Key{"customers", "a b"}, Kind: Delete, Version: 1 << 63, Epoch: "7.1", Origin: "n1:00:ab", Count: 7, Time: when},
		{Source: "orders", Kind: Resync, Time: when},
		{Source: "orders", Key: Key{"customers"}, Kind: Resync, Version: 3},
	} {
		data := n.encode()
		heard, kept := n.subjects()
		for _, subject := range []string{heard, kept} {
			got, err := read(subject, data, &words{})
			if err != nil {
				t.Errorf("%s %s: %v", subject, data, err)
				continue
			}
			if got.Source != n.Source || got.Key.String() != n.Key.String() || got.Kind != n.Kind || got.Version != n.Version ||
				got.Epoch != n.Epoch || got.Origin != n.Origin || got.Count != n.Count || !got.Time.Equal(n.Time) {
				t.Errorf("%+v became %+v on %s", n, got, subject)
			}
		}
	}
}

func TestReadRefuses(t *testing.T) {
	for _, c := range [][2]string{
		{"change.orders.a b", ""},
		{"change.orders", ""}, // an update of nothing
		{"change.orders.a", `{"kind":"update","value":"x"}`},
		{"change.orders.a", `{"kind":"renamed"}`},
		{"change.orders.a", `{"kind":"update","key":"b"}`},
		{"change.orders.a", `{"kind":"resync","key":"b"}`},
		{"change.orders", `{"kind":"update","key":"b"}`},
		{"change.orders", `{"kind":"resync"}`},
		{"change.orders", `{"kind":"resync","key":"b b"}`},
		{"change.orders.a", `{"version":-1}`},
		{"change.orders.a", `{"epoch":"two words"}`},
		{"change.orders.a", `{"origin":"` + strings.Repeat("x", 65) + `"}`},
		{"change.orders.a", `{} {}`},
		{"change.orders.a", `not json`},
		{"change.orders.a", `{"epoch":"` + strings.Repeat(" ", maxNotice) + `"}`},
		{"change.or ders.a", `{}`},
	} {
		if n, err := read(c[0], []byte(c[1]), &words{}); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s %s was read as %+v: %v", c[0], c[1], n, err)
		}
	}
	for _, payload := range []string{"", "{}", `{"version":7}`} {
		if n, err := read("change.orders.a", []byte(payload), &words{}); err != nil || n.Kind != Update || n.Key.String() != "a" {
			t.Errorf("%q was read as %+v: %v", payload, n, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("change.orders.a", []byte(`{"kind":"update","version":1,"epoch":"e","origin":"o","count":1,"time":"2026-11-26T08:00:00Z"}`))
	f.Add("change.orders", []byte(`{"kind":"resync","key":""}`))
	f.Add("announced.orders.%any.a", []byte(`{"kind":"resync","key":"a"}`))
	f.Fuzz(func(t *testing.T, subject string, payload []byte) {
		n, err := read(subject, payload, &words{})
		if err != nil {
			return
		}
		if err := n.check(); err != nil {
			t.Errorf("%q on %q was read as %+v: %v", payload, subject, n, err)
		}
		again := n.encode()
		if len(again) > 2*maxNotice {
			t.Errorf("%+v has %d bytes", n, len(again))
		}
		if m, err := read(subject, again, &words{}); err != nil || m.older(&n) || n.older(&m) || m.Key.String() != n.Key.String() {
			t.Errorf("%+v became %+v: %v", n, m, err)
		}
	})
}

// FuzzQuick compares the quick reading of a payload with that of all JSON, and what
// is written with what the library writes.
func FuzzQuick(f *testing.F) {
	f.Add([]byte(`{"kind":"update","version":1,"epoch":"e:1","origin":"o.2","count":1,"time":"2026-11-26T08:00:00.5Z"}`))
	f.Add([]byte(`{"kind":"resync","key":"a.%20"}`))
	f.Add([]byte(`{"kind":"insert","time":"2026-11-26T08:00:00+01:00"}`))
	f.Add([]byte(`{"kind":"delete","version":18446744073709551615}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		var quick, slow wire
		if !quick.quick(payload, &words{}) {
			return
		}
		d := json.NewDecoder(bytes.NewReader(payload))
		d.DisallowUnknownFields()
		if err := d.Decode(&slow); err != nil || d.More() {
			t.Fatalf("%q: %v", payload, err)
		}
		if !reflect.DeepEqual(quick, slow) {
			t.Errorf("%q: %+v, and the library says %+v", payload, quick, slow)
		}
		n := Notice{Kind: slow.Kind, Version: slow.Version, Epoch: slow.Epoch, Origin: slow.Origin, Count: slow.Count, Time: slow.Time}
		if n.Kind == Resync || !isWord(n.Epoch) || !isWord(n.Origin) {
			return
		}
		slow.Key, slow.Time = nil, slow.Time.UTC()
		if data, err := json.Marshal(slow); err != nil || !bytes.Equal(data, n.encode()) {
			t.Errorf("%q was written %q, and by the library %q: %v", payload, n.encode(), data, err)
		}
	})
}
