package proxy

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"regexp"
	"strings"
)

// A Pair is a certificate as a proxy serves it.
type Pair struct {
	// ID is the stem of its files' names: letters, digits, and "_", "-" and "." inside.
	ID string
	// Chain is PEM, the leaf first, without the root; Key is the private key of the
	// leaf, PEM.
	Chain, Key []byte
}

// Leaf is the certificate itself. An error says that Chain is none, or that Key is
// another's.
func (p Pair) Leaf() (*x509.Certificate, error) {
	c, err := p.checked()
	return c.leaf, err
}

// Serial is the serial number of a certificate in lower-case hexadecimal, as openssl
// shows it in capitals.
func Serial(leaf *x509.Certificate) string { return hex.EncodeToString(leaf.SerialNumber.Bytes()) }

// certificate is a pair that was checked. Its PEM has nothing but the blocks.
type certificate struct {
	id         string
	leaf       *x509.Certificate
	names      []string // DNS names, lower case, and IP addresses
	chain, key []byte
}

// pem is chain and key in one, so that no reader ever sees one without the other.
func (c certificate) pem() []byte { return append(bytes.Clone(c.chain), c.key...) }

func (c certificate) equal(d certificate) bool {
	return bytes.Equal(c.chain, d.chain) && bytes.Equal(c.key, d.key)
}

// The name and the id become part of paths and of configurations, where other
// characters would have a meaning.
var (
	validID   = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}$`)
	validName = regexp.MustCompile(`^(\*\.)?[a-z0-9_-]+(\.[a-z0-9_-]+)*$`)
)

// check checks every pair, and that no id is there twice.
func check(pairs []Pair) ([]certificate, error) {
	all := make([]certificate, 0, len(pairs))
	seen := make(map[string]bool, len(pairs))
	for _, p := range pairs {
		c, err := p.checked()
		if err == nil && seen[c.id] {
			err = errors.New("there are two of that id")
		}
		if err != nil {
			return nil, fmt.Errorf("certificate %q cannot be installed: %w", p.ID, err)
		}
		seen[c.id] = true
		all = append(all, c)
	}
	return all, nil
}

func (p Pair) checked() (certificate, error) {
	if !validID.MatchString(p.ID) {
		return certificate{}, errors.New("its id is no name of a file")
	}
	chain := blocks(p.Chain, func(kind string) bool { return kind == "CERTIFICATE" })
	key := blocks(p.Key, func(kind string) bool { return strings.HasSuffix(kind, "PRIVATE KEY") })
	both, err := tls.X509KeyPair(chain, key)
	if err != nil {
		return certificate{}, err // such as that the key is another's; it quotes none
	}
	c := certificate{id: p.ID, leaf: both.Leaf, chain: chain, key: key}
	for _, name := range both.Leaf.DNSNames {
		if name = strings.ToLower(name); !validName.MatchString(name) {
			return certificate{}, fmt.Errorf("its name %q is no name of a server", name)
		}
		c.names = append(c.names, name)
	}
	for _, ip := range both.Leaf.IPAddresses {
		c.names = append(c.names, ip.String())
	}
	if len(c.names) == 0 {
		return certificate{}, errors.New("it has no name of a server")
	}
	return c, nil
}

// blocks are the PEM blocks of a kind, without whatever is between them.
func blocks(text []byte, wanted func(string) bool) []byte {
	var out bytes.Buffer
	for {
		var b *pem.Block
		if b, text = pem.Decode(text); b == nil {
			return out.Bytes()
		}
		if wanted(b.Type) {
			_ = pem.Encode(&out, &pem.Block{Type: b.Type, Bytes: b.Bytes}) // a buffer takes everything
		}
	}
}

// byName maps every DNS name to the first of the certificates that has it.
func byName(all []certificate) map[string]certificate {
	index := map[string]certificate{}
	for _, c := range all {
		for _, name := range c.names {
			if _, taken := index[name]; !taken && net.ParseIP(name) == nil {
				index[name] = c
			}
		}
	}
	return index
}
