//go:build !linux

package disk

import "errors"

// totalMemory is not known here: streams in memory get a fixed size, unless store.max_memory
// says another.
func totalMemory() (int64, error) { return 0, errors.ErrUnsupported }
