//go:build !linux

package localcheck

import "errors"

// clockSynced is not known here.
func clockSynced() (bool, error) { return false, errors.ErrUnsupported }
