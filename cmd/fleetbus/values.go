package main

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/internal/human"
)

// choice is a flag that takes one of a few words.
type choice struct {
	value *string
	words []string
}

// String is the word.
func (c *choice) String() string { return *c.value }

// Set takes one of the words.
func (c *choice) Set(s string) error {
	if !slices.Contains(c.words, s) {
		last := len(c.words) - 1
		return fmt.Errorf("is not %s or %s", strings.Join(c.words[:last], ", "), c.words[last])
	}
	*c.value = s
	return nil
}

// Type is what the help calls the value.
func (c *choice) Type() string { return "word" }

// size is a flag that takes bytes with a unit.
type size int64

// String is the size in the largest unit that fits.
func (s *size) String() string {
	if *s == 0 {
		return ""
	}
	return human.Size(int64(*s))
}

// Set takes a whole number and a unit.
func (s *size) Set(text string) error {
	n, err := parseSize(text)
	if err != nil {
		return err
	}
	*s = size(n)
	return nil
}

// Type is what the help calls the value.
func (s *size) Type() string { return "size" }

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

// life is a flag that takes a duration, days among its units, or "never".
type life time.Duration

// never is longer than any authority lives, and still a time.Duration.
const never = life(100 * 365 * 24 * time.Hour)

// String is the duration.
func (l *life) String() string {
	switch *l {
	case 0:
		return ""
	case never:
		return "never"
	}
	return time.Duration(*l).String()
}

// Set takes a duration.
func (l *life) Set(text string) error {
	if text == "never" {
		*l = never
		return nil
	}
	d, err := parseLife(text)
	if err != nil {
		return err
	}
	*l = life(d)
	return nil
}

// Type is what the help calls the value.
func (l *life) Type() string { return "duration" }

func parseLife(text string) (time.Duration, error) {
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

// or is a, or b if a is empty.
func or(a, b string) string {
	if a != "" {
		return a
	}
	return b
}
