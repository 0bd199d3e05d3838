package config

import (
	"fmt"
	"strings"
)

// Type is the kind of value that a Key takes.
type Type string

const (
	// Section holds other keys.
	Section Type = "section"
	// Text is any text.
	Text Type = "text"
	// Choice is one word of Key.Choices.
	Choice Type = "choice"
	// Bool is true or false.
	Bool Type = "bool"
	// Number is a whole number above 0.
	Number Type = "number"
	// Duration is a number with a unit of time, such as 30s.
	Duration Type = "duration"
	// Size is a number of bytes with a unit, such as 10GiB.
	Size Type = "size"
	// List is a sequence of texts; in a flag or variable, comma-separated.
	List Type = "list"
)

// A Key is one setting. Flags, variables, the commented file, the schema and the
// listing of settings are all made from the table of keys.
type Key struct {
	// Path is the key in the file, such as "cluster.routes". A "*" in it stands
	// for the name of a listener.
	Path string
	// Type of its value.
	Type Type
	// Choices are the words that a Choice accepts.
	Choices []string
	// Default is the value that leaving the key out amounts to, as one would
	// write it. It is empty if that depends on the machine or on other keys;
	// Otherwise then says in words what happens.
	Default, Otherwise string
	// Doc is one sentence.
	Doc string
	// Example is a sensible value, as one would write it in a flag.
	Example string
	// Secret values are never shown.
	Secret bool

	minimal bool // part of the shortest useful file
}

