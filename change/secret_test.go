package change

import (
	"errors"
	"strings"
	"testing"
)

func TestCheckSecret(t *testing.T) {
	jwt := "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N"
	always := map[string]Key{
		"pem":           {"certs", "-----BEGIN PRIVATE KEY-----\nMC4C\n-----END PRIVATE KEY-----"},
		"pem in parts":  {"x-----BEGIN ", "RSA PRIVATE KEY"},
		"jwt":           {"sessions", jwt},
		"jwt in parts":  append(Key{"sessions"}, strings.Split(jwt, ".")...),
		"jwt in a text": {"Bearer " + jwt},
	}
	unlessOpaque := map[string]Key{
		"base64": {"t", "q83vEjRWeJq83vEjRWeJ/Kx1Zt0bLw9dYpT5uHcMnGo="},
		"url":    {"t", "n7XkQ2vB-9sLpT4wZ_1rYcE6mHdJ0aUf"},
		"digest": {"files", "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"},
		"apikey": {"sk_live_4eC39HqLyjWDarjtT1zdp7dc"},
		"within": {"token=BeQCEk3CQ-TGpl4YD-YYXWoaegdCVtppaJN8PbC-YXU; path=/"},
	}
	never := []Key{
		{"customers", "42"}, {"users", "6f1c3f0e-64d2-4cf4-9a7e-3d6f0c1b2a99"}, {"users", "6f1c3f0e64d24cf49a7e3d6f0c1b2a99"},
		{"orders", "01J9ZQ4ZC6T5V3N8K2QF7W1XYZ"}, {"places", "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"},
		{"hosts", "ip-10-0-0-12.eu-central-1.compute.internal"}, {"n", "18446744073709551615"}, {"sentence", "the quick brown fox jumps over the lazy dog"},
		{"CustomerOrderShipmentNotification2024"}, {"InvoiceLineItem-2024-Q3-Germany"}, {"MyVeryLongIdentifierNameWith2Numbers"}, {strings.Repeat("k", 10_000)}, {"a", ""}, {"2026-11-26T08:00:00.123456Z"},
	}
	for name, key := range always {
		for _, opaque := range []bool{false, true} {
			if err := checkSecret(key, opaque); !errors.Is(err, ErrSecret) {
				t.Errorf("%s, opaque %v: %v", name, opaque, err)
			}
		}
	}
	for name, key := range unlessOpaque {
		err := checkSecret(key, false)
		if !errors.Is(err, ErrSecret) || strings.Contains(err.Error(), key[len(key)-1]) {
			t.Errorf("%s %q: %v", name, key, err)
		}
		if err := checkSecret(key, true); err != nil {
			t.Errorf("%s, opaque: %v", name, err)
		}
	}
	for _, key := range never {
		if err := checkSecret(key, false); err != nil {
			t.Errorf("%q: %v", key, err)
		}
	}
}
