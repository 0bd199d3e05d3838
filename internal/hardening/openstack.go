package hardening

import (
	"bytes"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/fleetbus/fleetbus/internal/hardening/conf"
)

// A service is one of OpenStack's, with the files that it reads.
type service struct {
	*settings // by section and key, with a slash between
	host      string
	project   string
	main      *file
	files     []*file
	links     []link
	authority string // the fingerprint of its file of authorities
}

// A link is an address that a service connects to.
type link struct {
	transport
	of *service
	at place
	// rpc says that it is for calls, and not for notifications.
	rpc bool
}

// projects are those whose files are known by their names.
func projects() []string {
	return []string{"nova", "neutron", "cinder", "keystone", "glance", "heat", "ironic", "manila", "octavia", "designate", "barbican", "magnum", "mistral", "murano", "sahara", "senlin", "trove", "zaqar", "watcher", "aodh", "ceilometer", "gnocchi", "panko", "cloudkitty", "masakari", "blazar", "congress", "freezer", "vitrage", "tacker", "zun", "cyborg", "placement", "quantum", "swift", "ironic-inspector"}
}

// roles are words that stand behind a project's name in the name of a file.
func roles() []string {
	return []string{"api", "compute", "conductor", "scheduler", "cell", "cell0", "cell1", "novncproxy", "metadata", "registry", "volume", "backup", "server", "agent", "l3", "dhcp", "engine", "central", "worker", "dist", "manage", "cache", "scrubber", "inspector", "housekeeping", "health", "listener", "notification", "api-cfn", "cfn", "share", "rootwrap", "super", "common", "cell2"}
}

// osloFile reports whether a file is one of a service that may speak of messages.
func osloFile(f *file) bool {
	if isUnit(f) || isFilter(f) || isConfinement(f) || bytes.Contains(f.Data, []byte("-----BEGIN")) {
		return false
	}
	base := strings.ToLower(filepath.Base(f.Path))
	if !strings.Contains(base, ".conf") && !strings.HasSuffix(base, ".ini") || strings.Contains(base, "paste") || strings.Contains(base, "policy") {
		return false
	}
	text := string(f.Data)
	if !lineBegins(bytes.TrimPrefix(f.Data, []byte("\ufeff")), "[") && !f.asked {
		return false // it has no section
	}
	for _, word := range []string{"transport_url", "oslo_messaging", "rabbit_", "rpc_backend", "qpid_", "kombu_", "oslo.messaging"} {
		if strings.Contains(text, word) {
			return true
		}
	}
	return slices.Contains(projects(), projectOf(f)) && strings.Contains(text, "[DEFAULT]")
}

// projectOf is the project whose file one is: by its name, or by its directory's.
func projectOf(f *file) string {
	name, _, _ := strings.Cut(strings.ToLower(filepath.Base(f.Path)), ".")
	for _, p := range projects() {
		if strings.HasSuffix(name, "-"+p) || strings.HasSuffix(name, "_"+p) {
			return p
		}
	}
	for _, try := range []string{name, strings.ToLower(filepath.Base(filepath.Dir(f.Path))), strings.ToLower(filepath.Base(filepath.Dir(filepath.Dir(f.Path))))} {
		try = strings.TrimSuffix(strings.TrimSuffix(try, ".d"), ".conf")
		if slices.Contains(projects(), try) {
			return try
		}
		if p, _, ok := strings.Cut(try, "-"); ok && slices.Contains(projects(), p) {
			return p
		}
	}
	return name
}

