package cert_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/cert"
	"github.com/fleetbus/fleetbus/cert/certtest"
	"github.com/fleetbus/fleetbus/ledger"
)

// many makes the records of n certificates.
func many(m *certtest.Manager, n int) []certtest.Event {
	all := make([]certtest.Event, n)
	for i := range all {
		all[i] = m.Obtained(certtest.Request{ID: fmt.Sprintf("id%d", i), Names: []string{host(i)}})
	}
	return all
}

func host(i int) string { return fmt.Sprintf("www.shop-%d.example.org", i) }

// snapshotOf writes a snapshot of a target that has all of events, and returns its
// directory.
func snapshotOf(t testing.TB, key *cert.TargetKey, events []certtest.Event) string {
	t.Helper()
	dir := storeDir(t)
	state := cert.NewState(key.Signers, nil)
	for i, e := range events {
		if err := state.Apply(uint64(i+1), e.Subject, e.Data); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, key.Account+"."+key.Name+"."+key.Groups[0]+".certs")
	payload := cert.SnapshotOf(must(state.Marshal())(t))
	if err := ledger.WriteSnapshot(path, uint64(len(events)), payload); err != nil {
		t.Fatal(err)
	}
	return dir
}

// BenchmarkGetCertificate finds one of 10,000 certificates, beside CertMagic's cache
// with the same ones.
func BenchmarkGetCertificate(b *testing.B) {
	m := certtest.New(b, "web")
	key, enrolled := m.Target("lb1")
	store := open(b, cert.Options{Key: key, Dir: snapshotOf(b, key, append(many(m, 10_000), enrolled))})
	hellos := make([]*tls.ClientHelloInfo, 10_000)
	for i := range hellos {
		hellos[i] = &tls.ClientHelloInfo{ServerName: host(i)}
	}
	var config *certmagic.Config
	cache := certmagic.NewCache(certmagic.CacheOptions{GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return config, nil }})
	defer cache.Stop()
	config = certmagic.New(cache, certmagic.Config{OCSP: certmagic.OCSPConfig{DisableStapling: true}, Storage: &certmagic.FileStorage{Path: b.TempDir()}})
	for _, hello := range hellos {
		c := must(store.GetCertificate(hello))(b)
		must(config.CacheUnmanagedTLSCertificate(b.Context(), *c, nil))(b)
	}
	ended := make(chan struct{})
	running, stop := context.WithCancel(b.Context())
	go func() { store.KeepTime(running); close(ended) }() // as Run does
	defer func() { stop(); <-ended }()
	type getter func(*tls.ClientHelloInfo) (*tls.Certificate, error)
	bench := func(name string, get getter, change func(string) string) {
		b.Run(name, func(b *testing.B) {
			asked := make([]*tls.ClientHelloInfo, len(hellos))
			for i := range asked {
				asked[i] = &tls.ClientHelloInfo{ServerName: change(host(i))}
			}
			b.ReportAllocs()
			b.ResetTimer()
			defer reportCPU(b)()
			b.RunParallel(func(pb *testing.PB) {
				for i := 0; pb.Next(); i = (i + 1) % len(asked) {
					if c, err := get(asked[i]); c == nil || err != nil {
						b.Errorf("%s: %v", asked[i].ServerName, err)
						return
					}
				}
			})
		})
	}
	same := func(name string) string { return name }
	bench("store", store.GetCertificate, same)
	bench("store, capitals and a dot", store.GetCertificate, func(name string) string { return "WWW" + name[3:] + "." })
	ctx := context.Background()
	bench("certmagic", func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return config.GetCertificateWithContext(ctx, hello)
	}, same)
}

// BenchmarkOpen starts from a snapshot of 10,000 certificates.
func BenchmarkOpen(b *testing.B) {
	m := certtest.New(b, "web")
	key, enrolled := m.Target("lb1")
	dir := snapshotOf(b, key, append(many(m, 10_000), enrolled))
	defer reportCPU(b)()
	for b.Loop() {
		store := must(cert.Open(cert.Options{Key: key, Dir: dir}))(b)
		if n := len(store.Certificates()); n != 10_000 {
			b.Fatalf("%d certificates", n)
		}
	}
}

