package attack

// A Row is an attack that a test tries.
type Row struct {
	// On is what is attacked, and Attack how.
	On, Attack string
	// Package has the test, by its path in the module, and Test is its name.
	Package, Test string
}

// Rows are all attacks, but those by bytes that no client would send: see Parsers.
func Rows() []Row {
	const here = "internal/attack"
	return []Row{
		// Strangers, at each listener.
		{"every listener", "has a row here", here, "TestAttackListenersAreKnown"},
		{"every listener", "memory before anybody is known", here, "TestMemory"},
		{"every listener", "nothing said, half a handshake, a byte at a time", here, "TestAttackSilence"},
		{"every listener", "TLS 1.0 to 1.2, plain text, another protocol", here, "TestAttackDowngrade"},
		{"every listener", "certificates of every wrong kind", here, "TestAttackCertificates"},
		{"every listener", "credentials that are not good, or not for that", here, "TestAttackLogins"},
		{"every listener", "names that control a terminal, a log or a page", here, "TestAttackNames"},
		{"every listener of HTTPS", "thousands connect, ask and stay", here, "TestAttackWebCrowd"},
		{"every listener of HTTPS", "who has to go is told why", here, "TestAttackCrowdIsToldWhy"},
		{"mqtt, amqp", "hundreds connect and do not log in", here, "TestAttackCrowd"},
		{"mqtt, amqp", "hundreds guess passwords, and wait", here, "TestAttackGuessers"},
		{"mqtt, amqp, HTTPS", "what thousands hold together", here, "TestMemoryOfMany"},
		{"mqtt, amqp, HTTPS", "which of too many has to go", "internal/strangers", "TestEnter"},
		{"mqtt, amqp, HTTPS", "which of too many guesses is not verified", "internal/strangers", "TestQueue"},
		{"mqtt, amqp, HTTPS", "a crowd that guesses, and somebody from elsewhere", "", "TestGuessersElsewhere"},
		{"every listener of HTTPS", "which of too many has to go", "internal/strangers", "TestRoom"},
		{"every listener of HTTPS", "a crowd from many addresses of one network", "internal/strangers", "TestNetworks"},
		{"provision, open", "a crowd from many addresses of one network", "provision/stranger", "TestOneNetwork"},
		{"every listener of HTTPS", "requests in requests, paths out of paths", here, "TestAttackRequests"},
		{"every listener with TLS", "a handshake that is longer than one", "internal/listener", "TestLongHandshake"},
		{"nats, cluster", "strangers of all sorts, and what the operator is told", "", "TestStrangers"},
		{"nats", "silence after the handshake", "", "TestSilentAfterHandshake"},
		{"nats, cluster", "hundreds stand silent", "", "TestSilentCrowd"},
		{"nats", "more handshakes than the rate", "", "TestFlood"},
		{"nats", "a hundred guess passwords", "", "TestGuessers"},
		{"mqtt, amqp, HTTPS", "hundreds guess passwords, and do not wait", "", "TestGuessersGiveUp"},
		{"gateway", "strangers, other regions, removed regions", "", "TestStrangersAtTheGateway"},
		{"leaf", "strangers, users, administrators, tokens", "", "TestLinkStrangers"},
		{"leaf", "links from where they may not come", "", "TestSiteNetworks"},
		{"cluster", "the operator's own certificates", "", "TestOwnAuthorityAtTheMesh"},
		{"mqtt", "packets that no client sends", "mqtt", "TestStrangers"},
		{"mqtt", "ten thousand connect", "mqtt", "TestConnectFlood"},
		{"mqtt", "a byte a second", "mqtt", "TestOneByteASecond"},
		{"mqtt", "a reader that does not read", "mqtt", "TestSlowReader"},
		{"mqtt", "pings without an end", "mqtt", "TestPings"},
		{"mqtt", "more retained than may be", "mqtt", "TestRetainedFlood"},
		{"mqtt", "topics and names that are too long", "mqtt", "TestLongTexts"},
		{"mqtt", "a message of the bus that has no topic", "mqtt", "TestEmptyTopic"},
		{"mqtt", "the contract of protocols", "mqtt", "TestContract"},
		{"amqp", "frames and headers that no client sends", "amqp", "TestStrangers"},
		{"amqp", "frames out of place", "amqp", "TestFramesOutOfPlace"},
		{"amqp", "a reader that does not read", "amqp", "TestSlowReader"},
		{"amqp", "logins that are refused, without a reason", "amqp", "TestRefusalsHaveCodes"},
		{"amqp", "the contract of protocols", "amqp", "TestContract"},
		{"provision", "every sort of credentials", "provision/stranger", "TestIsolated"},
		{"provision", "too much, or nothing, said", "provision/stranger", "TestRefused"},
		{"provision", "a flood of requests for an identity", "provision", "TestFlood"},
		{"provision", "plain text on the network", "provision/stranger", "TestPlaintext"},
		{"open", "any credentials, and another account", "provision/stranger", "TestOpenIsIsolated"},
		{"metrics", "who sees them", "probe", "TestWhoSees"},
		{"sse", "requests that are refused", "change/sse", "TestRefused"},
		{"console", "requests of other pages", "console", "TestOtherOrigins"},
		{"console", "headers of every answer", "console", "TestPage"},
		{"console", "passwords that are guessed", "console", "TestGuessing"},
		{"console", "ways in, and cookies", "console", "TestWaysIn"},
		{"console", "more than the role allows", "console", "TestRights"},
		{"console", "a session after a restart", "console", "TestRestart"},
		{"console", "a session that has expired", "console", "TestExpiry"},
		{"console", "names on the pages, in a browser", "console", "TestPages"},
		// Somebody who may be there, on another account.
		{"accounts", "every door of NATS and of MQTT", "", "TestAttacks"},
		{"accounts", "the same through gateways and links of sites", "", "TestAttacksByLinks"},
		{"accounts", "every door of AMQP", here, "TestAttackAccountsByAMQP"},
		{"accounts", "names of streams by MQTT", here, "TestAttackAccountsByMQTT"},
		{"roles", "what the engine refuses", "", "TestEngineRefuses"},
		{"roles", "topics by AMQP", "amqp", "TestTopicRights"},
		{"roles", "rights of AMQP", "amqp", "TestPermissions"},
		{"roles", "rights of MQTT", "mqtt", "TestPermissions"},
		{"a site's link", "a header that is forged", "internal/broker", "TestLeafCannotForge"},
		// Credentials.
		{"credentials", "a user that is denied while it logs in", "", "TestDenialRacesWithLogin"},
		{"credentials", "denied while a node was down", "", "TestDeniedWhileDown"},
		{"credentials", "denied across regions and sites", "", "TestDenialAcross"},
		{"credentials", "denied at another node, by AMQP", "amqp", "TestDeniedAtAnotherNode"},
		{"credentials", "what the refused are told", "", "TestRefusals"},
		{"credentials", "a token that is used twice", "", "TestEnrolledUser"},
		{"credentials", "tokens of another kind, and spent", "enroll", "TestPreflightUnfitToken"},
		{"credentials", "a false server at enrollment", "enroll", "TestDialRefuses"},
		{"credentials", "an old TLS at enrollment", "enroll", "TestDialOldTLS"},
		{"credentials", "an expired, forged or foreign proof of a machine", "provision", "TestToken"},
		{"credentials", "a login without a certificate, where it is demanded", "", "TestCertificateRequired"},
		{"credentials", "a user that poses as a node", "", "TestClientCertificateAsServer"},
		{"credentials", "each kind ends while somebody is there, and is shown again", here, "TestAttackExpiry"},
		{"credentials", "JWTs without a signature, or of another key", here, "TestAttackTokens"},
		{"credentials", "bearer tokens that have expired, or are another's", "identity", "TestBearer"},
		// Renewals, and what a target takes.
		{"renewal", "of a user that was denied, or by another", "", "TestRenew"},
		{"renewal", "a chain, a key or a name that is wrong", "certmanager", "TestWrongChain"},
		{"renewal", "certificates of every wrong kind, of an authority", "certmanager", "TestWrongChains"},
		{"renewal", "chains that no client takes", "cert", "TestServable"},
		{"renewal", "the same, delivered to a target", "cert", "TestWrongDelivery"},
		{"renewal", "requests for certificates that are wrong, or ask for more", "internal/grant", "TestWrongRequests"},
		{"renewal", "the same, of an authority of ACME", "certmanager/acme", "TestWrongChain"},
		{"renewal", "a certificate that is forged", "cert", "TestForgedCertificate"},
		{"renewal", "reports that are forged", "certmanager", "TestForgedReports"},
		// Signatures of messages.
		{"signing", "each thing that is signed, changed; another account", "signing", "TestWhatIsChanged"},
		{"signing", "a clock that is off", "signing", "TestClocks"},
		{"signing", "a key that has expired", "signing", "TestExpiredKey"},
		{"signing", "more than is remembered", "signing", "TestMemory"},
		{"signing", "replayed, stolen, altered, denied, at every node", "internal/signed", "TestRequired"},
		{"signing", "replayed after a restart", "internal/signed", "TestRestart"},
		{"signing", "more than the signer may", "internal/signed", "TestRights"},
		{"signing", "the same by MQTT", "internal/signed", "TestMQTT"},
		{"signing", "the same by AMQP", "internal/signed", "TestAMQP"},
		// Secrets.
		{"secrets", "in logs, errors and on the bus", "", "TestSecretsStayHidden"},
		{"secrets", "in all that a node writes, says and shows", here, "TestSecrets"},
		{"secrets", "of accounts at authorities", "certmanager/acme", "TestSecrets"},
		{"secrets", "of sources", "change/outbox", "TestSecrets"},
		{"secrets", "in frames that are printed", "amqp/frame", "TestSecretsDoNotShow"},
		{"secrets", "in credentials that are printed", "identity", "TestSecretsAreNotPrinted"},
		// Terminals, and what comes from outside.
		{"openstack", "hosts that are paths, escapes, lines, or without an end", "internal/openstack", "TestHostileHosts"},
		{"audit of files", "pipes, devices, links out of a copy, lines and nests without an end", "internal/hardening", "TestHostileFiles"},
		{"audit of files", "groups of groups that no machine counts", "internal/hardening", "TestGroupsOfGroups"},
		{"amqp import", "names that are paths, escapes, lines, and the fleet's own account", "internal/definitions", "TestHostileNames"},
		{"hub", "a broker that says all that it can", "hub", "TestHostileHub"},
		{"terminals", "what is printed", "internal/document", "TestEscape"},
	}
}

