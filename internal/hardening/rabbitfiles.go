package hardening

import (
	"bytes"
	_ "embed" // of the names of keys
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/fleetbus/fleetbus/internal/hardening/conf"
	"github.com/fleetbus/fleetbus/internal/hardening/erlang"
)

//go:embed rabbitkeys.txt
var rabbitKeyNames string

var rabbitKeys = sync.OnceValue(func() [][]string {
	var all [][]string
	for line := range strings.Lines(rabbitKeyNames) {
		all = append(all, strings.Split(strings.TrimSpace(line), "."))
	}
	return all
})

// A setting is one that is in force, and where it stands.
type setting struct {
	key, value string
	at         place
}

// settings are those of a broker or a service, by key: the last one of a key counts.
type settings struct {
	by   map[string]setting
	keys []string // in the order in which they came up
}

func newSettings() *settings { return &settings{by: map[string]setting{}} }

func (s *settings) put(key, value string, at place) {
	if _, there := s.by[key]; !there {
		s.keys = append(s.keys, key)
	}
	s.by[key] = setting{key, value, at}
}

func (s *settings) drop(prefix string) {
	s.keys = slices.DeleteFunc(s.keys, func(k string) bool {
		if k == prefix || strings.HasPrefix(k, prefix+".") {
			delete(s.by, k)
			return true
		}
		return false
	})
}

// get is the setting of a key; ok is false if there is none.
func (s *settings) get(key string) (v setting, ok bool) {
	v, ok = s.by[key]
	return v, ok
}

// is reports whether a key has that value, in any case of letters.
func (s *settings) is(key, value string) bool {
	v, ok := s.by[key]
	return ok && strings.EqualFold(v.value, value)
}

// below are the settings whose keys begin with prefix and a dot.
func (s *settings) below(prefix string) (all []setting) {
	for _, k := range s.keys {
		if strings.HasPrefix(k, prefix+".") {
			all = append(all, s.by[k])
		}
	}
	return all
}

// at is where a key stands, or main, where it is missing.
func (s *settings) at(key string, main *file) place {
	if v, ok := s.by[key]; ok {
		return v.at
	}
	return in(main)
}

// A node is a broker of RabbitMQ and its files.
type node struct {
	*settings
	dir         string // of its main file
	conf        []*file
	classic     *file
	advanced    *file
	env         *file
	plugins     *file
	cookie      *file
	dist        []*file
	definitions []*file
	main        *file
	variables   *settings
	enabled     []string
	pluginsRead bool
	defined     string // the version that wrote the definitions
}

// kindOf says which of RabbitMQ's files one is; empty if it is none.
func rabbitFile(f *file) string {
	base, dir := filepath.Base(f.Path), filepath.Base(filepath.Dir(f.Path))
	lower := strings.ToLower(base)
	text := bytes.TrimSpace(bytes.TrimPrefix(f.Data, []byte("\ufeff")))
	// In a directory with files of others, too, these are RabbitMQ's.
	ours := f.asked || strings.Contains(strings.ToLower(f.Path), "rabbit") || bytes.Contains(text, []byte("ssl_options.")) || bytes.Contains(text, []byte("listeners."))
	switch {
	case strings.HasSuffix(lower, "erlang.cookie"):
		return "cookie"
	case lower == "enabled_plugins":
		return "plugins"
	case lower == "rabbitmq-env.conf" || lower == "rabbitmq-env" || strings.HasSuffix(lower, "-env.conf"):
		return "env"
	case strings.HasSuffix(lower, ".json"):
		if bytes.Contains(text, []byte(`"users"`)) || bytes.Contains(text, []byte(`"permissions"`)) || bytes.Contains(text, []byte(`"rabbit_version"`)) || bytes.Contains(text, []byte(`"queues"`)) {
			return "definitions"
		}
		return ""
	case isUnit(f) || isFilter(f) || isConfinement(f) || lower == "passwd" || bytes.HasPrefix(text, []byte("-----BEGIN")):
		return ""
	case strings.HasSuffix(lower, ".config"):
		switch {
		case lower == "advanced.config":
			return "advanced"
		case strings.Contains(lower, "dist") || strings.Contains(lower, "inter_node") || strings.Contains(lower, "internode"):
			return "dist"
		case bytes.HasPrefix(text, []byte("[")) && bytes.Contains(text, []byte("{server")) && bytes.Contains(text, []byte("certfile")) && !bytes.Contains(text, []byte("{rabbit")):
			return "dist"
		case bytes.Contains(text, []byte("{rabbit")) || ours && (bytes.HasPrefix(text, []byte("[")) || bytes.HasPrefix(text, []byte("%"))):
			return "classic"
		}
		return ""
	case lower == "rabbitmq.conf" || dir == "conf.d" && ours && !lineBegins(text, "[DEFAULT]"):
		// Some keep the terms of Erlang in a file with the new name.
		if bytes.HasPrefix(text, []byte("[")) && bytes.HasSuffix(text, []byte("].")) {
			return "classic"
		}
		return "conf"
	case strings.HasSuffix(lower, ".conf") && (strings.Contains(lower, "rabbit") || bytes.Contains(text, []byte("listeners.")) || bytes.Contains(text, []byte("ssl_options."))) && !lineBegins(text, "[DEFAULT]"):
		return "conf"
	}
	return ""
}

