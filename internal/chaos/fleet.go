//go:build linux

package chaos

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
)

// A fleet is a cluster of ours, with two accounts whose users use the same names.
type fleet struct {
	*cluster
	binary   string // that nodes are started from
	admin    string // creds file
	accounts []*account
}

// An account has a user for each protocol. What is in its messages and nowhere else is its
// canary.
type account struct {
	name, canary string
	fleet        *fleet
	user         nats.Option
	device       tls.Certificate
	manager      nats.Option // the one that obtains certificates
}

// newFleet makes a fleet, on disks in memory or not, and starts its nodes from binary.
func newFleet(ctx context.Context, dir string, w *network, env []string, binary string, memory bool) (*fleet, error) {
	c, err := newCluster(ctx, "fleetbus", dir, w, env, memory)
	if err != nil {
		return nil, err
	}
	f := &fleet{cluster: c, binary: binary}
	var options []fleetbus.Options
	for _, n := range c.nodes {
		o := fleetbus.Options{
			Mode: fleetbus.Mesh, Name: n.name, Advertise: n.addr, Dir: n.data(),
			Listeners: []fleetbus.Listener{{Name: "nats", Addr: n.addr + ":" + natsPort, Protocol: fleetbus.NATS()}},
			Cluster:   fleetbus.Cluster{Addr: n.addr + ":" + clusterPort},
		}
		options = append(options, o)
		n.line = func() []string {
			return []string{f.binary, "serve", "--data-dir", o.Dir, "--name", o.Name, "--advertise", o.Advertise,
				"--listeners-nats-addr", ":" + natsPort, "--listeners-mqtt-addr", ":" + mqttPort, "--listeners-amqp-addr", ":" + amqpPort,
				"--cluster-addr", ":" + clusterPort, "--store-reserve", reserve, "--certificates-manage=false"}
		}
	}
	founded, err := fleetbus.InitCluster(options)
	if err != nil {
		return nil, fmt.Errorf("making the fleet: %w", err)
	}
	// The first node's disk has them, and may be away when they are needed.
	if f.admin, err = copyFile(founded.AdminCreds, dir+"/admin.creds"); err != nil {
		return nil, err
	}
	ca, err := os.ReadFile(founded.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the authority: %w", err)
	}
	f.trust = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	f.trust.RootCAs.AppendCertsFromPEM(ca)
	return f, f.startAll(ctx)
}

func copyFile(from, to string) (string, error) {
	data, err := os.ReadFile(from)
	if err == nil {
		err = os.WriteFile(to, data, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("copying %q: %w", from, err)
	}
	return to, nil
}

// populate makes the accounts and their users.
func (f *fleet) populate(ctx context.Context) error {
	nc, err := f.dial(ctx, "admin", 0, admin.UserCredentials(f.admin))
	if err != nil {
		return err
	}
	defer nc.Close()
	api := admin.New(nc)
	for _, name := range []string{"red", "blue"} {
		a := &account{name: name, canary: rand.Text(), fleet: f}
		if err := until(ctx, patience, "there is account "+name, func(ctx context.Context) error {
			_, err := api.AddAccount(ctx, admin.AccountRequest{Name: name})
			return err
		}); err != nil {
			return err
		}
		if a.user, err = a.enlist(ctx, api, "load", identity.RoleClient); err != nil {
			return err
		}
		if a.manager, err = a.enlist(ctx, api, "manager", identity.RoleCertManager); err != nil {
			return err
		}
		if a.device, err = a.certify(ctx, api, "device"); err != nil {
			return err
		}
		f.accounts = append(f.accounts, a)
	}
	return nil
}

// enlist makes a user with credentials.
func (a *account) enlist(ctx context.Context, api *admin.Client, name, role string) (nats.Option, error) {
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return nil, err
	}
	var reply admin.UserReply
	err = until(ctx, patience, "there is user "+name, func(ctx context.Context) (err error) {
		reply, err = api.AddUser(ctx, admin.UserRequest{Name: a.name + "/" + name, Role: role, Key: public})
		return err
	})
	return func(o *nats.Options) error {
		return errors.Join(nats.UserJWTAndSeed(reply.JWT, string(seed))(o), nats.CustomInboxPrefix(identity.Inbox(name))(o))
	}, err
}

// certify makes a user with a certificate.
func (a *account) certify(ctx context.Context, api *admin.Client, name string) (cert tls.Certificate, err error) {
	key, err := identity.NewKey()
	if err != nil {
		return cert, fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return cert, fmt.Errorf("requesting a certificate: %w", err)
	}
	var reply admin.UserReply
	if err := until(ctx, patience, "there is user "+name, func(ctx context.Context) (err error) {
		reply, err = api.AddUser(ctx, admin.UserRequest{
			Name: a.name + "/" + name, CSR: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})),
		})
		return err
	}); err != nil {
		return cert, err
	}
	cert.PrivateKey = key
	for block, rest := pem.Decode([]byte(reply.Chain)); block != nil; block, rest = pem.Decode(rest) {
		cert.Certificate = append(cert.Certificate, block.Bytes)
	}
	return cert, nil
}

