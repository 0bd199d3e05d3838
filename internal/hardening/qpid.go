package hardening

import (
	"bytes"
	"cmp"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/fleetbus/fleetbus/internal/hardening/conf"
)

// A qpidd is a broker of Qpid and its files.
type qpidd struct {
	*settings
	main       *file
	interfaces []setting
	sasl       *file
	sasldb     *file
	acls       []*file
}

// qpidFile says which of Qpid's files one is; empty if it is none.
func qpidFile(f *file) string {
	base, slashed := strings.ToLower(filepath.Base(f.Path)), filepath.ToSlash(f.Path)
	ours := f.asked || strings.Contains(strings.ToLower(slashed), "qpid")
	switch {
	case !ours && !lineBegins(f.Data, "require-encryption") && !lineBegins(f.Data, "acl deny") && !lineBegins(f.Data, "ssl-cert-db"):
		return ""
	case isUnit(f) || isFilter(f) || isConfinement(f) || base == "passwd" || bytes.Contains(f.Data, []byte("-----BEGIN")):
		return ""
	case strings.HasSuffix(base, ".sasldb") || strings.HasSuffix(base, "sasldb2"):
		return "sasldb"
	case bytes.Contains(f.Data, []byte("mech_list:")) || bytes.Contains(f.Data, []byte("pwcheck_method:")) || strings.Contains(slashed, "sasl"):
		return "sasl"
	case strings.HasSuffix(base, ".acl") || strings.Contains(base, "acl") || lineBegins(f.Data, "acl "):
		return "acl"
	case base == "qpidd.conf" || strings.HasPrefix(base, "qpid") && strings.HasSuffix(base, ".conf") || strings.HasSuffix(base, ".conf") && (lineBegins(f.Data, "auth=") || lineBegins(f.Data, "ssl-") || lineBegins(f.Data, "require-encryption")):
		return "conf"
	}
	return ""
}

func lineBegins(data []byte, with string) bool {
	return bytes.HasPrefix(data, []byte(with)) || bytes.Contains(data, []byte("\n"+with))
}

// qpid judges all brokers of Qpid, and returns how many there are.
func (a *audit) qpid() int {
	a.daemon = []string{"qpidd"}
	var all []*qpidd
	var rest []*file
	for _, f := range a.disk.files {
		switch qpidFile(f) {
		case "conf":
			// The file that old packages had in /etc is another one of the same machine.
			all = append(all, &qpidd{settings: newSettings(), main: f})
		case "":
		default:
			rest = append(rest, f)
		}
	}
	if len(all) == 0 && len(rest) > 0 {
		all = append(all, &qpidd{settings: newSettings()})
	}
	for _, q := range all {
		if q.main != nil {
			a.readQpid(q)
		}
		for _, f := range rest {
			if q.main != nil && len(all) > 1 && a.disk.rootOf(f.Path) != a.disk.rootOf(q.main.Path) {
				continue
			}
			switch qpidFile(f) {
			case "sasl":
				q.sasl = f
			case "sasldb":
				q.sasldb = f
			case "acl":
				q.acls = append(q.acls, f)
			}
		}
		if q.main != nil {
			a.qpidTransport(q)
			a.qpidFiles(q)
			a.qpidPeers(q)
			a.qpidRest(q)
		}
		a.qpidLogin(q)
		a.qpidAccess(q)
	}
	return len(all)
}

