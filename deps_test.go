package fleetbus_test

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/fleetbus/fleetbus"

// A place is why a package exists and which packages of this module it may
// import. Tests may import more.
type place struct {
	why string
	may []string
}

// places has a line for every package, by its path in the module. A new package
// needs a line here.
func places() map[string]place {
	return map[string]place{
		"":                             {"what a Go program embeds", []string{"internal/ask", "admin", "doctor", "enroll", "identity", "internal/adapter", "internal/admission", "internal/broker", "internal/disk", "internal/events", "internal/home", "internal/iface", "internal/keys", "internal/links", "internal/listener", "internal/meter", "internal/nodetls", "internal/portowner", "internal/profiler", "internal/rates", "internal/region", "internal/source", "lease", "ledger", "cert", "change", "metrics", "internal/audit", "internal/backup", "internal/loginlink", "internal/grant", "internal/crowd", "internal/exam", "internal/localcheck", "internal/overview", "internal/signed", "internal/strangers"}},
		"identity":                     {"who may connect and as whom; pure, because every decision about access is in it", nil},
		"ledger":                       {"what the fleet agrees on; of any events, so that it knows no noun", nil},
		"signing":                      {"who signed a message, as those who sign and read them see it; it knows no server", nil},
		"lease":                        {"one of many does a thing; of any things, so that it knows no noun", nil},
		"cert":                         {"certificates as those see them who serve them", []string{"ledger"}},
		"cert/certtest":                {"certificates and records of managers, for the tests of who follows them", []string{"cert"}},
		"certmanager":                  {"a service: obtains certificates, renews and seals them", []string{"admin", "cert", "doctor", "ledger", "metrics"}},
		"certmanager/acme":             {"an issuer: every ACME authority", []string{"cert", "certmanager"}},
		"certmanager/dns":              {"DNS providers, whose clients only managers link", nil},
		"certmanager/private":          {"an issuer: an authority of our own, for private names", []string{"cert", "certmanager"}},
		"certmanager/certmanagertest":  {"an authority, its DNS and their faults, for all tests that issue; the contract of issuers", []string{"cert", "certmanager"}},
		"change":                       {"what servers tell one another of changes, as those who announce and hear them see it", []string{"identity"}},
		"change/mysql":                 {"a source, and clients that only its users link", []string{"change"}},
		"change/outbox":                {"a source for any database, without a driver", []string{"change"}},
		"change/postgres":              {"a source, and a client that only its users link", []string{"change"}},
		"change/postgres/postgrestest": {"a server of a test's own, for all tests that need one", nil},
		"change/sse":                   {"a protocol: changes for everything that speaks HTTPS", []string{"", "change", "identity", "internal/strangers"}},
		"change/sqlite":                {"a source, and a database engine of 4 MB that only its users link", []string{"change"}},
		"change/changetest":            {"a bus and a watcher for the tests of sources", []string{"change"}},
		"doctor":                       {"the vocabulary of what is wrong; everybody speaks it, so that it imports nobody", nil},
		"amqp/frame":                   {"frames, methods and properties of AMQP 0-9-1, pure, because every rule that one frame can break is in it", nil},
		"amqp/right":                   {"which permissions RabbitMQ's rights are, pure, because who translates them has to know", []string{"identity"}},
		"amqp/route":                   {"where a message of AMQP goes, pure, so that it is held against a list of bindings", []string{"amqp/frame"}},
		"amqp/queue":                   {"who gets which message of a queue of AMQP, and what becomes of it, pure, so that it is held against a model", []string{"amqp/frame"}},
		"amqp/journal":                 {"what is durable of AMQP in a stream of the engine, which knows no connections and no rights", []string{"amqp/frame", "amqp/queue", "amqp/route"}},
		"amqp/tunnel":                  {"bytes between nodes over the bus; of any protocol, so that it knows none", nil},
		"amqp/queue/queuetest":         {"a log that loses its power, for all tests of queues", []string{"amqp/queue"}},
		"mqtt/mapping":                 {"how topics and properties of MQTT stand on the bus, for whoever speaks MQTT", []string{"mqtt/packet"}},
		"mqtt/packet":                  {"MQTT's packets, pure, because every rule that one packet can break is in it", nil},
		"mqtt/packet/packettest":       {"packets that break every rule, for the tests of the codec and of the protocol", nil},
		"admin":                        {"the administrative API as its callers see it", []string{"change", "doctor", "identity"}},
		"cert/proxy":                   {"certificates in programs that are not ours; it knows nothing of where they come from", nil},
		"cert/proxy/proxytest":         {"such programs of a test's own, for all tests that need one", []string{"cert/proxy"}},
		"deploy":                       {"tests of what installs the program: packages, image, chart", []string{"internal/await"}},
		"deploy/sbom":                  {"what a package is made of; no package of the program needs it", nil},
		"hub":                          {"a service: links a node to a central broker, in place of the mesh", []string{"admin", "change", "doctor", "identity", "mqtt/mapping", "mqtt/packet"}},
		"hub/shovel":                   {"a service: carries messages between queues here and those of a RabbitMQ that keeps running", []string{"admin", "doctor", "hub", "identity", "lease"}},
		"metrics":                      {"what a node counts and measures, as monitoring systems read it; of any node, so that it links none", nil},
		"metrics/collector":            {"the same for programs that have a registry of Prometheus, whose client only they link", []string{"metrics"}},
		"trace":                        {"OpenTelemetry's traces across protocols, which few want; it knows no protocol", nil},
		"probe":                        {"a protocol: HTTP for those who watch a node", []string{"", "identity", "internal/strangers", "metrics"}},
		"enroll":                       {"the joiner's half of enrollment, for machines that have no server", []string{"admin", "identity", "internal/iface", "internal/portowner"}},

		"internal/adapter":          {"messages of other accounts are stored before their senders are told", []string{"admin", "identity"}},
		"internal/admission":        {"who may shake hands, and who waits; of any listener, so that it knows no protocol", nil},
		"internal/ask":              {"how nodes ask one another", nil},
		"internal/audit":            {"what was done on a fleet, by whom, in chains that show what is missing", []string{"admin", "identity", "ledger"}},
		"internal/backup":           {"the state of a fleet in a file, and a fleet made of it", []string{"admin", "identity", "internal/home"}},
		"internal/await":            {"how tests wait, which is the same everywhere", nil},
		"internal/bareserver":       {"bare servers of the engine's make, as peers to measure and to break beside", []string{"identity"}},
		"internal/bench":            {"what is promised of speed and size, measured beside peers; a fleet of processes and its load", []string{"internal/bareserver", "", "admin", "cert", "certmanager", "certmanager/private", "identity", "internal/mqttload", "internal/natsload", "ledger"}},
		"internal/bench/page":       {"what was measured, as a page; the program does without", []string{"internal/bench"}},
		"internal/broker":           {"the engine, in one place", []string{"identity", "internal/portowner", "admin"}},
		"internal/check":            {"a fleet is judged as plugins of Nagios judge; decisions, without a fleet", []string{"admin", "doctor"}},
		"internal/config":           {"file, environment and flags into Options", []string{"", "amqp", "change/sse", "hub", "identity", "mqtt", "probe", "provision/stranger", "console", "hub/shovel"}},
		"internal/crowd":            {"users keep to their number of connections; counts and decisions, without a server", []string{"admin"}},
		"internal/demo":             {"shows that the bus holds what it promises, on a fleet of its own", []string{"", "admin", "cert", "cert/proxy", "certmanager", "change", "identity", "internal/human", "internal/pebble"}},
		"internal/diagnose":         {"a fleet is judged by what its nodes tell; decisions, and who is asked", []string{"admin", "doctor", "identity", "internal/audit", "internal/explain", "internal/human"}},
		"internal/exam":             {"a node looks at its machine and at its peers, for the doctor", []string{"admin", "identity", "internal/localcheck"}},
		"internal/explain":          {"what there is to say of the code of a finding; a table", nil},
		"internal/disk":             {"a disk is not filled, whatever a node does otherwise", []string{"doctor"}},
		"internal/events":           {"what happens on a node is told, and nobody waits for it", []string{"admin", "identity", "internal/broker"}},
		"internal/grant":            {"which credential a user gets, and its making; decisions, without a server", []string{"admin", "identity", "internal/nodetls"}},
		"internal/hardening":        {"settings of brokers and of what uses them are judged by the guides' rules; files and decisions, without a network", []string{"internal/hardening/conf", "internal/hardening/erlang"}},
		"internal/hardening/probe":  {"brokers of any make are asked what their settings should say; it has the network that the rules have not", []string{"internal/hardening"}},
		"internal/hardening/conf":   {"files of settings that are not ours, line by line; it judges nothing", nil},
		"internal/hardening/erlang": {"Erlang's terms in files, with limits; it judges nothing", nil},
		"internal/home":             {"the directory of a node", []string{"identity", "ledger"}},
		"internal/issuers":          {"the authorities that managers of this program know", []string{"admin", "certmanager", "certmanager/acme", "certmanager/dns", "certmanager/private"}},
		"internal/reclaim":          {"memory that a storm of clients took is given back", nil},
		"internal/links":            {"nodes judge together how they reach one another", []string{"admin", "doctor"}},
		"internal/listener":         {"strangers cost a bounded number of handshakes, whatever is spoken after it", nil},
		"internal/strangers":        {"connections on which nobody is known are so many; of any listener, so that it knows no protocol", nil},
		"internal/loginlink":        {"links that let somebody in once; in memory, so that it knows no noun", nil},
		"internal/nodetls":          {"the TLS settings of a node, all in one place", []string{"enroll", "identity", "internal/admission"}},
		"internal/manual":           {"man pages and completions, made of the commands; packages have them, the program does without", []string{"internal/config"}},
		"internal/meter":            {"what happens on a node is counted, and gathered for whoever watches", []string{"admin", "doctor", "internal/broker", "metrics"}},
		"internal/profiler":         {"what a node spends its time and memory on, for operators who ask; nothing is open for it", []string{"admin"}},
		"internal/region":           {"the regions of a fleet agree, each with a ledger of its own", []string{"admin", "identity"}},
		"internal/rates":            {"what meters count, by time", []string{"admin", "internal/broker"}},
		"internal/source":           {"each source of changes runs on one node; decisions about databases are not its", []string{"admin", "change", "lease"}},
		"internal/keys":             {"which keys a fleet shares and who holds on to old ones; decisions, without a server", []string{"admin", "doctor", "identity"}},
		"internal/document":         {"what commands found out, for programs and for terminals", nil},
		"internal/localcheck":       {"what is wrong on this machine, without a server", []string{"doctor", "identity", "internal/explain", "internal/human", "internal/iface", "internal/portowner"}},
		"internal/human":            {"values as people read them, in all that the program prints", nil},
		"internal/mqttload":         {"the load of MQTT clients, to measure brokers of any make with", []string{"mqtt/packet"}},
		"internal/natsload":         {"very many NATS clients, each as light as it can be, to measure nodes with", nil},
		"internal/pebble":           {"an ACME authority for the demonstration, which the lean program does without", nil},
		"internal/rules":            {"the rules of provisioners in a file", []string{"provision"}},
		"internal/smalldisk":        {"a disk that is full, for all tests that need one", []string{"internal/await"}},
		"internal/target":           {"a machine that serves certificates: its directory, its groups, and the program there", []string{"admin", "cert", "cert/proxy", "identity"}},
		"internal/openstack":        {"which accounts, roles and users OpenStack's services need; decisions, without a fleet", []string{"identity"}},
		"internal/iface":            {"addresses by the names of network interfaces, for a server, a joiner and the doctor", nil},
		"internal/loopback":         {"addresses for tests, each for one", nil},
		"internal/traces":           {"spans of MQTT's messages, in programs that are built with them", []string{"", "mqtt", "trace"}},
		"internal/wire":             {"the engine's own protocol, for protocols whose messages must cost next to nothing", nil},
		"internal/overview":         {"what is wrong with a fleet as a whole; decisions, of what its nodes told", []string{"admin", "doctor"}},
		"internal/portowner":        {"who holds a port, for a server and for a joiner", nil},
		"internal/systemd":          {"how a service manager hears of its process", nil},
		"internal/rabbittest":       {"a RabbitMQ of a test's own, for all tests that need one", []string{"identity", "internal/await", "internal/loopback"}},
		"internal/definitions":      {"what RabbitMQ exports, and what of it there can be here; pure, so that rights that widen are found by tests", []string{"amqp/right", "identity"}},
		"internal/signed":           {"each signed message is passed on once, by one node; decisions about users are not its", []string{"admin", "identity", "lease", "metrics", "signing"}},
		"internal/attack":           {"who attacks what, and how it is tried; its tests have a node with every listener", nil},
		"internal/attack/run":       {"tries every attack, or fuzzes every parser, for make", []string{"internal/attack"}},
		"internal/chaos":            {"a fleet is broken in every way, and what it promises is judged; no program links it", []string{"internal/bareserver", "", "admin", "cert", "certmanager", "certmanager/private", "change", "identity", "lease", "ledger"}},
		"internal/chaos/run":        {"the command that does so, for make and for tests", []string{"internal/chaos"}},

		"internal/scalemodel": {"what more devices take than a machine can show, computed; its tests hold the document to it", nil},
		"provision":           {"how a machine that nobody knows gets an identity: its side and that of provisioners, for machines that have no server", []string{"admin", "cert", "identity", "ledger"}},
		"provision/stranger":  {"a protocol: NATS for machines that nobody knows", []string{"", "identity", "internal/strangers"}},

		"amqp":                               {"a protocol: AMQP 0-9-1, whose topics are what MQTT's are", []string{"", "amqp/frame", "amqp/journal", "amqp/queue", "amqp/route", "amqp/tunnel", "identity", "internal/wire", "lease", "metrics", "mqtt/mapping", "mqtt/packet", "amqp/right", "internal/signed", "internal/strangers", "signing"}},
		"mqtt":                               {"a protocol: MQTT 5.0 and 3.1.1", []string{"", "doctor", "identity", "internal/wire", "mqtt/mapping", "mqtt/packet", "metrics", "internal/signed", "internal/strangers", "signing"}},
		"fleetbustest":                       {"a real server in a test", []string{"", "admin", "doctor", "enroll", "identity", "internal/await", "internal/loopback", "ledger"}},
		"cmd/fleetbus":                       {"the command line; it composes everything", []string{"", "cmd/fleetbus/internal/accounts", "cmd/fleetbus/internal/boot", "cmd/fleetbus/internal/certificates", "cmd/fleetbus/internal/changes", "cmd/fleetbus/internal/clouds", "cmd/fleetbus/internal/command", "cmd/fleetbus/internal/health", "cmd/fleetbus/internal/joining", "cmd/fleetbus/internal/messages", "cmd/fleetbus/internal/nodes", "hub", "internal/config", "internal/demo", "internal/human", "amqp", "mqtt", "admin", "cert", "cert/proxy", "certmanager", "change", "change/mysql", "change/postgres", "change/sqlite", "doctor", "enroll", "identity", "internal/bench", "internal/check", "internal/document", "internal/issuers", "internal/localcheck", "internal/natsload", "internal/portowner", "internal/reclaim", "internal/rules", "internal/target", "internal/traces", "ledger", "probe", "provision", "certmanager/acme", "certmanager/dns", "certmanager/private", "internal/audit", "internal/backup", "internal/home", "console", "internal/systemd", "internal/hardening", "internal/hardening/probe", "cmd/fleetbus/internal/moving"}},
		"cmd/fleetbus/internal/accounts":     {"commands: who may connect, and what they may do", []string{"admin", "cmd/fleetbus/internal/command", "identity", "internal/human"}},
		"cmd/fleetbus/internal/boot":         {"what commands that make or run a node share: its settings, and what this program can do", []string{"internal/home", "", "admin", "change", "change/mysql", "change/postgres", "change/sqlite", "cmd/fleetbus/internal/command", "internal/config"}},
		"cmd/fleetbus/internal/certificates": {"commands: certificates and those who manage them", []string{"internal/issuers", "", "admin", "cert", "certmanager", "certmanager/acme", "certmanager/dns", "certmanager/private", "cmd/fleetbus/internal/command", "identity", "internal/human"}},
		"cmd/fleetbus/internal/changes":      {"commands: changes in databases, and where they come from", []string{"admin", "change", "cmd/fleetbus/internal/command", "identity", "internal/human"}},
		"cmd/fleetbus/internal/clouds":       {"commands: users for the services of clouds", []string{"admin", "cmd/fleetbus/internal/command", "identity", "internal/human", "internal/openstack"}},
		"cmd/fleetbus/internal/command":      {"what all commands share: reaching a fleet, printing, asking, failing with a fix", []string{"admin", "identity", "internal/config", "internal/document", "internal/human"}},
		"cmd/fleetbus/internal/health":       {"commands: how a fleet is, and what happens in it", []string{"admin", "cmd/fleetbus/internal/changes", "cmd/fleetbus/internal/command", "cmd/fleetbus/internal/joining", "cmd/fleetbus/internal/nodes", "doctor", "hub", "identity", "internal/human", "internal/localcheck", "", "cmd/fleetbus/internal/boot", "internal/config", "internal/diagnose", "internal/explain", "internal/home"}},
		"cmd/fleetbus/internal/joining":      {"commands: how machines, sites, regions and devices come into a fleet", []string{"", "admin", "cert", "cert/proxy", "cmd/fleetbus/internal/boot", "cmd/fleetbus/internal/command", "enroll", "identity", "internal/document", "internal/human", "internal/rules", "internal/target", "provision"}},
		"cmd/fleetbus/internal/messages":     {"commands: messages, streams of them, and how fast they are", []string{"cmd/fleetbus/internal/command", "internal/bench", "internal/document", "internal/human", "internal/natsload"}},
		"cmd/fleetbus/internal/moving":       {"commands: what other brokers have moves over, which few need and once", []string{"admin", "cmd/fleetbus/internal/command", "identity", "internal/definitions", "internal/human"}},
		"cmd/fleetbus/internal/nodes":        {"commands: the nodes of a fleet, and how they leave it", []string{"admin", "cmd/fleetbus/internal/command", "internal/human"}},
		"console":                            {"a protocol: the web console", []string{"", "admin", "identity", "certmanager", "doctor", "internal/links", "internal/strangers"}},
	}
}

