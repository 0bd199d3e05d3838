package hardening

import (
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"

	"github.com/fleetbus/fleetbus/internal/hardening/erlang"
)

func itoa(n int) string { return strconv.Itoa(n) }

// rabbit judges all brokers of RabbitMQ, and returns how many there are.
func (a *audit) rabbit() int {
	a.daemon = []string{"rabbitmq"}
	nodes := a.nodes()
	for _, n := range nodes {
		a.readNode(n)
		for _, d := range a.namedDefinitions(n) {
			if !slices.Contains(n.definitions, d) {
				n.definitions = append(n.definitions, d)
			}
		}
		for _, f := range n.definitions {
			a.define(n, f)
		}
		if n.main != nil {
			a.rabbitListeners(n)
			a.rabbitTLS(n)
			a.rabbitLogin(n)
			a.rabbitUsers(n)
			a.rabbitPeers(n)
			a.rabbitManagement(n)
			a.rabbitProtocols(n)
			a.rabbitLimits(n)
			a.rabbitLog(n)
			a.rabbitSecrets(n)
			a.pass(rulePlugins, in(n.main), "nothing says that a setting is not read, or needs a plug-in that is not enabled")
		}
		if n.cookie != nil {
			a.cookie(n)
		}
	}
	return len(nodes)
}

// namedDefinitions are files of definitions that the settings name.
func (a *audit) namedDefinitions(n *node) (all []*file) {
	for _, key := range []string{"load_definitions", "management.load_definitions", "definitions.local.path"} {
		if v, ok := n.get(key); ok {
			if f := a.disk.find(a, v.value, n.main); f != nil && rabbitFile(f) == "definitions" {
				all = append(all, f)
			}
		}
	}
	return all
}

// has reports whether a plug-in is enabled; known is false if nothing says so.
func (n *node) has(plugin string) (is, known bool) {
	return slices.Contains(n.enabled, plugin), n.pluginsRead
}

// rabbitListeners judges rules 1 and 2.
func (a *audit) rabbitListeners(n *node) {
	fix := "listeners.tcp = none"
	if n.classic != nil {
		fix = "{tcp_listeners, []}"
	}
	none := n.is("listeners.tcp", "none")
	plain := n.below("listeners.tcp")
	if none {
		plain = nil
		a.pass("1", n.at("listeners.tcp", n.main), "there is no listener without TLS")
	} else if len(plain) == 0 {
		where := "all interfaces"
		at := in(n.main)
		if v, ok := n.variables.get("NODE_IP_ADDRESS"); ok {
			where, at = v.value, v.at
		}
		a.fail("1", at, fix, "listeners.tcp is not set: RabbitMQ listens without TLS on port 5672 of %s by default", where)
	}
	if none {
		for _, name := range []string{"NODE_PORT", "NODE_IP_ADDRESS"} {
			if v, ok := n.variables.get(name); ok {
				a.unknown("1", v.at, "remove it", "some versions open a listener without TLS where %s says, whatever listeners.tcp says", name)
			}
		}
	}
	for _, v := range plain {
		host, port, ok := splitAddress(v.value)
		switch {
		case !ok:
			a.fail("1", v.at, fix, "a listener without TLS has an address that is none")
		case local(host):
			a.add("1", Pass, v.at, "", "the listener without TLS on port %d is on loopback", port)
		case everywhere(host):
			a.fail("1", v.at, fix, "port %d of all interfaces speaks without TLS", port)
		default:
			a.fail("1", v.at, fix, "%s:%d speaks without TLS", host, port)
		}
	}
	tls := n.tlsListeners()
	for _, v := range tls {
		host, port, ok := splitAddress(v.value)
		if !ok {
			a.fail("2", v.at, "listeners.ssl.1 = ADDRESS:5671", "a TLS listener has an address that is none")
			continue
		}
		a.listenerOn(host, itoa(port), v.at, "listeners.ssl.1 = ADDRESS:5671, with the address of the management network")
	}
	if len(tls) == 0 {
		for _, rule := range []string{"2", "3", "4"} {
			if len(n.below("ssl_options")) == 0 || rule == "2" {
				a.add(rule, NotApplicable, in(n.main), "", "there is no TLS listener: see rule 1")
			}
		}
		if none {
			a.warn("1", n.at("listeners.ssl", n.main), "listeners.ssl.1 = ADDRESS:5671", "there is no listener at all: clients reach nothing")
		}
	}
}

