package disk

import (
	"os"
	"path/filepath"
	"testing"
)

// TestBounds checks that what streams have already does not count against them:
// a node that has filled more than half of its disk would refuse everything after
// a restart.
func TestBounds(t *testing.T) {
	dir := t.TempDir()
	before, _, err := Bounds(dir, filepath.Join(dir, "store"), 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	const stored = 1 << 40
	path := filepath.Join(dir, "store", "stream", "1.blk")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	// It has no blocks, and takes nothing of the disk.
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, stored); err != nil {
		t.Fatal(err)
	}
	after, _, err := Bounds(dir, filepath.Join(dir, "store"), 1, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if after < stored || before >= stored {
		t.Errorf("%d bytes before, %d with %d stored", before, after, int64(stored))
	}
	if file, _, err := Bounds(dir, dir, 0, 7, 0); err != nil || file != 7 {
		t.Errorf("what is set: %d, %v", file, err)
	}
}
