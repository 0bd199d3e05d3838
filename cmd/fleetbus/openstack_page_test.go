package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/internal/loopback"
)

// bash types what is in a page, in a directory of its own.
func bash(t *testing.T, dir, script string, env ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// What is left running at the end is ended.
	cmd := exec.CommandContext(ctx, "bash", "-c", "set -eu -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n"+script)
	cmd.Dir, cmd.Env = dir, append([]string{"PATH=" + filepath.Dir(python) + ":" + os.Getenv("PATH"), "HOME=" + dir, "PYTHONWARNINGS=ignore"}, env...)
	cmd.WaitDelay = 10 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return string(out)
}

// TestOpenStackPage types docs/openstack.md, from its empty directory to the end, with other
// ports.
func TestOpenStackPage(t *testing.T) {
	needsOslo(t)
	t.Parallel()
	dir := t.TempDir()
	writePrograms(t, dir)
	script := strings.Join(blocks(t, "openstack.md", "sh"), "\n")
	ports := map[string]string{}
	script = regexp.MustCompile(`127\.0\.0\.1:\d+`).ReplaceAllStringFunc(script, func(addr string) string {
		if ports[addr] == "" {
			ports[addr] = loopback.Addr(t)
		}
		return ports[addr]
	})
	if len(ports) != 9 {
		t.Errorf("the page has %d addresses", len(ports))
	}
	out := bash(t, dir, script)
	t.Logf("the end of what it said:\n%s", out[max(0, len(out)-1500):])
	ends := regexp.MustCompile(`(?m)^end: (\d+) calls, (\d+) failed`).FindAllStringSubmatch(out, -1)
	if len(ends) != 2 {
		t.Fatalf("%d clients came to their end:\n%s", len(ends), out)
	}
	for _, e := range ends {
		if e[1] == "0" || e[2] != "0" {
			t.Errorf("a client said: %s", e[0])
		}
	}
}

// TestOpenStackIsolated makes the networks of docs/openstack.md, a management network and one
// for services, and a node that is on both and open on one.
func TestOpenStackIsolated(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	for program, debian := range map[string]string{"ip": "iproute2", "nft": "nftables"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("there is no %s: install %s", program, debian)
		}
	}
	if out, err := exec.Command("ip", "netns", "list").CombinedOutput(); err != nil {
		t.Skipf("there are no network namespaces here: %v %s", err, out)
	}
	t.Parallel()
	made := blocks(t, "openstack.md", "sh-root")
	if len(made) != 2 {
		t.Fatalf("the page has %d blocks", len(made))
	}
	suffix := fmt.Sprint(os.Getpid())
	names := strings.NewReplacer("ctl1", "c"+suffix, "mgmt1", "m"+suffix, "svc1", "s"+suffix)
	t.Cleanup(func() {
		for _, ns := range []string{"ctl1", "mgmt1", "svc1"} {
			_ = exec.Command("ip", "netns", "del", names.Replace(ns)).Run()
		}
	})
	m := newHost(t)
	bash(t, m.dir, names.Replace(made[0]))
	// An interface that is not there is said, and is no matter of the settings.
	init := strings.NewReplacer("--data-dir /var/lib/fleetbus", "--data-dir n1", "ip netns exec ctl1 ", "").Replace(made[1])
	serve := func(script string) *process {
		p, err := spawn(m.dir, os.Getenv("PATH"), "bash", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(p.kill)
		return p
	}
	p := serve(init)
	if err := p.wait(regexp.MustCompile(`error: .*opening listener "amqp": looking for interface "mgmt0": it has no address`)); err != nil {
		t.Fatal(err)
	}
	// A unit does not start again what ended with 2 or 78.
	if code, err := p.code(); err != nil || code == 0 || code == 2 || code == 78 {
		t.Errorf("without the interface it ends with %d, %v", code, err)
	}
	p = serve("ip netns exec " + names.Replace("ctl1") + " fleetbus serve --data-dir n1")
	if err := p.wait(regexp.MustCompile("is ready")); err != nil {
		t.Fatal(err)
	}
	dial := func(ns, addr string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		out, err := exec.CommandContext(ctx, "ip", "netns", "exec", names.Replace(ns), "bash", "-c", "exec 3<>/dev/tcp/"+strings.Replace(addr, ":", "/", 1)).CombinedOutput()
		if ctx.Err() != nil {
			return errSilent
		}
		if err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	}
	if err := dial("mgmt1", "10.78.1.1:5671"); err != nil {
		t.Errorf("from the management network: %v", err)
	}
	for _, addr := range []string{"10.78.1.1:5671", "10.78.2.1:5671"} {
		if err := dial("svc1", addr); !errors.Is(err, errSilent) {
			t.Errorf("from the network of services to %s: %v", addr, err)
		}
	}
	// The network is there, and other ports answer.
	if err := dial("svc1", net.JoinHostPort("10.78.2.1", "22")); err == nil || errors.Is(err, errSilent) {
		t.Errorf("from the network of services to a port that is not the bus's: %v", err)
	}
}

var errSilent = errors.New("no answer")
