package hardening

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestShipped has what well-known installers write, with the rules that each breaks.
func TestShipped(t *testing.T) {
	made := pems(t)
	for _, c := range []struct {
		name string
		kind Kind
		want string
	}{
		{"containers.txtar", RabbitMQ, "1:fail 7:fail 11:fail 13:warn 14:fail 15:fail 25:fail V7:fail"},
		{"puppet.txtar", RabbitMQ, "1:fail 2:fail 3:fail 5:fail 5:warn 6:fail 11:fail 13:warn 25:fail"},
		{"oneliner.txtar", RabbitMQ, "1:fail 11:fail 13:warn 14:fail 25:fail V1:fail V8:warn"},
		{"installer.txtar", OpenStack, "1:fail 11:fail 12:fail 14:fail 17:warn 27:fail 27:warn"},
		{"chapter.txtar", OpenStack, "8:fail 13:warn 14:fail"},
		{"foreman.txtar", Qpid, "2:fail 18:fail 20:fail 26:warn"},
	} {
		s := load(t, c.name, made)
		r := audited(t, c.kind, s, Options{})
		if got := strings.Join(sorted(verdicts(r)), " "); got != strings.Join(sorted(c.want), " ") {
			t.Errorf("%s: %s\nwant %s", c.name, got, c.want)
			show(t, r)
		}
	}
}

func sorted(words string) []string {
	m := map[string]bool{}
	for _, w := range strings.Fields(words) {
		m[w] = true
	}
	return sortedKeys(m)
}

// TestSecrets plants secrets in every place where one may stand, and looks for them in all
// that is told.
func TestSecrets(t *testing.T) {
	files := map[string]string{
		"a/etc/rabbitmq/rabbitmq.conf":          "listeners.tcp.1 = 10.0.0.1:5672\ndefault_user = u\ndefault_pass = PlantedAAAAAAAA\nssl_options.password = PlantedBB\ndefault_users.x.password = PlantedCCCC\nstomp.default_pass = PlantedDD\ndefault_pas = PlantedEE\nunknown.password = PlantedFF\nPlantedGG\ndistributed_cookie = PlantedHH\nmanagement.oauth_client_secret = PlantedII\n",
		"a/etc/rabbitmq/advanced.config":        "[{rabbit, [{default_pass, <<\"PlantedJJJJ\">>}, {ssl_options, [{password, \"PlantedKKKK\"}]}, {default_pas, \"PlantedLL\"}]}].",
		"a/etc/rabbitmq/rabbitmq-env.conf":      "SERVER_ADDITIONAL_ERL_ARGS=\"-setcookie PlantedMMMM -kernel x\"\nERLANG_COOKIE=PlantedNNNN\n",
		"a/etc/rabbitmq/definitions.json":       `{"users": [{"name": "x", "password": "PlantedOO"}, {"name": "y", "password_hash": "UGxhbnRlZFBQUFBQUFBQUFBQ"}]}`,
		"a/var/lib/rabbitmq/.erlang.cookie":     "PlantedQQ",
		"b/etc/nova/nova.conf":                  "[DEFAULT]\ntransport_url = rabbit://nova:PlantedRR@h:5672,nova:PlantedRR@i:5672/v?password=PlantedSS\ntransport_urls = rabbit://x:PlantedTT@h/\nrabbit_password = PlantedUUUU\n[oslo_messaging_rabbit]\nrabbit_password = PlantedVV\nrabbit_pasword = PlantedWW\n[oslo_messaging_notifications]\ntransport_url = rabbit://a:Pla/nted%ZZXX@h\n",
		"c/etc/qpid/qpidd.conf":                 "ha-cluster=yes\nha-username=q\nha-password=PlantedYY\ncluster-pasword=PlantedZZ\nssl-cert-db=/etc/qpid/db\nssl-cert-password-file=/etc/qpid/pw\n",
		"c/etc/qpid/pw":                         "Planted00",
		"b/etc/systemd/system/nova-api.service": "[Service]\nUser=root\nEnvironment=OS_PASSWORD=Planted11\n",
	}
	dir := t.TempDir()
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for kind, part := range map[Kind]string{RabbitMQ: "a", OpenStack: "b", Qpid: "c"} {
		r, err := Audit(kind, []string{filepath.Join(dir, part)}, Options{Now: now})
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range []any{r, r.SARIF("1", part)} {
			text, err := json.Marshal(v)
			if err != nil {
				t.Fatal(err)
			}
			for _, planted := range []string{"Planted", "UGxhbnRlZ", "nted%ZZ"} {
				if i := strings.Index(string(text), planted); i >= 0 {
					t.Errorf("%s tells a secret: …%s…", kind, text[max(0, i-120):min(len(text), i+40)])
				}
			}
		}
	}
}

