package fleetbus

import (
	"context"
	"crypto"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
)

const (
	// certificateLife is how long a node's own certificates are valid; they are
	// renewed when a third of it is left.
	certificateLife = 24 * time.Hour
	// certificateCheck is how often files are hashed and lives are looked at.
	certificateCheck = 10 * time.Second
)

// errStarting is why a listener refuses while the node has not caught up.
var errStarting = errors.New("the node is starting")

// certificates are this node's: minted by the built-in authority, with keys that
// never leave memory, or read from the operator's files. All TLS settings made
// here look them up at each handshake, so that a renewal touches no connection.
type certificates struct {
	authority *identity.Authority
	node      string
	hosts     []string
	files     TLS
	log       *slog.Logger
	// member says why a node of that name may not take part in the mesh, or nil.
	member func(server string) error

	mu           sync.RWMutex
	mesh, server *tls.Certificate
	// minted is the built-in authority's server certificate.
	minted *tls.Certificate
	// trust are the built-in authority and the operator's own.
	trust *x509.CertPool
	sum   [sha256.Size]byte
}

// renew mints new certificates, or reads the files again.
func (c *certificates) renew(now time.Time) error {
	mesh, minted, err := c.mint(now)
	if err != nil {
		return err
	}
	server, trust := minted, c.authority.ClientRoots()
	var sum [sha256.Size]byte
	if c.files.Cert != "" {
		if server, trust, sum, err = c.read(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mesh, c.server, c.minted, c.trust, c.sum = mesh, server, minted, trust, sum
	return nil
}

func (c *certificates) mint(now time.Time) (mesh, server *tls.Certificate, err error) {
	key, err := identity.NewKey()
	if err != nil {
		return nil, nil, fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return nil, nil, fmt.Errorf("requesting certificates: %w", err)
	}
	meshPEM, serverPEM, err := c.authority.SignNode(csr, c.node, c.hosts, certificateLife, now)
	if err != nil {
		return nil, nil, fmt.Errorf("renewing the node's certificates: %w", err)
	}
	if mesh, err = pair(meshPEM, key); err != nil {
		return nil, nil, err
	}
	server, err = pair(serverPEM, key)
	return mesh, server, err
}

// read loads the operator's files.
func (c *certificates) read() (*tls.Certificate, *x509.CertPool, [sha256.Size]byte, error) {
	hash := sha256.New()
	var sum [sha256.Size]byte
	load := func(path string) ([]byte, error) {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading a TLS file: %w", err)
		}
		hash.Write(data)
		return data, nil
	}
	certPEM, err := load(c.files.Cert)
	if err != nil {
		return nil, nil, sum, err
	}
	keyPEM, err := load(c.files.Key)
	if err != nil {
		return nil, nil, sum, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, sum, fmt.Errorf("pairing %q with %q: %w", c.files.Cert, c.files.Key, err)
	}
	pool := c.authority.ClientRoots()
	for _, path := range c.files.CA {
		data, err := load(path)
		if err != nil {
			return nil, nil, sum, err
		}
		if !pool.AppendCertsFromPEM(data) {
			return nil, nil, sum, fmt.Errorf("reading authority %q: no certificate in it", path)
		}
	}
	return &cert, pool, [sha256.Size]byte(hash.Sum(nil)), nil
}

// keep renews in time, until ctx is done.
func (c *certificates) keep(ctx context.Context) {
	tick := time.NewTicker(certificateCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			due, err := c.due(now)
			if err == nil && due {
				err = c.renew(now)
			}
			if err != nil {
				c.log.Error("certificates were not renewed", "error", err)
			} else if due {
				c.log.Info("certificates renewed", "not_after", c.notAfter())
			}
		}
	}
}

func (c *certificates) due(now time.Time) (bool, error) {
	c.mu.RLock()
	sum, leaf := c.sum, c.minted.Leaf
	c.mu.RUnlock()
	if c.files.Cert != "" {
		_, _, fresh, err := c.read()
		return fresh != sum, err
	}
	return leaf.NotAfter.Sub(now) < certificateLife/3, nil
}

// caPEM are the authorities that clients verify this node with.
func (c *certificates) caPEM() []byte {
	if c.files.Cert == "" {
		return c.authority.ClientsPEM()
	}
	var all []byte
	for _, path := range c.files.CA {
		if data, err := os.ReadFile(path); err == nil {
			all = append(all, data...)
		}
	}
	return all
}

// notAfter is when the first of the certificates ends.
func (c *certificates) notAfter() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.server.Leaf.NotAfter.Before(c.mesh.Leaf.NotAfter) {
		return c.server.Leaf.NotAfter
	}
	return c.mesh.Leaf.NotAfter
}

func (c *certificates) meshCertificate() *tls.Certificate {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mesh
}

