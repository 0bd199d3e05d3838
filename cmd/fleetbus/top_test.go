package main

import (
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/admin"
	"github.com/fleetbus/fleetbus/cmd/fleetbus/internal/command"
	"github.com/fleetbus/fleetbus/identity"
)

func testPing(t *testing.T, f *testFleet) {
	up := admin.Status{Node: "n1", Nodes: []admin.NodeInfo{
		{Node: identity.Node{Name: "n1"}, State: "up", Links: []admin.Link{{Node: "n2", Heard: true, Answered: true, RoundTrip: 1500 * time.Microsecond}},
			Remotes: []admin.Remote{{Kind: admin.EventLeaf, Name: "berlin", Account: "acme", RoundTrip: 20 * time.Millisecond}}},
		{Node: identity.Node{Name: "n2"}, State: "up", Links: []admin.Link{{Node: "n1", Heard: true, Answered: true, RoundTrip: time.Millisecond}}},
		{Node: identity.Node{Name: "n0"}, State: "removed", Links: []admin.Link{{Node: "n1"}}},
	}}
	f.answerWith(t, "status", up)
	code, stdout, stderr := f.run(t, "", nil, "ping")
	for _, want := range []string{"here  n1      client  ", "n1    n2      route   1.5ms\n", "n1    berlin  leaf    20ms\n", "n2    n1      route   1ms\n"} {
		if code != command.ExitOK || !strings.Contains(stdout, want) || strings.Contains(stdout, "n0") {
			t.Errorf("exit code %d, without %q\n%s%s", code, want, stdout, stderr)
		}
	}
	up.Nodes[0].Links[0].Answered = false
	f.answerWith(t, "status", up)
	if code, stdout, stderr := f.run(t, "", nil, "ping"); code != command.ExitUnavailable || !strings.Contains(stdout, "n1    n2      route   no answer\n") ||
		!strings.Contains(stderr, "error: pinging the fleet: 1 of 4 hops do not answer") {
		t.Errorf("exit code %d\n%s%s", code, stdout, stderr)
	}
}

func testTop(t *testing.T, f *testFleet) {
	f.answerWith(t, "top", admin.Top{
		Time: time.Now(), Rates: []admin.Rate{{Name: "acme", Connections: 3, InMsgs: 1234.4, OutMsgs: 0.5, InBytes: 2048, OutBytes: 1}},
		Others: admin.Rate{Connections: 2, InMsgs: 10}, Missing: []string{"n3"}, Errors: []string{"n2: too many"},
	})
	code, stdout, stderr := f.run(t, "", nil, "top", "--once", "--interval", "100ms")
	for _, want := range []string{"acme      3            1234       0.5         2KiB        1B\n", "(others)  2            10 ", "(all)     5            1244 ", "node n3 did not answer", "node n2: too many"} {
		if code != command.ExitOK || !strings.Contains(stdout, want) {
			t.Errorf("exit code %d, without %q\n%s%s", code, want, stdout, stderr)
		}
	}
	if code, stdout, _ := f.run(t, "", nil, "top", "--once", "-o", "jsonl"); code != command.ExitOK || strings.Count(stdout, "\n") != 1 || !strings.Contains(stdout, `"in_msgs":1234.4`) {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	if code, stdout, _ := f.run(t, "", nil, "top", "--interval", "1h"); code != command.ExitUsage {
		t.Errorf("exit code %d\n%s", code, stdout)
	}
	if code, _, stderr := f.run(t, "", nil, "top", "--by", "account", "--account", "acme", "--once"); code != command.ExitOK || asked[admin.TopRequest](t, f, "top").Account != "acme" {
		t.Errorf("exit code %d\n%s", code, stderr)
	}
	// It goes on until it is interrupted.
	live := f.start(t, "", "top", "--interval", "100ms", "-o", "jsonl")
	live.stdout.wait(t, "}\n{")
	live.cancel()
	if code := live.end(t); code != command.ExitOK {
		t.Errorf("exit code %d when interrupted", code)
	}
}
