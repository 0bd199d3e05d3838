package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nats-io/nkeys"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/enroll"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// A host is a directory in which the program runs as its users run it.
type host struct {
	t   *testing.T
	dir string
}

func newHost(t *testing.T) *host { return &host{t, t.TempDir()} }

// start runs the program in the background, until the test ends at the latest.
func (m *host) start(args ...string) *process {
	m.t.Helper()
	p, err := spawn(m.dir, os.Getenv("PATH"), append([]string{"fleetbus"}, args...)...)
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(p.kill)
	return p
}

// run runs the program to its end.
func (m *host) run(args ...string) (code int, output string) {
	m.t.Helper()
	p := m.start(args...)
	code, err := p.code()
	if err != nil {
		m.t.Fatalf("fleetbus %q: %v", args, err)
	}
	return code, p.log.String()
}

// must runs the program, which has to succeed, and returns what it printed.
func (m *host) must(args ...string) string {
	m.t.Helper()
	code, output := m.run(args...)
	if code != 0 {
		m.t.Fatalf("fleetbus %q: exit code %d\n%s", args, code, output)
	}
	return output
}

// killed runs the program, and kills it after d.
func (m *host) killed(d time.Duration, args ...string) {
	m.t.Helper()
	p := m.start(args...)
	select {
	case <-p.ended:
	case <-time.After(d):
		p.kill()
	}
}

// serve starts the node in that directory and waits until it is ready.
func (m *host) serve(dir string) *process {
	m.t.Helper()
	p := m.start("serve", "--data-dir", dir)
	if err := p.wait(regexp.MustCompile("(?s)is ready, in.*to open it: ")); err != nil {
		m.t.Fatalf("fleetbus serve: %v", err)
	}
	return p
}

// node is the command line of init or join for a node on free ports.
func (m *host) node(name string, args ...string) []string {
	m.t.Helper()
	for _, flag := range []string{"--listeners-nats-addr", "--cluster-addr"} {
		args = append(args, flag, loopback.Addr(m.t))
	}
	return append(args, "--data-dir", name, "--name", name, "--advertise", "127.0.0.1")
}

// found makes a fleet of one node, n1, and returns its process and address.
func (m *host) found() (node *process, addr string) {
	m.t.Helper()
	init := m.node("n1", "init")
	m.must(init...)
	return m.serve("n1"), init[2]
}

// holds reports whether a directory holds a node.
func (m *host) holds(dir string) bool {
	_, err := os.Stat(filepath.Join(m.dir, dir, "node.json"))
	return err == nil
}

// secret finds the text of a token.
func secret(output string) string { return regexp.MustCompile(`fb1\.\S+`).FindString(output) }

// instants are when to kill what takes d: one at random in each of n equal parts of d.
// With FLEETBUS_ROUNDS there are so many times as many.
func instants(t *testing.T, n int, d time.Duration) (all []time.Duration) {
	t.Helper()
	if testing.Short() {
		n /= 2
	}
	n *= fromEnv(t, "FLEETBUS_ROUNDS", 1)
	part := d/time.Duration(n) + 1
	for i := range n {
		all = append(all, time.Duration(i)*part+rand.N(part))
	}
	return all
}

// once fails unless each name begins one line of a list.
func (m *host) once(list string, names []string) {
	m.t.Helper()
	for _, name := range names {
		if strings.Count(list, "\n"+name+" ") != 1 {
			m.t.Errorf("%s is there not once:\n%s", name, list)
		}
	}
}

// pace measures how long the program takes for what is going to be killed.
func pace(do func()) time.Duration {
	began := time.Now()
	do()
	return time.Since(began)
}

