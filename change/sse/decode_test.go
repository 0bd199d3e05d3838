package sse

import (
	"bytes"
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"key":"customers.42","kind":"update","version":7,"epoch":"e"}`))
	f.Add([]byte(`{"key":"","kind":"resync"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := decode(bytes.NewReader(body))
		if err == nil && len(n.Key.String()) > maxBody {
			t.Errorf("%q became %v", body, n)
		}
	})
}
