package change

import (
	"errors"
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
		data, err := n.encode()
		if err != nil {
			t.Fatal(err)
		}
		heard, kept := n.subjects()
		for _, subject := range []string{heard, kept} {
			got, err := read(subject, data)
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
		if n, err := read(c[0], []byte(c[1])); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s %s was read as %+v: %v", c[0], c[1], n, err)
		}
	}
	for _, payload := range []string{"", "{}", `{"version":7}`} {
		if n, err := read("change.orders.a", []byte(payload)); err != nil || n.Kind != Update || n.Key.String() != "a" {
			t.Errorf("%q was read as %+v: %v", payload, n, err)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add("change.orders.a", []byte(`{"kind":"update","version":1,"epoch":"e","origin":"o","count":1,"time":"2026-11-26T08:00:00Z"}`))
	f.Add("change.orders", []byte(`{"kind":"resync","key":""}`))
	f.Add("announced.orders.%any.a", []byte(`{"kind":"resync","key":"a"}`))
	f.Fuzz(func(t *testing.T, subject string, payload []byte) {
		n, err := read(subject, payload)
		if err != nil {
			return
		}
		if err := n.check(); err != nil {
			t.Errorf("%q on %q was read as %+v: %v", payload, subject, n, err)
		}
		again, err := n.encode()
		if err != nil || len(again) > 2*maxNotice {
			t.Errorf("%+v has %d bytes: %v", n, len(again), err)
		}
	})
}
