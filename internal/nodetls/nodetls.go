// Package nodetls makes the TLS settings of a node: of its listeners, of its links
// with other nodes and with sites, and of who dials a fleet.
package nodetls

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
	"strings"
	"sync"
	"time"

	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/admission"
)

const (
	// MinVersion is the oldest version that any listener or link speaks.
	MinVersion = tls.VersionTLS13
	// Life is how long a node's own certificates are valid; they are renewed when a
	// third of it is left.
	Life = 24 * time.Hour
	// certificateCheck is how often files are hashed and lives are looked at.
	certificateCheck = 10 * time.Second
)

// Files are the operator's own, which take the place of what the built-in authority
// signs. They are read again when their content changes.
type Files struct {
	// Cert and Key are PEM files of a certificate chain and its key; both or none.
	Cert, Key string
	// CA are PEM files of authorities.
	CA []string
	// SkipHostnameVerification accepts a peer whose certificate does not carry the
	// name that was dialed.
	SkipHostnameVerification bool
}

// Options are what a node's certificates are made of. All but Files are required.
type Options struct {
	// Authority signs them.
	Authority *identity.Authority
	// Node is the node's name as its mesh certificate has it, and Hosts are the names
	// and addresses in that of its listeners.
	Node  string
	Hosts []string
	// Files take the place of the authority's on listeners.
	Files Files
	// Member says why a node of that name may not take part in the mesh, or nil.
	Member func(server string) error
	// Region is the name of this node's, and Linked says why one of that name may not
	// be linked to it, or nil, for ForGateways alone.
	Region string
	Linked func(region string) error
	Logger *slog.Logger
}

// Certificates are a node's: minted by the built-in authority, with keys that
// never leave memory, or read from the operator's files. All TLS settings made
// here look them up at each handshake, so that a renewal touches no connection. Make
// them with New. They are safe for concurrent use.
type Certificates struct {
	Options

	gateways gateways

	mu           sync.RWMutex
	mesh, server *tls.Certificate
	gateway      *tls.Certificate // nil without a region
	// minted is the built-in authority's server certificate, and joiners are those that
	// joiners are shown, by the hash in their token.
	minted  *tls.Certificate
	joiners map[string]*tls.Certificate
	// state is that of the keys by which they were minted.
	state string
	// trust are the built-in authority and the operator's own.
	trust *x509.CertPool
	sum   [sha256.Size]byte
}

// New makes a node's certificates.
func New(o Options) (*Certificates, error) {
	c := &Certificates{Options: o}
	if err := c.Renew(time.Now()); err != nil {
		return nil, err
	}
	return c, nil
}

// minted are certificates that the built-in authority signed for one key.
type minted struct {
	mesh, server *tls.Certificate
	gateway      *tls.Certificate // nil without a region
	joiners      map[string]*tls.Certificate
}

