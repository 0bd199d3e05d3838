package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/internal/openstack"
)

// oslo runs a program of testdata/openstack with oslo.messaging, and skips where there is none.
func oslo(t *testing.T, program string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, python, append([]string{filepath.Join("testdata", "openstack", program)}, args...)...)
	cmd.Env = append(os.Environ(), "PYTHONWARNINGS=ignore")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", program, err, out)
	}
	return string(out)
}

// python is the interpreter that Debian's packages are for.
const python = "/usr/bin/python3"

func needsOslo(t *testing.T) {
	t.Helper()
	if err := exec.CommandContext(t.Context(), python, "-c", "import oslo_messaging").Run(); err != nil {
		t.Skipf("%s has no module oslo_messaging: install python3-oslo.messaging", python)
	}
}

// stackHosts are hosts as operators write them.
const stackHosts = `# the first rack
ctl1              controller
cmp1.example.net  compute
net1              network
`

// steps are what a command of openstack said, by kind and name.
func steps(t *testing.T, output string) map[string]openstack.Step {
	t.Helper()
	var list []openstack.Step
	// What is said on stderr comes before.
	if err := json.Unmarshal([]byte(output[strings.Index(output, "[\n"):]), &list); err != nil {
		t.Fatalf("%v\n%s", err, output)
	}
	all := map[string]openstack.Step{}
	for _, s := range list {
		all[s.Kind+" "+s.Name] = s
	}
	if len(all) != len(list) {
		t.Errorf("something is there twice:\n%s", output)
	}
	return all
}

// TestOpenStack plans a deployment and applies the plan, and has oslo.messaging do with it what
// nova and neutron do: all that they need, and nothing that is another's.
func TestOpenStack(t *testing.T) {
	needsOslo(t)
	t.Parallel()
	m := newHost(t)
	addr := loopback.Addr(t)
	m.must(m.node("n1", "init", "--listeners-amqp-addr", addr, "--amqp-passwords")...)
	m.serve("n1")
	writeFile(t, filepath.Join(m.dir, "hosts.txt"), []byte(stackHosts))
	for _, way := range []string{"certificates", "passwords"} {
		out := filepath.Join(m.dir, way)
		flags := []string{"--services", "nova,neutron,glance,ceilometer", "--hosts", "hosts.txt", "--amqp", addr, "--at", out + "/{host}/{service}", "-o", "json"}
		if way == "passwords" {
			flags = append(flags, "--passwords")
		}
		planned := steps(t, m.must(append([]string{"openstack", "plan"}, flags...)...))
		flags = append(flags, "--out", out, "--data-dir", "n1")
		apply := append([]string{"openstack", "apply"}, flags...)
		output := m.must(apply...)
		made := steps(t, output)
		if len(made) != len(planned) {
			t.Errorf("%d steps are planned and %d were made", len(planned), len(made))
		}
		for name, s := range made {
			if want := "made"; s.State != want && way == "certificates" {
				t.Errorf("%s is %q, not %q", name, s.State, want)
			}
		}
		modes(t, out, output)
		before := tree(t, out)
		for name, s := range steps(t, m.must(apply...)) {
			if s.State != "there" {
				t.Errorf("the second time %s is %q", name, s.State)
			}
		}
		if after := tree(t, out); after != before {
			t.Errorf("the second time files changed:\n%s\nand before:\n%s", after, before)
		}
		said := oslo(t, "services.py", out)
		t.Logf("%s: it said:\n%s", way, said)
		if !strings.HasSuffix(said, "\nend\n") {
			t.Errorf("with %s it did not come to its end", way)
		}
		if way == "passwords" {
			continue
		}
		// A host more, and nothing else.
		writeFile(t, filepath.Join(m.dir, "hosts.txt"), []byte(stackHosts+"cmp2 compute\n"))
		n := 0
		for name, s := range steps(t, m.must(apply...)) {
			if s.State == "made" && strings.Contains(name, "cmp2") {
				n++
			} else if s.State != "there" {
				t.Errorf("with a host more %s is %q", name, s.State)
			}
		}
		if n == 0 {
			t.Error("nothing was made for a host more")
		}
		// A certificate that ends soon is renewed, with its key.
		path := filepath.Join(out, "ctl1", "nova", "nova.")
		key, crt := must[[]byte](t)(os.ReadFile(path+"key")), must[[]byte](t)(os.ReadFile(path+"crt"))
		if s := steps(t, m.must(append(apply, "--renew-within", "100d")...))["file ctl1/nova/nova.crt"]; s.State != "renewed" {
			t.Errorf("a certificate that ends soon is %q", s.State)
		}
		if string(key) != string(must[[]byte](t)(os.ReadFile(path+"key"))) || string(crt) == string(must[[]byte](t)(os.ReadFile(path+"crt"))) {
			t.Error("the key was not kept, or the certificate was")
		}
		writeFile(t, filepath.Join(m.dir, "hosts.txt"), []byte(stackHosts))
		if output := m.must(apply...); !strings.Contains(output, "warning: user nova/cmp2 is not of this plan") {
			t.Errorf("of a host that is gone it says:\n%s", output)
		}
	}
	code, output := m.run("openstack", "plan", "--services", "nova", "--amqp", addr, "--hosts", filepath.Base(writeFile(t, filepath.Join(m.dir, "bad.txt"), []byte("ctl1 controler\nok compute\nok.example.net compute\n"))))
	if code != 2 || !strings.Contains(output, "bad.txt:1: ") || !strings.Contains(output, "bad.txt:3: ") {
		t.Errorf("exit code %d\n%s", code, output)
	}
}

// tree is what files are in a directory.
func tree(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		fmt.Fprintf(&b, "%s %q\n", path, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// modes fails if others may look into a directory, or if a password in it is short or was said.
func modes(t *testing.T, dir, said string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		want := fs.FileMode(0o600)
		if e.IsDir() {
			want = 0o700
		}
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
		if filepath.Ext(path) != ".password" {
			return nil
		}
		data, err := os.ReadFile(path)
		password := strings.TrimSpace(string(data))
		if !regexp.MustCompile(`^[A-Za-z0-9_-]{24,}$`).MatchString(password) || strings.Contains(said, password) {
			t.Errorf("%s has %d characters, or was printed", path, len(password))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
