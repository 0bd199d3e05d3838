//go:build !linux

package smalldisk

import "testing"

// Mount skips the test: there is no disk in memory here that a test could mount.
func Mount(t testing.TB, size string) (dir string) {
	t.Helper()
	At(t, "", size)
	return ""
}

// At skips the test as Mount does.
func At(t testing.TB, _, _ string) {
	t.Helper()
	t.Skip("no small disk can be mounted here")
}

// Resize is for a disk that was mounted, and there is none.
func Resize(testing.TB, string, string) {}

// Fill is as Resize.
func Fill(testing.TB, string, int64) (free func()) { return func() {} }
