package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/provision"
)

// A floor is a fleet of three nodes, a provisioner, and machines that ask for identities.
type floor struct {
	t     *testing.T
	m     *host
	rng   *rand.Rand
	nodes []*crashNode // mqtt is where machines ask
	desk  *process
}

// newFloor makes the fleet.
func newFloor(t *testing.T, seed uint64) *floor {
	f := &floor{t: t, m: newHost(t), rng: rand.New(rand.NewPCG(seed, 0))}
	var addrs []string
	for i := range 3 {
		n := &crashNode{name: fmt.Sprintf("n%d", i+1), mqtt: loopback.Addr(t)}
		args := []string{"init"}
		if i > 0 {
			args = []string{"join", addrs[0], "--token", secret(f.m.must("token", "add", "node", "--data-dir", "n1"))}
		}
		args = f.m.node(n.name, append(args, "--listeners-provision-addr", n.mqtt, "--listeners-provision-plaintext")...)
		f.m.must(args...)
		addrs = append(addrs, args[slices.Index(args, "--listeners-nats-addr")+1])
		n.process = f.m.serve(n.name)
		f.nodes = append(f.nodes, n)
	}
	await.Nil(t, "the fleet is whole", func() error {
		if code, output := f.m.run("status", "--data-dir", "n1"); code != 0 || !strings.Contains(output, "ok: 3 of 3") {
			return errors.New(output)
		}
		return nil
	})
	f.m.must("account", "add", "provisioning", "--data-dir", "n1")
	f.m.must("account", "add", "acme", "--data-dir", "n1")
	f.m.must("user", "add", "FLEET/desk", "--role", "provisioner", "--out", "desk.creds", "--data-dir", "n1")
	writeFile(t, filepath.Join(f.m.dir, "rules.json"), []byte(`{"rules": [{"name": "tills", "proof": "token", "token": "tills", "account": "acme"}]}`))
	f.serve()
	return f
}

// serve starts a provisioner, which is no administrator.
func (f *floor) serve() {
	f.desk = f.m.start("provision", "serve", "--rules", "rules.json", "--creds", "desk.creds", "--data-dir", "n1", "--timeout", "2m")
	if err := f.desk.wait(regexp.MustCompile("provisioning machines of fleet")); err != nil {
		f.t.Fatal(err)
	}
}

// again runs what fails while there is no leader, until it works.
func (f *floor) again(args ...string) (output string) {
	f.t.Helper()
	await.Nil(f.t, strings.Join(args, " ")+" works", func() error {
		var code int
		if code, output = f.m.run(args...); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, output)
		}
		return nil
	})
	return output
}

// read is again for what prints JSON.
func read[T any](f *floor, args ...string) (all []T) {
	f.t.Helper()
	output := f.again(append(args, "--data-dir", "n1", "-o", "json")...)
	_, list, _ := strings.Cut("\n"+output, "\n[")
	if err := json.NewDecoder(strings.NewReader("[" + list)).Decode(&all); err != nil {
		f.t.Fatalf("%q: %v\n%s", args, err, output)
	}
	return all
}

// A till asks for an identity.
type till struct {
	name, token string
	*process
}

func (f *floor) ask(c *till) {
	at := f.nodes[f.rng.IntN(len(f.nodes))].mqtt
	c.process = f.m.start("provision", "request", at, "--name", c.name, "--token-file", c.token, "--out", c.name, "--wait", "1m")
}

// kill kills one of the nodes, the provisioner or a machine that asks, and starts it again.
func (f *floor) kill(round int, tills []*till) {
	<-time.After(time.Duration(f.rng.Int64N(int64(1500 * time.Millisecond))))
	what := round % 4
	if what == 3 {
		what = f.rng.IntN(3)
		c := tills[f.rng.IntN(len(tills))]
		c.kill()
		f.t.Logf("round %d: %s was killed", round, c.name)
		defer f.ask(c)
	}
	// The provisioner, a node, or both at once. The node is there first.
	if what != 1 {
		f.desk.kill()
		f.t.Logf("round %d: the provisioner was killed", round)
		defer f.serve()
	}
	if what != 0 {
		n := f.nodes[f.rng.IntN(len(f.nodes))]
		n.kill()
		f.t.Logf("round %d: %s was killed", round, n.name)
		defer func() { n.process = f.m.serve(n.name) }()
	}
}

