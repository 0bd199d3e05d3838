package config

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestImportChoria(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		notes          []string
	}{{
		name: "a broker of three",
		in: `
# The broker.
identity = broker1.example.net
loglevel = warn
plugin.choria.broker_network = true
plugin.choria.network.client_port = 4223
plugin.choria.network.public_url = nats://broker.example.net:4223
plugin.choria.network.peers = nats://broker1.example.net:5222, nats://u:secret@broker2.example.net:5222,broker3.example.net
plugin.choria.network.peer_user = choria
plugin.choria.network.peer_password = secret
plugin.choria.network.tls_timeout = 5s
plugin.choria.network.auth_timeout=10
plugin.choria.network.gateway_name = EU.WEST
plugin.choria.stats_port = 8222
plugin.choria.stats_address = 0.0.0.0
plugin.security.provider = file
plugin.security.file.certificate = /etc/choria/cert.pem
plugin.security.file.key = /etc/choria/key.pem
plugin.security.file.ca = /etc/choria/ca.pem
plugin.choria.network.leafnode_remotes = OPS
plugin.choria.network.leafnode_remote.OPS.credential = /etc/choria/secret.creds
plugin.choria.network.leafnode_remote.OPS.credentials = /etc/choria/secret.creds
plugin.choria.network.stream.store = /var/lib/choria
plugin.choria.network.stream.event_retention = 48h
`,
		want: `# Taken over from a Choria broker.
mode: mesh
name: broker1
data_dir: /var/lib/fleetbus
advertise: broker1.example.net
monitor: 127.0.0.1:8222
listeners:
  nats:
    addr: :4223
    advertise: broker.example.net:4223
cluster:
  name: EU-WEST
  addr: :5222
  routes: ['broker1.example.net:5222', 'broker2.example.net:5222', 'broker3.example.net:5222']
tls:
  cert: /etc/choria/cert.pem
  key: /etc/choria/key.pem
  ca: [/etc/choria/ca.pem]
limits:
  handshake_timeout: 10s
log:
  level: warn
`,
		notes: []string{
			"line 3: identity became name", "line 5: plugin.choria.broker_network became mode", "line 9: plugin.choria.network.peer_user is left out",
			"line 10: plugin.choria.network.peer_password is left out: nodes prove", "line 11: plugin.choria.network.tls_timeout became limits.handshake_timeout",
			"line 12: plugin.choria.network.auth_timeout", "line 13: plugin.choria.network.gateway_name became cluster.name", "line 14: plugin.choria.stats_port became monitor",
			"line 15: plugin.choria.stats_address", "line 16: plugin.security.provider is left out", "line 20: plugin.choria.network.leafnode_remotes is left out",
			"line 21: plugin.choria.network.leafnode_remote.OPS.credential is left out", "line 22: plugin.choria.network.leafnode_remote.OPS.credentials is left out",
			"line 23: plugin.choria.network.stream.store became data_dir", "line 24: plugin.choria.network.stream.event_retention is left out: streams are made",
			"data_dir is new", "the user and password in the URL of broker2.example.net:5222", `"EU.WEST" became "EU-WEST"`, "a client comes in by its certificate",
		},
	}, {
		name: "alone, with what cannot be read",
		in: `plugin.choria.network.client_port = many
plugin.choria.network.client_port = 70000
libdir = /opt
nonsense
plugin.choria.network.tls_timeout = soon
plugin.choria.network.peer_port = 0
plugin.choria.network.listen_address = 10.0.0.1
loglevel = fatal
plugin.choria.network.soft_shutdown_timeout = 30
plugin.choria.network.nothing.of.that = x
`,
		want: `# Taken over from a Choria broker.
mode: mesh
data_dir: /var/lib/fleetbus
grace: 30s
listeners:
  nats:
    addr: 10.0.0.1:4222
cluster:
  addr: 10.0.0.1:5222
log:
  level: error
`,
		notes: []string{
			"line 2: plugin.choria.network.client_port stands on line 1 already", "line 4 is not a key", "line 3: libdir is not known here",
			"line 5: plugin.choria.network.tls_timeout became", "line 9: plugin.choria.network.soft_shutdown_timeout became grace", "line 10: plugin.choria.network.nothing.of.that is not known here",
			"data_dir is new", "line 2: the value of plugin.choria.network.client_port is not a port", "line 5: the value of plugin.choria.network.tls_timeout is not a duration",
			"without files of your own", "plugin.choria.broker_network is not set",
		},
	}} {
		t.Run(tt.name, func(t *testing.T) {
			got, notes, err := ImportChoria([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			wantImport(t, got, notes, tt.want, tt.notes)
		})
	}
	for in, want := range map[string]string{"": "no plugin.choria. key", "a = b": "no plugin.choria. key", "plugin.choria.x = \xff": "UTF-8", strings.Repeat("#", maxFile+1): "larger"} {
		if _, _, err := ImportChoria([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.20q: %v", in, err)
		}
	}
}

// TestChoriaKeys holds the table to the keys that exist here, and to what is really
// taken over: of each key alone something comes, or it is said why not.
func TestChoriaKeys(t *testing.T) {
	known := map[string]bool{}
	for _, k := range settings(protocolNames()) {
		known[k.Path] = true
	}
	values := map[string]string{
		"identity": "b1.example.net", "loglevel": "debug", "peers": "b2:5222", "public_url": "b1:4222", "client_port": "4223", "listen_address": "127.0.0.1",
		"peer_port": "5223", "gateway_name": "EU", "tls_timeout": "3s", "auth_timeout": "3s", "soft_shutdown_timeout": "5", "stats_port": "8222", "stats_address": "127.0.0.2",
	}
	bare, _, err := ImportChoria([]byte("plugin.choria.use_srv = 0\nplugin.choria.stats_port = 8223"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, k := range choriaKeys() {
		name := strings.ReplaceAll(k.theirs, "*", "X.Y")
		if seen[k.theirs] || strings.Count(k.theirs, "*") > 1 {
			t.Errorf("%s is there twice, or has too many names", k.theirs)
		}
		seen[k.theirs] = true
		if k.ours != "" && !known[k.ours] {
			t.Errorf("%s becomes %s, which does not exist", k.theirs, k.ours)
		}
		value, ok := values[name[strings.LastIndexByte(name, '.')+1:]]
		if !ok {
			value = "/x"
		}
		line := fmt.Sprintf("%s = %s", name, value)
		got, notes, err := ImportChoria([]byte("plugin.choria.use_srv = 0\nplugin.choria.stats_port = 8223\n" + line))
		if err != nil {
			t.Fatal(err)
		}
		said := slices.ContainsFunc(notes, func(n string) bool { return strings.HasPrefix(n, "line 3: "+name+" ") })
		always := k.ours == "mode" || k.ours == "data_dir"
		switch {
		case k.ours == "" && (!said || k.remark == ""):
			t.Errorf("of %s nothing comes, and nobody says why: %q", k.theirs, notes)
		case k.ours != "" && string(got) == string(bare) && !always:
			t.Errorf("of %s nothing comes", k.theirs)
		}
	}
}

// TestChoriaPage holds the page to the table.
func TestChoriaPage(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "from-choria.md")
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("| their key | our key | remarks |\n|---|---|---|\n")
	for _, k := range choriaKeys() {
		ours := "none"
		if k.ours != "" {
			ours = "`" + k.ours + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s |\n", strings.ReplaceAll(k.theirs, "*", "NAME"), ours, k.remark)
	}
	begin := strings.Index(string(page), "| their key |")
	if begin < 0 {
		t.Fatal("the page has no table")
	}
	length := strings.Index(string(page)[begin:], "\n\n") + 1
	if *update {
		if err := os.WriteFile(path, slices.Concat(page[:begin], []byte(b.String()), page[begin+length:]), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if string(page)[begin:begin+length] != b.String() {
		t.Error("the table of keys has changed: run go test ./internal/config -update")
	}
}

func FuzzImportChoria(f *testing.F) {
	f.Add([]byte("identity = a\u0085b\nplugin.choria.network.peers = [::1]:1, nats://x@y/z\nplugin.choria.network.client_port = 1"))
	f.Add([]byte("plugin.choria.network.stream.event_retention==\nplugin.security.file.ca = a, b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, _, err := ImportChoria(data)
		if err != nil {
			return
		}
		if _, problems, _ := parse("ours", ours); len(problems) > 0 {
			t.Errorf("the import cannot be read: %v\n%s", problems, ours)
		}
	})
}
