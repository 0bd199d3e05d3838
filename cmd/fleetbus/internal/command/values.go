package command

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/internal/human"
)

// Choice is a flag that takes one of a few words.
type Choice struct {
	Value *string
	Words []string
}

// String is the word.
func (c *Choice) String() string { return *c.Value }

// Set takes one of the words.
func (c *Choice) Set(s string) error {
	if !slices.Contains(c.Words, s) {
		last := len(c.Words) - 1
		return fmt.Errorf("is not %s or %s", strings.Join(c.Words[:last], ", "), c.Words[last])
	}
	*c.Value = s
	return nil
}

// Type is what the help calls the value.
func (c *Choice) Type() string { return "word" }

// Size is a flag that takes bytes with a unit.
type Size int64

// String is the size in the largest unit that fits.
func (s *Size) String() string {
	if *s == 0 {
		return ""
	}
	return human.Size(int64(*s))
}

// Set takes a whole number and a unit.
func (s *Size) Set(text string) error {
	n, err := parseSize(text)
	if err != nil {
		return err
	}
	*s = Size(n)
	return nil
}

// Type is what the help calls the value.
func (s *Size) Type() string { return "size" }

func parseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "BKMGTi")
	n, err := strconv.ParseInt(digits, 10, 64)
	if err == nil && digits == text {
		return 0, fmt.Errorf("has no unit; write %sKiB, %sMiB or %sGiB", text, text, text)
	}
	unit, ok := map[string]int64{
		"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
		"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40,
	}[text[len(digits):]]
	if err != nil || !ok || n < 0 || n > math.MaxInt64/unit {
		return 0, fmt.Errorf("is not a size like 64KiB or 10GiB")
	}
	return n * unit, nil
}

// Life is a flag that takes a duration, days among its units, or "never".
type Life time.Duration

// Never is longer than any authority lives, and still a time.Duration.
const Never = Life(100 * 365 * 24 * time.Hour)

// String is the duration.
func (l *Life) String() string {
	switch *l {
	case 0:
		return ""
	case Never:
		return "never"
	}
	return time.Duration(*l).String()
}

// Set takes a duration.
func (l *Life) Set(text string) error {
	if text == "never" {
		*l = Never
		return nil
	}
	d, err := ParseLife(text)
	if err != nil {
		return err
	}
	*l = Life(d)
	return nil
}

// Type is what the help calls the value.
func (l *Life) Type() string { return "duration" }

// ParseLife reads a duration, days among its units.
func ParseLife(text string) (time.Duration, error) {
	if _, err := strconv.ParseFloat(text, 64); err == nil {
		return 0, fmt.Errorf("has no unit; write %ss, %sh or %sd", text, text, text)
	}
	d, err := time.ParseDuration(text)
	if days, ok := strings.CutSuffix(text, "d"); ok {
		var n int64
		n, err = strconv.ParseInt(days, 10, 32)
		d = time.Duration(n) * 24 * time.Hour
		if n > 100*365 {
			err = strconv.ErrRange
		}
	}
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("is not a duration like 30m, 24h or 30d")
	}
	return d, nil
}

// FormatLife is how long something lives, as people read it.
func FormatLife(d time.Duration) string {
	if d == 0 {
		return "never"
	}
	return human.Duration(d)
}
