package ledger

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/fleetbus/fleetbus/internal/await"
	"github.com/fleetbus/fleetbus/internal/loopback"
)

func TestAppend(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	ctx := within(t, 30*time.Second)

	first := mustAppend(t, l, "user.orders.ann", 0, "v1")
	other := mustAppend(t, l, "user.orders.bob", 0, "v1")
	second := mustAppend(t, l, "user.orders.ann", first, "v2")
	if first != 1 || other != 2 || second != 3 {
		t.Errorf("versions %d, %d, %d", first, other, second)
	}
	for _, expect := range []uint64{0, first, other, second + 1} {
		if _, err := l.Append(ctx, "user.orders.ann", expect, []byte("late")); !errors.Is(err, ErrConflict) || errors.Is(err, ErrUnknown) {
			t.Errorf("after event %d: %v", expect, err)
		}
	}
	removed := mustAppend(t, l, "user.orders.ann", second, "")
	if _, err := l.Append(ctx, "user.orders.ann", 0, []byte("again")); !errors.Is(err, ErrConflict) {
		t.Errorf("anew after a removal: %v", err)
	}
	mustAppend(t, l, "user.orders.ann", removed, "again")
	if all := events(t, l); len(all) != 5 || all[3].Seq != removed || len(all[3].Data) != 0 || all[4].Subject != "user.orders.ann" {
		t.Errorf("the ledger holds %v", all)
	}
}

func TestAppendRefusesSubjects(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	for _, subject := range []string{"", ".", "a.", ".a", "a..b", "*", "a.>", "a b", "a\n", "a\t.b"} {
		if _, err := l.Append(within(t, 10*time.Second), subject, 0, []byte("x")); err == nil {
			t.Errorf("%q was accepted", subject)
		}
	}
	if all := events(t, l); len(all) != 0 {
		t.Errorf("the ledger holds %v", all)
	}
}

func TestAppendTooLarge(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	_, err := l.Append(within(t, 10*time.Second), "a", 0, make([]byte, 2<<20))
	if !errors.Is(err, nats.ErrMaxPayload) || errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
}

