// Package smalldisk gives a test a disk that is soon full.
package smalldisk

import (
	"errors"
	"os"
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
