// Package broker embeds nats-server. It is the only package that does: nothing
// of the engine's API leaves it. It knows accounts and users as the engine does,
// by their keys and tokens; what they mean is package identity's.
package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/identity"
)

// Options are what an engine is started with. All of Name, Operator,
// SystemAccount, Accounts, StoreDir and AccountDir are required.
type Options struct {
	// Name of the server, unique in the fleet.
	Name string
	// Operator is the operator's JWT, in strict mode.
	Operator string
	// Adopt signs anew, by that operator, what another engine knows of an account
	// that this one does not. Nil: all engines have the same operator.
	Adopt func(public, token string) (string, error)
	// SystemAccount is the system account's public key.
	SystemAccount string
	// Accounts are the JWTs of all accounts, by public key.
	Accounts map[string]string
	// AccountDir holds the account JWTs.
	AccountDir string
	// Sentinel is the user JWT that stands in for clients who bring none.
	Sentinel string
	// StoreDir holds the streams.
	StoreDir string
	// MaxFile and MaxMemory bound the streams, in bytes.
	MaxFile, MaxMemory int64
	// LazySync acknowledges messages before they are on disk.
	LazySync bool

	// Cluster makes the server a member of a cluster; nil keeps it to itself,
	// without any port.
	Cluster *Cluster
	// Clients is where NATS clients connect; nil leaves a port on loopback, which
	// the engine cannot do without, only if Cluster is set.
	Clients *Endpoint
	// Gateway links the cluster to others; nil is none.
	Gateway *Gateway
	// Leafs is where sites connect; nil is nowhere.
	Leafs *Endpoint
	// Remote makes the server a site's, whose streams have the domain Domain.
	Remote *Remote
	Domain string
	// Monitor is the host:port of the monitoring API; empty is off.
	Monitor string

	// MaxConnections and MaxPayload bound clients.
	MaxConnections, MaxPayload int
	// HandshakeTimeout bounds the TLS handshake and the authentication.
	HandshakeTimeout time.Duration
	// Grace is how long Stop drains.
	Grace time.Duration
	// System are the options that authenticate an in-process connection to the
	// system account.
	System func() []nats.Option
	// Logger receives the engine's lines. Required.
	Logger *slog.Logger
}

// Endpoint is an address that the engine listens on.
type Endpoint struct {
	// Addr is host:port, port 0 any free one.
	Addr string
	// Advertise is the host:port that others are told; may be empty.
	Advertise string
	// TLS of the endpoint; nil is plain text.
	TLS *tls.Config
}

// Cluster is the server's place among others.
type Cluster struct {
	Endpoint
	// Name of the cluster.
	Name string
	// Routes are host:port of other members.
	Routes []string
	// Found makes the server the first member of a new cluster, if its store is
	// empty.
	Found bool
}

// Broker is one running engine. Make it with Start. It is safe for concurrent use.
type Broker struct {
	opts     Options
	srv      *server.Server
	resolver *resolver
	log      *logger
	inside   *inside
	// claims is held while an account gets new terms: the engine lists the streams of
	// accounts without looking whether it does.
	claims sync.RWMutex
	// background lasts until stop is called; running is done when what runs in it
	// is gone.
	background context.Context
	stop       context.CancelFunc
	running    sync.WaitGroup
	// accompanied says that there is a companion.
	accompanied atomic.Bool
}

// errStopped is returned when the engine goes away during its start.
var errStopped = errors.New("the engine stopped")

