package proxy_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fleetbus/fleetbus/cert/proxy"
	"github.com/fleetbus/fleetbus/cert/proxy/proxytest"
	"github.com/fleetbus/fleetbus/internal/await"
)

// patience is how long a slow machine may need for a reload.
const patience = 30 * time.Second

func open(t testing.TB, o proxy.Options) proxy.Proxy {
	t.Helper()
	p, err := proxy.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func install(t testing.TB, p proxy.Proxy, pairs ...proxy.Pair) {
	t.Helper()
	if err := p.Install(t.Context(), pairs); err != nil {
		t.Fatal(err)
	}
	plan, err := p.Plan(pairs)
	if err != nil || len(plan) > 0 {
		t.Fatalf("after it was installed the plan is %v, %v", plan, err)
	}
}

// served demands that every name of every pair is served, by and by: for a moment after a
// reload an old worker may still answer.
func served(t testing.TB, addr string, pairs ...proxy.Pair) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	seen, err := proxy.Verify(ctx, []string{addr}, pairs)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range seen {
		if s.Err != nil {
			t.Errorf("%s of %s: %v", s.Name, s.ID, s.Err)
		}
	}
	if t.Failed() {
		t.FailNow()
	}
}

// still demands that a name is served with that pair right now.
func still(t testing.TB, addr, name string, p proxy.Pair) {
	t.Helper()
	want := leafSerial(t, p)
	leaf, err := proxy.Probe(t.Context(), addr, name)
	if err != nil {
		t.Fatal(err)
	}
	if got := proxy.Serial(leaf); got != want {
		t.Fatalf("%s is served with serial %s, want %s", name, got, want)
	}
}

func leafSerial(t testing.TB, p proxy.Pair) string {
	t.Helper()
	leaf, err := p.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	return proxy.Serial(leaf)
}

// handshakes shakes hands with addr, for names in turn, all the time until stop, which
// fails the test if one failed and demands that there were some.
func handshakes(t testing.TB, addr string, names ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var done atomic.Int64
	var group sync.WaitGroup
	var mu sync.Mutex
	var failed []error
	for i := range 4 {
		group.Go(func() {
			for n := i; ctx.Err() == nil; n++ {
				_, err := proxy.Probe(ctx, addr, names[n%len(names)])
				if err != nil && ctx.Err() == nil {
					mu.Lock()
					failed = append(failed, err)
					mu.Unlock()
				}
				done.Add(1)
			}
		})
	}
	waitFor(t, "handshakes", func() bool { return done.Load() > 20 })
	return func() {
		before := done.Load()
		waitFor(t, "handshakes", func() bool { return done.Load() > before+20 })
		cancel()
		group.Wait()
		if len(failed) > 0 {
			t.Fatalf("%d of %d handshakes failed, the first: %v", len(failed), done.Load(), failed[0])
		}
		t.Logf("%d handshakes, none failed", done.Load())
	}
}

func waitFor(t testing.TB, what string, ask func() bool) {
	t.Helper()
	if !await.True(patience, ask) {
		t.Fatalf("waiting for %s took too long", what)
	}
}

// wrong demands that what is wrong in itself is refused, and that nothing is written.
func wrong(t testing.TB, p proxy.Proxy, dir string, good proxy.Pair) {
	t.Helper()
	before := snapshot(t, dir)
	other := proxytest.Pair(t, "other", "other.test")
	for name, pairs := range map[string][]proxy.Pair{
		"key of another":   {good, {ID: "other", Chain: other.Chain, Key: good.Key}},
		"path for an id":   {good, {ID: "../other", Chain: other.Chain, Key: other.Key}},
		"no certificate":   {good, {ID: "other", Chain: []byte("x"), Key: other.Key}},
		"no key":           {good, {ID: "other", Chain: other.Chain}},
		"an id twice":      {good, {ID: good.ID, Chain: other.Chain, Key: other.Key}},
		"no name":          {good, proxytest.Pair(t, "other")},
		"name with syntax": {good, proxytest.Pair(t, "other", "a;}.test")},
	} {
		err := p.Install(t.Context(), pairs)
		if err == nil {
			t.Errorf("%s: was installed", name)
			continue
		}
		secretless(t, err.Error(), pairs)
		if after := snapshot(t, dir); after != before {
			t.Errorf("%s: refused (%v), but it changed\n%s\nto\n%s", name, err, before, after)
		}
	}
}

// secretless demands that no line of a key is in a text.
func secretless(t testing.TB, text string, pairs []proxy.Pair) {
	t.Helper()
	for _, p := range pairs {
		for line := range strings.Lines(string(p.Key)) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "-----") && strings.Contains(text, line) {
				t.Errorf("there is a line of a key in %q", text)
			}
		}
	}
}

