package fleetbus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/adapter"
	"github.com/fleetbus/fleetbus/internal/admission"
	"github.com/fleetbus/fleetbus/internal/audit"
	"github.com/fleetbus/fleetbus/internal/backup"
	"github.com/fleetbus/fleetbus/internal/broker"
	"github.com/fleetbus/fleetbus/internal/disk"
	"github.com/fleetbus/fleetbus/internal/events"
	"github.com/fleetbus/fleetbus/internal/home"
	"github.com/fleetbus/fleetbus/internal/iface"
	"github.com/fleetbus/fleetbus/internal/links"
	"github.com/fleetbus/fleetbus/internal/listener"
	"github.com/fleetbus/fleetbus/internal/loginlink"
	"github.com/fleetbus/fleetbus/internal/meter"
	"github.com/fleetbus/fleetbus/internal/nodetls"
	"github.com/fleetbus/fleetbus/internal/portowner"
	"github.com/fleetbus/fleetbus/internal/profiler"
	"github.com/fleetbus/fleetbus/internal/signed"
	"github.com/fleetbus/fleetbus/internal/strangers"
)

const (
	// startTimeout bounds the start of the engine.
	startTimeout = 30 * time.Second
	// quorumTimeout is how long a starting node waits to catch up with the fleet
	// before it serves from its snapshot. An election takes up to 9 s.
	quorumTimeout = 15 * time.Second
)

// A Server is a node of a fleet, or a bus within one process. Make it with New.
// Its methods are safe for concurrent use.
type Server struct {
	opts  Options
	log   *slog.Logger
	ready chan struct{}

	// Set by Run before ready is closed.
	home   *home.Home
	fleet  *fleet
	broker *broker.Broker
	certs  *nodetls.Certificates
	// conn is in the fleet account, as this node; exact, too: see ConnectExact.
	conn, exact *nats.Conn
	adapters    *adapter.Adapters
	signed      *signed.Gates
	started     time.Time
	failures    failures
	managers    managers
	site        *site // nil if this node is none
	regions     regions
	links       links.Links
	loginLinks  loginlink.Links
	events      *events.Queue
	audit       audit.Desk
	disk        disk.Guard
	meter       meter.Meter
	life        meter.Life
	profiler    profiler.Profiler

	mu      sync.Mutex
	running bool
	addrs   map[string]net.Addr
	// gates are opened when the node has caught up.
	gates []*admission.Gate
	// fail ends the server with an error.
	fail context.CancelCauseFunc
	// passwords are those that foreign protocols have verified.
	passwords *strangers.Queue
	// group holds the goroutines that answer requests.
	group sync.WaitGroup
}

// New validates o and opens nothing. The error joins every problem, each an
// *OptionError.
func New(o Options) (*Server, error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	o = o.withDefaults()
	s := &Server{opts: o, log: o.Logger, ready: make(chan struct{}), addrs: map[string]net.Addr{}}
	s.passwords = strangers.NewQueue(2, s.tellTooMany)
	return s, nil
}

func (s *Server) options() Options { return s.opts }

// Ready is closed when every listener accepts and the fleet's state is loaded.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Addr is where a listener accepts, by its name; "cluster" and "monitor" name the
// routes and the monitoring API. It is nil before Ready, and for what is off.
func (s *Server) Addr(listener string) net.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addrs[listener]
}

// Run serves until ctx is done, and then drains and stops: nil if ctx ended it.
// Everything it started is undone when it returns. It can be called once.
func (s *Server) Run(ctx context.Context) (err error) {
	s.mu.Lock()
	again := s.running
	s.running = true
	s.mu.Unlock()
	if again {
		return errors.New("running the server: it has been run already")
	}
	// What fails in the background ends everything else.
	asked := ctx
	ctx, fail := context.WithCancelCause(ctx)
	defer fail(nil)
	s.fail = fail
	var undo cleanup
	defer func() {
		undo.run()
		s.group.Wait()
		switch cause := context.Cause(ctx); {
		case asked.Err() != nil, errors.Is(cause, errLeft):
			err = nil
		case err == nil:
			err = cause
		}
	}()
	if err := s.resolve(); err != nil {
		return err
	}
	if s.opts.Mode == Client {
		err = s.startClient(ctx, &undo)
	} else {
		err = s.startNode(ctx, &undo)
	}
	if err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}