// heavy has the dependencies that few may import, and the reason.
func heavy() map[string]place {
	return map[string]place{
		"github.com/nats-io/nats-server/v2": {"the engine's API is wide and changes: one package knows it", []string{"internal/broker", "change/changetest"}},
		"github.com/go-mysql-org/go-mysql":  {"it has 4 MB, and the lean binary is without it", []string{"change/mysql"}},
		"github.com/letsencrypt/pebble/v2":  {"it is an authority for tests and demonstrations; the lean program has none", []string{"certmanager/certmanagertest", "internal/pebble"}},
		"github.com/libdns":                 {"a provider of DNS brings its client along, and only managers have them", []string{"certmanager/dns"}},
		"github.com/mholt/acmez/v3":         {"one package knows the client", []string{"certmanager/acme"}},
		"github.com/spf13/cobra":            {"a program that embeds the server has a command line of its own", []string{"cmd/fleetbus", "cmd/fleetbus/internal/accounts", "cmd/fleetbus/internal/boot", "cmd/fleetbus/internal/certificates", "cmd/fleetbus/internal/changes", "cmd/fleetbus/internal/clouds", "cmd/fleetbus/internal/command", "cmd/fleetbus/internal/health", "cmd/fleetbus/internal/joining", "cmd/fleetbus/internal/messages", "cmd/fleetbus/internal/nodes", "internal/manual", "cmd/fleetbus/internal/moving"}},
		"github.com/spf13/pflag":            {"flags are made from the table of settings", []string{"cmd/fleetbus/internal/accounts", "cmd/fleetbus/internal/messages", "internal/config", "cmd/fleetbus", "internal/manual"}},
		"go.yaml.in/yaml/v3":                {"YAML is for files and terminals; the bus speaks JSON", []string{"cmd/fleetbus/internal/boot", "internal/config", "internal/document", "internal/rules", "cmd/fleetbus"}},
		"github.com/prometheus":             {"the client has 2 MB, and the program writes the text format itself", []string{"metrics/collector"}},
	}
}