// Keys returns the table of keys, sections before what they hold, in the order
// of the commented file.
func Keys() []Key {
	return []Key{
		{Path: "mode", Type: Choice, Choices: []string{"local", "mesh", "hub", "client"}, Example: "mesh",
			Otherwise: "mesh with any listener, local without",
			Doc:       "How much of the bus runs here: all of it without a port (local), a node linked to others (mesh) or to a central broker (hub), or none of it (client)."},
		{Path: "name", Type: Text, Example: "eu-1", Otherwise: "the name of the host, up to its first dot", minimal: true,
			Doc: "Name of this node, unique in the fleet: letters, digits, - and _, 63 bytes at most."},
		{Path: "fleet", Type: Text, Default: "fleet", Example: "example",
			Doc: "Name of the fleet that is made when data_dir is empty."},
		{Path: "data_dir", Type: Text, Example: "/var/lib/fleetbus", Otherwise: "a temporary directory, removed at the end", minimal: true,
			Doc: "Directory of this node's state; only its owner may enter it."},
		{Path: "advertise", Type: Text, Example: "eu-1.example.net", Otherwise: "the name of the host", minimal: true,
			Doc: "Host name or address under which clients and other nodes reach this one."},
		{Path: "accounts", Type: List, Example: "orders, billing", Otherwise: "none",
			Doc: "Accounts that are made at start if the fleet has none of that name."},
		{Path: "grace", Type: Duration, Default: "10s", Example: "30s",
			Doc: "How long sessions may drain when the server stops."},
		{Path: "monitor", Type: Text, Example: "127.0.0.1:8222", Otherwise: "off",
			Doc: "host:port of the engine's monitoring API, which has no authentication: loopback addresses only."},

		{Path: "listeners", Type: Section,
			Doc: "Where clients connect, by name. A listener that is named is on: \"nats: {}\" is enough. TLS is on."},
		{Path: "listeners.*", Type: Section, Doc: "One listener."},
		{Path: "listeners.*.addr", Type: Text, Example: "0.0.0.0:4222", Otherwise: "the usual port of the protocol, on every address", minimal: true,
			Doc: "host:port to listen on; without a host, on every address; '%eth1:4222', in quotes, at the address that the interface has at the start; port 0 is any free one."},
		{Path: "listeners.*.advertise", Type: Text, Example: "nats.example.net:4222", Otherwise: "the host of advertise and the port of addr",
			Doc: "host:port that clients are told."},
		{Path: "listeners.*.protocol", Type: Choice, Choices: protocolNames(), Example: "nats", Otherwise: "the protocol that the listener is named after",
			Doc: "Protocol that is spoken there."},
		{Path: "listeners.*.client_certificate", Type: Choice, Choices: []string{"optional", "required"}, Default: "optional", Example: "required",
			Doc: "Whether a client must show a certificate besides its other credentials."},
		{Path: "listeners.*.plaintext", Type: Bool, Default: "false", Example: "true",
			Doc: "Turns TLS off; accepted on a loopback address, or with protocol provision or open, only, and a standing finding."},

		{Path: "cluster", Type: Section, Doc: "This node's place among the nodes of its fleet."},
		{Path: "cluster.name", Type: Text, Example: "eu", Otherwise: "the name of the fleet",
			Doc: "Name of the cluster."},
		{Path: "cluster.addr", Type: Text, Default: ":6222", Example: "0.0.0.0:6222",
			Doc: "host:port that other nodes connect to."},
		{Path: "cluster.advertise", Type: Text, Example: "eu-1.example.net:6222", Otherwise: "the host of advertise and the port of addr",
			Doc: "host:port that other nodes are told."},
		{Path: "cluster.routes", Type: List, Example: "eu-2.example.net:6222, eu-3.example.net:6222", Otherwise: "the nodes that the fleet knows", minimal: true,
			Doc: "host:port of other nodes; this node's own address is recognized and skipped."},

		{Path: "hub", Type: Section, Doc: "The central MQTT 5.0 broker that mode hub links this node to, in place of the mesh; or a RabbitMQ whose queues are linked, beside it."},
		{Path: "hub.type", Type: Choice, Choices: []string{"mqtt", "amqp"}, Default: "mqtt", Example: "amqp",
			Doc: "What the broker speaks: mqtt, for mode hub, or amqp, for links of queues with a RabbitMQ in every other mode."},
		{Path: "hub.servers", Type: List, Example: "mqtts://mqtt-1.example.net, mqtts://mqtt-2.example.net", Otherwise: "none; mode hub needs one",
			Doc: "Addresses of one broker, tried in turn: mqtts://host:port, or without TLS mqtt://host:port. For type amqp one: amqps://host:port/vhost."},
		{Path: "hub.accounts", Type: List, Example: "orders, billing", Otherwise: "those of accounts",
			Doc: "Accounts whose change notices and subjects pass."},
		{Path: "hub.subjects", Type: List, Example: "orders.>, stock.*.level", Otherwise: "none",
			Doc: "Subjects that pass beside all change notices."},
		{Path: "hub.prefix", Type: Text, Default: "fleetbus", Example: "plant/7",
			Doc: "Topic at the broker below which everything is; nodes of one prefix hear one another."},
		{Path: "hub.ca", Type: Text, Example: "/etc/fleetbus/broker-ca.crt", Otherwise: "the system's authorities",
			Doc: "PEM file of the authorities that may have signed the broker's certificate."},
		{Path: "hub.cert", Type: Text, Example: "/etc/fleetbus/broker-client.crt", Otherwise: "none",
			Doc: "PEM file of the certificate that the broker knows this node by."},
		{Path: "hub.key", Type: Text, Example: "/etc/fleetbus/broker-client.key", Otherwise: "none",
			Doc: "PEM file of its private key; only its owner and group may read it."},
		{Path: "hub.server_name", Type: Text, Example: "mqtt.example.net", Otherwise: "the host in servers",
			Doc: "Name that the broker's certificate must have."},
		{Path: "hub.pin", Type: Text, Example: "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08", Otherwise: "none",
			Doc: "Digest of the broker's public key, as hub check prints it; without ca it stands in for one."},
		{Path: "hub.user", Type: Text, Example: "eu-1", Otherwise: "none",
			Doc: "Name that the broker knows this node by."},
		{Path: "hub.password_file", Type: Text, Example: "/etc/fleetbus/broker.password", Otherwise: "none",
			Doc: "File with the password of that name; only its owner and group may read it."},
		{Path: "hub.client_id", Type: Text, Example: "eu-1", Otherwise: "fleetbus-, name and account",
			Doc: "MQTT client identifier, which nobody else at the broker may have; with several accounts, the account is put behind it."},
		{Path: "hub.qos", Type: Choice, Choices: []string{"0", "1"}, Default: "1", Example: "0",
			Doc: "Quality of service at the broker: 0, at most once, or 1, at least once."},
		{Path: "hub.keep_alive", Type: Duration, Default: "20s", Example: "60s",
			Doc: "Silence after which either side gives the other up."},
		{Path: "hub.session_expiry", Type: Duration, Default: "1h", Example: "24h",
			Doc: "How long the broker keeps what it has for this node while it is away, and this node what another one may lack."},
		{Path: "hub.in", Type: List, Example: "orders, exchange:events/order.# -> orders", Otherwise: "none",
			Doc: "For type amqp, links from the broker to the account: SOURCE -> TARGET, each a queue or exchange:NAME/KEY, or one queue for both."},
		{Path: "hub.out", Type: List, Example: "replies, done -> exchange:events", Otherwise: "none",
			Doc: "For type amqp, links from the account to the broker."},
		{Path: "hub.local", Type: Text, Example: "amqps://eu-1.example.net:5671", Otherwise: "none; type amqp needs it",
			Doc: "For type amqp, a listener of the fleet for AMQP, by which the links reach the account."},
		{Path: "hub.local_ca", Type: Text, Example: "/etc/fleetbus/ca.pem", Otherwise: "the system's authorities",
			Doc: "PEM file of the authorities that may have signed that listener's certificate."},
		{Path: "hub.local_cert", Type: Text, Example: "/etc/fleetbus/link.crt", Otherwise: "none",
			Doc: "PEM file of the certificate of the account's user that the links are."},
		{Path: "hub.local_key", Type: Text, Example: "/etc/fleetbus/link.key", Otherwise: "none",
			Doc: "PEM file of its private key; only its owner and group may read it."},
		{Path: "hub.local_user", Type: Text, Example: "acme/link", Otherwise: "none",
			Doc: "That user, if it has a password in place of a certificate."},
		{Path: "hub.local_password_file", Type: Text, Example: "/etc/fleetbus/link.password", Otherwise: "none",
			Doc: "File with its password; only its owner and group may read it."},
		{Path: "hub.prefetch", Type: Number, Default: "200", Example: "50",
			Doc: "For type amqp, messages of a link that are on their way."},
		{Path: "hub.park", Type: Text, Default: "fleetbus.parked", Example: "links.parked",
			Doc: "For type amqp, the queue, on the side that a message is from, of those that the other side does not take at all."},
		{Path: "hub.queue", Type: Size, Default: "256MiB", Example: "1GiB",
			Doc: "What waits for the broker on this node's disk at most, for each account."},

		{Path: "client", Type: Section, Doc: "How mode client reaches the bus."},
		{Path: "client.name", Type: Text, Example: "shop-1", Otherwise: "the name of this node",
			Doc: "Name of the connection, as operators see it."},
		{Path: "client.endpoints", Type: List, Example: "eu-1.example.net:4222, eu-2.example.net:4222", Otherwise: "none; mode client needs one",
			Doc: "host:port of nodes."},
		{Path: "client.creds", Type: Text, Example: "/etc/fleetbus/shop.creds", Otherwise: "none",
			Doc: "File with NATS credentials; only its owner and group may read it."},
		{Path: "client.subject_prefix", Type: Text, Example: "shop", Otherwise: "none",
			Doc: "Put before every subject of the services, with a dot between."},

		{Path: "tls", Type: Section, Doc: "Your own certificates, in place of the built-in authority's. Files are read again when their content changes."},
		{Path: "tls.cert", Type: Text, Example: "/etc/fleetbus/tls.crt", Otherwise: "a certificate of the built-in authority",
			Doc: "PEM file of this node's certificate chain."},
		{Path: "tls.key", Type: Text, Example: "/etc/fleetbus/tls.key", Otherwise: "the key of that certificate",
			Doc: "PEM file of this node's private key; only its owner and group may read it."},
		{Path: "tls.ca", Type: List, Example: "/etc/fleetbus/ca.crt", Otherwise: "the built-in authorities",
			Doc: "PEM files of the authorities that are trusted."},
		{Path: "tls.skip_hostname_verification", Type: Bool, Default: "false", Example: "true",
			Doc: "Accepts a peer whose certificate does not carry the name that was dialed; a standing finding."},

		{Path: "store", Type: Section, Doc: "Bounds of what is kept."},
		{Path: "store.max_file", Type: Size, Example: "100GiB", Otherwise: "what is there, and three quarters of the free disk, less reserve",
			Doc: "Messages kept on disk at most."},
		{Path: "store.max_memory", Type: Size, Example: "1GiB", Otherwise: "a quarter of the machine's memory",
			Doc: "Messages kept in memory at most."},
		{Path: "store.reserve", Type: Size, Default: "256MiB", Example: "1GiB",
			Doc: "Free disk space below which nothing more is stored on this node, until there is more again."},
		{Path: "store.lazy_sync", Type: Bool, Default: "false", Example: "true",
			Doc: "Acknowledges a message before it is on disk: faster, and lost if all nodes lose power at once."},

		{Path: "certificates", Type: Section, Doc: "Certificates, which accounts obtain once and deliver to their targets."},
		{Path: "certificates.manage", Type: Bool, Default: "true", Example: "false",
			Doc: "Obtains and renews the certificates of accounts here, beside the other nodes that do."},

		{Path: "mqtt", Type: Section, Doc: "What MQTT clients may do and cost, on all listeners for them."},
		{Path: "mqtt.max_packet", Type: Size, Default: "1MiB", Example: "64KiB",
			Doc: "Size of a packet of a client."},
		{Path: "mqtt.receive_maximum", Type: Number, Default: "1024", Example: "100",
			Doc: "Messages of QoS 1 and 2 of a client that are not acknowledged yet."},
		{Path: "mqtt.topic_aliases", Type: Number, Default: "64", Example: "16",
			Doc: "Topic aliases of a client, in each direction."},
		{Path: "mqtt.keep_alive", Type: Duration, Default: "5m", Example: "60s",
			Doc: "The longest keep alive; a client that asks for a longer one is told this one."},
		{Path: "mqtt.session_expiry", Type: Duration, Default: "168h", Example: "24h",
			Doc: "How long a session is kept without its client at most; 168h is the most."},
		{Path: "mqtt.pending", Type: Size, Default: "4MiB", Example: "1MiB",
			Doc: "What waits for a client that does not read; more of QoS 0 is dropped, more of QoS 1 and 2 waits on disk."},
		{Path: "mqtt.max_stored", Type: Size, Default: "256MiB", Example: "10GiB",
			Doc: "Messages of QoS 1 and 2 that may wait in an account; publishers are refused when it is full."},
		{Path: "mqtt.max_retained", Type: Size, Default: "64MiB", Example: "1GiB",
			Doc: "Retained messages of an account; publishers are refused when it is full."},
		{Path: "mqtt.lazy_sync", Type: Bool, Default: "false", Example: "true",
			Doc: "Acknowledges QoS 1 and 2 before they are on disk, and keeps one copy on one node: faster, and lost with it. It holds for accounts whose first MQTT client is yet to come."},

		{Path: "amqp", Type: Section, Doc: "What AMQP 0-9-1 clients may do and cost, on all listeners for them."},
		{Path: "amqp.passwords", Type: Bool, Default: "false", Example: "true",
			Doc: "Offers PLAIN and AMQPLAIN on TLS beside EXTERNAL: users with passwords, and bearer tokens in their place."},
		{Path: "amqp.account", Type: Text, Example: "nova", Otherwise: "none; a user is account/user",
			Doc: "The account of users whose name has no account in it."},
		{Path: "amqp.max_message", Type: Size, Default: "16MiB", Example: "4MiB",
			Doc: "Size of the body of a message. One for a durable queue is no larger than limits.payload."},
		{Path: "amqp.max_frame", Type: Size, Default: "128KiB", Example: "64KiB",
			Doc: "Size of a frame that clients are proposed."},
		{Path: "amqp.channels", Type: Number, Default: "2047", Example: "256",
			Doc: "Channels of a connection."},
		{Path: "amqp.heartbeat", Type: Duration, Default: "60s", Example: "15s",
			Doc: "The heartbeat that clients are proposed; they choose."},
		{Path: "amqp.pending", Type: Size, Default: "1MiB", Example: "4MiB",
			Doc: "What waits for a client that does not read before it is sent no more messages; they wait in their queues."},
		{Path: "amqp.max_memory", Type: Size, Default: "512MiB", Example: "2GiB",
			Doc: "Messages in the memory of this node, of all accounts; publishers are blocked and told when it is full, and go on when a fifth is free."},

		{Path: "console", Type: Section, Doc: "The web console, on all listeners for it."},
		{Path: "console.life", Type: Duration, Default: "12h", Example: "8h",
			Doc: "How long somebody stays logged in at most."},
		{Path: "console.idle", Type: Duration, Default: "30m", Example: "10m",
			Doc: "How long somebody stays logged in who does not look."},

		{Path: "provision", Type: Section, Doc: "What machines that nobody knows may do and cost, on all listeners for them: ask for an identity."},
		{Path: "provision.account", Type: Text, Default: "provisioning", Example: "arrivals",
			Doc: "Account in which they are, all of them, whatever they show; it exchanges nothing with others."},
		{Path: "provision.connections", Type: Number, Default: "4096", Example: "500",
			Doc: "Machines connected at once."},
		{Path: "provision.per_address", Type: Number, Default: "256", Example: "4",
			Doc: "How many of them may come from one address."},

		{Path: "open", Type: Section, Doc: "Whoever comes in by a listener of protocol open, without credentials: a standing finding."},
		{Path: "open.account", Type: Text, Default: "open", Example: "floor",
			Doc: "Account in which they are, all of them, whatever they show; it exchanges nothing with others."},
		{Path: "open.role", Type: Text, Default: "client", Example: "sensor",
			Doc: "Role that they have there."},
		{Path: "open.connections", Type: Number, Default: "4096", Example: "500",
			Doc: "Clients connected at once."},
		{Path: "open.per_address", Type: Number, Default: "256", Example: "4",
			Doc: "How many of them may come from one address."},

		{Path: "limits", Type: Section, Doc: "Bounds of what strangers and clients can cost this node."},
		{Path: "limits.connections", Type: Number, Default: "65536", Example: "10000",
			Doc: "Connections at once, over all listeners."},
		{Path: "limits.payload", Type: Size, Default: "1MiB", Example: "512KiB",
			Doc: "Size of one message, 64MiB at most."},
		{Path: "limits.handshakes", Type: Number, Default: "256", Example: "64",
			Doc: "TLS handshakes under way at once, on each listener, and 32 for each processor at most. Others wait, for half of limits.handshake_timeout, and are then told to come again."},
		{Path: "limits.handshake_rate", Type: Number, Default: "500", Example: "100",
			Doc: "New TLS handshakes a second, on each listener."},
		{Path: "limits.handshake_timeout", Type: Duration, Default: "2s", Example: "5s",
			Doc: "Closes a stranger who is slower."},

		{Path: "log", Type: Section, Doc: "What is written to standard error."},
		{Path: "log.level", Type: Choice, Choices: []string{"debug", "info", "warn", "error"}, Default: "info", Example: "debug",
			Doc: "The least severe record that is written."},
		{Path: "log.format", Type: Choice, Choices: []string{"text", "json"}, Default: "text", Example: "json",
			Doc: "Form of a record."},
	}
}

