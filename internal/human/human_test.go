package human

import (
	"testing"
	"time"
)

func TestSize(t *testing.T) {
	for n, want := range map[int64]string{0: "0B", 1023: "1023B", 1536: "1.5KiB", 10 << 30: "10GiB", 1<<63 - 1: "8EiB"} {
		if got := Size(n); got != want {
			t.Errorf("Size(%d) = %q, not %q", n, got, want)
		}
	}
}

func TestDuration(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0", 12 * time.Microsecond: "12µs", 12 * time.Millisecond: "12 ms", 1500 * time.Millisecond: "1.5 s",
		90 * time.Second: "1m30s", 25*time.Hour + time.Minute: "1d1h", -3 * time.Hour: "-3h0m",
	} {
		if got := Duration(d); got != want {
			t.Errorf("Duration(%v) = %q, not %q", d, got, want)
		}
	}
}
