package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

// caddyURL is where Caddy asks.
func caddyURL(t testing.TB, o proxy.Options) string {
	t.Helper()
	text, err := os.ReadFile(o.Dir + "/get_certificate")
	if err != nil {
		t.Fatal(err)
	}
	u, ok := strings.CutPrefix(strings.TrimSpace(string(text)), "get_certificate http ")
	if !ok {
		t.Fatalf("the line for the Caddyfile is %q", text)
	}
	return u
}

func TestCaddy(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test", "www.a.test"), proxytest.Pair(t, "b", "*.b.test", "b.test")
	s := proxytest.Caddy(t)
	p := open(t, s.Options)
	install(t, p, a, b)
	s.Start()
	served(t, s.Addr, a, b)
	wrong(t, p, s.Options.Dir, a)
	still(t, s.Addr, "A.Test", a)

	stop := handshakes(t, s.Addr, "a.test", "x.b.test")
	for range 2 {
		a = proxytest.Pair(t, "a", "a.test", "www.a.test")
		install(t, p, a, b)
		still(t, s.Addr, "www.a.test", a)
	}
	c := proxytest.Pair(t, "c", "new.test")
	install(t, p, a, b, c)
	still(t, s.Addr, "new.test", c)
	stop()
	install(t, p, a, b)
	if leaf, err := proxy.Probe(t.Context(), s.Addr, "new.test"); err == nil {
		t.Errorf("it was removed, and is served with %s", leaf.Subject)
	}

	// Who runs again has the same URL, and Caddy need not know.
	u, err := url.Parse(caddyURL(t, s.Options))
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if leaf, err := proxy.Probe(t.Context(), s.Addr, "a.test"); err == nil {
		t.Errorf("nobody answers Caddy, and it serves %s: the documentation says otherwise", leaf.Subject)
	}
	o := s.Options
	o.Listen = u.Host
	p = open(t, o)
	install(t, p, a, b)
	still(t, s.Addr, "a.test", a)
	if now := caddyURL(t, o); now != u.String() {
		t.Errorf("the URL was %s and is %s", u, now)
	}
	snippet, err := p.Snippet([]proxy.Pair{a})
	if err != nil || strings.Contains(snippet, u.Path) || !strings.Contains(snippet, "import "+o.Dir+"/get_certificate") {
		t.Errorf("the snippet is %q, %v", snippet, err)
	}
}

// TestCaddyAnswers asks in Caddy's place.
func TestCaddyAnswers(t *testing.T) {
	o := proxy.Options{Kind: "caddy", Dir: t.TempDir() + "/caddy", Listen: "127.0.0.1:0"}
	p := open(t, o)
	u := caddyURL(t, o)
	a := proxytest.Pair(t, "a", "a.test", "*.b.test", "127.0.0.1")
	ask := func(u, name string) (int, string) {
		t.Helper()
		r, err := http.Get(u + "?server_name=" + url.QueryEscape(name) + "&signature_schemes=1027&cipher_suites=4865")
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Fatal(err)
		}
		return r.StatusCode, string(body)
	}
	if code, body := ask(u, "a.test"); code != http.StatusNoContent || body != "" {
		t.Errorf("before there are any: %d %q", code, body)
	}
	install(t, p, a)
	for name, want := range map[string]int{
		"a.test": 200, "A.TEST.": 200, "x.b.test": 200, "x.y.b.test": 204, "b.test": 204, "c.test": 204,
		"": 204, "127.0.0.1": 204, "*.b.test": 200, strings.Repeat("a.", 1000): 204, "\x00": 204,
	} {
		code, body := ask(u, name)
		if code != want || code == 200 && body != string(a.Chain)+string(a.Key) {
			t.Errorf("for %.50q: %d, want %d, and %q", name, code, want, body)
		}
	}
	for _, other := range []string{u[:len(u)-1], u + "x", u[:strings.LastIndexByte(u, '/')+1]} {
		if code, body := ask(other, "a.test"); code != 404 || strings.Contains(body, "PRIVATE") {
			t.Errorf("who does not know the path gets %d %q", code, body)
		}
	}
	if info, err := os.Stat(o.Dir + "/get_certificate"); err != nil || info.Mode() != 0o600 {
		t.Errorf("the URL is in a file of mode %v, %v", info.Mode(), err)
	}
}

// TestCaddyFiles has Caddy read files, and go on without us. The path needs its last
// slash: Caddy follows no symbolic link otherwise.
func TestCaddyFiles(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	s := proxytest.Caddy(t)
	o := s.Options
	o.Kind, o.Listen = "files", ""
	socket := s.Dir + "/admin.sock"
	text, err := os.ReadFile(o.Config)
	if err != nil {
		t.Fatal(err)
	}
	config := strings.Replace(string(text), "admin off", "admin unix/"+socket, 1)
	config = strings.Replace(config, fmt.Sprintf("import %s/get_certificate", o.Dir), fmt.Sprintf("load %s/current/", o.Dir), 1)
	s.Configure(config)
	o.Test = []string{o.Binary, "validate", "--adapter", "caddyfile", "--config", o.Config}
	if os.Getuid() == 0 { // it writes into its storage even to validate
		o.Test = append([]string{"runuser", "-u", "nobody", "--"}, o.Test...)
	}
	o.Reload.Command = []string{"true"}
	install(t, open(t, o), a, b)
	s.Start()
	served(t, s.Addr, a, b)
	o.Reload.Command = []string{o.Binary, "reload", "--force", "--adapter", "caddyfile", "--config", o.Config, "--address", "unix/" + socket}
	p := open(t, o)
	for range 2 {
		a = proxytest.Pair(t, "a", "a.test")
		install(t, p, a, b)
		served(t, s.Addr, a, b)
	}
	s.Configure(config + "nonsense {\n")
	err = p.Install(t.Context(), []proxy.Pair{proxytest.Pair(t, "a", "a.test"), b})
	if err == nil || !strings.Contains(err.Error(), "caddy validate") {
		t.Fatalf("the error is %v, which is not Caddy's", err)
	}
	t.Log(err)
	still(t, s.Addr, "a.test", a)
}
