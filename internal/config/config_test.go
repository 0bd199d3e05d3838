package config

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"pgregory.net/rapid"

	"github.com/fleetbus/fleetbus"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// loadText loads text as fleetbus.yaml, with variables and flags.
func loadText(tb testing.TB, text string, env []string, args ...string) (*Config, error) {
	tb.Helper()
	flags := pflag.NewFlagSet("test", pflag.ContinueOnError)
	AddFlags(flags)
	if err := flags.Parse(args); err != nil {
		tb.Fatal(err)
	}
	root, problems, broken := parse("fleetbus.yaml", []byte(text))
	return load(root, problems, broken, Sources{Env: env, Flags: flags})
}

// TestProblems runs testdata/*.txt: a file, variables and flags in its first
// part, all the problems in its second.
func TestProblems(t *testing.T) {
	files, err := filepath.Glob(filepath.Join("testdata", "*.txt"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, path := range files {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			data, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			in, want, _ := strings.Cut(string(data), "=====\n")
			var text strings.Builder
			var env, args []string
			for line := range strings.Lines(in) {
				switch {
				case strings.HasPrefix(line, "FLEETBUS_"):
					env = append(env, strings.TrimSpace(line))
				case strings.HasPrefix(line, "--") && line != "---\n":
					args = append(args, strings.TrimSpace(line))
				default:
					text.WriteString(line)
				}
			}
			c, err := loadText(t, text.String(), env, args...)
			got := errorText(err) + "\n"
			if err == nil {
				got = "no problem\n" + strings.Join(c.Warnings(), "\n")
			}
			if *update {
				if err := os.WriteFile(path, []byte(in+"=====\n"+got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got != want {
				t.Errorf("got:\n%s\nwant:\n%s", got, want)
			}
			var list *ProblemList
			if err != nil && !errors.As(err, &list) {
				t.Errorf("the error is a %T", err)
			}
		})
	}
}

func TestSchemaIsCommitted(t *testing.T) {
	path := filepath.Join("testdata", "schema.json")
	if *update {
		if err := os.WriteFile(path, Schema(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(Schema()) != string(want) {
		t.Errorf("the table of keys has changed: run go test ./internal/config -update")
	}
}

// TestTable checks every key by itself: it is documented, has a variable to
// decode into, and its default and example are values of its type.
func TestTable(t *testing.T) {
	patterns := map[Type]string{
		Bool: "^(true|false)$", Number: "^[0-9]+$", Duration: durationPattern, Size: sizePattern,
	}
	flags, envs := map[string]bool{}, map[string]bool{}
	for _, k := range settings(protocolNames()) {
		if !strings.HasSuffix(k.Doc, ".") || k.Example == "" || (k.Default == "") == (k.Otherwise == "") {
			t.Errorf("%s: wants a sentence, an example, and either a default or words for it", k.Path)
		}
		if flags[k.Flag()] || envs[k.Env()] || commandLine(k.Env()) || kubernetes(k.Env(), "") {
			t.Errorf("%s: its flag or variable is taken", k.Path)
		}
		flags[k.Flag()], envs[k.Env()] = true, true
		for _, text := range []string{k.Default, k.Example} {
			if text == "" || k.Type == List {
				continue
			}
			var tt target
			if f := k.store(tt.field(strings.Split(k.Path, ".")), text); f != nil {
				t.Errorf("%s: %q: %s", k.Path, text, f.text)
			}
			if p := patterns[k.Type]; p != "" && !regexp.MustCompile(p).MatchString(text) {
				t.Errorf("%s: the schema refuses %q", k.Path, text)
			}
		}
		if (&target{}).field(strings.Split(k.Path, ".")) == nil {
			t.Errorf("%s: has no variable", k.Path)
		}
	}
}

// TestEveryKeyBySource sets each key by file, variable and flag, and wants the
// same options each time and the place in Show.
func TestEveryKeyBySource(t *testing.T) {
	cert, key := issue(t, t.TempDir(), "node")
	texts := map[string]string{"tls.cert": cert, "tls.key": key, "tls.ca": cert, "client.creds": key, "hub.cert": cert, "hub.key": key, "hub.ca": cert, "hub.password_file": key,
		"hub.local_ca": cert, "hub.local_cert": cert, "hub.local_key": key, "hub.local_password_file": key}
	// A hub of type amqp has settings of its own.
	links := map[string]string{"mode": "mesh", "hub.type": "amqp", "hub.accounts": "orders", "hub.servers": "amqps://127.0.0.1", "hub.cert": cert, "hub.key": key, "hub.in": "q",
		"hub.local": "amqps://127.0.0.1", "hub.local_cert": cert, "hub.local_key": key}
	hub := map[string]string{"mode": "hub", "hub.accounts": "orders", "hub.servers": "mqtts://127.0.0.1", "hub.cert": cert, "hub.key": key, "hub.user": "me"}
	for _, k := range settings(protocolNames()) {
		t.Run(k.Path, func(t *testing.T) {
			text, ok := texts[k.Path]
			if !ok {
				text = k.Example
			}
			switch k.Path {
			case "listeners.leaf.plaintext", "listeners.leaf.client_certificate", "listeners.gateway.plaintext":
				return // other values than the default are refused
			}
			// What the key is not valid without.
			around := map[string]string{}
			if strings.HasPrefix(k.Path, "mqtt.") {
				around["listeners.mqtt.addr"] = ":8883"
			}
			if strings.HasPrefix(k.Path, "amqp.") {
				around["listeners.amqp.addr"] = ":5671"
			}
			if strings.HasPrefix(k.Path, "console.") {
				around["listeners.console.addr"] = ":8444"
			}
			if strings.HasPrefix(k.Path, "provision.") {
				around["listeners.provision.addr"] = ":4280"
			}
			if strings.HasPrefix(k.Path, "open.") {
				around["listeners.open.addr"] = ":4281"
			}
			switch k.Path {
			case "listeners.nats.plaintext", "listeners.sse.plaintext", "listeners.mqtt.plaintext", "listeners.amqp.plaintext", "listeners.metrics.plaintext", "listeners.console.plaintext":
				around[strings.TrimSuffix(k.Path, "plaintext")+"addr"] = "127.0.0.1:4222"
			case "tls.cert", "tls.key":
				around = map[string]string{"tls.cert": cert, "tls.key": key, "tls.ca": cert}
				delete(around, k.Path)
			}
			if strings.HasPrefix(k.Path, "hub.") {
				around = maps.Clone(hub)
				if slices.Contains([]string{"hub.type", "hub.in", "hub.out", "hub.prefetch", "hub.park"}, k.Path) || strings.HasPrefix(k.Path, "hub.local") {
					around = maps.Clone(links)
				}
				switch k.Path {
				case "hub.local_user":
					around["hub.local_password_file"] = key
				case "hub.local_password_file":
					around["hub.local_user"] = "me"
				}
				delete(around, k.Path)
			}
			both := maps.Clone(around)
			both[k.Path] = text
			load := func(values map[string]string, env []string, args ...string) *Config {
				c, err := loadText(t, string(written(values)), env, args...)
				if err != nil {
					t.Fatal(err)
				}
				return c
			}
			file := load(both, nil)
			for source, c := range map[string]*Config{
				"fleetbus.yaml:": file,
				k.Env():          load(around, []string{k.Env() + "=" + text}),
				"--" + k.Flag():  load(around, nil, "--"+k.Flag()+"="+text),
			} {
				if !reflect.DeepEqual(c.Options(), file.Options()) || c.Log() != file.Log() || c.ManagesCertificates() != file.ManagesCertificates() {
					t.Errorf("by %s: got %+v, want %+v", source, c.Options(), file.Options())
				}
				shown := slices.IndexFunc(c.Show(), func(s Setting) bool {
					return s.Key == k.Path && s.Value == strings.ReplaceAll(text, ", ", ",") && strings.HasPrefix(s.Source, source)
				})
				if shown < 0 {
					t.Errorf("by %s: not shown in %+v", source, c.Show())
				}
			}
			unset, err := loadText(t, string(written(around)), nil)
			if err == nil && reflect.DeepEqual(unset.Options(), file.Options()) && unset.Log() == file.Log() && unset.ManagesCertificates() == file.ManagesCertificates() {
				t.Errorf("setting %s to %q changed nothing", k.Path, text)
			}
		})
	}
}

// TestDefaults uncomments any of the settings of the commented file: it loads,
// and means what the same settings mean as flags.
func TestDefaults(t *testing.T) {
	c, err := loadText(t, string(Defaults(false)), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, Defaults(false))
	}
	nothing, err := loadText(t, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(c.Options(), nothing.Options()) || !reflect.DeepEqual(c.Options(), fleetbus.Options{}) {
		t.Errorf("the commented file sets something: %+v", c.Options())
	}
	rapid.Check(t, func(rt *rapid.T) {
		live := map[string]bool{}
		var args []string
		for _, k := range settings([]string{"nats"}) {
			// What names files, or is valid only together with others, has its own test.
			alone := !strings.HasPrefix(k.Path, "tls.") && !strings.HasPrefix(k.Path, "hub.") && k.Path != "client.creds" && k.Path != "mode"
			if alone && rapid.Bool().Draw(rt, k.Path) {
				live[k.Path] = true
				args = append(args, "--"+k.Flag()+"="+k.sample())
			}
		}
		text := string(commented(func(k Key) bool { return live[k.Path] }))
		fromFile, err := loadText(t, text, nil)
		if err != nil {
			rt.Fatalf("%v\n%s", err, text)
		}
		fromFlags, err := loadText(t, "", nil, args...)
		if err != nil {
			rt.Fatal(err)
		}
		if !reflect.DeepEqual(fromFile.Options(), fromFlags.Options()) || fromFile.Log() != fromFlags.Log() {
			rt.Errorf("file: %+v\nflags: %+v", fromFile.Options(), fromFlags.Options())
		}
	})
}

func TestMinimal(t *testing.T) {
	c, err := loadText(t, string(Defaults(true)), nil)
	if err != nil {
		t.Fatalf("%v\n%s", err, Defaults(true))
	}
	o := c.Options()
	if o.Name != "eu-1" || o.Dir != "/var/lib/fleetbus" || len(o.Cluster.Routes) != 2 || len(o.Listeners) != 1 {
		t.Errorf("got %+v", o)
	}
	if n := strings.Count(string(Defaults(true)), "\n"); n > 12 {
		t.Errorf("%d lines are not short:\n%s", n, Defaults(true))
	}
}

func TestPrecedence(t *testing.T) {
	const file = "grace: 1s\nname: file\nlog: {level: warn}\ncluster: {routes: [a:1, b:2]}\n"
	env := []string{"FLEETBUS_GRACE=2s", "FLEETBUS_NAME=env", "FLEETBUS_LOG_LEVEL=", "FLEETBUS_CLUSTER_ROUTES=c:3, d:4"}
	c, err := loadText(t, file, env, "--grace=3s", "--cluster-routes=e:5", "--cluster-routes=f:6")
	if err != nil {
		t.Fatal(err)
	}
	o := c.Options()
	if o.Grace != 3*time.Second || o.Name != "env" || c.Log().Level.String() != "WARN" || strings.Join(o.Cluster.Routes, " ") != "e:5 f:6" {
		t.Errorf("got %v %v %v %v", o.Grace, o.Name, c.Log(), o.Cluster.Routes)
	}
	c, err = loadText(t, file, env, "--grace=", "--log-level=")
	if err != nil {
		t.Fatal(err)
	}
	if c.Options().Grace != 0 || c.Log().Level.String() != "INFO" {
		t.Errorf("an empty flag is not the default: %v, %v", c.Options().Grace, c.Log())
	}
}

func TestListeners(t *testing.T) {
	c, err := loadText(t, "listeners:\n  nats:\n  edge-eu: {protocol: nats, addr: \"127.0.0.1:4333\"}\n", []string{
		"FLEETBUS_LISTENERS_EDGE_EU_PLAINTEXT=true",
		"FLEETBUS_LISTENERS_LATE_PROTOCOL=nats",
		"FLEETBUS_LISTENERS_LATE_ADDR=:4444",
	})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, l := range c.Options().Listeners {
		got = append(got, fmt.Sprint(l.Name, " ", l.Addr, " ", l.Plaintext, " ", l.Protocol == fleetbus.NATS()))
	}
	want := "nats :4222 false true, edge-eu 127.0.0.1:4333 true true, late :4444 false true"
	if strings.Join(got, ", ") != want {
		t.Errorf("got %q, want %q", strings.Join(got, ", "), want)
	}
	if c, err = loadText(t, "", nil, "--listeners-nats-plaintext", "--listeners-nats-addr=127.0.0.1:0"); err != nil || !c.Options().Listeners[0].Plaintext {
		t.Errorf("by flags: %v", err)
	}
}

func TestWarnings(t *testing.T) {
	c, err := loadText(t, "", []string{
		"FLEETBUS_CLUSTER_ROUTE=a:1", "FLEETBUS_XYZZY=1", "FLEETBUS_CLUSTER_PORT=6222", "PATH=/bin", "FLEETBUS_NAME=x",
		"FLEETBUS_PORT=tcp://10.0.0.1:4222", "FLEETBUS_PORT_4222_TCP_ADDR=10.0.0.1", "FLEETBUS_SERVICE_HOST=10.0.0.1",
		"FLEETBUS_CLUSTER_SERVICE_PORT=6222", "FLEETBUS_CLIENT_PORT=tcp://10.0.0.1:4222",
		"FLEETBUS_CONFIG=x", "FLEETBUS_CONTEXT=x", "FLEETBUS_OUTPUT=x", "FLEETBUS_CREDS=x", "FLEETBUS_SERVER=x", "FLEETBUS_CA=x",
	})
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"FLEETBUS_CLUSTER_PORT: unknown variable",
		"FLEETBUS_CLUSTER_ROUTE: unknown variable; did you mean FLEETBUS_CLUSTER_ROUTES?",
		"FLEETBUS_XYZZY: unknown variable",
	}
	if !reflect.DeepEqual(c.Warnings(), want) {
		t.Errorf("got %q", c.Warnings())
	}
}

func TestShow(t *testing.T) {
	c, err := loadText(t, "listeners:\n  nats: {}\naccounts: [a, b]\n", []string{"FLEETBUS_NAME=x"}, "--grace=1m")
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, s := range c.Show() {
		got[s.Key] = s.Value + " from " + s.Source
	}
	for key, want := range map[string]string{
		"name":                    "x from FLEETBUS_NAME",
		"grace":                   "1m from --grace",
		"accounts":                "a,b from fleetbus.yaml:3:1",
		"listeners.nats.addr":     ":4222 from default",
		"listeners.nats.protocol": "nats from default",
		"limits.payload":          "1MiB from default",
		"cluster.name":            "(the name of the fleet) from default",
	} {
		if got[key] != want {
			t.Errorf("%s: got %q, want %q", key, got[key], want)
		}
	}
	if s := (Key{Secret: true}).shown("hunter2"); s != "(set, 7 bytes)" {
		t.Errorf("a secret is shown as %q", s)
	}
}

func TestSizes(t *testing.T) {
	for text, want := range map[string]int64{
		"1B": 1, "10KiB": 10 << 10, "5MB": 5e6, "512MiB": 512 << 20, "10GiB": 10 << 30, "2TB": 2e12,
		"10": 0, "1.5": 0, "1.5GiB": 0, "GiB": 0, "-1MiB": 0, "0MiB": 0, "10G": 0, "10gib": 0, "": 0,
		"9000000TiB": 0, "99999999999999999999B": 0,
	} {
		got, f := parseSize(text)
		if got != want || (f == nil) != (want != 0) {
			t.Errorf("%q: got %d, %v", text, got, f)
		}
	}
}

func TestFindFile(t *testing.T) {
	dir := t.TempDir()
	if got := FindFile("a", "b", dir); got != "a" {
		t.Errorf("explicit: got %q", got)
	}
	if got := FindFile("", "b", dir); got != "b" {
		t.Errorf("variable: got %q", got)
	}
	if _, err := os.Stat(systemFile); !errors.Is(err, os.ErrNotExist) {
		t.Skipf("%s exists on this machine", systemFile)
	}
	if got := FindFile("", "", dir); got != "" {
		t.Errorf("nothing: got %q", got)
	}
	own := filepath.Join(dir, "fleetbus.yaml")
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := FindFile("", "", dir); got != own {
		t.Errorf("in the data directory: got %q", got)
	}
}

func TestUnreadableFile(t *testing.T) {
	dir := t.TempDir()
	large := filepath.Join(dir, "large")
	if err := os.WriteFile(large, make([]byte, maxFile+1), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"): "cannot be read: no such file or directory",
		dir:                          "cannot be read: is a directory",
		large:                        "is larger than 1MiB",
	} {
		// What the other sources have wrong is reported as well.
		_, err := Load(Sources{File: path, Env: []string{"FLEETBUS_GRACE=10"}})
		if err == nil || !strings.Contains(err.Error(), path+": "+want) || !strings.Contains(err.Error(), "2 problems") {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	path := filepath.Join(dir, "fleetbus.yaml")
	if err := os.WriteFile(path, []byte("name: eu-1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Load(Sources{File: path}); err != nil || c.Options().Name != "eu-1" {
		t.Errorf("got %v", err)
	}
}

func TestProblemListIsBounded(t *testing.T) {
	var text strings.Builder
	for i := range 100 {
		fmt.Fprintf(&text, "unknown%d: 1\n", i)
	}
	_, err := loadText(t, text.String(), nil)
	if err == nil || !strings.HasPrefix(err.Error(), "configuration has 100 problems") || !strings.HasSuffix(err.Error(), "and 80 more") {
		t.Errorf("got %v", err)
	}
	start := time.Now()
	_, err = loadText(t, "accounts: ["+strings.Repeat("'',", maxCount-10)+"]\nnames: "+strings.Repeat("x", maxFile/2), nil)
	if err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("took %v: %v", time.Since(start), err)
	}
	if _, err = loadText(t, "accounts: ["+strings.Repeat("a,", maxCount)+"]", nil); err == nil || !strings.Contains(err.Error(), "more than 10000 values") {
		t.Errorf("got %v", err)
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(Defaults(false))
	f.Add(Defaults(true))
	f.Add([]byte("a: &a [*a, *a]\n? [b]\n: {c: d}\nlisteners: {x: {addr: 1}}\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		start := time.Now()
		root, problems, broken := parse("fleetbus.yaml", data)
		c, err := load(root, problems, broken, Sources{Env: []string{"FLEETBUS_CLUSTER_ADDR=:1", "FLEETBUS_LISTENERS_NATS_ADDR=:2"}})
		if (c == nil) == (err == nil) {
			t.Errorf("got %v and %v", c, err)
		}
		if c != nil {
			c.Show()
		}
		if took := time.Since(start); took > 5*time.Second {
			t.Errorf("took %v", took)
		}
	})
}
