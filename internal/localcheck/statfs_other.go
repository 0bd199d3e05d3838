//go:build !linux

package localcheck

import "syscall"

// typesKnown says that the type of a file system is a number that means nothing here.
const typesKnown = false

// blockSize is the unit in which a file system counts.
func blockSize(s *syscall.Statfs_t) int64 { return int64(s.Bsize) }
