package postgres_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus"
	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/postgres"
	"github.com/fleetbus/fleetbus/change/postgres/postgrestest"
	"github.com/fleetbus/fleetbus/fleetbustest"
	"github.com/fleetbus/fleetbus/identity"
)

// The benchmarks compare with a peer in the same run. Each does a fixed amount of
// work: run them with -benchtime 1x.

// fleet is three nodes with mutual TLS between them.
func fleet(b *testing.B) []*fleetbustest.Server {
	return fleetbustest.StartCluster(b, 3, func(o *fleetbus.Options) { o.Accounts = []string{"shop"} })
}

func percentile(took []time.Duration, p float64) float64 {
	slices.Sort(took)
	return float64(took[int(p*float64(len(took)-1))]) / float64(time.Millisecond)
}

// runSource runs a source on the first node until the benchmark ends.
func runSource(b *testing.B, node *fleetbustest.Server, dsn string) (stop func()) {
	b.Helper()
	session, err := node.Session(b.Context(), identity.Principal{Account: "shop", Name: "source"})
	if err != nil {
		b.Fatal(err)
	}
	p, err := change.NewPublisher(b.Context(), session.Conn, "db", change.PublisherOptions{Widen: true})
	if err != nil {
		b.Fatal(err)
	}
	source, err := postgres.New(postgres.Options{DSN: dsn})
	if err != nil {
		b.Fatal(err)
	}
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- source.Run(ctx, p) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
		p.Close()
		session.Close()
	}
}