// nodes sorts the files that were found into brokers.
func (a *audit) nodes() (all []*node) {
	of := func(f *file) *node {
		dir := filepath.Dir(f.Path)
		if filepath.Base(dir) == "conf.d" {
			dir = filepath.Dir(dir)
		}
		for _, n := range all {
			if n.dir == dir {
				return n
			}
		}
		n := &node{settings: newSettings(), dir: dir, variables: newSettings()}
		all = append(all, n)
		return n
	}
	var others []*file
	for _, f := range a.disk.files {
		switch rabbitFile(f) {
		case "conf":
			n := of(f)
			n.conf = append(n.conf, f)
		case "classic":
			of(f).classic = f
		case "advanced":
			of(f).advanced = f
		case "":
		default:
			others = append(others, f)
		}
	}
	for _, f := range others {
		n := nearest(all, f)
		if n == nil {
			n = of(f)
		}
		switch rabbitFile(f) {
		case "cookie":
			n.cookie = f
		case "plugins":
			n.plugins = f
		case "env":
			n.env = f
		case "dist":
			n.dist = append(n.dist, f)
		case "definitions":
			n.definitions = append(n.definitions, f)
		}
	}
	return all
}

// nearest is the broker whose directory has the most in common with a file's.
func nearest(all []*node, f *file) (best *node) {
	most := -1
	for _, n := range all {
		x, y := strings.Split(filepath.ToSlash(n.dir), "/"), strings.Split(filepath.ToSlash(filepath.Dir(f.Path)), "/")
		same := 0
		for same < len(x) && same < len(y) && x[same] == y[same] {
			same++
		}
		if same > most {
			best, most = n, same
		}
	}
	return best
}

// read reads the settings of a broker.
func (a *audit) readNode(n *node) {
	// rabbitmq.conf first, and those of conf.d in their order.
	slices.SortStableFunc(n.conf, func(x, y *file) int {
		main := func(f *file) int {
			if filepath.Base(filepath.Dir(f.Path)) == "conf.d" {
				return 1
			}
			return 0
		}
		if d := main(x) - main(y); d != 0 {
			return d
		}
		return strings.Compare(x.Path, y.Path)
	})
	if n.env != nil {
		n.env.used = true
		entries, problems := conf.Variables(n.env.Data)
		a.problems(n.env, problems)
		for _, e := range entries {
			key := strings.TrimPrefix(e.Key, "RABBITMQ_")
			n.variables.put(key, e.Value, place{n.env.Path, e.Line, e.Key + "=" + e.Value})
		}
	}
	if n.plugins != nil {
		n.plugins.used = true
		terms, err := erlang.Parse(n.plugins.Data)
		if err != nil {
			a.erlangProblem(n.plugins, err)
		} else if len(terms) > 0 {
			n.pluginsRead = true
			for _, t := range terms[0].Items {
				n.enabled = append(n.enabled, t.Text)
			}
		}
	}
	old := n.classic != nil && len(n.conf) > 0 && filepath.Base(n.conf[0].Path) == "rabbitmq.conf" && filepath.Base(n.classic.Path) == "rabbitmq.config"
	if old {
		a.warn(rulePlugins, in(n.classic), "move what it has to rabbitmq.conf and advanced.config, and remove it",
			"rabbitmq.config and rabbitmq.conf are both there: RabbitMQ takes the old one, rabbitmq.config, and reads nothing of %s", n.conf[0].Path)
	}
	if n.classic != nil {
		n.main = n.classic
		a.readTerms(n, n.classic)
	}
	for _, f := range n.conf {
		f.used = true
		entries, problems := conf.Rabbit(f.Data)
		a.problems(f, problems)
		if conf.Marked(f.Data) {
			a.unknown(ruleRead, place{file: f.Path, line: 1}, "save it without a byte order mark", "it begins with a byte order mark, with which RabbitMQ does not start; it was judged without")
		}
		if old {
			continue
		}
		if n.main == nil {
			n.main = f
		}
		for _, e := range entries {
			at := place{f.Path, e.Line, e.Key + " = " + e.Value}
			a.knownKey(e.Key, at)
			n.put(e.Key, e.Value, at)
		}
	}
	if n.advanced != nil {
		if n.main == nil {
			n.main = n.advanced
		}
		a.readTerms(n, n.advanced)
	}
	if n.main == nil {
		for _, f := range []*file{n.env, n.plugins} {
			if f != nil && n.main == nil {
				n.main = f
			}
		}
	}
}

