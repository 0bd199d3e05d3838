// Package private is an X.509 authority of our own, for names that no public one
// issues for. It issues at once and keeps nothing: its secret and what it has revoked
// are one text, which its owner keeps sealed.
//
//	authority, err := private.New(private.Options{})
//	secret, err := authority.Marshal()
//	fmt.Print(authority.Root()) // for those who are to trust it
package private

import (
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/certmanager"
)

const (
	// rootYears is how long a root is valid.
	rootYears = 10
	// defaultLife is how long certificates are valid, and maxLife the most.
	defaultLife = 30 * 24 * time.Hour
	maxLife     = 397 * 24 * time.Hour
	// backdate is for clocks that are behind.
	backdate = time.Hour
	// listLife is how long a revocation list is valid.
	listLife = 7 * 24 * time.Hour
	// maxSecret bounds what is read as a secret.
	maxSecret = 16 << 20
)

// Options of an authority.
type Options struct {
	// Name of the root, for people. It is taken when the authority is made. Default
	// "fleetbus private authority".
	Name string
	// Domains that the authority issues for, with all below them; written into the
	// root as name constraints when it is made. Empty: any, and any address.
	Domains []string
	// Life of certificates. Default 30 days; at most 397.
	Life time.Duration
	// Rand is for keys and serial numbers. Default crypto/rand.
	Rand io.Reader
	// Now is the clock. Default time.Now.
	Now func() time.Time
}

func (o Options) withDefaults() Options {
	o.Name = cmp.Or(o.Name, "fleetbus private authority")
	o.Life = cmp.Or(o.Life, defaultLife)
	o.Rand = cmp.Or(o.Rand, rand.Reader)
	if o.Now == nil {
		o.Now = time.Now
	}
	return o
}

// An Authority issues and revokes. Make it with New or Unmarshal. It is safe for
// concurrent use, and it never shows its key.
type Authority struct {
	o    Options
	root *x509.Certificate
	key  *ecdsa.PrivateKey

	mu      sync.Mutex
	revoked []revocation
	number  int64 // of the last revocation list
}

var _ certmanager.Issuer = (*Authority)(nil)

// A revocation is a certificate that is not to be trusted any more.
type revocation struct {
	Serial  string    `json:"serial"` // hexadecimal
	At      time.Time `json:"at"`
	Reason  int       `json:"reason"`
	Expires time.Time `json:"expires"`
}

// secret is how an authority is kept.
type secret struct {
	Version int          `json:"v"`
	Root    string       `json:"root"` // PEM
	Key     string       `json:"key"`  // PEM, PKCS #8
	Revoked []revocation `json:"revoked,omitempty"`
	Number  int64        `json:"crl_number,omitempty"`
}

// New makes an authority with a key and a root of its own.
func New(o Options) (*Authority, error) {
	o = o.withDefaults()
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("making a private authority: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), o.Rand)
	if err != nil {
		return nil, fmt.Errorf("making a private authority: %w", err)
	}
	serial, err := newSerial(o.Rand)
	if err != nil {
		return nil, fmt.Errorf("making a private authority: %w", err)
	}
	now := o.Now()
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: o.Name},
		NotBefore: now.Add(-backdate), NotAfter: now.AddDate(rootYears, 0, 0),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, BasicConstraintsValid: true, IsCA: true, MaxPathLenZero: true,
	}
	if len(o.Domains) > 0 {
		// A constraint on addresses keeps those out that are not in it, which are all.
		template.PermittedDNSDomainsCritical = true
		template.PermittedDNSDomains = o.Domains
		template.ExcludedIPRanges = []*net.IPNet{{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, {IP: net.IPv6zero, Mask: net.CIDRMask(0, 128)}}
	}
	der, err := x509.CreateCertificate(o.Rand, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making a private authority: %w", err)
	}
	root, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("making a private authority: %w", err)
	}
	return &Authority{o: o, root: root, key: key}, nil
}

