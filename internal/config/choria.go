package config

import (
	"bytes"
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A choriaKey is a key of a Choria broker's configuration, and what becomes of it.
type choriaKey struct {
	// theirs is the key; a "*" in it stands for a name.
	theirs string
	// ours is the path of the key here; empty if there is none.
	ours string
	// remark says what is different here, or why there is no such key. The import
	// tells it to everybody who has set the key.
	remark string
}

const (
	choriaNetwork = "plugin.choria.network."
	ownProof      = "nodes prove themselves to one another by certificates of their own"
	roleInstead   = "what a user may do is its role: fleetbus role add, fleetbus user add"
	tokenInstead  = "an unknown machine enrolls with a token that is good once: fleetbus token add user"
	noGateway     = "regions are not linked by settings of a node: fleetbus gateway token, and fleetbus join --as gateway"
	noLeaf        = "sites are not linked by settings of a node; this version links the nodes of one cluster"
	noSigner      = "tokens of other issuers open nothing; users have credentials of the fleet, or certificates that are registered for them: fleetbus user add ACCOUNT/NAME --cert-register FILE"
	noFederation  = "messages reach every node of the cluster by themselves"
	programs      = "it is for programs that connect, not for a node: give it to them"
	streamInstead = "streams are made in an account, by any client, once: "
)

// choriaKeys is the table of the keys, which the import and its page are made from.
func choriaKeys() []choriaKey {
	network := func(name, ours, remark string) choriaKey { return choriaKey{choriaNetwork + name, ours, remark} }
	stream := func(name, add string) choriaKey { return network("stream."+name, "", streamInstead+add) }
	keys := []choriaKey{
		{"identity", "name", "the first part of it is the name, all of it the host that clients and nodes are told: advertise"},
		{"loglevel", "log.level", ""},
		{"logfile", "", "the log goes to standard error"},
		{"plugin.choria.broker_network", "mode", "a node that the import makes is one of a mesh"},
		{"plugin.choria.broker_federation", "", noFederation},
		{"plugin.choria.adapters", "", "what adapters do is no setting of a node"},
		{"plugin.choria.adapter.*", "", "what adapters do is no setting of a node"},
		{"collectives", "", "a collective begins a subject; what isolates subjects is an account: fleetbus account add"},
		{"main_collective", "", programs},

		network("listen_address", "listeners.nats.addr", ""),
		network("client_port", "listeners.nats.addr", ""),
		network("public_url", "listeners.nats.advertise", ""),
		network("client_tls_force_required", "", "TLS is always on, on every listener and link"),
		network("tls_timeout", "limits.handshake_timeout", "one limit for TLS and for the login: the longer of theirs"),
		network("auth_timeout", "limits.handshake_timeout", "one limit for TLS and for the login: the longer of theirs"),
		network("connect_timeout", "", programs),
		network("write_deadline", "", "a client that does not read is closed after 10s, or when 64MiB wait for it"),
		network("soft_shutdown_timeout", "grace", "how long sessions may drain; nothing is dumped afterwards"),
		network("pprof_port", "", "there is no port for profiles"),
		network("client_hosts", "", "the networks that users may come from are their role's: fleetbus role add NAME --network CIDR"),
		network("client_signer_cert", "", noSigner),
		network("server_signer_cert", "", noSigner),
		network("deny_server_connections", "", "the listeners that users may come in by are their role's: fleetbus role add NAME --listener LISTENER"),
		network("peers", "cluster.routes", ""),
		network("peer_port", "cluster.addr", ""),
		network("peer_user", "", ownProof),
		network("peer_password", "", ownProof),
		network("gateway_name", "cluster.name", "the name of the cluster alone"),
		network("gateway_port", "", noGateway),
		network("gateway_remotes", "", noGateway),
		network("gateway_remote.*.urls", "", noGateway),
	}
	for _, remote := range []string{"gateway_remote", "leafnode_remote"} {
		why := noGateway
		if remote == "leafnode_remote" {
			why = noLeaf
			keys = append(keys, network("leafnode_port", "", noLeaf), network("leafnode_remotes", "", noLeaf), network("leafnode_remote.*.url", "", noLeaf),
				network("leafnode_remote.*.account", "", noLeaf), network("leafnode_remote.*.credentials", "", noLeaf),
				network("leafnode_remote.*.credential", "", noLeaf))
		}
		for _, name := range []string{"cert", "key", "ca", "verify", "disable"} {
			keys = append(keys, network(remote+".*.tls."+name, "", why))
		}
	}
	const noSocket = "NATS over WebSocket is not spoken; MQTT is, on the port for it: listeners.mqtt; and server-sent events: listeners.sse"
	const noMapping = "an account has no mapping of subjects"
	keys = append(keys,
		network("websocket_port", "", noSocket),
		network("websocket_advertise", "", noSocket),
		network("mapping.names", "", noMapping),
		network("mapping.*.source", "", noMapping),
		network("mapping.*.destination", "", noMapping),
		network("system.user", "", "an administrator has credentials of its own, which init makes: fleetbus status, fleetbus events"),
		network("system.password", "", "an administrator has credentials of its own, which init makes: fleetbus status, fleetbus events"),
		network("provisioning.client_password", "", tokenInstead),
		network("provisioning.signer_cert", "", tokenInstead),
		network("provisioning.provisioner_without_token", "", tokenInstead),
		network("stream.store", "data_dir", "streams are always on and stand in the data directory, which is a new one: what is in theirs is not taken over"),
		network("stream.manage_streams", "", "no stream is made that nobody asked for"),
		stream("event_retention", "fleetbus stream add CHORIA_EVENTS --subject 'choria.lifecycle.>' --max-age 24h"),
		stream("event_replicas", "fleetbus stream add CHORIA_EVENTS --subject 'choria.lifecycle.>' --replicas 3"),
		stream("machine_retention", "fleetbus stream add CHORIA_MACHINE --subject 'choria.machine.>' --max-age 24h"),
		stream("machine_replicas", "fleetbus stream add CHORIA_MACHINE --subject 'choria.machine.>' --replicas 3"),
		stream("advisory_retention", "fleetbus stream add CHORIA_STREAM_ADVISORIES --subject '$JS.EVENT.ADVISORY.>' --max-age 168h"),
		stream("advisory_replicas", "fleetbus stream add CHORIA_STREAM_ADVISORIES --subject '$JS.EVENT.ADVISORY.>' --replicas 3"),
		stream("executor_retention", "fleetbus stream add CHORIA_EXECUTOR --subject 'choria.executor.>' --max-age 24h"),
		stream("executor_replicas", "fleetbus stream add CHORIA_EXECUTOR --subject 'choria.executor.>' --replicas 3"),
		stream("leader_election_ttl", "nats kv add CHORIA_LEADER_ELECTION --ttl 1m"),
		stream("leader_election_replicas", "nats kv add CHORIA_LEADER_ELECTION --replicas 3"),
		network("operator_account", "", "init makes the operator, and keeps its keys"),
		network("system_account", "", "init makes the account that the engine has for itself"),
	)
	for _, source := range []string{"choria", "file"} {
		keys = append(keys, choriaKey{"plugin.security." + source + ".certificate", "tls.cert", ""}, choriaKey{"plugin.security." + source + ".key", "tls.key", ""},
			choriaKey{"plugin.security." + source + ".ca", "tls.ca", ""})
	}
	return append(keys,
		choriaKey{"plugin.security.choria.token_file", "", programs},
		choriaKey{"plugin.security.choria.seed_file", "", programs},
		choriaKey{"plugin.security.choria.trusted_signers", "", noSigner},
		choriaKey{"plugin.security.provider", "", "certificates are in the files that tls.cert, tls.key and tls.ca name, or of the built-in authority"},
		choriaKey{"plugin.security.issuer.names", "", noSigner},
		choriaKey{"plugin.security.issuer.*.public", "", noSigner},
		choriaKey{"plugin.choria.stats_port", "monitor", "the engine's monitoring API, which has no authentication and stays on this host"},
		choriaKey{"plugin.choria.stats_address", "monitor", "the engine's monitoring API, which has no authentication and stays on this host"},
		choriaKey{"plugin.choria.use_srv", "", "nodes are named in cluster.routes, one of them is enough, and clients are told of all"},
		choriaKey{"plugin.choria.srv_domain", "", "nodes are named in cluster.routes, one of them is enough, and clients are told of all"},
		choriaKey{"plugin.choria.middleware_hosts", "", programs},
		choriaKey{"plugin.choria.federation_middleware_hosts", "", noFederation},
		choriaKey{"plugin.choria.federation.cluster", "", noFederation},
		choriaKey{"plugin.choria.federation.collectives", "", noFederation},
	)
}

// matches reports whether k is the key of that name.
func (k choriaKey) matches(name string) bool {
	before, after, wild := strings.Cut(k.theirs, "*")
	if !wild {
		return k.theirs == name
	}
	return len(name) > len(before)+len(after) && strings.HasPrefix(name, before) && strings.HasSuffix(name, after)
}

// A choriaLine is the value of a key, and where it stands.
type choriaLine struct {
	key, value string
	line       int
}

// A choria is one import under way.
type choria struct {
	taken
	lines []choriaLine // in the order of the file, each key once
}

// ImportChoria turns the configuration file of a Choria broker into a configuration
// of fleetbus. The notes are sentences about every key that means something else
// here, has no counterpart, or is not known, each with its line. An error says why
// there is nothing to turn.
func ImportChoria(data []byte) (ours []byte, notes []string, err error) {
	if len(data) > maxFile {
		return nil, nil, errors.New("it is larger than 1MiB; a configuration is a few kilobytes")
	}
	if !utf8.Valid(data) {
		return nil, nil, errors.New("it is not text in UTF-8")
	}
	c := &choria{taken: newTaken()}
	c.read(data)
	if !slices.ContainsFunc(c.lines, func(l choriaLine) bool { return strings.HasPrefix(l.key, "plugin.choria.") }) {
		return nil, nil, errors.New("there is no plugin.choria. key in it")
	}
	c.say()
	c.take()
	var out bytes.Buffer
	out.WriteString("# Taken over from a Choria broker.\n")
	out.Write(written(c.values))
	return out.Bytes(), c.notes, nil
}

// read reads lines of the form key = value. Of a key that is there twice the last
// one counts.
func (c *choria) read(data []byte) {
	n := 0
	for text := range strings.Lines(string(data)) {
		n++
		text = strings.TrimSpace(text)
		if text == "" || strings.HasPrefix(text, "#") {
			continue
		}
		key, value, ok := strings.Cut(text, "=")
		key, value = strings.TrimSpace(key), strings.TrimSpace(value)
		if !ok || key == "" || value == "" {
			c.note("line %d is not a key, = and a value, and is left out", n)
			continue
		}
		if i := slices.IndexFunc(c.lines, func(l choriaLine) bool { return l.key == key }); i >= 0 {
			c.note("line %d: %s stands on line %d already; the last one counts", n, quoted(key), c.lines[i].line)
			c.lines = slices.Delete(c.lines, i, i+1)
		}
		c.lines = append(c.lines, choriaLine{key, value, n})
	}
}

// quoted is a key as a note may show it.
func quoted(key string) string {
	if q := strconv.QuoteToASCII(key); q != `"`+key+`"` {
		return q
	}
	return key
}

// say notes what becomes of each line.
func (c *choria) say() {
	keys := choriaKeys()
	for _, l := range c.lines {
		i := slices.IndexFunc(keys, func(k choriaKey) bool { return k.matches(l.key) })
		switch {
		case i < 0:
			c.note("line %d: %s is not known here and is left out", l.line, quoted(l.key))
		case keys[i].ours == "":
			c.note("line %d: %s is left out: %s", l.line, quoted(l.key), keys[i].remark)
		case keys[i].remark != "":
			c.note("line %d: %s became %s: %s", l.line, quoted(l.key), keys[i].ours, keys[i].remark)
		}
	}
}

// find returns the line of a key; its line is 0 if there is none.
func (c *choria) find(key string) choriaLine {
	i := slices.IndexFunc(c.lines, func(l choriaLine) bool { return l.key == key })
	if i < 0 {
		return choriaLine{key: key}
	}
	return c.lines[i]
}

func (c *choria) network(name string) choriaLine { return c.find(choriaNetwork + name) }

// wrong notes a value that cannot be taken over.
func (c *choria) wrong(l choriaLine, what string) {
	c.note("line %d: the value of %s is not %s, and is left out", l.line, l.key, what)
}

// port is the value of l, or the port that goes without saying.
func (c *choria) port(l choriaLine, otherwise string) string {
	if l.line == 0 {
		return otherwise
	}
	if n, err := strconv.ParseUint(l.value, 10, 16); err != nil || n == 0 {
		if l.value != "0" {
			c.wrong(l, "a port")
		}
		return otherwise
	}
	return l.value
}

// duration is the value of l, 0 if there is none. A number without a unit is in
// seconds.
func (c *choria) duration(l choriaLine) time.Duration {
	if l.line == 0 {
		return 0
	}
	text := l.value
	if bare(text) {
		text += "s"
	}
	d, err := time.ParseDuration(text)
	if err != nil || d <= 0 {
		c.wrong(l, "a duration")
		return 0
	}
	return d
}

// take takes over what has a counterpart.
func (c *choria) take() {
	c.set("mode", "mesh")
	c.set("data_dir", "/var/lib/fleetbus")
	c.note("data_dir is new: identities and streams are kept there")
	if id := c.find("identity"); id.line > 0 {
		first, _, _ := strings.Cut(id.value, ".")
		c.set("name", c.name("identity", first))
		c.set("advertise", id.value)
	}
	c.clients()
	c.cluster()
	if d := max(c.duration(c.network("tls_timeout")), c.duration(c.network("auth_timeout"))); d > 0 {
		c.set("limits.handshake_timeout", d.String())
	}
	if d := c.duration(c.network("soft_shutdown_timeout")); d > 0 {
		c.set("grace", d.String())
	}
	c.monitor()
	c.log()
	for _, source := range []string{"file", "choria"} {
		for theirs, ours := range map[string]string{"certificate": "tls.cert", "key": "tls.key", "ca": "tls.ca"} {
			c.set(ours, c.find("plugin.security."+source+"."+theirs).value)
		}
	}
	if c.values["tls.cert"] == "" {
		c.note("without files of your own, the built-in authority issues the certificates; clients of yours need its authority, which fleetbus user add --ca-out writes")
	} else {
		c.note("a client comes in by its certificate when that is registered for a user: fleetbus user add ACCOUNT/NAME --cert-register FILE")
	}
	if c.find("plugin.choria.broker_network").line == 0 {
		c.note("plugin.choria.broker_network is not set: this file starts no broker there")
	}
}

// clients takes over the listener.
func (c *choria) clients() {
	host := c.network("listen_address").value
	c.set("listeners.nats.addr", net.JoinHostPort(everywhere(host), c.port(c.network("client_port"), "4222")))
	if url := c.network("public_url"); url.line > 0 {
		c.set("listeners.nats.advertise", c.addresses([]string{url.value}, "4222")...)
	}
}

// everywhere is the host of an address that stands for all of them, "", or host.
func everywhere(host string) string {
	host = strings.Trim(host, "[]")
	if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
		return ""
	}
	return host
}

// cluster takes over the links to other nodes.
func (c *choria) cluster() {
	peers, port := c.network("peers"), c.network("peer_port")
	if peers.line > 0 || port.line > 0 {
		c.set("cluster.addr", net.JoinHostPort(everywhere(c.network("listen_address").value), c.port(port, "5222")))
	}
	c.set("cluster.routes", c.addresses(value(Key{Type: List}, peers.value, Place{}).texts(), "5222")...)
	if name := c.network("gateway_name"); name.line > 0 {
		c.set("cluster.name", c.name(name.key, name.value))
	}
}

// monitor takes over the port for statistics.
func (c *choria) monitor() {
	port := c.port(c.find("plugin.choria.stats_port"), "")
	if port == "" {
		return
	}
	host := c.find("plugin.choria.stats_address").value
	if !loopback(host) {
		host = "127.0.0.1"
	}
	c.set("monitor", net.JoinHostPort(host, port))
}

// log takes over the level of the log.
func (c *choria) log() {
	level := c.find("loglevel")
	switch level.value {
	case "":
	case "debug", "info", "warn", "error":
		c.set("log.level", level.value)
	case "fatal":
		c.set("log.level", "error")
	default:
		c.wrong(level, "debug, info, warn, error or fatal")
	}
}