// problems tells of the lines that could not be read.
func (a *audit) problems(f *file, problems []conf.Problem) {
	for i, p := range problems {
		if i == 20 {
			a.unread(f.Path, p.Line, "%d more lines are not understood", len(problems)-i)
			return
		}
		a.unread(f.Path, p.Line, "%s", p.Why)
	}
}

func (a *audit) erlangProblem(f *file, err error) {
	line, why := 0, err.Error()
	if e, ok := err.(*erlang.Error); ok { //nolint:errorlint // it is what Parse returns
		line, why = e.Line, e.Why
	}
	a.unread(f.Path, line, "it is no file of Erlang's terms: %s", why)
}

// readTerms reads a file of Erlang's terms into settings with the names that they have in
// rabbitmq.conf.
func (a *audit) readTerms(n *node, f *file) {
	f.used = true
	terms, err := erlang.Parse(f.Data)
	if err != nil {
		a.erlangProblem(f, err)
		return
	}
	if len(terms) != 1 || terms[0].Kind != erlang.List {
		a.unread(f.Path, 1, "it is not one list with a dot behind it")
		return
	}
	for _, app := range terms[0].Items {
		name, list, ok := app.Pair()
		if !ok || list.Kind != erlang.List {
			a.unread(f.Path, app.Line, "an item is not {application, [settings]}")
			continue
		}
		prefix := map[string]string{"rabbit": "", "rabbitmq_management": "management.", "rabbitmq_prometheus": "prometheus.", "rabbitmq_mqtt": "mqtt.", "rabbitmq_stomp": "stomp.",
			"rabbitmq_stream": "stream.", "rabbitmq_web_mqtt": "web_mqtt.", "rabbitmq_web_stomp": "web_stomp.", "rabbitmq_amqp1_0": "amqp1_0.", "kernel": "kernel.", "ssl": "ssl."}
		p, judged := prefix[name]
		if !judged {
			if near := nearestOf(name, []string{"rabbit", "rabbitmq_management", "rabbitmq_mqtt", "rabbitmq_stomp", "rabbitmq_prometheus"}); near != "" {
				a.warn(ruleKeys, place{f.Path, app.Line, "{" + name + ", …}"}, "write "+near, "there is no application %q; did you mean %q?", name, near)
			}
			continue
		}
		for _, item := range list.Items {
			key, value, ok := item.Pair()
			if !ok {
				if item.Kind == erlang.Atom { // an atom alone is true
					n.put(p+item.Text, "true", place{f.Path, item.Line, item.Text})
					continue
				}
				a.unread(f.Path, item.Line, "a setting of %s is not {key, value}", name)
				continue
			}
			n.term(a, f, p, key, value, item.Line)
		}
	}
}