// Start starts an engine and returns when it accepts connections. The first
// member of a cluster has elected itself by then; any other may still be without
// a leader. On error nothing is left running. ctx bounds the start only.
func Start(ctx context.Context, o Options) (_ *Broker, err error) {
	if err := o.settle(); err != nil {
		return nil, err
	}
	founding := false
	if o.Gateway != nil && o.Cluster == nil {
		return nil, errGatewayAlone
	}
	if o.Cluster != nil {
		if founding, err = o.beginFounding(); err != nil {
			return nil, err
		}
	}
	if founding && o.Gateway != nil {
		if err := foundAlone(ctx, o); err != nil {
			return nil, err
		}
		founding = false
	}
	b, err := launch(o)
	if err != nil {
		return nil, err
	}
	b.background, b.stop = context.WithCancel(context.WithoutCancel(ctx))
	b.running.Go(b.insist)
	if o.Cluster != nil {
		b.running.Go(b.keepCopies)
	}
	defer func() {
		if err != nil {
			b.stop()
			b.running.Wait()
			b.srv.Shutdown()
			b.srv.WaitForShutdown()
		}
	}()
	if err := b.accepting(ctx); err != nil {
		return nil, err
	}
	if founding {
		if err := b.found(ctx); err != nil {
			return nil, fmt.Errorf("founding a cluster of one: %w", err)
		}
	} else if o.Cluster != nil {
		b.accompany()
	}
	return b, nil
}

// launch configures and starts a server, without waiting for it.
func launch(o Options) (*Broker, error) {
	so, err := o.server()
	if err != nil {
		return nil, err
	}
	resolver, err := openResolver(o)
	if err != nil {
		return nil, err
	}
	so.AccountResolver = resolver
	srv, err := server.NewServer(so)
	if err != nil {
		resolver.Close()
		return nil, fmt.Errorf("configuring the engine: %w", err)
	}
	b := &Broker{opts: o, srv: srv, resolver: resolver, log: &logger{slog: o.Logger}, inside: &inside{srv: srv}}
	if sentinel, err := jwt.DecodeUserClaims(o.Sentinel); err == nil {
		b.log.sentinel = sentinel.Subject
	}
	srv.SetLoggerV2(b.log, false, false, false)
	// An account that is first looked up by a login and by a route at once can turn
	// the login away.
	for public := range o.Accounts {
		if _, err := srv.LookupAccount(public); err != nil {
			resolver.Close()
			return nil, fmt.Errorf("loading account %q: %w", public, err)
		}
		resolver.forget(public, time.Now()) // it has it
	}
	srv.Start()
	return b, nil
}

// server translates the options.
func (o *Options) server() (*server.Options, error) {
	operator, err := jwt.DecodeOperatorClaims(o.Operator)
	if err != nil {
		return nil, fmt.Errorf("decoding the operator: %w", err)
	}
	so := &server.Options{
		ServerName:       o.Name,
		TrustedOperators: []*jwt.OperatorClaims{operator},
		SystemAccount:    o.SystemAccount,
		DefaultSentinel:  o.Sentinel,
		NoSigs:           true,
		NoLog:            true,
		MaxConn:          o.MaxConnections,
		MaxPayload:       int32(o.MaxPayload),
		TLSTimeout:       o.HandshakeTimeout.Seconds(),
		AuthTimeout:      o.HandshakeTimeout.Seconds(),
		LameDuckDuration: o.Grace,
		// The notice to clients is worth little time: they reconnect at once.
		LameDuckGracePeriod: -min(o.Grace/10, time.Second),
		JetStream:           true,
		StoreDir:            o.StoreDir,
		JetStreamMaxStore:   o.MaxFile,
		JetStreamMaxMemory:  o.MaxMemory,
		SyncAlways:          !o.LazySync,
		// An engine limit of 1000 consumers a stream would stop a fleet of devices.
		JetStreamLimits: server.JSLimitOpts{DefaultMaxConsumers: -1},
		DontListen:      o.Cluster == nil && o.Clients == nil,
		Host:            "127.0.0.1",
		Port:            server.RANDOM_PORT,
	}
	if o.Clients != nil {
		if so.Host, so.Port, err = split(o.Clients.Addr); err != nil {
			return nil, err
		}
		so.ClientAdvertise = o.Clients.Advertise
		so.TLSConfig = o.Clients.TLS
		so.TLS = o.Clients.TLS != nil
		so.TLSVerify = o.Clients.TLS != nil && o.Clients.TLS.ClientAuth == tls.RequireAndVerifyClientCert
	}
	if err := errors.Join(o.leafServer(so), o.gatewayServer(so)); err != nil {
		return nil, err
	}
	if o.Monitor != "" {
		if so.HTTPHost, so.HTTPPort, err = split(o.Monitor); err != nil {
			return nil, err
		}
	}
	if c := o.Cluster; c != nil {
		so.Cluster.Name = c.Name
		if so.Cluster.Host, so.Cluster.Port, err = split(c.Addr); err != nil {
			return nil, err
		}
		so.Cluster.Advertise = c.Advertise
		so.Cluster.TLSConfig = c.TLS
		so.Cluster.TLSTimeout = o.HandshakeTimeout.Seconds()
		// A link that was cut is to be there again seconds after it can be: a connection on
		// which nothing comes is given up before the system would try again on it, and
		// the next one is tried each second, however long it takes.
		so.Cluster.PingInterval, so.Cluster.MaxPingsOut = routePing, routePings
		so.ReconnectErrorReports = routeReports
		for _, r := range c.Routes {
			so.Routes = append(so.Routes, &url.URL{Scheme: "nats-route", Host: r})
		}
	}
	return so, nil
}