// hostOf says which machine a file is of: what it stands below before /etc, or its
// directory, or what its name has behind the project's.
func hostOf(f *file) string {
	slashed := filepath.ToSlash(f.Path)
	for _, top := range []string{"/etc/", "/usr/share/"} {
		if i := strings.Index(slashed, top); i >= 0 {
			return slashed[:i]
		}
	}
	project := projectOf(f)
	dir := filepath.Dir(f.Path)
	for strings.HasSuffix(dir, ".d") || strings.EqualFold(filepath.Base(dir), project) || strings.HasPrefix(strings.ToLower(filepath.Base(dir)), project+"-") && !strings.Contains(filepath.Base(f.Path), "-") {
		dir = filepath.Dir(dir)
	}
	name, more, _ := strings.Cut(strings.ToLower(filepath.Base(f.Path)), ".conf")
	if rest, ok := strings.CutSuffix(name, "-"+project); ok {
		return filepath.Join(dir, rest)
	}
	if rest, ok := strings.CutPrefix(name, project+"-"); ok && !slices.Contains(roles(), strings.Split(rest, "-")[0]) {
		return filepath.Join(dir, rest)
	}
	return filepath.Join(dir, strings.Trim(more, "."))
}

// services sorts the files that were found into services.
func (a *audit) services() (all []*service) {
	var fragments []*file
	for _, f := range a.disk.files {
		if !osloFile(f) {
			continue
		}
		name := strings.TrimSuffix(strings.ToLower(filepath.Base(f.Path)), ".conf")
		rest, _ := strings.CutPrefix(name, projectOf(f)+"-")
		second := rest != name && slices.Contains(roles(), strings.Split(rest, "-")[0]) && !slices.Contains([]string{"glance", "heat", "designate", "ironic-inspector"}, projectOf(f))
		if strings.HasSuffix(filepath.Dir(f.Path), ".d") || second {
			fragments = append(fragments, f)
			continue
		}
		all = append(all, &service{settings: newSettings(), host: hostOf(f), project: projectOf(f), main: f, files: []*file{f}})
	}
	slices.SortFunc(fragments, func(x, y *file) int { return strings.Compare(x.Path, y.Path) })
	for _, f := range fragments {
		dir := filepath.Dir(f.Path)
		added := false
		for _, s := range all {
			base := filepath.Dir(s.main.Path)
			if s.project == projectOf(f) && (base == dir || base == filepath.Dir(dir)) {
				s.files = append(s.files, f)
				added = true
			}
		}
		if !added {
			all = append(all, &service{settings: newSettings(), host: hostOf(f), project: projectOf(f), main: f, files: []*file{f}})
		}
	}
	return all
}

// openstack judges the files of services, and returns how many services there are.
func (a *audit) openstack() int {
	all := a.services()
	for _, s := range all {
		a.readService(s)
	}
	for _, s := range all {
		a.daemon = []string{s.project}
		a.connect(s)
		if len(s.links) == 0 {
			continue
		}
		a.serviceTLS(s)
		a.serviceLogin(s)
		a.serviceSecrets(s)
		a.serviceQueues(s)
	}
	a.across(all)
	a.brokerNames(all)
	return len(all)
}

// readService reads the files of a service.
func (a *audit) readService(s *service) {
	for _, f := range s.files {
		entries, problems := conf.Oslo(f.Data)
		if !f.used {
			a.problems(f, problems)
			if conf.Marked(f.Data) {
				a.unknown(ruleRead, place{file: f.Path, line: 1}, "save it without a byte order mark", "it begins with a byte order mark, with which the service does not start; it was judged without")
			}
		}
		f.used = true
		for _, e := range entries {
			section := e.Section
			if section != "DEFAULT" {
				section = strings.ToLower(section)
			}
			shown := e.Value
			if secretKey().MatchString(e.Key) {
				shown = hidden
			}
			at := place{f.Path, e.Line, "[" + e.Section + "] " + e.Key + " = " + shown}
			if e.Key == "transport_url" {
				if t, err := parseTransport(e.Value); err == nil {
					at.text = "[" + e.Section + "] transport_url = " + t.masked()
				} else {
					at.text = "[" + e.Section + "] transport_url = " + hidden
				}
			}
			a.knownOption(section, e.Key, at)
			s.put(section+"/"+e.Key, e.Value, at)
		}
	}
}