// resolve puts addresses in the place of the names of interfaces.
func (s *Server) resolve() (err error) {
	s.opts.Listeners = slices.Clone(s.opts.Listeners)
	for i := range s.opts.Listeners {
		l := &s.opts.Listeners[i]
		if l.Addr, err = iface.Resolve(l.Addr); err != nil {
			return fmt.Errorf("opening listener %q: %w", l.Name, err)
		}
	}
	return nil
}

// cleanup undoes what was started, last first.
type cleanup []func()

func (c *cleanup) add(undo func()) { *c = append(*c, undo) }

func (c *cleanup) run() {
	for _, undo := range slices.Backward(*c) {
		undo()
	}
}

// background runs do in a goroutine, with a context of its own that undo ends
// and waits for.
func (c *cleanup) background(ctx context.Context, do func(context.Context)) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		do(ctx)
	}()
	c.add(func() {
		cancel()
		<-done
	})
}

func (s *Server) startClient(ctx context.Context, undo *cleanup) error {
	nc, err := s.dialFleet()
	if err != nil {
		return err
	}
	nc.Close()
	s.life.Serve(nil)
	close(s.ready)
	s.startServices(ctx, undo)
	return nil
}

func (s *Server) startServices(ctx context.Context, undo *cleanup) {
	for _, b := range s.opts.Services {
		undo.background(ctx, func(ctx context.Context) { s.runService(ctx, b) })
	}
}

// startNode starts everything that a node is made of.
func (s *Server) startNode(ctx context.Context, undo *cleanup) error {
	authority, err := s.openHome(undo)
	if err != nil {
		return err
	}
	s.events = events.New(s.home.Node.Node.Name)
	s.events.Seen = s.meter.Event
	s.regions.relays = s.newRelays()
	if s.fleet, err = newFleet(s.home, authority, s.events, s.log); err != nil {
		return err
	}
	if err := s.openAudit(); err != nil {
		return err
	}
	s.certs, err = nodetls.New(nodetls.Options{
		Authority: authority, Node: s.home.Node.Node.Server(), Files: nodetls.Files(s.opts.TLS), Logger: s.log,
		Hosts: nodetls.Hosts(s.opts.Advertise, s.opts.addrs()), Member: s.fleet.member,
		Region: s.regionName(), Linked: s.mayLink,
	})
	if err != nil {
		return err
	}
	s.fleet.across, s.fleet.gone = s.spreadAcross, s.certs.CloseGateways
	s.fleet.keys.renew = s.renewShown
	if err := s.openWatched(ctx, undo); err != nil {
		return err
	}
	context.AfterFunc(ctx, func() { s.life.Reach(meter.Draining) })
	if err := s.startBroker(ctx, undo); err != nil {
		return err
	}
	s.life.Reach(meter.Joining)
	s.disk.Dir, s.disk.Reserve, s.disk.Engine, s.disk.Logger = s.home.Dir, s.opts.Store.Reserve, s.broker, s.log
	undo.background(ctx, func(ctx context.Context) {
		if err := s.disk.Keep(ctx); err != nil {
			s.fail(err)
		}
	})
	undo.background(ctx, s.certs.Keep)
	s.adapters, s.signed = s.newAdapters(), s.newGates()
	if err := backup.Finish(ctx, s.home, authority.Hash(), s.inAccountAs, s.log); err != nil {
		return err
	}
	if err := s.join(ctx, undo); err != nil {
		return err
	}
	if err := s.openListeners(ctx, undo); err != nil {
		return err
	}
	if err := s.announce(undo); err != nil {
		return err
	}
	s.started = time.Now()
	s.life.Serve(s.broker)
	close(s.ready)
	s.startServices(ctx, undo)
	undo.background(ctx, s.runSources)
	undo.background(ctx, s.signed.Run)
	undo.background(ctx, s.runManagers)
	undo.background(ctx, s.adapters.Keep)
	undo.background(ctx, func(ctx context.Context) {
		if err := s.links.Keep(ctx, s.conn, s.fleet.node, s.otherNodes); err != nil {
			s.log.Error("links cannot be watched", "error", err)
		}
	})
	undo.background(ctx, s.keepKeys)
	undo.background(ctx, s.watchLinks)
	undo.background(ctx, s.tellRefused)
	if s.site != nil {
		undo.background(ctx, s.keepUplink)
	} else {
		undo.background(ctx, s.keepSites)
	}
	if s.opts.Mode == Mesh {
		undo.background(ctx, s.keepRegions)
		undo.background(ctx, s.regions.relays.Keep)
	}
	s.log.Info("node is ready", "node", s.fleet.node, "fleet", authority.Fleet(), "listeners", s.listening())
	return nil
}

