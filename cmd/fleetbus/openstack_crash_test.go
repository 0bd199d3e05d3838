package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// blocks are the blocks of a language in a page of docs.
func blocks(t *testing.T, page, language string) (all []string) {
	t.Helper()
	text := string(must[[]byte](t)(os.ReadFile(filepath.Join("..", "..", "docs", page))))
	for _, part := range strings.Split(text, "\n```"+language+"\n")[1:] {
		block, _, _ := strings.Cut(part, "\n```")
		all = append(all, block+"\n")
	}
	return all
}

// writePrograms writes the programs of docs/openstack.md, each to the file that its first line names.
func writePrograms(t *testing.T, dir string) {
	t.Helper()
	for _, program := range blocks(t, "openstack.md", "python") {
		name, _, _ := strings.Cut(strings.TrimPrefix(program, "# "), "\n")
		if filepath.Ext(name) != ".py" {
			t.Fatalf("a program of the page has no name: %.40s", program)
		}
		writeFile(t, filepath.Join(dir, name), []byte(program))
	}
}

// A cloud is a fleet of three nodes whose AMQP oslo.messaging uses.
type cloud struct{ *crash }

func newCloud(t *testing.T) *cloud {
	c := &cloud{newCrash(t, 1, "--amqp-passwords", "--limits-payload", "16MiB")}
	writePrograms(t, c.m.dir)
	writeFile(t, filepath.Join(c.m.dir, "hosts.txt"), []byte(stackHosts))
	return c
}

// plan applies a plan, with more flags.
func (c *cloud) plan(name string, more ...string) {
	var addrs []string
	for _, n := range c.nodes {
		addrs = append(addrs, n.amqp)
	}
	c.m.must(append([]string{
		"openstack", "apply", "--services", "nova", "--hosts", "hosts.txt", "--amqp", strings.Join(addrs, ","),
		"--data-dir", "n1", "--out", name, "--at", filepath.Join(c.m.dir, name) + "/{host}/{service}",
	}, more...)...)
}

// owner is the node that opened an account last.
func (c *crash) owner(account string) (found *crashNode) {
	c.t.Helper()
	opened := regexp.MustCompile(`time=(\S+) .*msg="an account is open for AMQP" account=` + account + "\n")
	last := ""
	for _, n := range c.nodes {
		for _, m := range opened.FindAllStringSubmatch(n.log.String(), -1) {
			if m[1] > last {
				last, found = m[1], n
			}
		}
	}
	if found == nil {
		c.t.Fatalf("nobody opened account %s", account)
	}
	return found
}

// of is a node that a user is connected to.
func (c *cloud) of(user string) *crashNode {
	c.t.Helper()
	var found *crashNode
	c.until(user+" is connected", func() error {
		code, output := c.m.run("user", "info", user, "--data-dir", "n1", "-o", "json")
		if code != 0 {
			return errors.New(output)
		}
		var u struct{ Connections []struct{ Node string } }
		if err := json.Unmarshal([]byte(output), &u); err != nil {
			return err
		}
		for _, k := range u.Connections {
			for _, n := range c.nodes {
				if n.name == k.Node {
					found = n
					return nil
				}
			}
		}
		return errors.New("it is not")
	})
	return found
}

var progress = regexp.MustCompile(`(\d+) calls, (\d+) failed, the longest took ([0-9.]+) s`)

// calls is what a client says last.
func calls(p *process) (n, failed int, longest float64) {
	all := progress.FindAllStringSubmatch(p.log.String(), -1)
	if len(all) == 0 {
		return 0, 0, 0
	}
	last := all[len(all)-1]
	n, _ = strconv.Atoi(last[1]) // they are digits
	failed, _ = strconv.Atoi(last[2])
	longest, _ = strconv.ParseFloat(last[3], 64)
	return n, failed, longest
}

// python runs a program of the page.
func (c *cloud) python(args ...string) *process {
	p, err := spawn(c.m.dir, os.Getenv("PATH"), append([]string{python}, args...)...)
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(p.kill)
	return p
}

// TestOpenStackKilled has a service call another without a pause while the node that has the
// account is killed, and then one that the client is connected to: no call fails, and all is
// well again within seconds. Of queues in memory the call may fail that is under way when their
// node is killed.
func TestOpenStackKilled(t *testing.T) {
	needsOslo(t)
	t.Parallel()
	c := newCloud(t)
	c.plan("quorum")
	c.plan("transient", "--transient", "--prefix", "t-")
	c.plan("words", "--passwords")
	for _, way := range []struct{ dir, account string }{{"quorum", "nova"}, {"words", "nova"}, {"transient", "t-nova"}} {
		server := c.python("server.py", way.dir+"/ctl1/nova/nova.conf")
		if err := server.wait(regexp.MustCompile("serving")); err != nil {
			t.Fatal(err)
		}
		for _, what := range []string{"the owner", "the client's node"} {
			client := c.python("client.py", way.dir+"/cmp1.example.net/nova/nova.conf", "600")
			// enough says that so many calls more were answered.
			enough := func(text string, more int) {
				t.Helper()
				before, _, _ := calls(client)
				c.until(text, func() error {
					if n, _, _ := calls(client); n < before+more {
						return fmt.Errorf("%d calls since\n%s", n-before, client.log)
					}
					return nil
				})
			}
			enough("services talk", 50)
			n := c.owner(way.account)
			owner := n
			if what != "the owner" {
				n = c.of(way.account + "/cmp1")
			}
			_, _, before := calls(client)
			n.kill()
			enough("services talk without a node", 100)
			all, failed, longest := calls(client)
			t.Logf("%s: %s (%s; the owner was %s) was killed: %d calls, %d failed, the longest took %.1f s, and before %.1f s", way.dir, what, n.name, owner.name, all, failed, longest, before)
			lost := 0
			if way.dir == "transient" && n == owner {
				lost = 1
			}
			if failed > lost {
				t.Errorf("%s: %d calls failed:\n%s\n%s", way.dir, failed, client.log, server.log)
			}
			client.kill()
			n.process = c.m.serve(n.name)
			c.until("the fleet is whole", func() error {
				if code, output := c.m.run("status", "--data-dir", "n1"); code != 0 || !strings.Contains(output, "ok: 3 of 3") {
					return errors.New(output)
				}
				return nil
			})
		}
		server.kill()
	}
}
