package postgres

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pglogrepl"
	"github.com/jackc/pgx/v5"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/change/changetest"
	"github.com/fleetbus/fleetbus/change/postgres/postgrestest"
	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

// TestFaults writes to a real PostgreSQL while links break, nodes restart, the
// database is killed, the source is stopped and watchers fall asleep, at random.
// However it goes, every watcher is told of every change, or to look again.
//
// FLEETBUS_FAULTS is how many faults there are, and FLEETBUS_SEED which.
func TestFaults(t *testing.T) {
	faults, seed := 20, uint64(time.Now().UnixNano())
	if n, err := strconv.Atoi(os.Getenv("FLEETBUS_FAULTS")); err == nil {
		faults = n
	}
	if n, err := strconv.ParseUint(os.Getenv("FLEETBUS_SEED"), 10, 64); err == nil {
		seed = n
	}
	t.Logf("%d faults of seed %d", faults, seed)
	w := newWorld(t, rand.New(rand.NewPCG(seed, 0)))
	for i := range faults {
		what := w.fault()
		t.Logf("fault %d: %s", i, what)
		if i%25 == 24 {
			w.judge()
		}
	}
	w.judge()
	w.mu.Lock()
	defer w.mu.Unlock()
	told := 0
	for _, l := range w.listeners {
		l.mu.Lock()
		told += len(l.notices)
		l.mu.Unlock()
	}
	t.Logf("%d changes, %d notices to %d watchers, 0 missed", w.written, told, len(w.listeners))
}

// world is everything that can break.
type world struct {
	t     *testing.T
	rand  *rand.Rand
	pg    *postgrestest.Server
	nodes []*node

	sourceConn *nats.Conn
	stopSource func()
	listeners  []*listener

	mu      sync.Mutex
	written int
	open    []written // not judged yet
	pause   sync.Mutex
}

// written is one committed change: its key, where the log stood before, and
// where each watcher stood after.
type written struct {
	key    string
	before uint64
	places []int
}

func newWorld(t *testing.T, r *rand.Rand) *world {
	w := &world{t: t, rand: r, pg: postgrestest.Start(t, "wal_level=logical")}
	w.pg.Exec(`CREATE TABLE rows (id bigint PRIMARY KEY, n int)`, `INSERT INTO rows SELECT -i, 0 FROM generate_series(1, 20) i`)
	w.nodes = startNodes(t)
	w.startSource()
	t.Cleanup(func() { w.stopSource() })
	for i := range 3 {
		w.listeners = append(w.listeners, w.listen(i))
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		w.write(ctx)
	}()
	t.Cleanup(func() { stop(); <-done })
	return w
}

// listener is a watcher whose reader may fall asleep.
type listener struct {
	nc      *nats.Conn
	mu      sync.Mutex
	notices []change.Notice
	asleep  sync.Mutex
}

