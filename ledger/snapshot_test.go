package ledger

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

func TestSnapshotRoundTrip(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	if _, _, err := ReadSnapshot(path); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("reading nothing: %v", err)
	}
	for seq, payload := range [][]byte{nil, []byte("a"), []byte("two\nlines\n"), bytes.Repeat([]byte{0, 255}, 1<<20)} {
		if err := WriteSnapshot(path, uint64(seq), payload); err != nil {
			t.Fatal(err)
		}
		gotSeq, got, err := ReadSnapshot(path)
		if err != nil || gotSeq != uint64(seq) || !bytes.Equal(got, payload) {
			t.Fatalf("snapshot %d: got %d, %d bytes, %v", seq, gotSeq, len(got), err)
		}
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", info.Mode())
	}
	if left, _ := filepath.Glob(path + "?*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func TestSnapshotCorrupt(t *testing.T) {
	good := encodeSnapshot(1234567890, "ID", []byte(`{"account":"orders"}`))
	refused := func(what string, data []byte) {
		t.Helper()
		if seq, _, payload, err := decodeSnapshot(data); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: got %d, %q, %v", what, seq, payload, err)
		}
	}
	for i := range good {
		for bit := range 8 {
			bad := bytes.Clone(good)
			bad[i] ^= 1 << bit
			refused("one bit flipped", bad)
		}
		refused("cut short", good[:i])
	}
	refused("longer", append(bytes.Clone(good), '\n'))
	refused("empty", nil)
}

func TestSnapshotNotWritten(t *testing.T) {
	dir := t.TempDir()
	if err := WriteSnapshot(filepath.Join(dir, "missing", "state"), 1, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("into no directory: %v", err)
	}
	if err := WriteSnapshot(dir, 1, nil); err == nil { // a directory is in the way
		t.Error("over a directory: no error")
	}
	if left, _ := filepath.Glob(dir + "?*"); left != nil {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzSnapshot(f *testing.F) {
	f.Add([]byte(nil))
	f.Add([]byte(snapshotMagic))
	f.Add([]byte(snapshotMagic + "1 -1\n\n"))
	f.Add([]byte(snapshotMagic + "18446744073709551616 0\n\n"))
	f.Add(encodeSnapshot(0, "", nil))
	f.Add(encodeSnapshot(7, "", []byte("payload\n")))
	f.Add(encodeSnapshot(7, "ID", []byte("payload\n")))
	f.Fuzz(func(t *testing.T, data []byte) {
		seq, ledger, payload, err := decodeSnapshot(data)
		switch {
		case err == nil && !bytes.Equal(encodeSnapshot(seq, ledger, payload), data):
			t.Errorf("accepted what was never written: %q", data)
		case err != nil && !errors.Is(err, ErrCorrupt):
			t.Errorf("unexpected error %v", err)
		}
	})
}