// tls is how a device of the account connects.
func (a *account) tls() *tls.Config {
	config := a.fleet.trust.Clone()
	config.Certificates = []tls.Certificate{a.device}
	return config
}

// dial connects a NATS client, which prefers the i-th node and stays until it is closed. It
// notices within some seconds that its node is away without a word.
func (c *cluster) dial(ctx context.Context, name string, i int, user nats.Option, more ...nats.Option) (nc *nats.Conn, err error) {
	options := append([]nats.Option{
		nats.Name(name), nats.Secure(c.trust), user, nats.Timeout(2 * time.Second), nats.DontRandomize(),
		nats.MaxReconnects(-1), nats.ReconnectWait(100 * time.Millisecond), nats.ReconnectJitter(50*time.Millisecond, 50*time.Millisecond),
		nats.PingInterval(time.Second), nats.MaxPingsOutstanding(2), nats.IgnoreDiscoveredServers(),
		// Errors come back from what they spoil; the default prints them.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, more...)
	err = until(ctx, patience, name+" is connected", func(context.Context) (err error) {
		nc, err = nats.Connect(strings.Join(c.urls(i), ","), options...)
		return err
	})
	return nc, err
}

// dial connects the account's user.
func (a *account) dial(ctx context.Context, name string, i int) (*nats.Conn, error) {
	return a.fleet.cluster.dial(ctx, a.name+"-"+name, i, a.user)
}

// whole waits until every node takes clients, and every copy of every stream and consumer of
// the accounts is current. late is told what was not, and for how long, of what took its time.
func (f *fleet) whole(ctx context.Context, eyes []*nats.Conn, late func(after time.Duration, what error)) error {
	began := time.Now()
	var last error
	defer func() {
		if took := time.Since(began); took > lateAfter && last != nil {
			late(took, last)
		}
	}()
	for _, n := range f.nodes {
		if err := n.accepts(ctx); err != nil {
			return errors.Join(f.gone(), err)
		}
	}
	for i, nc := range eyes {
		js, err := jetstream.New(nc)
		if err != nil {
			return err
		}
		if err := until(ctx, patience, "all copies are current", func(ctx context.Context) error {
			if err := f.gone(); err != nil {
				return err
			}
			err := current(ctx, js, len(f.nodes))
			if err != nil {
				last = err
			}
			return err
		}); err != nil {
			return fmt.Errorf("account %d: %w", i, err)
		}
	}
	return nil
}

// lateAfter is when it is worth a word that all is not whole.
const lateAfter = 20 * time.Second

// current says which of as many copies of a stream or of a durable consumer as there are nodes is
// not what the others are.
func current(ctx context.Context, js jetstream.JetStream, nodes int) error {
	streams := js.ListStreams(ctx)
	for info := range streams.Info() {
		if info.Config.Replicas < nodes {
			continue
		}
		if err := judgeCopies(info.Config.Name, info.Cluster, nodes); err != nil {
			return err
		}
		if strings.HasPrefix(info.Config.Name, "CERT") {
			continue // clients may not ask about its consumers
		}
		s, err := js.Stream(ctx, info.Config.Name)
		if err != nil {
			return fmt.Errorf("stream %q: %w", info.Config.Name, err)
		}
		consumers := s.ListConsumers(ctx)
		for c := range consumers.Info() {
			if c.Config.Durable != "" && (c.Config.Replicas == 0 || c.Config.Replicas == nodes) {
				if err := judgeCopies(info.Config.Name+" "+c.Name, c.Cluster, nodes); err != nil {
					return err
				}
			}
		}
		if err := consumers.Err(); err != nil {
			return fmt.Errorf("consumers of %q: %w", info.Config.Name, err)
		}
	}
	return streams.Err()
}

// slack is how many operations a copy may be behind while clients write, if it was heard of
// within recent: one that follows closely is behind at most moments.
const (
	slack  = 50
	recent = 2 * time.Second
)

func judgeCopies(what string, c *jetstream.ClusterInfo, nodes int) error {
	if c == nil || c.Leader == "" || len(c.Replicas) != nodes-1 {
		return fmt.Errorf("%s has no leader, or copies are missing", what)
	}
	for _, r := range c.Replicas {
		follows := r.Current || r.Active < recent
		if !follows || r.Offline || r.Lag > slack {
			return fmt.Errorf("%s: the copy of %s is not current: %d behind, offline %t", what, r.Name, r.Lag, r.Offline)
		}
	}
	return nil
}

// leader is the node that leads a stream of the account that js is of.
func (c *cluster) leader(ctx context.Context, js jetstream.JetStream, stream string) (n *node, err error) {
	err = until(ctx, patience, stream+" has a leader", func(ctx context.Context) error {
		s, err := js.Stream(ctx, stream)
		if err != nil {
			return err
		}
		for _, m := range c.nodes {
			if i := s.CachedInfo().Cluster; i != nil && i.Leader == m.name {
				n = m
				return nil
			}
		}
		return errors.New("it has none")
	})
	return n, err
}

// any is one of the nodes.
func (c *cluster) any(rng *mathrand.Rand) *node { return c.nodes[rng.IntN(len(c.nodes))] }
