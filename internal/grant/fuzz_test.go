package grant

import "testing"

// FuzzCSR reads any certificate request of somebody who enrolls.
func FuzzCSR(f *testing.F) {
	f.Add("-----BEGIN CERTIFICATE REQUEST-----\nMA==\n-----END CERTIFICATE REQUEST-----\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if csr, err := ParseCSR(text); err == nil && csr.PublicKey == nil {
			t.Errorf("%q has no key", text)
		}
	})
}