// qpidKeys are the settings of the broker and of the modules that come with it.
func qpidKeys() []string {
	return strings.Fields(`auth acl-file acl-max-connect-ip acl-max-queues-per-user connection-limit-per-ip connection-limit-per-user max-connections max-connections-per-ip max-connections-per-user
		max-queues-per-user max-negotiate-time require-encryption realm sasl-config sasl-service-name port interface listen-disable transport socket-fd ssl-port ssl-cert-db ssl-cert-name
		ssl-cert-password-file ssl-require-client-authentication ssl-sasl-no-dict ssl-use-export-policy ssl-use-cert-store ssl-cert-filename ssl-cert-store ssl-cert-store-location ssl-ignore-unverified
		log-enable log-disable log-time log-level log-source log-thread log-function log-hires-timestamp log-category log-prefix log-to-stderr log-to-stdout log-to-file log-to-syslog syslog-name syslog-facility trace t
		data-dir no-data-dir pid-dir paging-dir module-dir no-module-dir load-module store-dir config client-config daemon wait check quit worker-threads mgmt-enable mgmt-publish mgmt-qmf1 mgmt-qmf2
		mgmt-pub-interval queue-purge-interval default-queue-limit tcp-nodelay federation-tag default-flow-stop-threshold default-flow-resume-threshold default-event-threshold-ratio default-message-group
		default-msg-group enable-timestamp link-maintenance-interval link-heartbeat-interval connection-backlog session-max-unacked replication-exchange-name replication-queue-name queue-patterns
		topic-patterns domain protocols max-pollers cluster-name cluster-url cluster-username cluster-password cluster-mechanism cluster-cman cluster-size cluster-read-max cluster-clock-interval
		ha-cluster ha-queue-replication ha-brokers-url ha-public-url ha-replicate ha-username ha-password ha-mechanism ha-backup-timeout ha-flow-messages ha-flow-bytes
		num-jfiles jfile-size-pgs wcache-page-size tpl-num-jfiles tpl-jfile-size-pgs tpl-wcache-page-size truncate efp-partition efp-file-size overwrite-before-return-to-efp
		xml-exchange rdma-port no-name-lookup watchdog-interval dtx-default-timeout dtx-max-timeout ring-queue xml name-lookup dtx-wait-timeout store-force help version management-publish`)
}

func (a *audit) readQpid(q *qpidd) {
	f := q.main
	f.used = true
	entries, problems := conf.Qpid(f.Data)
	a.problems(f, problems)
	for _, e := range entries {
		at := place{f.Path, e.Line, e.Key + "=" + e.Value}
		if !slices.Contains(qpidKeys(), e.Key) {
			at := place{f.Path, e.Line, e.Key + "…"} // a password may stand there whose key has a typing error
			if near := nearestOf(e.Key, qpidKeys()); near != "" {
				a.warn(ruleKeys, at, "write "+near, "unknown key %q; did you mean %q? What it should set is not set", e.Key, near)
			} else {
				a.warn(ruleKeys, at, "look it up with qpidd --help, and remove it or write it right", "unknown key %q: it sets nothing", e.Key)
			}
		}
		if strings.EqualFold(e.Key, "interface") {
			for name := range strings.SplitSeq(e.Value, ",") {
				q.interfaces = append(q.interfaces, setting{e.Key, strings.TrimSpace(name), at})
			}
		}
		if strings.HasSuffix(e.Key, "-password") {
			a.secret(e.Value)
		}
		q.put(e.Key, e.Value, at)
	}
}

// on is a setting that is yes or no, and what it is if it is not set.
func (q *qpidd) on(key string, otherwise bool) (is bool, at place) {
	v, ok := q.get(key)
	if !ok {
		return otherwise, in(q.main)
	}
	return yes(v.value), v.at
}

