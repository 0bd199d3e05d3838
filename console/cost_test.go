package console

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/fleetbustest"
	ports "github.com/fleetbus/fleetbus/internal/loopback"
)

// setting is a number of the environment, for who measures.
func setting(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}

// spent is the time of a processor that a process has taken, and the memory that it has.
func spent(t testing.TB, pid int) (cpu time.Duration, memory int64) {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Skip("there is no /proc here")
	}
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')'):]))
	for _, i := range []int{12, 13} {
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		cpu += time.Duration(n) * 10 * time.Millisecond
	}
	pages, _ := strconv.ParseInt(fields[22], 10, 64)
	return cpu, pages * int64(os.Getpagesize())
}

// watching is how much a process takes in a time.
func watching(t testing.TB, pid int, long time.Duration) (share float64, memory int64) {
	t.Helper()
	before, _ := spent(t, pid)
	began := time.Now()
	<-time.After(long) // it is how long is measured
	after, memory := spent(t, pid)
	return 100 * float64(after-before) / float64(time.Since(began)), memory
}

// TestConsoles opens many consoles at a node of a fleet, each node a process, and has all of
// them be live. FLEETBUS_TEST_FLEET and FLEETBUS_TEST_CONSOLES make it larger, and
// FLEETBUS_TEST_SECONDS measures for longer.
func TestConsoles(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a while")
	}
	nodes, consoles, long := setting("FLEETBUS_TEST_FLEET", 2), setting("FLEETBUS_TEST_CONSOLES", 40), time.Duration(setting("FLEETBUS_TEST_SECONDS", 2))*time.Second
	specs := make([]nodeSpec, nodes)
	for i := range specs {
		specs[i] = nodeSpec{Name: fmt.Sprintf("n%d", i+1), Advertise: "127.0.0.1", Cluster: ports.Addr(t), NATS: ports.Addr(t), Console: ports.Addr(t)}
	}
	// A person has several windows open: a login each would be too many of one.
	const windows = 4
	makeFleet(t, specs)
	all := make([]*process, nodes)
	// As many as elect a leader, and then the others a few at a time: each shakes hands
	// with all that are there.
	for from, to := 0, min(nodes/2+1, nodes); from < nodes; from, to = to, min(to+4, nodes) {
		for i := from; i < to; i++ {
			all[i] = startNode(t, specs[i])
		}
		for _, p := range all[from:to] {
			p.waitReady(t)
		}
	}
	n1 := all[0]
	alone, memory := watching(t, n1.Process.Pid, long)
	t.Logf("a node of %d without consoles: %.1f %% of a core, %d MiB", nodes, alone, memory>>20)
	ctx, cancel := context.WithCancel(t.Context())
	var reading sync.WaitGroup
	defer reading.Wait()
	defer cancel()
	var live, events, bytes atomic.Int64
	for opened := 0; opened < consoles; {
		base, secret, _ := strings.Cut(n1.login(t), "/#login=")
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, ForceAttemptHTTP2: true}} //nolint:gosec // the test is its peer
		defer client.CloseIdleConnections()
		cookie, err := logInBy(ctx, client, base, secret)
		if err != nil {
			t.Fatal(err)
		}
		for range min(windows, consoles-opened) {
			lines, err := stream(ctx, client, base, cookie, "fleet,certs")
			if err != nil {
				t.Fatal(err)
			}
			opened++
			reading.Go(func() { count(lines, &live, &events, &bytes) })
		}
	}
	eventually(t, "every console is live", func() bool { return live.Load() == int64(consoles) })
	events.Store(0)
	bytes.Store(0)
	share, more := watching(t, n1.Process.Pid, long)
	t.Logf("with %d consoles: %.1f %% of a core more, %d MiB more; each gets %.1f events and %d bytes a second", consoles, share-alone, (more-memory)>>20,
		float64(events.Load())/long.Seconds()/float64(consoles), bytes.Load()/int64(long.Seconds())/int64(consoles))
	if events.Load() == 0 {
		t.Error("nothing came while it was measured")
	}
	if (more-memory)>>20 > int64(100+consoles) {
		t.Errorf("%d consoles take %d MiB", consoles, (more-memory)>>20)
	}
}

// count counts what a console is told.
func count(lines *bufio.Scanner, live, events, bytes *atomic.Int64) {
	first := true
	for lines.Scan() {
		bytes.Add(int64(len(lines.Bytes())))
		if !strings.HasPrefix(lines.Text(), "data: ") {
			continue
		}
		events.Add(1)
		if first && strings.Contains(lines.Text(), `"node:n1"`) {
			first = false
			live.Add(1)
		}
	}
}

// TestNoFalseRed loads a fleet of three, and has no console say that a link is anything but
// up. FLEETBUS_TEST_SECONDS does it for longer,
// and FLEETBUS_TEST_BURST is how many messages each node sends at once, 20 times a second.
func TestNoFalseRed(t *testing.T) {
	if testing.Short() {
		t.Skip("it loads the machine")
	}
	long := time.Duration(setting("FLEETBUS_TEST_SECONDS", 3)) * time.Second
	all := fleetbustest.StartCluster(t, 3, func(o *fleetbus.Options) {
		o.Accounts = []string{"acme"}
		o.Grace = 100 * time.Millisecond
		o.Listeners = append(o.Listeners, fleetbus.Listener{Name: "console", Addr: ports.Addr(t), Protocol: &Protocol{}})
	})
	ctx, cancel := context.WithCancel(t.Context())
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	var loaded atomic.Bool
	var up [3]atomic.Int64
	for i, s := range all {
		lines, err := follow(ctx, loginURL(t, s, "FLEET/admin"), "fleet")
		if err != nil {
			t.Fatal(err)
		}
		running.Go(func() {
			for lines.Scan() {
				for key, row := range linksOf(lines.Text()) {
					if row.State != stateUp && loaded.Load() && ctx.Err() == nil {
						t.Errorf("under load, the console of n%d says: %s %s %s", i+1, key, row.State, row.Why)
					}
					if row.State == stateUp {
						up[i].Add(1)
					}
				}
			}
		})
	}
	eventually(t, "all links are up", func() bool { return up[0].Load() >= 3 && up[1].Load() >= 3 && up[2].Load() >= 3 })
	burst := setting("FLEETBUS_TEST_BURST", 20)
	var sent, heard atomic.Int64
	for i, s := range all {
		nc := s.Dial("acme", fmt.Sprintf("app%d", i))
		if _, err := nc.Subscribe("load.>", func(*nats.Msg) { heard.Add(1) }); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, 1024)
		running.Go(func() {
			// A node that is given more than the machine can do is silent indeed.
			pace := time.NewTicker(50 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				<-pace.C
				for range burst {
					if nc.Publish(fmt.Sprintf("load.%d", i), body) == nil {
						sent.Add(1)
					}
				}
				_ = nc.FlushTimeout(10 * time.Second)
			}
		})
	}
	loaded.Store(true)
	<-time.After(long) // it is how long it is loaded
	loaded.Store(false)
	t.Logf("%v of load: %d messages of 1 KiB sent a second, %d delivered a second", long, sent.Load()/int64(long.Seconds()), heard.Load()/int64(long.Seconds()))
}
