// Package changetest is for the tests of sources of change: a bus to announce on,
// and a watcher that knows whether each change was told of.
package changetest

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"

	"github.com/fleetbus/fleetbus/change"
)

// Patience is how long a slow machine may need for anything.
const Patience = 90 * time.Second

// Bus is an engine of its own, and what was said on it.
type Bus struct {
	t   testing.TB
	url string

	mu   sync.Mutex
	said bytes.Buffer // every subject, header and payload
}

// Start starts a Bus, which ends with the test.
func Start(t testing.TB) *Bus {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(Patience) {
		t.Fatal("the engine is not ready")
	}
	b := &Bus{t: t, url: s.ClientURL()}
	_, err = b.Connect().Subscribe(">", func(m *nats.Msg) {
		b.mu.Lock()
		defer b.mu.Unlock()
		fmt.Fprintln(&b.said, m.Subject, m.Header)
		b.said.Write(m.Data)
		b.said.WriteByte('\n')
	})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Connect opens a connection, which ends with the test.
func (b *Bus) Connect() *nats.Conn {
	b.t.Helper()
	nc, err := nats.Connect(b.url, nats.MaxReconnects(-1), nats.ReconnectWait(10*time.Millisecond), nats.ErrorHandler(func(*nats.Conn, *nats.Subscription, error) {}))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(nc.Close)
	return nc
}

// Silent fails the test if one of secrets was said.
func (b *Bus) Silent(secrets ...string) {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, secret := range secrets {
		if bytes.Contains(b.said.Bytes(), []byte(secret)) {
			b.t.Errorf("%q was said on the bus", secret)
		}
	}
}

// A Running is a source that runs until it is stopped, again and again if it
// fails.
type Running struct {
	t         testing.TB
	Publisher *change.Publisher
	cancel    context.CancelFunc
	done      chan struct{}

	mu   sync.Mutex
	errs []error
}

// Run runs s as source "db".
func (b *Bus) Run(s change.Source) *Running {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.Context())
	p, err := change.NewPublisher(ctx, b.Connect(), "db", change.PublisherOptions{Widen: true})
	if err != nil {
		b.t.Fatal(err)
	}
	r := &Running{t: b.t, Publisher: p, cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(r.done)
		for {
			err := s.Run(ctx, p)
			if ctx.Err() != nil {
				return
			}
			r.mu.Lock()
			r.errs = append(r.errs, err)
			r.mu.Unlock()
			select {
			case <-ctx.Done():
				return
			case <-time.After(50 * time.Millisecond):
			}
		}
	}()
	b.t.Cleanup(r.Stop)
	return r
}

// Errors are those of the runs that ended before they were stopped.
func (r *Running) Errors() []error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.errs)
}

// Stop ends the source, and waits for it.
func (r *Running) Stop() {
	r.cancel()
	<-r.done
	r.Publisher.Close()
}

// A Watch remembers what it was told of.
type Watch struct {
	t testing.TB
	w *change.Watcher

	mu      sync.Mutex
	notices []change.Notice
}

// Watch watches pattern of source "db".
func (b *Bus) Watch(pattern string) *Watch {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), Patience)
	defer cancel()
	w, err := change.NewWatcher(ctx, b.Connect(), "db", pattern, change.WatcherOptions{Jitter: -1, Reconcile: time.Second})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(w.Close)
	watch := &Watch{t: b.t, w: w}
	go func() {
		for {
			n, err := w.Next(b.t.Context())
			if err != nil {
				return
			}
			watch.mu.Lock()
			watch.notices = append(watch.notices, n)
			watch.mu.Unlock()
		}
	}()
	watch.Await("its first resync", func(n change.Notice) bool { return n.Reason == change.Started })
	watch.Forget()
	return watch
}

// Forget forgets what it was told of, so that Await waits for news.
func (w *Watch) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.notices = nil
}

// Notices are those that it was told of.
func (w *Watch) Notices() []change.Notice {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Clone(w.notices)
}

// Await waits for a notice, and returns it.
func (w *Watch) Await(what string, wanted func(change.Notice) bool) change.Notice {
	w.t.Helper()
	deadline := time.After(Patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		for _, n := range w.Notices() {
			if wanted(n) {
				return n
			}
		}
		select {
		case <-tick.C:
		case <-deadline:
			var told []string
			for _, n := range w.Notices() {
				told = append(told, fmt.Sprintf("%s %s", n.Kind, n.Key))
			}
			w.t.Fatalf("not told of %s, only of %s", what, strings.Join(told, ", "))
		}
	}
}

// Key waits for a notice of that kind and key.
func (w *Watch) Key(kind change.Kind, key ...string) change.Notice {
	w.t.Helper()
	text := change.Key(key).String()
	return w.Await(string(kind)+" of "+text, func(n change.Notice) bool { return n.Kind == kind && n.Key.String() == text })
}

// Covered waits until every key was told of, by itself or by a resync.
func (w *Watch) Covered(keys ...change.Key) {
	w.t.Helper()
	missing := map[string]change.Key{}
	for _, key := range keys {
		missing[key.String()] = key
	}
	w.Await(fmt.Sprintf("each of %d keys", len(keys)), func(change.Notice) bool {
		for _, n := range w.Notices() {
			maps.DeleteFunc(missing, func(text string, key change.Key) bool {
				return n.Key.String() == text || n.Kind == change.Resync && len(n.Key) <= len(key) && slices.Equal(n.Key, key[:len(n.Key)])
			})
		}
		return len(missing) == 0
	})
}
