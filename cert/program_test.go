package cert_test

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
)

// A proxy is a program that serves what it was given, if it does.
type proxy struct {
	mu       sync.Mutex
	installs int
	pairs    []cert.Pair
	fail     error // of Install
	stuck    bool  // it takes everything, and serves what it had
}

func (p *proxy) Name() string { return "nginx" }

func (p *proxy) Install(_ context.Context, pairs []cert.Pair) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.installs++
	if p.fail == nil && !p.stuck {
		p.pairs = slices.Clone(pairs)
	}
	return p.fail
}

func (p *proxy) Probe(_ context.Context, name string) (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, parent, _ := strings.Cut(name, ".")
	for _, pair := range p.pairs {
		if slices.Contains(pair.Names, name) || slices.Contains(pair.Names, "*."+parent) {
			return pair.Serial, nil
		}
	}
	return "", errors.New("connection refused")
}

func (p *proxy) set(fail error, stuck bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail, p.stuck = fail, stuck
}

func (p *proxy) has() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.pairs)
}

func (p *proxy) count() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.installs
}

// seen is what the store saw last of a certificate.
func (f *feed) seen(id string) cert.Seen {
	for _, c := range f.Certificates() {
		if c.ID == id {
			return c.Seen
		}
	}
	return cert.Seen{}
}

// TestProgram has another program serve: many changes are one reload, what fails is
// tried again ever later and said why, and what changes under way is seen.
func TestProgram(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, p := certtest.New(t, "web"), &proxy{}
		f := newFeed(t, m, cert.Options{Program: p})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { f.RunAlone(ctx); close(ended) }()
		synctest.Wait()
		obtained := func(id string, generation uint64) *cert.Bundle {
			b := m.Issue(certtest.Request{ID: id, Names: []string{id + ".example", "*." + id + ".example"}, Generation: generation})
			f.seq++
			if err := f.Apply("web", f.seq, cert.CertSubject("web", id), m.Record(id, cert.Record{Current: b}).Data); err != nil {
				t.Fatal(err)
			}
			return b
		}
		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		var last *cert.Bundle
		for i := range 26 {
			last = obtained(string(rune('a'+i)), 1)
		}
		wait(time.Second)
		if n := p.count(); n != 1 {
			t.Errorf("26 certificates were %d reloads", n)
		}
		if seen := f.seen("z"); seen.Serial != last.Serial || seen.Error != "" || seen.Generation != 1 || seen.Program != "nginx" {
			t.Errorf("seen: %+v", seen)
		}
		p.mu.Lock()
		for _, pair := range p.pairs {
			if _, err := tls.X509KeyPair(pair.Chain, pair.Key); err != nil || len(pair.Names) != 2 || pair.Generation != 1 {
				t.Errorf("%v: %v", pair, err)
			}
		}
		p.mu.Unlock()

		// It refuses: the old one is served on, and the report says why.
		p.set(errors.New("nginx: [emerg]\nno such file"), false)
		latest := obtained("z", 2)
		wait(time.Minute)
		if seen := f.seen("z"); seen.Serial != last.Serial || seen.Error != "nginx: [emerg] no such file" || seen.Generation != 2 {
			t.Errorf("seen: %+v", seen)
		}
		if seen := f.seen("a"); seen.Error != "" {
			t.Errorf("another one has a problem with it: %+v", seen)
		}
		few := p.count()
		wait(time.Hour)
		if n := p.count() - few; n < 10 || n > 30 {
			t.Errorf("what fails was tried %d times in an hour", n)
		}
		p.set(nil, false)
		wait(10 * time.Minute)
		if seen := f.seen("z"); seen.Serial != latest.Serial || seen.Error != "" {
			t.Errorf("seen: %+v", seen)
		}

		// It says yes and does nothing.
		p.set(nil, true)
		obtained("z", 3)
		wait(time.Minute)
		if seen := f.seen("z"); seen.Serial != latest.Serial || !strings.Contains(seen.Error, "is answered with serial "+latest.Serial) || seen.Generation != 3 {
			t.Errorf("seen: %+v", seen)
		}
		p.set(nil, false)
		wait(10 * time.Minute)
		if seen := f.seen("z"); seen.Error != "" {
			t.Errorf("seen: %+v", seen)
		}

		// It is restarted with nothing, and then with what it should have.
		p.mu.Lock()
		p.pairs, p.stuck = nil, true
		p.mu.Unlock()
		wait(cert.Recheck + time.Minute)
		if seen := f.seen("a"); !strings.Contains(seen.Error, "connection refused") {
			t.Errorf("seen: %+v", seen)
		}
		p.set(nil, false)
		wait(15 * time.Minute)
		if seen := f.seen("a"); seen.Error != "" {
			t.Errorf("seen: %+v", seen)
		}
		cancel()
		<-ended
	})
}

