package cert

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

const (
	// skew is how much later than an authority's a target's clock may be right.
	skew = 5 * time.Minute
	// maxChain and maxNames bound what one certificate costs.
	maxChain = 16
	maxNames = 1000
)

// errGeneration is why an older generation does not take the place of a newer one.
var errGeneration = errors.New("it is older than what is served, which was not withdrawn")

// An installed certificate is one that was verified and is served.
type installed struct {
	*candidate
	group  string
	bundle *Bundle
	names  []string // as clients ask for them
	since  time.Time
	// signed is the record that it is from, as it stands in the ledger.
	signed []byte
}

// wanted is what a target has to serve of a certificate; nil if nothing.
func wanted(r *Record, target string) *Bundle {
	switch {
	case r.Removed:
		return nil
	case r.Next != nil && r.Wave != nil && slices.Contains(r.Wave.Targets, target):
		return r.Next
	}
	return r.Current
}

// follows reports whether b may take the place of what is served.
func follows(r *Record, b *Bundle, served *installed) error {
	if served == nil || b.Generation > served.generation || b.Generation < served.generation && served.generation <= r.Withdrawn || b.Leaf == served.bundle.Leaf {
		return nil
	}
	return fmt.Errorf("generation %d after %d: %w", b.Generation, served.generation, errGeneration)
}

// verify opens a bundle that a record of a group has, and checks all that a manager
// could have done wrong, or somebody who is none could have done. now is not looked at
// if trusted says that it was checked before.
func verify(group, id string, b *Bundle, key *Key, now time.Time, trusted bool) (*installed, error) {
	chain, err := parseChain(b.Chain)
	if err != nil {
		return nil, err
	}
	leaf, err := x509.ParseCertificate(chain[0])
	if err != nil {
		return nil, fmt.Errorf("its certificate cannot be read: %w", err)
	}
	if sum := sha256.Sum256(leaf.Raw); hex.EncodeToString(sum[:]) != b.Leaf {
		return nil, errors.New("its certificate is another than the record says")
	}
	if sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo); hex.EncodeToString(sum[:]) != b.SPKI {
		return nil, errors.New("its public key is another than the record says")
	}
	if !sameSerial(serial(leaf), b.Serial) {
		return nil, errors.New("its serial number is another than the record says")
	}
	names, err := checkNames(leaf, b.Names)
	if err != nil {
		return nil, err
	}
	der, err := key.Open(id, b)
	if err != nil {
		return nil, err
	}
	private, err := parseKey(der, leaf)
	if err != nil {
		return nil, err
	}
	c := &tls.Certificate{Certificate: chain, PrivateKey: private, Leaf: leaf}
	if !trusted {
		certs, err := parseAll(leaf, chain)
		if err == nil {
			err = Servable(certs, now)
		}
		switch {
		case err != nil:
			return nil, err
		case !now.Before(leaf.NotAfter):
			return nil, fmt.Errorf("it expired at %s", leaf.NotAfter.UTC().Format(time.RFC3339))
		case now.Add(skew).Before(leaf.NotBefore):
			return nil, fmt.Errorf("it is not valid before %s by the clock of this machine", leaf.NotBefore.UTC().Format(time.RFC3339))
		}
	}
	return &installed{group: group, bundle: b, names: names, since: now, candidate: newCandidate(c, id, b.Generation)}, nil
}

// pair is the certificate for a program that is not this one.
func (i *installed) pair() (Pair, error) {
	der, err := x509.MarshalPKCS8PrivateKey(i.tls.PrivateKey)
	if err != nil {
		return Pair{}, fmt.Errorf("encoding the key of certificate %q: %w", i.id, err)
	}
	return Pair{
		ID: i.id, Names: i.names, Generation: i.generation, Chain: []byte(i.bundle.Chain), Serial: i.bundle.Serial,
		Key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	}, nil
}

// parseChain returns the certificates of a chain. All but the leaf are only checked to
// be some.
func parseChain(text string) ([][]byte, error) {
	var chain [][]byte
	for rest := []byte(text); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			if len(bytes.TrimSpace(rest)) > 0 {
				return nil, errors.New("its chain has something else in it than certificates")
			}
			break
		}
		if block.Type != "CERTIFICATE" || len(chain) == maxChain {
			return nil, fmt.Errorf("its chain has something else in it than certificates, or more than %d", maxChain)
		}
		if len(chain) > 0 {
			if _, err := x509.ParseCertificate(block.Bytes); err != nil {
				return nil, fmt.Errorf("certificate %d of its chain cannot be read: %w", len(chain)+1, err)
			}
		}
		chain = append(chain, block.Bytes)
	}
	if len(chain) == 0 {
		return nil, errors.New("its chain is empty")
	}
	return chain, nil
}

// parseAll reads a chain whose leaf has been read.
func parseAll(leaf *x509.Certificate, chain [][]byte) ([]*x509.Certificate, error) {
	certs := []*x509.Certificate{leaf}
	for _, der := range chain[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, fmt.Errorf("reading its chain: %w", err)
		}
		certs = append(certs, c)
	}
	return certs, nil
}

// checkNames returns the names as clients ask for them, if the certificate has all of
// them.
func checkNames(leaf *x509.Certificate, names []string) ([]string, error) {
	if len(names) == 0 || len(names) > maxNames {
		return nil, fmt.Errorf("it is for %d names, and 1 to %d are possible", len(names), maxNames)
	}
	has := make(map[string]bool, len(leaf.DNSNames)+len(leaf.IPAddresses))
	for _, name := range leaf.DNSNames {
		has[strings.ToLower(name)] = true
	}
	for _, ip := range leaf.IPAddresses {
		has[ip.String()] = true
	}
	all := make([]string, 0, len(names))
	for _, asked := range names {
		name, err := aLabels(asked)
		if ip := net.ParseIP(name); ip != nil {
			name = ip.String()
		}
		if err != nil || !has[name] {
			return nil, fmt.Errorf("its certificate is not for %q", asked)
		}
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all, nil
}

// parseKey returns the private key, if it is that of the leaf.
func parseKey(der []byte, leaf *x509.Certificate) (crypto.Signer, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, errors.New("its private key cannot be read")
	}
	private, ok := parsed.(crypto.Signer)
	public, comparable := leaf.PublicKey.(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !comparable || !public.Equal(private.Public()) {
		return nil, errors.New("its private key is that of another certificate")
	}
	return private, nil
}

// serial is the serial number of a certificate, in hexadecimal.
func serial(leaf *x509.Certificate) string { return leaf.SerialNumber.Text(16) }

// sameSerial compares serial numbers as several programs write them.
func sameSerial(a, b string) bool {
	clean := func(s string) string { return strings.TrimLeft(strings.ReplaceAll(s, ":", ""), "0") }
	return strings.EqualFold(clean(a), clean(b))
}
