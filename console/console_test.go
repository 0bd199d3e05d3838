package console_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/cookiejar"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/console"
	"github.com/fleetbus/fleetbus/fleetbustest"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// withConsole opens a console on a node.
func withConsole(o *fleetbus.Options) {
	o.Accounts = []string{"acme"}
	o.Grace = 100 * time.Millisecond
	o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "console", Addr: "127.0.0.1:0", Protocol: &console.Protocol{}})
}

// A browser is one with a jar of its own, and without JavaScript.
type browser struct {
	*http.Client
	t    testing.TB
	base string
}

func open(t testing.TB, s *fleetbustest.Server, edit ...func(*tls.Config)) *browser {
	t.Helper()
	config := s.TLS()
	for _, e := range edit {
		e(config)
	}
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &browser{&http.Client{Transport: transport, Jar: jar}, t, "https://" + s.Addr("console").String()}
}

// ask sends a request as the page does; header are more lines, in pairs.
func (b *browser) ask(method, path, body string, header ...string) *http.Response {
	b.t.Helper()
	r, err := http.NewRequestWithContext(within(b.t), method, b.base+path, strings.NewReader(body))
	if err != nil {
		b.t.Fatal(err)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	answer, err := b.Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { answer.Body.Close() })
	return answer
}

// status is ask, for the status alone.
func (b *browser) status(method, path, body string, header ...string) int {
	b.t.Helper()
	answer := b.ask(method, path, body, header...)
	_, _ = io.Copy(io.Discard, answer.Body)
	return answer.StatusCode
}

// link makes a login link and returns its secret.
func link(t testing.TB, s *fleetbustest.Server, user string) string {
	t.Helper()
	made, err := s.Admin().LoginLink(within(t), user)
	if err != nil {
		t.Fatal(err)
	}
	_, secret, ok := strings.Cut(made.URL, "/#login=")
	if !ok || !strings.HasPrefix(made.URL, "https://"+s.Addr("console").String()) {
		t.Fatalf("the link is %q", made.URL)
	}
	return secret
}

// logIn logs in as user by a link.
func (b *browser) logIn(s *fleetbustest.Server, user string) {
	b.t.Helper()
	if got := b.status("POST", "/api/login", `{"link":"`+link(b.t, s, user)+`"}`); got != http.StatusOK {
		b.t.Fatalf("logging in as %s: %d", user, got)
	}
}

type sent struct {
	kind, id string
	data     map[string]any
}

// read returns the next event of a stream; kind is empty at its end.
func read(t testing.TB, lines *bufio.Reader) (e sent) {
	t.Helper()
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return sent{}
		}
		line = strings.TrimSuffix(line, "\n")
		if k, ok := strings.CutPrefix(line, "event: "); ok {
			e.kind = k
		}
		if id, ok := strings.CutPrefix(line, "id: "); ok {
			e.id = id
		}
		if d, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(d), &e.data); err != nil {
				t.Fatal(err)
			}
		}
		if line == "" && e.kind != "" {
			return e
		}
	}
}