// rabbitOptions are the keys of [oslo_messaging_rabbit], with their old names.
func rabbitOptions() []string {
	return strings.Fields(`ssl ssl_version ssl_key_file ssl_cert_file ssl_ca_file ssl_enforce_hostname_verification ssl_enforce_fips_mode
		rabbit_use_ssl kombu_ssl_version kombu_ssl_keyfile kombu_ssl_certfile kombu_ssl_ca_certs heartbeat_in_pthread kombu_reconnect_delay kombu_reconnect_splay kombu_compression
		kombu_missing_consumer_retry_timeout kombu_reconnect_timeout kombu_failover_strategy rabbit_login_method rabbit_retry_interval rabbit_retry_backoff rabbit_interval_max
		rabbit_ha_queues rabbit_quorum_queue rabbit_transient_quorum_queue rabbit_quorum_delivery_limit rabbit_quorum_max_memory_length rabbit_quorum_max_memory_bytes
		rabbit_transient_queues_ttl rabbit_qos_prefetch_count heartbeat_timeout_threshold heartbeat_rate direct_mandatory_flag enable_cancel_on_failover use_queue_manager hostname
		processname rabbit_stream_fanout amqp_durable_queues amqp_auto_delete rabbit_durable_queues rpc_conn_pool_size conn_pool_min_size conn_pool_ttl rabbit_host rabbit_port rabbit_hosts
		rabbit_userid rabbit_user rabbit_password rabbit_virtual_host rabbit_max_retries fake_rabbit send_single_reply rpc_listener_prefetch_count rpc_queue_expiration default_reply_timeout
		default_reply_retry default_sender_link_timeout notification_listener_prefetch_count default_notification_exchange default_rpc_exchange notification_persistence
		default_notification_retry_attempts default_rpc_retry_attempts rpc_reply_exchange rpc_reply_listener_prefetch_count rpc_reply_retry_attempts rpc_retry_delay rpc_retry_attempts
		notification_retry_delay default_serializer_type host_connection_reconnect_delay connection_factory channel_max frame_max heartbeat_interval socket_timeout tcp_user_timeout
		shuffle pool_max_size pool_max_overflow pool_timeout pool_recycle pool_stale rpc_reply_exchange`)
}

// knownOption tells of keys and sections that are written wrong, or stand elsewhere than
// where they are read.
func (a *audit) knownOption(section, key string, at place) {
	at.text = "[" + section + "] " + key + " …" // a password may stand there whose key has a typing error
	ours := []string{"ssl", "ssl_version", "ssl_key_file", "ssl_cert_file", "ssl_ca_file", "ssl_enforce_hostname_verification", "rabbit_login_method"}
	switch {
	case section == "oslo_messaging_rabbit":
		if slices.Contains(rabbitOptions(), key) {
			return
		}
		if key == "transport_url" {
			a.warn(ruleKeys, at, "move it to [DEFAULT]", "transport_url is not read in [oslo_messaging_rabbit]")
			return
		}
		if near := nearestOf(key, rabbitOptions()); near != "" {
			a.warn(ruleKeys, at, "write "+near, "unknown key %q; did you mean %q? What it should set is not set", key, near)
			return
		}
		a.warn(ruleKeys, at, "look it up in the service's sample, and remove it or write it right", "unknown key %q of [oslo_messaging_rabbit]: it sets nothing", key)
	case section == "DEFAULT" && slices.Contains(ours, key) || section == "oslo_messaging_notifications" && slices.Contains(ours, key) || section != "oslo_messaging_rabbit" && section != "DEFAULT" && slices.Contains([]string{"ssl_enforce_hostname_verification", "rabbit_login_method", "rabbit_use_ssl", "kombu_ssl_ca_certs", "kombu_ssl_certfile", "kombu_ssl_keyfile"}, key):
		a.warn(ruleKeys, at, "move it to [oslo_messaging_rabbit]", "%s is not read in [%s]", key, section)
	case section == "DEFAULT" || section == "oslo_messaging_notifications":
		if key != "transport_url" && nearestOf(key, []string{"transport_url"}) != "" {
			a.warn(ruleKeys, at, "write transport_url", "unknown key %q; did you mean %q?", key, "transport_url")
		}
	case section != "oslo_messaging_rabbit" && strings.HasPrefix(section, "oslo") || nearestOf(section, []string{"oslo_messaging_rabbit"}) != "":
		known := []string{"oslo_messaging_rabbit", "oslo_messaging_notifications", "oslo_messaging_amqp", "oslo_messaging_kafka", "oslo_messaging_zmq", "oslo_messaging_metrics", "oslo_messaging_rabbit_pika"}
		if near := nearestOf(section, known[:3]); near != "" && !slices.Contains(known, section) {
			a.warn(ruleKeys, at, "write ["+near+"]", "nobody reads section [%s]; did you mean [%s]?", section, near)
		}
	}
}