// TestKilledInit kills init at any instant. Whatever it leaves, the next init
// makes a node of it, or serve runs the node that is there, with its settings.
func TestKilledInit(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	d := pace(func() { m.must(m.node("first", "init")...) })
	whole, cut := 0, 0
	for i, at := range instants(t, 8, d) {
		name := fmt.Sprintf("n%d", i)
		init := m.node(name, "init")
		m.killed(at, init...)
		code, output := m.run(init...)
		switch {
		case code == 0:
			cut++
		case code == int(command.ExitConflict) && strings.Contains(output, "fix: fleetbus serve --data-dir "+name):
			whole++
		default:
			t.Fatalf("init after init was killed: exit code %d\n%s", code, output)
		}
		if i%4 == 0 {
			p := m.serve(name)
			if !strings.Contains(p.log.String(), init[2]) || !strings.Contains(p.log.String(), init[4]) {
				t.Errorf("the settings %q are gone:\n%s", init, p.log)
			}
			p.kill()
		}
	}
	t.Logf("%d were cut off, %d were done", cut, whole)
}

// TestKilledJoin kills join at any instant. Joining again with the same token
// makes the node, and its token is good for no other.
func TestKilledJoin(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	_, addr := m.found()
	m.must("account", "add", "acme", "--data-dir", "n1")
	token := func(args ...string) string {
		return secret(m.must(append([]string{"token", "add", "--data-dir", "n1"}, args...)...))
	}
	join := func(name, token string) []string { return m.node(name, "join", addr, "--token", token) }
	first := join("first", token("node"))
	d := pace(func() { m.must(first...) })
	cut := 0
	var names []string
	for i, at := range instants(t, 6, d) {
		name := fmt.Sprintf("m%d", i)
		names = append(names, name)
		args := join(name, token("node"))
		m.killed(at, args...)
		if !m.holds(name) {
			cut++
		}
		m.must(args...)
		if _, err := os.Stat(filepath.Join(m.dir, name, "join.nk")); !m.holds(name) || err == nil {
			t.Fatalf("%s is not whole: %v", name, err)
		}
	}
	m.once(m.must("node", "ls", "--data-dir", "n1"), names)
	t.Logf("%d were cut off", cut)

	// The same, cut off when the fleet has answered and nobody has heard it.
	text := token("node")
	args := join("cut", text)
	key, err := nkeys.CreateCurveKeys()
	if err != nil {
		t.Fatal(err)
	}
	public, publicErr := key.PublicKey()
	seed, seedErr := key.Seed()
	if err := errors.Join(publicErr, seedErr); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), allowance)
	defer cancel()
	client, err := enroll.Dial(ctx, enroll.Join{Host: addr, Token: text})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Node(ctx, enroll.NodeRequest{Name: "cut", Version: fleetbus.Version(), Advertise: "127.0.0.1", Seal: public}); err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(m.dir, "cut", "join.nk"), seed)
	m.must(args...)
	code, output := m.run(join("other", token("user", "--for", "acme/bob"))...)
	if code != int(command.ExitDenied) {
		t.Errorf("a token for a user makes a node: exit code %d\n%s", code, output)
	}

	// A user's join is repeated in the same way.
	first = []string{"join", addr, "--token", token("user", "--for", "acme/first"), "--as", "user", "--out", "first.creds"}
	d = pace(func() { m.must(first...) })
	for i, at := range instants(t, 4, d) {
		name := fmt.Sprintf("u%d", i)
		args := []string{"join", addr, "--token", token("user", "--for", "acme/"+name), "--as", "user", "--out", name + ".creds"}
		m.killed(at, args...)
		if _, err := os.Stat(filepath.Join(m.dir, name+".creds")); err != nil {
			m.must(args...)
		}
		m.must("pub", "a", "b", "--server", addr, "--creds", name+".creds", "--ca", name+"-ca.pem")
	}
}