// snapshot is every path in dir with its mode, and the target or the time of what is
// no directory. Files are never changed without a new time.
func snapshot(t testing.TB, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		b.WriteString(info.Mode().String() + " " + path)
		if !info.IsDir() {
			b.WriteString(" " + info.ModTime().String())
		}
		if target, err := os.Readlink(path); err == nil {
			b.WriteString(" -> " + target)
		}
		b.WriteString("\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestNGINX(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test", "www.a.test"), proxytest.Pair(t, "b", "*.b.test", "b.test")
	s := proxytest.NGINX(t, a, b)
	p := open(t, s.Options)
	served(t, s.Addr, a, b)
	wrong(t, p, s.Options.Dir, a)

	stop := handshakes(t, s.Addr, "a.test", "x.b.test", "unknown.test")
	for range 2 {
		a = proxytest.Pair(t, "a", "a.test", "www.a.test")
		install(t, p, a, b)
		served(t, s.Addr, a, b)
	}
	b = proxytest.Pair(t, "b", "*.b.test", "b.test")
	c := proxytest.Pair(t, "c", "new.test")
	install(t, p, a, b, c)
	served(t, s.Addr, a, b, c)
	install(t, p, a, b)
	waitFor(t, "the removed one", func() bool {
		leaf, err := proxy.Probe(t.Context(), s.Addr, "new.test")
		return err == nil && proxy.Serial(leaf) == leafSerial(t, a)
	})
	stop()
}

// TestNGINXPaths has a configuration that names certificates by their path, as most
// have.
func TestNGINXPaths(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	s := proxytest.NGINX(t, a, b)
	p := open(t, s.Options)
	config := s.NGINXConfig("", s.Options.Dir+"/current/a.pem")
	s.Configure(config)
	stop := handshakes(t, s.Addr, "a.test")
	for range 2 {
		a = proxytest.Pair(t, "a", "a.test")
		install(t, p, a, b)
		served(t, s.Addr, a)
	}
	stop()

	// A configuration that is broken by itself changes nothing.
	s.Configure(config + "nonsense;\n")
	before := a
	a = proxytest.Pair(t, "a", "a.test")
	tree := snapshot(t, s.Options.Dir+"/current/")
	err := p.Install(t.Context(), []proxy.Pair{a, b})
	if err == nil || !strings.Contains(err.Error(), `unknown directive "nonsense"`) {
		t.Fatalf("the error is %v, which is not nginx's", err)
	}
	t.Log(err)
	if now := snapshot(t, s.Options.Dir+"/current/"); now != tree {
		t.Errorf("nginx refused, and there is\n%s\nin place of\n%s", now, tree)
	}
	served(t, s.Addr, before)

	// One that names what was removed keeps nothing else from being renewed.
	s.Configure(config)
	b = proxytest.Pair(t, "b", "b.test")
	c := proxytest.Pair(t, "c", "c.test")
	err = p.Install(t.Context(), []proxy.Pair{b, c})
	if err == nil || !strings.Contains(err.Error(), `certificate "a" stays as it was`) || strings.Contains(err.Error(), `"b"`) {
		t.Fatalf("removing what nginx needs: %v", err)
	}
	t.Log(err)
	served(t, s.Addr, before)
	s.Configure(s.NGINXConfig("", s.Options.Dir+"/current/b.pem"))
	install(t, p, b, c)
	served(t, s.Addr, b)
	if _, err := os.Stat(s.Options.Dir + "/current/a.pem"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("it was removed, and %v", err)
	}
}