// qpidTransport judges rules 1, 2, 3, 6 and 10.
func (a *audit) qpidTransport(q *qpidd) {
	noTCP := q.is("listen-disable", "tcp") || q.is("transport", "ssl")
	encrypted, at := q.on("require-encryption", false)
	_, tls := q.get("ssl-cert-db")
	if v, ok := q.get("ssl-use-cert-store"); ok && yes(v.value) {
		tls = true
	}
	switch {
	case !tls:
		a.fail("1", in(q.main), "ssl-cert-db=DIR, ssl-cert-name=NAME, ssl-cert-password-file=FILE, and require-encryption=yes", "ssl-cert-db is not set: there is no TLS listener")
		if !encrypted && at.line > 0 {
			a.fail("1", at, "require-encryption=yes", "connections without TLS are taken")
		}
	case noTCP:
		a.pass("1", orPlace(q.at("listen-disable", q.main), at), "there is no listener without TLS")
	case encrypted:
		a.pass("1", at, "a connection without TLS is refused")
	case at.line > 0:
		a.fail("1", at, "require-encryption=yes", "connections without TLS are taken")
	default:
		a.fail("1", at, "require-encryption=yes", "require-encryption is not set: connections without TLS are taken by default")
	}
	port := "5671"
	if v, ok := q.get("ssl-port"); ok && v.value != "yes" {
		port = v.value
	}
	if v, ok := q.get("ssl-port"); ok && !noTCP {
		if plain, has := q.get("port"); has && plain.value == v.value && !encrypted {
			a.fail("1", v.at, "ssl-port=5671", "TLS and clear are on the same port, %s", v.value)
		}
	}
	if len(q.interfaces) == 0 {
		a.fail("2", in(q.main), "interface=ADDRESS, that of the management network", "interface is not set: port %s is on all interfaces", port)
	}
	for _, v := range q.interfaces {
		a.listenerOn(v.value, port, v.at, "interface=ADDRESS, that of the management network")
	}
	if !tls {
		for _, rule := range []string{"3", "4", "6"} {
			a.add(rule, NotApplicable, in(q.main), "", "there is no TLS listener: see rule 1")
		}
		return
	}
	const must = "ssl-require-client-authentication"
	switch asked, at := q.on(must, false); {
	case asked:
		a.pass("3", at, "a client has to have a certificate, which is verified")
	case at.line > 0:
		a.fail("3", at, must+"=yes", "a client without a certificate is let in")
	default:
		a.fail("3", at, must+"=yes", "%s is not set: a client without a certificate is let in by default", must)
	}
	if export, at := q.on("ssl-use-export-policy", false); export {
		a.fail("6", at, "remove it", "ciphers are those that were weak enough to be exported")
	}
	if noDict, at := q.on("ssl-sasl-no-dict", true); !noDict && at.line > 0 {
		a.warn(ruleTLS, at, "ssl-sasl-no-dict=yes", "passwords may be guessed from what is heard")
	}
	a.add("10", Pass, in(q.main), "", "TLS is NSS: rpm -q nss, or dpkg -s libnss3")
	a.unknown("4", q.at("ssl-cert-db", q.main), "certutil -L -d DIR: no certificate with C or T but that of your authority", "which authorities are trusted is in a database of NSS, which is not read here")
}

// qpidFiles judges rules 5 and 14 of the files that settings name.
func (a *audit) qpidFiles(q *qpidd) {
	if v, ok := q.get("ssl-cert-password-file"); ok {
		if f := a.disk.find(a, v.value, q.main); f != nil {
			text := strings.TrimSpace(string(f.Data))
			if slices.Contains(publicPasswords(), strings.ToLower(text)) {
				a.fail("14", place{f.Path, 1, ""}, "make a random one: openssl rand -hex 16, and certutil -W", "the password of the database of keys stands in manuals")
			}
			a.secret(text)
			if a.modes("5", f, "the password of the keys", 0o177, Fail) {
				a.add("5", Pass, place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "", "the password of the keys is for the broker alone")
			}
		} else {
			a.unknown("5", v.at, "name the file, or --root DIR", "%s is not among the files here", v.value)
		}
	}
	if v, ok := q.get("ssl-cert-db"); ok {
		found := false
		for _, name := range []string{"key4.db", "key3.db", "cert9.db", "cert8.db"} {
			f := a.disk.find(a, strings.TrimPrefix(v.value, "sql:")+"/"+name, q.main)
			if f == nil || filepath.Base(f.Path) != name {
				continue
			}
			found = true
			more := uint32(0o177)
			if strings.HasPrefix(name, "cert") {
				more = 0o133
			}
			if a.modes("5", f, "the database of keys", permissionBits(more), Fail) {
				a.add("5", Pass, place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "", "the database of keys is for the broker alone")
			}
		}
		if !found {
			a.unknown("5", v.at, "name the directory, or --root DIR", "%s is not among the files here", v.value)
		}
	}
	secret := false
	for _, key := range []string{"ha-password", "cluster-password"} {
		if v, ok := q.get(key); ok {
			secret = true
			user, _ := q.get(strings.Replace(key, "password", "username", 1))
			a.password(user.value, v.value, place{v.at.file, v.at.line, key + "=" + hidden})
		}
	}
	if secret {
		a.modes("14", q.main, "settings with a password", 0o137, Fail)
	} else {
		a.modes("24", q.main, "the settings", 0o022, Fail)
	}
}

