package identity

import (
	"strings"
	"testing"
	"time"
)

func TestSecret(t *testing.T) {
	ours, _, err := NewAuthority("ours", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	theirs, _, err := NewAuthority("theirs", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	public, err := ours.SecretPublic()
	if err != nil {
		t.Fatal(err)
	}
	const secret = "postgres://fleetbus:planted@db/orders"
	sealed, err := SealSecret(public, []byte(secret))
	if err != nil || strings.Contains(sealed, "planted") {
		t.Fatalf("sealed to %q: %v", sealed, err)
	}
	if got, err := ours.OpenSecret(sealed); err != nil || string(got) != secret {
		t.Errorf("opened %q: %v", got, err)
	}
	if got, err := theirs.OpenSecret(sealed); err == nil {
		t.Errorf("another fleet opened %q", got)
	}
	sender, body, _ := strings.Cut(sealed, ".")
	for _, bad := range []string{"", "x", sender, sender + ".", sender + ".AAAA", body, "X." + body, sealed[:len(sealed)-4] + "AAAA"} {
		if got, err := ours.OpenSecret(bad); err == nil || strings.Contains(err.Error(), "planted") {
			t.Errorf("%q was opened: %q, %v", bad, got, err)
		}
	}
	for _, bad := range []string{"", "x", sender[:len(sender)-2]} {
		if _, err := SealSecret(bad, []byte(secret)); err == nil {
			t.Errorf("sealed to %q", bad)
		}
	}
}
