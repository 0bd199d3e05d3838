// Package deploy_test tries what installs the program.
package deploy_test

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the golden files")

// tool finds a program, also where .ci/test puts those that it builds.
func tool(t *testing.T, name string) string {
	t.Helper()
	for _, dir := range append([]string{"../.tools"}, append(filepath.SplitList(os.Getenv("PATH")), "/usr/sbin", "/sbin")...) {
		path, err := filepath.Abs(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err == nil && !info.IsDir() && info.Mode()&0o111 != 0 {
			return path
		}
	}
	t.Skip(name + " is missing, which .ci/test installs")
	return ""
}

func output(t *testing.T, cmd *exec.Cmd) string {
	t.Helper()
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
	return string(out)
}

// build makes both packages of the tree in dir.
func build(t *testing.T, dir, version string) (deb, rpm string) {
	t.Helper()
	out := t.TempDir()
	cmd := exec.CommandContext(t.Context(), filepath.Join(dir, "deploy", "package"), out)
	cmd.Env = append(os.Environ(), "VERSION="+version, "SOURCE_DATE_EPOCH=1790000000", "PATH="+filepath.Dir(tool(t, "nfpm"))+":"+os.Getenv("PATH"))
	output(t, cmd)
	one := func(pattern string) string {
		found, err := filepath.Glob(filepath.Join(out, pattern))
		if err != nil || len(found) != 1 {
			t.Fatalf("the packages are %v, %v", found, err)
		}
		return found[0]
	}
	return one("*.deb"), one("*.rpm")
}

// TestPackages makes packages, and does with them what people do.
func TestPackages(t *testing.T) {
	if testing.Short() {
		t.Skip("it builds the program more than once")
	}
	tool(t, "nfpm")
	tool(t, "go")
	deb, rpm := build(t, "..", "1.0.0")
	t.Run("Reproducible", func(t *testing.T) {
		elsewhere := filepath.Join(t.TempDir(), "another", "place")
		copyTree(t, elsewhere)
		again, rpmAgain := build(t, elsewhere, "1.0.0")
		for a, b := range map[string]string{deb: again, rpm: rpmAgain} {
			if !bytes.Equal(read(t, a), read(t, b)) {
				t.Errorf("%s is another file when it is built elsewhere", filepath.Base(a))
			}
		}
	})
	t.Run("Contents", func(t *testing.T) { testContents(t, deb) })
	t.Run("RPM", func(t *testing.T) { testRPM(t, rpm) })
	t.Run("Lintian", func(t *testing.T) {
		cmd := exec.CommandContext(t.Context(), tool(t, "lintian"), "--fail-on", "error,warning", "--allow-root", deb)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("lintian: %v\n%s", err, out)
		}
	})
	t.Run("Machine", func(t *testing.T) { testMachine(t, deb) })
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// copyTree copies the sources to another directory.
func copyTree(t *testing.T, to string) {
	t.Helper()
	from, err := filepath.Abs("..")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	output(t, exec.CommandContext(t.Context(), "sh", "-c",
		`tar -C "$0" --exclude=./.git --exclude=./.tools --exclude=./bin --exclude=./dist -cf - . | tar -C "$1" -xf -`, from, to))
}

// testContents looks at what is in the deb.
func testContents(t *testing.T, deb string) {
	dir := t.TempDir()
	output(t, exec.CommandContext(t.Context(), tool(t, "dpkg-deb"), "-x", deb, dir))
	for _, name := range []string{
		"usr/share/bash-completion/completions/fleetbus", "usr/share/zsh/vendor-completions/_fleetbus", "usr/share/fish/vendor_completions.d/fleetbus.fish",
		"usr/share/man/man1/fleetbus.1.gz", "usr/share/man/man1/fleetbus-account.1.gz", "usr/share/man/man5/fleetbus.yaml.5.gz",
		"usr/share/fleetbus/fleetbus.yaml", "usr/lib/sysusers.d/fleetbus.conf", "usr/share/doc/fleetbus/third-party-licenses.gz",
	} {
		if len(read(t, filepath.Join(dir, name))) == 0 {
			t.Errorf("%s is empty", name)
		}
	}
	// The bill has every module that is in the program.
	var bill struct {
		Format     string `json:"bomFormat"`
		Components []struct{ Name, Version, PURL string }
	}
	if err := json.Unmarshal(read(t, filepath.Join(dir, "usr/share/doc/fleetbus/sbom.cdx.json")), &bill); err != nil || bill.Format != "CycloneDX" {
		t.Fatalf("the bill: %v, format %q", err, bill.Format)
	}
	listed := map[string]bool{}
	for _, c := range bill.Components {
		if c.PURL != "pkg:golang/"+c.Name+"@"+strings.ReplaceAll(c.Version, "+", "%2B") {
			t.Errorf("%s has the address %s", c.Name, c.PURL)
		}
		listed[c.Name+" "+c.Version] = true
	}
	modules := 0
	for line := range strings.SplitSeq(output(t, exec.CommandContext(t.Context(), "go", "version", "-m", filepath.Join(dir, "usr/bin/fleetbus"))), "\n") {
		if f := strings.Fields(line); len(f) > 2 && f[0] == "dep" {
			modules++
			if !listed[f[1]+" "+f[2]] {
				t.Errorf("%s %s is in the program and not in the bill", f[1], f[2])
			}
		}
	}
	if modules < 10 || !listed["github.com/nats-io/nats-server/v2 "+moduleVersion(t, "github.com/nats-io/nats-server/v2")] {
		t.Errorf("the program has %d modules", modules)
	}
	output(t, exec.CommandContext(t.Context(), "bash", "-n", filepath.Join(dir, "usr/share/bash-completion/completions/fleetbus")))
}

func moduleVersion(t *testing.T, path string) string {
	t.Helper()
	return strings.TrimSpace(output(t, exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", path)))
}

// testRPM looks at what the rpm would do.
func testRPM(t *testing.T, path string) {
	rpm := tool(t, "rpm")
	modes := map[string]string{}
	for line := range strings.SplitSeq(output(t, exec.CommandContext(t.Context(), rpm, "-qp", "--nosignature", "--qf", "[%{FILENAMES} %{FILEMODES:perms} %{FILEUSERNAME} %{FILEGROUPNAME} %{FILEFLAGS:fflags}\n]", path)), "\n") {
		if name, rest, ok := strings.Cut(line, " "); ok {
			modes[name] = strings.TrimSpace(rest)
		}
	}
	for name, want := range map[string]string{
		"/etc/fleetbus":                            "drwxr-x--- root fleetbus",
		"/etc/fleetbus/fleetbus.yaml":              "-rw-r----- root fleetbus cn",
		"/usr/bin/fleetbus":                        "-rwxr-xr-x root root",
		"/usr/lib/systemd/system/fleetbus.service": "-rw-r--r-- root root",
		"/usr/share/zsh/site-functions/_fleetbus":  "-rw-r--r-- root root",
	} {
		if modes[name] != want {
			t.Errorf("%s is %q, not %q", name, modes[name], want)
		}
	}
	for name := range modes {
		if strings.HasPrefix(name, "/lib/") || strings.HasPrefix(name, "/var/") {
			t.Errorf("%s is in the rpm", name)
		}
	}
	scripts := output(t, exec.CommandContext(t.Context(), rpm, "-qp", "--nosignature", "--scripts", path))
	for _, want := range []string{"preinstall scriptlet", "postinstall scriptlet", "preuninstall scriptlet", "postuninstall scriptlet", "try-restart fleetbus.service"} {
		if !strings.Contains(scripts, want) {
			t.Errorf("the rpm's scripts lack %q", want)
		}
	}
}

// testMachine boots a machine of its own, with systemd, and does there what
// testdata/machine.sh says.
func testMachine(t *testing.T, old string) {
	nspawn := tool(t, "systemd-nspawn")
	if os.Geteuid() != 0 {
		t.Skip("only root starts machines")
	}
	tree, err := filepath.Abs("../.tools/debian")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(tree, "usr/lib/systemd/systemd")); err != nil {
		t.Skip("there is no tree of Debian in .tools/debian, which .ci/test makes by debootstrap")
	}
	newer, _ := build(t, "..", "1.0.1")
	work := t.TempDir()
	for name, from := range map[string]string{
		"old.deb": old, "new.deb": newer, "machine.sh": "testdata/machine.sh", "machine.service": "testdata/machine.service",
	} {
		if err := os.WriteFile(filepath.Join(work, name), read(t, from), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	// What is written goes to memory, and the tree stays as it is.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, nspawn, "--quiet", "--directory="+tree, "--volatile=overlay", "--register=no", "--keep-unit",
		"--private-network", "--console=pipe", "--machine=packages", "--bind="+work+":/srv/packages",
		"--bind-ro="+filepath.Join(work, "machine.service")+":/etc/systemd/system/machine.service", "--boot", "systemd.unit=machine.service")
	// It ends its machine at this signal.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = time.Minute
	console, err := cmd.CombinedOutput()
	log, missing := os.ReadFile(filepath.Join(work, "log"))
	if missing != nil {
		t.Fatalf("the machine did not begin: %v, %v\n%s", err, missing, console)
	}
	if err != nil || !strings.HasSuffix(strings.TrimSpace(string(log)), "all is well") {
		t.Fatalf("%v\n%s", err, log)
	}
}

// TestUnit judges the unit as the machine that it is tried in does.
func TestUnit(t *testing.T) {
	cmd := exec.CommandContext(t.Context(), tool(t, "systemd-analyze"), "security", "--offline=true", "--threshold=20", "packages/fleetbus.service")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	t.Log(lines[len(lines)-1])
}

// TestChart compares what the chart makes of its defaults, and of three nodes, with
// what was looked at.
func TestChart(t *testing.T) {
	helm := tool(t, "helm")
	output(t, exec.CommandContext(t.Context(), helm, "lint", "--strict", "helm"))
	for name, flags := range map[string][]string{
		"first": nil,
		"three": {"--set", "found=false,join.tokenSecret=tokens,replicas=3,secrets={hub},serviceMonitor.enabled=true,serviceMonitor.passwordSecret=monitor"},
	} {
		made := output(t, exec.CommandContext(t.Context(), helm, append([]string{"template", "bus", "helm", "--namespace", "fleet", "--kube-version", "1.31.0"}, flags...)...))
		golden := filepath.Join("testdata", "chart-"+name+".yaml")
		if *update {
			if err := os.WriteFile(golden, []byte(made), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if made != string(read(t, golden)) {
			t.Errorf("the chart makes something else than %s: look at it, and run the test with -update\n%s", golden, made)
		}
	}
	for _, flags := range [][]string{{"--set", "replicas=3"}, {"--set", "found=false"}, {"--set", "replicas=-1"}, {"--set", "imge.tag=1"}} {
		if out, err := exec.CommandContext(t.Context(), helm, append([]string{"template", "bus", "helm", "--kube-version", "1.31.0"}, flags...)...).CombinedOutput(); err == nil {
			t.Errorf("%v is accepted:\n%s", flags, out)
		}
	}
}

// TestReleaseFile checks that the file of releases builds as the packages are built.
// Whether its keys exist only its own program knows.
func TestReleaseFile(t *testing.T) {
	var f struct {
		Version int
		Builds  []struct {
			Main           string
			Env, Tags      []string
			Flags, Ldflags []string
		}
		Before struct{ Hooks []string }
		Brews  any
		Casks  []any `yaml:"homebrew_casks"`
	}
	if err := yaml.Unmarshal(read(t, "../.goreleaser.yaml"), &f); err != nil {
		t.Fatal(err)
	}
	if f.Version != 2 || len(f.Builds) != 1 || f.Brews != nil || len(f.Casks) != 1 {
		t.Fatalf("the file of releases is %+v", f)
	}
	b := f.Builds[0]
	if _, err := os.Stat(filepath.Join("..", b.Main, "main.go")); err != nil {
		t.Error(err)
	}
	script := string(read(t, "package"))
	for _, want := range append([]string{"-tags " + strings.Join(b.Tags, ","), "CGO_ENABLED=0"}, b.Flags...) {
		if !strings.Contains(script, want) {
			t.Errorf("deploy/package does not build with %s", want)
		}
	}
	for _, hook := range f.Before.Hooks {
		if !strings.Contains(hook, "deploy/package") {
			t.Errorf("before a release %q runs", hook)
		}
	}
}
