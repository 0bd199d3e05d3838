package fleetbus

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/fleetbus/fleetbus/identity"
)

// Mode says how much of the bus runs inside this server.
type Mode string

const (
	// Local serves this process alone: no port, no cluster.
	Local Mode = "local"
	// Mesh embeds the engine and links it to the other nodes of the fleet.
	Mesh Mode = "mesh"
	// Client embeds no engine: services connect to other nodes.
	Client Mode = "client"
	// Hub embeds the engine of one node alone, which a Linker among its services
	// links to others, by way of a central broker.
	Hub Mode = "hub"
)

// siteMode embeds the engine of one node, which is a site: what Dir holds says so.
const siteMode Mode = "site"

// alone reports whether the engine has no others to agree with.
func (m Mode) alone() bool { return m == Local || m == Hub || m == siteMode }

// Options are the settings of a Server. The zero value, with Dir set, is a
// durable bus inside this process with no open port.
type Options struct {
	// Mode of the bus. Default: Local without Listeners, Mesh with any.
	Mode Mode
	// Name of this node, unique in the fleet: letters, digits, "-" and "_",
	// 63 bytes at most. Default: the host name up to its first dot.
	Name string
	// Fleet names a fleet that is made when Dir is empty. Default: "fleet".
	Fleet string
	// Dir holds the state of this node, mode 0700. Default: a temporary
	// directory that is removed when Run returns.
	Dir string
	// Accounts that are made at start if the fleet has none of that name.
	Accounts []string

	// Advertise is the host name or address under which clients and other nodes
	// reach this one. Default: the name of the host.
	Advertise string
	// Listeners accept clients. Default: none.
	Listeners []Listener
	// Cluster links this node to others in Mesh mode.
	Cluster Cluster
	// Client says how Client mode reaches the bus.
	Client ClientOptions
	// TLS replaces the built-in authority's certificates on every listener. Links
	// between nodes keep the built-in authority, by which a node is known.
	TLS TLS
	// Monitor is the host:port of the engine's monitoring API, which has no
	// authentication; only loopback addresses are accepted. Default: off.
	Monitor string

	// Store bounds what the engine keeps.
	Store Store
	// Limits bound what strangers and clients can cost.
	Limits Limits
	// SourceTypes are the databases whose changes this node can announce, by the
	// name of their type. Default: none.
	SourceTypes map[string]OpenSource
	// CertManager makes the manager of an account's certificates, for every account
	// that has some. Default: this node manages none.
	CertManager OpenCertManager
	// Services run inside the server, each on its own session.
	Services []ServiceBinding
	// Grace is how long sessions may drain when the server stops. Default: 10s.
	Grace time.Duration
	// Logger receives what an operator must know. Default: silent.
	Logger *slog.Logger
}

// A Listener is an address and the protocol that is spoken there.
type Listener struct {
	// Name identifies the listener in roles, logs and findings.
	Name string
	// Addr is host:port; an empty host is every address, %eth1 that of an interface, port 0 any free one.
	Addr string
	// Advertise is the host:port that clients are told. Default: Options.Advertise
	// and the bound port.
	Advertise string
	// Protocol spoken there: NATS, or a Protocol that the embedder brings.
	Protocol Protocol
	// ClientCertificate says whether a client must show a certificate.
	// Default: CertificateOptional.
	ClientCertificate CertificatePolicy
	// Account, if it is set, is where everybody is who comes in, as a stranger:
	// whatever a client shows, it may ask for an identity there and nothing else. It is
	// not for NATS and Leaf. Default: who comes in has to prove who it is.
	Account string
	// Role, if it is set, is what everybody may do in Account who comes in, instead of
	// asking for an identity. It is a standing finding.
	Role string
	// Plaintext turns TLS off. Without an Account it is refused on an address that is not
	// loopback. It is a standing finding.
	Plaintext bool
}

// CertificatePolicy says whether a listener demands client certificates.
type CertificatePolicy string

const (
	// CertificateOptional verifies a certificate that is shown; a client without
	// one has to prove itself by signed credentials or a password.
	CertificateOptional CertificatePolicy = "optional"
	// CertificateRequired refuses the handshake of a client without a certificate.
	CertificateRequired CertificatePolicy = "required"
)

// Cluster is this node's place among the nodes of its fleet.
type Cluster struct {
	// Name of the cluster. Default: the fleet's name.
	Name string
	// Addr is the host:port that other nodes connect to. Default: ":6222".
	Addr string
	// Advertise is the host:port that other nodes are told. Default:
	// Options.Advertise and the bound port.
	Advertise string
	// Routes are host:port of other nodes, besides those that the fleet's state
	// names. This node's own address is recognized and skipped.
	Routes []string
}