// TestKilledAccountAdd kills account add at any instant, and then the server
// that carries it out. Adding again works, and the account is there once.
func TestKilledAccountAdd(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	node, _ := m.found()
	add := func(name string) []string { return []string{"account", "add", name, "--data-dir", "n1"} }
	var names []string
	d := pace(func() { m.must(add("first")...) })
	for i, at := range instants(t, 6, d) {
		name := fmt.Sprintf("a%d", i)
		names = append(names, name)
		m.killed(at, add(name)...)
		m.must(add(name)...)
	}
	for i, at := range instants(t, 2, d) {
		name := fmt.Sprintf("b%d", i)
		names = append(names, name)
		adding := m.start(add(name)...)
		select {
		case <-adding.ended:
		case <-time.After(at):
		}
		node.kill()
		adding.kill()
		node = m.serve("n1")
		m.must(add(name)...)
	}
	m.once(m.must("account", "ls", "--data-dir", "n1"), names)
}

// TestFullDisk runs on disks that are too small.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	m := newHost(t)
	mount := func(name, size string) {
		t.Helper()
		dir := filepath.Join(m.dir, name)
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Skipf("mounting a small disk: %v", err)
		}
		t.Cleanup(func() {
			if err := syscall.Unmount(dir, 0); err != nil {
				t.Error(err)
			}
		})
	}
	mount("tiny", "8k")
	code, output := m.run(m.node("tiny", "init")...)
	if code != int(command.ExitFailed) || !strings.Contains(output, "no space left on device") || !strings.Contains(output, "fix: free space there") || m.holds("tiny") {
		t.Errorf("init on a full disk: exit code %d\n%s", code, output)
	}
	mount("small", "32m")
	m.must(m.node("small", "init")...)
	code, output = m.run("serve", "--data-dir", "small")
	if code != int(command.ExitConfig) || !strings.Contains(output, "is full") || !strings.Contains(output, "fix: free space, or lower store.reserve") {
		t.Errorf("serve on a full disk: exit code %d\n%s", code, output)
	}
	p := m.start("serve", "--data-dir", "small", "--store-reserve", "1MiB")
	if err := p.wait(regexp.MustCompile("is ready, in")); err != nil {
		t.Error(err)
	}
}

// TestUnwritable runs as somebody who may not write the data directory.
func TestUnwritable(t *testing.T) {
	t.Parallel()
	// Not t.TempDir, which nobody else may enter.
	dir, err := os.MkdirTemp("", "fleetbus-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, err := exec.LookPath("fleetbus")
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	own := filepath.Join(dir, "fleetbus")
	if err := errors.Join(os.WriteFile(own, data, 0o755), os.Chmod(dir, 0o555)); err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"init", "serve"} {
		ctx, cancel := context.WithTimeout(t.Context(), allowance)
		defer cancel()
		cmd := exec.CommandContext(ctx, own, verb, "--data-dir", "n1", "--mode", "local")
		cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir}
		if os.Getuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		}
		output, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != int(command.ExitDenied) || !strings.Contains(string(output), "permission denied\nfix: run it as the owner of the data directory") {
			t.Errorf("%s: %v\n%s", verb, err, output)
		}
	}
}

// TestNewerVersion joins with the next major version, which is refused before
// the token is spent.
func TestNewerVersion(t *testing.T) {
	t.Parallel()
	m := newHost(t)
	_, addr := m.found()
	token := secret(m.must("token", "add", "node", "--data-dir", "n1"))
	ctx, cancel := context.WithTimeout(t.Context(), allowance)
	defer cancel()
	join := enroll.Join{Host: addr, Token: token, Name: "n2", Version: "99.0.0"}
	checks, err := join.Preflight(ctx)
	if err == nil || !strings.Contains(err.Error(), "checking the version: ") || !strings.Contains(err.Error(), "99.0.0 is newer than this node's") {
		t.Errorf("preflight: %v, %+v", err, checks)
	}
	client, err := enroll.Dial(ctx, join)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	_, err = client.Node(ctx, enroll.NodeRequest{Name: "n2", Version: "99.0.0", Seal: "X"})
	if !errors.Is(err, &admin.Error{Code: admin.Invalid}) {
		t.Errorf("exchange: %v", err)
	}
	m.must(m.node("n2", "join", addr, "--token", token)...)
}
