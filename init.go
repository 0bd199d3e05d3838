package fleetbus

import (
	"encoding/json"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/home"
)

const (
	// adminName is the user that Init makes.
	adminName = "admin"
	// tokenLife is how long the first enrollment token lives.
	tokenLife = 24 * time.Hour
	// adminLife is how long the admin's credentials live. They lie in the data
	// directory, beside the authority that could sign others.
	adminLife = 10 * 365 * 24 * time.Hour
)

// What stands in the way of using a directory.
var (
	// ErrInUse says that another process has the data directory.
	ErrInUse = home.ErrInUse
	// ErrInitialized says that a directory already holds a node.
	ErrInitialized = home.ErrInitialized
)

// Initialized reports whether dir holds a node.
func Initialized(dir string) (bool, error) { return home.Initialized(dir) }

// Founded is what Init made.
type Founded struct {
	Fleet, Node string
	// AdminCreds and CA are files: the admin's credentials, and the authority
	// that clients verify the servers with.
	AdminCreds, CA string
	// Offline is the directory with the operator's keys that belong elsewhere.
	Offline string
	// Token joins one more node, within a day, at Address.
	Token, Address string
}

// Init makes a fleet of one node in o.Dir: the authority, the operator with its
// two signing keys, the system and fleet accounts, and one admin. It is refused
// with ErrInitialized in a directory that holds a node. What was interrupted is
// begun again by the next call: only the last step makes the directory a node.
func Init(o Options) (*Founded, error) {
	return initialize(o, nil)
}

// initialize is Init for the first of several nodes that start together. Every
// home in others gets the same authority and state.
func initialize(o Options, others []Options) (*Founded, error) {
	o = o.withDefaults()
	now := time.Now()
	h, err := home.Lock(o.Dir)
	if err != nil {
		return nil, err
	}
	defer h.Close()
	if there, err := home.Initialized(o.Dir); err != nil || there {
		if err == nil {
			err = fmt.Errorf("%w: %q", ErrInitialized, o.Dir)
		}
		return nil, err
	}
	authority, offline, err := identity.NewAuthority(o.Fleet, now)
	if err != nil {
		return nil, fmt.Errorf("making the authority: %w", err)
	}
	g := &genesis{authority: authority, directory: identity.NewDirectory(), now: now}
	founded := &Founded{Fleet: o.Fleet, Node: o.Name, AdminCreds: h.Path("admin", "admin.creds"), CA: h.Path("admin", "ca.pem"), Offline: h.Path("offline"), Address: o.address()}
	if founded.Token, err = g.token(); err != nil {
		return nil, err
	}
	creds, err := g.admin()
	if err != nil {
		return nil, err
	}
	for _, each := range append([]Options{o}, others...) {
		each = each.withDefaults()
		if err := g.put("node."+each.Name, each.nodeRecord(now)); err != nil {
			return nil, err
		}
	}
	for _, f := range []struct {
		name string
		data []byte
	}{
		{founded.CA, authority.ClientsPEM()},
		{founded.AdminCreds, creds},
		{h.Path("offline", "operator.nk"), offline.OperatorSeed},
		{h.Path("offline", "signing.nk"), offline.SigningSeed},
	} {
		if err := home.WriteFile(f.name, f.data, 0o600); err != nil {
			return nil, err
		}
	}
	for _, each := range others {
		if err := g.settle(each.withDefaults(), false); err != nil {
			return nil, err
		}
	}
	return founded, g.write(h, o, len(others) == 0)
}

// genesis is a fleet before its first event.
type genesis struct {
	authority *identity.Authority
	directory *identity.Directory
	now       time.Time
}

func (g *genesis) put(subject string, record any) error {
	data, err := json.Marshal(record)
	if err != nil {
		return fmt.Errorf("encoding %q: %w", subject, err)
	}
	if err := g.directory.Apply(0, subject, data); err != nil {
		return fmt.Errorf("making %q: %w", subject, err)
	}
	return nil
}

func (g *genesis) token() (string, error) {
	token, text, err := identity.NewToken(identity.KindNode, g.authority.Hash(), "", "", tokenLife, g.now)
	if err != nil {
		return "", fmt.Errorf("making the first token: %w", err)
	}
	return text, g.put("token."+token.ID, token)
}