// openHome opens the node's directory, and makes a fleet of one in an empty one.
func (s *Server) openHome(undo *cleanup) (*identity.Authority, error) {
	dir := s.opts.Dir
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "fleetbus-"); err != nil {
			return nil, fmt.Errorf("making a data directory: %w", err)
		}
		undo.add(func() { os.RemoveAll(dir) })
	}
	there, err := home.Initialized(dir)
	if err != nil {
		return nil, err
	}
	if !there {
		o := s.opts
		o.Dir = dir
		if _, err := Init(o); err != nil && !errors.Is(err, ErrInitialized) {
			return nil, err
		}
	}
	if s.home, err = home.Lock(dir); err != nil {
		return nil, err
	}
	undo.add(s.home.Close)
	authority, err := s.home.Load()
	var readable *home.ReadableError
	if errors.As(err, &readable) {
		return nil, &OptionError{Field: "data_dir", Problem: readable.Error(), Hint: "chmod 600 " + readable.Path}
	}
	if err != nil {
		return nil, err
	}
	return authority, s.openSite()
}

func (s *Server) startBroker(ctx context.Context, undo *cleanup) error {
	o := broker.Options{
		Name:             s.home.Node.Node.Server(),
		Operator:         s.fleet.authority.EngineOperator(),
		Adopt:            s.fleet.authority.Adopt,
		AccountDir:       s.home.Path("accounts"),
		StoreDir:         s.home.Path("local"),
		LazySync:         s.opts.Store.LazySync,
		Monitor:          s.opts.Monitor,
		MaxConnections:   s.opts.Limits.Connections,
		MaxPayload:       s.opts.Limits.Payload,
		HandshakeTimeout: s.opts.Limits.HandshakeTimeout,
		Grace:            s.opts.Grace,
		System:           s.systemAuth,
		Logger:           s.log,
	}
	system, ok := s.fleet.account(identity.SystemName)
	if !ok {
		return errors.New("starting the engine: there is no system account")
	}
	o.SystemAccount = system.Public
	var err error
	if o.Accounts, err = s.fleet.accountTokens(); err != nil {
		return err
	}
	if o.Sentinel, err = s.fleet.authority.Sentinel(); err != nil {
		return fmt.Errorf("starting the engine: %w", err)
	}
	if s.opts.Mode == Mesh {
		err = s.meshOptions(&o)
	}
	if s.opts.Mode == Hub {
		err = s.hubOptions(&o)
	}
	if s.site != nil {
		err = s.siteOptions(&o)
	}
	if err != nil {
		return err
	}
	store := s.opts.Store
	o.MaxFile, o.MaxMemory, err = disk.Bounds(s.home.Dir, o.StoreDir, store.Reserve, store.MaxFile, store.MaxMemory)
	var full *disk.FullError
	if errors.As(err, &full) {
		return &OptionError{Field: "data_dir", Problem: full.Error(), Hint: "free space, or lower store.reserve"}
	}
	if err != nil {
		return err
	}
	s.fleet.audit.Within(o.MaxFile)
	start, cancel := context.WithTimeoutCause(ctx, startTimeout, fmt.Errorf("no answer in %v", startTimeout))
	defer cancel()
	if s.broker, err = broker.Start(start, o); err != nil {
		return s.explainPort(err)
	}
	s.fleet.broker, s.fleet.system = s.broker, s.systemAuth
	undo.add(func() { s.broker.Stop(true) })
	return nil
}

// meshOptions makes the engine a member of the cluster.
func (s *Server) meshOptions(o *broker.Options) error {
	if _, err := os.Stat(s.home.Path("local")); err == nil {
		return &OptionError{Field: "mode", Problem: fmt.Sprintf("%q holds streams of local mode, which a cluster would delete", s.home.Path("local")),
			Hint: "run it with mode local, copy the streams, and remove the directory"}
	}
	o.StoreDir = s.home.Path("store")
	o.Cluster = &broker.Cluster{
		Endpoint: broker.Endpoint{Addr: s.opts.Cluster.Addr, Advertise: s.opts.Cluster.Advertise, TLS: s.certs.ForMesh()},
		Name:     s.home.Node.Cluster,
		Routes:   s.routes(),
		// A founder whose disk was lost must not begin a second cluster.
		Found: s.home.Node.Founder && len(s.fleet.directory.Nodes()) == 1,
	}
	s.gatewayOptions(o)
	if err := s.clientOptions(o); err != nil {
		return err
	}
	if o.Clients == nil {
		// The engine cannot do without a port for clients; nobody gets through here.
		nobody := func(context.Context) error { return errNoListener }
		o.Clients = &broker.Endpoint{Addr: "127.0.0.1:0", TLS: s.certs.ForListener(true, nobody)}
	}
	return nil
}

