package cert

import (
	"fmt"
	"strings"
)

// A Pair is a certificate with its private key, as a program serves it. It prints
// without its key.
type Pair struct {
	// ID of the certificate, which stays the same over its renewals.
	ID string
	// Names are DNS names in lower case, wildcards of one label, and IP addresses.
	Names []string
	// Generation of the certificate.
	Generation uint64
	// Chain is PEM, the leaf first, without the root; Key is the private key of the
	// leaf, PKCS #8 in PEM.
	Chain, Key []byte
	// Serial of the leaf, in hexadecimal.
	Serial string
}

// String says which certificate it is.
func (p Pair) String() string {
	return fmt.Sprintf("certificate %s, generation %d, serial %s, for %s", p.ID, p.Generation, p.Serial, strings.Join(p.Names, ", "))
}

// Format writes String for every verb, so that none of them shows the key.
func (p Pair) Format(f fmt.State, _ rune) { fmt.Fprint(f, p.String()) }
