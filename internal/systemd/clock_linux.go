package systemd

import (
	"time"

	"golang.org/x/sys/unix"
)

// monotonic is the time of the clock that the manager compares with its own.
func monotonic() (time.Duration, error) {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return 0, err
	}
	return time.Duration(t.Nano()), nil
}