func (w *world) connect(i int) *nats.Conn {
	nc, err := nats.Connect(w.nodes[i].url(), nats.MaxReconnects(-1), nats.ReconnectWait(50*time.Millisecond), nats.RetryOnFailedConnect(true),
		nats.IgnoreDiscoveredServers(), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(nc.Close)
	return nc
}

func (w *world) listen(i int) *listener {
	l := &listener{nc: w.connect(i)}
	watcher, err := change.NewWatcher(within(w.t), l.nc, "db", "", change.WatcherOptions{Jitter: -1, Reconcile: time.Second, Pending: 64})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(watcher.Close)
	go func() {
		for {
			func() {
				l.asleep.Lock()
				defer l.asleep.Unlock()
			}()
			n, err := watcher.Next(w.t.Context())
			if err != nil {
				return
			}
			l.mu.Lock()
			l.notices = append(l.notices, n)
			l.mu.Unlock()
		}
	}()
	return l
}

// startSource runs the source as a fleet would: again when it fails.
func (w *world) startSource() {
	nc := w.connect(0)
	w.sourceConn = nc
	var p *change.Publisher
	for {
		// There may be no leader now.
		var err error
		p, err = change.NewPublisher(w.t.Context(), nc, "db", change.PublisherOptions{Widen: true, Window: 20 * time.Millisecond, Burst: 20})
		if err == nil {
			break
		}
		if w.t.Context().Err() != nil {
			w.t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(w.t.Context())
	done := make(chan struct{})
	s := source(w.t, Options{DSN: w.pg.DSN})
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			_ = s.Run(ctx, p)
			select {
			case <-ctx.Done():
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	w.stopSource = func() { stop(); <-done; p.Close(); nc.Close() }
}

// write changes rows until ctx is done: new ones, and twenty again and again.
func (w *world) write(ctx context.Context) {
	r := rand.New(rand.NewPCG(7, 7))
	for id := 1; ctx.Err() == nil; id++ {
		statement, key := fmt.Sprintf("INSERT INTO rows VALUES (%d, 0)", id), strconv.Itoa(id)
		if r.IntN(3) == 0 {
			key = strconv.Itoa(-1 - r.IntN(20))
			statement = "UPDATE rows SET n = n + 1 WHERE id = " + key
		}
		w.pause.Lock()
		w.commit(ctx, statement, change.Key{"rows", key}.String())
		w.pause.Unlock()
		select {
		case <-ctx.Done():
		case <-time.After(time.Duration(r.IntN(10)) * time.Millisecond):
		}
	}
}

// commit does one change; one that failed may have been made, and is nobody's
// promise.
func (w *world) commit(ctx context.Context, statement string, keys ...string) {
	conn, err := pgx.Connect(ctx, w.pg.DSN)
	if err != nil {
		return
	}
	defer conn.Close(context.WithoutCancel(ctx))
	var text string
	if conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&text) != nil {
		return
	}
	before, err := pglogrepl.ParseLSN(text)
	if err != nil {
		return
	}
	if _, err := conn.Exec(ctx, statement); err != nil {
		return
	}
	var places []int
	for _, l := range w.listeners {
		l.mu.Lock()
		places = append(places, len(l.notices))
		l.mu.Unlock()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, key := range keys {
		w.written++
		w.open = append(w.open, written{key, uint64(before), places})
	}
}

// fault breaks one thing, and mends it.
func (w *world) fault() string {
	wait := func(most int) { time.Sleep(time.Duration(w.rand.IntN(most)) * time.Millisecond) }
	k := w.rand.IntN(3)
	wait(200)
	switch n := w.rand.IntN(100); {
	case n < 35:
		w.nodes[k].cut(true)
		wait(600)
		w.nodes[k].cut(false)
		return fmt.Sprintf("the links to node %d were cut", k)
	case n < 55:
		w.drop(w.listeners[k].nc)
		return fmt.Sprintf("watcher %d lost its connection", k)
	case n < 65:
		w.drop(w.sourceConn)
		return "the source lost its connection"
	case n < 75:
		w.stopSource()
		wait(300)
		w.startSource()
		return "the source was stopped and started"
	case n < 85:
		w.listeners[k].asleep.Lock()
		wait(1000)
		w.listeners[k].asleep.Unlock()
		return fmt.Sprintf("the reader of watcher %d slept", k)
	case n < 93:
		w.burst()
		return "many rows changed at once"
	case n < 97:
		w.pg.Kill()
		wait(300)
		w.pg.Restart()
		return "the database was killed"
	default:
		w.nodes[k].restart()
		return fmt.Sprintf("node %d was restarted", k)
	}
}

func (w *world) burst() {
	w.pause.Lock()
	defer w.pause.Unlock()
	first := 1_000_000 + w.rand.IntN(1<<40)
	var keys []string
	for i := range 300 {
		keys = append(keys, change.Key{"rows", strconv.Itoa(first + i)}.String())
	}
	w.commit(within(w.t), fmt.Sprintf("INSERT INTO rows SELECT %d + i, 0 FROM generate_series(0, 299) i", first), keys...)
}

// drop has a server close the connection of nc, with what is in it.
func (w *world) drop(nc *nats.Conn) {
	id, err := nc.GetClientID()
	if err != nil {
		return
	}
	for _, n := range w.nodes {
		if n.server != nil && n.server.Name() == nc.ConnectedServerName() {
			_ = n.server.DisconnectClientByID(id)
		}
	}
}

// judge waits until every watcher is told of every change until now.
func (w *world) judge() {
	w.t.Helper()
	w.mu.Lock()
	open := w.open
	w.open = nil
	w.mu.Unlock()
	for i, l := range w.listeners {
		missing := open
		told := await.True(changetest.Patience, func() bool {
			l.mu.Lock()
			notices := slices.Clone(l.notices)
			l.mu.Unlock()
			index := map[string]uint64{}
			for _, n := range notices {
				index[n.Key.String()] = max(index[n.Key.String()], n.Version)
			}
			missing = slices.DeleteFunc(slices.Clone(missing), func(c written) bool { return index[c.key] > c.before || resynced(notices, c, i) })
			return len(missing) == 0
		})
		if !told {
			w.t.Fatalf("watcher %d was not told of %d of %d changes, %s among them, nor to look again", i, len(missing), len(open), missing[0].key)
		}
	}
}

// resynced reports whether watcher i was told to look again after a change.
func resynced(notices []change.Notice, c written, i int) bool {
	for at := len(notices) - 1; at >= 0; at-- {
		n := notices[at]
		if n.Kind == change.Resync && (at >= c.places[i] || n.Version > c.before) && (len(n.Key) == 0 || n.Key[0] == "rows" && len(n.Key) == 1) {
			return true
		}
	}
	return false
}

// node is a server of the cluster, whose links from others go through a relay
// that can be cut.
type node struct {
	t       *testing.T
	options server.Options
	server  *server.Server
	relay   net.Listener

	mu      sync.Mutex
	target  string
	severed bool
	conns   []net.Conn
}

func startNodes(t *testing.T) []*node {
	var all []*node
	for i := range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		n := &node{t: t, relay: ln}
		n.options = server.Options{ServerName: fmt.Sprint("s", i), Host: "127.0.0.1", Port: loopback.Port(t), JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true}
		n.options.Cluster = server.ClusterOpts{Name: "test", Host: "127.0.0.1", Port: loopback.Port(t), Advertise: ln.Addr().String()}
		all = append(all, n)
		go n.serve()
		t.Cleanup(func() { ln.Close(); n.cut(true) })
	}
	for _, n := range all {
		for _, other := range all {
			if other != n {
				n.options.Routes = append(n.options.Routes, &url.URL{Scheme: "nats-route", Host: other.relay.Addr().String()})
			}
		}
		n.start()
	}
	waitFor(t, "a leader of the cluster", func() bool {
		return slices.ContainsFunc(all, func(n *node) bool { return n.server.JetStreamIsLeader() && len(n.server.JetStreamClusterPeers()) == 3 })
	})
	return all
}

func (n *node) start() {
	o := n.options
	s, err := server.NewServer(&o)
	if err != nil {
		n.t.Fatal(err)
	}
	s.Start()
	n.t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(60 * time.Second) {
		n.t.Fatal("a server is not ready")
	}
	n.server = s
	n.mu.Lock()
	n.target = s.ClusterAddr().String()
	n.mu.Unlock()
}

func (n *node) restart() {
	n.server.Shutdown()
	n.server.WaitForShutdown()
	n.start()
}

func (n *node) url() string { return fmt.Sprintf("nats://127.0.0.1:%d", n.options.Port) }

// serve relays connections to the server.
func (n *node) serve() {
	for {
		in, err := n.relay.Accept()
		if err != nil {
			return
		}
		n.mu.Lock()
		target, severed := n.target, n.severed
		n.mu.Unlock()
		if severed || target == "" {
			in.Close()
			continue
		}
		out, err := net.Dial("tcp", target)
		if err != nil {
			in.Close()
			continue
		}
		n.mu.Lock()
		n.conns = append(n.conns, in, out)
		n.mu.Unlock()
		for _, pair := range [][2]net.Conn{{in, out}, {out, in}} {
			go func() {
				_, _ = io.Copy(pair[0], pair[1])
				pair[0].Close()
				pair[1].Close()
			}()
		}
	}
}

// cut closes what goes through the relay, and lets nothing through until it is
// mended.
func (n *node) cut(severed bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.severed = severed
	if severed {
		for _, c := range n.conns {
			c.Close()
		}
		n.conns = nil
	}
}
