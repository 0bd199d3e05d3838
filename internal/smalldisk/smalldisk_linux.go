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
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	dir = t.TempDir()
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
	return dir
}
