package enroll

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/admin"
)

// node answers preflights as a node does, and then as change wants it.
func (f *fleet) node(t *testing.T, name string, nodes int, change func(*PreflightReply)) {
	t.Helper()
	cluster := stranger(t, func(net.Conn) {})
	f.answer(t, PreflightSubject, func(m *nats.Msg) any {
		var q Preflight
		if err := json.Unmarshal(m.Data, &q); err != nil {
			t.Error(err)
		}
		reply := PreflightReply{
			Node: name, Version: "1.2.3", Time: time.Now(), Nodes: nodes,
			Cluster: cluster, Clients: f.addr, Unreachable: map[string]string{},
		}
		for _, addr := range q.Dial {
			if err := readEcho(addr, q.Echo); err != nil {
				reply.Unreachable[addr] = err.Error()
			}
		}
		if change != nil {
			change(&reply)
		}
		return reply
	})
}

func readEcho(addr, want string) error {
	conn, err := net.DialTimeout("tcp", addr, 2*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || line != want+"\n" {
		return fmt.Errorf("got %q, %w", line, err)
	}
	return nil
}

func (f *fleet) nodeJoin() Join {
	j := f.join()
	j.Name, j.Version, j.Advertise = "n3", "1.2.3", "127.0.0.1"
	j.Clients, j.Cluster = "127.0.0.1:0", "127.0.0.1:0"
	return j
}

// lines writes checks one to a line, to be searched and shown.
func lines(checks []Check) string {
	var b strings.Builder
	for _, c := range checks {
		fmt.Fprintf(&b, "%s %t: %s", c.Name, c.OK, c.Detail)
		if c.Fix != "" {
			fmt.Fprintf(&b, " (%s)", c.Fix)
		}
		b.WriteString("\n")
	}
	return b.String()
}

func TestPreflight(t *testing.T) {
	f := newFleet(t)
	f.node(t, "n2", 2, nil)
	f.node(t, "n1", 2, nil)
	j := f.nodeJoin()
	var seen []Check
	j.Progress = func(c Check) { seen = append(seen, c) }
	checks, err := j.Preflight(testContext(t))
	if err != nil {
		t.Fatalf("%v\n%s", err, lines(checks))
	}
	var names []string
	for _, c := range checks {
		names = append(names, c.Name)
		if !c.OK || c.Fix != "" || c.Detail == "" {
			t.Errorf("not well: %+v", c)
		}
	}
	want := "token host port authority nodes clock version name routes clients address cluster address"
	if got := strings.Join(names, " "); got != want {
		t.Errorf("got checks %s", got)
	}
	if !slices.Equal(seen, checks) {
		t.Errorf("progress was %v", seen)
	}
	if text := lines(checks); strings.Contains(text, f.token) {
		t.Errorf("the token is shown:\n%s", text)
	}
	for _, c := range checks[len(checks)-2:] {
		_, addr, ok := strings.Cut(c.Detail, "reached from n1, n2 as ")
		if !ok {
			t.Fatalf("got %+v", c)
		}
		ln, err := net.Listen("tcp", addr) // it is free again
		if err != nil {
			t.Fatal(err)
		}
		ln.Close()
	}
}

// TestPreflightEverythingWrong finds all of it in one run.
func TestPreflightEverythingWrong(t *testing.T) {
	f := newFleet(t)
	j := f.nodeJoin()
	j.Clients = f.addr // in use, by this very process
	f.node(t, "n1", 2, func(r *PreflightReply) {
		r.Time = r.Time.Add(40 * time.Second)
		r.NameTaken = "at 192.0.2.3, up"
		r.Refused = "2.0.0 is newer than the fleet's 1.2.3 by a major version"
	})
	f.node(t, "n2", 2, func(r *PreflightReply) {
		r.Time = r.Time.Add(-5 * time.Second)
		r.Cluster = closed
		r.Unreachable["192.0.2.3:1"] = "an address that was not asked about"
	})
	checks, err := j.Preflight(testContext(t))
	text := lines(checks)
	for _, want := range []string{
		"authority true", "clock false: that of n1 is ", " ahead of this one; that of n2 is ", " behind this one (set the clocks",
		"version false: node \"n1\": 2.0.0 is newer", "name false: \"n3\" is taken: at 192.0.2.3, up", "--replace",
		"routes false: reaching node \"n2\" at \"" + closed, "clients address false: ", "address already in use", "cluster address true: ",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing %q", want)
		}
	}
	if runtime.GOOS == "linux" && !strings.Contains(text, fmt.Sprintf("pid %d (", os.Getpid())) {
		t.Error("who holds the port is missing")
	}
	if t.Failed() {
		t.Log(text)
	}
	var hinted *Error
	if !errors.As(err, &hinted) {
		t.Fatalf("got %v", err)
	}
	for _, name := range []string{"clock", "version", "name", "clients address"} {
		if !strings.Contains(err.Error(), "checking the "+name+": ") {
			t.Errorf("the error lacks %s: %v", name, err)
		}
	}
}

