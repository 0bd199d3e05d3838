package console

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// A wire is three network namespaces, each for a node, and one between them with a bridge
// for each pair: to cut a link is to stop its bridge, which both ends see nothing of but
// silence.
type wire struct {
	t    testing.TB
	name string
}

func (w *wire) ns(i int) string        { return fmt.Sprintf("%s-%d", w.name, i) }
func (w *wire) bridge(a, b int) string { return fmt.Sprintf("b%d%d", a, b) }

// ip runs the program of that name.
func (w *wire) ip(args string) {
	w.t.Helper()
	if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
		w.t.Fatalf("ip %s: %v %s", args, err, out)
	}
}

// wired makes it, and skips where that may not be done.
func wired(t testing.TB) *wire {
	t.Helper()
	w := &wire{t, fmt.Sprintf("fbc%d", os.Getpid())}
	if os.Getuid() != 0 {
		t.Skip("network namespaces need root")
	}
	if out, err := exec.Command("ip", "netns", "add", w.ns(0)).CombinedOutput(); err != nil {
		t.Skipf("there are no network namespaces here: apt-get install iproute2, and run as root: %v %s", err, out)
	}
	t.Cleanup(func() {
		for i := range 4 {
			_ = exec.Command("ip", "netns", "del", w.ns(i)).Run()
		}
	})
	for i := 1; i <= 3; i++ {
		w.ip("netns add " + w.ns(i))
		w.ip(fmt.Sprintf("-n %s link set lo up", w.ns(i)))
		w.ip(fmt.Sprintf("-n %s addr add 10.77.0.%d/32 dev lo", w.ns(i), i))
	}
	for pair, ends := range [][2]int{{1, 2}, {1, 3}, {2, 3}} {
		bridge, net := w.bridge(ends[0], ends[1]), fmt.Sprintf("10.77.%d.", pair+1)
		w.ip(fmt.Sprintf("-n %s link add %s type bridge", w.ns(0), bridge))
		w.ip(fmt.Sprintf("-n %s link set %s up", w.ns(0), bridge))
		for k, end := range ends {
			other, outer := ends[1-k], fmt.Sprintf("%sv%d", bridge, end)
			inner := fmt.Sprintf("to%d", other)
			w.ip(fmt.Sprintf("-n %s link add %s type veth peer name %s netns %s", w.ns(0), outer, inner, w.ns(end)))
			w.ip(fmt.Sprintf("-n %s link set %s master %s up", w.ns(0), outer, bridge))
			w.ip(fmt.Sprintf("-n %s addr add %s%d/24 dev %s", w.ns(end), net, end, inner))
			w.ip(fmt.Sprintf("-n %s link set %s up", w.ns(end), inner))
		}
		for k, end := range ends {
			other := ends[1-k]
			w.ip(fmt.Sprintf("-n %s route add 10.77.0.%d/32 via %s%d", w.ns(end), other, net, other))
		}
	}
	return w
}

// cut has nothing pass between two nodes, or everything again.
func (w *wire) cut(a, b int, cut bool) time.Time {
	w.t.Helper()
	state := "up"
	if cut {
		state = "down"
	}
	w.ip(fmt.Sprintf("-n %s link set %s %s", w.ns(0), w.bridge(a, b), state))
	return time.Now()
}

// TestCut cuts a link of three nodes and heals it, again and again, and has the consoles
// of both ends, and that of the third, say so and why.
func TestCut(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes half a minute")
	}
	w := wired(t)
	specs := make([]nodeSpec, 3)
	for i := range specs {
		addr := fmt.Sprintf("10.77.0.%d", i+1)
		specs[i] = nodeSpec{Name: fmt.Sprintf("n%d", i+1), Advertise: addr, Cluster: addr + ":6222", NATS: addr + ":4222", Console: addr + ":8444", Watch: true}
	}
	makeFleet(t, specs)
	nodes := make([]*process, 3)
	for i, s := range specs {
		nodes[i] = startNode(t, s, "ip", "netns", "exec", w.ns(i+1))
	}
	for _, p := range nodes {
		p.waitReady(t)
	}
	for _, p := range nodes {
		// The last of the three links that comes up.
		for seen := map[string]bool{}; len(seen) < 3; {
			line := p.until(t, "link ", 2*time.Minute)
			words := strings.Fields(line.text)
			if words[2] == "up" {
				seen[words[1]] = true
			} else {
				delete(seen, words[1])
			}
		}
	}
	// How long a cut takes decides what is found at its end: a connection that may live
	// still, or none.
	for round, hold := range []time.Duration{4 * time.Second, 12 * time.Second, 3 * time.Second} {
		a, b := 1+round/2, 2+(round+1)/2
		pair := fmt.Sprintf("n%d|n%d", a, b)
		began := w.cut(a, b, true)
		for i, p := range nodes {
			line := p.until(t, "link "+pair+" ", time.Minute)
			took := line.at.Sub(began)
			t.Logf("cut of %s: console of n%d after %v: %s", pair, i+1, took.Round(time.Millisecond), line.text)
			if !strings.HasPrefix(line.text, "link "+pair+" "+stateCut) { // one end may have noticed first
				line = p.until(t, "link "+pair+" "+stateCut, time.Minute)
			}
			if !strings.Contains(line.text, "port") && !strings.Contains(line.text, "network") {
				t.Errorf("the console of n%d says %q", i+1, line.text)
			}
			if took > slowest {
				t.Errorf("the console of n%d took %v", i+1, took)
			}
		}
		time.Sleep(hold - time.Since(began)) // it is how long the cut is, and waits for nothing
		began = w.cut(a, b, false)
		for i, p := range nodes {
			line := p.until(t, "link "+pair+" up", time.Minute)
			took := line.at.Sub(began)
			t.Logf("healed after %v: console of n%d after %v", hold, i+1, took.Round(time.Millisecond))
			if took > slowest {
				t.Errorf("the console of n%d took %v", i+1, took)
			}
		}
	}
	for i, p := range nodes {
		for len(p.said) > 0 {
			if line := <-p.said; !strings.Contains(line.text, " up ") {
				t.Errorf("the console of n%d says at the end: %s", i+1, line.text)
			}
		}
	}
}

// slowest is how long a busy machine may take for what takes 3 s on a free one.
const slowest = 15 * time.Second
