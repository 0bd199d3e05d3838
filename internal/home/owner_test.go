//go:build unix

package home

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func TestGive(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root gives files away")
	}
	outside := filepath.Join(t.TempDir(), "outside")
	dir := t.TempDir()
	for _, path := range []string{outside, filepath.Join(dir, "a", "b", "file")} {
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(outside, filepath.Join(dir, "a", "out")); err != nil {
		t.Fatal(err)
	}
	owner := func(path string, want uint32) {
		t.Helper()
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Sys().(*syscall.Stat_t).Uid; got != want {
			t.Errorf("%s belongs to %d, not %d", path, got, want)
		}
	}
	if err := Give(dir); err != nil {
		t.Fatal(err)
	}
	owner(filepath.Join(dir, "a"), 0)
	if err := os.Chown(dir, 65532, 65532); err != nil {
		t.Fatal(err)
	}
	if err := Give(dir); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "a/b", "a/b/file", "a/out"} {
		owner(filepath.Join(dir, name), 65532)
	}
	owner(outside, 0)
	if err := Give(filepath.Join(dir, "missing")); err == nil {
		t.Error("a directory that is not there has an owner")
	}
}