// qpidPeers judges rule 7.
func (a *audit) qpidPeers(q *qpidd) {
	ha, haAt := q.on("ha-cluster", false)
	if v, ok := q.get("ha-queue-replication"); ok && yes(v.value) {
		ha, haAt = true, v.at
	}
	name, old := q.get("cluster-name")
	if !ha && !old {
		a.add("7", NotApplicable, in(q.main), "", "the broker has no peers: ha-cluster is not set")
		return
	}
	prefix, at := "ha-", haAt
	if old && !ha {
		prefix, at = "cluster-", name.at
	}
	for _, key := range []string{prefix + "username", prefix + "password"} {
		if _, ok := q.get(key); !ok && !q.is(prefix+"mechanism", "EXTERNAL") {
			a.fail("7", at, key+"=, or "+prefix+"mechanism=EXTERNAL", "%s is not set: brokers log in to each other without proof", key)
		}
	}
	switch v, ok := q.get(prefix + "mechanism"); {
	case ok && strings.EqualFold(v.value, "ANONYMOUS"):
		a.fail("7", v.at, prefix+"mechanism=EXTERNAL", "brokers log in to each other without proof")
	case !ok:
		a.warn("7", at, prefix+"mechanism=EXTERNAL", "%smechanism is not set: brokers take the first that both have", prefix)
	}
	key := map[string]string{"ha-": "ha-brokers-url", "cluster-": "cluster-url"}[prefix]
	switch v, ok := q.get(key); {
	case ok && !strings.Contains(v.value, "ssl:") && !strings.HasPrefix(v.value, "amqps"):
		a.fail("7", v.at, key+"=amqp:ssl:HOST:5671,ssl:HOST:5671", "brokers speak to each other without TLS")
	case !ok:
		a.fail("7", at, key+"=amqp:ssl:HOST:5671,ssl:HOST:5671", "%s is not set: brokers speak to each other without TLS", key)
	default:
		a.pass("7", v.at, "brokers speak TLS to each other, and log in")
	}
}

