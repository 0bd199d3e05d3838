package change

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/internal/await"
)

func TestAnnounceAndHear(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{Epoch: "e1"})
	nc := connect(t, s.ClientURL())
	all, some, other := watch(t, nc, "orders", "", WatcherOptions{}), watch(t, nc, "orders", "customers.*", WatcherOptions{}), watch(t, nc, "bills", "", WatcherOptions{})

	announce(t, p, Insert, 7, "customers", "köln .*>")
	for _, w := range []*Watcher{all, some} {
		n := next(t, w)
		if n.Source != "orders" || n.Kind != Insert || !slices.Equal(n.Key, Key{"customers", "köln .*>"}) || n.Version != 7 || n.Epoch != "e1" ||
			n.Origin != p.Origin() || n.Count != 1 || n.Time.IsZero() || n.Late {
			t.Errorf("heard %+v", n)
		}
	}
	announce(t, p, Delete, 8, "carts", "1")
	if n := next(t, all); n.Kind != Delete || n.Key.String() != "carts.1" {
		t.Errorf("heard %+v", n)
	}
	announce(t, p, Resync, 9, "customers")
	for _, w := range []*Watcher{all, some} {
		if n := next(t, w); n.Kind != Resync || n.Key.String() != "customers" || n.Reason != Announced || n.Version != 9 {
			t.Errorf("heard %+v", n)
		}
	}
	announce(t, p, Update, 10, "customers", "end")
	if n := next(t, some); n.Key.String() != "customers.end" {
		t.Errorf("heard %+v, which it does not want", n)
	}
	flush(t, p)
	if stats := p.Stats(); stats.Announced != 4 || stats.Sent != 4 || stats.Recorded != 4 {
		t.Errorf("counted %+v", stats)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := other.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("heard %+v of another source: %v", n, err)
	}
}

func TestForeignClient(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	w := watch(t, nc, "orders", "", WatcherOptions{Reconcile: 50 * time.Millisecond})
	ack, err := nc.Request("announce.orders.customers.1", []byte(`{"kind":"insert","version":3}`), patience)
	if err != nil || !strings.Contains(string(ack.Data), `"seq":1`) {
		t.Fatalf("acknowledged by %q: %v", ack.Data, err)
	}
	if n := next(t, w); n.Kind != Insert || n.Version != 3 || n.Key.String() != "customers.1" || n.Late {
		t.Errorf("heard %+v", n)
	}
	// Heard by those who are there, and not recorded.
	if err := nc.Publish("change.orders.customers.2", nil); err != nil {
		t.Fatal(err)
	}
	heard := map[string]Kind{}
	for len(heard) < 1 || heard["customers.2"] == "" {
		n := next(t, w) // the first may be found once more, because it has no count
		heard[n.Key.String()] = n.Kind
	}
	if heard["customers.2"] != Update {
		t.Errorf("heard %v", heard)
	}
	if err := nc.Publish("change.orders.customers.3", []byte(`{"value":"secret"}`)); err != nil {
		t.Fatal(err)
	}
	for {
		n := next(t, w)
		if n.Key.String() == "customers.3" {
			if n.Kind != Resync || n.Reason != Unreadable {
				t.Errorf("heard %+v", n)
			}
			break
		}
	}
}

func TestOwnNotices(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p, q := publisher(t, nc, "orders", PublisherOptions{}), publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	quiet, all := watch(t, nc, "orders", "", WatcherOptions{}), watch(t, nc, "orders", "", WatcherOptions{Own: true})
	announce(t, p, Update, 0, "mine")
	flush(t, p)
	announce(t, q, Update, 0, "theirs")
	if n := next(t, quiet); n.Key.String() != "theirs" {
		t.Errorf("heard %+v", n)
	}
	if n := next(t, all); n.Key.String() != "mine" {
		t.Errorf("heard %+v", n)
	}
}

// TestTwoPublishers has one connection announce the same key twice.
func TestTwoPublishers(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p, q := publisher(t, nc, "orders", PublisherOptions{}), publisher(t, nc, "orders", PublisherOptions{})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{})
	announce(t, p, Update, 0, "k")
	next(t, w)
	announce(t, q, Update, 0, "k")
	if n := next(t, w); n.Origin != q.Origin() {
		t.Errorf("heard %+v", n)
	}
}