// light are the packages that programs link that are not servers. They never
// reach the engine, however far around.
func light() []string {
	return []string{"identity", "ledger", "lease", "doctor", "cert", "cert/proxy", "change", "change/mysql", "change/outbox", "change/postgres", "change/sqlite", "admin", "enroll", "hub", "hub/shovel", "metrics", "metrics/collector", "provision", "trace", "signing"}
}

type goPackage struct {
	ImportPath, Name, Dir string
	Imports, Deps         []string
}

// rel is a package's path in the module; false for one of another module.
func rel(importPath string) (string, bool) {
	if importPath == module {
		return "", true
	}
	return strings.CutPrefix(importPath, module+"/")
}

func within(importPath, dependency string) bool {
	return importPath == dependency || strings.HasPrefix(importPath, dependency+"/")
}

func packages(t *testing.T) []goPackage {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Name,Dir,Imports,Deps", "./...")
	var problem strings.Builder
	cmd.Stderr = &problem
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("listing the packages: %v\n%s", err, &problem)
	}
	var all []goPackage
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func TestImports(t *testing.T) {
	table, limited := places(), heavy()
	for _, p := range packages(t) {
		name, _ := rel(p.ImportPath)
		here, known := table[name]
		if !known {
			t.Errorf("package %q has no line in places, which would say why it exists", name)
			continue
		}
		for _, imported := range p.Imports {
			if other, ours := rel(imported); ours && !slices.Contains(here.may, other) {
				t.Errorf("package %q imports %q, which its line in places does not allow: it is %s", name, other, here.why)
			}
			for dependency, only := range limited {
				if within(imported, dependency) && !slices.Contains(only.may, name) {
					t.Errorf("package %q imports %s, which only %s may: %s", name, dependency, strings.Join(only.may, " and "), only.why)
				}
			}
		}
		if slices.Contains(light(), name) && slices.ContainsFunc(p.Deps, func(d string) bool { return within(d, "github.com/nats-io/nats-server/v2") }) {
			t.Errorf("package %q reaches nats-server, and programs that link it would too: they are not servers", name)
		}
	}
}

