package proxy_test

import (
	"slices"
	"testing"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

// found is what Detect knows of the program that has that configuration.
func found(t testing.TB, s *proxytest.Server) proxy.Found {
	t.Helper()
	all := proxy.Detect(t.Context())
	i := slices.IndexFunc(all, func(f proxy.Found) bool { return f.Kind == s.Options.Kind })
	if i < 0 {
		t.Fatalf("%s runs and was not found: %v", s.Options.Kind, all)
	}
	return all[i]
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
	var f proxy.Found
	// HAProxy's master begins with running itself anew, and has no arguments meanwhile.
	await(t, "its arguments", func() bool { f = found(t, s); return f.Config != "" })
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