// qpidLogin judges rules 11, 13 and 14 of SASL.
func (a *audit) qpidLogin(q *qpidd) {
	if f := q.sasldb; f != nil {
		f.used = true
		if bytes.Contains(f.Data, []byte("guest")) {
			a.fail("11", in(f), "saslpasswd2 -f "+f.Abs+" -u QPID -d guest", "the user guest, whom packages bring, is in the database of passwords")
		} else {
			a.pass("11", in(f), "there is no user guest")
		}
		if a.modes("14", f, "the database of passwords", 0o177, Fail) {
			a.pass("14", place{f.Path, 0, fmt.Sprintf("mode %04o", f.Mode.Perm())}, "the database of passwords is for the broker alone")
		}
	}
	f := q.sasl
	if f == nil {
		return
	}
	f.used = true
	entries, problems := conf.SASL(f.Data)
	a.problems(f, problems)
	fix := "mech_list: EXTERNAL"
	mechanisms, found := conf.Entry{}, false
	for _, e := range entries {
		if e.Key == "mech_list" {
			mechanisms, found = e, true
		} else if near := nearestOf(e.Key, []string{"mech_list"}); near != "" {
			a.warn(ruleKeys, place{f.Path, e.Line, e.Key + ": " + e.Value}, "write mech_list", "unknown key %q; did you mean %q?", e.Key, "mech_list")
		}
	}
	at := place{f.Path, mechanisms.Line, "mech_list: " + mechanisms.Value}
	if !found {
		a.fail("13", in(f), fix, "mech_list is not set: every mechanism that is installed is offered, ANONYMOUS too")
		return
	}
	for m := range strings.FieldsFuncSeq(mechanisms.Value, func(r rune) bool { return r == ' ' || r == ',' || r == '\t' }) {
		switch strings.ToUpper(m) {
		case "EXTERNAL", "GSSAPI":
		case "ANONYMOUS":
			a.fail("13", at, fix, "who shows nothing is let in: ANONYMOUS is offered")
		default:
			a.warn("13", at, fix, "login by password is offered: %s", m)
		}
	}
	a.pass("13", at, "clients log in by their certificates alone")
}

// qpidAccess judges rules 15, 16, 18 and 26 of the access list.
func (a *audit) qpidAccess(q *qpidd) {
	if q.main != nil {
		if auth, at := q.on("auth", true); !auth {
			a.fail("18", at, "auth=yes", "nobody has to log in")
		}
	}
	var list *file
	if v, ok := q.get("acl-file"); ok {
		if list = a.disk.find(a, v.value, q.main); list == nil {
			a.unknown("18", v.at, "name the file, or --root DIR", "%s is not among the files here", v.value)
		}
	} else if q.main != nil {
		// Newer packages have a list where none is named, in the data directory: it is not read unless it is named.
		a.fail("18", in(q.main), "acl-file=/etc/qpid/qpidd.acl", "acl-file is not set: everybody may do everything")
	}
	if list == nil && (q.main == nil || q.has("acl-file")) && len(q.acls) > 0 {
		list = q.acls[0]
	}
	quota := false
	if list != nil {
		quota = a.accessList(list)
	}
	if q.main == nil {
		return
	}
	for _, key := range []string{"max-connections-per-user", "connection-limit-per-user"} {
		if v, ok := q.get(key); ok {
			n, err := strconv.Atoi(v.value)
			quota = quota || err == nil && n > 0
			if err != nil || n == 0 {
				a.warn("26", v.at, key+"=50", "a user may have any number of connections")
			}
		}
	}
	if v, ok := q.get("max-connections"); ok && v.value == "0" {
		a.warn("26", v.at, "max-connections=500", "there may be any number of connections")
	}
	if v, ok := q.get("max-negotiate-time"); ok {
		if n, err := strconv.Atoi(v.value); err != nil || n == 0 || n > 60_000 {
			a.warn("26", v.at, "max-negotiate-time=10000", "who does not finish a handshake keeps a connection for more than a minute")
		}
	}
	if !quota {
		a.warn("26", in(cmpFile(list, q.main)), "max-connections-per-user=50, or quota connections 50 all in the access list", "a user may have all connections: there is no quota")
	}
	a.pass("26", in(q.main), "connections of a user are counted")
}

func cmpFile(x, y *file) *file { return cmp.Or(x, y) }

func (s *settings) has(key string) bool { _, ok := s.by[key]; return ok }