// A Parser reads what others send.
type Parser struct {
	// Package has it, Reads says what it reads, and Fuzz are the targets.
	Package, Reads string
	Fuzz           []string
}

// Parsers are the packages that read what somebody sent whom nobody has to trust, each with
// a target.
func Parsers() []Parser {
	return []Parser{
		{"amqp", "connections, logins, messages of the bus", []string{"FuzzConnection", "FuzzInward", "FuzzMechanism"}},
		{"amqp/frame", "frames, methods, tables, properties", []string{"FuzzFrames", "FuzzMethod", "FuzzTable", "FuzzProperties"}},
		{"amqp/journal", "notes of what was done with messages", []string{"FuzzNotes"}},
		{"amqp/queue", "records of durable queues, messages", []string{"FuzzDecodeRecord", "FuzzNewMessage"}},
		{"amqp/right", "names and keys as rights", []string{"FuzzNamed", "FuzzKeyed"}},
		{"amqp/tunnel", "what nodes pass on to one another", []string{"FuzzHear"}},
		{"cert", "certificates, reports, names, keys of targets", []string{"FuzzParseTargetKey", "FuzzReadable", "FuzzServerName", "FuzzVerify", "FuzzApply", "FuzzUnmarshal"}},
		{"cert/proxy", "pairs of files, answers of kernels", []string{"FuzzPair", "FuzzKernelAddr"}},
		{"certmanager", "settings, chains, keys that are brought", []string{"FuzzParseSettings", "FuzzParseChain", "FuzzPrivateKey"}},
		{"certmanager/acme", "what authorities answer", []string{"FuzzChain", "FuzzPersistent"}},
		{"certmanager/dns", "settings of providers", []string{"FuzzSettings"}},
		{"change", "notices, keys", []string{"FuzzRead", "FuzzQuick", "FuzzParseKey"}},
		{"change/mysql", "statements", []string{"FuzzStatement"}},
		{"change/sqlite", "keys of rows", []string{"FuzzDecodeKey"}},
		{"change/sse", "what is announced", []string{"FuzzDecode"}},
		{"console", "requests of browsers", []string{"FuzzRequest"}},
		{"enroll", "answers to a joiner", []string{"FuzzReply"}},
		{"hub/shovel", "routes", []string{"FuzzParseRoute"}},
		{"hub", "marks and messages of brokers", []string{"FuzzMark", "FuzzTelling"}},
		{"identity", "tokens, hashes, senders, names in certificates, records", []string{"FuzzCheckGuest", "FuzzVerifyPassword", "FuzzParseToken", "FuzzLearn", "FuzzDirectoryApply", "FuzzSender", "FuzzCertificateName", "FuzzScram"}},
		{"internal/audit", "exports", []string{"FuzzOpen"}},
		{"internal/backup", "backups", []string{"FuzzRead"}},
		{"internal/broker", "headers that clients make", []string{"FuzzPlain", "FuzzExact"}},
		{"internal/config", "settings, and those of others", []string{"FuzzLoad", "FuzzImportBindplane", "FuzzImportChoria"}},
		{"internal/grant", "requests for certificates", []string{"FuzzCSR"}},
		{"internal/definitions", "what RabbitMQ exports, and its regular expressions", []string{"FuzzParse", "FuzzTranslate"}},
		{"internal/hardening", "addresses, definitions of others", []string{"FuzzTransport", "FuzzDefinitions"}},
		{"internal/hardening/conf", "settings of others", []string{"FuzzReaders"}},
		{"internal/hardening/erlang", "terms of Erlang", []string{"FuzzParse"}},
		{"internal/hardening/probe", "answers of brokers", []string{"FuzzStart"}},
		{"internal/openstack", "lists of hosts", []string{"FuzzParseHosts"}},
		{"internal/loginlink", "login links", []string{"FuzzOpen"}},
		{"internal/wire", "the engine's own protocol", []string{"FuzzInbox"}},
		{"ledger", "snapshots", []string{"FuzzSnapshot"}},
		{"mqtt", "packs of messages", []string{"FuzzUnpack"}},
		{"mqtt/mapping", "topics", []string{"FuzzTopic"}},
		{"mqtt/packet", "packets", []string{"FuzzDecode", "FuzzReader"}},
		{"provision", "demands, answers, claims, rules", []string{"FuzzDemand", "FuzzAnswer", "FuzzClaim", "FuzzRules"}},
		{"provision/stranger", "what a machine says first", []string{"FuzzConnect"}},
		{"signing", "signatures", []string{"FuzzParse"}},
		{"trace", "headers of traces", []string{"FuzzParse"}},
	}
}

