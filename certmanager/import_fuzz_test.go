package certmanager

import (
	"strings"
	"testing"
)

// FuzzPrivateKey reads any private key that somebody brings: an error never quotes it.
func FuzzPrivateKey(f *testing.F) {
	f.Add("-----BEGIN EC PRIVATE KEY-----\nMA==\n-----END EC PRIVATE KEY-----\n")
	f.Add("-----BEGIN PRIVATE KEY-----\nMA==\n-----END PRIVATE KEY-----\n")
	f.Fuzz(func(t *testing.T, text string) {
		der, err := parsePEMKey(text)
		if err != nil {
			if len(text) > 40 && strings.Contains(err.Error(), text[10:40]) {
				t.Errorf("the error has the key: %v", err)
			}
			return
		}
		_, _ = parseKey(der)
	})
}