// ClientOptions say how a server in Client mode reaches the bus.
type ClientOptions struct {
	// Name of the connection, as operators see it. Default: Options.Name.
	Name string
	// Endpoints are host:port of nodes. Required in Client mode.
	Endpoints []string
	// Creds is a NATS credentials file.
	Creds string
	// SubjectPrefix is put before every subject of the services, with a dot
	// between. Default: none.
	SubjectPrefix string
}

// TLS names certificate files. They are read again when their content changes.
type TLS struct {
	// Cert and Key are PEM files of this node's certificate chain and key.
	Cert, Key string
	// CA are PEM files of the authorities that are trusted besides the built-in
	// one, which signs the certificates of users.
	CA []string
	// SkipHostnameVerification accepts a peer whose certificate does not carry
	// the name that was dialed. It is a standing finding.
	SkipHostnameVerification bool
}

// Store bounds the engine's storage.
type Store struct {
	// MaxFile and MaxMemory bound the messages kept on disk and in memory, in
	// bytes. Default: what streams have already and three quarters of the free
	// disk, less Reserve; one quarter of the machine's memory.
	MaxFile, MaxMemory int64
	// Reserve is the free disk space, in bytes, below which the node does not start
	// and, while it runs, stores nothing more: publishers are refused, unless two
	// other nodes have a copy of the stream, which then go on without this one.
	// Default: 256 MiB.
	Reserve int64
	// LazySync acknowledges a message before it is on disk. A power failure of
	// all nodes at once then loses acknowledged messages. Default: false.
	LazySync bool
}

// Limits bound what strangers and clients can cost this node.
type Limits struct {
	// Connections at once, over all listeners. Default: 65536.
	Connections int
	// Payload of one message in bytes. Default: 1 MiB.
	Payload int
	// Handshakes under way at once, on each listener; 32 for each processor at most.
	// Others wait, for half of HandshakeTimeout, and who came last goes first. Default: 256.
	Handshakes int
	// HandshakeRate is new TLS handshakes a second, on each listener. Default: 500.
	HandshakeRate int
	// HandshakeTimeout closes a stranger who is slower. Default: 2s.
	HandshakeTimeout time.Duration
}

// A ServiceBinding runs a Service as a principal.
type ServiceBinding struct {
	// Name of the service, in logs and findings.
	Name string
	// Principal that the service's connection is.
	Principal identity.Principal
	// Service to run.
	Service Service
}

// OptionError is one problem of Options.
type OptionError struct {
	// Field is the path of the option, such as "listeners.nats.addr".
	Field string
	// Problem says what is wrong, Hint how to mend it.
	Problem, Hint string
}

// Error gives field and problem in one line.
func (e *OptionError) Error() string { return e.Field + ": " + e.Problem }

// Validate returns every problem of o, joined, each an *OptionError; nil if
// there is none. It opens nothing.
func (o *Options) Validate() error {
	var v problems
	mode := o.mode()
	switch mode {
	case Local, Mesh, Client, Hub:
	default:
		v.add("mode", fmt.Sprintf("%q is not local, mesh, hub or client", o.Mode), "set mode to local, mesh, hub or client")
	}
	if o.Name != "" {
		v.check("name", identity.CheckName(o.Name))
	}
	if o.Fleet != "" {
		v.check("fleet", identity.CheckName(o.Fleet))
	}
	for i, a := range o.Accounts {
		v.check("accounts["+strconv.Itoa(i)+"]", identity.CheckName(a))
	}
	o.validateListeners(&v, mode)
	o.validateLinks(&v, mode)
	o.validateHub(&v, mode)
	if (o.TLS.Cert == "") != (o.TLS.Key == "") {
		v.add("tls", "cert and key belong together and one is missing", "set both tls.cert and tls.key")
	}
	if o.TLS.Cert != "" && len(o.TLS.CA) == 0 {
		v.add("tls.ca", "no authority is named for your own certificate", "set tls.ca to the authority's certificate file")
	}
	for _, d := range []struct {
		field string
		value int64
	}{
		{"store.max_file", o.Store.MaxFile}, {"store.max_memory", o.Store.MaxMemory}, {"store.reserve", o.Store.Reserve},
		{"limits.connections", int64(o.Limits.Connections)}, {"limits.payload", int64(o.Limits.Payload)},
		{"limits.handshakes", int64(o.Limits.Handshakes)}, {"limits.handshake_rate", int64(o.Limits.HandshakeRate)},
		{"limits.handshake_timeout", int64(o.Limits.HandshakeTimeout)}, {"grace", int64(o.Grace)},
	} {
		if d.value < 0 {
			v.add(d.field, "is negative", "leave it out for the default")
		}
	}
	if o.Limits.Payload > 64<<20 {
		v.add("limits.payload", "is more than 64MiB", "keep messages small; use the object store for large values")
	}
	return v.join()
}

