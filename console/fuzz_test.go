package console

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/identity"
)

// FuzzRequest has a stranger ask for anything, with any cookie, header and body: it is
// answered, never let in, and every answer has the headers that keep a browser safe.
func FuzzRequest(f *testing.F) {
	f.Add("GET", "/", "", "", "")
	f.Add("GET", "/ui/..%2f..%2fetc%2fpasswd", "", "", "")
	f.Add("POST", "/api/login", "", "application/json", `{"user":"a/b","password":"c"}`)
	f.Add("POST", "/api/login", "", "application/json; charset=x", `{"link":"`+strings.Repeat("a", 100)+`"}`)
	f.Add("POST", "/api/do/user.add", strings.Repeat("a", 43)+".ticket", "application/json", `{}`)
	f.Add("GET", "/api/live?feeds=fleet,%00", strings.Repeat("a", 43)+".", "", "")
	f.Add("GET", "/api/ask/..", "x", "text/html", "<script>")
	f.Fuzz(func(t *testing.T, method, target, cookie, kind, body string) {
		r, err := http.NewRequest(method, "https://node"+target, strings.NewReader(body))
		if err != nil {
			return
		}
		h := New(t.Context(), Options{Login: func(context.Context, identity.Credentials) (*fleetbus.Session, error) {
			return nil, identity.ErrUnauthorized
		}})
		defer h.Close()
		r.RemoteAddr, r.TLS = "192.0.2.1:1", &tls.ConnectionState{}
		r.Header.Set("Content-Type", kind)
		r.Header["Cookie"] = []string{h.cookieName(r) + "=" + cookie}
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		header := w.Result().Header
		for name, want := range map[string]string{"Content-Security-Policy": policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Strict-Transport-Security": "max-age=31536000"} {
			if got := header.Get(name); got != want {
				t.Errorf("%s is %q", name, got)
			}
		}
		if header.Get("Set-Cookie") != "" {
			t.Error("a stranger got a cookie")
		}
		if strings.Contains(r.URL.Path, "/api/") && w.Code < 300 {
			t.Errorf("a stranger was answered %d: %s", w.Code, w.Body)
		}
	})
}

// TestKnockers counts who logs in, on a connection and on all: those who are too many are
// not waited for.
func TestKnockers(t *testing.T) {
	var k knockers
	var leave []func()
	in := func(remote string) bool {
		done, ok := k.enter(remote)
		if ok {
			leave = append(leave, done)
		}
		return ok
	}
	for i := range knockersEach + 1 {
		if got := in("192.0.2.1:1"); got != (i < knockersEach) {
			t.Errorf("number %d of one connection: %v", i, got)
		}
	}
	for i := range knockersAll {
		if got := in("192.0.2.2:" + strconv.Itoa(i)); got != (i < knockersAll-knockersEach) {
			t.Errorf("number %d of all: %v", i, got)
		}
	}
	for _, l := range leave {
		l()
	}
	if len(k.each) != 0 || k.all != 0 || !in("192.0.2.1:1") {
		t.Errorf("%d of %d are left", len(k.each), k.all)
	}
}