func (n *node) tlsListeners() []setting {
	if n.is("listeners.ssl", "none") {
		return nil
	}
	return n.below("listeners.ssl")
}

// rabbitTLS judges rules 3 to 6, 9 and 10.
func (a *audit) rabbitTLS(n *node) {
	options := len(n.below("ssl_options")) > 0
	if len(n.tlsListeners()) > 0 || options {
		a.peers(n)
		a.versions(n, "ssl_options", "the TLS listener")
		if v, ok := n.get("ssl_options.cacertfile"); ok {
			a.bundle(v.value, v.at, n.main)
		} else if len(n.below("ssl_options.cacerts"))+len(n.below("trust_store")) > 0 {
			a.unknown("4", in(n.main), "", "authorities come from elsewhere than ssl_options.cacertfile, which is not judged")
		} else {
			a.fail("4", in(n.main), "ssl_options.cacertfile = FILE", "ssl_options.cacertfile is not set: there is no authority that clients' certificates are held against")
		}
		for _, key := range []string{"certfile", "keyfile"} {
			if _, ok := n.get("ssl_options." + key); !ok && len(n.tlsListeners()) > 0 {
				a.warn("6", in(n.main), "ssl_options."+key+" = FILE", "ssl_options.%s is not set: no handshake succeeds", key)
			}
		}
		a.add("10", Pass, in(n.main), "", "TLS is Erlang's, with OpenSSL's libcrypto: rabbitmq-diagnostics status has the version of both")
		a.tlsOptions(n)
	}
	for _, key := range n.keys {
		v := n.by[key]
		switch {
		case strings.HasSuffix(key, ".keyfile"):
			a.key(v.value, v.at, n.main)
		case strings.HasSuffix(key, ".certfile"):
			var hosts []string
			if key == "ssl_options.certfile" {
				for _, l := range n.tlsListeners() {
					if host, _, ok := splitAddress(l.value); ok {
						hosts = append(hosts, host)
					}
				}
			}
			server := !strings.Contains(key, "auth_") && !strings.Contains(key, "cluster_formation") && !strings.Contains(key, "client")
			a.certificate(v.value, v.at, n.main, server, hosts)
		}
	}
	for _, prefix := range []string{"management.ssl", "management.listener.ssl_opts", "prometheus.ssl", "web_mqtt.ssl", "web_stomp.ssl"} {
		if len(n.below(prefix+".versions")) > 0 {
			a.versions(n, prefix, prefix)
		}
	}
}

// peers judges rule 3.
func (a *audit) peers(n *node) {
	const verify, must = "ssl_options.verify", "ssl_options.fail_if_no_peer_cert"
	v, ok := n.get(verify)
	switch {
	case !ok:
		a.fail("3", in(n.main), verify+" = verify_peer", "%s is not set: the default is verify_none, and no client's certificate is looked at", verify)
	case !strings.EqualFold(v.value, "verify_peer"):
		a.fail("3", v.at, verify+" = verify_peer", "clients' certificates are not verified")
	}
	m, ok := n.get(must)
	switch {
	case !ok:
		a.fail("3", in(n.main), must+" = true", "%s is not set: the default is false, and a client without a certificate is let in", must)
	case !strings.EqualFold(m.value, "true"):
		a.fail("3", m.at, must+" = true", "a client without a certificate is let in")
	}
	a.pass("3", v.at, "a client has to have a certificate, which is verified")
}