// BenchmarkCommitToHandler measures from before an INSERT is sent, its commit
// included, until a watcher at the third node has the notice, and until a LISTEN
// of the same process has it. 500 rows a second.
func BenchmarkCommitToHandler(b *testing.B) {
	pg := postgrestest.Start(b, "wal_level=logical")
	pg.Exec(`CREATE TABLE rows (id bigint PRIMARY KEY)`, `CREATE TABLE notified (id bigint PRIMARY KEY)`,
		`CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_notify('rows', NEW.id::text); RETURN NEW; END $$`,
		`CREATE TRIGGER tell AFTER INSERT ON notified FOR EACH ROW EXECUTE FUNCTION tell()`)
	nodes := fleet(b)
	w, err := change.NewWatcher(b.Context(), nodes[2].Dial("shop", "watcher"), "db", "rows.*", change.WatcherOptions{Jitter: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	stop := runSource(b, nodes[0], pg.DSN)
	defer stop()
	for n := (change.Notice{}); n.Reason != change.Announced; {
		if n, err = w.Next(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	listener := pg.Connect()
	defer listener.Close(b.Context())
	if _, err := listener.Exec(b.Context(), "LISTEN rows"); err != nil {
		b.Fatal(err)
	}
	const rows, rounds = 500, 5
	var sent [2][rows * rounds]time.Time
	var took [2][]time.Duration
	conn := pg.Connect()
	defer conn.Close(b.Context())
	for b.Loop() {
		for i := range rows * rounds * 2 {
			which, id := i/rows%2, i/(2*rows)*rows+i%rows
			began := time.Now()
			sent[which][id] = began
			if _, err := conn.Exec(b.Context(), fmt.Sprintf("INSERT INTO %s VALUES ($1)", []string{"rows", "notified"}[which]), id); err != nil {
				b.Fatal(err)
			}
			got := id
			if which == 0 {
				n, err := w.Next(b.Context())
				// A notice may come twice.
				for ; err == nil && (n.Kind != change.Insert || n.Key[1] != strconv.Itoa(id)); n, err = w.Next(b.Context()) {
				}
				if err != nil {
					b.Fatal(err)
				}
			} else {
				n, err := listener.WaitForNotification(b.Context())
				if err != nil {
					b.Fatal(err)
				}
				got, _ = strconv.Atoi(n.Payload)
			}
			took[which] = append(took[which], time.Since(sent[which][got]))
			time.Sleep(time.Until(began.Add(2 * time.Millisecond)))
		}
	}
	for i, name := range []string{"ours", "notify"} {
		b.ReportMetric(percentile(took[i], 0.5), name+"-p50-ms")
		b.ReportMetric(percentile(took[i], 0.99), name+"-p99-ms")
	}
}

// BenchmarkWriters measures 32 writers that insert and commit one row at a time:
// without anything, with our source, and with a NOTIFY in each transaction.
func BenchmarkWriters(b *testing.B) {
	pg := postgrestest.Start(b, "wal_level=logical")
	pg.Exec(`CREATE TABLE rows (id bigserial PRIMARY KEY, v text)`)
	nodes := fleet(b)
	const writers, round, rounds = 32, 2 * time.Second, 5
	config, err := pgxpool.ParseConfig(pg.DSN)
	if err != nil {
		b.Fatal(err)
	}
	config.MaxConns = writers
	db, err := pgxpool.NewWithConfig(b.Context(), config)
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	load := func(notify bool) float64 {
		ctx, cancel := context.WithTimeout(b.Context(), round)
		defer cancel()
		var done atomic.Int64
		var all sync.WaitGroup
		began := time.Now()
		for range writers {
			all.Go(func() {
				for ctx.Err() == nil {
					err := pgx.BeginFunc(b.Context(), db, func(tx pgx.Tx) error {
						_, err := tx.Exec(b.Context(), "INSERT INTO rows (v) VALUES ('a value of some length, as rows have them')")
						if err == nil && notify {
							_, err = tx.Exec(b.Context(), "SELECT pg_notify('rows', 'x')")
						}
						return err
					})
					if err != nil {
						b.Error(err)
						return
					}
					done.Add(1)
				}
			})
		}
		all.Wait()
		return float64(done.Load()) / time.Since(began).Seconds()
	}
	var plain, ours, notify []float64
	for b.Loop() {
		load(false)
		for range rounds {
			plain = append(plain, load(false))
			stop := runSource(b, nodes[0], pg.DSN)
			ours = append(ours, load(false))
			stop()
			notify = append(notify, load(true))
		}
	}
	median := func(ours, peer []float64) float64 {
		ratios := make([]float64, len(ours))
		for i := range ours {
			ratios[i] = ours[i] / peer[i]
		}
		slices.Sort(ratios)
		return ratios[len(ratios)/2]
	}
	slices.Sort(plain)
	b.ReportMetric(plain[len(plain)/2], "plain-tx/s")
	b.ReportMetric(median(ours, plain), "ours-ratio")
	b.ReportMetric(median(notify, plain), "notify-ratio")
}

// BenchmarkAnnounce measures from Announce to the watcher at another node, and
// the same for a bare publish of as many bytes.
func BenchmarkAnnounce(b *testing.B) {
	nodes := fleet(b)
	pub, sub := nodes[0].Dial("shop", "announcer"), nodes[2].Dial("shop", "watcher")
	p, err := change.NewPublisher(b.Context(), pub, "db", change.PublisherOptions{})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	w, err := change.NewWatcher(b.Context(), sub, "db", "", change.WatcherOptions{Jitter: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	bare, err := sub.SubscribeSync("bare.>")
	if err != nil {
		b.Fatal(err)
	}
	if err := sub.Flush(); err != nil {
		b.Fatal(err)
	}
	const each, rounds = 200, 15
	var took [2][]time.Duration
	payload := make([]byte, 150)
	for b.Loop() {
		for i := range each * rounds * 2 {
			which := i / each % 2
			began := time.Now()
			if which == 0 {
				if err := p.Announce(change.Notice{Key: change.Key{"rows", strconv.Itoa(i)}, Kind: change.Update, Version: uint64(i + 1)}); err != nil {
					b.Fatal(err)
				}
				n, err := w.Next(b.Context())
				for ; err == nil && (n.Kind == change.Resync || n.Version != uint64(i+1)); n, err = w.Next(b.Context()) {
				}
				if err != nil {
					b.Fatal(err)
				}
			} else {
				if err := pub.Publish("bare.rows."+strconv.Itoa(i), payload); err != nil {
					b.Fatal(err)
				}
				if _, err := bare.NextMsgWithContext(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			took[which] = append(took[which], time.Since(began))
			time.Sleep(time.Until(began.Add(2 * time.Millisecond)))
		}
	}
	ours, peer := percentile(took[0], 0.99), percentile(took[1], 0.99)
	b.ReportMetric(ours, "ours-p99-ms")
	b.ReportMetric(peer, "bare-p99-ms")
	b.ReportMetric(ours/peer, "p99-ratio")
	b.ReportMetric(percentile(took[0], 0.5)/percentile(took[1], 0.5), "p50-ratio")
}

// BenchmarkThroughput measures notices through one watcher at another node, with
// nothing merged, and bare messages of the same size and subjects.
func BenchmarkThroughput(b *testing.B) {
	nodes := fleet(b)
	pub, sub := nodes[0].Dial("shop", "announcer"), nodes[2].Dial("shop", "watcher")
	p, err := change.NewPublisher(b.Context(), pub, "db", change.PublisherOptions{Window: -1})
	if err != nil {
		b.Fatal(err)
	}
	defer p.Close()
	const round, rounds, ahead = 50_000, 10, 8192
	w, err := change.NewWatcher(b.Context(), sub, "db", "", change.WatcherOptions{Jitter: -1, Pending: 4 * ahead, Reconcile: time.Hour})
	if err != nil {
		b.Fatal(err)
	}
	defer w.Close()
	// What it looks up at first is behind it.
	time.Sleep(5 * time.Second)
	bare := make(chan *nats.Msg, 2*ahead)
	if _, err := sub.ChanSubscribe("bare.>", bare); err != nil {
		b.Fatal(err)
	}
	if err := sub.Flush(); err != nil {
		b.Fatal(err)
	}
	// pump sends a round with so many under way that nothing is dropped.
	pump := func(send func(int) error, receive func() error) float64 {
		tokens := make(chan struct{}, ahead)
		began := time.Now()
		go func() {
			for i := range round {
				tokens <- struct{}{}
				if err := send(i); err != nil {
					b.Error(err)
				}
			}
		}()
		for range round {
			if err := receive(); err != nil {
				b.Fatal(err)
			}
			<-tokens
		}
		return round / time.Since(began).Seconds()
	}
	var rates [2][]float64
	payload := make([]byte, 150)
	for b.Loop() {
		for r := range rounds {
			base := rand.IntN(1 << 30)
			rates[0] = append(rates[0], pump(func(i int) error {
				return p.Announce(change.Notice{Key: change.Key{"rows", strconv.Itoa(base + i)}, Kind: change.Update, Version: uint64(r*round + i + 1)})
			}, func() error {
				for {
					n, err := w.Next(b.Context())
					if err != nil || n.Kind != change.Resync {
						return err
					}
				}
			}))
			rates[1] = append(rates[1], pump(func(i int) error { return pub.Publish("bare.rows."+strconv.Itoa(base+i), payload) }, func() error {
				select {
				case <-bare:
					return nil
				case <-b.Context().Done():
					return b.Context().Err()
				}
			}))
		}
	}
	for i := range rates {
		slices.Sort(rates[i])
	}
	b.ReportMetric(rates[0][rounds/2], "ours/s")
	b.ReportMetric(rates[1][rounds/2], "bare/s")
	b.ReportMetric(rates[0][rounds/2]/rates[1][rounds/2], "ratio")
}

// BenchmarkWatchers measures the memory of 10,000 watchers over one connection to
// one node, on both ends: heap and stacks.
func BenchmarkWatchers(b *testing.B) {
	node := fleetbustest.Start(b, func(o *fleetbus.Options) { o.Accounts = []string{"shop"} })
	nc := node.Dial("shop", "watcher")
	memory := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc + m.StackInuse
	}
	const many = 10_000
	for b.Loop() {
		before := memory()
		watchers := make([]*change.Watcher, many)
		for i := range watchers {
			w, err := change.NewWatcher(b.Context(), nc, "db", "rows."+strconv.Itoa(i), change.WatcherOptions{})
			if err != nil {
				b.Fatal(err)
			}
			watchers[i] = w
			if _, err := w.Next(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(memory()-before)/many/1024, "KiB/watcher")
		for _, w := range watchers {
			w.Close()
		}
	}
}