// hubOptions make the engine one of its own, with a port for clients.
func (s *Server) hubOptions(o *broker.Options) error {
	if _, err := os.Stat(s.home.Path("store")); err == nil {
		return &OptionError{Field: "mode", Problem: fmt.Sprintf("%q holds streams of a cluster, which a node on a hub would not read", s.home.Path("store")),
			Hint: "make the node anew with mode hub, or run it with mode mesh"}
	}
	return s.clientOptions(o)
}

// clientOptions open the port for NATS clients, if there is one.
func (s *Server) clientOptions(o *broker.Options) error {
	for _, l := range s.opts.Listeners {
		if l.Protocol == Leaf() {
			o.Leafs = &broker.Endpoint{Addr: l.Addr, Advertise: l.Advertise, TLS: s.certs.ForSites(s.gate().Admit)}
		}
		if _, ok := l.Protocol.(natsProtocol); !ok {
			continue
		}
		if l.Name != natsListenerName {
			return &OptionError{Field: "listeners." + l.Name, Problem: "a listener of protocol nats has another name", Hint: "call it " + natsListenerName}
		}
		if o.Clients != nil {
			return &OptionError{Field: "listeners." + l.Name, Problem: "there is another listener of protocol nats", Hint: "keep one of them"}
		}
		o.Clients = &broker.Endpoint{Addr: l.Addr, Advertise: l.Advertise}
		if !l.Plaintext {
			o.Clients.TLS = s.certs.ForListener(l.ClientCertificate == CertificateRequired, s.gate().Admit)
		}
	}
	return nil
}

// errNoListener is why the engine's own port, where none was asked for, refuses.
var errNoListener = errors.New("this node has no listener for NATS clients")

// routes are the addresses of other nodes: those of the ledger, those that the
// home was made with, and the operator's.
func (s *Server) routes() []string {
	own := s.home.Node.Node
	routes := slices.Concat(s.opts.Cluster.Routes, s.home.Node.Peers)
	for _, n := range s.fleet.directory.Nodes() {
		if n.Name != own.Name {
			routes = append(routes, n.ClusterAddr)
		}
	}
	routes = slices.DeleteFunc(routes, func(r string) bool { return r == "" || r == own.ClusterAddr || r == s.opts.Cluster.Advertise })
	slices.Sort(routes)
	return slices.Compact(routes)
}

// gate makes one more that opens when the node has caught up. Half of the time that a
// handshake may take can be waited away.
func (s *Server) gate() *admission.Gate {
	l := s.opts.Limits
	g := admission.New(l.Handshakes, l.HandshakeRate, l.HandshakeTimeout/2)
	s.gates = append(s.gates, g)
	return g
}

// refusedTold is how often a node says how many handshakes were too many.
const refusedTold = time.Second

// tellRefused says how many handshakes were too many, until ctx is done.
func (s *Server) tellRefused(ctx context.Context) {
	tick := time.NewTicker(refusedTold)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		refused := 0
		for _, g := range s.gates {
			refused += g.Refused()
		}
		if refused > 0 {
			s.tellTooMany(refused, admission.ErrTooMany)
		}
	}
}

func (s *Server) tellTooMany(count int, err error) {
	s.log.Warn("clients refused, who are to come again", "count", count, "error", err)
}

// systemAuth authenticates this node in the engine's system account.
func (s *Server) systemAuth() []nats.Option {
	account, _ := s.fleet.account(identity.SystemName)
	p := s.nodePrincipal(identity.SystemName)
	token, key, err := s.fleet.authority.ServiceCredentials(account, p, time.Now())
	if err != nil {
		return []nats.Option{func(*nats.Options) error { return err }}
	}
	return []nats.Option{nats.UserJWT(func() (string, error) { return token, nil }, key.Sign)}
}

func (s *Server) nodePrincipal(account string) identity.Principal {
	everything := identity.Rule{Allow: []string{">"}}
	return identity.Principal{
		Account: account, Name: "node-" + s.home.Node.Node.Name, Kind: identity.KindNode,
		Permissions: identity.Permissions{Publish: everything, Subscribe: everything},
	}
}