// TestKilled begins an installation and ends it at each of its steps, as a crash would.
func TestKilled(t *testing.T) {
	a := proxytest.Pair(t, "a", "a.test")
	s := proxytest.NGINX(t, a)
	for _, step := range []string{"test", "reload"} {
		// A binary that hangs where nginx would do the step, until it is killed.
		hanging := filepath.Join(s.Dir, "hanging-"+step)
		flag := map[string]string{"test": "-t", "reload": "-s"}[step]
		text := "#!/bin/sh\ncase \" $* \" in *\" " + flag + " \"*) echo > " + hanging + ".here; exec sleep 600;; esac\nexec " + s.Options.Binary + " \"$@\"\n"
		if err := os.WriteFile(hanging, []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
		o := s.Options
		o.Binary = hanging
		b := proxytest.Pair(t, "a", "a.test")
		before := links(t, o.Dir)
		ctx, cancel := context.WithCancel(t.Context())
		interrupted := make(chan error, 1)
		go func() { interrupted <- open(t, o).Install(ctx, []proxy.Pair{b}) }()
		waitFor(t, step, func() bool { _, err := os.Stat(hanging + ".here"); return err == nil })
		// What is here now is what is there after a kill -9: kept aside.
		if out, err := exec.Command("cp", "-a", o.Dir, o.Dir+"-killed").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		cancel()
		if err := <-interrupted; err == nil {
			t.Fatalf("%s was interrupted, and nothing was wrong", step)
		}
		if step == "test" && links(t, o.Dir) != before {
			t.Errorf("interrupted in its test, it left %s, want %s", links(t, o.Dir), before)
		}
		// The state of the moment of the kill.
		if err := errors.Join(os.RemoveAll(o.Dir), os.Rename(o.Dir+"-killed", o.Dir)); err != nil {
			t.Fatal(err)
		}
		served(t, s.Addr, a)
		if plan, err := open(t, s.Options).Plan([]proxy.Pair{b}); err != nil || len(plan) == 0 {
			t.Errorf("%s: nothing is left to do: %v, %v", step, plan, err)
		}
		install(t, open(t, s.Options), b)
		served(t, s.Addr, b)
		a = b
	}

	// Rubbish of every sort, long ago.
	dir := s.Options.Dir
	for _, name := range []string{"v-half", ".part-current", ".part-x"} {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.Mkdir(path, 0o700), os.WriteFile(path+"/a.pem", a.Key, 0o600), os.Chtimes(path, time.Time{}, time.Now().Add(-time.Hour))); err != nil {
			t.Fatal(err)
		}
	}
	a = proxytest.Pair(t, "a", "a.test")
	install(t, open(t, s.Options), a)
	served(t, s.Addr, a)
	for _, name := range []string{"v-half", ".part-current", ".part-x"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
}

// links are what the links point to.
func links(t testing.TB, dir string) string {
	t.Helper()
	c, err := os.Readlink(dir + "/current")
	if err != nil {
		t.Fatal(err)
	}
	l, err := os.Readlink(dir + "/loaded")
	if err != nil {
		t.Fatal(err)
	}
	return c + " " + l
}

func TestPlan(t *testing.T) {
	a, b := proxytest.Pair(t, "a", "a.test"), proxytest.Pair(t, "b", "b.test")
	s := proxytest.NGINX(t, a, b)
	p := open(t, s.Options)
	if plan, err := p.Plan([]proxy.Pair{a, b}); err != nil || len(plan) > 0 {
		t.Errorf("with nothing to do the plan is %v, %v", plan, err)
	}
	before := snapshot(t, s.Options.Dir)
	a2 := proxytest.Pair(t, "a", "a.test")
	plan, err := p.Plan([]proxy.Pair{a2})
	if err != nil {
		t.Fatal(err)
	}
	var text []string
	for _, c := range plan {
		text = append(text, c.String())
	}
	dir := s.Options.Dir + "/current"
	want := []string{
		"write " + dir + "/a.pem", "write " + dir + "/map.conf", "remove " + dir + "/b.pem",
		"point " + dir + " to a new version, which has all of it at once",
		"run nginx -c " + s.Options.Config + " -t -q", "run nginx -c " + s.Options.Config + " -s reload",
	}
	if !slices.Equal(text, want) {
		t.Errorf("the plan is %q, want %q", text, want)
	}
	if after := snapshot(t, s.Options.Dir); after != before {
		t.Errorf("a plan changed %s to %s", before, after)
	}
	snippet, err := p.Snippet([]proxy.Pair{a, b})
	if err != nil || !strings.Contains(snippet, "ssl_certificate_key "+dir+"/a.pem;") {
		t.Errorf("the snippet is %q, %v", snippet, err)
	}
	secretless(t, strings.Join(text, " ")+snippet, []proxy.Pair{a, a2, b})
}

func TestNew(t *testing.T) {
	for name, o := range map[string]proxy.Options{
		"kind":             {Kind: "apache", Dir: "/x"},
		"relative":         {Kind: "nginx", Dir: "x"},
		"syntax":           {Kind: "nginx", Dir: "/x;y"},
		"group":            {Kind: "nginx", Dir: "/x", Group: "no such group"},
		"layout":           {Kind: "files", Dir: "/x", Layout: proxy.Layout{PEM: "all.pem"}},
		"path in a layout": {Kind: "files", Dir: "/x", Layout: proxy.Layout{PEM: "../{id}.pem"}},
		"keys for all":     {Kind: "caddy", Dir: t.TempDir(), Listen: "0.0.0.0:0"},
	} {
		if p, err := proxy.New(o); err == nil {
			t.Errorf("%s: %s was made", name, p.Name())
			p.Close()
		}
	}
}

// TestAdvise says what to put where, for every kind, and touches nothing.
func TestAdvise(t *testing.T) {
	dir := t.TempDir() + "/none"
	for _, kind := range proxy.Kinds() {
		text, err := proxy.Advise(proxy.Options{Kind: kind, Dir: dir, Listen: "127.0.0.1:1"}) // which nobody could listen at twice
		if err != nil || !strings.Contains(text, dir) {
			t.Errorf("%s: %q, %v", kind, text, err)
		}
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("there is a directory now")
	}
	if _, err := proxy.Advise(proxy.Options{Kind: "caddy", Dir: dir, Listen: "192.0.2.1:80"}); err == nil {
		t.Error("keys would be given out at an address that is not loopback")
	}
}
