package identity

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// maxName is the longest name in bytes; it is also the longest label of a host
// name, so that a node's name can be one.
const maxName = 63

// CheckName says what is wrong with name as the name of a fleet, node, account,
// user, role or listener; nil if nothing is. A name has 1 to 63 bytes: letters
// and digits of ASCII, "-" and "_", the first one a letter or digit. A name
// is therefore always one token of a subject, one segment of a path and one
// label of a host. The error quotes at most 64 bytes of name.
func CheckName(name string) error {
	switch {
	case name == "":
		return errors.New("name is empty")
	case len(name) > maxName:
		return fmt.Errorf("name %s is %d bytes long and %d are allowed", quote(name), len(name), maxName)
	case !isAlphanumeric(name[0]):
		return fmt.Errorf("name %s does not start with a letter or digit", quote(name))
	}
	for i := range len(name) {
		if c := name[i]; !isAlphanumeric(c) && c != '-' && c != '_' {
			return fmt.Errorf("name %s has a character at byte %d that is not a letter, digit, - or _", quote(name), i+1)
		}
	}
	return nil
}

// SplitName splits the full name of a principal, such as "acme/alice", into the
// name of the account and the name within it. The error says which of them is
// not a valid name.
func SplitName(full string) (account, name string, err error) {
	account, name, ok := strings.Cut(full, "/")
	if !ok {
		return "", "", fmt.Errorf("splitting %s: it is not account/name", quote(full))
	}
	if err := CheckName(account); err != nil {
		return "", "", fmt.Errorf("checking the account of %s: %w", quote(full), err)
	}
	if err := CheckName(name); err != nil {
		return "", "", fmt.Errorf("checking the name of %s: %w", quote(full), err)
	}
	return account, name, nil
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// quote makes a text that a stranger may have sent fit for a log or a terminal:
// its first 64 bytes, quoted, with everything escaped that is not plain ASCII.
func quote(s string) string {
	if len(s) > 64 {
		return strconv.QuoteToASCII(s[:64]) + "..."
	}
	return strconv.QuoteToASCII(s)
}
