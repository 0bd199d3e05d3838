package joining

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
)

// TestChosen settles what serves by what is said, where nothing has to be found.
func TestChosen(t *testing.T) {
	reload := proxy.Reload{Command: []string{"true"}}
	for _, c := range []struct {
		said  proxy.Options
		addrs []string
		want  string // of the directory; empty: no proxy
		wrong string
	}{
		{said: proxy.Options{Kind: "none"}},
		{said: proxy.Options{Kind: "files", Reload: reload}, want: "/srv/target/proxy"},
		{said: proxy.Options{Kind: "files", Reload: reload, Dir: "/etc/ssl/fleet"}, addrs: []string{"127.0.0.1:993"}, want: "/etc/ssl/fleet"},
		{said: proxy.Options{Kind: "files", Dir: "ssl"}, wrong: "absolute"},
		{said: proxy.Options{Kind: "files", Layout: proxy.Layout{PEM: "all.pem"}}, wrong: "{id}"},
		{said: proxy.Options{Kind: "files", Group: "no-such-group"}, wrong: "no-such-group"},
		{said: proxy.Options{Kind: "apache"}, wrong: "nginx, haproxy"},
	} {
		f := &targetFlags{said: c.said, addrs: c.addrs}
		p, err := f.chosen(t.Context(), "/srv/target")
		if c.wrong != "" {
			var no *command.Failure
			if !errors.As(err, &no) || no.Code != command.ExitUsage || !strings.Contains(err.Error(), c.wrong) {
				t.Errorf("%+v: %v", c.said, err)
			}
			continue
		}
		if err != nil || p.Dir != c.want || !slices.Equal(p.Addrs, c.addrs) || c.want != "" && !slices.Equal(p.Reload.Command, reload.Command) {
			t.Errorf("%+v: %+v, %v", c.said, p, err)
		}
	}
}

// TestOverride has what is said come before what was found.
func TestOverride(t *testing.T) {
	found := proxy.Options{Kind: "haproxy", Group: "haproxy", Socket: "/run/a.sock", Reload: proxy.Reload{Unit: "haproxy.service"}}
	f := &targetFlags{said: proxy.Options{Socket: "/run/b.sock", Reload: proxy.Reload{PIDFile: "/run/b.pid"}}}
	got := found
	f.override(&got)
	if got.Socket != "/run/b.sock" || got.Group != "haproxy" || got.Reload.PIDFile != "/run/b.pid" || got.Reload.Unit != "" {
		t.Errorf("%+v", got)
	}
	got, f.said = found, proxy.Options{}
	f.override(&got)
	if got.Socket != found.Socket || got.Reload.Unit != found.Reload.Unit {
		t.Errorf("%+v", got)
	}
}

// TestTargetDir has a directory of a target beside that of a node.
func TestTargetDir(t *testing.T) {
	a := &command.App{Env: []string{"FLEETBUS_DATA_DIR=/srv/fleetbus"}}
	for named, want := range map[string]string{"": "/srv/fleetbus-target", "/srv/lb": "/srv/lb"} {
		dir, err := targetDir(a, named)
		if err != nil || dir != want {
			t.Errorf("%q: %q, %v", named, dir, err)
		}
	}
	if got := unlessDefault(a, "/srv/fleetbus-target") + unlessDefault(a, "/srv/lb"); got != " /srv/lb" {
		t.Errorf("%q", got)
	}
}