func TestRefused(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p := publisher(t, nc, "orders", PublisherOptions{})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{})
	secret := "-----BEGIN PRIVATE KEY-----\nplanted"
	for _, c := range []struct {
		n    Notice
		want error
	}{
		{Notice{Key: Key{"certs", secret}, Kind: Update}, ErrSecret},
		{Notice{Kind: Update}, ErrInvalid},
		{Notice{Key: Key{"a"}, Kind: "renamed"}, ErrInvalid},
		{Notice{Key: Key{"a"}}, ErrInvalid},
		{Notice{Key: Key{"a"}, Kind: Update, Epoch: "a value with spaces"}, ErrInvalid},
	} {
		if err := p.Announce(c.n); !errors.Is(err, c.want) || strings.Contains(err.Error(), "planted") {
			t.Errorf("%+v: %v", c.n, err)
		}
	}
	if stats := p.Stats(); stats.Refused != 1 || stats.Announced != 0 {
		t.Errorf("counted %+v", stats)
	}
	wide := publisher(t, nc, "orders", PublisherOptions{Widen: true})
	announce(t, wide, Update, 5, "certs", secret)
	if n := next(t, w); n.Kind != Resync || n.Key.String() != "certs" || n.Version != 5 {
		t.Errorf("heard %+v", n)
	}
	for _, source := range []string{"", "a b", "a.b", ">", strings.Repeat("x", 300)} {
		if _, err := NewPublisher(within(t), nc, source, PublisherOptions{}); !errors.Is(err, ErrInvalid) {
			t.Errorf("source %q: %v", source, err)
		}
		if _, err := NewWatcher(within(t), nc, source, "", WatcherOptions{}); err == nil {
			t.Errorf("source %q is watched", source)
		}
	}
	p.Close()
	if err := p.Announce(Notice{Key: Key{"a"}, Kind: Update}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if err := p.Flush(within(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestLongKey(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	w := watch(t, connect(t, s.ClientURL()), "orders", "notes.*", WatcherOptions{})
	announce(t, p, Update, 1, "notes", strings.Repeat("a long key ", 1000))
	if n := next(t, w); n.Kind != Resync || n.Key.String() != "notes" {
		t.Errorf("heard %+v", n)
	}
	announce(t, p, Update, 1, "notes", strings.Repeat("k", maxKey-len("notes.")))
	if n := next(t, w); n.Kind != Update {
		t.Errorf("heard %+v", n)
	}
}

func TestMerge(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{Window: time.Hour, Burst: 3})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{})
	for v := range uint64(10) {
		announce(t, p, Update, 10-v, "h", "hot") // the versions fall
	}
	if n := next(t, w); n.Version != 10 {
		t.Errorf("first heard %+v", n)
	}
	announce(t, p, Update, 20, "h", "hot")
	announce(t, p, Delete, 21, "h", "hot")
	announce(t, p, Update, 22, "a", "cold")
	if n := next(t, w); n.Key.String() != "a.cold" {
		t.Errorf("heard %+v: the first change of a key waits for nobody", n)
	}
	announce(t, p, Insert, 23, "a", "3")
	next(t, w)
	for i := range 1000 {
		announce(t, p, Insert, 24+uint64(i), "a", fmt.Sprint(i+4))
		announce(t, p, Insert, 24+uint64(i), "b", fmt.Sprint(i))
	}
	flush(t, p) // ends the window
	got := map[string]Notice{}
	for len(got) < 3 {
		n := next(t, w)
		got[fmt.Sprint(n.Kind, " ", n.Key)] = n
	}
	if n := got["delete h.hot"]; n.Version != 21 {
		t.Errorf("heard %+v", n)
	}
	for _, key := range []string{"resync a", "resync b"} {
		if n := got[key]; n.Version != 1023 {
			t.Errorf("%s: heard %+v", key, n)
		}
	}
	if stats := p.Stats(); stats.Sent != 6 {
		t.Errorf("counted %+v", stats)
	}
}

func TestUnmerged(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{Window: -1})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{Pending: 1 << 16})
	const many = 10_000
	for i := range many {
		announce(t, p, Update, uint64(i+1), "k", fmt.Sprint(i))
	}
	seen := map[string]bool{}
	for len(seen) < many {
		n := next(t, w)
		if n.Kind == Resync { // the queue of the subscription overflowed: the test outran it
			break
		}
		seen[n.Key.String()] = true
	}
	flush(t, p)
}

// TestSlowWatcher has a watcher that never reads, which is told to look again, and
// another that is not held up.
func TestSlowWatcher(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{Window: -1})
	slow, quick := watch(t, nc, "orders", "", WatcherOptions{Pending: 10}), watch(t, nc, "orders", "", WatcherOptions{})
	for i := range 1000 {
		announce(t, p, Update, uint64(i+1), "k", fmt.Sprint(i))
	}
	flush(t, p)
	announce(t, p, Update, 2000, "last")
	for n := next(t, quick); n.Key.String() != "last"; n = next(t, quick) {
	}
	overflow := false
	for range 11 {
		n := next(t, slow)
		if overflow = n.Kind == Resync && n.Key == nil && n.Reason == Overflow; overflow {
			break
		}
	}
	if !overflow {
		t.Error("it was not told to look again")
	}
}

func TestEpoch(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p := publisher(t, nc, "orders", PublisherOptions{Epoch: "one", Window: -1})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{})
	announce(t, p, Update, 100, "a")
	next(t, w)
	if err := p.Announce(Notice{Key: Key{"b"}, Kind: Update, Version: 1, Epoch: "two"}); err != nil {
		t.Fatal(err)
	}
	if n := next(t, w); n.Kind != Resync || n.Key != nil || n.Reason != EpochChanged {
		t.Errorf("heard %+v", n)
	}
	if n := next(t, w); n.Key.String() != "b" || n.Version != 1 {
		t.Errorf("heard %+v", n)
	}
}

