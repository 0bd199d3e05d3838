package bench

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/bareserver"
)

const (
	// startTimeout bounds the start of nodes; dialTimeout, adminTimeout and
	// storeTimeout a single try of what is done meanwhile.
	startTimeout = time.Minute
	dialTimeout  = 5 * time.Second
	adminTimeout = 10 * time.Second
	storeTimeout = 500 * time.Millisecond

	streamName = "BENCH"
	// streamSubject is the one that the stream keeps.
	streamSubject = "stored"
	benchAccount  = "bench"
)

// build makes the servers with the same settings, those of a release.
func (h *house) build(ctx context.Context) error {
	h.fleetbus, h.peer = filepath.Join(h.dir, "fleetbus"), filepath.Join(h.dir, "nats-server")
	sources := map[string]string{h.fleetbus: "github.com/fleetbus/fleetbus/cmd/fleetbus"}
	if !h.alone {
		sources[h.peer] = "github.com/nats-io/nats-server/v2"
	}
	for binary, source := range sources {
		if err := h.compile(ctx, "", binary, source); err != nil {
			return err
		}
	}
	return nil
}

// compile builds source, as the module in dir has it, and as "make build" does.
func (h *house) compile(ctx context.Context, dir, binary, source string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", "lean", "-trimpath", "-ldflags", "-s -w", "-o", binary, source)
	cmd.Dir, cmd.Env = dir, append(slices.Clone(h.env), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %q: %w\n%s", ErrNotBuilt, source, err, bytes.TrimSpace(out))
	}
	return nil
}

// A child is a process that this one started.
type child struct {
	cmd *exec.Cmd
	log string
	// ended is closed when the process is gone.
	ended chan struct{}
}

// stop kills the process and waits for its end.
func (c *child) stop() {
	_ = c.cmd.Process.Kill() // it may be gone already
	<-c.ended
}

// A system is a few nodes, of ours or of the peer's, that one user may use.
type system struct {
	name, version, dir string
	env                []string
	lines              [][]string // the command line of each node
	urls               []string   // tls://host:port of each
	trust              *tls.Config
	trustPEM           []byte
	user               nats.Option
	admin              string              // creds file of the administrator; ours only
	authority          *identity.Authority // the peer's, and its account
	account            identity.Account

	children []*child
	conns    []*nats.Conn // the user's, one to each node
}

// fleet makes homes for n nodes of a new fleet.
func (h *house) fleet(n int) (*system, error) {
	dir, addrs, err := h.place(2 * n)
	if err != nil {
		return nil, err
	}
	s := &system{name: "fleetbus", version: fleetbus.Version(), dir: dir, env: slices.Clone(h.env)}
	// The user's own settings are for the user's own fleet.
	s.env = slices.DeleteFunc(s.env, func(v string) bool { return strings.HasPrefix(v, "FLEETBUS_") })
	var nodes []fleetbus.Options
	for i := range n {
		o := fleetbus.Options{
			Mode: fleetbus.Mesh, Name: fmt.Sprintf("n%d", i+1), Advertise: "127.0.0.1", Dir: filepath.Join(dir, fmt.Sprintf("n%d", i+1)),
			Listeners: []fleetbus.Listener{{Name: "nats", Addr: addrs[2*i], Protocol: fleetbus.NATS()}},
			Cluster:   fleetbus.Cluster{Addr: addrs[2*i+1]},
		}
		nodes = append(nodes, o)
		s.urls = append(s.urls, "tls://"+addrs[2*i])
		s.lines = append(s.lines, []string{h.fleetbus, "serve", "--data-dir", o.Dir, "--name", o.Name, "--advertise", o.Advertise,
			"--listeners-nats-addr", addrs[2*i], "--cluster-addr", o.Cluster.Addr,
			"--certificates-manage=false"}) // a bench has managers of its own
	}
	founded, err := fleetbus.InitCluster(nodes)
	if err != nil {
		return nil, err
	}
	s.admin = founded.AdminCreds
	ca, err := os.ReadFile(founded.CA)
	if err != nil {
		return nil, fmt.Errorf("reading the authority: %w", err)
	}
	s.trust = &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: x509.NewCertPool()}
	s.trust.RootCAs.AppendCertsFromPEM(ca)
	s.trustPEM = ca
	return s, nil
}

// place makes a directory and finds n free addresses on loopback.
func (h *house) place(n int) (dir string, addrs []string, err error) {
	if dir, err = os.MkdirTemp(h.dir, "nodes-"); err != nil {
		return "", nil, fmt.Errorf("making a directory: %w", err)
	}
	for range n {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", nil, fmt.Errorf("looking for a free port: %w", err)
		}
		// All of them are held until the last is found, so that none comes twice.
		defer ln.Close()
		addrs = append(addrs, ln.Addr().String())
	}
	return dir, addrs, nil
}

