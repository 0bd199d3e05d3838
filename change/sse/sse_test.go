package sse_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/sse"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

type client struct {
	*http.Client
	base, user, password, bearer string
}

func (c client) do(t *testing.T, method, path, body string) *http.Response {
	t.Helper()
	r, err := http.NewRequestWithContext(within(t), method, c.base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	switch {
	case c.bearer != "":
		r.Header.Set("Authorization", "Bearer "+c.bearer)
	case c.user != "":
		r.SetBasicAuth(c.user, c.password)
	}
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { answer.Body.Close() })
	return answer
}

// event reads the next event of a stream.
func event(t *testing.T, lines *bufio.Scanner) (kind string, data map[string]any) {
	t.Helper()
	for lines.Scan() {
		line := lines.Text()
		if k, ok := strings.CutPrefix(line, "event: "); ok {
			kind = k
		}
		if d, ok := strings.CutPrefix(line, "data: "); ok {
			if err := json.Unmarshal([]byte(d), &data); err != nil {
				t.Fatal(err)
			}
		}
		if line == "" && kind != "" {
			return kind, data
		}
	}
	t.Fatalf("the stream ended: %v", lines.Err())
	return "", nil
}

func start(t *testing.T) (*fleetbustest.Server, client) {
	t.Helper()
	s := fleetbustest.Start(t, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "sse", Addr: "127.0.0.1:0", Protocol: &sse.Protocol{}})
	})
	config := s.TLS()
	transport := &http.Transport{TLSClientConfig: config}
	t.Cleanup(transport.CloseIdleConnections)
	c := client{Client: &http.Client{Transport: transport}, base: "https://" + s.Addr("sse").String(), user: "acme/web"}
	c.password = s.Password(admin.UserRequest{Name: "acme/web", Role: "client"})
	return s, c
}

func TestStream(t *testing.T) {
	s, c := start(t)
	answer := c.do(t, "GET", "/changes/orders?pattern=customers.*", "")
	if answer.StatusCode != http.StatusOK || answer.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("%s %v", answer.Status, answer.Header)
	}
	lines := bufio.NewScanner(answer.Body)
	if kind, data := event(t, lines); kind != "resync" || data["reason"] != "started" {
		t.Errorf("the first event is %s %v", kind, data)
	}
	// Announced over HTTPS, heard over HTTPS.
	if posted := c.do(t, "POST", "/changes/orders", `{"key":"customers.4%202","kind":"insert","version":7}`); posted.StatusCode != http.StatusNoContent {
		t.Errorf("posted: %s", posted.Status)
	}
	if kind, data := event(t, lines); kind != "insert" || data["key"] != "customers.4%202" || data["version"] != 7.0 || data["source"] != "orders" {
		t.Errorf("heard %s %v", kind, data)
	}
	// Announced over NATS.
	if err := change.Announce(within(t), s.Dial("acme", "app"), "orders", change.Notice{Key: change.Key{"customers", "1"}, Kind: change.Delete}); err != nil {
		t.Fatal(err)
	}
	if kind, data := event(t, lines); kind != "delete" || data["key"] != "customers.1" {
		t.Errorf("heard %s %v", kind, data)
	}
	// A certificate is the same principal as over NATS.
	cert := s.Certificate(admin.UserRequest{Name: "acme/browser", Role: "client"})
	config := s.TLS()
	config.Certificates = []tls.Certificate{cert}
	transport := &http.Transport{TLSClientConfig: config}
	defer transport.CloseIdleConnections()
	other := client{Client: &http.Client{Transport: transport}, base: c.base}
	answer = other.do(t, "GET", "/changes/orders", "")
	second := bufio.NewScanner(answer.Body)
	if kind, _ := event(t, second); kind != "resync" {
		t.Errorf("by certificate: %s", kind)
	}
	// Who is denied hears no more.
	if _, err := s.Admin().DenyUser(within(t), "acme/web"); err != nil {
		t.Fatal(err)
	}
	for lines.Scan() {
	}
	if answer := c.do(t, "GET", "/changes/orders", ""); answer.StatusCode != http.StatusUnauthorized {
		t.Errorf("denied, and answered %s", answer.Status)
	}
}