func TestPackageNames(t *testing.T) {
	vague := []string{"pkg", "util", "utils", "common", "types", "models", "errors", "helpers", "mocks"}
	for _, p := range packages(t) {
		for _, name := range append(strings.Split(p.ImportPath, "/"), p.Name) {
			if slices.Contains(vague, name) {
				t.Errorf("package %q is called %q, which does not say what it is about: everything ends up in such a package", p.ImportPath, name)
			}
		}
	}
}

func TestNoReplace(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatal(err)
	}
	var mod struct{ Replace []any }
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	if len(mod.Replace) > 0 {
		t.Error("go.mod has a replace directive, which a program that embeds us does not get: it would build something else than we tested")
	}
}

// A source is one parsed file.
type source struct {
	path string // slash-separated, from the root of the module
	test bool
	file *ast.File
	fset *token.FileSet
}

func (s source) dir() string { return path.Dir(s.path) }

func (s source) line(p token.Pos) int { return s.fset.Position(p).Line }

func (s source) lines() int { return s.line(s.file.FileEnd) }

// sources parses the Go files of the module.
func sources(t *testing.T) []source {
	t.Helper()
	var all []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() {
			if name != "." && (strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata") {
				return fs.SkipDir
			}
			return nil
		}
		if filepath.Ext(name) != ".go" {
			return nil
		}
		file, err := parser.ParseFile(fset, name, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		all = append(all, source{path: filepath.ToSlash(name), test: strings.HasSuffix(name, "_test.go"), file: file, fset: fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// Budgets, in lines unless it says otherwise. What is larger has two subjects.
const (
	maxPackage   = 10_000
	maxFile      = 1000
	maxFunction  = 120 // of the 99th percentile
	maxInterface = 6   // methods
	maxExported  = 40  // top-level names of the root package
)

func TestSizes(t *testing.T) {
	packages := map[string]int{}
	type function struct {
		where string
		lines int
	}
	var functions []function
	var exported []string
	for _, s := range sources(t) {
		if n := s.lines(); n > maxFile {
			t.Errorf("%s has %d lines and %d are allowed: a file that long has two subjects", s.path, n, maxFile)
		}
		if s.test {
			continue
		}
		packages[s.dir()] += s.lines()
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				functions = append(functions, function{s.path + ": " + n.Name.Name, s.line(n.End()) - s.line(n.Pos()) + 1})
			case *ast.InterfaceType:
				if m := n.Methods.NumFields(); m > maxInterface {
					t.Errorf("%s:%d: an interface has %d methods and %d are allowed: nobody implements a large one well", s.path, s.line(n.Pos()), m, maxInterface)
				}
			}
			return true
		})
		if s.dir() == "." {
			exported = append(exported, exportedNames(s.file)...)
		}
	}
	for dir, n := range packages {
		if n > maxPackage {
			t.Errorf("package %q has %d lines and %d are allowed: it has two subjects", dir, n, maxPackage)
		}
	}
	if len(exported) > maxExported {
		t.Errorf("the root package exports %d names and %d are allowed, because all of them must be learned and kept: %s", len(exported), maxExported, strings.Join(exported, " "))
	}
	slices.SortFunc(functions, func(a, b function) int { return b.lines - a.lines })
	if i := len(functions) / 100; i < len(functions) && functions[i].lines > maxFunction {
		for _, f := range functions[:i+1] {
			t.Errorf("%s has %d lines; %d is the limit that 99 of 100 functions keep, because what does not fit a screen is not read", f.where, f.lines, maxFunction)
		}
	}
}

// exportedNames are the top-level names of file, without methods.
func exportedNames(file *ast.File) []string {
	var names []string
	for _, decl := range file.Decls {
		switch d := decl.(type) {
		case *ast.FuncDecl:
			if d.Recv == nil && d.Name.IsExported() {
				names = append(names, d.Name.Name)
			}
		case *ast.GenDecl:
			for _, spec := range d.Specs {
				for _, name := range specNames(spec) {
					if name.IsExported() {
						names = append(names, name.Name)
					}
				}
			}
		}
	}
	return names
}

// specNames are the names that a const, var or type declares.
func specNames(spec ast.Spec) []*ast.Ident {
	switch spec := spec.(type) {
	case *ast.TypeSpec:
		return []*ast.Ident{spec.Name}
	case *ast.ValueSpec:
		return spec.Names
	}
	return nil
}

// TestHabits forbids what a program that embeds us could not control.
func TestHabits(t *testing.T) {
	for _, s := range sources(t) {
		if s.test {
			continue
		}
		ast.Inspect(s.file, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.FuncDecl:
				if n.Recv == nil && n.Name.Name == "init" {
					t.Errorf("%s:%d: func init runs in programs that only import us", s.path, s.line(n.Pos()))
				}
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				made := ok && x.Name == "context" && (n.Sel.Name == "Background" || n.Sel.Name == "TODO")
				if made && !strings.HasPrefix(s.path, "cmd/") && s.file.Name.Name != "main" {
					t.Errorf("%s:%d: context.%s cannot be ended by the caller: take a context", s.path, s.line(n.Pos()), n.Sel.Name)
				}
			}
			return true
		})
	}
}