// settings returns the keys that take a value, with "*" replaced by each of the
// listeners in turn.
func settings(listeners []string) []Key {
	var out []Key
	for _, k := range Keys() {
		switch {
		case k.Path == anyListener:
			for _, name := range listeners {
				out = append(out, listenerKeys(name)...)
			}
		case k.Type != Section && !strings.HasPrefix(k.Path, anyListener):
			out = append(out, k)
		}
	}
	return out
}

// anyListener is the path of every listener in the table.
const anyListener = "listeners.*"

// listenerKeys returns the keys of the listener called name.
func listenerKeys(name string) []Key {
	var out []Key
	for _, k := range Keys() {
		if rest, ok := strings.CutPrefix(k.Path, anyListener+"."); ok {
			k.Path = "listeners." + name + "." + rest
			out = append(out, k)
		}
	}
	return out
}

// section returns the path of the section that holds k; "" is the whole file.
func (k Key) section() string { return k.Path[:max(0, strings.LastIndex(k.Path, "."))] }

// name is the last part of the path.
func (k Key) name() string { return k.Path[strings.LastIndex(k.Path, ".")+1:] }

// depth is the number of sections around k.
func (k Key) depth() int { return strings.Count(k.Path, ".") }

// Flag is the name of the key's flag, without dashes before it.
func (k Key) Flag() string {
	return strings.NewReplacer(".", "-", "_", "-").Replace(k.Path)
}

// Env is the name of the key's environment variable.
func (k Key) Env() string { return envPrefix + envName(k.Path) }

func envName(path string) string {
	return strings.ToUpper(strings.NewReplacer(".", "_", "-", "_").Replace(path))
}

// shown is value as a person may see it.
func (k Key) shown(value string) string {
	if k.Secret && value != "" {
		return fmt.Sprintf("(set, %d bytes)", len(value))
	}
	return value
}