func TestWaysIn(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	// A link lets one person in, once.
	secret := link(t, s, "FLEET/admin")
	b := open(t, s)
	answer := b.ask("POST", "/api/login", `{"link":"`+secret+`"}`)
	var me struct {
		Principal, Role string
		Screens         []string
	}
	if err := json.NewDecoder(answer.Body).Decode(&me); err != nil || me.Principal != "FLEET/admin" || me.Role != "admin" || len(me.Screens) == 0 {
		t.Errorf("by link: %s %+v %v", answer.Status, me, err)
	}
	cookies := answer.Cookies()
	if len(cookies) != 1 || !cookies[0].Secure || !cookies[0].HttpOnly || cookies[0].SameSite != http.SameSiteStrictMode || !strings.HasPrefix(cookies[0].Name, "__Host-") || cookies[0].Path != "/" {
		t.Errorf("the cookie is %v", answer.Header.Values("Set-Cookie"))
	}
	if got := open(t, s).status("POST", "/api/login", `{"link":"`+secret+`"}`); got != http.StatusUnauthorized {
		t.Errorf("the link let somebody in twice: %d", got)
	}
	if answer.ProtoMajor != 2 {
		t.Errorf("the console speaks %s", answer.Proto)
	}
	// A password, and a certificate.
	password := s.Password(admin.UserRequest{Name: "acme/alice", Role: "client"})
	if got := open(t, s).status("POST", "/api/login", `{"user":"acme/alice","password":"`+password+`"}`); got != http.StatusOK {
		t.Errorf("by password: %d", got)
	}
	if got := open(t, s).status("POST", "/api/login", `{"user":"acme/alice","password":"x`+password+`"}`); got != http.StatusUnauthorized {
		t.Errorf("by another password: %d", got)
	}
	cert := s.Certificate(admin.UserRequest{Name: "acme/bob", Role: "client"})
	if got := open(t, s, func(c *tls.Config) { c.Certificates = []tls.Certificate{cert} }).status("POST", "/api/login", `{}`); got != http.StatusOK {
		t.Errorf("by certificate: %d", got)
	}
	if got := open(t, s).status("POST", "/api/login", `{}`); got != http.StatusUnauthorized {
		t.Errorf("by nothing: %d", got)
	}
	// Nobody is there without a cookie, or with one of his own making.
	for _, path := range []string{"/api/me", "/api/live?feeds=fleet", "/api/ask/x"} {
		if got := open(t, s).status("GET", path, "", "Cookie", cookies[0].Name+"=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.t1.AAAA"); got != http.StatusUnauthorized {
			t.Errorf("%s without a login: %d", path, got)
		}
	}
	// Who logs out is out.
	if got := b.status("POST", "/api/logout", `{}`); got != http.StatusNoContent {
		t.Errorf("logging out: %d", got)
	}
	if got := open(t, s).status("GET", "/api/me", "", "Cookie", cookies[0].Name+"="+cookies[0].Value); got != http.StatusUnauthorized {
		t.Errorf("after logging out: %d", got)
	}
}

func TestPage(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	b := open(t, s)
	answer := b.ask("GET", "/", "")
	body, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK || !bytes.Contains(body, []byte("<title>fleetbus</title>")) {
		t.Fatalf("%s %v", answer.Status, err)
	}
	csp := answer.Header.Get("Content-Security-Policy")
	for _, want := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "require-trusted-types-for 'script'", "frame-ancestors 'none'"} {
		if !strings.Contains(csp, want) {
			t.Errorf("the policy %q lacks %q", csp, want)
		}
	}
	for _, word := range []string{"unsafe", "http:", "https:", "data:", "*"} {
		if strings.Contains(csp, word) {
			t.Errorf("the policy %q has %q", csp, word)
		}
	}
	if tag := answer.Header.Get("ETag"); b.status("GET", "/", "", "If-None-Match", tag) != http.StatusNotModified {
		t.Error("what has not changed is sent again")
	}
	if got := b.status("GET", "/ui/nothing.js", ""); got != http.StatusNotFound {
		t.Errorf("a file that is not there: %d", got)
	}
}

func TestOtherOrigins(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	b := open(t, s)
	b.logIn(s, "FLEET/admin")
	for _, header := range [][]string{
		{"Origin", "https://evil.example"},
		{"Origin", "null"},
		{"Sec-Fetch-Site", "cross-site"},
		{"Sec-Fetch-Site", "same-site"},
	} {
		if got := b.status("POST", "/api/logout", `{}`, header...); got != http.StatusForbidden {
			t.Errorf("a POST with %v: %d", header, got)
		}
	}
	if got := b.status("GET", "/api/me", "", "Sec-Fetch-Site", "cross-site"); got != http.StatusForbidden {
		t.Errorf("a GET of another site: %d", got)
	}
	// A form of another page has no type of ours.
	if got := b.status("POST", "/api/login", `{}`, "Content-Type", "text/plain"); got != http.StatusBadRequest {
		t.Errorf("a form: %d", got)
	}
	if got := b.status("GET", "/api/me", "", "Sec-Fetch-Site", "same-origin"); got != http.StatusOK {
		t.Errorf("the page itself: %d", got)
	}
}

