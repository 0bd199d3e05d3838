package backup

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"io"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// plain is the inside of a backup, with one stream of two parts.
func plain(t testing.TB) []byte {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	founded, _, err := identity.NewAuthority("fleet", time.Now())
	must(err)
	secrets, err := founded.Marshal()
	must(err)
	directory, err := identity.NewDirectory().Marshal()
	must(err)
	var out bytes.Buffer
	w := &writer{tar: tar.NewWriter(&out), now: time.Unix(0, 0)}
	must(w.document(manifestName, Manifest{Format: format, Fleet: "fleet", Hash: founded.Hash()}))
	must(w.file(authorityAt, secrets))
	must(w.file(directoryAt, directory))
	must(w.document("streams/acme/ORDERS/stream.json", Stream{Account: "acme", Name: "ORDERS", Config: json.RawMessage(`{"num_replicas":3}`), State: json.RawMessage(`{"messages":2,"last_seq":2}`), Messages: 2}))
	must(w.file("streams/acme/ORDERS/00000001", []byte("first")))
	must(w.file("streams/acme/ORDERS/00000002", []byte("second")))
	must(w.document(endName, End{Streams: 1, Messages: 2, Bytes: 11}))
	must(w.tar.Close())
	return out.Bytes()
}

// FuzzRead reads what a stranger made and sealed to the reader's key: it is refused or
// read, and writes nowhere but where it belongs.
func FuzzRead(f *testing.F) {
	data := plain(f)
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		read := 0
		_, err := readPlain(bytes.NewReader(data), Sink{
			Begin: func(_ Manifest, authority, directory []byte) error {
				s := &stage{node: identity.Node{Name: "n1"}}
				_, _ = s.founded(directory)
				return new(identity.Authority).Unmarshal(authority)
			},
			Stream: func(d Stream) error {
				if d.Account == "" || d.Name == "" || !safe(d.Account) || !safe(d.Name) {
					t.Errorf("%q of %q is no name of a file", d.Name, d.Account)
				}
				if _, err := alone(d.Config); err == nil && json.Valid(d.State) {
					_ = d.same(state{Messages: d.Messages})
				}
				return nil
			},
			Data: func(r io.Reader) error {
				n, err := io.Copy(io.Discard, r)
				read += int(n)
				return err
			},
		})
		if read > len(data) {
			t.Errorf("%d bytes are read of %d: %v", read, len(data), err)
		}
	})
}