func (o *Options) validateListeners(v *problems, mode Mode) {
	if mode != Mesh && mode != Hub && len(o.Listeners) > 0 {
		v.add("listeners", "a server in "+string(mode)+" mode opens no port", "set mode to mesh or hub, or remove the listeners")
	}
	seen := map[string]string{}
	for _, l := range o.Listeners {
		field := "listeners." + l.Name
		v.check(field, identity.CheckName(l.Name))
		host := v.hostport(field+".addr", l.Addr)
		if first, ok := seen[l.Addr]; ok && !strings.HasSuffix(l.Addr, ":0") {
			v.add(field+".addr", l.Addr+" is also the address of listener "+strconv.Quote(first), "give each listener its own port")
		}
		seen[l.Addr] = l.Name
		if l.Advertise != "" {
			v.hostport(field+".advertise", l.Advertise)
		}
		if l.Protocol == nil {
			v.add(field, "no protocol is set", "set Listener.Protocol")
		}
		switch l.ClientCertificate {
		case "", CertificateOptional, CertificateRequired:
		default:
			v.add(field+".client_certificate", fmt.Sprintf("%q is not optional or required", l.ClientCertificate), "set it to optional or required")
		}
		if l.Protocol == Leaf() {
			validateLeafs(v, field, l)
		}
		if l.Protocol == Gateway() {
			validateGateways(v, field, l, mode)
		}
		if l.Role != "" && l.Account == "" {
			v.add(field+".account", "is not set, and role is of an account", "set it to the account in which everybody is who comes in, or remove role")
		}
		if l.Account != "" {
			v.check(field+".account", identity.CheckAccountName(l.Account))
			if _, ok := l.Protocol.(watched); ok {
				v.add(field+".account", "strangers may not watch a node", "remove account")
			}
			if l.Protocol == NATS() || l.Protocol == Leaf() || l.Protocol == Gateway() {
				v.add(field+".account", "the clients of this protocol are in an account of their own", "remove account, and have a listener of its own for strangers")
			}
		}
		if l.Plaintext && !isLoopback(host) && l.Account == "" && l.Protocol != Leaf() && l.Protocol != Gateway() {
			v.add(field+".plaintext", "a listener without TLS on "+l.Addr+" would be open to the network", "remove plaintext, or listen on 127.0.0.1")
		}
	}
}

// validateLeafs keeps to what links of sites can be: TLS, and signed credentials.
func validateLeafs(v *problems, field string, l Listener) {
	if l.Name != leafListenerName {
		v.add(field, "a listener of protocol leaf has another name", "call it "+leafListenerName)
	}
	if l.Plaintext {
		v.add(field+".plaintext", "the links of sites have TLS", "remove plaintext")
	}
	if l.ClientCertificate == CertificateRequired {
		v.add(field+".client_certificate", "a site shows signed credentials, and no certificate", "remove client_certificate")
	}
}

// validateGateways keeps to what links of regions can be.
func validateGateways(v *problems, field string, l Listener, mode Mode) {
	if l.Name != gatewayListenerName {
		v.add(field, "a listener of protocol gateway has another name", "call it "+gatewayListenerName)
	}
	if l.Plaintext {
		v.add(field+".plaintext", "the links of regions have TLS", "remove plaintext")
	}
	if mode != Mesh {
		v.add(field, "a server in "+string(mode)+" mode has no regions", "set mode to mesh, or remove the listener")
	}
}