// join connects the node to the fleet's account, follows the ledger, and answers
// what a node answers. It returns when the node has caught up, or when it is
// clear that the quorum is away.
func (s *Server) join(ctx context.Context, undo *cleanup) error {
	forever := func(o *nats.Options) error {
		o.AllowReconnect, o.MaxReconnect, o.ReconnectWait = true, -1, 50*time.Millisecond
		return nil
	}
	session, err := s.open(s.nodePrincipal(identity.FleetName), forever)
	if err != nil {
		return err
	}
	undo.add(session.Close)
	s.conn = session.Conn
	if s.exact, err = s.dialAs(s.broker.ConnectExact, s.nodePrincipal(identity.FleetName), forever); err != nil {
		return err
	}
	undo.add(s.exact.Close)
	undo.background(ctx, func(ctx context.Context) { s.events.Publish(ctx, s.conn, s.fleet.directory.Accounts) })
	replicas := 1
	if len(s.fleet.directory.Nodes()) >= 3 && s.opts.Mode == Mesh {
		replicas = 3
	}
	undo.background(ctx, func(ctx context.Context) {
		if err := s.fleet.follow(ctx, session.Conn, replicas); err != nil {
			s.fail(fmt.Errorf("following the ledger: %w", err))
		}
	})
	undo.background(ctx, func(ctx context.Context) { s.fleet.audit.Keep(ctx, session.Conn, replicas) })
	callout, err := s.serveCallout(ctx)
	if err != nil {
		return err
	}
	undo.add(callout.Close)
	stale := false
	timeout := time.NewTimer(quorumTimeout)
	defer timeout.Stop()
	select {
	case <-s.fleet.follower.CaughtUp():
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timeout.C:
		stale = true
		s.life.Stale.Store(true)
		s.log.Warn("the quorum is away: serving from the snapshot", "sequence", s.fleet.directory.Seq())
		undo.background(ctx, func(ctx context.Context) {
			select {
			case <-s.fleet.follower.CaughtUp():
				s.life.Stale.Store(false)
				s.log.Info("caught up with the fleet", "sequence", s.fleet.directory.Seq())
				if err := s.ensureAccounts(ctx); err != nil && ctx.Err() == nil {
					s.log.Error("accounts of the configuration are missing", "error", err)
				}
			case <-ctx.Done():
			}
		})
	}
	if s.opts.Mode == Mesh {
		session, err := s.joinRegions(ctx)
		if err != nil {
			return err
		}
		undo.add(session.Close)
	}
	first, cancel := context.WithTimeout(ctx, quorumTimeout)
	defer cancel()
	if !stale {
		if err := s.ensureAccounts(first); err != nil {
			return err
		}
		if err := s.ensureAdmin(first); err != nil {
			s.log.Warn("there is no local admin yet", "error", err)
		}
	}
	if err := s.serveRequests(ctx); err != nil {
		return err
	}
	if s.opts.Mode == Mesh {
		undo.background(ctx, s.keepReplicas)
	}
	return nil
}

// ensureAccounts makes Options.Accounts.
func (s *Server) ensureAccounts(ctx context.Context) error {
	for _, name := range s.opts.Accounts {
		if _, ok := s.fleet.directory.Account(name); ok {
			continue
		}
		if !s.isHome() {
			s.log.Warn("an account is not made: it is not this region that makes accounts", "account", name, "region", s.fleet.directory.HomeRegion())
			continue
		}
		if _, err := s.fleet.putAccount(ctx, admin.AccountRequest{Name: name}); err != nil {
			return fmt.Errorf("making account %q: %w", name, err)
		}
	}
	return nil
}

