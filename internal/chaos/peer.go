//go:build linux

package chaos

import (
	"context"
	"crypto/tls"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/bareserver"
)

// peerPassword is the one that the user of bare servers has.
const peerPassword = "chaos"

// newPeers makes as many bare servers of the engine's make in the same network, each on such a
// disk, with TLS and synchronous writes as ours have, and starts them.
func newPeers(ctx context.Context, dir string, w *network, env []string, binary string) (*cluster, error) {
	c, err := newCluster(ctx, "nats-server", dir, w, env, false)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	authority, _, err := identity.NewAuthority("peers", now)
	if err != nil {
		return nil, err
	}
	c.trust = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.ClientRoots()}
	var routes []string
	for _, n := range c.nodes {
		routes = append(routes, fmt.Sprintf("%q", "nats-route://"+n.addr+":"+clusterPort))
	}
	for _, n := range c.nodes {
		base := filepath.Join(dir, "peer-"+n.name)
		if err := bareserver.WriteCertificates(authority, base, n.name, n.addr, 48*time.Hour, now); err != nil {
			return nil, err
		}
		config := fmt.Sprintf(`server_name: %s
listen: "0.0.0.0:%s"
tls { cert_file: %q, key_file: %q, ca_file: %q, min_version: "1.3" }
jetstream { store_dir: %q, sync_interval: always }
accounts {
  red { jetstream: enabled, users: [{user: red, password: %q}] }
  SYS { users: [{user: system, password: %q}] }
}
system_account: SYS
cluster {
  name: peers, listen: "0.0.0.0:%s", routes: [%s]
  tls { cert_file: %q, key_file: %q, ca_file: %q, min_version: "1.3", verify: true, insecure: true }
}
`, n.name, natsPort, base+"-server.pem", base+".key", base+"-clients-ca.pem", n.data(), peerPassword, peerPassword,
			clusterPort, strings.Join(routes, ", "), base+"-mesh.pem", base+".key", base+"-mesh-ca.pem")
		if err := os.WriteFile(base+".conf", []byte(config), 0o600); err != nil {
			return nil, fmt.Errorf("writing settings: %w", err)
		}
		n.line = func() []string { return []string{binary, "-c", base + ".conf"} }
	}
	return c, c.startAll(ctx)
}

func peerUser() nats.Option { return nats.UserInfo("red", peerPassword) }
