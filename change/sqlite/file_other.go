//go:build !linux

package sqlite

// fileID is empty: a file that was replaced while no source ran is not noticed
// here.
func fileID(string) string { return "" }