// option is the value of a key of the driver's section, by the names that it had.
func (s *service) option(l *link, section string, names ...string) (v setting, ok bool) {
	if l != nil {
		for _, n := range names {
			if value := l.query.Get(n); value != "" {
				return setting{n, value, l.at}, true
			}
		}
	}
	for _, where := range []string{section, "DEFAULT"} {
		for i, n := range names {
			// The new names are not read in DEFAULT, where only the old ones were.
			if where == "DEFAULT" && i == 0 && !strings.HasPrefix(n, "rabbit_") && !strings.HasPrefix(n, "qpid_") {
				continue
			}
			if v, ok := s.get(where + "/" + n); ok {
				return v, true
			}
		}
	}
	return v, false
}

// connect finds what a service connects to.
func (a *audit) connect(s *service) {
	for _, key := range s.keys {
		section, name, _ := strings.Cut(key, "/")
		if name != "transport_url" || section == "oslo_messaging_rabbit" {
			continue
		}
		v := s.by[key]
		text := v.value
		// $name is the value of another key.
		for range 4 {
			at := strings.Index(text, "$")
			if at < 0 {
				break
			}
			rest := strings.Trim(text[at+1:], "{")
			end := strings.IndexFunc(rest, func(r rune) bool {
				return r != '_' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
			})
			if end < 0 {
				end = len(rest)
			}
			other, ok := s.get("DEFAULT/" + rest[:end])
			if !ok {
				break
			}
			text = text[:at] + other.value + strings.TrimPrefix(rest[end:], "}")
		}
		t, err := parseTransport(text)
		if err != nil {
			a.unread(v.at.file, v.at.line, "transport_url: %v", err)
			continue
		}
		s.links = append(s.links, link{t, s, v.at, section != "oslo_messaging_notifications"})
	}
	if len(s.links) == 0 {
		s.old()
	}
	if len(s.links) == 0 {
		a.unknown("27", in(s.main), "give the file that has transport_url", "%s has no transport_url: if it speaks over messages, it does so as guest to localhost:5672", s.main.Path)
	}
	for i := range s.links {
		l := &s.links[i]
		for _, h := range l.hosts {
			if h.has && h.password != "" {
				a.password(h.user, h.password, l.at)
			}
		}
		a.reach(s, l)
	}
}

