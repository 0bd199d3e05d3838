package config

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func TestImportBindplane(t *testing.T) {
	for _, tt := range []struct {
		name, in, want string
		notes          []string
	}{{
		name: "three servers, each a node",
		in: `
eventBus:
  type: nats
  nats:
    client: {name: bindplane-0, endpoint: "nats://localhost:4222", subject: bindplane-event-bus}
    server:
      enable: true
      name: bindplane-0.corp
      client: {host: localhost, port: 4222}
      http: {host: 0.0.0.0, port: 8222}
      cluster:
        name: bindplane
        host: '0.0.0.0'
        port: 6222
        advertise: bindplane-0.corp.net:6222
        routes: ['nats://bindplane-0.corp.net:6222', 'nats://u:secret@bindplane-1.corp.net:6222', bindplane-2.corp.net]
`,
		want: `# Taken over from BindPlane's event bus.
mode: mesh
name: bindplane-0-corp
data_dir: /var/lib/fleetbus
monitor: 127.0.0.1:8222
listeners:
  nats:
    addr: localhost:4222
cluster:
  name: bindplane
  addr: 0.0.0.0:6222
  advertise: bindplane-0.corp.net:6222
  routes: ['bindplane-0.corp.net:6222', 'bindplane-1.corp.net:6222', 'bindplane-2.corp.net:6222']
client:
  name: bindplane-0
  endpoints: ['localhost:4222']
  subject_prefix: bindplane-event-bus
`,
		notes: []string{
			"eventBus.nats.client.subject was one subject", `"bindplane-0.corp" became "bindplane-0-corp"`, "data_dir is new",
			"the user and password in the URL of bindplane-1.corp.net:6222", "eventBus.nats.server.http 0.0.0.0:8222 became 127.0.0.1:8222",
			"used in mode client only", "TLS is always on",
		},
	}, {
		name: "a client of other servers, with the other spellings",
		in: `
network: {host: 0.0.0.0}
eventBus:
  type: nats
  health: {requiredHosts: 3}
  kafka: {topic: x}
  nats:
    enableTLS: true
    client: {endpoints: "nats://a:4222, tls://b", color: red}
    server: {enable: false, name: node-0}
    tls: {tlsCert: /c, tlsKey: /k, tlsCa: [/ca1, /ca2], tlsSkipVerify: true}
`,
		want: `# Taken over from BindPlane's event bus.
mode: client
client:
  endpoints: ['a:4222', 'b:4222']
tls:
  cert: /c
  key: /k
  ca: [/ca1, /ca2]
  skip_hostname_verification: true
`,
		notes: []string{
			"eventBus.nats.server is not enabled", "tlsSkipVerify verified nothing", "eventBus.health has no counterpart",
			"eventBus.kafka is about another type of bus", "eventBus.nats.client.color has no counterpart", "left to BindPlane: network",
		},
	}, {
		name:  "nothing but the type",
		in:    "eventBus: {type: nats}",
		want:  "# Taken over from BindPlane's event bus.\nmode: client\nclient:\n  endpoints: ['localhost:4222']\n",
		notes: []string{"localhost:4222 is BindPlane's default", "TLS is always on"},
	}, {
		name:  "defaults of a server",
		in:    "eventBus: {type: nats, nats: {server: {enable: true, cluster: {routes: 'nats://b:6222'}}}}",
		want:  "# Taken over from BindPlane's event bus.\nmode: mesh\ndata_dir: /var/lib/fleetbus\nlisteners:\n  nats:\n    addr: localhost:4222\ncluster:\n  addr: localhost:6222\n  routes: ['b:6222']\n",
		notes: []string{"data_dir is new", "cluster.addr localhost:6222 is loopback", "the monitoring API is off", "TLS is always on"},
	}, {
		name:  "local",
		in:    "eventBus: {type: local, nats: {client: {name: x}}}",
		want:  "# Taken over from BindPlane's event bus.\nmode: local\n",
		notes: []string{"eventBus.nats is about another type of bus"},
	}, {
		name:  "no type",
		in:    "eventBus: {}",
		want:  "# Taken over from BindPlane's event bus.\nmode: local\n",
		notes: []string{"eventBus.type is not set"},
	}} {
		t.Run(tt.name, func(t *testing.T) {
			got, notes, err := ImportBindplane([]byte(tt.in))
			if err != nil {
				t.Fatal(err)
			}
			wantImport(t, got, notes, tt.want, tt.notes)
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestImportBindplaneRefuses(t *testing.T) {
	for in, want := range map[string]string{
		"eventBus: {type: kafka}":        `eventBus.type is "kafka"`,
		"eventBus: {type: googlePubSub}": "broker of another vendor",
		"store: {}":                      "no eventBus section",
		"eventBus: [":                    "not YAML",
		"eventBus: 1\neventBus: 2":       "set twice",
	} {
		if _, _, err := ImportBindplane([]byte(in)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q in it", in, err, want)
		}
	}
}

func FuzzImportBindplane(f *testing.F) {
	f.Add([]byte("eventBus: {type: nats, nats: {server: {enable: true, name: \"a\\nb\"}, client: {endpoint: \"nats://[::1]:1\"}}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		ours, _, err := ImportBindplane(data)
		if err != nil {
			return
		}
		if _, problems, _ := parse("ours", ours); len(problems) > 0 {
			t.Errorf("the import cannot be read: %v\n%s", problems, ours)
		}
	})
}

// TestBindplanePage holds the page to the keys, flags and variables that exist.
func TestBindplanePage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "docs", "from-bindplane.md"))
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, k := range settings(protocolNames()) {
		known["--"+k.Flag()], known[k.Env()] = true, true
	}
	ours := regexp.MustCompile("`(--[a-z-]+|FLEETBUS_[A-Z_]+)`")
	for _, m := range ours.FindAllStringSubmatch(string(page), -1) {
		theirs := strings.HasPrefix(m[1], "--nats-") || strings.HasPrefix(m[1], "--event-bus-")
		if !known[m[1]] && !theirs {
			t.Errorf("the page names %s, which does not exist", m[1])
		}
	}
}

// wantImport compares what was taken over from another product, and what was said of it.
func wantImport(t *testing.T, got []byte, notes []string, want string, wantNotes []string) {
	t.Helper()
	if string(got) != want {
		t.Errorf("got:\n%s\nwant:\n%s", got, want)
	}
	if len(notes) != len(wantNotes) {
		t.Errorf("got %d notes, want %d:\n%s", len(notes), len(wantNotes), strings.Join(notes, "\n"))
	}
	for i := range min(len(notes), len(wantNotes)) {
		if !strings.Contains(notes[i], wantNotes[i]) || strings.Contains(notes[i], "secret") {
			t.Errorf("note %d: got %q, want %q in it", i, notes[i], wantNotes[i])
		}
	}
	// What was imported is valid, but for the files that are not here.
	root, problems, broken := parse("ours", got)
	_, err := load(root, problems, broken, Sources{})
	for line := range strings.Lines(errorText(err)) {
		if strings.HasPrefix(line, "  ours:") && !strings.Contains(line, "no such file") {
			t.Errorf("the import is refused: %s", line)
		}
	}
}
