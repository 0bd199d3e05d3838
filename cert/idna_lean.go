//go:build lean

package cert

import (
	"errors"
	"strings"
)

// ToASCII is a DNS name as certificates have it. The tables of Unicode are not in the lean
// program: an error says that somebody who has them has to write the name.
func ToASCII(name string) (string, error) {
	if strings.ContainsFunc(name, func(r rune) bool { return r >= 0x80 }) {
		return "", errors.New("the lean program knows names in ASCII only: write it with its A-labels, which begin with xn--")
	}
	return strings.ToLower(name), nil
}