// TestPreflightUnreachable has a node whose cluster port is closed, and a joiner
// that listens elsewhere than it says.
func TestPreflightUnreachable(t *testing.T) {
	f := newFleet(t)
	f.node(t, "n1", 1, func(r *PreflightReply) { r.Cluster = closed })
	j := f.nodeJoin()
	j.Advertise = "127.0.0.2"
	checks, err := j.Preflight(testContext(t))
	if err == nil {
		t.Error("nothing is wrong")
	}
	for _, want := range []string{
		`routes false: reaching node "n1" at "` + closed,
		`clients address false: node "n1" does not reach "127.0.0.2:`,
		`cluster address false: node "n1" does not reach "127.0.0.2:`,
	} {
		if !strings.Contains(lines(checks), want) {
			t.Errorf("missing %q in\n%s", want, lines(checks))
		}
	}
}

// TestPreflightWarns has a clock that is a little off, a node that does not
// answer, and a node that is replaced: the joiner may join.
func TestPreflightWarns(t *testing.T) {
	f := newFleet(t)
	f.node(t, "n1", 2, func(r *PreflightReply) {
		r.Time = r.Time.Add(-5 * time.Second)
		r.NameTaken = "at 192.0.2.3, down"
	})
	j := f.nodeJoin()
	j.Replace, j.Timeout = true, time.Second
	j.Clients, j.Advertise = "", ""
	checks, err := j.Preflight(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	text := lines(checks)
	for _, want := range []string{
		"nodes true: n1 answered; 1 more did not within 1s (",
		"clock true: that of n1 is ", " behind this one (",
		"name true: n3 is replaced: at 192.0.2.3, down\n",
		"cluster address true: 127.0.0.1:0 is free\n",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing %q in\n%s", want, text)
		}
	}
}

// TestPreflightStops has each check fail that others need: what can be made
// without it still is.
func TestPreflightStops(t *testing.T) {
	f := newFleet(t)
	other := newAuthority(t)
	for _, test := range []struct {
		name string
		set  func(*Join)
		want []string
	}{
		{"token", func(j *Join) { j.Token = "x" }, []string{"token false", "host true", "port true", "clients address true", "cluster address true"}},
		{"host", func(j *Join) { j.Host = "a:b:c" }, []string{"token true", "host false", "clients address true", "cluster address true"}},
		{"name", func(j *Join) { j.Host = "nowhere.invalid" }, []string{"token true", "host false", "clients address true", "cluster address true"}},
		{"port", func(j *Join) { j.Host = closed }, []string{"token true", "host true", "port false", "clients address true", "cluster address true"}},
		{"authority", func(j *Join) { j.Token = other.token }, []string{"token true", "host true", "port true", "authority false", "clients address true", "cluster address true"}},
		{"nodes", func(*Join) {}, []string{"token true", "host true", "port true", "authority true", "nodes false", "clients address true", "cluster address true"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			j := f.nodeJoin()
			test.set(&j)
			checks, err := j.Preflight(testContext(t))
			var got []string
			for _, c := range checks {
				got = append(got, fmt.Sprintf("%s %t", c.Name, c.OK))
			}
			if !slices.Equal(got, test.want) || err == nil {
				t.Errorf("got %v\n%s", err, lines(checks))
			}
		})
	}
}

func TestPreflightDamagedAnswer(t *testing.T) {
	f := newFleet(t)
	f.answer(t, PreflightSubject, func(*nats.Msg) any { return 7 })
	checks, err := f.nodeJoin().Preflight(testContext(t))
	if err == nil || !strings.Contains(lines(checks), "nodes false: reading a node's answer: ") {
		t.Errorf("got %v\n%s", err, lines(checks))
	}
}

func TestPreflightRefused(t *testing.T) {
	f := newAuthority(t)
	j := f.nodeJoin()
	g := &fleet{authority: f.authority, token: strings.Replace(f.token, "fb1.", "fb2.", 1)}
	g.serve(t, g.tls(t, time.Now(), "127.0.0.1"))
	j.Host = g.addr
	checks, err := j.Preflight(testContext(t))
	if !errors.Is(err, ErrRefused) || !strings.Contains(lines(checks), "authority true: ") {
		t.Errorf("got %v\n%s", err, lines(checks))
	}
}

func TestPreflightUnfitToken(t *testing.T) {
	f := newFleet(t)
	f.node(t, "n1", 1, func(r *PreflightReply) {
		r.Token = admin.Errorf(admin.Denied, "join with --name n7", `the token is for node "n7"`)
	})
	checks, err := f.nodeJoin().Preflight(testContext(t))
	var why *Error
	if !errors.Is(err, &admin.Error{Code: admin.Denied}) || !errors.As(err, &why) || why.Fix != "join with --name n7" {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(lines(checks), `token false: the token is for node "n7" (join with --name n7)`) {
		t.Errorf("the checks are:\n%s", lines(checks))
	}
}

func TestPreflightBadName(t *testing.T) {
	f := newFleet(t)
	f.node(t, "n1", 1, nil)
	j := f.nodeJoin()
	j.Name = "n 3"
	checks, err := j.Preflight(testContext(t))
	if err == nil || !strings.Contains(lines(checks), "name false: ") {
		t.Errorf("got %v\n%s", err, lines(checks))
	}
}