// start starts the processes.
func (s *system) start(ctx context.Context) error {
	for i, line := range s.lines {
		c := &child{log: filepath.Join(s.dir, fmt.Sprintf("n%d.log", i+1)), ended: make(chan struct{})}
		out, err := os.Create(c.log)
		if err != nil {
			return fmt.Errorf("making a log: %w", err)
		}
		c.cmd = exec.CommandContext(ctx, line[0], line[1:]...)
		c.cmd.Env, c.cmd.Stdout, c.cmd.Stderr = s.env, out, out
		err = c.cmd.Start()
		out.Close()
		if err != nil {
			return fmt.Errorf("starting %s: %w", s.name, err)
		}
		go func() {
			// How it ended is in the log, and matters only if it was not stopped.
			_ = c.cmd.Wait()
			close(c.ended)
		}()
		s.children = append(s.children, c)
	}
	return nil
}

// stop ends what start and connect began, and removes what is left of it.
func (s *system) stop() {
	for _, nc := range s.conns {
		nc.Close()
	}
	for _, c := range s.children {
		c.stop()
	}
	// What cannot be removed here goes with the directory above.
	_ = os.RemoveAll(s.dir)
}

// died says which process is gone, and its last words.
func (s *system) died() error {
	for i, c := range s.children {
		select {
		case <-c.ended:
			text, _ := os.ReadFile(c.log)
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			return fmt.Errorf("node %d of %s ended: %s", i+1, s.name, lines[len(lines)-1])
		default:
		}
	}
	return nil
}

// eventually tries something until it succeeds, ctx is done or a process is gone.
// A single try is given up after limit, in case it was sent when nobody listened.
func (s *system) eventually(ctx context.Context, what string, limit time.Duration, do func(context.Context) error) error {
	for {
		try, cancel := context.WithTimeout(ctx, limit)
		err := do(try)
		cancel()
		if err == nil {
			return nil
		}
		if gone := s.died(); gone != nil {
			return fmt.Errorf("%s: %w", what, gone)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// dial connects to one of the nodes, as soon as one of them lets it.
func (s *system) dial(ctx context.Context, urls []string, opts ...nats.Option) (nc *nats.Conn, err error) {
	opts = append([]nats.Option{
		nats.Secure(s.trust), nats.NoReconnect(), nats.Timeout(dialTimeout),
		// Every error comes back from what it spoils; the default prints them.
		nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}),
	}, opts...)
	err = s.eventually(ctx, "connecting to "+s.name, dialTimeout, func(context.Context) (err error) {
		nc, err = nats.Connect(strings.Join(urls, ","), opts...)
		return err
	})
	return nc, err
}

// open returns when a first message is stored on every node, after it has made
// what that takes: an account and a user, in a fleet, and a stream.
func (s *system) open(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	if s.admin != "" {
		nc, err := s.dial(ctx, s.urls, admin.UserCredentials(s.admin))
		if err != nil {
			return err
		}
		defer nc.Close()
		api := admin.New(nc)
		if err := s.eventually(ctx, "making an account", adminTimeout, func(ctx context.Context) error {
			_, err := api.AddAccount(ctx, admin.AccountRequest{Name: benchAccount})
			return err
		}); err != nil {
			return err
		}
		if s.user, err = s.enlist(ctx, api, "load", identity.RoleClient); err != nil {
			return err
		}
	}
	nc, err := s.dial(ctx, s.urls, s.user)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	if err := s.eventually(ctx, "making a stream", storeTimeout, func(ctx context.Context) error {
		_, err := js.CreateStream(ctx, jetstream.StreamConfig{
			Name: streamName, Subjects: []string{streamSubject}, Storage: jetstream.FileStorage, Replicas: min(3, len(s.urls)),
		})
		return err
	}); err != nil {
		return err
	}
	return s.eventually(ctx, "storing a message", storeTimeout, func(ctx context.Context) error {
		_, err := js.Publish(ctx, streamSubject, make([]byte, payloadSize))
		return err
	})
}

// enlist makes a user of that name and role and returns its credentials.
func (s *system) enlist(ctx context.Context, api *admin.Client, name, role string) (nats.Option, error) {
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return nil, err
	}
	var reply admin.UserReply
	err = s.eventually(ctx, "making a user", adminTimeout, func(ctx context.Context) (err error) {
		reply, err = api.AddUser(ctx, admin.UserRequest{Name: benchAccount + "/" + name, Role: role, Key: public})
		return err
	})
	return func(o *nats.Options) error {
		return errors.Join(nats.UserJWTAndSeed(reply.JWT, string(seed))(o), nats.CustomInboxPrefix(identity.Inbox(name))(o))
	}, err
}

// startFleet runs n nodes of a new fleet, and connects to each.
func (h *house) startFleet(ctx context.Context, n int) (*system, error) {
	s, err := h.fleet(n)
	if err != nil {
		return nil, err
	}
	return s, s.run(ctx)
}

// startPeers runs n bare servers, and connects to each.
func (h *house) startPeers(ctx context.Context, n int) (*system, error) {
	s, err := h.peers(n)
	if err != nil {
		return nil, err
	}
	return s, s.run(ctx)
}

