// Package bareserver has what bare servers of the engine's make need to stand beside a fleet as
// its peers.
package bareserver

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// WriteCertificates writes what a server called name needs for TLS at addr to files that begin
// with base: its key, its certificates for other servers and for clients, and the authorities
// of both.
func WriteCertificates(authority *identity.Authority, base, name, addr string, life time.Duration, now time.Time) error {
	key, err := identity.NewKey()
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return fmt.Errorf("requesting certificates: %w", err)
	}
	mesh, server, err := authority.SignNode(csr, name, []string{addr}, life, now)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fmt.Errorf("encoding a key: %w", err)
	}
	for suffix, data := range map[string][]byte{
		".key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), "-mesh.pem": mesh, "-server.pem": server,
		"-mesh-ca.pem": authority.MeshPEM(), "-clients-ca.pem": authority.ClientsPEM(),
	} {
		if err := os.WriteFile(base+suffix, data, 0o600); err != nil {
			return fmt.Errorf("writing a certificate: %w", err)
		}
	}
	return nil
}