// term puts one term of Erlang's.
func (n *node) term(a *audit, f *file, prefix, key string, v erlang.Term, line int) {
	at := func(t erlang.Term, k string) place { return place{f.Path, t.Line, "{" + k + ", " + t.Plain() + "}"} }
	here := place{f.Path, line, "{" + key + ", " + v.Plain() + "}"}
	name := prefix + key
	switch key {
	case "tcp_listeners", "ssl_listeners":
		kind := strings.TrimSuffix(key, "_listeners")
		name := prefix + "listeners." + kind
		n.drop(name)
		if len(v.Items) == 0 {
			n.put(name, "none", here)
		}
		for i, l := range v.Items {
			text := l.Plain()
			if l.Kind == erlang.Tuple && len(l.Items) > 1 {
				text = l.Items[0].Plain() + ":" + l.Items[1].Plain()
			}
			n.put(name+"."+itoa(i+1), text, at(l, key))
		}
	case "loopback_users":
		n.drop(name)
		if len(v.Items) == 0 {
			n.put(name, "none", here)
		}
		for _, u := range v.Items {
			n.put(name+"."+u.Text, "true", here)
		}
	case "auth_mechanisms", "auth_backends":
		n.drop(name)
		for i, m := range v.Items {
			n.put(name+"."+itoa(i+1), m.Plain(), here)
		}
	case "versions": // of the application ssl
		n.drop(name)
		for i, m := range v.Items {
			n.put(name+"."+itoa(i+1), strings.Trim(m.Text, "'"), here)
		}
	case "ssl_options", "ssl_opts", "listener", "tcp_config", "ssl_config":
		to := map[string]string{"tcp_config": "tcp", "ssl_config": "ssl"}[key]
		if to == "" {
			to = key
		}
		n.proplist(a, f, prefix+to, v)
	case "default_permissions":
		for i, right := range []string{"configure", "write", "read"} {
			if i < len(v.Items) {
				n.put(name+"."+right, v.Items[i].Plain(), here)
			}
		}
	case "cluster_nodes":
		nodes := v.Items
		if v.Kind == erlang.Tuple && len(v.Items) > 0 {
			nodes = v.Items[0].Items
		}
		for i, m := range nodes {
			n.put("cluster_formation.classic_config.nodes."+itoa(i+1), m.Text, here)
		}
	case "cluster_partition_handling":
		if v.Kind == erlang.Tuple && len(v.Items) > 0 {
			n.put(name, v.Items[0].Text, here)
			break
		}
		n.put(name, v.Plain(), here)
	case "log_levels":
		for _, item := range v.Items {
			if category, level, ok := item.Pair(); ok {
				n.put("log."+category+".level", level.Plain(), at(item, key))
			}
		}
	case "log":
		n.logTerm(f, v)
	case "vm_memory_high_watermark", "disk_free_limit":
		unit, value := "relative", v
		if key == "disk_free_limit" {
			unit = "absolute"
		}
		if v.Kind == erlang.Tuple && len(v.Items) == 2 {
			unit, value = map[bool]string{true: "absolute", false: "relative"}[v.Items[0].Is("absolute")], v.Items[1]
		}
		n.put(name+"."+unit, value.Plain(), here)
	case "default_user":
		if prefix == "stomp." {
			for _, item := range v.Items {
				if k, value, ok := item.Pair(); ok {
					n.put(name+"."+k, value.Plain(), at(item, k))
				}
			}
			break
		}
		n.put(name, v.Plain(), here)
	default:
		if v.Kind == erlang.List && len(v.Items) > 0 && v.Items[0].Kind == erlang.Tuple {
			n.proplist(a, f, name, v)
			break
		}
		if prefix == "" {
			if near := nearestOf(key, []string{"tcp_listeners", "ssl_listeners", "ssl_options", "auth_mechanisms", "loopback_users", "default_user", "default_pass", "password_hashing_module", "ssl_cert_login_from", "anonymous_login_user", "ssl_allow_poodle_attack", "cluster_partition_handling"}); near != "" && near != key {
				a.warn(ruleKeys, place{f.Path, line, "{" + key + ", …}"}, "write "+near, "there is no key %q of rabbit; did you mean %q?", key, near)
			}
		}
		n.put(name, v.Plain(), here)
	}
}