// Renew mints new certificates, or reads the files again.
func (c *Certificates) Renew(now time.Time) error {
	state := c.Authority.KeyState(now)
	m, err := c.mint(now)
	if err != nil {
		return err
	}
	server, trust := m.server, c.Authority.ClientRoots()
	var sum [sha256.Size]byte
	if c.Files.Cert != "" {
		if server, trust, sum, err = c.read(); err != nil {
			return err
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mesh, c.gateway, c.server, c.minted, c.joiners = m.mesh, m.gateway, server, m.server, m.joiners
	c.trust, c.sum, c.state = trust, sum, state
	return nil
}

func (c *Certificates) mint(now time.Time) (m minted, err error) {
	key, err := identity.NewKey()
	if err != nil {
		return m, fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return m, fmt.Errorf("requesting certificates: %w", err)
	}
	meshPEM, serverPEM, err := c.Authority.SignNode(csr, c.Node, c.Hosts, Life, now)
	if err != nil {
		return m, fmt.Errorf("renewing the node's certificates: %w", err)
	}
	if m.mesh, err = pair(meshPEM, key); err != nil {
		return m, err
	}
	if m.server, err = pair(serverPEM, key); err != nil {
		return m, err
	}
	shown, err := c.Authority.SignJoiners(csr, c.Node, c.Hosts, Life, now)
	if err != nil {
		return m, fmt.Errorf("renewing the node's certificates: %w", err)
	}
	m.joiners = map[string]*tls.Certificate{}
	for hash, chain := range shown {
		if m.joiners[hash], err = pair(chain, key); err != nil {
			return m, err
		}
	}
	if c.Region == "" {
		return m, nil
	}
	gatewayPEM, err := c.Authority.SignGateway(csr, c.Region, c.Node, Life, now)
	if err != nil {
		return m, fmt.Errorf("renewing the node's certificates: %w", err)
	}
	m.gateway, err = pair(gatewayPEM, key)
	return m, err
}

// read loads the operator's files.
func (c *Certificates) read() (*tls.Certificate, *x509.CertPool, [sha256.Size]byte, error) {
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
	certPEM, err := load(c.Files.Cert)
	if err != nil {
		return nil, nil, sum, err
	}
	keyPEM, err := load(c.Files.Key)
	if err != nil {
		return nil, nil, sum, err
	}
	cert, err := tls.X509KeyPair(certPEM, keyPEM)
	if err != nil {
		return nil, nil, sum, fmt.Errorf("pairing %q with %q: %w", c.Files.Cert, c.Files.Key, err)
	}
	pool := c.Authority.ClientRoots()
	for _, path := range c.Files.CA {
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

// Keep renews in time, until ctx is done.
func (c *Certificates) Keep(ctx context.Context) {
	tick := time.NewTicker(certificateCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			due, err := c.due(now)
			if err == nil && due {
				err = c.Renew(now)
			}
			if err != nil {
				c.Logger.Error("certificates were not renewed", "error", err)
			} else if due {
				c.Logger.Info("certificates renewed", "not_after", c.NotAfter())
			}
		}
	}
}

func (c *Certificates) due(now time.Time) (bool, error) {
	c.mu.RLock()
	sum, leaf := c.sum, c.minted.Leaf
	old := c.state != c.Authority.KeyState(now)
	c.mu.RUnlock()
	if old || leaf.NotAfter.Sub(now) < Life/3 {
		return true, nil
	}
	if c.Files.Cert == "" {
		return false, nil
	}
	_, _, fresh, err := c.read()
	return fresh != sum, err
}

// CAPEM are the authorities that clients verify this node with.
func (c *Certificates) CAPEM() []byte {
	if c.Files.Cert == "" {
		return c.Authority.ClientsPEM()
	}
	var all []byte
	for _, path := range c.Files.CA {
		if data, err := os.ReadFile(path); err == nil {
			all = append(all, data...)
		}
	}
	return all
}

// NotAfter is when the first of the certificates ends.
func (c *Certificates) NotAfter() time.Time {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.server.Leaf.NotAfter.Before(c.mesh.Leaf.NotAfter) {
		return c.server.Leaf.NotAfter
	}
	return c.mesh.Leaf.NotAfter
}

func (c *Certificates) meshCertificate() *tls.Certificate {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.mesh
}

// ForListener are the TLS settings of a listener, where a client may show a
// certificate, or has to. admit is asked first, with the context of the handshake.
// protocols are the application protocols that are offered, the best first.
func (c *Certificates) ForListener(required bool, admit func(context.Context) error, protocols ...string) *tls.Config {
	auth := tls.VerifyClientCertIfGiven
	if required {
		auth = tls.RequireAndVerifyClientCert
	}
	settings := func(cert *tls.Certificate, trust *x509.CertPool) *tls.Config {
		return &tls.Config{
			MinVersion:   MinVersion,
			Certificates: []tls.Certificate{*cert},
			ClientAuth:   auth,
			ClientCAs:    trust,
			NextProtos:   protocols,
			// A resumed session would carry the certificates of an earlier time.
			SessionTicketsDisabled: true,
		}
	}
	// A connection keeps its settings, so that all of them share what is made once
	// for each renewal. A joiner knows the built-in authority, whatever the
	// operator's own is, and that of the time of its token.
	var mu sync.Mutex
	var made *tls.Certificate
	var clients, joiners *tls.Config
	var byHash map[string]*tls.Config
	current := func(name string) *tls.Config {
		c.mu.RLock()
		server, minted, shown, trust := c.server, c.minted, c.joiners, c.trust
		c.mu.RUnlock()
		mu.Lock()
		defer mu.Unlock()
		if made != server {
			made, clients, joiners, byHash = server, settings(server, trust), settings(minted, trust), map[string]*tls.Config{}
			for hash, cert := range shown {
				byHash[hash] = settings(cert, trust)
			}
		}
		hash, joining := strings.CutSuffix(name, enroll.ServerName)
		if !joining || required {
			return clients
		}
		if known := byHash[strings.TrimSuffix(hash, ".")]; known != nil {
			return known
		}
		return joiners
	}
	config := current("").Clone()
	config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		if err := admit(hello.Context()); err != nil {
			return nil, err
		}
		admission.Watch(hello.Context(), hello.Conn)
		return current(hello.ServerName), nil
	}
	return config
}

// ForSites are the TLS settings for the links of sites, which know the built-in
// authority. admit is asked first.
func (c *Certificates) ForSites(admit func(context.Context) error) *tls.Config {
	return &tls.Config{
		MinVersion: MinVersion,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if err := admit(hello.Context()); err != nil {
				return nil, err
			}
			admission.Watch(hello.Context(), hello.Conn)
			c.mu.RLock()
			defer c.mu.RUnlock()
			return c.minted, nil
		},
		SessionTicketsDisabled: true,
	}
}

// ForMesh are the TLS settings between nodes, in both directions.
func (c *Certificates) ForMesh() *tls.Config {
	accept, dial := mutual(c.meshCertificate, c.verifyPeer)
	dial.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		admission.Watch(hello.Context(), hello.Conn)
		return accept, nil
	}
	return dial
}