func TestAppendOneWinner(t *testing.T) {
	s := startServer(t, server.Options{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	won := make(map[string]int) // by version
	for range 6 {
		l := open(t, s.ClientURL(), Options{})
		wg.Go(func() {
			var version uint64
			for range 20 {
				next, err := l.Append(within(t, 20*time.Second), "one", version, []byte("x"))
				switch {
				case err == nil:
					mu.Lock()
					won[fmt.Sprintf("after %d", version)]++
					mu.Unlock()
					version = next
				case errors.Is(err, ErrConflict):
					all := events(t, l)
					version = all[len(all)-1].Seq
				default:
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for version, n := range won {
		if n != 1 {
			t.Errorf("%s: %d winners", version, n)
		}
	}
}

// The event is stored, its acknowledgement lost, and then another event follows.
func TestAppendAcknowledgementLost(t *testing.T) {
	for _, overtaken := range []bool{false, true} {
		t.Run(fmt.Sprintf("overtaken=%v", overtaken), func(t *testing.T) {
			s := startServer(t, server.Options{})
			p := startProxy(t, s)
			far, near := open(t, p.url(), Options{}), open(t, s.ClientURL(), Options{})
			f := follow(t, near, FollowOptions{})
			defer f.stop()
			ctx := within(t, 30*time.Second)
			before := mustAppend(t, far, "a", 0, "v1")

			p.mute()
			type outcome struct {
				version uint64
				err     error
			}
			done := make(chan outcome, 1)
			go func() {
				version, err := far.Append(ctx, "a", before, []byte("v2"))
				done <- outcome{version, err}
			}()
			if err := f.Wait(ctx, before+1); err != nil {
				t.Fatal(err)
			}
			want := 2
			if overtaken {
				mustAppend(t, near, "a", before+1, "v3")
				want = 3
			}
			p.cut()

			if got := <-done; got.err != nil || got.version != before+1 {
				t.Errorf("got version %d, %v", got.version, got.err)
			}
			if all := events(t, near); len(all) != want {
				t.Errorf("the ledger holds %v", all)
			}
		})
	}
}

// The event never arrives, and somebody else is faster.
func TestAppendRequestLost(t *testing.T) {
	s := startServer(t, server.Options{})
	p := startProxy(t, s)
	far, near := open(t, p.url(), Options{}), open(t, s.ClientURL(), Options{})
	p.deaf()
	sent := far.js.Conn().Stats().OutMsgs
	done := make(chan error, 1)
	go func() {
		_, err := far.Append(within(t, 30*time.Second), "a", 0, []byte("mine"))
		done <- err
	}()
	if !await.True(10*time.Second, func() bool { return far.js.Conn().Stats().OutMsgs > sent }) {
		t.Fatal("nothing was sent")
	}
	mustAppend(t, near, "a", 0, "theirs")
	p.cut()
	if err := <-done; !errors.Is(err, ErrConflict) || errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if all := events(t, near); len(all) != 1 || string(all[0].Data) != "theirs" {
		t.Errorf("the ledger holds %v", all)
	}
}

func TestAppendServerAway(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Append(ended, "a", 0, []byte("x")); !errors.Is(err, context.Canceled) || errors.Is(err, ErrUnknown) {
		t.Errorf("with an ended context: %v", err)
	}
	stopServer(s)
	_, err := l.Append(within(t, 300*time.Millisecond), "a", 0, []byte("x"))
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnknown) || !strings.Contains(err.Error(), "outcome unknown") {
		t.Errorf("with the server away: %v", err)
	}
	l.js.Conn().Close()
	if _, err := l.Append(within(t, 10*time.Second), "a", 0, []byte("x")); !errors.Is(err, nats.ErrConnectionClosed) {
		t.Errorf("with the connection closed: %v", err)
	}
}

func TestOpen(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{Stream: "CERTS", Prefix: "cert", Duplicates: time.Minute})
	mustAppend(t, l, "a", 0, "x")
	made := l.stream.CachedInfo().Config
	if !made.DenyDelete || !made.DenyPurge || made.AllowDirect || made.Storage != jetstream.FileStorage ||
		made.Retention != jetstream.LimitsPolicy || made.Duplicates != time.Minute || made.Replicas != 1 {
		t.Errorf("made %+v", made)
	}
	ctx := within(t, 20*time.Second)
	if err := l.stream.Purge(ctx); err == nil {
		t.Error("the ledger could be purged")
	}
	if err := l.stream.DeleteMsg(ctx, 1); err == nil {
		t.Error("an event could be deleted")
	}

	again := open(t, s.ClientURL(), Options{Stream: "CERTS", Prefix: "cert", Duplicates: 3 * time.Minute, Replicas: 3})
	if kept := again.stream.CachedInfo().Config; kept.Duplicates != time.Minute || kept.Replicas != 1 {
		t.Errorf("an existing stream was changed: %+v", kept)
	}
	if _, err := Open(ctx, l.js, Options{Stream: "CERTS", Prefix: "user"}); err == nil || !strings.Contains(err.Error(), "cert.>") {
		t.Errorf("with another prefix: %v", err)
	}
	if _, err := Open(ctx, l.js, Options{Stream: "OTHER", Prefix: "cert"}); err == nil || ctx.Err() != nil {
		t.Errorf("over another stream's subjects: %v", err)
	}
	if _, err := Open(ctx, l.js, Options{Stream: "a.b"}); !errors.Is(err, jetstream.ErrInvalidStreamName) {
		t.Errorf("with an impossible name: %v", err)
	}
	if err := l.SetReplicas(ctx, 1); err != nil {
		t.Error(err)
	}
	if err := l.SetReplicas(ctx, 3); err == nil || ctx.Err() != nil {
		t.Errorf("three replicas on one server: %v", err)
	}

	stopServer(s)
	if _, err := Open(within(t, 100*time.Millisecond), l.js, Options{}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with the server away: %v", err)
	}
}

// startCluster starts three servers that keep streams together. restart starts
// one of them again where it was.
func startCluster(t *testing.T) (servers []*server.Server, restart func(int)) {
	t.Helper()
	var options []server.Options
	var routes []*url.URL
	for i := range 3 {
		port := loopback.Port(t)
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", port)})
		options = append(options, server.Options{
			ServerName: fmt.Sprintf("n%d", i),
			StoreDir:   t.TempDir(),
			Cluster:    server.ClusterOpts{Name: "fleet", Host: "127.0.0.1", Port: port},
		})
	}
	for i := range options {
		options[i].Routes = routes
		options[i].Port = loopback.Port(t)
		servers = append(servers, startServer(t, options[i]))
	}
	return servers, func(i int) { servers[i] = startServer(t, options[i]) }
}

func TestCluster(t *testing.T) {
	if testing.Short() {
		t.Skip("elections take seconds")
	}
	servers, restart := startCluster(t)
	urls := make([]string, len(servers))
	for i, s := range servers {
		urls[i] = s.ClientURL()
	}
	everywhere := strings.Join(urls, ",")
	l := open(t, everywhere, Options{})
	ctx := within(t, 120*time.Second)
	if err := l.SetReplicas(ctx, 3); err != nil {
		t.Fatal(err)
	}
	current := func() bool { // all three hold everything
		info, err := l.stream.Info(ctx)
		if err != nil || info.Cluster.Leader == "" || len(info.Cluster.Replicas) != 2 {
			return false
		}
		for _, peer := range info.Cluster.Replicas {
			if !peer.Current {
				return false
			}
		}
		return true
	}
	if !await.True(60*time.Second, current) {
		t.Fatal("three replicas were not current in 60 s")
	}

	h := newHistory()
	f := follow(t, l, FollowOptions{OnEvent: h.observe})
	defer f.stop()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for client := range 3 {
		l := open(t, everywhere, Options{})
		wg.Go(func() {
			for pace := time.NewTicker(5 * time.Millisecond); ; {
				select {
				case <-stop:
					pace.Stop()
					return
				case <-pace.C:
					h.append(ctx, l, client, time.Second)
				}
			}
		})
	}
	enough := func(n uint64) {
		t.Helper()
		if err := f.Wait(ctx, f.position()+n); err != nil {
			t.Error(err)
		}
	}
	enough(50)
	leader := 0
	for i, s := range servers {
		if info, err := l.stream.Info(ctx); err == nil && info.Cluster.Leader == s.Name() {
			leader = i
		}
	}
	stopServer(servers[leader])
	enough(50)
	restart(leader)
	enough(50)
	if !await.True(60*time.Second, current) {
		t.Error("the replicas were not current again in 60 s")
	}
	close(stop)
	wg.Wait()
	h.check(t, l, f)
}

// The ledger's clock is that of its events.
func TestNow(t *testing.T) {
	s := startServer(t, server.Options{})
	l := open(t, s.ClientURL(), Options{})
	before := time.Now()
	now, err := l.Now(within(t, 20*time.Second))
	if err != nil || now.Before(before.Add(-time.Second)) || now.After(time.Now().Add(time.Second)) {
		t.Errorf("it is %v: %v", now, err)
	}
	stopServer(s)
	if now, err := l.Now(within(t, 200*time.Millisecond)); err == nil {
		t.Errorf("without a server it is %v", now)
	}
}

// One node keeps a ledger that is for three, if one will do.
func TestOpenOnFewerNodes(t *testing.T) {
	s := startServer(t, server.Options{})
	js := open(t, s.ClientURL(), Options{}).js
	if _, err := Open(within(t, 20*time.Second), js, Options{Stream: "A", Prefix: "a", Replicas: 3}); !isFinal(err) {
		t.Errorf("on three nodes of one: %v", err)
	}
	l := open(t, s.ClientURL(), Options{Stream: "A", Prefix: "a", Replicas: 3, OrOne: true})
	if n := l.stream.CachedInfo().Config.Replicas; n != 1 {
		t.Errorf("it has %d copies", n)
	}
	mustAppend(t, l, "x", 0, "y")
}