func (o Options) check() error {
	if o.Life < time.Hour || o.Life > maxLife {
		return fmt.Errorf("certificates would be valid for %v, and 1h to %v are allowed", o.Life, maxLife)
	}
	if len(o.Domains) > 0 {
		if err := certmanager.CheckNames(o.Domains); err != nil {
			return err
		}
		if i := slices.IndexFunc(o.Domains, notDomain); i >= 0 {
			return fmt.Errorf("%q is no domain", o.Domains[i])
		}
	}
	return nil
}

func notDomain(name string) bool {
	_, err := netip.ParseAddr(name)
	return err == nil || strings.HasPrefix(name, "*.")
}

// Marshal returns the authority with its key, for New's caller to seal. Whoever has it
// can issue for every name that the root may.
func (a *Authority) Marshal() (string, error) {
	der, err := x509.MarshalPKCS8PrivateKey(a.key)
	if err != nil {
		return "", fmt.Errorf("encoding a private authority: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	text, err := json.Marshal(secret{
		Version: 1, Root: a.Root(), Key: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
		Revoked: a.revoked, Number: a.number,
	})
	if err != nil {
		return "", fmt.Errorf("encoding a private authority: %w", err)
	}
	return string(text), nil
}

// Unmarshal reads what Marshal returned. Of o, the name and the domains are those of
// the root. No error quotes the text.
func Unmarshal(text string, o Options) (*Authority, error) {
	o = o.withDefaults()
	broken := errors.New("reading a private authority: it is damaged")
	if len(text) > maxSecret {
		return nil, broken
	}
	var s secret
	if json.Unmarshal([]byte(text), &s) != nil {
		return nil, broken
	}
	rootBlock, _ := pem.Decode([]byte(s.Root))
	keyBlock, _ := pem.Decode([]byte(s.Key))
	if rootBlock == nil || rootBlock.Type != "CERTIFICATE" || keyBlock == nil {
		return nil, broken
	}
	root, err := x509.ParseCertificate(rootBlock.Bytes)
	if err != nil {
		return nil, broken
	}
	parsed, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return nil, broken
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(root.PublicKey) || !root.IsCA {
		return nil, broken
	}
	o.Name, o.Domains = root.Subject.CommonName, root.PermittedDNSDomains
	if err := o.check(); err != nil {
		return nil, fmt.Errorf("reading a private authority: %w", err)
	}
	return &Authority{o: o, root: root, key: key, revoked: s.Revoked, number: s.Number}, nil
}

// String says whose authority it is.
func (a *Authority) String() string { return "private authority " + a.o.Name }

// Format writes String for every verb, so that none of them shows the key.
func (a *Authority) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, a.String()) }

// Root is the root in PEM, for those who are to trust the authority.
func (a *Authority) Root() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.root.Raw}))
}

// newSerial returns 128 random bits. RFC 5280, section 4.1.2.2 allows no more than 20
// bytes, and no zero.
func newSerial(r io.Reader) (*big.Int, error) {
	b := make([]byte, 16)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, fmt.Errorf("making a serial number: %w", err)
	}
	return new(big.Int).Add(new(big.Int).SetBytes(b), big.NewInt(1)), nil
}

func permanent(format string, args ...any) error {
	return &certmanager.Problem{Step: "order", Permanent: true, Err: fmt.Errorf(format, args...)}
}

