package hardening

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/hardening/conf"
)

// told has a kind of files audited, in seconds, and returns all that is told of them.
func told(t *testing.T, kind Kind, o Options, paths ...string) (Report, string) {
	t.Helper()
	o.Now = now
	type end struct {
		r   Report
		err error
	}
	done := make(chan end, 1)
	go func() {
		r, err := Audit(kind, paths, o)
		done <- end{r, err}
	}()
	select {
	case e := <-done:
		return e.r, fmt.Sprintf("%+v %v", e.r, e.err)
	case <-time.After(time.Minute):
		t.Fatal("the audit does not end")
	}
	return Report{}, ""
}

// TestHostileFiles reads files of somebody who would harm who reads them: pipes and devices, links out of
// a copy, lines and nests without an end, and more of everything than a person reads.
func TestHostileFiles(t *testing.T) {
	outside := filepath.Join(t.TempDir(), "outside.conf")
	if err := os.WriteFile(outside, []byte("listeners.tcp.1 = 0.0.0.0:5672\nOutside\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	etc := filepath.Join(dir, "etc", "rabbitmq")
	if err := os.MkdirAll(filepath.Join(etc, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var listeners strings.Builder
	for i := range 600 {
		fmt.Fprintf(&listeners, "listeners.tcp.%d = 0.0.0.0:%d\nno.such.key%d = x\nwhat is this\n", i, i, i)
	}
	fmt.Fprintf(&listeners, "ssl_options.cacertfile = %s\nssl_options.certfile = %s\n", outside, filepath.Join(strings.Repeat("../", 30), outside))
	write("rabbitmq.conf", listeners.String())
	write("conf.d/00-key.conf", strings.Repeat("k", 3<<20)+" = 1")
	write("conf.d/01-value.conf", "default_user = "+strings.Repeat("a", 3<<20))
	write("advanced.config", strings.Repeat("[", 1<<20))
	write("definitions.json", `{"users":`+strings.Repeat("[", 1<<20))
	write("huge.conf", strings.Repeat("#", maxFile+1))
	out, err := filepath.Rel(etc, outside)
	if err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"conf.d/10-out.conf": "../" + out, "conf.d/20-device.conf": "/dev/zero", "conf.d/30-loop.conf": "30-loop.conf", "conf.d/40-up.conf": "../../../../../../../../../../etc/passwd"} {
		if err := os.Symlink(to, filepath.Join(etc, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(etc, "linked.conf")); err != nil {
		t.Fatal(err)
	}
	pipe := filepath.Join(etc, "pipe.conf")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Skip("no pipes here: ", err)
	}
	for _, kind := range []Kind{RabbitMQ, Qpid, OpenStack} {
		for what, o := range map[string]Options{"a copy": {Root: dir}, "files": {}} {
			path := etc
			if o.Root != "" {
				path = "/etc/rabbitmq"
			}
			r, text := told(t, kind, o, path)
			if strings.Contains(text, "Outside") || strings.Contains(text, "root:") {
				t.Errorf("%s, %s: what is outside is told", kind, what)
			}
			if slices.ContainsFunc(r.Files, func(path string) bool { return strings.HasSuffix(path, "outside.conf") }) {
				t.Errorf("%s, %s: a file outside is read", kind, what)
			}
			for _, f := range r.Findings {
				if n := max(len(f.Text), len(f.Evidence), len(f.Fix)); n > longest+5 {
					t.Errorf("%s, %s: a finding has %d bytes", kind, what, n)
				}
			}
			if n := len(r.Findings); n > len(Rules())*(maxEach+1) {
				t.Errorf("%s, %s: there are %d findings", kind, what, n)
			}
			if kind == RabbitMQ && !strings.Contains(text, "there are more than 500 of these") {
				t.Errorf("%s: it is not told that there are more", what)
			}
		}
	}
	// Those that are given by themselves.
	for _, path := range []string{pipe, "/dev/zero", "/dev/null", filepath.Join(etc, "conf.d", "40-up.conf")} {
		if r, text := told(t, RabbitMQ, Options{}, path); r.Unread != 1 || strings.Contains(text, "root:") {
			t.Errorf("%s: %s", path, text)
		}
	}
}

// TestGroupsOfGroups has groups of groups that are too many to be counted one by one.
func TestGroupsOfGroups(t *testing.T) {
	var text strings.Builder
	for i := range 30 {
		fmt.Fprintf(&text, "group g%d%s\n", i, strings.Repeat(fmt.Sprintf(" g%d", i+1), 10))
	}
	list, _ := conf.ReadACL([]byte(text.String() + "acl allow g0 all\n"))
	done := make(chan []string, 1)
	go func() { done <- list.Members("g0") }()
	select {
	case all := <-done:
		if len(all) != 1 || all[0] != "g30" {
			t.Errorf("members: %v", all)
		}
	case <-time.After(time.Minute):
		t.Fatal("they are counted one by one")
	}
}
