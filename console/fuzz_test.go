package console

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/http/httptest"
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