// versions judges rule 6 of the options below prefix.
func (a *audit) versions(n *node, prefix, what string) {
	fix := prefix + ".versions.1 = tlsv1.3, and .2 = tlsv1.2"
	list := n.below(prefix + ".versions")
	for _, v := range list {
		switch strings.ToLower(strings.Trim(v.value, "'")) {
		case "tlsv1.2", "tlsv1.3":
		default:
			a.fail("6", v.at, fix, "%s speaks %s", what, v.value)
		}
	}
	if len(list) == 0 {
		// What the application ssl has is not asked: RabbitMQ takes what Erlang was built with.
		a.fail("6", in(n.main), fix, "%s.versions is not set: RabbitMQ then takes every version that Erlang has, TLS 1.0 and 1.1 too", prefix)
	}
	for _, v := range n.below(prefix + ".ciphers") {
		if weak := weakCipher(v.value); weak != "" {
			a.fail("6", v.at, "remove it", "%s takes a cipher with %s: %s", what, weak, v.value)
		}
	}
	if len(list) > 0 {
		a.pass("6", list[0].at, "%s speaks TLS 1.2 or newer", what)
	}
}

// weakCipher says what is weak in a cipher; empty if nothing is.
func weakCipher(name string) string {
	upper := strings.ToUpper(name)
	for _, weak := range []string{"RC4", "3DES", "DES-CBC", "DES_CBC", "NULL", "EXPORT", "EXP-", "MD5", "ADH-", "AECDH-", "_ANON_", "ANON", "RC2", "IDEA", "SEED"} {
		if strings.Contains(upper, weak) && !strings.HasPrefix(upper, "!") && !strings.HasPrefix(upper, "-") {
			return strings.Trim(weak, "-_")
		}
	}
	return ""
}

// tlsOptions judges the vendor's rules of TLS.
func (a *audit) tlsOptions(n *node) {
	for _, bad := range []struct{ key, value, fix, why string }{
		{"honor_cipher_order", "false", "true", "the client chooses the cipher"},
		{"honor_ecc_order", "false", "true", "the client chooses the curve"},
		{"client_renegotiation", "true", "false", "a client may renegotiate, which costs the broker and not the client"},
		{"secure_renegotiate", "false", "true", "renegotiation that is not secure is allowed"},
	} {
		for _, prefix := range []string{"ssl_options", "management.ssl", "management.listener.ssl_opts"} {
			if key := prefix + "." + bad.key; n.is(key, bad.value) {
				a.warn(ruleTLS, n.by[key].at, key+" = "+bad.fix, "%s", bad.why)
			}
		}
	}
	if v, ok := n.get("ssl_options.depth"); ok {
		if depth, err := strconv.Atoi(v.value); err != nil || depth > 4 {
			a.warn(ruleTLS, v.at, "ssl_options.depth = 2", "a chain of %s authorities is taken: an authority of your own needs 1 or 2", v.value)
		}
	}
	if n.is("ssl_allow_poodle_attack", "true") {
		a.fail(ruleTLS, n.by["ssl_allow_poodle_attack"].at, "remove it", "SSL 3.0 is allowed again, with the fault that is called POODLE")
	}
	a.pass(ruleTLS, in(n.main), "the options of TLS are those that the vendor asks for, or its defaults")
}

// version is that of the broker, as far as somebody said so.
func (a *audit) version(n *node) string {
	if a.o.RabbitMQ != "" {
		return a.o.RabbitMQ
	}
	return n.defined
}

// rabbitLogin judges rule 13.
func (a *audit) rabbitLogin(n *node) {
	fix := "auth_mechanisms.1 = EXTERNAL, and no other; ssl_cert_login_from = common_name"
	list := n.below("auth_mechanisms")
	if len(list) == 0 {
		what := "PLAIN and AMQPLAIN"
		if old, known := before(a.version(n), 4, 0); known && !old {
			what += " and ANONYMOUS"
			a.fail("13", in(n.main), fix, "auth_mechanisms is not set: %s are offered by default", what)
			return
		}
		a.warn("13", in(n.main), fix, "auth_mechanisms is not set: %s are offered by default, and EXTERNAL is not", what)
		return
	}
	external := false
	for _, v := range list {
		switch strings.ToUpper(v.value) {
		case "EXTERNAL":
			external = true
			if is, known := n.has("rabbitmq_auth_mechanism_ssl"); known && !is {
				a.warn(rulePlugins, in(n.plugins), "rabbitmq-plugins enable rabbitmq_auth_mechanism_ssl", "EXTERNAL is offered, and the plug-in that has it is not enabled")
			}
		case "PLAIN", "AMQPLAIN":
			a.warn("13", v.at, fix, "login by password is offered: %s", v.value)
		case "ANONYMOUS", "RABBIT-CR-DEMO":
			a.fail("13", v.at, fix, "a login that proves nothing is offered: %s", v.value)
		default:
			a.unknown("13", v.at, fix, "the mechanism %s is not known here", v.value)
		}
	}
	if !external {
		a.warn("13", list[0].at, fix, "EXTERNAL, the login by certificate, is not offered")
	}
	a.pass("13", list[0].at, "clients log in by their certificates alone")
}

