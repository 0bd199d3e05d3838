//go:build !lean

package cert

import "golang.org/x/net/idna"

// ToASCII is a DNS name with A-labels for what is not ASCII, as certificates have it, after
// RFC 5891. An error says that it is no DNS name.
func ToASCII(name string) (string, error) { return idna.Lookup.ToASCII(name) }