// Trusting are the packages that read something and have no target, and why.
func Trusting() map[string]string {
	const (
		objects = "objects of JSON, by the library, with permissions asked before"
		answers = "answers of the fleet, which a client trusts"
		disk    = "files of this machine"
		tests   = "for tests and benches"
	)
	return map[string]string{
		"": objects, "admin": answers, "lease": objects, "internal/ask": objects, "internal/links": objects, "internal/region": objects, "internal/keys": "records of the ledger: FuzzLearn reads them",
		"internal/demo": answers, "internal/check": answers, "internal/home": disk, "internal/localcheck": disk, "internal/nodetls": disk, "internal/rules": disk,
		"internal/target": disk, "internal/document": "what is printed", "internal/issuers": disk, "internal/bench": tests, "internal/natsload": tests, "fleetbustest": tests, "cert/certtest": tests,
		"certmanager/certmanagertest": tests, "certmanager/private": disk, "amqp/route": "tables that amqp/frame has read",
		"cmd/fleetbus/internal/accounts": answers, "cmd/fleetbus/internal/command": answers, "cmd/fleetbus/internal/nodes": answers, "deploy/sbom": disk, "internal/attack/run": tests,
		"internal/bench/page": tests, "internal/chaos": tests, "cmd/fleetbus/internal/clouds": answers, "internal/signed": "answers of nodes; signatures are read by signing",
	}
}
