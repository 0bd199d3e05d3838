package provision

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestDir has a request be cut off anywhere, and go on with the keys that it began with.
func TestDir(t *testing.T) {
	d := Dir(filepath.Join(t.TempDir(), "machine"))
	first := check[*Keys](t)(d.Keys())
	if again := check[*Keys](t)(d.Keys()); again.String() != first.String() || !again.tls.Equal(first.tls) || d.Settled() {
		t.Errorf("the keys were %v and are %v", first, again)
	}
	id := &Identity{Creds: []byte("creds"), Cert: []byte("cert"), Key: []byte("key"), CA: []byte("ca")}
	away := errors.New("no node is there")
	if err := d.Settle(id, func() error { return away }); !errors.Is(err, away) || d.Settled() {
		t.Errorf("an identity that is no good is taken: %v", err)
	}
	if again := check[*Keys](t)(d.Keys()); again.String() != first.String() {
		t.Error("the keys are lost")
	}
	if err := d.Settle(id, func() error { return nil }); err != nil || !d.Settled() {
		t.Error(err)
	}
	for _, name := range []string{CredsFile, certFile, keyFile, caFile} {
		if info, err := os.Stat(d.Path(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, info, err)
		}
	}
	if info, err := os.Stat(string(d)); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("the directory: %v, %v", info, err)
	}
	if _, err := os.Stat(d.Path(PendingFile)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the request is not forgotten: %v", err)
	}
	if err := os.WriteFile(d.Path(PendingFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Keys(); err == nil {
		t.Error("damaged keys are keys")
	}
}