// proplist puts the keys of a list of pairs.
func (n *node) proplist(a *audit, f *file, prefix string, list erlang.Term) {
	for _, item := range list.Items {
		key, value, ok := item.Pair()
		if !ok {
			continue
		}
		at := place{f.Path, item.Line, "{" + key + ", " + value.Plain() + "}"}
		if strings.Contains(prefix, "ssl") && !strings.HasPrefix(prefix, "ssl.") {
			a.knownKeyAs(prefix+"."+key, key, at)
		}
		switch {
		case key == "versions" || key == "ciphers":
			n.drop(prefix + "." + key)
			for i, v := range value.Items {
				n.put(prefix+"."+key+"."+itoa(i+1), v.Plain(), at)
			}
		case (key == "ssl_opts" || key == "ssl_options") && value.Kind == erlang.List:
			n.proplist(a, f, prefix+"."+key, value)
		default:
			n.put(prefix+"."+key, value.Plain(), at)
		}
	}
}

// logTerm puts what {log, […]} has of levels.
func (n *node) logTerm(f *file, v erlang.Term) {
	for _, item := range v.Items {
		sink, list, ok := item.Pair()
		if !ok {
			continue
		}
		for _, each := range list.Items {
			key, value, ok := each.Pair()
			switch {
			case ok && key == "level":
				n.put("log."+sink+".level", value.Plain(), place{f.Path, each.Line, "{" + key + ", " + value.Plain() + "}"})
			case ok && sink == "categories":
				for _, inner := range value.Items {
					if k, level, ok := inner.Pair(); ok && k == "level" {
						n.put("log."+key+".level", level.Plain(), place{f.Path, inner.Line, "{level, " + level.Plain() + "}"})
					}
				}
			}
		}
	}
}

// knownKey tells of a key that RabbitMQ does not have.
func (a *audit) knownKey(key string, at place) { a.knownKeyAs(key, key, at) }

func (a *audit) knownKeyAs(key, shown string, at place) {
	at.text = shown + " …" // a password may stand there whose key has a typing error
	parts := strings.Split(key, ".")
	first := false
	if lower := strings.ToLower(key); lower != key && shown == key && slices.ContainsFunc(rabbitKeys(), func(k []string) bool { return matches(k, strings.Split(lower, ".")) && !matches(k, parts) }) &&
		!slices.ContainsFunc(rabbitKeys(), func(k []string) bool { return matches(k, parts) }) {
		a.warn(ruleKeys, at, "write "+lower, "unknown key %q: keys are in small letters; what it should set is not set", key)
		return
	}
	best, far := "", 3
	for _, known := range rabbitKeys() {
		first = first || known[0] == parts[0]
		if matches(known, parts) {
			return
		}
		if len(known) != len(parts) {
			continue
		}
		d := 0
		for i := range known {
			if known[i] != "*" {
				d += distance(known[i], parts[i])
			}
		}
		if d < far {
			best, far = strings.ReplaceAll(strings.Join(known, "."), "*", "NAME"), d
		}
	}
	// In files of Erlang, keys have more names than in rabbitmq.conf.
	if shown != key && best == "" {
		return
	}
	switch {
	case best != "":
		if shown != key {
			best = best[strings.LastIndex(best, ".")+1:]
			if best == "NAME" {
				return
			}
		}
		a.warn(ruleKeys, at, "write "+best, "unknown key %q; did you mean %q? What it should set is not set", shown, best)
	case first:
		a.warn(ruleKeys, at, "look it up in RabbitMQ's guide, and remove it or write it right", "unknown key %q: RabbitMQ does not start with it, or sets nothing", shown)
	case len(parts) == 1 && slices.ContainsFunc(rabbitKeys(), func(k []string) bool { return len(k) == 2 && k[0] == "ssl_options" && k[1] == key }):
		a.warn(ruleKeys, at, "write ssl_options."+key, "unknown key %q; did you mean %q? What it should set is not set", key, "ssl_options."+key)
	default:
		a.unknown(ruleKeys, at, "", "key %q is none of RabbitMQ or of the plug-ins that come with it", shown)
	}
}

func matches(known, parts []string) bool {
	if len(known) != len(parts) {
		return false
	}
	for i := range known {
		if known[i] != "*" && known[i] != parts[i] {
			return false
		}
	}
	return true
}

// nearestOf is the word that is most like another one, if one is.
func nearestOf(word string, words []string) (best string) {
	far := 3
	for _, w := range words {
		if d := distance(word, w); d < far && d < len(w)/2 {
			best, far = w, d
		}
	}
	return best
}

// distance counts the letters that differ: Levenshtein's, where two that changed places
// count as one.
func distance(a, b string) int {
	if d := len(a) - len(b); d > 3 || d < -3 {
		return 9
	}
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