// TestWaves: a target that a wave names serves the next generation, others the current
// one; what was withdrawn is given up, and nothing else that is newer.
func TestWaves(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	names := []string{"a.example"}
	one := m.Issue(certtest.Request{ID: "a", Names: names})
	two := m.Issue(certtest.Request{ID: "a", Names: names, Generation: 2})
	three := m.Issue(certtest.Request{ID: "a", Names: names, Generation: 3})
	step := func(what string, r cert.Record, want *cert.Bundle, wanted uint64) {
		t.Helper()
		if err := f.take(m.Record("a", r)); err != nil {
			t.Fatal(err)
		}
		if got := f.serial("a.example"); got != want.Serial {
			t.Errorf("%s: generation %d is served", what, f.generation("a"))
		}
		if c := f.Certificates()[0]; c.Wanted != wanted {
			t.Errorf("%s: generation %d is wanted", what, c.Wanted)
		}
	}
	step("new", cert.Record{Current: one}, one, 1)
	step("the wave of others", cert.Record{Current: one, Next: two, Wave: &cert.Wave{Number: 1, Targets: []string{"lb2"}}}, one, 1)
	step("the wave of ours", cert.Record{Current: one, Next: two, Wave: &cert.Wave{Number: 2, Targets: []string{"lb2", "lb1"}}}, two, 2)
	step("taken back, but not said so", cert.Record{Current: one}, two, 1)
	step("taken back", cert.Record{Event: cert.RolledBack, Current: one, Withdrawn: 2}, one, 1)
	step("once more", cert.Record{Current: one, Withdrawn: 2, Next: three, Wave: &cert.Wave{Number: 1, Targets: []string{"lb1"}}}, three, 3)
	step("for all", cert.Record{Current: three, Withdrawn: 2}, three, 3)
	step("an old one", cert.Record{Current: one, Withdrawn: 2}, three, 1)
}

// TestReportInTime: a target that a wave names, which waits for it, reports soon; one among
// all takes its time.
func TestReportInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := certtest.New(t, "web")
		f := newFeed(t, m, cert.Options{})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { f.RunAlone(ctx); close(ended) }()
		issue := func(generation uint64) *cert.Bundle {
			return m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: generation})
		}
		one, two := issue(1), issue(2)
		for i, r := range []cert.Record{
			{Current: one},
			{Current: one, Next: two, Wave: &cert.Wave{Number: 1, Targets: []string{"lb1"}}},
		} {
			f.seq++
			if err := f.Apply("web", f.seq, cert.CertSubject("web", "a"), m.Record("a", r).Data); err != nil {
				t.Fatal(err)
			}
			wait := 1200 * time.Millisecond
			if r.Wave != nil {
				wait = 150 * time.Millisecond
			}
			time.Sleep(wait)
			synctest.Wait()
			if seen := f.seen("a"); seen.Generation != uint64(i+1) || seen.Error != "" {
				t.Errorf("after %v it has seen %+v", wait, seen)
			}
		}
		cancel()
		<-ended
	})
}

// TestTicket: a session is resumed while its certificate is served, and no longer.
func TestTicket(t *testing.T) {
	m := certtest.New(t, "web")
	f := newFeed(t, m, cert.Options{})
	if err := f.take(m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}})); err != nil {
		t.Fatal(err)
	}
	listener := must(tls.Listen("tcp", "127.0.0.1:0", f.TLSConfig(nil)))(t)
	served := make(chan struct{})
	go func() {
		defer close(served)
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			if _, err := conn.Write([]byte("x")); err != nil {
				t.Error(err)
			}
			conn.Close()
		}
	}()
	defer func() { listener.Close(); <-served }()
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		cache := tls.NewLRUClientSessionCache(8)
		resumed := func() bool {
			t.Helper()
			conn := must(tls.Dial("tcp", listener.Addr().String(), &tls.Config{ServerName: "a.example", InsecureSkipVerify: true, ClientSessionCache: cache, MinVersion: version, MaxVersion: version}))(t)
			defer conn.Close()
			must(io.ReadFull(conn, make([]byte, 1)))(t)
			return conn.ConnectionState().DidResume
		}
		if resumed() || !resumed() {
			t.Errorf("version %x: a session is not resumed", version)
		}
		_ = f.take(m.Obtained(certtest.Request{ID: "b", Names: []string{"b.example"}, Generation: uint64(version)}))
		if !resumed() {
			t.Errorf("version %x: another certificate ends it", version)
		}
		if err := f.take(m.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: uint64(version)})); err != nil {
			t.Fatal(err)
		}
		if resumed() {
			t.Errorf("version %x: a session goes on with a certificate that is not served any more", version)
		}
	}
}