// mutual are the settings of the two ends of a link between nodes.
func mutual(own func() *tls.Certificate, verify func(tls.ConnectionState) error) (accept, dial *tls.Config) {
	accept = &tls.Config{
		MinVersion:             MinVersion,
		GetCertificate:         func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return own(), nil },
		ClientAuth:             tls.RequireAnyClientCert,
		VerifyConnection:       verify,
		SessionTicketsDisabled: true,
	}
	dial = accept.Clone()
	dial.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return own(), nil }
	// Nodes are known by the name in their mesh certificate, wherever they are; verify
	// does all that is skipped here, with roots that can change.
	dial.InsecureSkipVerify = true
	return accept, dial
}

// verifyPeer says why the other end is no node of this fleet, or nil.
func (c *Certificates) verifyPeer(cs tls.ConnectionState) error {
	leaf, err := c.meshLeaf(cs)
	if err != nil {
		return err
	}
	name, ok := identity.NodeFromCertificate(leaf, c.Authority.Fleet())
	if !ok {
		return errors.New("verifying the peer: its certificate is not a node's of this fleet")
	}
	return c.Member(name)
}

// meshLeaf is the other end's certificate, which the mesh's authority has signed.
func (c *Certificates) meshLeaf(cs tls.ConnectionState) (*x509.Certificate, error) {
	if len(cs.PeerCertificates) == 0 {
		return nil, errors.New("the peer showed no certificate")
	}
	opts := x509.VerifyOptions{Roots: c.Authority.MeshRoots(), Intermediates: x509.NewCertPool()}
	for _, cert := range cs.PeerCertificates[1:] {
		opts.Intermediates.AddCert(cert)
	}
	leaf := cs.PeerCertificates[0]
	// A node is both ends of links.
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth} {
		opts.KeyUsages = []x509.ExtKeyUsage{usage}
		if _, err := leaf.Verify(opts); err != nil {
			return nil, fmt.Errorf("verifying the peer: %w", err)
		}
	}
	return leaf, nil
}

// Client are the settings with which a server that is no node dials one.
func Client(files Files) (*tls.Config, error) {
	config := &tls.Config{MinVersion: MinVersion, InsecureSkipVerify: files.SkipHostnameVerification}
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

// Hosts are the names under which clients may reach a node that listens, and tells
// others to come, at these host:port.
func Hosts(advertise string, addrs []string) []string {
	hosts := []string{"localhost", "127.0.0.1", "::1", advertise}
	if name, err := os.Hostname(); err == nil {
		hosts = append(hosts, name)
	}
	for _, addr := range addrs {
		host, _, err := net.SplitHostPort(addr)
		if ip := net.ParseIP(host); err == nil && host != "" && (ip == nil || !ip.IsUnspecified()) {
			hosts = append(hosts, host)
		}
	}
	slices.Sort(hosts)
	return slices.DeleteFunc(slices.Compact(hosts), func(h string) bool { return h == "" })
}
