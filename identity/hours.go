package identity

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
)

// Hours are the times of the day at which users of a role may be connected. The
// zero value is always.
type Hours struct {
	// Spans such as 08:00-18:00; one that ends before it begins goes over midnight.
	Spans []string `json:"spans,omitempty"`
	// Zone they are in, such as Europe/Berlin. Empty: UTC.
	Zone string `json:"zone,omitempty"`
}

// ErrZone says that this machine does not know a time zone.
var ErrZone = errors.New("this time zone is not known here")

const clock = "15:04"

// IsZero reports whether the hours are all.
func (h Hours) IsZero() bool { return len(h.Spans) == 0 }

// Validate says what is wrong with h; nil if nothing is. It does not look for the
// zone: see Open.
func (h Hours) Validate() error {
	for _, span := range h.Spans {
		from, to, err := parseSpan(span)
		if err == nil && from.Equal(to) {
			err = errors.New("it ends when it begins")
		}
		if err != nil {
			return fmt.Errorf("checking hours: %s is not a span such as 08:00-18:00: %w", quote(span), err)
		}
	}
	if h.Zone != "" && h.IsZero() {
		return errors.New("checking hours: there is a zone and no span")
	}
	return nil
}

func parseSpan(span string) (from, to time.Time, err error) {
	begin, end, ok := strings.Cut(span, "-")
	if !ok || len(begin) != len(clock) || len(end) != len(clock) {
		return from, to, errors.New("it has not two times of the day")
	}
	from, err1 := time.Parse(clock, begin)
	to, err2 := time.Parse(clock, end)
	return from, to, errors.Join(err1, err2)
}

// Open reports whether now is within h, and when the span ends; zero if it never
// does. An error wraps ErrZone.
func (h Hours) Open(now time.Time) (until time.Time, open bool, err error) {
	if h.IsZero() {
		return time.Time{}, true, nil
	}
	zone, err := time.LoadLocation(h.Zone)
	if err != nil {
		return time.Time{}, false, fmt.Errorf("checking hours: %w: %w", ErrZone, err)
	}
	now = now.In(zone)
	for _, span := range h.Spans {
		from, to, err := parseSpan(span)
		if err != nil {
			return time.Time{}, false, err
		}
		at := func(clock time.Time, days int) time.Time {
			y, m, d := now.Date()
			return time.Date(y, m, d+days, clock.Hour(), clock.Minute(), 0, 0, zone)
		}
		over := 0
		if to.Before(from) {
			over = 1
		}
		// The one that began yesterday, and the one of today.
		for day := -over; day <= 0; day++ {
			begin, end := at(from, day), at(to, day+over)
			if !now.Before(begin) && now.Before(end) && end.After(until) {
				until, open = end, true
			}
		}
	}
	return until, open, nil
}

// scope makes the engine keep h for creds files, of which it judges alone.
func (h Hours) scope(l *jwt.UserLimits) {
	for _, span := range h.Spans {
		begin, end, _ := strings.Cut(span, "-")
		l.Times = append(l.Times, jwt.TimeRange{Start: begin + ":00", End: end + ":00"})
	}
	if !h.IsZero() {
		l.Locale = h.Zone
		if h.Zone == "" {
			l.Locale = "UTC"
		}
	}
}

func (h Hours) clone() Hours {
	h.Spans = append([]string(nil), h.Spans...)
	return h
}