func TestLive(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	b := open(t, s)
	b.logIn(s, "FLEET/admin")
	answer := b.ask("GET", "/api/live?feeds=fleet,nothing", "")
	if kind := answer.Header.Get("Content-Type"); answer.StatusCode != http.StatusOK || kind != "text/event-stream" {
		t.Fatalf("%s %s", answer.Status, kind)
	}
	lines := bufio.NewReader(answer.Body)
	hello := read(t, lines)
	epoch, _ := hello.data["epoch"].(string)
	if hello.kind != "hello" || epoch == "" || len(hello.data["missing"].([]any)) != 1 {
		t.Fatalf("the first event is %+v", hello)
	}
	full := read(t, lines)
	rows, _ := full.data["set"].(map[string]any)
	node, _ := rows["node:n1"].(map[string]any)
	if full.kind != "full" || !strings.HasPrefix(full.id, epoch+".") || node["state"] != "up" || rows["fleet"] == nil {
		t.Fatalf("the second event is %+v", full)
	}
	// What changes comes, and nothing else.
	s.Dial("acme", "app")
	for {
		next := read(t, lines)
		if next.kind != "delta" {
			t.Fatalf("an event is %+v", next)
		}
		if set, _ := next.data["set"].(map[string]any); set["fleet"] != nil {
			if len(set) > 3 {
				t.Errorf("the change of one row has %d", len(set))
			}
			break
		}
	}
	// Who is denied is told so, and gone at once.
	s.MoreCreds("acme", "carol")
	c := open(t, s)
	c.logIn(s, "acme/carol")
	stream := bufio.NewReader(c.ask("GET", "/api/live?feeds=", "").Body)
	if first := read(t, stream); first.kind != "hello" {
		t.Fatalf("carol's first event is %+v", first)
	}
	if _, err := s.Admin().DenyUser(within(t), "acme/carol"); err != nil {
		t.Fatal(err)
	}
	if over := read(t, stream); over.kind != "over" || over.data["why"] == "" {
		t.Errorf("carol was told %+v", over)
	}
	if last := read(t, stream); last.kind != "" {
		t.Errorf("carol's stream goes on with %+v", last)
	}
	if got := c.status("GET", "/api/me", ""); got != http.StatusUnauthorized {
		t.Errorf("carol asks again: %d", got)
	}
}

func TestRights(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	s.Creds("acme", "alice")
	b := open(t, s)
	b.logIn(s, "acme/alice")
	lines := bufio.NewReader(b.ask("GET", "/api/live?feeds=fleet", "").Body)
	if hello := read(t, lines); len(hello.data["missing"].([]any)) != 1 {
		t.Errorf("a user of an account has feeds of the fleet: %+v", hello)
	}
	if got := b.status("POST", "/api/do/node.renew", `{"name":""}`); got != http.StatusForbidden && got != http.StatusNotFound {
		t.Errorf("a user of an account renews certificates: %d", got)
	}
}

// TestDrops has a console be told who was not let in, and why.
func TestDrops(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	b := open(t, s)
	b.logIn(s, "FLEET/admin")
	lines := bufio.NewReader(b.ask("GET", "/api/live?feeds=drops", "").Body)
	for read(t, lines).kind != "full" {
	}
	if got := open(t, s).status("POST", "/api/login", `{"user":"acme/nobody","password":"wrong"}`); got != http.StatusUnauthorized {
		t.Fatal(got)
	}
	for {
		e := read(t, lines)
		if e.kind == "" {
			t.Fatal("the stream has ended")
		}
		set, _ := e.data["set"].(map[string]any)
		for key, row := range set {
			if drop, _ := row.(map[string]any); strings.HasPrefix(key, "drop:refused/") && drop["listener"] == "console" && drop["reason"] != "" && drop["count"].(float64) >= 1 {
				return
			}
		}
	}
}

