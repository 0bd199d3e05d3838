package proxy_test

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"go.yaml.in/yaml/v3"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

// watch returns what was moved into a directory since it was called, as Envoy watches
// directories, and the watchers of Traefik among others.
func watch(t testing.TB, dir string) (moved func() []string) {
	t.Helper()
	fd, err := syscall.InotifyInit1(syscall.IN_NONBLOCK | syscall.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if _, err := syscall.InotifyAddWatch(fd, dir, syscall.IN_MOVED_TO); err != nil {
		t.Fatal(err)
	}
	return func() []string {
		var names []string
		buf := make([]byte, 64<<10)
		n, err := syscall.Read(fd, buf)
		if err != nil {
			return nil
		}
		for buf = buf[:n]; len(buf) > 0; {
			event := (*syscall.InotifyEvent)(unsafe.Pointer(&buf[0]))
			end := syscall.SizeofInotifyEvent + event.Len
			names = append(names, strings.TrimRight(string(buf[syscall.SizeofInotifyEvent:end]), "\x00"))
			buf = buf[end:]
		}
		return names
	}
}

func TestEnvoy(t *testing.T) {
	dir := t.TempDir() + "/envoy"
	p := open(t, proxy.Options{Kind: "envoy", Dir: dir})
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	install(t, p, a, b)
	moved := watch(t, dir)
	a = proxytest.Pair(t, "a", "a.test")
	install(t, p, a, b)
	if names := moved(); !slices.Contains(names, "current") {
		t.Errorf("a watcher of the directory saw %v, and not that there is something new", names)
	}
	install(t, p, a, b)
	if names := moved(); len(names) > 0 {
		t.Errorf("nothing is new, and a watcher saw %v", names)
	}
	for _, decode := range []func([]byte, any) error{json.Unmarshal, yaml.Unmarshal} {
		var response struct {
			Resources []struct {
				Type string `json:"@type" yaml:"@type"`
				Name string
				TLS  map[string]map[string]string `json:"tls_certificate" yaml:"tls_certificate"`
			}
		}
		if err := decode([]byte(read(t, dir+"/current/a.json")), &response); err != nil {
			t.Fatal(err)
		}
		if len(response.Resources) != 1 {
			t.Fatalf("Envoy takes one secret of a file, and there are %v", response.Resources)
		}
		r := response.Resources[0]
		if r.Name != "a" || !strings.HasSuffix(r.Type, ".tls.v3.Secret") || r.TLS["certificate_chain"]["inline_string"] != string(a.Chain) || r.TLS["private_key"]["inline_string"] != string(a.Key) {
			t.Errorf("the secret is %v", r)
		}
	}
	snippet, err := p.Snippet([]proxy.Pair{a})
	var parsed map[string]any
	if err != nil || yaml.Unmarshal([]byte(snippet), &parsed) != nil || parsed["transport_socket"] == nil {
		t.Errorf("the snippet is %q, %v", snippet, err)
	}
	wrong(t, p, dir, a)
}

// TestEnvoyDefinitions has what is written for Envoy read by Envoy's own definitions.
func TestEnvoyDefinitions(t *testing.T) {
	program, err := exec.LookPath("envoycheck")
	if err != nil {
		t.Skip("there is no envoycheck: go build -C .ci/envoycheck puts it where PATH finds it")
	}
	dir := t.TempDir() + "/envoy"
	p := open(t, proxy.Options{Kind: "envoy", Dir: dir})
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	install(t, p, a, b)
	check := func(kind, file string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), program, kind, file).CombinedOutput()
		if err != nil {
			t.Errorf("checking a %s: %v: %s", kind, err, out)
		}
		return strings.TrimSpace(string(out))
	}
	if got := check("secret", dir+"/current/a.json"); got != "a" {
		t.Errorf("the secrets are %q", got)
	}
	snippet, err := p.Snippet([]proxy.Pair{a, b})
	if err != nil {
		t.Fatal(err)
	}
	for i, one := range strings.SplitAfter(snippet, "path: "+dir+"\n")[:2] {
		file := filepath.Join(t.TempDir(), "snippet.yaml")
		if err := os.WriteFile(file, []byte(one), 0o600); err != nil {
			t.Fatal(err)
		}
		id := []string{"a", "b"}[i]
		if got, want := check("socket", file), id+" "+dir+"/current/"+id+".json "+dir; got != want {
			t.Errorf("the filter chain has %q, want %q", got, want)
		}
	}
}

func TestTraefik(t *testing.T) {
	dir := t.TempDir() + "/traefik"
	p := open(t, proxy.Options{Kind: "traefik", Dir: dir})
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	install(t, p, a, b)
	moved := watch(t, dir)
	a = proxytest.Pair(t, "a", "a.test")
	install(t, p, a, b)
	if names := moved(); !slices.Equal(names, []string{"fleetbus.yaml"}) {
		t.Errorf("a watcher of the directory saw %v", names)
	}
	install(t, p, a, b)
	if names := moved(); len(names) > 0 {
		t.Errorf("nothing is new, and a watcher saw %v", names)
	}
	var dynamic struct {
		TLS struct {
			Certificates []map[string]string
		}
	}
	if err := yaml.Unmarshal([]byte(read(t, dir+"/fleetbus.yaml")), &dynamic); err != nil {
		t.Fatal(err)
	}
	if c := dynamic.TLS.Certificates; len(c) != 2 || c[0]["certFile"] != string(a.Chain) || c[0]["keyFile"] != string(a.Key) || c[1]["keyFile"] != string(b.Key) {
		t.Errorf("the certificates are %v", c)
	}
	install(t, p)
	if text := read(t, dir+"/fleetbus.yaml"); text != "{}" {
		t.Errorf("without certificates there is %q", text)
	}
	wrong(t, p, dir, a)
}