// old makes a link of the names that were before transport_url.
func (s *service) old() {
	const section = "oslo_messaging_rabbit"
	t := transport{scheme: "rabbit", query: map[string][]string{}}
	backend, _ := s.get("DEFAULT/rpc_backend")
	prefix := "rabbit_"
	if strings.Contains(backend.value, "qpid") {
		prefix, t.scheme = "qpid_", "qpid"
	}
	hosts, many := s.option(nil, section, prefix+"hosts")
	host, one := s.option(nil, section, prefix+"host", prefix+"hostname")
	port, _ := s.option(nil, section, prefix+"port")
	user, named := s.option(nil, section, prefix+"userid", prefix+"user", prefix+"username")
	password, has := s.option(nil, section, prefix+"password")
	vhost, _ := s.option(nil, section, prefix+"virtual_host")
	if !many && !one && !named && !has && backend.value == "" {
		return
	}
	at := in(s.main)
	for _, v := range []setting{hosts, host, user, password, backend} {
		if v.at.file != "" {
			at = v.at
			break
		}
	}
	t.vhost = strings.TrimPrefix(vhost.value, "/")
	list := strings.Split(hosts.value, ",")
	if !many {
		list = []string{orElse(host.value, "localhost")}
	}
	for _, each := range list {
		h := transportHost{user: orElse(user.value, "guest"), password: orElse(password.value, "guest"), has: true}
		if prefix == "qpid_" {
			h.user, h.password, h.has = user.value, password.value, has
		}
		name, n, ok := splitAddress(strings.TrimSpace(each))
		if !ok {
			name, n = strings.TrimSpace(each), 0
			if _, p, ok := splitAddress(port.value); ok {
				n = p
			}
		}
		h.host, h.port = name, n
		t.hosts = append(t.hosts, h)
	}
	s.links = append(s.links, link{t, s, at, true})
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// driver is the section of a link's driver; empty for those that are not judged.
func (l *link) driver() string {
	switch l.scheme {
	case "rabbit", "kombu", "rabbit+pika":
		return "oslo_messaging_rabbit"
	case "amqp":
		return "oslo_messaging_amqp"
	case "qpid":
		return "qpid"
	}
	return ""
}

// secured reports whether a link is over TLS, and what says so.
func (l *link) secured() (setting, bool) {
	if l.driver() == "qpid" {
		v, _ := l.of.option(l, "DEFAULT", "qpid_protocol")
		return v, strings.EqualFold(v.value, "ssl")
	}
	v, _ := l.of.option(l, l.driver(), "ssl", "rabbit_use_ssl")
	return v, yes(v.value)
}

// reach judges rule 1, and the ports of rule 27.
func (a *audit) reach(s *service, l *link) {
	if l.driver() == "" {
		if l.scheme != "fake" {
			a.unknown("1", l.at, "", "the driver %s is not judged here", l.scheme)
		}
		return
	}
	v, tls := l.secured()
	fix := "[oslo_messaging_rabbit] ssl = true"
	switch {
	case l.driver() == "qpid":
		fix = "qpid_protocol = ssl"
	case l.driver() == "oslo_messaging_amqp":
		fix = "[oslo_messaging_amqp] ssl = true"
	}
	switch {
	case tls:
		a.pass("1", v.at, "%s speaks TLS", s.project)
	case v.at.file != "":
		a.fail("1", v.at, fix, "%s speaks without TLS", s.project)
	default:
		a.fail("1", l.at, fix, "%s speaks without TLS: it is off by default", s.project)
	}
	for _, h := range l.hosts {
		if h.port == 5672 || h.port == 0 {
			what := "port 5672"
			if h.port == 0 {
				what = "no port, which is 5672"
			}
			a.fail("27", l.at, "write :5671 behind each host", "transport_url has %s for %s, where brokers speak without TLS", what, h.host)
		}
	}
}

// serviceTLS judges rules 4, 5, 6, 8, 9, 10 and 13 of each link over TLS.
func (a *audit) serviceTLS(s *service) {
	for i := range s.links {
		l := &s.links[i]
		_, tls := l.secured()
		section := l.driver()
		if !tls || section == "" {
			for _, rule := range []string{"4", "6", "8"} {
				if !a.judged[rule] && section != "" {
					a.add(rule, NotApplicable, l.at, "", "%s speaks without TLS: see rule 1", s.project)
				}
			}
			continue
		}
		if section == "qpid" {
			a.unknown("4", l.at, "move to transport_url and oslo.messaging", "the driver of qpid had no setting for authorities")
			a.fail("8", l.at, "move to transport_url and oslo.messaging", "the driver of qpid does not look at the broker's name")
			continue
		}
		where := "[" + section + "] "
		ca, ok := s.option(l, section, "ssl_ca_file", "kombu_ssl_ca_certs")
		if ok && ca.value != "" {
			s.authority = a.bundle(ca.value, ca.at, s.main)
		} else {
			a.fail("4", orPlace(ca.at, l.at), where+"ssl_ca_file = FILE", "ssl_ca_file is not set: %s trusts every authority of the system's bundle", s.project)
		}
		if v, ok := s.option(l, section, "ssl_version", "kombu_ssl_version"); ok && v.value != "" {
			if slices.Contains([]string{"TLSV1_2", "TLSV1_3"}, strings.ToUpper(v.value)) {
				a.pass("6", v.at, "%s speaks %s", s.project, v.value)
			} else {
				a.fail("6", v.at, "remove it: the newest version is then spoken", "%s asks for %s", s.project, v.value)
			}
		} else {
			a.pass("6", in(s.main), "no version of TLS is asked for: the newest is spoken")
		}
		a.names(s, l, section)
		a.add("10", Pass, in(s.main), "", "TLS is Python's, with OpenSSL: python3 -c 'import ssl; print(ssl.OPENSSL_VERSION)'")
	}
	for _, section := range []string{"oslo_messaging_rabbit", "oslo_messaging_amqp"} {
		if v, ok := s.option(nil, section, "ssl_key_file", "kombu_ssl_keyfile"); ok && v.value != "" {
			a.key(v.value, v.at, s.main)
		}
		if v, ok := s.option(nil, section, "ssl_cert_file", "kombu_ssl_certfile"); ok && v.value != "" {
			a.certificate(v.value, v.at, s.main, false, nil)
		}
		if v, ok := s.option(nil, section, "ssl_key_password"); ok {
			a.secret(v.value)
		}
	}
}

func orPlace(at, other place) place {
	if at.file == "" {
		return other
	}
	return at
}

// names judges rule 8.
func (a *audit) names(s *service, l *link, section string) {
	if section == "oslo_messaging_amqp" {
		a.pass("8", l.at, "the driver of AMQP 1.0 looks at the broker's name")
		return
	}
	fix := "[oslo_messaging_rabbit] ssl_enforce_hostname_verification = true"
	v, ok := s.option(l, section, "ssl_enforce_hostname_verification")
	old, known := before(a.o.OsloMessaging, 18, 0)
	switch {
	case ok && yes(v.value):
		a.pass("8", v.at, "%s looks at the broker's name", s.project)
	case ok:
		a.fail("8", v.at, fix, "%s does not look at the broker's name", s.project)
	case known && !old:
		a.pass("8", in(s.main), "oslo.messaging %s looks at the broker's name by default", a.o.OsloMessaging)
	default:
		a.fail("8", in(s.main), fix+"; or --oslo-messaging-version, if that is 18.0 or newer", "ssl_enforce_hostname_verification is not set: before oslo.messaging 18.0, %s does not look at the broker's name (OSSN-0096)", s.project)
	}
}

// serviceLogin judges rule 13, and the users of rules 11 and 14.
func (a *audit) serviceLogin(s *service) {
	for i := range s.links {
		l := &s.links[i]
		section := l.driver()
		if section == "" {
			continue
		}
		method, set := s.option(l, section, "rabbit_login_method")
		external := strings.EqualFold(method.value, "EXTERNAL")
		passwords := slices.ContainsFunc(l.hosts, func(h transportHost) bool { return h.has && h.password != "" })
		for _, h := range l.hosts {
			switch {
			case strings.EqualFold(h.user, "guest"):
				a.fail("11", l.at, "a user of its own for each service on each node", "%s logs in as guest", s.project)
			case h.user == "" && !external && section == "oslo_messaging_rabbit":
				a.fail("14", l.at, "write user:password@ before each host, or rabbit_login_method = EXTERNAL with a certificate", "transport_url has no user for %s: %s logs in as guest, with its password", h.host, s.project)
			case h.has && h.password == "" && !external:
				a.fail("14", l.at, "write a password, or rabbit_login_method = EXTERNAL with a certificate", "transport_url has an empty password for %s", h.user)
			}
			if !passwords && external {
				a.pass("14", l.at, "%s has no password", s.project)
			}
		}
		if _, tls := l.secured(); !tls {
			a.notByCertificate(s, l)
			continue
		}
		if section != "oslo_messaging_rabbit" {
			continue
		}
		cert, hasCert := s.option(l, section, "ssl_cert_file", "kombu_ssl_certfile")
		_, hasKey := s.option(l, section, "ssl_key_file", "kombu_ssl_keyfile")
		fix := "[oslo_messaging_rabbit] ssl_cert_file, ssl_key_file and rabbit_login_method = EXTERNAL, and a transport_url without a password"
		switch {
		case !hasCert || !hasKey:
			missing := "ssl_cert_file"
			if hasCert {
				missing = "ssl_key_file"
			}
			a.fail("13", in(s.main), fix, "%s is not set: %s shows no certificate", missing, s.project)
		case !external && set:
			a.warn("13", method.at, fix, "%s has a certificate, and logs in by password: %s", s.project, method.value)
		case !external:
			a.warn("13", cert.at, fix, "%s has a certificate, and logs in by password: rabbit_login_method is AMQPLAIN by default", s.project)
		case passwords:
			a.warn("13", l.at, "remove the password from transport_url", "%s logs in by certificate, and has a password as well", s.project)
		default:
			a.pass("13", method.at, "%s logs in by its certificate", s.project)
		}
	}
}

func (a *audit) notByCertificate(s *service, l *link) {
	if !a.judged["13"] {
		a.add("13", NotApplicable, l.at, "", "%s speaks without TLS: see rule 1", s.project)
	}
}

// serviceSecrets judges who may read files with passwords.
func (a *audit) serviceSecrets(s *service) {
	for _, f := range s.files {
		rule, what, more := "24", "the settings", uint32(0o022)
		for _, key := range s.keys {
			v := s.by[key]
			if v.at.file != f.Path {
				continue
			}
			name := key[strings.Index(key, "/")+1:]
			if name == "rabbit_password" || name == "qpid_password" {
				rule, what, more = "14", "settings with a password", 0o137
			}
			if name == "transport_url" {
				if t, err := parseTransport(v.value); err == nil && slices.ContainsFunc(t.hosts, func(h transportHost) bool { return h.password != "" }) {
					rule, what, more = "14", "settings with a password", 0o137
				}
			}
		}
		a.modes(rule, f, what, permissionBits(more), Fail)
	}
}

// serviceQueues judges rule 19.
func (a *audit) serviceQueues(s *service) {
	v, ok := s.option(nil, "oslo_messaging_rabbit", "rabbit_transient_queues_ttl")
	if ok && strings.TrimSpace(v.value) == "0" {
		a.warn("19", v.at, "rabbit_transient_queues_ttl = 1800", "queues of answers and of fanout, and their messages, stay for ever")
		return
	}
	a.pass("19", orPlace(v.at, in(s.main)), "queues of answers and of fanout have an end; whether others have is in the broker's definitions")
}

// across judges rules 12, 17 and 27 over all services.
func (a *audit) across(all []*service) {
	type owner struct {
		s  *service
		at place
	}
	users := map[string][]owner{}
	passwords := map[string]string{}
	shared := map[string][]owner{}
	var links []*link
	for _, s := range all {
		for i := range s.links {
			l := &s.links[i]
			if l.driver() == "" {
				continue
			}
			links = append(links, l)
			seen := map[string]bool{}
			for _, h := range l.hosts {
				if h.user == "" || seen[h.user] {
					continue
				}
				if other, ok := passwords[h.password]; ok && other != h.user && h.password != "" {
					a.fail("14", l.at, "a random password for each user: openssl rand -hex 16", "%s has the same password as %s", h.user, other)
				}
				passwords[h.password] = h.user
				seen[h.user] = true
				users[h.user] = append(users[h.user], owner{s, l.at})
				shared[l.vhost+"\x00"+h.user] = append(shared[l.vhost+"\x00"+h.user], owner{s, l.at})
			}
			if len(seen) > 1 {
				a.warn("27", l.at, "write the same user for all hosts of a transport_url", "transport_url has different users for the hosts of one cluster")
			}
		}
	}
	for _, name := range sortedKeys(users) {
		first := users[name][0]
		for _, o := range users[name][1:] {
			switch {
			case o.s.host != first.s.host:
				a.fail("12", o.at, "a user for each service on each node", "user %s is used on two nodes, by %s too", name, first.at.file)
			case o.s.project != first.s.project:
				a.fail("12", o.at, "a user for each service on each node", "user %s is used by %s, and by %s (%s) too", name, o.s.project, first.s.project, first.at.file)
			}
		}
	}
	for _, key := range sortedKeys(shared) {
		vhost, name, _ := strings.Cut(key, "\x00")
		first := shared[key][0]
		for _, o := range shared[key][1:] {
			if o.s.project != first.s.project {
				a.warn("17", o.at, "a virtual host for each project: rabbitmqctl add_vhost", "%s and %s share virtual host %q and user %s", first.s.project, o.s.project, "/"+vhost, name)
			}
		}
	}
	if len(users) > 0 {
		a.pass("12", in(all[0].main), "no user is used by two services or on two nodes")
		a.pass("17", in(all[0].main), "no two projects share a virtual host and a user")
	} else if len(links) > 0 {
		a.pass("12", in(all[0].main), "no user is named: services log in by their certificates")
		a.pass("17", in(all[0].main), "no user is named: services log in by their certificates")
	}
	a.consistent(links)
	authority := map[string]*service{}
	var prints []string
	for _, s := range all {
		if s.authority != "" && authority[s.authority] == nil {
			authority[s.authority] = s
			prints = append(prints, s.authority)
		}
	}
	for _, p := range prints[min(1, len(prints)):] {
		s := authority[p]
		v, _ := s.option(nil, "oslo_messaging_rabbit", "ssl_ca_file", "kombu_ssl_ca_certs")
		a.warn("27", orPlace(v.at, in(s.main)), "give all services the same file", "%s trusts other authorities than %s does", s.main.Path, authority[prints[0]].main.Path)
	}
	if len(links) > 0 {
		a.pass("27", in(all[0].main), "users, hosts, ports and authorities agree")
	}
}

// consistent compares what one project's files have of the brokers.
func (a *audit) consistent(links []*link) {
	brokers := func(l *link) string {
		var all []string
		for _, h := range l.hosts {
			all = append(all, fmt.Sprintf("%s:%d", h.host, h.port))
		}
		slices.Sort(all)
		return strings.Join(all, ", ")
	}
	first := map[string]*link{}
	for _, l := range links {
		if !l.rpc {
			continue
		}
		f, ok := first[l.of.project]
		if !ok {
			first[l.of.project] = l
			continue
		}
		if brokers(f) != brokers(l) {
			a.warn("27", l.at, "name the same brokers on all nodes", "%s has other brokers here than in %s", l.of.project, f.at.file)
		}
		if f.vhost != l.vhost {
			a.warn("27", l.at, "name the same virtual host on all nodes", "%s has another virtual host here than in %s", l.of.project, f.at.file)
		}
		_, x := f.secured()
		if _, y := l.secured(); x != y {
			a.warn("27", l.at, "ssl = true on all nodes", "%s speaks TLS on one node and not on another", l.of.project)
		}
	}
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

// brokerNames holds the certificates of brokers whose settings were given too against the
// hosts that services connect to.
func (a *audit) brokerNames(all []*service) {
	for _, n := range a.nodes() {
		if len(n.conf) == 0 && n.classic == nil {
			continue
		}
		quiet := &audit{kind: RabbitMQ, o: a.o, disk: a.disk, judged: map[string]bool{}}
		quiet.readNode(n)
		v, ok := n.get("ssl_options.certfile")
		if !ok {
			continue
		}
		f := a.disk.find(a, v.value, n.main)
		if f == nil {
			continue
		}
		certs, err := certificates(f.Data)
		if err != nil || len(certs) == 0 {
			continue
		}
		for _, s := range all {
			for _, l := range s.links {
				for _, h := range l.hosts {
					if one := len(l.hosts) == 1; one && !covers(certs[0], h.host) {
						a.fail("6", l.at, "make the broker a certificate with the names and addresses that services use", "the broker's certificate, %s, is not for %s", v.value, h.host)
					}
				}
			}
		}
	}
}