func (o *Options) validateLinks(v *problems, mode Mode) {
	if o.Cluster.Name != "" {
		v.check("cluster.name", identity.CheckName(o.Cluster.Name))
	}
	if o.Cluster.Addr != "" {
		v.hostport("cluster.addr", o.Cluster.Addr)
	}
	if o.Cluster.Advertise != "" {
		v.hostport("cluster.advertise", o.Cluster.Advertise)
	}
	for i, r := range o.Cluster.Routes {
		v.hostport("cluster.routes["+strconv.Itoa(i)+"]", r)
	}
	for i, e := range o.Client.Endpoints {
		v.hostport("client.endpoints["+strconv.Itoa(i)+"]", e)
	}
	if mode == Client && len(o.Client.Endpoints) == 0 {
		v.add("client.endpoints", "a server in client mode needs at least one node to connect to", "set client.endpoints")
	}
	if o.Monitor != "" {
		if host := v.hostport("monitor", o.Monitor); host != "" && !isLoopback(host) {
			v.add("monitor", "the engine's monitoring API has no authentication and "+o.Monitor+" is not loopback", "use 127.0.0.1:8222")
		} else if host == "" && o.Monitor != "" && strings.HasPrefix(o.Monitor, ":") {
			v.add("monitor", "the engine's monitoring API has no authentication and "+o.Monitor+" is every address", "use 127.0.0.1:8222")
		}
	}
}

// validateHub keeps to one way between nodes: with two, messages would arrive twice.
func (o *Options) validateHub(v *problems, mode Mode) {
	linked := map[string]bool{}
	for _, b := range o.Services {
		if _, ok := b.Service.(Linker); !ok {
			continue
		}
		if linked[b.Principal.Account] {
			v.add("hub", fmt.Sprintf("account %q has two hubs, and what both carry would come twice", b.Principal.Account), "keep one of them")
		}
		linked[b.Principal.Account] = true
	}
	switch {
	case mode == Hub && len(linked) == 0:
		v.add("hub", "a server in hub mode needs a hub, and an account that is linked to it", "set hub.servers and accounts")
	case mode == Hub && len(o.Cluster.Routes) > 0:
		v.add("cluster.routes", "a node is in the mesh or on a hub, and not both: messages would arrive twice", "set mode to mesh, or remove the routes")
	case (mode == Mesh || mode == Client) && len(linked) > 0:
		v.add("hub", "a node is in the mesh or on a hub, and not both: messages would arrive twice", "set mode to hub, or remove the hub")
	}
}

// addrs are where o listens, and what clients are told.
func (o *Options) addrs() (all []string) {
	for _, l := range o.Listeners {
		all = append(all, l.Addr, l.Advertise)
	}
	return all
}

func (o *Options) mode() Mode {
	switch {
	case o.Mode != "":
		return o.Mode
	case len(o.Listeners) > 0:
		return Mesh
	}
	return Local
}

// withDefaults returns a copy in which every empty field has its default.
func (o Options) withDefaults() Options {
	o.Mode = o.mode()
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "localhost"
	}
	def(&o.Name, hostLabel(host))
	def(&o.Fleet, "fleet")
	def(&o.Advertise, host)
	def(&o.Cluster.Addr, ":6222")
	def(&o.Client.Name, o.Name)
	def(&o.Store.Reserve, 256<<20)
	def(&o.Limits.Connections, 65536)
	def(&o.Limits.Payload, 1<<20)
	def(&o.Limits.Handshakes, 256)
	def(&o.Limits.HandshakeRate, 500)
	def(&o.Limits.HandshakeTimeout, 2*time.Second)
	def(&o.Grace, 10*time.Second)
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	for i := range o.Listeners {
		def(&o.Listeners[i].ClientCertificate, CertificateOptional)
	}
	return o
}

func def[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// hostLabel turns a host name into a valid node name.
func hostLabel(host string) string {
	label, _, _ := strings.Cut(host, ".")
	label = strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9', r == '-', r == '_':
			return r
		}
		return '-'
	}, label)
	if identity.CheckName(label) != nil {
		return "node"
	}
	return label
}

func isLoopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}

type problems []error

func (p *problems) add(field, problem, hint string) {
	*p = append(*p, &OptionError{Field: field, Problem: problem, Hint: hint})
}

func (p *problems) check(field string, err error) {
	if err != nil {
		p.add(field, err.Error(), "use letters, digits, - and _, 63 bytes at most")
	}
}

func (p *problems) hostport(field, addr string) (host string) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		p.add(field, fmt.Sprintf("%q is not host:port", addr), "write it like 0.0.0.0:4222 or :4222")
		return ""
	}
	if n, err := strconv.Atoi(port); err != nil || n < 0 || n > 65535 {
		p.add(field, fmt.Sprintf("port %q is not a number from 0 to 65535", port), "write it like 0.0.0.0:4222 or :4222")
	}
	return host
}

func (p problems) join() error { return errors.Join(p...) }