// TestKilledProvisioning kills random nodes of three, the provisioner and machines, while
// the machines ask for identities. Each has one in the end, no token was used more often
// than it may be, and nothing else was made. FLEETBUS_KILLS is how often, FLEETBUS_SEED
// which ones.
func TestKilledProvisioning(t *testing.T) {
	t.Parallel()
	kills, seed := fromEnv(t, "FLEETBUS_KILLS", 4), fromEnv(t, "FLEETBUS_SEED", int(time.Now().UnixNano()%1e6))
	if testing.Short() {
		kills = min(kills, 2)
	}
	t.Logf("%d kills, seed %d", kills, seed)
	f := newFloor(t, uint64(seed))
	token := func(name string, uses int) string {
		text := f.m.must("provision", "token", "add", "--label", "tills", "--uses", fmt.Sprint(uses), "--data-dir", "n1")
		writeFile(t, filepath.Join(f.m.dir, name), []byte(regexp.MustCompile(`fbp1\.\S+`).FindString(text)))
		return name
	}
	var tills []*till
	many := token("many", 3*kills)
	for i := range 3 * kills {
		tills = append(tills, &till{name: fmt.Sprintf("till-%d", i), token: many})
	}
	// Two want what one may have.
	one := token("one", 1)
	rivals := []*till{{name: "rival-0", token: one}, {name: "rival-1", token: one}}
	for i := range kills {
		some := tills[3*i : 3*i+3]
		if i == 0 {
			some = append(slices.Clone(some), rivals...)
		}
		for _, c := range some {
			f.ask(c)
		}
		f.kill(i, some)
	}
	given := map[string]bool{}
	for _, c := range append(slices.Clone(tills), rivals...) {
		await.Nil(t, c.name+" is answered", func() error {
			code, err := c.code()
			switch {
			case err != nil:
				return err
			case code == 0:
				given[c.name] = true
			case code == int(command.ExitDenied) && slices.Contains(rivals, c):
			default:
				output := c.log.String()
				f.ask(c)
				return fmt.Errorf("exit code %d: %s", code, output)
			}
			return nil
		})
	}
	if given["rival-0"] == given["rival-1"] {
		t.Errorf("of two machines with a token for one, these have an identity: %v", given)
	}
	users := map[string]identity.User{}
	for _, u := range read[identity.User](f, "user", "ls", "acme") {
		users[u.Name] = u
	}
	for name := range given {
		u := users[name]
		if len(u.Keys) != 1 || len(u.Certificates) != 1 || u.Denied {
			t.Errorf("%s is the user %+v", name, u)
		}
		delete(users, name)
	}
	if len(users) > 0 {
		t.Errorf("there are users whom no machine is: %v", users)
	}
	for _, info := range read[provision.TokenInfo](f, "provision", "token", "ls") {
		if info.Used != info.Uses {
			t.Errorf("a token for %d machines was used by %d", info.Uses, info.Used)
		}
	}
	type account struct {
		Name string `json:"name"`
	}
	var names []string
	for _, a := range read[account](f, "account", "ls") {
		names = append(names, a.Name)
	}
	if slices.Sort(names); !slices.Equal(names, []string{"acme", "provisioning"}) {
		t.Errorf("the accounts are %q", names)
	}
	for _, n := range f.nodes { // each knows those that it may not have heard of at once
		for _, c := range []string{"till-0", fmt.Sprintf("till-%d", 3*kills-1)} {
			f.again("pub", "machine."+c+".out.hello", "hi", "--data-dir", n.name, "--creds", filepath.Join(c, "machine.creds"))
		}
	}
}