const (
	// routePing is how often a node asks another on their connection whether it is there,
	// and routePings how many of these may be without an answer.
	routePing, routePings = 2 * time.Second, 2
	// routeReports is each how many attempts to connect one is logged that fails.
	routeReports = 30
)

func split(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, fmt.Errorf("reading address %q: %w", addr, err)
	}
	if port, err = strconv.Atoi(p); err != nil {
		return "", 0, fmt.Errorf("reading address %q: %w", addr, err)
	}
	if port == 0 {
		port = server.RANDOM_PORT
	}
	if host == "" {
		host = server.DEFAULT_HOST
	}
	return host, port, nil
}

// accepting waits until the server takes connections, or says why it does not.
func (b *Broker) accepting(ctx context.Context) error {
	for !b.srv.ReadyForConnections(20 * time.Millisecond) {
		if err := b.log.fatal(); err != nil {
			return fmt.Errorf("starting the engine: %w", err)
		}
		if !b.srv.Running() {
			return errStopped
		}
		if ctx.Err() != nil {
			return fmt.Errorf("starting the engine: %w", context.Cause(ctx))
		}
	}
	// The engine says it is ready even after a fatal error.
	if err := b.log.fatal(); err != nil {
		return fmt.Errorf("starting the engine: %w", err)
	}
	return nil
}

// drainSlack is how much longer than Options.Grace a drain may take.
const drainSlack = 4 * time.Second

// Stop drains, if it is asked to and there is a member that takes over, then stops the
// engine and waits for it.
func (b *Broker) Stop(drain bool) {
	b.stop()
	b.running.Wait()
	drained := make(chan struct{})
	if drain && b.srv.NumRoutes() > 0 {
		go func() {
			defer close(drained)
			b.srv.LameDuckShutdown()
		}()
		// A stream that is catching up holds a drain up for as long as its peers do
		// not answer; Shutdown gets past it.
		select {
		case <-drained:
		case <-time.After(b.opts.Grace + drainSlack):
			b.log.Warnf("the drain took too long and was cut off")
		}
	} else {
		close(drained)
	}
	b.srv.Shutdown()
	<-drained
	b.srv.WaitForShutdown()
	b.resolver.Close()
}

// Addr is where NATS clients connect; nil without Options.Clients.
func (b *Broker) Addr() net.Addr {
	if b.opts.Clients == nil {
		return nil
	}
	return b.srv.Addr()
}

// RouteAddr is where other members connect; nil without a cluster.
func (b *Broker) RouteAddr() net.Addr {
	if addr := b.srv.ClusterAddr(); addr != nil {
		return addr
	}
	return nil
}

// MonitorAddr is where the monitoring API answers; nil if it is off.
func (b *Broker) MonitorAddr() net.Addr {
	if addr := b.srv.MonitorAddr(); addr != nil {
		return addr
	}
	return nil
}

