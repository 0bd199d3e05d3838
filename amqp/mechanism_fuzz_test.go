package amqp

import (
	"strings"
	"testing"
)

// FuzzMechanism has a client log in with anything.
func FuzzMechanism(f *testing.F) {
	f.Add("\x00acme/alice\x00secret")
	f.Add("\x05LOGINS\x00\x00\x00\x05alice\x08PASSWORDS\x00\x00\x00\x06secret")
	f.Add("\x05LOGINF\x00\x00\x00\x00")
	f.Fuzz(func(t *testing.T, response string) {
		if user, password, ok := parsePlain(response); ok && strings.Count(response, "\x00") != 2 || strings.Contains(user+password, "\x00") {
			t.Errorf("PLAIN: %q is %q and %q", response, user, password)
		}
		if user, password, ok := parseAMQPlain(response); ok && (!strings.Contains(response, user) || !strings.Contains(response, password)) {
			t.Errorf("AMQPLAIN: %q is %q and %q", response, user, password)
		}
	})
}
