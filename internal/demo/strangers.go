package demo

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

// strangerTimeout is how long a node may take to refuse a stranger.
const strangerTimeout = 10 * time.Second

// A stranger is one way to knock at a node without being of its fleet.
type stranger struct {
	// what it is, and how a node has to refuse it.
	what, how string
	// knock is nil if the node refused in that way.
	knock func(context.Context, *Node) error
}

// strangers are all ways to knock that are tried.
func (d *Demo) strangers() ([]stranger, error) {
	foreign, err := foreignCertificates()
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(d.founded.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("reading the authority %q: it holds no certificate", d.founded.CA)
	}
	withForeign := &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots}
	withForeign.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign.client, nil }
	// Whom a stranger trusts is not what is tried here.
	nobody := &tls.Config{MinVersion: tls.VersionTLS13, InsecureSkipVerify: true}
	asNode := nobody.Clone()
	asNode.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &foreign.mesh, nil }
	return []stranger{
		{"plain TCP", "closed", func(ctx context.Context, n *Node) error {
			return errors.Join(knockPlain(ctx, clientPort(n)), knockPlain(ctx, clusterPort(n)))
		}},
		{"foreign certificates", "TLS alert", func(ctx context.Context, n *Node) error {
			return errors.Join(knockTLS(ctx, clientPort(n), withForeign), knockTLS(ctx, clusterPort(n), asNode))
		}},
		{"no mesh certificate", "TLS alert", func(ctx context.Context, n *Node) error {
			return knockTLS(ctx, clusterPort(n), nobody)
		}},
		{"no credentials", "not authorized", func(ctx context.Context, n *Node) error {
			nc, err := d.connect(n, "", nats.NoReconnect())
			if err == nil {
				nc.Close()
				return errNotRefused
			}
			if !errors.Is(err, nats.ErrAuthorization) {
				return err
			}
			return nil
		}},
	}, nil
}

// refuse tries every stranger on every node.
func (d *Demo) refuse(ctx context.Context) (measured, error) {
	strangers, err := d.strangers()
	if err != nil {
		return measured{}, err
	}
	var told []string
	for _, s := range strangers {
		for _, n := range d.nodes {
			ctx, cancel := context.WithTimeout(ctx, strangerTimeout)
			err := s.knock(ctx, n)
			cancel()
			if err != nil {
				return measured{}, fmt.Errorf("knocking at node %s with %s: %w", n.Name, s.what, err)
			}
		}
		told = append(told, s.what+": "+s.how)
	}
	return measured{detail: strings.Join(told, "; ")}, nil
}

var errNotRefused = errors.New("it was not refused")

// A port is an address of a node. One that is greeting sends a line in plain text
// before TLS begins.
type port struct {
	addr     string
	greeting bool
}

func clientPort(n *Node) port  { return port{n.Clients, true} }
func clusterPort(n *Node) port { return port{n.Cluster, false} }

// dial connects and takes the greeting, which has to demand TLS. The connection
// is good until ctx's deadline.
func (p port) dial(ctx context.Context) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", p.addr)
	if err != nil {
		return nil, err
	}
	deadline, _ := ctx.Deadline()
	if err := conn.SetDeadline(deadline); err != nil {
		conn.Close()
		return nil, err
	}
	if !p.greeting {
		return conn, nil
	}
	// Nothing follows the line until the client begins TLS.
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err == nil && (!strings.HasPrefix(line, "INFO ") || !strings.Contains(line, `"tls_required":true`)) {
		err = fmt.Errorf("reading the greeting of %s: it does not demand TLS", p.addr)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	return conn, nil
}

// shake does a TLS handshake. The caller closes the connection.
func (p port) shake(ctx context.Context, config *tls.Config) (*tls.Conn, error) {
	conn, err := p.dial(ctx)
	if err != nil {
		return nil, err
	}
	config = config.Clone()
	config.ServerName, _, _ = net.SplitHostPort(p.addr)
	t := tls.Client(conn, config)
	if err := t.HandshakeContext(ctx); err != nil {
		conn.Close()
		return nil, err
	}
	return t, nil
}

// knockPlain speaks without TLS, and has to be closed without an answer.
func knockPlain(ctx context.Context, p port) error {
	conn, err := p.dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "CONNECT {\"verbose\":false}\r\nPING\r\n"); err != nil {
		return err
	}
	answer, err := io.ReadAll(conn)
	if err != nil && !errors.Is(err, syscall.ECONNRESET) {
		return err
	}
	if bytes.Contains(answer, []byte("PONG")) || bytes.Contains(answer, []byte("INFO")) {
		return fmt.Errorf("%w: the answer was %q", errNotRefused, answer)
	}
	return nil
}

// knockTLS shows a certificate, or none, and has to get a TLS alert. In TLS 1.3
// it comes after the client's half of the handshake.
func knockTLS(ctx context.Context, p port, config *tls.Config) error {
	conn, err := p.shake(ctx, config)
	if err == nil {
		defer conn.Close()
		_, err = conn.Read(make([]byte, 1))
	}
	var op *net.OpError
	switch {
	case err == nil:
		return errNotRefused
	case errors.As(err, &op) && op.Op == "remote error":
		return nil
	}
	return err
}

// foreign are certificates that look like the fleet's and are of another
// authority.
type foreign struct{ client, mesh tls.Certificate }

func foreignCertificates() (f foreign, err error) {
	now := time.Now()
	authority, _, err := identity.NewAuthority("demo", now)
	if err != nil {
		return f, fmt.Errorf("making a foreign authority: %w", err)
	}
	key, err := identity.NewKey()
	if err != nil {
		return f, fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return f, err
	}
	client, err := authority.SignUser(csr, account, "clerk", time.Hour, now)
	if err != nil {
		return f, err
	}
	mesh, _, err := authority.SignNode(csr, "n1", []string{"127.0.0.1"}, time.Hour, now)
	if err != nil {
		return f, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return f, fmt.Errorf("encoding a key: %w", err)
	}
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	if f.client, err = tls.X509KeyPair(client, keyPEM); err != nil {
		return f, fmt.Errorf("pairing a foreign certificate: %w", err)
	}
	if f.mesh, err = tls.X509KeyPair(mesh, keyPEM); err != nil {
		return f, fmt.Errorf("pairing a foreign certificate: %w", err)
	}
	return f, nil
}
