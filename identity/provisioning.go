package identity

import (
	"crypto/subtle"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/jwt/v2"
)

// Provisioning is how a machine that nobody knows gets an identity: it comes in as
// a stranger, who may speak with provisioners and with nobody else.

const (
	// RoleProvisioner may ask for the identities of machines, and nothing else. It is
	// a role of the fleet's account alone.
	RoleProvisioner = "provisioner"
	// ProvisionRequests are what such a user asks of the fleet, under its own name.
	ProvisionRequests = adminBy + "provision."
	// ProvisionHello begins the subject at which strangers find provisioners. Its last
	// word is where the stranger is: see Whereabouts.
	ProvisionHello = "provision.hello."
	// ProvisionAsk begins the subject at which a stranger asks one of them. Its last two
	// words are the provisioner's instance, and where the stranger is.
	ProvisionAsk = "provision.ask."
	// ProvisionLedger is the prefix of what provisioners agree on.
	ProvisionLedger = Private + "provision"
	// ProvisionStream is the stream of that.
	ProvisionStream = "PROVISION"

	// strangerLife is how long a stranger may be connected.
	strangerLife = 10 * time.Minute
	// strangerPayload is the longest message of a stranger in bytes.
	strangerPayload = 32 << 10
	minStranger     = 12
)

func provisionerRole() Role {
	return Role{Name: RoleProvisioner, Builtin: true, Expires: 90 * 24 * time.Hour, Permissions: Permissions{
		Publish:   Rule{Allow: []string{ProvisionRequests + ">"}},
		Subscribe: Rule{Allow: []string{Inbox(nameTemplate) + ".>"}},
	}}
}

// Provisioner is who answers strangers in an account.
func Provisioner(account, name string, expires time.Time) Principal {
	p := Principal{Account: account, Name: name, Kind: KindService, Expires: expires}
	inbox := p.Inbox() + ".>"
	p.Permissions = Permissions{
		Publish:   Rule{Allow: []string{Inbox(">"), ProvisionLedger + ".>", "$JS.API.>", "$JS.ACK.>", "$JS.FC.>"}},
		Subscribe: Rule{Allow: []string{ProvisionHello + "*", ProvisionAsk + "*.*", inbox}},
	}
	return p
}

// ProvisionerJWT signs the JWT of p, a Provisioner who holds the private half of the
// nkey userPublic. Unlike SessionJWT's it is good at every node: it is of the keys that
// sign for the account's links.
func (a *Authority) ProvisionerJWT(account Account, p Principal, userPublic string, now time.Time) (string, error) {
	claims, err := a.sessionClaims(account, p, userPublic, now)
	if err != nil {
		return "", err
	}
	claims.IssuerAccount = account.Public
	claims.AllowedConnectionTypes = jwt.StringList{jwt.ConnectionTypeStandard}
	key, err := a.roleKey(account.ID, RoleLeaf)
	if err != nil {
		return "", fmt.Errorf("signing provisioner %q: %w", p, err)
	}
	token, err := encode(claims, key, now)
	if err != nil {
		return "", fmt.Errorf("signing provisioner %q: %w", p, err)
	}
	return token, nil
}

// Stranger is a machine that nobody knows: it came from remote, an address with or
// without a port, and gives itself a name of 12 to 23 characters, by which nobody
// else hears what it is answered. It may speak with provisioners of the account.
func Stranger(account, name, remote string, now time.Time) (Principal, error) {
	where, err := Whereabouts(remote)
	if err != nil {
		return Principal{}, refuse("a stranger's address is none: %w", err)
	}
	if err := CheckName(name); err != nil || len(name) < minStranger || len(where)+1+len(name) > maxName {
		return Principal{}, refuse("a stranger has no name of %d to %d letters and digits, made by chance, as its user", minStranger, maxName-40)
	}
	return Principal{
		Account: account, Name: where + "-" + name, Kind: KindStranger, Expires: now.Add(strangerLife),
		Limits: Limits{Payload: strangerPayload, Subscriptions: 4},
		Permissions: Permissions{
			Publish:   Rule{Allow: []string{ProvisionHello + where, ProvisionAsk + "*." + where}},
			Subscribe: Rule{Allow: []string{Inbox(name) + ".>"}},
		},
	}, nil
}

// Whereabouts is an address, with or without a port, as one word of a subject, such
// as 192-0-2-7: what the engine lets a stranger say of itself.
func Whereabouts(remote string) (string, error) {
	host, _, err := net.SplitHostPort(remote)
	if err != nil {
		host = remote
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return "", fmt.Errorf("reading address %s: %w", quote(remote), err)
	}
	return strings.NewReplacer(".", "-", ":", "-").Replace(addr.Unmap().WithZone("").StringExpanded()), nil
}