// TestJitter has the watchers of a fleet read at different times.
func TestJitter(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{Jitter: time.Hour})
	announce(t, p, Resync, 1)
	announce(t, p, Update, 2, "k")
	if n := next(t, w); n.Key.String() != "k" {
		t.Errorf("heard %+v", n)
	}
	w.resync(nil, Overflow) // what is its own does not wait
	if n := next(t, w); n.Kind != Resync {
		t.Errorf("heard %+v", n)
	}
}

// TestFound has a watcher find in the history what never came its way.
func TestFound(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	w := watch(t, nc, "orders", "a.>", WatcherOptions{Reconcile: 50 * time.Millisecond})
	// Somebody who took the messages away on their way.
	for _, sub := range w.subs {
		if err := sub.Unsubscribe(); err != nil {
			t.Fatal(err)
		}
	}
	announce(t, p, Update, 1, "a", "1")
	announce(t, p, Update, 2, "b", "1")
	announce(t, p, Resync, 3, "a", "2")
	flush(t, p)
	got := map[string]bool{}
	for len(got) < 2 {
		n := next(t, w)
		if !n.Late {
			t.Errorf("heard %+v", n)
		}
		got[fmt.Sprint(n.Kind, " ", n.Key)] = true
	}
	if !got["update a.1"] || !got["resync a.2"] {
		t.Errorf("found %v", got)
	}
	for i := range mostLate + 10 {
		announce(t, p, Update, uint64(10+i), "a", fmt.Sprint("x", i))
	}
	flush(t, p)
	for n := next(t, w); n.Reason != Missed && n.Reason != Announced; n = next(t, w) {
	}
}

// TestHistoryLost has a watcher told that the history was made anew.
func TestHistoryLost(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	w := watch(t, nc, "orders", "", WatcherOptions{Reconcile: 50 * time.Millisecond})
	if err := p.js.DeleteStream(within(t), History); err != nil {
		t.Fatal(err)
	}
	announce(t, p, Update, 1, "while it was gone")
	if n := next(t, w); n.Key.String() == "" {
		t.Errorf("heard %+v", n)
	}
	if _, err := openHistory(within(t), nc); err != nil {
		t.Fatal(err)
	}
	if n := next(t, w); n.Kind != Resync || n.Reason != Missed {
		t.Errorf("heard %+v", n)
	}
	flush(t, p)
}

// TestRestart has the server of both gone for a while.
func TestRestart(t *testing.T) {
	dir := t.TempDir()
	s := startServer(t, server.Options{StoreDir: dir})
	port := s.Addr().(*net.TCPAddr).Port
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	w := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{})
	stopServer(s)
	for i := range 10 {
		announce(t, p, Update, uint64(i+1), "k", fmt.Sprint(i))
	}
	startServer(t, server.Options{StoreDir: dir, Port: port})
	flush(t, p)
	seen := map[string]bool{}
	for len(seen) < 10 {
		n := next(t, w)
		if n.Kind == Resync {
			break
		}
		seen[n.Key.String()] = true
	}
}

func TestClosedConnection(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	w := watch(t, nc, "orders", "", WatcherOptions{})
	nc.Close()
	if _, err := w.Next(within(t)); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("%v", err)
	}
	other := watch(t, connect(t, s.ClientURL()), "orders", "", WatcherOptions{})
	other.Close()
	if _, err := other.Next(within(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestWatchIterator(t *testing.T) {
	s := startServer(t, server.Options{})
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{})
	nc := connect(t, s.ClientURL())
	ctx, cancel := context.WithCancel(within(t))
	defer cancel()
	var heard []string
	for n, err := range Watch(ctx, nc, "orders", "k.*") {
		if err != nil {
			t.Fatal(err)
		}
		heard = append(heard, string(n.Kind))
		if n.Kind == Resync {
			announce(t, p, Insert, 1, "k", "1")
		}
		if n.Kind == Insert {
			cancel()
		}
	}
	if !slices.Equal(heard, []string{"resync", "insert"}) {
		t.Errorf("heard %v", heard)
	}
	for _, err := range Watch(t.Context(), nc, "no source", "") {
		if err == nil {
			t.Error("a source with a space is watched")
		}
	}
}

// TestManyWatchers has one goroutine each, and not one too many.
func TestManyWatchers(t *testing.T) {
	s := startServer(t, server.Options{})
	nc := connect(t, s.ClientURL())
	p := publisher(t, connect(t, s.ClientURL()), "orders", PublisherOptions{Window: -1})
	const many = 200
	var heard atomic.Int32
	for i := range many {
		w := watch(t, nc, "orders", fmt.Sprint("k.", i), WatcherOptions{})
		go func() {
			n, err := w.Next(t.Context())
			if err == nil && n.Kind == Update && n.Key.String() == fmt.Sprint("k.", i) {
				heard.Add(1)
			}
		}()
	}
	for i := range many {
		announce(t, p, Update, 1, "k", fmt.Sprint(i))
	}
	if !await.True(patience, func() bool { return heard.Load() == many }) {
		t.Errorf("%d of %d heard", heard.Load(), many)
	}
}