// forListener are the TLS settings of a listener. admit is asked first.
func (c *certificates) forListener(policy CertificatePolicy, admit func() error) *tls.Config {
	auth := tls.VerifyClientCertIfGiven
	if policy == CertificateRequired {
		auth = tls.RequireAndVerifyClientCert
	}
	settings := func(cert *tls.Certificate, trust *x509.CertPool) *tls.Config {
		return &tls.Config{
			MinVersion:   minTLS,
			Certificates: []tls.Certificate{*cert},
			ClientAuth:   auth,
			ClientCAs:    trust,
			// A resumed session would carry the certificates of an earlier time.
			SessionTicketsDisabled: true,
		}
	}
	// A connection keeps its settings, so that all of them share what is made once
	// for each renewal. A joiner knows the built-in authority, whatever the
	// operator's own is.
	var mu sync.Mutex
	var made *tls.Certificate
	var clients, joiners *tls.Config
	current := func(joining bool) *tls.Config {
		c.mu.RLock()
		server, minted, trust := c.server, c.minted, c.trust
		c.mu.RUnlock()
		mu.Lock()
		defer mu.Unlock()
		if made != server {
			made, clients, joiners = server, settings(server, trust), settings(minted, trust)
		}
		if joining {
			return joiners
		}
		return clients
	}
	config := current(false).Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := admit(); err != nil {
			return nil, err
		}
		return current(hello.ServerName == enroll.ServerName && policy != CertificateRequired), nil
	}
	return config
}

// forSites are the TLS settings for the links of sites, which know the built-in
// authority. admit is asked first.
func (c *certificates) forSites(admit func() error) *tls.Config {
	return &tls.Config{
		MinVersion: minTLS,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			if err := admit(); err != nil {
				return nil, err
			}
			c.mu.RLock()
			defer c.mu.RUnlock()
			return c.minted, nil
		},
		SessionTicketsDisabled: true,
	}
}

// forMesh are the TLS settings between nodes, in both directions.
func (c *certificates) forMesh() *tls.Config {
	accept := &tls.Config{
		MinVersion:             minTLS,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.meshCertificate(), nil },
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       c.verifyPeer,
		SessionTicketsDisabled: true,
	}
	dial := accept.Clone()
	dial.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return accept, nil }
	dial.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return c.meshCertificate(), nil }
	// Nodes are known by the name in their mesh certificate, wherever they are;
	// verifyPeer does all that is skipped here, with roots that can change.
	dial.InsecureSkipVerify = true
	return dial
}

// verifyPeer says why the other end is no node of this fleet, or nil.
func (c *certificates) verifyPeer(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return errors.New("the peer showed no certificate")
	}
	opts := x509.VerifyOptions{Roots: c.authority.MeshRoots(), Intermediates: x509.NewCertPool()}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	leaf := cs.PeerCertificates[0]
	// A node is both ends of links.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(opts); err != nil {
			return fmt.Errorf("verifying the peer: %w", err)
		}
	}
	name, ok := identity.NodeFromCertificate(leaf, c.authority.Fleet())
	if !ok {
		return errors.New("verifying the peer: its certificate is not a node's of this fleet")
	}
	return c.member(name)
}

// clientTLS are the settings with which a server in Client mode dials a node.
func clientTLS(files TLS) (*tls.Config, error) {
	config := &tls.Config{MinVersion: minTLS, InsecureSkipVerify: files.SkipHostnameVerification}
	if len(files.CA) > 0 {
		config.RootCAs = x509.NewCertPool()
	}
	for _, path := range files.CA {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("reading a TLS file: %w", err)
		}
		if !config.RootCAs.AppendCertsFromPEM(data) {
			return nil, fmt.Errorf("reading authority %q: no certificate in it", path)
		}
	}
	if files.SkipHostnameVerification {
		// The chain is still verified; only the name is not.
		config.VerifyConnection = func(cs tls.ConnectionState) error {
			opts := x509.VerifyOptions{Roots: config.RootCAs, Intermediates: x509.NewCertPool()}
			for _, cert := range cs.PeerCertificates[1:] {
				opts.Intermediates.AddCert(cert)
			}
			_, err := cs.PeerCertificates[0].Verify(opts)
			return err
		}
	}
	if files.Cert != "" {
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			cert, err := tls.LoadX509KeyPair(files.Cert, files.Key)
			return &cert, err
		}
	}
	return config, nil
}

// pair joins a PEM chain and the key it was issued for.
func pair(chain []byte, key crypto.Signer) (*tls.Certificate, error) {
	cert := &tls.Certificate{PrivateKey: key}
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	if len(cert.Certificate) == 0 {
		return nil, errors.New("reading a certificate: there is none")
	}
	leaf, err := x509.ParseCertificate(cert.Certificate[0])
	if err != nil {
		return nil, fmt.Errorf("reading a certificate: %w", err)
	}
	cert.Leaf = leaf
	return cert, nil
}

// certificateHosts are the names under which clients may reach the node.
func certificateHosts(advertise string, listeners []Listener) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1", advertise}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	for _, l := range listeners {
		for _, addr := range []string{l.Addr, l.Advertise} {
			host, _, err := net.SplitHostPort(addr)
			if ip := net.ParseIP(host); err == nil && host != "" && (ip == nil || !ip.IsUnspecified()) {
				hosts = append(hosts, host)
			}
		}
	}
	slices.Sort(hosts)
	return slices.DeleteFunc(slices.Compact(hosts), func(h string) bool { return h == "" })
}