// TestProgramEmptied has the last certificate removed: the program is given none, and
// again later, for what it could not remove at once.
func TestProgramEmptied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, p := certtest.New(t, "web"), &proxy{}
		f := newFeed(t, m, cert.Options{Program: p})
		ctx, cancel := context.WithCancel(context.Background())
		ended := make(chan struct{})
		go func() { f.RunAlone(ctx); close(ended) }()
		wait := func(d time.Duration) { time.Sleep(d); synctest.Wait() }
		wait(cert.Recheck + time.Minute)
		if n := p.count(); n != 0 {
			t.Errorf("it was given none %d times before there was one: what it has is not ours", n)
		}
		record := func(r cert.Record) {
			f.seq++
			if err := f.Apply("web", f.seq, cert.CertSubject("web", "a"), m.Record("a", r).Data); err != nil {
				t.Fatal(err)
			}
			wait(time.Second)
		}
		record(cert.Record{Current: m.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: 1})})
		record(cert.Record{Event: cert.Removed, Removed: true})
		if _, err := p.Probe(ctx, "a.example"); p.count() != 2 || err == nil {
			t.Errorf("%d installations, and it serves what was removed: %v", p.count(), err == nil)
		}
		wait(2 * cert.Recheck)
		if n := p.count(); n != 4 {
			t.Errorf("%d installations later", n)
		}
		cancel()
		<-ended
	})
}

// TestProgramWaits has a store without a snapshot, or with one that was written too early,
// catch up slowly: its program is given nothing before it can be given all.
func TestProgramWaits(t *testing.T) {
	m := certtest.New(t, "web")
	key, enrolled := m.Target("lb1")
	events := []certtest.Event{enrolled}
	for _, id := range []string{"a", "b"} { // valid today, and at the time of synctest
		events = append(events, m.Obtained(certtest.Request{ID: id, Names: []string{id + ".example"}, From: time.Unix(0, 0), To: time.Now().Add(time.Hour)}))
	}
	// run runs a store, and returns how often its program was given something in an hour,
	// how often in the next, for which the store is whole, and the snapshots after both.
	run := func(t *testing.T, begin func(*runner)) (installs [2]int, snapshots [2][]byte) {
		synctest.Test(t, func(t *testing.T) {
			p := &proxy{}
			r := open(t, cert.Options{Key: key, Program: p})
			begin(r)
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan struct{})
			go func() { r.RunPart(ctx); close(ended) }()
			for i := range installs {
				time.Sleep(time.Hour - cert.Recheck)
				synctest.Wait()
				installs[i] = p.count()
				snapshots[i] = must(r.Marshal("web"))(t)
				if n := len(r.Certificates()); n != 2 {
					t.Errorf("%d certificates are there for handshakes", n)
				}
				if n := p.has(); installs[i] > 0 && n != 2 {
					t.Errorf("its program has %d certificates", n)
				}
				r.Complete()
			}
			cancel()
			<-ended
		})
		return installs, snapshots
	}
	installs, snapshots := run(t, func(r *runner) {
		for i, e := range events {
			if err := r.Apply("web", uint64(i+1), e.Subject, e.Data); err != nil {
				t.Fatal(err)
			}
		}
	})
	if installs[0] != 0 || installs[1] == 0 {
		t.Errorf("without a snapshot: %d installations before all was known, %d after", installs[0], installs[1])
	}
	for i, what := range []string{"a snapshot of a part", "a whole snapshot"} {
		installs, _ := run(t, func(r *runner) {
			if err := r.Unmarshal("web", snapshots[i]); err != nil {
				t.Fatal(err)
			}
		})
		if installs[0] > 0 != (i == 1) || installs[1] == 0 {
			t.Errorf("with %s: %d installations before all was known, %d after", what, installs[0], installs[1])
		}
	}
}

// TestProgramOnBus has stores catch up with a ledger that has nothing for them, and with
// one that has: their program is given what is there, and what comes.
func TestProgramOnBus(t *testing.T) {
	b, p := newBus(t), &proxy{}
	key := b.target("lb1")
	for i, id := range []string{"a", "b"} {
		r := open(t, cert.Options{Key: key, Program: p}).run(t, b.server.ClientURL())
		b.publish(b.Obtained(certtest.Request{ID: id, Names: []string{id + ".example"}}))
		waitFor(t, "a report of "+id, func() bool {
			seen := b.lastSeen("lb1", id)
			return seen != nil && seen.Generation == 1 && seen.Error == ""
		})
		if n := len(r.Certificates()); n != i+1 {
			t.Errorf("%d certificates", n)
		}
		r.stop()
	}
}
