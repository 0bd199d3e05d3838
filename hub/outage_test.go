package hub

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change"
	"github.com/fleetbus/fleetbus/internal/await"
)

// account says of what one node heard of count messages of each of the others: how
// many are missing, how many came twice, and how many came behind a later one.
func account(heard []string, count int, others []string) (missing, twice, late int) {
	seen, last := map[string]int{}, map[string]int{}
	for _, payload := range heard {
		node, digits, _ := strings.Cut(payload, " ")
		var i int
		fmt.Sscan(digits, &i)
		if seen[payload]++; seen[payload] > 1 {
			twice++
		} else if i < last[node] {
			late++
		}
		last[node] = max(last[node], i)
	}
	for _, node := range others {
		for i := range count {
			if seen[fmt.Sprintf("%s %d", node, i)] == 0 {
				missing++
			}
		}
	}
	return missing, twice, late
}

// TestHubDies kills the hub with nothing of it left, again and again, while all nodes
// publish.
func TestHubDies(t *testing.T) {
	m := startMosquitto(t, true)
	nodes := three(t, m)
	names := []string{"n1", "n2", "n3"}
	var heard []*listener
	for _, n := range nodes {
		heard = append(heard, n.listen("orders.>"))
	}
	const count = 1500
	var publishing sync.WaitGroup
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, n := range nodes {
		js := n.jetstream()
		publishing.Go(func() {
			for i := range count {
				if _, err := js.Publish(ctx, "orders."+n.name, fmt.Appendf(nil, "%s %d", n.name, i)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	reached := func(n int) {
		t.Helper()
		await.Nil(t, fmt.Sprint(n, " messages come"), func() error {
			if got := len(heard[0].payloads()); got < n {
				return fmt.Errorf("%d messages", got)
			}
			return nil
		})
	}
	for i := range 3 {
		reached(count/4 + i*count/3)
		m.kill()
		m.start()
	}
	publishing.Wait()
	for i, l := range heard {
		await.Nil(t, "everything comes", func() error {
			if missing, _, _ := account(l.payloads(), count, names); missing > 0 {
				return fmt.Errorf("%s lacks %d: %+v", names[i], missing, nodes[i].link.Hub())
			}
			return nil
		})
		missing, twice, late := account(l.payloads(), count, names)
		t.Logf("%s: %d missing, %d twice, %d out of order; %+v", names[i], missing, twice, late, nodes[i].link.Hub())
		if twice > 0 || late > 0 {
			t.Errorf("%s heard %d messages twice, and %d out of order", names[i], twice, late)
		}
		if h := nodes[i].link.Hub(); h.Lost != 0 {
			t.Errorf("%+v", h)
		}
	}
}

// TestNodeRestarts ends nodes with messages on their disks while the hub is away.
func TestNodeRestarts(t *testing.T) {
	m := startMosquitto(t, false)
	nodes := three(t, m)
	heard := []*listener{nodes[0].listen("orders.>"), nodes[1].listen("orders.>"), nodes[2].listen("orders.>")}
	m.kill()
	js := nodes[0].jetstream()
	for i := range 100 {
		nodes[0].publish(js, "orders.a", fmt.Sprintf("n1 %d", i))
	}
	nodes[0].halt()
	for i := 100; i < 200; i++ { // the queue is the engine's, and needs no link
		nodes[0].publish(js, "orders.a", fmt.Sprintf("n1 %d", i))
	}
	m.start()
	nodes[1].halt()
	nodes[0].run()
	await.Nil(t, "the third node has all", func() error {
		if missing, _, _ := account(heard[2].payloads(), 200, []string{"n1"}); missing > 0 {
			return fmt.Errorf("%d are missing: %+v", missing, nodes[2].link.Hub())
		}
		return nil
	})
	nodes[1].run()
	await.Nil(t, "who was away has all", func() error {
		if missing, _, _ := account(heard[1].payloads(), 200, []string{"n1"}); missing > 0 {
			return fmt.Errorf("%d are missing: %+v", missing, nodes[1].link.Hub())
		}
		return nil
	})
	for i, l := range heard {
		if missing, twice, late := account(l.payloads(), 200, []string{"n1"}); missing+twice+late > 0 {
			t.Errorf("node %d: %d missing, %d twice, %d late", i+1, missing, twice, late)
		}
	}
	// What all have is kept no longer.
	nodes[1].publish(nodes[1].jetstream(), "orders.b", "n2 0")
	for _, n := range nodes {
		js := n.jetstream()
		await.Nil(t, "the queue is empty", func() error {
			s, err := js.Stream(t.Context(), Stream)
			if err != nil {
				return err
			}
			if state := s.CachedInfo().State; state.Msgs > 0 || state.LastSeq < 200 {
				return fmt.Errorf("that of %s has %d messages up to %d", n.name, state.Msgs, state.LastSeq)
			}
			return nil
		})
	}
}

// TestChangesPass announces changes at one node, and watches them at another, which
// is away meanwhile.
func TestChangesPass(t *testing.T) {
	m := startMosquitto(t, true)
	nodes := three(t, m)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	publisher, err := change.NewPublisher(ctx, nodes[0].bus.Connect(), "crm", change.PublisherOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer publisher.Close()
	watch := func(nc *nats.Conn) *change.Watcher {
		w, err := change.NewWatcher(ctx, nc, "crm", "", change.WatcherOptions{Jitter: -1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(w.Close)
		return w
	}
	expect := func(w *change.Watcher, want ...string) {
		t.Helper()
		for len(want) > 0 {
			n, err := w.Next(ctx)
			if err != nil {
				t.Fatalf("waiting for %q: %v", want, err)
			}
			got := fmt.Sprintf("%s %s %s", n.Kind, n.Key, n.Reason)
			i := slices.Index(want, strings.TrimSpace(got))
			if i < 0 {
				t.Fatalf("heard %q, and waited for %q", got, want)
			}
			want = slices.Delete(want, i, i+1)
		}
	}
	w := watch(nodes[1].bus.Connect())
	expect(w, "resync  started")
	for _, n := range []change.Notice{{Key: change.Key{"customers", "42"}, Kind: change.Update}, {Key: change.Key{"a b", "é"}, Kind: change.Insert}, {Key: change.Key{"orders"}, Kind: change.Resync}} {
		if err := publisher.Announce(n); err != nil {
			t.Fatal(err)
		}
	}
	expect(w, "update customers.42", "insert a%20b.%C3%A9", "resync orders announced")
	// A client of the hub's says something without any library.
	foreign := dialForeign(t, m)
	foreign.publish("fleetbus/acme/change/crm/customers/7", "")
	expect(w, "update customers.7")
	w2 := watch(nodes[0].bus.Connect())
	expect(w2, "resync  started")
	foreign.publish("fleetbus/acme/change/crm/customers/8", `{"kind":"delete"}`)
	expect(w2, "delete customers.8")
	expect(w, "delete customers.8")
	// The history has it too.
	await.Nil(t, "the third node remembers", func() error {
		js := nodes[2].jetstream()
		s, err := js.Stream(ctx, change.History)
		if err != nil {
			return err
		}
		_, err = s.GetLastMsgForSubject(ctx, "announced.crm.customers.42")
		return err
	})
	// What only the history got before the node died is found there.
	nodes[0].halt()
	nodes[0].publish(nodes[0].jetstream(), "announced.crm.customers.9", `{"kind":"update"}`)
	nodes[0].publish(nodes[0].jetstream(), "announced.crm.%any.suppliers", `{"kind":"resync","key":"suppliers"}`)
	nodes[0].run()
	for missing := 2; missing > 0; { // and some come again
		n, err := w.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if key := n.Key.String(); key == "customers.9" || key == "suppliers" && n.Kind == change.Resync {
			missing--
		}
	}
	// A queue that nobody reads is no reason to wait.
	if h := nodes[1].link.Hub(); h.State != "connected" || time.Since(h.Since) > patience {
		t.Errorf("%+v", h)
	}
}

// TestAwayTooLong has a node stay away for longer than anybody keeps anything for it:
// it knows so, and its watchers look again.
func TestAwayTooLong(t *testing.T) {
	m := startMosquitto(t, false)
	o1, o2 := m.options("n1"), m.options("n2")
	o1.SessionExpiry, o2.SessionExpiry = 2*time.Second, 2*time.Second
	n1, n2 := startNode(t, o1), startNode(t, o2)
	met(t, n1, n2)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	watcher, err := change.NewWatcher(ctx, n2.bus.Connect(), "crm", "", change.WatcherOptions{Jitter: -1})
	if err != nil {
		t.Fatal(err)
	}
	defer watcher.Close()
	next := func(want func(change.Notice) bool) {
		t.Helper()
		for {
			n, err := watcher.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			if want(n) {
				return
			}
		}
	}
	announcer := n1.bus.Connect()
	announce := func(key string) {
		t.Helper()
		if err := change.Announce(ctx, announcer, "crm", change.Notice{Key: change.Key{key}, Kind: change.Update}); err != nil {
			t.Fatal(err)
		}
	}
	announce("first")
	next(func(n change.Notice) bool { return n.Key.String() == "first" })
	n2.halt()
	announce("second")
	js := n1.jetstream()
	await.Nil(t, "n2 is forgotten", func() error {
		s, err := js.Stream(ctx, Stream)
		if err != nil {
			return err
		}
		if state := s.CachedInfo().State; state.Msgs > 0 || state.LastSeq < 2 {
			return fmt.Errorf("%+v", state)
		}
		return nil
	})
	m.kill() // and the hub has nothing either
	m.start()
	n2.run()
	next(func(n change.Notice) bool { return n.Kind == change.Resync && n.Reason == change.Announced })
	if err := finding(n2, "HUB-LOST", "session_expiry"); err != nil {
		t.Error(err)
	}
	// From then on all is well.
	announce("third")
	next(func(n change.Notice) bool { return n.Key.String() == "third" })
	if h := n2.link.Hub(); h.Lost != 1 {
		t.Errorf("%+v", h)
	}
}
