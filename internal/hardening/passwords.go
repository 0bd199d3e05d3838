package hardening

import (
	"slices"
	"strings"
)

// publicPasswords are those of manuals and of lists that are tried first.
func publicPasswords() []string {
	return []string{"guest", "rabbit_pass", "qpid_pass", "rabbit", "rabbitmq", "qpid", "qpidd", "password", "passw0rd", "p@ssw0rd", "secret", "secrete", "changeme", "change_me", "changeit", "admin", "administrator",
		"openstack", "stackrabbit", "stackqueue", "devstack", "nova", "neutron", "cinder", "glance", "keystone", "test", "testtest", "letmein", "welcome", "default", "root", "toor", "user", "pass", "service", "supersecret", "mysecretcookie",
		"12345678", "123456", "123456789", "1234567890", "qwerty", "qwertyuiop", "iloveyou", "monkey", "dragon", "master", "abc123", "password1", "password123", "passwordpassword", "replaceme", "replace_me", "nova_pass", "neutron_pass", "cinder_pass", "glance_pass", "rabbit_password", "rabbitmq_password", "admin123", "openstack123", "guestguest", "cookie", "erlangcookie"}
}

// minPassword is how many letters a password has to have.
const minPassword = 16

// weakness says what is wrong with a password; empty if nothing is.
func weakness(user, password string) string {
	lower := strings.ToLower(password)
	switch {
	case password == "":
		return "is empty"
	case strings.EqualFold(user, password):
		return "is the user's name"
	case slices.Contains(publicPasswords(), lower):
		return "stands in manuals, or is tried first"
	case strings.Contains(lower, "rabbit_pass") || strings.Contains(lower, "qpid_pass"):
		return "is that of a manual"
	case len(password) < minPassword:
		return "has fewer than 16 letters"
	case len(strings.Trim(password, password[:1])) == 0:
		return "is one letter again and again"
	}
	letters := strings.TrimRight(lower, "0123456789!.-_")
	if slices.Contains(publicPasswords(), letters) {
		return "is a word with digits behind it"
	}
	return ""
}

// password judges one that stands in a file.
func (a *audit) password(user, password string, at place) {
	for _, sealed := range []string{"encrypted:", "{encrypted", "<<\"encrypted"} {
		if strings.HasPrefix(password, sealed) {
			a.pass("14", at, "the password of %s is encrypted", user)
			return
		}
	}
	weak := weakness(user, password)
	if !strings.EqualFold(user, password) {
		a.secret(password)
	}
	if weak != "" {
		a.fail("14", at, "make a random one: openssl rand -hex 16", "the password of %s %s", user, weak)
		return
	}
	a.pass("14", at, "the password of %s is no word of lists, and long enough", user)
}