func (g *genesis) admin() (creds []byte, err error) {
	account, err := g.authority.FleetAccount(time.Unix(0, 0))
	if err != nil {
		return nil, err
	}
	role, ok := g.directory.Role("admin")
	if !ok {
		return nil, fmt.Errorf("making the admin: there is no role %q", "admin")
	}
	public, seed, err := identity.NewUserKey()
	if err != nil {
		return nil, fmt.Errorf("making the admin: %w", err)
	}
	expires := g.now.Add(adminLife)
	token, err := g.authority.UserJWT(account, role, adminName, public, expires)
	if err != nil {
		return nil, err
	}
	user := identity.User{
		Account: identity.FleetName, Name: adminName, Kind: identity.KindUser, Role: role.Name, Created: g.now,
		Keys: []identity.UserKey{{Public: public, Issued: g.now, Expires: expires}},
	}
	if err := g.put("user."+identity.FleetName+"."+adminName, user); err != nil {
		return nil, err
	}
	return identity.CreateCreds(token, seed)
}

// settle makes a home of o.Dir.
func (g *genesis) settle(o Options, founder bool) error {
	h, err := home.Lock(o.Dir)
	if err != nil {
		return err
	}
	defer h.Close()
	return g.write(h, o, founder)
}

func (g *genesis) write(h *home.Home, o Options, founder bool) error {
	snapshot, err := g.directory.Marshal()
	if err != nil {
		return fmt.Errorf("encoding the fleet's state: %w", err)
	}
	node, _ := g.directory.Node(o.Name)
	n := home.NodeFile{Fleet: o.Fleet, Cluster: o.clusterName(), Node: node, Founder: founder}
	return h.Write(n, g.authority, snapshot, 0)
}

func (o *Options) clusterName() string {
	if o.Cluster.Name != "" {
		return o.Cluster.Name
	}
	return o.Fleet
}

// address is what a joiner types: without the port if it is the usual one.
func (o *Options) address() string {
	host, port, err := net.SplitHostPort(o.nodeRecord(time.Time{}).ClientAddr)
	if err != nil || port == "4222" {
		return o.Advertise
	}
	return net.JoinHostPort(host, port)
}

// NodeRecord is the node that o describes, as its fleet will know it.
func NodeRecord(o Options) identity.Node {
	o = o.withDefaults()
	return o.nodeRecord(time.Now())
}

// nodeRecord is this node as the fleet knows it.
func (o *Options) nodeRecord(now time.Time) identity.Node {
	n := identity.Node{Name: o.Name, Advertise: o.Advertise, Version: Version(), Joined: now, Incarnation: 1}
	if o.Mode == Mesh {
		n.ClusterAddr = reachable(o.Cluster.Advertise, o.Cluster.Addr, o.Advertise)
	}
	for _, l := range o.Listeners {
		if _, ok := l.Protocol.(natsProtocol); ok {
			n.ClientAddr = reachable(l.Advertise, l.Addr, o.Advertise)
		}
		if l.Protocol == Gateway() {
			n.GatewayAddr = reachable(l.Advertise, l.Addr, o.Advertise)
		}
	}
	return n
}

// reachable is the host:port that others use for addr; empty if the port is not
// known yet.
func reachable(advertise, addr, host string) string {
	if advertise != "" {
		return advertise
	}
	h, port, err := net.SplitHostPort(addr)
	if n, e := strconv.Atoi(port); err != nil || e != nil || n <= 0 {
		return ""
	}
	if ip := net.ParseIP(h); h != "" && h[0] != '%' && (ip == nil || !ip.IsUnspecified()) {
		host = h
	}
	return net.JoinHostPort(host, port)
}

// InitCluster makes homes for several nodes of one fleet that start together, at
// once on one machine: for tests and demonstrations. Elsewhere a node joins with
// a token, so that the authority's secrets travel sealed. Every node needs its
// own Name, Dir and a Cluster.Addr with a port.
func InitCluster(nodes []Options) (*Founded, error) {
	if len(nodes) == 0 {
		return nil, &OptionError{Field: "nodes", Problem: "there is none", Hint: "name at least one node"}
	}
	return initialize(nodes[0], nodes[1:])
}
