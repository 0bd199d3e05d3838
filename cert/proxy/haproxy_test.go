package proxy_test

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strings"
	"testing"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
)

// tell sends a command to a socket of HAProxy.
func tell(t testing.TB, socket, command string) string {
	t.Helper()
	conn, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatal(err)
	}
	return string(answer)
}

// pid is the process of the worker, another one after each reload.
func pid(t testing.TB, s *proxytest.Server) string {
	t.Helper()
	for line := range strings.Lines(tell(t, s.Options.Socket, "show info")) {
		if pid, ok := strings.CutPrefix(line, "Pid: "); ok {
			return strings.TrimSpace(pid)
		}
	}
	t.Fatal("HAProxy does not say its process id")
	return ""
}

func TestHAProxy(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test", "www.a.test"), proxytest.Pair(t, "b", "*.b.test", "b.test")
	s := proxytest.HAProxy(t, a, b)
	p := open(t, s.Options)
	served(t, s.Addr, a, b)
	wrong(t, p, s.Options.Dir, a)

	worker := pid(t, s)
	stop := handshakes(t, s.Addr, "a.test", "x.b.test", "unknown.test")
	for range 2 {
		a = proxytest.Pair(t, "a", "a.test", "www.a.test")
		install(t, p, a, b)
		still(t, s.Addr, "www.a.test", a)
	}
	b = proxytest.Pair(t, "b", "*.b.test", "b.test")
	c := proxytest.Pair(t, "c", "new.test")
	install(t, p, a, b, c)
	still(t, s.Addr, "x.b.test", b)
	still(t, s.Addr, "new.test", c)
	install(t, p, a, b)
	still(t, s.Addr, "new.test", a)
	install(t, p, a, b, c)
	still(t, s.Addr, "new.test", c)
	stop()
	if now := pid(t, s); now != worker {
		t.Errorf("the worker was %s and is %s: there was a reload", worker, now)
	}

	// What is in memory is on the disk, too.
	s.Stop()
	s.Start()
	served(t, s.Addr, a, b, c)

	// The first of the files is what HAProxy serves to who names nothing that it has: it
	// cannot be removed at the socket. There is a reload for it.
	stop = handshakes(t, s.Addr, "x.b.test", "new.test")
	install(t, p, b, c)
	waitFor(t, "the reload", func() bool {
		leaf, err := proxy.Probe(t.Context(), s.Addr, "a.test")
		return err == nil && proxy.Serial(leaf) == leafSerial(t, b)
	})
	stop()
}

// TestHAProxyReload has no admin socket.
func TestHAProxyReload(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	s := proxytest.HAProxy(t, a)
	s.Options.Socket = ""
	p := open(t, s.Options)
	stop := handshakes(t, s.Addr, "a.test")
	for range 2 {
		a = proxytest.Pair(t, "a", "a.test")
		install(t, p, a)
		served(t, s.Addr, a)
	}
	stop()
}

// fill makes the chain of p so long that a line of the command that sets it ends where
// HAProxy's buffer does. HAProxy 2.6 does not answer to such a one, and crashes.
func fill(t testing.TB, p *proxy.Pair, dir string) {
	t.Helper()
	var more []string
	for i := range 40 {
		more = append(more, string(proxytest.Pair(t, "ca", strings.Repeat("x.", 2*i+1)+"test").Chain)) // of more lines and fewer
	}
	command := "set ssl cert " + dir + p.ID + ".pem <<\n" + string(p.Chain)
	for range 100_000 {
		rand.Shuffle(len(more), func(i, j int) { more[i], more[j] = more[j], more[i] })
		chain := strings.Join(more, "")
		if (command + chain)[16<<10-2] == '\n' {
			p.Chain = append(p.Chain, chain...)
			return
		}
	}
	t.Fatal("no line ends where the buffer does")
}