// rabbitUsers judges rules 11 and 14 of what the settings have, and the vendor's on loopback.
func (a *audit) rabbitUsers(n *node) {
	user, made := n.get("default_user")
	pass, has := n.get("default_pass")
	name := "guest"
	if made {
		name = user.value
	}
	switch {
	case made && strings.EqualFold(user.value, "guest"):
		a.fail("11", user.at, "rabbitmqctl delete_user guest, and no default_user", "the user guest is made at the first start")
	case made:
		a.pass("11", user.at, "the first start makes another user than guest")
	}
	if has && strings.EqualFold(pass.value, "guest") {
		a.fail("11", pass.at, "remove it", "the password of the first user is that of guest")
	} else if has {
		a.password(name, pass.value, pass.at)
	}
	for _, v := range n.below("default_users") {
		if strings.HasSuffix(v.key, ".password") {
			a.password(strings.Split(v.key, ".")[1], v.value, v.at)
		}
	}
	if v, ok := n.get("anonymous_login_user"); ok && !strings.EqualFold(v.value, "none") {
		a.fail("11", v.at, "anonymous_login_user = none", "who shows nothing is let in as %s", v.value)
	} else if old, known := before(a.version(n), 4, 0); known && !old && !ok && len(n.definitions) == 0 && !made {
		a.fail("11", in(n.main), "anonymous_login_user = none", "anonymous_login_user is not set: RabbitMQ %s lets in as guest who shows nothing", a.version(n))
	}
	fix := "remove it: guest is for loopback alone unless it is there"
	switch v, ok := n.get("loopback_users"); {
	case ok && strings.EqualFold(v.value, "none"):
		a.fail(ruleLoopback, v.at, fix, "all users, guest too, may log in from anywhere")
	default:
		for _, u := range n.below("loopback_users") {
			if !strings.EqualFold(u.value, "true") {
				a.fail(ruleLoopback, u.at, fix, "%s may log in from anywhere", strings.TrimPrefix(u.key, "loopback_users."))
			}
		}
		a.pass(ruleLoopback, n.at("loopback_users.guest", n.main), "guest is for loopback alone")
	}
	for _, right := range []string{"configure", "write", "read"} {
		if v, ok := n.get("default_permissions." + right); ok && made && everything(v.value) {
			a.fail("15", v.at, "give it what it needs, such as ^nova", "the first user has the right to %s everything", right)
		}
	}
	for _, prefix := range []string{"mqtt", "stomp"} {
		for _, key := range []string{prefix + ".default_pass", prefix + ".default_pass.passcode", prefix + ".default_user.passcode"} {
			if v, ok := n.get(key); ok {
				a.fail("14", v.at, "remove it", "who shows no password is given one by %s", prefix)
				a.secret(v.value)
			}
		}
	}
	if n.is("password_hashing_module", "rabbit_password_hashing_md5") {
		a.fail(ruleHashes, n.by["password_hashing_module"].at, "password_hashing_module = rabbit_password_hashing_sha512", "passwords are hashed by MD5")
	} else {
		a.pass(ruleHashes, n.at("password_hashing_module", n.main), "passwords are hashed by SHA-256 or SHA-512")
	}
}

