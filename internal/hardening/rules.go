package hardening

import "slices"

// A Rule is one of those that are judged.
type Rule struct {
	// ID is a number of the guide's rules, or a letter and a number.
	ID string
	// Title is the rule in a few words, and Help why it is one.
	Title, Help string
	// never says why files of a kind have nothing to do with it, unjudged why there is no
	// verdict on one, and fix what would give one.
	never    map[Kind]string
	unjudged map[Kind]string
	fix      string
}

// Rules that are not the guide's.
const (
	ruleRead       = "F1"
	ruleKeys       = "F2"
	ruleLoopback   = "V1"
	ruleTLS        = "V2"
	ruleLimits     = "V3"
	rulePartition  = "V4"
	ruleListeners  = "V5"
	ruleHashes     = "V6"
	ruleDefinition = "V7"
	ruleLog        = "V8"
	rulePlugins    = "V9"
)

// TitleOf is the title of a rule.
func TitleOf(id string) string {
	i := slices.IndexFunc(Rules(), func(r Rule) bool { return r.ID == id })
	if i < 0 {
		return ""
	}
	return Rules()[i].Title
}

// Rules are all, in the order in which they are shown: 1 to 27 of OpenStack's security
// guide and of what follows from it, and those of the vendors.
func Rules() []Rule {
	services := "it is of the services' files: fleetbus audit openstack"
	broker := "it is of the broker's files: fleetbus audit rabbitmq, or qpid"
	rabbit := "it is of RabbitMQ"
	probe := "--probe HOST:PORT"
	none := func(kinds ...Kind) func(why string) map[Kind]string {
		return func(why string) map[Kind]string {
			m := map[Kind]string{}
			for _, k := range kinds {
				m[k] = why
			}
			return m
		}
	}
	every := func(why string) map[Kind]string { return map[Kind]string{"": why} }
	vendor := func(id, title, help string) Rule {
		return Rule{ID: id, Title: title, Help: help, never: none(Qpid, OpenStack)(rabbit)}
	}
	return []Rule{
		{"1", "no plaintext AMQP", "What is sent in clear, passwords too, is read by whoever is on the way.", nil, every("no setting says what is listened to"), probe},
		{"2", "TLS listener on the management network only", "An address of all interfaces is one of the guests' networks, too.", none(OpenStack)(broker), every("no TLS listener is known"), ""},
		{"3", "client certificate demanded and verified", "Without it, whoever reaches the port may try passwords.", none(OpenStack)(broker), every("no TLS listener is known"), probe},
		{"4", "CA bundle limited to the nodes' own CA", "With the bundle of the system, any public authority lets somebody in.", nil, every("no file of authorities is known"), "name the files, or --root DIR"},
		{"5", "key and certificate files 0600, of the daemon's user", "Who reads the key is the node.", nil, every("no file of a key or a certificate could be looked at"), "name the files, or --root DIR"},
		{"6", "TLS 1.2 or newer, sound ciphers, chain and names", "Older versions are broken, and a certificate for another name is no proof.", nil, every("nothing says which versions are spoken"), probe},
		{"7", "between brokers: authentication and encryption", "Who speaks to a node as its peer has all of its messages.", none(OpenStack)(broker), every("nothing says whether the broker has peers; between brokers it is in clear unless set"), "give rabbitmq-env.conf and the file of ssl_dist_optfile"},
		{"8", "the client verifies the broker's name", "Without it, any certificate of the authority is taken for the broker's (OSSN-0096).", none(RabbitMQ, Qpid)(services), nil, ""},
		{"9", "certificates expire and can be withdrawn", "One that lasts for ever is a password that nobody changes.", nil, every("no certificate could be read"), "name the files, or --root DIR"},
		{"10", "the TLS library is known", "Who does not know it cannot mend it.", nil, every("no TLS is set"), ""},
		{"11", "the user guest is deleted", "Everybody knows its password.", none(OpenStack)(broker), map[Kind]string{RabbitMQ: "guest is made at the first start unless default_user says otherwise, and nothing given shows that it was deleted"}, "rabbitmqctl export_definitions FILE, and give it, or --probe HOST:PORT"},
		{"12", "a user for each service on each node", "With one for all, nobody knows who it was, and all have to change it.", none(RabbitMQ, Qpid)(services), nil, ""},
		{"13", "X.509 for every service, and login with it", "A certificate is not guessed, and does not cross the network.", nil, every("nothing says how clients log in"), probe},
		{"14", "passwords: no examples, not shared, not readable", "Passwords of manuals are tried first.", nil, every("no password was found"), ""},
		{"15", "least privilege for each user", "A user with .* is everybody.", none(OpenStack)(broker), map[Kind]string{RabbitMQ: "permissions are in the broker's database"}, "rabbitmqctl export_definitions FILE, and give it"},
		{"16", "a compute node cannot act as the conductor", "Who reads the conductor's queue has the cloud.", none(OpenStack)(broker), every("permissions of compute nodes are not in what was given"), "rabbitmqctl export_definitions FILE, and give it"},
		{"17", "projects apart, calls and notifications apart", "On one virtual host with one user, one project reads the other's.", none(RabbitMQ, Qpid)(services), nil, ""},
		{"18", "Qpid: the access list denies by default", "What nobody thought of is then refused.", none(RabbitMQ, OpenStack)("it is of Qpid"), nil, "give the file that acl-file names"},
		{"19", "messages are bounded in age, because none is signed", "An old message that is played again is obeyed.", none(Qpid)("Qpid has no files of queues"), every("queues are not in what was given"), "rabbitmqctl export_definitions FILE, and give it"},
		{"20", "logins and refusals are logged", "What is not logged did not happen.", none(OpenStack)(broker), every("nothing says what is logged"), ""},
		{"21", "a packet filter lets only the management network in", "A listener's address is one setting; a filter is a second one.", nil, every("no rules of nftables or iptables were given"), "give /etc/nftables.conf, or the output of iptables-save"},
		{"22", "network namespaces on hypervisors", "A process that is broken into then has no network.", nil, every("files do not show it: look at /proc/PID/ns/net of each process there"), ""},
		{"23", "the broker and services are isolated processes", "Who breaks into one is then not yet in the others.", nil, every("no unit of systemd was given"), "give the unit, such as /usr/lib/systemd/system/rabbitmq-server.service, and its drop-ins"},
		{"24", "mandatory access control; settings 0640", "It holds when the program no longer does.", nil, every("neither /etc/selinux/config nor a profile of AppArmor was given"), "give /etc/selinux/config, or /etc/apparmor.d"},
		{"25", "management listeners are closed", "They have all that the broker has, often without TLS.", none(OpenStack)(broker), every("nothing says which management listeners there are"), "give enabled_plugins, or --probe HOST:PORT"},
		{"26", "limits of connections, channels and sizes", "Without them, one client is enough to stop all.", none(OpenStack)(broker), nil, ""},
		{"27", "the deployment is consistent", "What differs on one node is what nobody looked at.", none(RabbitMQ, Qpid)(services), nil, ""},
		vendor(ruleLoopback, "loopback users stay on loopback", "A user that is restricted to loopback is so for its password."),
		vendor(ruleTLS, "options of TLS are sound", "Renegotiation by clients, and their order of ciphers, are ways in."),
		vendor(ruleLimits, "memory, disk and consumers are bounded", "A broker without an alarm stops when the machine does."),
		vendor(rulePartition, "partitions of a cluster are handled", "With ignore, both halves go on, and messages are lost."),
		vendor(ruleListeners, "listeners of other protocols speak TLS", "MQTT, STOMP and streams have the same users and passwords."),
		vendor(ruleHashes, "passwords are hashed by SHA-256 or better", "MD5 is counted back in minutes."),
		vendor(ruleDefinition, "files of definitions are for the broker alone", "They have the hashes of all passwords."),
		vendor(ruleLog, "the log is not at level debug", "It then has what should not be in a log."),
		vendor(rulePlugins, "one configuration is in force, with the plug-ins that it needs", "A setting in a file that is not read is none."),
		{"F1", "every file can be read and understood", "What is not read is not judged.", nil, every("-"), ""},
		{"F2", "every key is known, and in its section", "A key with a typing error sets nothing.", nil, every("-"), ""},
	}
}