func TestRefused(t *testing.T) {
	s, c := start(t)
	if _, err := s.Admin().AddRole(within(t), identity.Role{Name: "narrow", Permissions: identity.Permissions{
		Publish: identity.Rule{Allow: []string{"$JS.API.STREAM.INFO.CHANGES", "$JS.API.STREAM.CREATE.CHANGES"}}, Subscribe: identity.Rule{Allow: []string{"_INBOX.>"}}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Admin().AddRole(within(t), identity.Role{Name: "nothing", Permissions: identity.Permissions{
		Publish: identity.Rule{Deny: []string{">"}}, Subscribe: identity.Rule{Allow: []string{"_INBOX.>"}}}}); err != nil {
		t.Fatal(err)
	}
	narrow, nothing := c, c
	narrow.user, nothing.user = "acme/narrow", "acme/nothing"
	narrow.password = s.Password(admin.UserRequest{Name: "acme/narrow", Role: "narrow"})
	nothing.password = s.Password(admin.UserRequest{Name: "acme/nothing", Role: "nothing"})
	token, hash, err := identity.NewBearer("acme", "token")
	if err != nil {
		t.Fatal(err)
	}
	s.User(admin.UserRequest{Name: "acme/token", Role: "narrow", Bearer: hash})
	known, unknown := c, c
	known.bearer, unknown.bearer = token, token+"x"
	nobody, guesser := c, c
	nobody.user, guesser.password = "", "guessed"
	for _, r := range []struct {
		client             client
		method, path, body string
		code               int
	}{
		{nobody, "GET", "/changes/orders", "", http.StatusUnauthorized},
		{guesser, "GET", "/changes/orders", "", http.StatusUnauthorized},
		{narrow, "GET", "/changes/orders", "", http.StatusForbidden},
		{known, "GET", "/changes/orders", "", http.StatusForbidden},
		{unknown, "GET", "/changes/orders", "", http.StatusUnauthorized},
		{c, "GET", "/", "", http.StatusNotFound},
		{c, "GET", "/changes/", "", http.StatusNotFound},
		{c, "DELETE", "/changes/orders", "", http.StatusMethodNotAllowed},
		{narrow, "POST", "/changes/orders", `{"key":"a","kind":"update"}`, http.StatusForbidden},
		{nothing, "GET", "/changes/orders", "", http.StatusForbidden},
		{nothing, "POST", "/changes/orders", `{"key":"a","kind":"update"}`, http.StatusForbidden},
		{c, "GET", "/changes/or%20ders", "", http.StatusBadRequest},
		{c, "GET", "/changes/orders?pattern=a..b", "", http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"a","kind":"update","value":"secret"}`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"a","kind":"renamed"}`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"a b","kind":"update"}`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"-----BEGIN%20PRIVATE%20KEY","kind":"update"}`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"` + strings.Repeat("k", 2000) + `","kind":"update"}`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", ``, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"a","kind":"update"}}} and more`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"a","kind":"update"} {}`, http.StatusBadRequest},
		{c, "POST", "/changes/orders", `{"key":"a","kind":"update"}` + strings.Repeat(" ", 2000), http.StatusBadRequest},
	} {
		answer := r.client.do(t, r.method, r.path, r.body)
		var said struct{ Error, Fix string }
		err := json.NewDecoder(answer.Body).Decode(&said)
		if answer.StatusCode != r.code || err != nil || said.Error == "" || said.Fix == "" {
			t.Errorf("%s %s %s: %s %+v %v", r.method, r.path, r.body, answer.Status, said, err)
		}
		if h := answer.Header; h.Get("X-Content-Type-Options") != "nosniff" || h.Get("Content-Security-Policy") == "" || h.Get("Access-Control-Allow-Origin") != "" {
			t.Errorf("%s %s: the headers are %v", r.method, r.path, h)
		}
	}
	// A connection is good for another request after HEAD, which has no stream.
	for _, method := range []string{"HEAD", "HEAD", "OPTIONS"} {
		if answer := c.do(t, method, "/changes/orders", ""); answer.StatusCode != http.StatusMethodNotAllowed {
			t.Errorf("%s: %s", method, answer.Status)
		}
	}
	// A page cannot announce with what its visitor may do.
	r, err := http.NewRequestWithContext(within(t), "POST", c.base+"/changes/orders", strings.NewReader(`{"key":"a","kind":"update"}`))
	if err != nil {
		t.Fatal(err)
	}
	r.SetBasicAuth(c.user, c.password)
	r.Header.Set("Origin", "https://elsewhere.test")
	answer, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusForbidden {
		t.Errorf("the request of a page: %s", answer.Status)
	}
}

// TestCurl has a foreign client hear a change.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("the program curl is missing: Debian's package curl has it")
	}
	s, c := start(t)
	cmd := exec.CommandContext(within(t), curl, "--silent", "--no-buffer", "--cacert", s.Founded().CA, "--config", "-", c.base+"/changes/orders")
	cmd.Stdin = strings.NewReader(fmt.Sprintf("user = \"%s:%s\"\n", c.user, c.password))
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	lines := bufio.NewScanner(out)
	if kind, _ := event(t, lines); kind != "resync" {
		t.Errorf("the first event is %s", kind)
	}
	if err := change.Announce(within(t), s.Dial("acme", "app"), "orders", change.Notice{Key: change.Key{"k"}, Kind: change.Update}); err != nil {
		t.Fatal(err)
	}
	if kind, data := event(t, lines); kind != "update" || data["key"] != "k" {
		t.Errorf("heard %s %v", kind, data)
	}
}