// BenchmarkReplay follows a ledger of 100,000 events about 1,000 certificates without a
// snapshot.
func BenchmarkReplay(b *testing.B) {
	const certs, events = 1_000, 100_000
	m := certtest.New(b, "web")
	s := startServer(b, server.Options{})
	// The ledger of a fleet keeps 32 events of a subject; this one keeps all.
	js := must(jetstream.New(dial(b, s.ClientURL())))(b)
	must(js.CreateStream(b.Context(), jetstream.StreamConfig{Name: cert.Stream, Subjects: []string{cert.Prefix + ".>"}, Storage: jetstream.FileStorage}))(b)
	key, enrolled := m.Target("lb1")
	publish := func(e certtest.Event) {
		must(js.PublishMsgAsync(&nats.Msg{Subject: cert.Prefix + "." + e.Subject, Data: e.Data}))(b)
	}
	publish(enrolled)
	bundles := make([]*cert.Bundle, certs)
	for i := range bundles {
		bundles[i] = m.Issue(certtest.Request{ID: fmt.Sprintf("id%d", i), Names: []string{host(i)}})
	}
	for i := 1; i < events; i++ {
		publish(m.Record(fmt.Sprintf("id%d", i%certs), cert.Record{Event: cert.Scheduled, Current: bundles[i%certs]}))
	}
	<-js.PublishAsyncComplete()
	before := heap()
	defer reportCPU(b)()
	for b.Loop() {
		r := open(b, cert.Options{Key: key, Dir: storeDir(b)}).run(b, s.ClientURL())
		waitFor(b, "all events", func() bool { return r.Seq("web") == events && len(r.Certificates()) == certs })
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB-live")
		r.stop()
	}
}

// reportCPU reports what all threads needed for an operation, which, unlike the time
// that passed, does not depend on what else the machine does.
func reportCPU(b *testing.B) (stop func()) {
	began := cpu()
	return func() { b.ReportMetric(float64(cpu()-began)/float64(b.N), "cpu-ns/op") }
}

func cpu() int64 {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u) // it fails for wrong arguments alone
	return u.Utime.Nano() + u.Stime.Nano()
}

// heap is what is in use, in bytes.
func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// BenchmarkFanOut appends an obtained certificate, and waits until 1,000 stores of a
// group serve it.
func BenchmarkFanOut(b *testing.B) {
	const stores = 1_000
	bus := newBus(b)
	var all []*runner
	for i := range stores {
		key := bus.target(fmt.Sprintf("lb%d", i))
		all = append(all, open(b, cert.Options{Key: key}))
	}
	reports := make(chan *nats.Msg, 10*stores)
	sub := must(bus.nc.ChanSubscribe(cert.ReportPrefix+".>", reports))(b)
	defer sub.Unsubscribe()
	reported := func(generation uint64) { // by all
		for from := map[string]bool{}; len(from) < stores; {
			msg := <-reports
			var seen cert.Seen
			_, payload, _ := bytes.Cut(msg.Data, []byte("\n"))
			if err := json.Unmarshal(payload, &seen); err != nil || seen.Error != "" {
				b.Fatalf("%v %+v", err, seen)
			}
			if seen.Generation == generation {
				from[seen.Target] = true
			}
		}
	}
	bus.publish(bus.Obtained(certtest.Request{ID: "a", Names: []string{"a.example"}}))
	for i, r := range all { // not all at once: that is another story
		r.run(b, bus.server.ClientURL())
		if i >= 20 {
			waitFor(b, "the first generation", func() bool { return all[i-20].generation("a") == 1 })
		}
	}
	reported(1)
	size, goroutines := float64(heap())/stores/1024, float64(runtime.NumGoroutine())/stores
	defer reportCPU(b)()
	var took []time.Duration
	generation := uint64(1)
	for b.Loop() {
		generation++
		bundle := bus.Issue(certtest.Request{ID: "a", Names: []string{"a.example"}, Generation: generation})
		e := bus.Record("a", cert.Record{Event: cert.Obtained, Current: bundle})
		waiting := slices.Clone(all)
		began := time.Now()
		bus.publish(e)
		for len(waiting) > 0 {
			waiting = slices.DeleteFunc(waiting, func(r *runner) bool {
				c, _ := r.GetCertificate(&tls.ClientHelloInfo{ServerName: "a.example"})
				if c.Leaf.SerialNumber.Text(16) != bundle.Serial {
					return false
				}
				took = append(took, time.Since(began))
				return true
			})
			time.Sleep(2 * time.Millisecond)
		}
		reported(generation)
	}
	b.ReportMetric(size, "KiB/store")
	b.ReportMetric(goroutines, "goroutines/store")
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Milliseconds()), "ms-p50")
	b.ReportMetric(float64(took[len(took)*99/100].Milliseconds()), "ms-p99")
	b.ReportMetric(float64(took[len(took)-1].Milliseconds()), "ms-max")
}