// WhereaboutsAddr is the address in a word of Whereabouts.
func WhereaboutsAddr(word string) (netip.Addr, error) {
	separator := "."
	if strings.Count(word, "-") == 7 {
		separator = ":"
	}
	addr, err := netip.ParseAddr(strings.ReplaceAll(word, "-", separator))
	if err != nil {
		return addr, fmt.Errorf("reading address %s: it is none", quote(word))
	}
	return addr, nil
}

// provisioning is the use of a provisioner's certificate, which is good for nothing
// else: nobody comes in by it, and no user's certificate has it.
var provisioning = asn1.ObjectIdentifier{2, 25, 290771438, 1650550391, 1}

// PinLength is the number of hexadecimal digits of Authority.Hash by which a
// machine knows its fleet.
const PinLength = tokenHash

// CheckPin says what is wrong with the text of a pin; nil if nothing is.
func CheckPin(pin string) error {
	if len(pin) != PinLength || !isHex(pin) {
		return fmt.Errorf("a fleet is known by %d hexadecimal digits, and %s is not that", PinLength, quote(pin))
	}
	return nil
}

// SignProvisioner issues the certificate by which machines know a provisioner, in
// PEM, followed by those of both authorities. For the rest see SignNode.
func (a *Authority) SignProvisioner(csr *x509.CertificateRequest, account, name string, ttl time.Duration, now time.Time) ([]byte, error) {
	if _, _, err := SplitName(account + "/" + name); err != nil {
		return nil, fmt.Errorf("signing the certificate of a provisioner: %w", err)
	}
	clients, routes := a.forNodes(KeyAuthority, now), a.forNodes(KeyRoutes, now)
	cert, err := clients.sign(csr, &x509.Certificate{
		Subject:            pkix.Name{Organization: []string{account}, CommonName: name},
		URIs:               []*url.URL{a.name(nodeSegment, account, name)},
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{provisioning},
	}, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of provisioner %q: %w", account+"/"+name, err)
	}
	return encodeCertificates(cert, clients.cert, routes.cert), nil
}

// Why a provisioner is not believed.
var (
	ErrProvisioner      = errors.New("it is no provisioner of the fleet")
	ErrProvisionerClock = errors.New("the provisioner's certificate does not hold at this time")
)

// VerifyProvisioner returns nil if chain is the certificate of a provisioner of the
// fleet with that pin, and its authorities, as SignProvisioner returned them. The
// error wraps ErrProvisioner or ErrProvisionerClock.
func VerifyProvisioner(pin string, chain []*x509.Certificate, now time.Time) error {
	if err := CheckPin(pin); err != nil {
		return err
	}
	if len(chain) != 3 {
		return fmt.Errorf("%w: it shows %d certificates and not 3", ErrProvisioner, len(chain))
	}
	if subtle.ConstantTimeCompare([]byte(PinOf(chain)), []byte(pin)) != 1 {
		return fmt.Errorf("%w: it is of fleet %s and not of %s", ErrProvisioner, PinOf(chain), pin)
	}
	roots := x509.NewCertPool()
	roots.AddCert(chain[1])
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	var invalid x509.CertificateInvalidError
	switch {
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return fmt.Errorf("%w: here it is %s, and the certificate is for %s to %s", ErrProvisionerClock,
			now.UTC().Format(time.RFC3339), chain[0].NotBefore.Format(time.RFC3339), chain[0].NotAfter.Format(time.RFC3339))
	case err != nil:
		return fmt.Errorf("%w: %w", ErrProvisioner, err)
	}
	if !slices.ContainsFunc(chain[0].UnknownExtKeyUsage, provisioning.Equal) {
		return fmt.Errorf("%w: its certificate is for something else", ErrProvisioner)
	}
	return nil
}

// PinOf is the pin of the fleet whose authorities are the last two of three
// certificates.
func PinOf(chain []*x509.Certificate) string {
	return hashAuthorities(chain[1], chain[2])[:PinLength]
}

// VerifyUser returns nil if cert, which SignUser made, is that of a user of a fleet
// whose authority is ca.
func VerifyUser(cert, ca *x509.Certificate, fleet, account, name string, now time.Time) error {
	roots := x509.NewCertPool()
	roots.AddCert(ca)
	_, err := cert.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return fmt.Errorf("verifying the certificate of %q: %w", account+"/"+name, err)
	}
	if a, n, ok := PrincipalFromCertificate(cert, fleet); !ok || a != account || n != name {
		return fmt.Errorf("verifying the certificate of %q: it is another's", account+"/"+name)
	}
	return nil
}
