package localcheck

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/doctor"
	"github.com/fleetbus/fleetbus/identity"
)

func codes(findings []doctor.Finding) (codes string) {
	for _, f := range findings {
		codes += f.Code + " "
	}
	return codes
}

func TestCheckClock(t *testing.T) {
	now := time.Now()
	authority, _, err := identity.NewAuthority("test", now)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if got := codes(checkClock(dir, now)); got != "" {
		t.Errorf("without an authority: %s", got)
	}
	path := filepath.Join(dir, "admin", "ca.pem")
	write := func(data []byte) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(authority.ClientsPEM())
	for want, at := range map[string]time.Time{
		"":                   now,
		"CLOCK-BEHIND ":      now.AddDate(-1, 0, 0),
		"AUTHORITY-EXPIRED ": now.AddDate(11, 0, 0),
	} {
		if got := codes(checkClock(dir, at)); got != want {
			t.Errorf("at %v: %q, not %q", at, got, want)
		}
	}
	write([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	if got := codes(checkClock(dir, now)); got != "AUTHORITY-UNREADABLE " {
		t.Errorf("of a bad file: %q", got)
	}
}

func TestCheckDisk(t *testing.T) {
	if got := diskFindings("/data", lowDisk, 0); got != nil {
		t.Errorf("enough is free: %+v", got)
	}
	for want, free := range map[string]int64{"DISK-LOW ": lowDisk - 1, "DISK-FULL ": fullDisk - 1} {
		if got := codes(diskFindings("/data", free, 0)); got != want {
			t.Errorf("%d bytes are free: %q, not %q", free, got, want)
		}
	}
}