// rabbitPeers judges rule 7.
func (a *audit) rabbitPeers(n *node) {
	args := []setting{}
	for _, name := range []string{"SERVER_ADDITIONAL_ERL_ARGS", "SERVER_ERL_ARGS", "SERVER_START_ARGS"} {
		if v, ok := n.variables.get(name); ok {
			args = append(args, v)
		}
	}
	for _, u := range a.unitsOf("rabbitmq-server") {
		for _, v := range u.all("Environment") {
			if strings.Contains(v.value, "ERL_ARGS") {
				args = append(args, v)
			}
		}
	}
	fix := "rabbitmq-env.conf: SERVER_ADDITIONAL_ERL_ARGS=\"-proto_dist inet_tls -ssl_dist_optfile FILE\", and the same for CTL_ERL_ARGS"
	tls, options := setting{}, ""
	for _, v := range args {
		words := strings.Fields(strings.ReplaceAll(v.value, "'", " "))
		for i, w := range words {
			next := ""
			if i+1 < len(words) {
				next = strings.Trim(words[i+1], `"`)
			}
			switch {
			case w == "-proto_dist" && (next == "inet_tls" || next == "inet6_tls"):
				tls = v
			case w == "-ssl_dist_optfile":
				options = next
			case w == "-setcookie":
				a.secret(next)
				a.fail("7", v.at, "keep it in .erlang.cookie, with mode 0400", "the cookie stands on a command line, which everybody on the machine reads")
			}
		}
	}
	if v, ok := n.get("distributed_cookie"); ok {
		a.secret(v.value)
		a.fail("7", v.at, "keep it in .erlang.cookie, with mode 0400", "the cookie stands among the settings")
	}
	for _, name := range []string{"ERLANG_COOKIE", "NODE_COOKIE"} {
		if v, ok := n.variables.get(name); ok {
			a.secret(v.value)
			a.warn("7", v.at, "keep it in .erlang.cookie, with mode 0400", "the cookie stands among the variables")
		}
	}
	clustered := append(n.below("cluster_formation.classic_config"), n.below("cluster_formation.dns")...)
	clustered = append(clustered, n.below("cluster_nodes")...)
	if v, ok := n.get("cluster_formation.peer_discovery_backend"); ok {
		clustered = append(clustered, v)
	}
	switch {
	case tls.key != "":
		a.distribution(n, options, tls)
	case len(clustered) > 0:
		a.fail("7", clustered[0].at, fix, "brokers of a cluster speak to each other in clear")
	case len(n.dist) > 0:
		a.fail("7", in(n.dist[0]), fix, "the options for TLS between brokers are there, and nothing switches it on")
	}
	if len(clustered) > 0 {
		v, ok := n.get("cluster_partition_handling")
		switch {
		case !ok:
			a.warn(rulePartition, in(n.main), "cluster_partition_handling = pause_minority", "cluster_partition_handling is not set: the default is ignore")
		case strings.EqualFold(v.value, "ignore"):
			a.warn(rulePartition, v.at, "cluster_partition_handling = pause_minority", "both halves of a cluster that fell apart go on")
		default:
			a.add(rulePartition, Pass, v.at, "", "partitions are handled by %s", v.value)
		}
	} else if v, ok := n.get("cluster_partition_handling"); ok && strings.EqualFold(v.value, "ignore") {
		a.warn(rulePartition, v.at, "cluster_partition_handling = pause_minority", "both halves of a cluster that fell apart go on")
	} else {
		a.add(rulePartition, NotApplicable, in(n.main), "", "nothing says that the broker is in a cluster")
	}
}