// run starts the system and connects the user to each node. On error nothing is
// left of it.
func (s *system) run(ctx context.Context) (err error) {
	defer func() {
		if err != nil {
			s.stop()
		}
	}()
	if err := s.start(ctx); err != nil {
		return err
	}
	if err := s.open(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for _, url := range s.urls {
		nc, err := s.dial(ctx, []string{url}, s.user)
		if err != nil {
			return err
		}
		s.conns = append(s.conns, nc)
	}
	s.version = s.conns[0].ConnectedServerVersion()
	return nil
}

// leader is the connection to the node that leads the stream.
func (s *system) leader(ctx context.Context) (*nats.Conn, error) {
	js, err := jetstream.New(s.conns[0])
	if err != nil {
		return nil, err
	}
	stream, err := js.Stream(ctx, streamName)
	if err != nil {
		return nil, fmt.Errorf("looking for the leader: %w", err)
	}
	info := stream.CachedInfo()
	if info.Cluster != nil {
		for _, nc := range s.conns {
			if nc.ConnectedServerName() == info.Cluster.Leader {
				return nc, nil
			}
		}
	}
	return nil, fmt.Errorf("looking for the leader: stream %q has none", streamName)
}

// peers makes the settings of n bare servers: a cluster, if there are several.
func (h *house) peers(n int) (*system, error) {
	dir, addrs, err := h.place(2 * n)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	authority, _, err := identity.NewAuthority(benchAccount, now)
	if err != nil {
		return nil, err
	}
	s := &system{name: "nats-server", dir: dir, trust: &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: authority.ClientRoots()}, trustPEM: authority.ClientsPEM(), authority: authority}
	verify := ""
	if h.mutual {
		verify = ", verify: true"
		if err := s.certify(now); err != nil {
			return nil, err
		}
	}
	accounts, err := s.peerAccounts(authority, now)
	if err != nil {
		return nil, err
	}
	var routes []string
	for i := range n {
		routes = append(routes, fmt.Sprintf("%q", "nats-route://"+addrs[2*i+1]))
	}
	for i := range n {
		node := filepath.Join(dir, fmt.Sprintf("n%d", i+1))
		if err := bareserver.WriteCertificates(authority, node, filepath.Base(node), "127.0.0.1", time.Hour, now); err != nil {
			return nil, err
		}
		config := fmt.Sprintf(`server_name: n%d
listen: %q
tls { cert_file: %q, key_file: %q, ca_file: %q, min_version: "1.3"%s }
jetstream { store_dir: %q, sync_interval: always }
%s`, i+1, addrs[2*i], node+"-server.pem", node+".key", node+"-clients-ca.pem", verify, node, accounts)
		if n > 1 {
			config += fmt.Sprintf(`cluster {
  name: bench, listen: %q, routes: [%s]
  tls { cert_file: %q, key_file: %q, ca_file: %q, min_version: "1.3", verify: true, insecure: true }
}
`, addrs[2*i+1], strings.Join(routes, ", "), node+"-mesh.pem", node+".key", node+"-mesh-ca.pem")
		}
		if err := os.WriteFile(node+".conf", []byte(config), 0o600); err != nil {
			return nil, fmt.Errorf("writing settings: %w", err)
		}
		s.urls = append(s.urls, "tls://"+addrs[2*i])
		s.lines = append(s.lines, []string{h.peer, "-c", node + ".conf"})
	}
	return s, nil
}

// certify gives the user of a bare server a certificate.
func (s *system) certify(now time.Time) error {
	key, err := identity.NewKey()
	if err != nil {
		return fmt.Errorf("making a key: %w", err)
	}
	csr, err := identity.NewCSR(key)
	if err != nil {
		return err
	}
	chain, err := s.authority.SignUser(csr, benchAccount, "load", time.Hour, now)
	if err != nil {
		return err
	}
	block, _ := pem.Decode(chain)
	s.trust.Certificates = []tls.Certificate{{Certificate: [][]byte{block.Bytes}, PrivateKey: key}}
	return nil
}

// peerAccounts are the settings for accounts like a fleet's. It makes the user.
func (s *system) peerAccounts(authority *identity.Authority, now time.Time) (string, error) {
	system, err := authority.SystemAccount(now)
	if err != nil {
		return "", err
	}
	account, err := authority.NewAccount(benchAccount, identity.Limits{}, now)
	if err != nil {
		return "", err
	}
	roles := identity.BuiltinRoles()
	var preload strings.Builder
	for _, a := range []identity.Account{system, account} {
		token, err := authority.AccountJWT(a, roles, nil, identity.Flows{}, now)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&preload, "%s: %s\n", a.Public, token)
	}
	s.account = account
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return "", err
	}
	i := slices.IndexFunc(roles, func(r identity.Role) bool { return r.Name == identity.RoleClient })
	token, err := authority.UserJWT(account, roles[i], "load", public, now.Add(time.Hour))
	if err != nil {
		return "", err
	}
	s.user = nats.UserJWTAndSeed(token, string(seed))
	return fmt.Sprintf("operator: %s\nsystem_account: %s\nresolver: MEMORY\nresolver_preload {\n%s}\n", authority.EngineOperator(), system.Public, &preload), nil
}
