package sse

import (
	"bytes"
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"key":"customers.42","kind":"update","version":7,"epoch":"e"}`))
	f.Add([]byte(`{"key":"","kind":"resync"}`))
	f.Add([]byte(`{"key":"a","kind":"update"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		n, err := decode(bytes.NewReader(body))
		if err == nil && (len(body) > maxBody || len(n.Key.String()) > maxBody) {
			t.Errorf("%q became %v", body, n)
		}
		if _, again := decode(bytes.NewReader(append(body, '}'))); err == nil && again == nil {
			t.Errorf("%q was taken with more after it", body)
		}
	})
}

func TestStreamsEach(t *testing.T) {
	p := &Protocol{}
	for range streamsEach {
		if !p.enter("a") {
			t.Fatal("a stream was refused too early")
		}
	}
	if p.enter("a") || !p.enter("b") {
		t.Error("the streams of one are counted wrong, or those of another with them")
	}
	p.leave("a")
	if !p.enter("a") {
		t.Error("a stream that ended counts on")
	}
}