// TestTogether has all files of a machine in one directory, with those of others: each kind
// finds its own.
func TestTogether(t *testing.T) {
	made := pems(t)
	all := load(t, "rabbitmq.txtar", made)
	for _, name := range []string{"qpid.txtar", "openstack.txtar"} {
		s := load(t, name, made)
		for path, data := range s.files {
			path2 := strings.TrimPrefix(strings.TrimPrefix(path, "ctl1/"), "cmp1/")
			all.files[path2], all.modes[path2] = data, s.modes[path]
		}
	}
	for path, data := range map[string]string{
		"etc/nginx/conf.d/site.conf": "server {\n  listen 80;\n}\n", "etc/apache2/conf.d/x.conf": "Listen 80\n", "etc/other/app.config": "<configuration/>\n", "etc/sasl2/smtpd.conf": "mech_list: PLAIN\n",
		"etc/other.json": "{\"users\": 1", "etc/ldap/ldap.conf": "TLS_CACERT x\n", "etc/nfs/acl.conf": "what is this\n", "etc/my.cnf": "[mysqld]\nport=1\n", "etc/erl/sys.config": "[{kernel, []}].\n",
	} {
		all.files[path], all.modes[path] = data, 0o640
	}
	delete(all.files, "etc/other.json")
	for _, kind := range []Kind{RabbitMQ, Qpid, OpenStack} {
		r := audited(t, kind, all, Options{})
		if r.Failed+r.Warned+r.Unread > 0 {
			t.Errorf("%s: %s", kind, verdicts(r))
			show(t, r)
		}
	}
}

// TestRoot reads a copy of a machine by the paths that files have there.
func TestRoot(t *testing.T) {
	s := load(t, "rabbitmq.txtar", pems(t))
	dir := s.write(t)
	r, err := Audit(RabbitMQ, []string{"/etc/rabbitmq"}, Options{Root: dir, Now: now})
	if err != nil || r.Failed+r.Warned+r.Unread+r.Missing > 0 {
		t.Errorf("%v", err)
		show(t, r)
	}
	if len(r.Files) < 10 {
		t.Errorf("only these files were read: %v", r.Files)
	}
	if _, err := Audit(Qpid, []string{"/etc/rabbitmq"}, Options{Root: dir, Now: now}); !errors.Is(err, ErrNothing) {
		t.Errorf("nothing there is of Qpid: %v", err)
	}
}

// TestUnread has what cannot be read be told, with its line.
func TestUnread(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"rabbitmq.conf": "listeners.tcp = none\nwhat is this\n", "advanced.config": "[{rabbit,\n [oops}]."} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r, err := Audit(RabbitMQ, []string{dir, filepath.Join(dir, "none")}, Options{Now: now})
	if err != nil || r.Unread != 2 || r.Missing != 1 {
		t.Fatalf("%+v, %v", r, err)
	}
	lines := map[string]int{}
	for _, f := range r.Findings {
		if f.Rule == ruleRead {
			lines[filepath.Base(f.File)] = f.Line
		}
	}
	if lines["rabbitmq.conf"] != 2 || lines["advanced.config"] != 2 {
		t.Errorf("%v", lines)
	}
}

// TestDocument has docs/audit.md name every rule, by its title.
func TestDocument(t *testing.T) {
	text, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range Rules() {
		if !strings.Contains(string(text), "\n| "+r.ID+" | "+r.Title+" |") {
			t.Errorf("docs/audit.md has no line for rule %s, %q", r.ID, r.Title)
		}
	}
}

func FuzzTransport(f *testing.F) {
	for _, seed := range []string{"rabbit://a:b@c:5671,d:e@[::1]:5671/v?ssl=1", "rabbit://", "x://a@b@c:1/%zz", "qpid:///"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		parsed, err := parseTransport(text)
		if err != nil {
			return
		}
		for _, h := range parsed.hosts {
			if h.port < 0 || h.port > 65535 {
				t.Fatalf("port %d", h.port)
			}
		}
		_ = parsed.masked()
	})
}

func FuzzDefinitions(f *testing.F) {
	for _, seed := range []string{`{"users": [{"name": "a"}, 1], "x": 2}`, `{"a": [[], {}]}`, "[]", `{"users": "x"`} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		all, _ := items(data)
		lines := strings.Count(string(data), "\n") + 1
		for _, list := range all {
			for _, i := range list {
				if i.line < 1 || i.line > lines {
					t.Fatalf("line %d of %d", i.line, lines)
				}
			}
		}
	})
}
