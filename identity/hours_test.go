package identity

import (
	"errors"
	"testing"
	"time"
)

func TestHours(t *testing.T) {
	at := func(text string) time.Time { return must[time.Time](t)(time.Parse(time.RFC3339, text)) }
	day := Hours{Spans: []string{"08:00-12:00", "13:00-18:00"}, Zone: "Europe/Berlin"}
	night := Hours{Spans: []string{"22:00-06:00"}}
	for _, c := range []struct {
		h          Hours
		now, until string
	}{
		{day, "2026-01-15T07:00:00Z", "2026-01-15T11:00:00Z"},
		{day, "2026-01-15T06:59:59Z", ""},
		{day, "2026-01-15T11:00:00Z", ""},
		{day, "2026-01-15T16:59:59Z", "2026-01-15T17:00:00Z"},
		{day, "2026-07-15T06:00:00Z", "2026-07-15T10:00:00Z"}, // summer
		{day, "2026-07-15T16:30:00Z", ""},
		{night, "2026-01-15T23:00:00Z", "2026-01-16T06:00:00Z"},
		{night, "2026-01-15T05:59:00Z", "2026-01-15T06:00:00Z"},
		{night, "2026-01-15T06:00:00Z", ""},
		{night, "2026-01-15T21:59:00Z", ""},
	} {
		until, open, err := c.h.Open(at(c.now))
		if err != nil || open != (c.until != "") || open && !until.Equal(at(c.until)) {
			t.Errorf("%v at %s is open %v until %v, want %s: %v", c.h.Spans, c.now, open, until, c.until, err)
		}
	}
	if until, open, err := (Hours{}).Open(epoch()); !open || !until.IsZero() || err != nil {
		t.Errorf("no hours are open %v until %v: %v", open, until, err)
	}
	if _, open, err := (Hours{Spans: []string{"08:00-12:00"}, Zone: "Mars/Olympus"}).Open(epoch()); open || !errors.Is(err, ErrZone) {
		t.Errorf("an unknown zone is open %v: %v", open, err)
	}
	for _, h := range []Hours{
		{Spans: []string{""}}, {Spans: []string{"08:00"}}, {Spans: []string{"8:00-9:00"}}, {Spans: []string{"08:00-24:00"}},
		{Spans: []string{"08:00-08:00"}}, {Spans: []string{"08:00-18:00:00"}}, {Zone: "UTC"},
	} {
		wantError(t, h.Validate(), "checking hours")
	}
	if err := day.Validate(); err != nil {
		t.Error(err)
	}
}

// TestAuthenticateHours ends a session with the hours of its role.
func TestAuthenticateHours(t *testing.T) {
	d := fleetDirectory(t)
	now := time.Date(2026, 3, 2, 9, 0, 0, 0, time.UTC)
	apply(t, d, "role.day", Role{Hours: Hours{Spans: []string{"08:00-10:00"}}, Expires: 24 * time.Hour})
	apply(t, d, "user.acme.day", User{Role: "day", Password: cheapHash("hunter2")})
	login := Credentials{Username: "acme/day", Password: "hunter2"}
	if p, err := d.Authenticate(login, "prod", now); err != nil || !p.Expires.Equal(now.Add(time.Hour)) {
		t.Errorf("within the hours the session ends at %v: %v", p.Expires, err)
	}
	_, err := d.Authenticate(login, "prod", now.Add(time.Hour))
	var refusal *Refusal
	if !errors.As(err, &refusal) {
		t.Fatalf("outside of the hours: %v", err)
	}
	wantError(t, errors.New(refusal.Operator()), "outside of the hours")
	apply(t, d, "role.day", Role{Hours: Hours{Spans: []string{"08:00-10:00"}, Zone: "Mars/Olympus"}})
	if _, err := d.Authenticate(login, "prod", now); !errors.As(err, &refusal) || !errors.Is(err, ErrZone) {
		t.Errorf("in no zone: %v", err)
	}
}
