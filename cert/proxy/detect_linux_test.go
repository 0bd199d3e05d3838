package proxy_test

import (
	"os"
	"slices"
	"testing"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

// found is what Detect knows of the program that was started with that configuration.
func found(t testing.TB, s *proxytest.Server) (f proxy.Found) {
	t.Helper()
	// HAProxy's master begins with running itself anew, and has no arguments meanwhile.
	waitFor(t, s.Options.Kind, func() bool {
		all := proxy.Detect(t.Context())
		i := slices.IndexFunc(all, func(f proxy.Found) bool {
			return f.Kind == s.Options.Kind && (f.Config == s.Options.Config || f.Kind == "caddy" && slices.Contains(f.Addrs, s.Addr))
		})
		if i >= 0 {
			f = all[i]
		}
		return i >= 0
	})
	return f
}

func TestDetect(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	t.Run("nginx", func(t *testing.T) { detected(t, proxytest.NGINX(t, a), a) })
	t.Run("haproxy", func(t *testing.T) { detected(t, proxytest.HAProxy(t, a), a) })
	t.Run("caddy", func(t *testing.T) {
		s := proxytest.Caddy(t)
		p := open(t, s.Options)
		install(t, p, a)
		s.Start()
		served(t, s.Addr, a)
		f := found(t, s)
		if f.Version == "" || f.PID == 0 || !slices.Contains(f.Addrs, s.Addr) {
			t.Errorf("found %+v", f)
		}
	})
}

// detected demands that what was found is enough to renew a certificate.
func detected(t *testing.T, s *proxytest.Server, a proxy.Pair) {
	served(t, s.Addr, a) // a port is bound before the worker is there
	f := found(t, s)
	if f.Version == "" || f.PID == 0 || f.Binary != s.Options.Binary || f.Config != s.Options.Config || f.Socket != s.Options.Socket || f.Reload.Socket != s.Options.Reload.Socket || f.Group != s.Options.Group {
		t.Fatalf("found %+v, want %+v", f, s.Options)
	}
	if !slices.Equal(f.Addrs, []string{s.Addr}) {
		t.Fatalf("it speaks TLS at %v, want %s", f.Addrs, s.Addr)
	}
	f.Dir = s.Options.Dir
	a = proxytest.Pair(t, "a", "a.test")
	install(t, open(t, f.Options), a)
	served(t, f.Addrs[0], a)
}

// TestDetectStranger has a program of somebody else that only has the name: it is not run.
func TestDetectStranger(t *testing.T) {
	dir := t.TempDir()
	// An interpreter of a script would be seen in its place: a copy of a program that waits.
	sleep, err := os.ReadFile("/bin/sleep")
	if err != nil {
		t.Skipf("there is no program to copy: %v", err)
	}
	path := dir + "/traefik"
	if err := os.WriteFile(path, sleep, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o777); err != nil { // so that anybody could replace it
		t.Fatal(err)
	}
	start(t, path, "600")
	var f proxy.Found
	waitFor(t, "the stranger", func() bool {
		all := proxy.Detect(t.Context())
		i := slices.IndexFunc(all, func(f proxy.Found) bool { return f.Kind == "traefik" })
		if i >= 0 {
			f = all[i]
		}
		return i >= 0
	})
	if f.Binary == path || f.PID == 0 || f.User == "" {
		t.Errorf("found %+v", f)
	}
}
