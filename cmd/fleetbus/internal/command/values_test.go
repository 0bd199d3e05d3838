package command

import (
	"strings"
	"testing"
	"time"
)

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"0B": 0, "64KiB": 64 << 10, "5MB": 5e6, "10GiB": 10 << 30, "1TiB": 1 << 40, "8191PiB": -1,
		"10": -1, "": -1, "GiB": -1, "-1KiB": -1, "1.5GiB": -1, "1 GiB": -1, "9223372036854775807KiB": -1, "1kib": -1,
	} {
		got, err := parseSize(text)
		if err != nil {
			got = -1
		}
		if got != want {
			t.Errorf("parseSize(%q) = %d, %v, not %d", text, got, err, want)
		}
	}
	if _, err := parseSize("10"); err == nil || !strings.Contains(err.Error(), "10MiB") {
		t.Errorf("a bare number is refused with %v", err)
	}
}

func TestLives(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90s": 90 * time.Second, "24h": 24 * time.Hour, "30d": 720 * time.Hour, "never": time.Duration(Never),
		"30": -1, "": -1, "d": -1, "0s": -1, "-1h": -1, "1.5d": -1, "99999999d": -1, "forever": -1,
	} {
		var l Life
		got := time.Duration(-1)
		if err := l.Set(text); err == nil {
			got = time.Duration(l)
		}
		if got != want {
			t.Errorf("life %q is %v, not %v", text, got, want)
		}
	}
}
