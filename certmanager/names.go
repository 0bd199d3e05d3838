package certmanager

import (
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// CheckNames says what is wrong with the names of an Order: nothing is repaired here,
// because a certificate is for exactly the names that were asked for.
func CheckNames(names []string) error {
	if len(names) == 0 {
		return errors.New("there are no names")
	}
	var problems []error
	for i, name := range names {
		if slices.Contains(names[:i], name) {
			problems = append(problems, fmt.Errorf("%q is there twice", name))
		} else if err := checkName(name); err != nil {
			problems = append(problems, fmt.Errorf("%q is no name for a certificate: %w", name, err))
		}
	}
	return errors.Join(problems...)
}

func checkName(name string) error {
	if ip, err := netip.ParseAddr(name); err == nil {
		if ip.Zone() != "" || ip.Unmap().String() != name {
			return fmt.Errorf("the address is written %s", ip.WithZone("").Unmap())
		}
		return nil
	}
	base, wildcard := strings.CutPrefix(name, "*.")
	labels := strings.Split(base, ".")
	if len(name) > 253 {
		return fmt.Errorf("it has %d characters, and 253 are allowed", len(name))
	}
	if wildcard && len(labels) < 2 {
		return errors.New("a wildcard needs a domain of two labels")
	}
	for _, label := range labels {
		switch {
		case label == "" || len(label) > 63:
			return errors.New("a label has 1 to 63 characters")
		case strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "":
			return errors.New("a label has lower-case letters, digits and dashes")
		case label[0] == '-' || label[len(label)-1] == '-':
			return errors.New("a label neither begins nor ends with a dash")
		}
	}
	if strings.Trim(labels[len(labels)-1], "0123456789") == "" {
		return errors.New("it is an address that is written wrong, or no name")
	}
	return nil
}

// LeafNames are the names that a certificate has, as in an Order.
func LeafNames(leaf *x509.Certificate) []string {
	var names []string
	for _, name := range leaf.DNSNames {
		names = append(names, strings.ToLower(name))
	}
	for _, ip := range leaf.IPAddresses {
		if addr, ok := netip.AddrFromSlice(ip); ok {
			names = append(names, addr.Unmap().String())
		}
	}
	return names
}