func TestGuessing(t *testing.T) {
	var log strings.Builder
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		withConsole(o)
		o.Listeners[1].Protocol = &console.Protocol{Options: console.Options{Logger: slog.New(slog.NewTextHandler(&log, nil))}}
	})
	b := open(t, s)
	var refused, waiting int
	for range 20 {
		switch got := b.status("POST", "/api/login", `{"link":"AAAAAAAAAAAAAAAAAAAAAAAA"}`); got {
		case http.StatusUnauthorized:
			refused++
		case http.StatusTooManyRequests:
			waiting++
		default:
			t.Fatalf("a guess: %d", got)
		}
	}
	if refused > 10 || waiting < 10 {
		t.Errorf("of 20 guesses %d were looked at", refused)
	}
	if answer := b.ask("POST", "/api/login", `{}`); answer.Header.Get("Retry-After") == "" {
		t.Error("nobody says how long to wait")
	}
	if told := strings.Count(log.String(), "too many logins to the console failed"); told != 1 {
		t.Errorf("the operator is told %d times: %s", told, log.String())
	}
}

func TestRestart(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		withConsole(o)
		o.Listeners[1].Addr = fleetbustest.Options(t, "x").Listeners[0].Addr
	})
	s.MoreCreds("acme", "alice")
	s.MoreCreds("acme", "bob")
	b, out := open(t, s), open(t, s)
	b.logIn(s, "FLEET/admin")
	out.logIn(s, "acme/alice")
	if got := out.status("POST", "/api/logout", `{}`); got != http.StatusNoContent {
		t.Fatal(got)
	}
	denied := open(t, s)
	denied.logIn(s, "acme/bob")
	s.Stop()
	again := s.Restart()
	if _, err := again.Admin().DenyUser(within(t), "acme/bob"); err != nil {
		t.Fatal(err)
	}
	if got := b.status("GET", "/api/me", ""); got != http.StatusOK {
		t.Errorf("who was logged in, after the node was started anew: %d", got)
	}
	if got := denied.status("GET", "/api/me", ""); got != http.StatusUnauthorized {
		t.Errorf("who was denied meanwhile: %d", got)
	}
}

func TestExpiry(t *testing.T) {
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		withConsole(o)
		o.Listeners[1].Protocol = &console.Protocol{Options: console.Options{Life: 2 * time.Second}}
	})
	b := open(t, s)
	b.logIn(s, "FLEET/admin")
	lines := bufio.NewReader(b.ask("GET", "/api/live?feeds=", "").Body)
	if first := read(t, lines); first.kind != "hello" {
		t.Fatalf("the first event is %+v", first)
	}
	if over := read(t, lines); over.kind != "over" {
		t.Errorf("the last event is %+v", over)
	}
	if got := b.status("GET", "/api/me", ""); got != http.StatusUnauthorized {
		t.Errorf("after the end: %d", got)
	}
}

// TestMounted has the console in a web server of the program's own.
func TestMounted(t *testing.T) {
	s := fleetbustest.Start(t, withConsole)
	h := console.New(t.Context(), console.Options{Login: s.LoginBy("console"), Prefix: "/bus/"})
	t.Cleanup(h.Close)
	mux := http.NewServeMux()
	mux.Handle("/bus/", h)
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "the program's own") })
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: time.Second}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = srv.Serve(ln) }()
	t.Cleanup(func() { _ = srv.Close() })
	b := open(t, s)
	b.base = "http://" + ln.Addr().String()
	if got := b.status("GET", "/bus/", ""); got != http.StatusOK {
		t.Errorf("the page: %d", got)
	}
	answer := b.ask("POST", "/bus/api/login", `{"link":"`+link(t, s, "FLEET/admin")+`"}`)
	if answer.StatusCode != http.StatusOK || len(answer.Cookies()) != 1 || answer.Cookies()[0].Path != "/bus/" {
		t.Fatalf("logging in: %s %v", answer.Status, answer.Header)
	}
	c := answer.Cookies()[0]
	if got := b.status("GET", "/bus/api/me", "", "Cookie", c.Name+"="+c.Value); got != http.StatusOK {
		t.Errorf("who is logged in: %d", got)
	}
	if got := b.status("GET", "/else", ""); got != http.StatusOK {
		t.Errorf("the rest of the program: %d", got)
	}
}