// ID is the engine's id of this run of the server.
func (b *Broker) ID() string { return b.srv.ID() }

// insideTimeout is how long a connection inside the process may take to open. Nothing
// of it is lost on the way: who waits for longer than the client's two seconds waits
// for a processor.
const insideTimeout = 15 * time.Second

// Connect opens a connection inside the process. It needs credentials as any
// other does.
func (b *Broker) Connect(opts ...nats.Option) (*nats.Conn, error) {
	return b.connect(b.inside, opts)
}

// ConnectUrgent is Connect for who the engine waits for whatever it does: Revive too
// hears it.
func (b *Broker) ConnectUrgent(opts ...nats.Option) (*nats.Conn, error) {
	return b.connect(urgent{b.inside}, opts)
}

func (b *Broker) connect(inside nats.InProcessConnProvider, opts []nats.Option) (*nats.Conn, error) {
	opts = append([]nats.Option{nats.InProcessServer(inside), nats.Timeout(insideTimeout)}, opts...)
	nc, err := nats.Connect("", opts...)
	for tries := 1; err != nil && tries < 3 && strings.Contains(err.Error(), pingFirst); tries++ {
		nc, err = nats.Connect("", opts...)
	}
	return nc, err
}

// pingFirst is in the client's error when the engine was so slow that it asks whether the
// client is there before it has let it in. The client has no value for it.
const pingFirst = "expected 'PONG', got 'PING'"

// Dial returns a connection inside the process on which nothing was said yet. The
// caller closes it.
func (b *Broker) Dial() (net.Conn, error) { return b.inside.InProcessConn() }

// A Connection is one client of this server.
type Connection struct {
	// ID of the connection on this server.
	ID uint64
	// Account is the public key of its account, Name its user's name.
	Account, Name string
	// Session says that what it may do was settled when it came in: by a session's
	// JWT under a role, or by the callout.
	Session bool
	// Inside says that it is inside the process.
	Inside bool
	// Kind is the engine's word for its protocol.
	Kind string
	// Remote is its address.
	Remote string
	// Started is when it connected.
	Started time.Time
	// Pending waits for the client to read, in bytes, and RoundTrip is the engine's last
	// measurement; 0 is none yet.
	Pending   int
	RoundTrip time.Duration
	// InMsgs, OutMsgs, InBytes and OutBytes count from the server's side.
	InMsgs, OutMsgs, InBytes, OutBytes int64
}

// Connections lists the clients of an account, or of all accounts if public is
// empty. Who has not been let in yet is none.
func (b *Broker) Connections(public string) ([]Connection, error) {
	accounts := []string{public}
	if public == "" {
		// Asked for all clients at once, the engine also looks at those that it is letting in,
		// and writes what it reads there. They are in its global account, which nobody has.
		z, err := b.srv.Accountz(nil)
		if err != nil {
			return nil, fmt.Errorf("listing connections: %w", err)
		}
		accounts = slices.DeleteFunc(z.Accounts, func(a string) bool { return a == server.DEFAULT_GLOBAL_ACCOUNT })
	}
	const page = 1 << 14 // the engine looks at all of an account for each
	var all []Connection
	for _, account := range accounts {
		for offset := 0; ; offset += page {
			z, err := b.srv.Connz(&server.ConnzOptions{Username: true, Account: account, Offset: offset, Limit: page})
			if err != nil {
				return nil, fmt.Errorf("listing connections: %w", err)
			}
			for _, c := range z.Conns {
				all = append(all, connection(c))
			}
			if len(z.Conns) < page {
				break
			}
		}
	}
	return all, nil
}

// ConnectionsOf lists a user's clients in the account with that public key, which it finds
// as UserConnections does: the engine decodes the JWT of every client that it lists.
func (b *Broker) ConnectionsOf(public, name string, keys []string) ([]Connection, error) {
	ids, err := b.UserConnections(public, name, keys)
	var all []Connection
	for _, id := range ids {
		z, err := b.srv.Connz(&server.ConnzOptions{Username: true, Account: public, CID: id})
		if err != nil {
			return all, fmt.Errorf("listing connections: %w", err)
		}
		for _, c := range z.Conns {
			all = append(all, connection(c))
		}
	}
	return all, err
}

