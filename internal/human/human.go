// Package human writes values as people read them: the text beside the JSON, which
// has them as they are.
package human

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// Size writes bytes, in the largest unit that fits.
func Size(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	f, i := float64(n), 0
	for ; f >= 1024 && i < len(units)-1; i++ {
		f /= 1024
	}
	return strconv.FormatFloat(math.Round(f*10)/10, 'f', -1, 64) + units[i]
}

// Duration writes a duration, to two units at most.
func Duration(d time.Duration) string {
	const day = 24 * time.Hour
	if d < 0 {
		return "-" + Duration(-d)
	}
	switch {
	case d == 0:
		return "0"
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Round(time.Millisecond).Milliseconds())
	case d < time.Minute:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", d/time.Minute, d%time.Minute/time.Second)
	case d < day:
		return fmt.Sprintf("%dh%dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/day, d%day/time.Hour)
}

// Time writes an instant in UTC, and nothing for the zero one.
func Time(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}

// Count writes a number and its noun, which takes an s in the plural.
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return strconv.Itoa(n) + " " + noun + "s"
}

// Limit writes a limit by format, and "unlimited" for zero, which is none.
func Limit(n int64, format func(int64) string) string {
	if n == 0 {
		return "unlimited"
	}
	return format(n)
}

// Int writes a number.
func Int(n int64) string { return strconv.FormatInt(n, 10) }

// YesNo writes a bool.
func YesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
