package identity

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"
	"time"
)

const (
	authorityLife = 10 * 365 * 24 * time.Hour
	// backdate lets a certificate hold on machines whose clock is behind.
	backdate = 5 * time.Minute
	// maxHost is the length of the longest host name in bytes.
	maxHost = 253
)

// NewKey makes a private key for a node or a user: ECDSA P-256.
func NewKey() (*ecdsa.PrivateKey, error) {
	return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
}

// NewCSR makes a certificate request that proves possession of key and names
// nobody: the signer decides on the names.
func NewCSR(key crypto.Signer) (*x509.CertificateRequest, error) {
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		return nil, fmt.Errorf("making a certificate request: %w", err)
	}
	return x509.ParseCertificateRequest(der)
}

// SignNode issues a node's certificates for the key in csr, for ttl from now or
// as long as the authority lasts, if that is shorter. mesh is for links with
// other nodes, in both directions, and names spiffe://<fleet>/node/<node>,
// where node is what Node.Server returns.
// server is for listeners, names hosts (DNS names and addresses), and is
// followed by the certificates of both authorities, for TokenText.VerifyServer.
// Both are PEM. Names in csr are ignored; its signature and the strength of its
// key (ECDSA P-256 and up, Ed25519, RSA of 2048 bits and up) are not.
func (a *Authority) SignNode(csr *x509.CertificateRequest, node string, hosts []string, ttl time.Duration, now time.Time) (mesh, server []byte, err error) {
	if _, err := SplitServer(node); err != nil {
		return nil, nil, fmt.Errorf("signing the certificates of a node: %w", err)
	}
	dns, ips, err := splitHosts(hosts)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the certificates of node %q: %w", node, err)
	}
	clients, routes := a.forNodes(KeyAuthority, now), a.forNodes(KeyRoutes, now)
	meshCert, err := routes.sign(csr, &x509.Certificate{
		Subject:     pkix.Name{CommonName: node},
		URIs:        []*url.URL{a.name(nodeSegment, node)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, ttl, now)
	if err != nil {
		return nil, nil, fmt.Errorf("signing the mesh certificate of node %q: %w", node, err)
	}
	server, err = clients.server(csr, node, dns, ips, routes, ttl, now)
	return encodeCertificates(meshCert), server, err
}

// SignJoiners issues listeners' certificates as SignNode does, one for each token that
// may be about: by TokenText.AuthorityHash. Without a rotation there is one.
func (a *Authority) SignJoiners(csr *x509.CertificateRequest, node string, hosts []string, ttl time.Duration, now time.Time) (map[string][]byte, error) {
	dns, ips, err := splitHosts(hosts)
	if err != nil {
		return nil, fmt.Errorf("signing the certificates of node %q: %w", node, err)
	}
	all := map[string][]byte{}
	clients, _ := a.issuersOf(KeyAuthority, now)
	routes, _ := a.issuersOf(KeyRoutes, now)
	for _, c := range clients {
		for _, r := range routes {
			if all[hashAuthorities(c.cert, r.cert)[:tokenHash]], err = c.server(csr, node, dns, ips, r, ttl, now); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// server issues a listener's certificate, followed by those of both authorities.
func (i *issuer) server(csr *x509.CertificateRequest, node string, dns []string, ips []net.IP, routes *issuer, ttl time.Duration, now time.Time) ([]byte, error) {
	cert, err := i.sign(csr, &x509.Certificate{
		Subject:     pkix.Name{CommonName: node},
		DNSNames:    dns,
		IPAddresses: ips,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("signing the server certificate of node %q: %w", node, err)
	}
	return encodeCertificates(cert, i.cert, routes.cert), nil
}

// SignUser issues a client certificate, in PEM, for the key in csr. It names
// spiffe://<fleet>/<account>/<name>. For the rest see SignNode.
func (a *Authority) SignUser(csr *x509.CertificateRequest, account, name string, ttl time.Duration, now time.Time) ([]byte, error) {
	if _, _, err := SplitName(account + "/" + name); err != nil {
		return nil, fmt.Errorf("signing the certificate of a user: %w", err)
	}
	if account == nodeSegment {
		return nil, fmt.Errorf("signing the certificate of a user: account name %q is kept for nodes", account)
	}
	cert, err := a.newest(KeyAuthority, now).sign(csr, &x509.Certificate{
		Subject:     pkix.Name{Organization: []string{account}, CommonName: name},
		URIs:        []*url.URL{a.name(account, name)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ttl, now)
	if err != nil {
		return nil, fmt.Errorf("signing the certificate of %q: %w", account+"/"+name, err)
	}
	return encodeCertificates(cert), nil
}

func (a *Authority) name(segments ...string) *url.URL {
	return &url.URL{Scheme: "spiffe", Host: a.fleet, Path: "/" + strings.Join(segments, "/")}
}

// PrincipalFromCertificate returns the account and name in a certificate of
// SignUser for that fleet; false if it is not one. It verifies no signature.
func PrincipalFromCertificate(cert *x509.Certificate, fleet string) (account, name string, ok bool) {
	path, ok := spiffePath(cert, fleet)
	account, name, err := SplitName(path)
	if !ok || err != nil || account == nodeSegment {
		return "", "", false
	}
	return account, name, true
}

// NodeFromCertificate returns the node's name in a mesh certificate of SignNode
// for that fleet; false if it is not one. It verifies no signature.
func NodeFromCertificate(cert *x509.Certificate, fleet string) (node string, ok bool) {
	path, ok := spiffePath(cert, fleet)
	node, ok2 := strings.CutPrefix(path, nodeSegment+"/")
	if _, err := SplitServer(node); !ok || !ok2 || err != nil {
		return "", false
	}
	return node, true
}

// spiffePath reads the one URI of cert. A SPIFFE certificate has exactly one
// (X509-SVID, section 2), so that it cannot mean two things.
func spiffePath(cert *x509.Certificate, fleet string) (path string, ok bool) {
	if len(cert.URIs) != 1 {
		return "", false
	}
	return strings.CutPrefix(cert.URIs[0].String(), "spiffe://"+fleet+"/")
}

// splitHosts sorts out DNS names and addresses.
func splitHosts(hosts []string) (dns []string, ips []net.IP, err error) {
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			ips = append(ips, ip)
		} else if err := checkHost(h); err != nil {
			return nil, nil, err
		} else {
			dns = append(dns, h)
		}
	}
	if len(hosts) == 0 {
		return nil, nil, errors.New("it has no host name or address")
	}
	return dns, ips, nil
}

func checkHost(host string) error {
	if len(host) > maxHost {
		return fmt.Errorf("host %s is longer than %d bytes", quote(host), maxHost)
	}
	for label := range strings.SplitSeq(host, ".") {
		if CheckName(label) != nil {
			return fmt.Errorf("host %s is neither an address nor a DNS name", quote(host))
		}
	}
	return nil
}

// An issuer is an X.509 authority.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// issuerRecord is an issuer as it is stored: DER, and PKCS #8.
type issuerRecord struct {
	Certificate []byte `json:"certificate"`
	Key         []byte `json:"key"`
}

func newIssuer(name string, now time.Time) (*issuer, error) {
	key, err := NewKey()
	if err != nil {
		return nil, fmt.Errorf("making the key of %q: %w", name, err)
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLife),
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate of %q: %w", name, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("reading the certificate of %q: %w", name, err)
	}
	return &issuer{cert: cert, key: key}, nil
}

// sign completes template with the key in csr and the time, and signs it.
func (i *issuer) sign(csr *x509.CertificateRequest, template *x509.Certificate, ttl time.Duration, now time.Time) (*x509.Certificate, error) {
	if err := checkCSR(csr); err != nil {
		return nil, err
	}
	if ttl <= 0 {
		return nil, fmt.Errorf("its life of %s is not positive", ttl)
	}
	if !now.Before(i.cert.NotAfter) {
		return nil, fmt.Errorf("its authority %q has expired", i.cert.Subject.CommonName)
	}
	template.NotBefore = now.Add(-backdate)
	template.NotAfter = now.Add(ttl)
	if template.NotAfter.After(i.cert.NotAfter) {
		template.NotAfter = i.cert.NotAfter
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.BasicConstraintsValid = true
	der, err := x509.CreateCertificate(rand.Reader, template, i.cert, csr.PublicKey, i.key)
	if err != nil {
		return nil, fmt.Errorf("making the certificate: %w", err)
	}
	return x509.ParseCertificate(der)
}

func (i *issuer) record() (issuerRecord, error) {
	key, err := x509.MarshalPKCS8PrivateKey(i.key)
	return issuerRecord{Certificate: i.cert.Raw, Key: key}, err
}

func (r issuerRecord) issuer() (*issuer, error) {
	cert, err := x509.ParseCertificate(r.Certificate)
	if err != nil {
		return nil, fmt.Errorf("reading its certificate: %w", err)
	}
	parsed, err := x509.ParsePKCS8PrivateKey(r.Key)
	if err != nil {
		return nil, fmt.Errorf("reading its key: %w", err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(cert.PublicKey) || !cert.IsCA {
		return nil, errors.New("its certificate and key do not make an authority")
	}
	return &issuer{cert: cert, key: key}, nil
}

// checkCSR checks that whoever made csr holds its key, and that the key is
// strong. The upper bound on RSA is on what verifying costs.
func checkCSR(csr *x509.CertificateRequest) error {
	switch key := csr.PublicKey.(type) {
	case *ecdsa.PublicKey:
		if key.Params().BitSize < 256 {
			return fmt.Errorf("its key is on curve %s, which is weaker than P-256", key.Params().Name)
		}
	case ed25519.PublicKey:
	case *rsa.PublicKey:
		if bits := key.N.BitLen(); bits < 2048 || bits > 8192 {
			return fmt.Errorf("its RSA key has %d bits, not 2048 to 8192", bits)
		}
	default:
		return errors.New("its key is not of ECDSA, Ed25519 or RSA")
	}
	if err := csr.CheckSignature(); err != nil {
		return fmt.Errorf("checking the certificate request: %w", err)
	}
	return nil
}

func encodeCertificates(certs ...*x509.Certificate) []byte {
	var out []byte
	for _, c := range certs {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
	}
	return out
}

func hashAuthorities(clients, mesh *x509.Certificate) string {
	h := sha256.New()
	h.Write(clients.Raw)
	h.Write(mesh.Raw)
	return hex.EncodeToString(h.Sum(nil))
}
