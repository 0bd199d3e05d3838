// Package smalldisk gives a test a disk that is soon full.
package smalldisk

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/await"
)

// Mount mounts a disk of a size such as "32m" until the test ends, and returns where.
// Who may not mount skips the test.
func Mount(t testing.TB, size string) (dir string) {
	t.Helper()
	dir = t.TempDir()
	At(t, dir, size)
	return dir
}

// At is Mount at dir, which is there.
func At(t testing.TB, dir, size string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("mounting a small disk: %v", err)
	}
	t.Cleanup(func() {
		// The engine closes its last files a moment after it has stopped.
		var err error
		await.True(10*time.Second, func() bool { err = syscall.Unmount(dir, 0); return !errors.Is(err, syscall.EBUSY) })
		if err != nil {
			t.Error(err)
		}
	})
}

// Resize gives the disk at dir another size.
func Resize(t testing.TB, dir, size string) {
	t.Helper()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_REMOUNT, "size="+size); err != nil {
		t.Fatal(err)
	}
}

// Fill leaves no more than so many bytes of a disk, until free is called.
func Fill(t testing.TB, dir string, left int64) (free func()) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "somebody-elses"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for chunk := make([]byte, 64<<10); ; {
		var st syscall.Statfs_t
		if err := syscall.Statfs(dir, &st); err != nil {
			t.Fatal(err)
		}
		if int64(st.Bavail)*int64(st.Bsize) <= left {
			break
		}
		if _, err := f.Write(chunk); errors.Is(err, syscall.ENOSPC) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
	return func() {
		if err := os.Remove(f.Name()); err != nil {
			t.Error(err)
		}
	}
}