// accessList judges an access list, line by line, and reports whether it counts connections.
func (a *audit) accessList(f *file) (quota bool) {
	f.used = true
	list, problems := conf.ReadACL(f.Data)
	a.problems(f, problems)
	a.modes("18", f, "the access list", 0o022, Fail)
	at := func(r conf.Rule) place {
		words := append([]string{"acl", r.Permission, r.Who, r.Action, r.Object}, r.Properties...)
		return place{f.Path, r.Line, strings.Join(slices.DeleteFunc(words, func(w string) bool { return w == "" }), " ")}
	}
	whole := func(r conf.Rule) bool {
		return r.Action == "all" && (r.Object == "" || r.Object == "all") && len(r.Properties) == 0
	}
	fix := "acl deny-log all all, as the last line"
	end := -1
	for i, r := range list.Rules {
		allow := strings.HasPrefix(r.Permission, "allow")
		if end >= 0 {
			a.warn("18", at(r), "move it before line "+itoa(list.Rules[end].Line), "it is never reached: line %d takes everything", list.Rules[end].Line)
			continue
		}
		switch {
		case r.Who == "all" && whole(r):
			end = i
			if allow {
				a.fail("18", at(r), fix, "everybody may do everything")
			}
		case allow && whole(r) && !strings.Contains(strings.ToLower(r.Who), "admin"):
			a.fail("15", at(r), "name what it does and what with: acl allow "+r.Who+" consume queue name=…", "%s may do everything", r.Who)
		}
		if allow {
			for _, who := range list.Members(r.Who) {
				a.qpidCompute(r, who, at(r))
				if strings.HasPrefix(strings.ToLower(who), "guest") && (strings.EqualFold(who, "guest") || strings.HasPrefix(strings.ToLower(who), "guest@")) {
					a.fail("11", at(r), "remove guest", "the user guest has rights")
				}
			}
		}
	}
	switch {
	case len(list.Rules) == 0:
		a.fail("18", in(f), fix, "the access list has no rule")
	case end < 0:
		a.fail("18", at(list.Rules[len(list.Rules)-1]), fix, "the last line does not deny the rest")
	default:
		a.pass("18", at(list.Rules[end]), "what no line allows is denied")
	}
	a.pass("15", in(f), "nobody but administrators may do everything")
	if !a.judged["16"] {
		a.add("16", NotApplicable, in(f), "", "no user is called after a compute node")
	}
	for _, x := range list.Quotas {
		quota = quota || x.Of == "connections" && x.Most > 0
	}
	return quota
}

// qpidCompute judges rule 16.
func (a *audit) qpidCompute(r conf.Rule, who string, at place) {
	if !compute(who) {
		return
	}
	named := ""
	for _, p := range r.Properties {
		if name, ok := strings.CutPrefix(p, "name="); ok {
			named = name
		}
	}
	reads := (r.Action == "consume" || r.Action == "all") && (r.Object == "queue" || r.Object == "" || r.Object == "all")
	wide := named == "" || strings.Contains(named, "conductor") || strings.Contains(named, "scheduler") || named == "*" || named == "all"
	if reads && wide && !slices.ContainsFunc(r.Properties, func(p string) bool { return strings.HasPrefix(p, "queuename=") }) {
		a.fail("16", at, "acl allow "+who+" consume queue name=compute*", "compute node %s may read what is for the conductor", who)
		return
	}
	a.pass("16", at, "compute node %s may not read what is for the conductor", who)
}

// qpidRest judges rules 20 and 25.
func (a *audit) qpidRest(q *qpidd) {
	v, ok := q.get("log-enable")
	level := strings.ToLower(v.value)
	switch {
	case ok && (strings.HasPrefix(level, "error") || strings.HasPrefix(level, "critical") || strings.HasPrefix(level, "none") || strings.HasPrefix(level, "warning")):
		a.fail("20", v.at, "log-enable=info+", "logins are not logged: %s is kept", v.value)
	case ok && (strings.HasPrefix(level, "debug") || strings.HasPrefix(level, "trace")):
		a.warn(ruleLog, v.at, "log-enable=info+", "the log has what is for developers")
	}
	if t, ok := q.get("trace"); ok && yes(t.value) {
		a.warn(ruleLog, t.at, "remove it", "the log has what is for developers")
	}
	a.pass("20", q.at("log-enable", q.main), "logins and refusals are logged")
	a.add("25", NotApplicable, in(q.main), "", "Qpid's management is over AMQP itself")
}