// Issue issues at once. There are no orders: nothing is saved, and State, Methods and
// Profile say nothing here. Control of the names is not proved; who may ask is decided
// before.
func (a *Authority) Issue(ctx context.Context, o certmanager.Order) (certmanager.Issued, error) {
	if err := ctx.Err(); err != nil {
		return certmanager.Issued{}, err
	}
	if err := certmanager.CheckNames(o.Names); err != nil {
		return certmanager.Issued{}, permanent("%w", err)
	}
	if o.Key == nil {
		return certmanager.Issued{}, permanent("the order has no key")
	}
	if err := checkKey(o.Key.Public()); err != nil {
		return certmanager.Issued{}, permanent("%w", err)
	}
	now := a.o.Now()
	template := &x509.Certificate{
		NotBefore: now.Add(-backdate), NotAfter: now.Add(a.o.Life), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}, BasicConstraintsValid: true,
	}
	for _, name := range o.Names {
		if !a.allows(name) {
			return certmanager.Issued{}, permanent("%s is for %s, and %q is not in there", a, strings.Join(a.o.Domains, ", "), name)
		}
		if addr, err := netip.ParseAddr(name); err == nil {
			template.IPAddresses = append(template.IPAddresses, addr.AsSlice())
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	if template.NotBefore.Before(a.root.NotBefore) {
		template.NotBefore = a.root.NotBefore
	}
	if template.NotAfter.After(a.root.NotAfter) {
		return certmanager.Issued{}, permanent("the root of %s ends at %v: make a new authority", a, a.root.NotAfter)
	}
	var err error
	if template.SerialNumber, err = newSerial(a.o.Rand); err != nil {
		return certmanager.Issued{}, err
	}
	if o.Progress != nil {
		o.Progress("signing it with " + a.String())
	}
	der, err := x509.CreateCertificate(a.o.Rand, template, a.root, o.Key.Public(), a.key)
	if err != nil {
		return certmanager.Issued{}, &certmanager.Problem{Step: "finalize", Err: fmt.Errorf("signing for %q: %w", o.Names, err)}
	}
	return certmanager.Issued{Chain: [][]byte{der}}, nil
}

// allows reports whether a name is in the domains of the authority.
func (a *Authority) allows(name string) bool {
	if len(a.o.Domains) == 0 {
		return true
	}
	if _, err := netip.ParseAddr(name); err == nil {
		return false
	}
	base := strings.TrimPrefix(name, "*.")
	return slices.ContainsFunc(a.o.Domains, func(d string) bool { return base == d || strings.HasSuffix(base, "."+d) })
}

func checkKey(public crypto.PublicKey) error {
	switch key := public.(type) {
	case *ecdsa.PublicKey:
		if key.Curve == elliptic.P256() || key.Curve == elliptic.P384() {
			return nil
		}
	case *rsa.PublicKey:
		if key.N.BitLen() >= 2048 {
			return nil
		}
	}
	return errors.New("the key is none of P-256, P-384, and RSA of 2048 bits or more")
}

// Renewal is ErrNoRenewal: who renews knows best.
func (a *Authority) Renewal(context.Context, *x509.Certificate) (cert.Renewal, error) {
	return cert.Renewal{}, certmanager.ErrNoRenewal
}

// Revoke puts a certificate on the next list. The caller keeps what Marshal returns
// then: the authority itself keeps it in memory alone.
func (a *Authority) Revoke(_ context.Context, leaf *x509.Certificate, reason certmanager.Reason) error {
	if err := leaf.CheckSignatureFrom(a.root); err != nil {
		return permanent("revoking the certificate %x: %s did not issue it", leaf.SerialNumber, a)
	}
	serial := fmt.Sprintf("%x", leaf.SerialNumber)
	a.mu.Lock()
	defer a.mu.Unlock()
	if slices.ContainsFunc(a.revoked, func(r revocation) bool { return r.Serial == serial }) {
		return nil
	}
	a.revoked = append(a.revoked, revocation{Serial: serial, At: a.o.Now().UTC().Truncate(time.Second), Reason: int(reason), Expires: leaf.NotAfter})
	return nil
}

// List returns the list of what is revoked and not expired, in DER and signed. It is
// valid for a week. RFC 5280, section 5.
func (a *Authority) List() ([]byte, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.o.Now()
	a.revoked = slices.DeleteFunc(a.revoked, func(r revocation) bool { return now.After(r.Expires.Add(listLife)) })
	a.number = max(a.number+1, now.Unix()) // another manager, with an older secret, does not go back
	list := &x509.RevocationList{Number: big.NewInt(a.number), ThisUpdate: now, NextUpdate: now.Add(listLife)}
	for _, r := range a.revoked {
		serial, ok := new(big.Int).SetString(r.Serial, 16)
		if !ok {
			return nil, fmt.Errorf("listing what %s has revoked: %q is no serial number", a, r.Serial)
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: serial, RevocationTime: r.At, ReasonCode: r.Reason,
		})
	}
	der, err := x509.CreateRevocationList(a.o.Rand, list, a.root, a.key)
	if err != nil {
		return nil, fmt.Errorf("listing what %s has revoked: %w", a, err)
	}
	return der, nil
}
