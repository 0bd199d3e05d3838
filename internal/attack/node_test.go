package attack

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/amqp"
	"github.com/fleetbus/fleetbus/change/sse"
	"github.com/fleetbus/fleetbus/console"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
	"github.com/fleetbus/fleetbus/mqtt"
	"github.com/fleetbus/fleetbus/probe"
	"github.com/fleetbus/fleetbus/provision/stranger"
)

// nodeVariable has a process of the tests be a node, whose settings are its value.
const nodeVariable = "FLEETBUS_ATTACKED_NODE"

// TestMain runs a node in place of the tests, if a test has started it for that.
func TestMain(m *testing.M) {
	if settings := os.Getenv(nodeVariable); settings != "" {
		if err := serveNode(settings); err != nil {
			fmt.Fprintln(os.Stderr, "error:", err)
			os.Exit(1)
		}
		return
	}
	await.Main(m)
}

// withEverything gives a node every listener that there is.
func withEverything(o *fleetbus.Options) {
	o.Cluster.Name = "eu"
	o.Accounts = []string{"acme", "evil", "arrivals", "floor"}
	add := func(name string, p fleetbus.Protocol, edit ...func(*fleetbus.Listener)) {
		l := fleetbus.Listener{Name: name, Addr: "127.0.0.1:0", Protocol: p}
		for _, e := range edit {
			e(&l)
		}
		o.Listeners = append(o.Listeners, l)
	}
	passwords := amqp.Options{Passwords: true}
	add("leaf", fleetbus.Leaf())
	add("gateway", fleetbus.Gateway())
	add("mqtt", &mqtt.Protocol{})
	add("amqp", &amqp.Protocol{Options: passwords})
	add("console", &console.Protocol{})
	add("sse", &sse.Protocol{})
	add("metrics", &probe.Protocol{})
	add("provision", &stranger.Protocol{}, func(l *fleetbus.Listener) { l.Plaintext, l.Account = true, "arrivals" })
	add("open", &stranger.Protocol{Open: true}, func(l *fleetbus.Listener) { l.Plaintext, l.Account, l.Role = true, "floor", "client" })
}

// settings are what a process that is a node is told.
type settings struct {
	Dir, Nats, Cluster, Monitor string
	Rate                        int // of handshakes
}

// weight is what a node weighs, in bytes, and what runs in it.
type weight struct {
	Heap, Stack, Resident, Peak int64
	Goroutines                  int
}

// serveNode is a node that tells where it listens, and then what it weighs whenever it is
// asked, until nobody asks any more.
func serveNode(text string) error {
	var s settings
	if err := json.Unmarshal([]byte(text), &s); err != nil {
		return err
	}
	o := fleetbus.Options{
		Mode: fleetbus.Mesh, Name: "n1", Dir: s.Dir, Advertise: "127.0.0.1",
		Listeners: []fleetbus.Listener{{Name: "nats", Addr: s.Nats, Protocol: fleetbus.NATS()}},
		Cluster:   fleetbus.Cluster{Addr: s.Cluster},
		Store:     fleetbus.Store{MaxFile: 1 << 30, MaxMemory: 256 << 20, Reserve: 1 << 20},
		Monitor:   s.Monitor, Grace: 100 * time.Millisecond,
		// What is held is measured while it is held.
		Limits: fleetbus.Limits{HandshakeTimeout: 30 * time.Second, HandshakeRate: s.Rate},
	}
	withEverything(&o)
	node, err := fleetbus.New(o)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx) }()
	select {
	case <-node.Ready():
	case err := <-done:
		return err
	}
	addrs := map[string]string{}
	for _, l := range Listeners() {
		if a := node.Addr(l.Name); a != nil {
			addrs[l.Name] = a.String()
		}
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(addrs); err != nil {
		return err
	}
	for asked := bufio.NewScanner(os.Stdin); asked.Scan(); {
		if err := out.Encode(weigh()); err != nil {
			return err
		}
	}
	cancel()
	return <-done
}

func weigh() weight {
	for range 3 {
		runtime.GC()
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	w := weight{Heap: int64(m.HeapAlloc), Stack: int64(m.StackInuse), Goroutines: runtime.NumGoroutine()}
	status, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(status)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseInt(f[1], 10, 64)
		switch f[0] {
		case "VmRSS:":
			w.Resident = n << 10
		case "VmHWM:":
			w.Peak = n << 10
		}
	}
	return w
}

// A victim is a node in a process of its own.
type victim struct {
	t     testing.TB
	dir   string
	addrs map[string]string
	in    io.WriteCloser
	out   *json.Decoder
	pid   int
}

func startVictim(t testing.TB, rate int) *victim {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "data")
	text, err := json.Marshal(settings{Dir: dir, Nats: loopback.Addr(t), Cluster: loopback.Addr(t), Monitor: loopback.Addr(t), Rate: rate})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), nodeVariable+"="+string(text))
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	v := &victim{t: t, dir: dir, in: in, out: json.NewDecoder(out), pid: cmd.Process.Pid}
	t.Cleanup(func() {
		in.Close()
		late := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
		defer late.Stop()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the node ended with: %v", err)
		}
	})
	if err := v.out.Decode(&v.addrs); err != nil {
		t.Fatalf("the node did not start: %v", err)
	}
	return v
}

func (v *victim) weigh() (w weight) {
	v.t.Helper()
	if _, err := io.WriteString(v.in, "\n"); err != nil {
		v.t.Fatal(err)
	}
	if err := v.out.Decode(&w); err != nil {
		v.t.Fatalf("the node does not answer any more: %v", err)
	}
	return w
}