// distribution judges the options for TLS between brokers.
func (a *audit) distribution(n *node, options string, on setting) {
	f := a.disk.find(a, options, n.env0(n.main))
	if f == nil && len(n.dist) > 0 {
		f = n.dist[0]
	}
	if f == nil {
		if strings.Contains(on.value, "verify_peer") {
			a.add("7", Pass, on.at, "", "brokers speak TLS to each other, and verify each other")
			return
		}
		a.unknown("7", on.at, "name the file, or --root DIR", "brokers speak TLS to each other, and the file of ssl_dist_optfile is not among the files here: whether they verify each other is unknown")
		return
	}
	f.used = true
	terms, err := erlang.Parse(f.Data)
	if err != nil || len(terms) == 0 {
		a.erlangProblem(f, orMissing(err))
		a.unknown("7", in(f), "", "the options for TLS between brokers cannot be read")
		return
	}
	fix := "{verify, verify_peer}, and {fail_if_no_peer_cert, true} for server"
	seen := map[string]map[string]erlang.Term{}
	for _, side := range terms[0].Items {
		if name, list, ok := side.Pair(); ok {
			seen[name] = map[string]erlang.Term{"": side}
			for _, item := range list.Items {
				if k, v, ok := item.Pair(); ok {
					seen[name][k] = v
					switch k {
					case "keyfile":
						a.key(v.Text, place{f.Path, item.Line, k + " " + v.Text}, f)
					case "certfile":
						a.certificate(v.Text, place{f.Path, item.Line, k + " " + v.Text}, f, false, nil)
					case "password":
						a.secret(v.Text)
					}
				}
			}
		}
	}
	for _, want := range []struct{ side, key, value, why string }{
		{"server", "verify", "verify_peer", "a broker does not verify who connects to it as its peer"},
		{"server", "fail_if_no_peer_cert", "true", "a broker takes a peer without a certificate"},
		{"client", "verify", "verify_peer", "a broker does not verify the peer that it connects to"},
	} {
		v, ok := seen[want.side][want.key]
		if !ok {
			v = seen[want.side][""]
		}
		if !ok || !v.Is(want.value) {
			at := in(f)
			if v.Line > 0 {
				at = place{f.Path, v.Line, "{" + want.key + ", " + v.Plain() + "}"}
				if !ok {
					at.text = ""
				}
			}
			a.fail("7", at, fix, "%s", want.why)
		}
	}
	if v, ok := seen["server"]["versions"]; ok {
		for _, each := range v.Items {
			if each.Text != "tlsv1.2" && each.Text != "tlsv1.3" {
				a.fail("6", place{f.Path, v.Line, "{versions, " + v.Plain() + "}"}, "tlsv1.2 and tlsv1.3 alone", "brokers speak %s to each other", each.Text)
			}
		}
	}
	a.pass("7", on.at, "brokers speak TLS to each other, and verify each other")
}

func orMissing(err error) error {
	if err != nil {
		return err
	}
	return &erlang.Error{Line: 1, Why: "it has no term"}
}

// env0 is the file of variables, or another one.
func (n *node) env0(other *file) *file {
	if n.env != nil {
		return n.env
	}
	return other
}

// cookie judges the cookie of Erlang.
func (a *audit) cookie(n *node) {
	f := n.cookie
	f.used = true
	text := strings.TrimSpace(string(f.Data))
	a.secret(text)
	good := a.modes("7", f, "the cookie", 0o177, Fail)
	if f.Mode.Perm() == 0o600 {
		a.warn("7", place{f.Path, 0, "mode 0600"}, "chmod 400 "+f.Abs, "the cookie may be written to: its mode is 0600, not 0400")
	}
	if len(text) < 16 || slices.Contains(publicPasswords(), strings.ToLower(text)) {
		a.fail("7", place{f.Path, 1, ""}, "make one of 20 random letters, the same on all brokers", "the cookie is guessed: it has %d letters, or stands in manuals", len(text))
	} else if good {
		a.add("7", Pass, place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "", "the cookie is for the broker alone")
	}
}

// rabbitSecrets judges who may read files with secrets, and write any of them.
func (a *audit) rabbitSecrets(n *node) {
	files := append(slices.Clone(n.conf), n.classic, n.advanced, n.env, n.plugins)
	files = append(files, n.dist...)
	for _, f := range files {
		if f == nil {
			continue
		}
		secret := false
		for _, key := range n.keys {
			v := n.by[key]
			last := key[strings.LastIndex(key, ".")+1:]
			if v.at.file == f.Path && (strings.Contains(last, "pass") && !strings.Contains(last, "module") || strings.Contains(last, "secret") || last == "distributed_cookie" || last == "passcode") {
				secret = true
				if !strings.Contains(key, "default_") {
					a.secret(v.value)
				}
			}
		}
		what, more := "the settings", fs.FileMode(0o022)
		if secret {
			what, more = "settings with a password", 0o137
		}
		rule := "24"
		if secret {
			rule = "14"
		}
		a.modes(rule, f, what, more, Fail)
	}
}