func TestHAProxyRefuses(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	s := proxytest.HAProxy(t, a, b)
	good, err := os.ReadFile(s.Options.Config)
	if err != nil {
		t.Fatal(err)
	}
	p := open(t, s.Options)
	s.Configure(string(good) + "\tnonsense\n")
	before := snapshot(t, s.Options.Dir+"/current/")
	err = p.Install(t.Context(), []proxy.Pair{proxytest.Pair(t, "a", "a.test"), b})
	if err == nil || !strings.Contains(err.Error(), "unknown keyword 'nonsense'") {
		t.Fatalf("the error is %v, which is not HAProxy's", err)
	}
	t.Log(err)
	if now := snapshot(t, s.Options.Dir+"/current/"); now != before {
		t.Errorf("HAProxy refused, and there is\n%s\nin place of\n%s", now, before)
	}
	still(t, s.Addr, "a.test", a)
	s.Configure(string(good))

	// Somebody was killed within a transaction, of a certificate of ours: HAProxy would
	// put into it what is set of any other.
	x := proxytest.Pair(t, "x", "x.test")
	dir := s.Options.Dir + "/current/"
	if answer := tell(t, s.Options.Socket, "set ssl cert "+dir+"b.pem <<\n"+string(x.Chain)+string(x.Key)); !strings.Contains(answer, "Transaction created") {
		t.Fatal(answer)
	}
	a = proxytest.Pair(t, "a", "a.test")
	install(t, p, a, b)
	still(t, s.Addr, "a.test", a)
	still(t, s.Addr, "b.test", b)

	// Or it is known, but nothing uses it.
	c := proxytest.Pair(t, "c", "c.test")
	tell(t, s.Options.Socket, "new ssl cert "+dir+"c.pem")
	install(t, p, a, b, c)
	still(t, s.Addr, "c.test", c)

	// A chain that is longer than its buffer: a reload does it.
	long := proxytest.Pair(t, "a", "a.test")
	fill(t, &long, dir)
	install(t, p, long, b, c)
	served(t, s.Addr, long, b, c)
	o := s.Options
	o.Reload = proxy.Reload{}
	alone := open(t, o)
	a = proxytest.Pair(t, "a", "a.test")
	fill(t, &a, dir)
	worker := pid(t, s)
	err = alone.Install(t.Context(), []proxy.Pair{a, b, c})
	if err == nil || !strings.Contains(err.Error(), "tune.bufsize") {
		t.Fatalf("with no way to reload: %v", err)
	}
	secretless(t, err.Error(), []proxy.Pair{a, b, c})
	t.Log(err)
	if now := pid(t, s); now != worker {
		t.Errorf("the worker was %s and is %s", worker, now)
	}
	if plan, err := p.Plan([]proxy.Pair{a, b, c}); err != nil || len(plan) == 0 {
		t.Errorf("it was not loaded, and the plan is %v, %v", plan, err)
	}
	install(t, p, a, b, c)
	served(t, s.Addr, a)

	// It does not run: the files are there for when it does.
	s.Stop()
	a = proxytest.Pair(t, "a", "a.test")
	if err := p.Install(t.Context(), []proxy.Pair{a, b, c}); err == nil {
		t.Error("HAProxy does not run, and nothing was wrong")
	}
	s.Start()
	served(t, s.Addr, a, b, c)
	install(t, p, a, b, c)
}

// TestHAProxyRoom has a buffer in which a long chain has room.
func TestHAProxyRoom(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	s := proxytest.HAProxy(t, a)
	s.Stop()
	text, err := os.ReadFile(s.Options.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.Configure(strings.Replace(string(text), "global\n", "global\n\ttune.bufsize 65536\n", 1))
	s.Start()
	served(t, s.Addr, a)
	s.Options.Reload = proxy.Reload{}
	p := open(t, s.Options)
	worker := pid(t, s)
	fill(t, &a, s.Options.Dir+"/current/")
	install(t, p, a)
	still(t, s.Addr, "a.test", a)
	if now := pid(t, s); now != worker {
		t.Errorf("the worker was %s and is %s: there was a reload", worker, now)
	}
}

// TestHAProxyWeak has a certificate that the program refuses and no other does: it is
// left out, by name.
func TestHAProxyWeak(t *testing.T) {
	a, b, c := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test"), proxytest.Pair(t, "c", "c.test")
	s := proxytest.HAProxy(t, a, b, c)
	p := open(t, s.Options)
	weak := proxytest.Weak(t, "b", "b.test")
	if _, err := weak.Leaf(); err != nil {
		t.Fatal(err)
	}
	a, c = proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "c", "c.test")
	err := p.Install(t.Context(), []proxy.Pair{a, weak, c})
	if err == nil || !strings.Contains(err.Error(), `certificate "b" stays as it was`) || strings.Contains(err.Error(), `"c"`) {
		t.Fatalf("a weak key: %v", err)
	}
	t.Log(err)
	still(t, s.Addr, "a.test", a)
	still(t, s.Addr, "b.test", b)
	still(t, s.Addr, "c.test", c)
}

// TestHAProxyUnread has HAProxy read another directory than the target's: it is told
// which line is missing, and is not reloaded for nothing.
func TestHAProxyUnread(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	s := proxytest.HAProxy(t, a)
	served(t, s.Addr, a)
	worker := pid(t, s)
	s.Options.Dir = s.Dir + "/other"
	p := open(t, s.Options)
	for range 2 { // it is tried again
		err := p.Install(t.Context(), []proxy.Pair{a})
		if err == nil || !strings.Contains(err.Error(), "needs a bind line with ssl crt "+s.Options.Dir+"/current") {
			t.Fatalf("the error is %v", err)
		}
	}
	if now := pid(t, s); now != worker {
		t.Errorf("the worker was %s and is %s: there was a reload", worker, now)
	}
	// It is written down, and HAProxy was not reloaded yet.
	text, err := os.ReadFile(s.Options.Config)
	if err != nil {
		t.Fatal(err)
	}
	s.Configure(strings.Replace(string(text), s.Dir+"/certificates/current", s.Options.Dir+"/current", 1))
	a = proxytest.Pair(t, "a", "a.test")
	install(t, p, a)
	served(t, s.Addr, a)
}