// openListeners opens the gates and the listeners of foreign protocols.
func (s *Server) openListeners(ctx context.Context, undo *cleanup) error {
	for _, l := range s.opts.Listeners {
		if _, ok := l.Protocol.(natsProtocol); ok {
			s.bound(l.Name, s.broker.Addr())
			continue
		}
		if _, ok := l.Protocol.(watched); ok {
			continue // it is open
		}
		if l.Protocol == Leaf() {
			s.bound(l.Name, s.broker.LeafAddr())
			continue
		}
		if l.Protocol == Gateway() {
			s.bound(l.Name, s.broker.GatewayAddr())
			continue
		}
		w, err := s.openListener(ctx, l)
		if err != nil {
			return s.explainPort(err)
		}
		s.bound(l.Name, w.Addr())
		undo.background(ctx, func(ctx context.Context) {
			stop := context.AfterFunc(ctx, func() { w.Close() })
			defer stop()
			err := l.Protocol.Serve(ctx, w, s.loginOf(l))
			w.Close()
			if ctx.Err() == nil {
				s.fail(fmt.Errorf("serving listener %q: %w", l.Name, errors.Join(err, errListenerEnded)))
			}
		})
	}
	s.bound("cluster", s.broker.RouteAddr())
	s.bound("monitor", s.broker.MonitorAddr())
	if err := s.fleet.admit(); err != nil {
		return fmt.Errorf("admitting users: %w", err)
	}
	for _, g := range s.gates {
		g.Open()
	}
	return nil
}

var (
	errListenerEnded = errors.New("it ended")
	errServiceEnded  = errors.New("it returned without an error")
)

func (s *Server) openListener(ctx context.Context, l Listener) (*listener.Listener, error) {
	o := listener.Options{
		Name: l.Name, Addr: l.Addr, Handshakes: s.opts.Limits.Handshakes, Timeout: s.opts.Limits.HandshakeTimeout,
		Rate: s.opts.Limits.HandshakeRate, Refused: s.tellStranger, Logger: s.log,
	}
	if !l.Plaintext {
		var protocols []string
		if p, ok := l.Protocol.(interface{ ALPN() []string }); ok {
			protocols = p.ALPN()
		}
		o.TLS = s.certs.ForListener(l.ClientCertificate == CertificateRequired, s.gate().Admit, protocols...)
	}
	w, err := listener.Listen(ctx, o)
	if err == nil && !l.Plaintext {
		w.Advertise(reachable(l.Advertise, w.Addr().String(), s.opts.Advertise))
	}
	return w, err
}

func (s *Server) bound(name string, addr net.Addr) {
	if addr == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.addrs[name] = addr
}

func (s *Server) listening() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := map[string]string{}
	for name, addr := range s.addrs {
		all[name] = addr.String()
	}
	return all
}

// announce tells commands on this machine where the server is.
func (s *Server) announce(undo *cleanup) error {
	r := home.Running{PID: os.Getpid(), Node: s.fleet.node, Fleet: s.fleet.authority.Fleet(), Started: time.Now(), Listeners: s.listening()}
	r.Cluster, r.Monitor = r.Listeners["cluster"], r.Listeners["monitor"]
	delete(r.Listeners, "cluster")
	delete(r.Listeners, "monitor")
	if err := home.WriteFile(s.home.Path("admin", "ca.pem"), s.certs.CAPEM(), 0o600); err != nil {
		return err
	}
	path := s.home.Path("run.json")
	undo.add(func() { os.Remove(path) })
	return home.WriteJSON(path, r)
}

// explainPort says who has the port that could not be opened.
func (s *Server) explainPort(err error) error {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "listen" || op.Addr == nil {
		return err
	}
	if owner := portowner.Of(op.Addr.String()); owner != "" {
		return fmt.Errorf("%w by %s", err, owner)
	}
	return err
}

// dialFleet connects to the endpoints of Client mode.
func (s *Server) dialFleet() (*nats.Conn, error) {
	o := s.opts
	config, err := nodetls.Client(nodetls.Files(o.TLS))
	if err != nil {
		return nil, err
	}
	opts := []nats.Option{nats.Name(o.Client.Name), nats.MaxReconnects(-1), nats.Secure(config)}
	if o.Client.Creds != "" {
		opts = append(opts, admin.UserCredentials(o.Client.Creds))
	}
	nc, err := nats.Connect("tls://"+strings.Join(o.Client.Endpoints, ",tls://"), opts...)
	if err != nil {
		return nil, fmt.Errorf("connecting to the fleet at %q: %w", o.Client.Endpoints, err)
	}
	return nc, nil
}

// Renew renews this node's certificates now, or reads their files again. No
// connection drops. It is an error before Ready.
func (s *Server) Renew() error {
	select {
	case <-s.ready:
	default:
		return errors.New("renewing the certificates: the server is not ready")
	}
	if s.certs == nil {
		return nil
	}
	return s.certs.Renew(time.Now())
}

// Subject puts Options.Client.SubjectPrefix before a subject.
func (s *Server) Subject(subject string) string {
	if p := s.opts.Client.SubjectPrefix; p != "" {
		return p + "." + subject
	}
	return subject
}