// connection is a client as the engine lists it.
func connection(c *server.ConnInfo) Connection {
	rtt, _ := time.ParseDuration(c.RTT) // what is not known yet is no duration
	return Connection{
		ID: c.Cid, Account: c.Account, Name: userName(c), Session: isSession(c), Inside: c.Port == 0, Kind: c.Kind + "/" + c.Type,
		Remote: net.JoinHostPort(c.IP, strconv.Itoa(c.Port)), Started: c.Start,
		InMsgs: c.InMsgs, OutMsgs: c.OutMsgs, InBytes: c.InBytes, OutBytes: c.OutBytes, Pending: c.Pending, RoundTrip: rtt,
	}
}

// LocalConnections counts the clients and links of the account with that public key, on
// this server.
func (b *Broker) LocalConnections(public string) int {
	account, err := b.srv.LookupAccount(public)
	if err != nil {
		return 0
	}
	return account.NumLocalConnections()
}

// AccountConnections counts the clients of the account with that public key, on
// all servers as far as this one has heard.
func (b *Broker) AccountConnections(public string) int {
	account, err := b.srv.LookupAccount(public)
	if err != nil {
		return 0
	}
	return account.NumConnections()
}

// UserConnections lists the ids of a user's clients in the account with that
// public key: those that showed a JWT of one of keys, those that the callout let
// in by name, and those inside the process, which Connect gave the name. Without
// keys it looks at every client's JWT, which takes longer; without a name only those
// with a JWT are meant.
func (b *Broker) UserConnections(public, name string, keys []string) ([]uint64, error) {
	if len(keys) == 0 {
		all, err := b.Connections(public)
		var ids []uint64
		for _, c := range all {
			if c.Name == name {
				ids = append(ids, c.ID)
			}
		}
		return ids, err
	}
	var ids []uint64
	list := func(o server.ConnzOptions, wanted func(*server.ConnInfo) bool) error {
		o.Account, o.Limit = public, 1<<20
		z, err := b.srv.Connz(&o)
		if err != nil {
			return fmt.Errorf("listing connections: %w", err)
		}
		for _, c := range z.Conns {
			if wanted(c) {
				ids = append(ids, c.Cid)
			}
		}
		return nil
	}
	any := func(*server.ConnInfo) bool { return true }
	users := slices.Clone(keys)
	if name != "" {
		users = append(users, name)
	}
	for _, user := range users {
		if err := list(server.ConnzOptions{Username: true, User: user}, any); err != nil {
			return nil, err
		}
	}
	if name == "" {
		return ids, nil
	}
	return ids, list(server.ConnzOptions{}, func(c *server.ConnInfo) bool { return c.Port == 0 && c.Name == name })
}

// userName is the name of a connection's user: in a tag of the JWT that it showed,
// or, if the callout let it in, in place of the engine's own name for it.
func userName(c *server.ConnInfo) string {
	for _, tag := range c.Tags {
		if name, ok := strings.CutPrefix(tag, identity.NameTag); ok {
			return name
		}
	}
	return c.AuthorizedUser
}

// isSession reports Connection.Session. The engine drops the JWT of whom the
// callout lets in.
func isSession(c *server.ConnInfo) bool {
	tagged := func(prefix string) bool {
		return slices.ContainsFunc(c.Tags, func(tag string) bool { return strings.HasPrefix(tag, prefix) })
	}
	return c.JWT == "" || tagged(identity.KindTag) && tagged(identity.RoleTag)
}

// Close ends the connection with that id; it reports whether there was one.
func (b *Broker) Close(id uint64) bool { return b.srv.DisconnectClientByID(id) == nil }

// NumConnections counts the clients of this server.
func (b *Broker) NumConnections() int { return b.srv.NumClients() }
