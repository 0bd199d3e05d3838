package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const patience = 30 * time.Second

func startServer(t *testing.T) *server.Server {
	t.Helper()
	s, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, JetStream: true, StoreDir: t.TempDir(), NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server is not ready")
	}
	return s
}

func open(t *testing.T, s *server.Server, ttl time.Duration) (*Leases, *nats.Conn) {
	t.Helper()
	nc, err := nats.Connect(s.ClientURL(), nats.MaxReconnects(-1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(nc.Close)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Open(within(t), js, Options{TTL: ttl})
	if err != nil {
		t.Fatal(err)
	}
	return l, nc
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// TestOneHolds has many hold a lease in turn, and never two at once.
func TestOneHolds(t *testing.T) {
	s := startServer(t)
	var holders, turns atomic.Int32
	var all sync.WaitGroup
	for i := range 4 {
		l, _ := open(t, s, 2*time.Second)
		all.Go(func() {
			err := l.Hold(within(t), "source.acme.orders", fmt.Sprint("n", i), func() any { return i }, func(ctx context.Context) error {
				if n := holders.Add(1); n != 1 {
					t.Errorf("%d hold it", n)
				}
				r, err := l.Look(ctx, "source.acme.orders")
				if err != nil || r.Holder != fmt.Sprint("n", i) || string(r.Note) != fmt.Sprint(i) || r.Since.IsZero() || r.Written.IsZero() {
					t.Errorf("n%d sees %+v: %v", i, r, err)
				}
				turns.Add(1)
				holders.Add(-1)
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if turns.Load() != 4 {
		t.Errorf("%d had it", turns.Load())
	}
}

// TestHolderGone has the next one take over from a holder that was cut off, which
// learns that it was.
func TestHolderGone(t *testing.T) {
	s := startServer(t)
	first, nc := open(t, s, 2*time.Second)
	second, _ := open(t, s, 2*time.Second)
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- first.Hold(within(t), "job", "first", nil, func(ctx context.Context) error {
			close(began)
			<-ctx.Done()
			return context.Cause(ctx)
		})
	}()
	<-began
	nc.Close()
	err := second.Hold(within(t), "job", "second", nil, func(ctx context.Context) error {
		r, err := second.Look(ctx, "job")
		if r.Holder != "second" {
			t.Errorf("%+v holds it", r)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if err := <-ended; !errors.Is(err, ErrLost) {
		t.Errorf("the first ended with %v", err)
	}
}

func TestHoldKeepsOn(t *testing.T) {
	s := startServer(t)
	first, _ := open(t, s, time.Second)
	second, _ := open(t, s, time.Second)
	ctx, stop := context.WithCancel(within(t))
	defer stop()
	began, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- first.Hold(ctx, "job", "first", nil, func(ctx context.Context) error {
			close(began)
			<-ctx.Done()
			return nil
		})
	}()
	<-began
	// Three lives of the lease.
	wait, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	if err := second.Hold(wait, "job", "second", nil, func(context.Context) error { return errors.New("had it") }); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("the second: %v", err)
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	failed := errors.New("failed")
	if err := second.Hold(within(t), "job", "second", nil, func(context.Context) error { return failed }); !errors.Is(err, failed) {
		t.Errorf("the second: %v", err)
	}
	for {
		if _, err := second.Look(within(t), "job"); errors.Is(err, ErrFree) {
			return
		} else if err != nil {
			t.Fatal(err)
		}
	}
}

// TestNeverExpires has a lease be taken that its holder does not renew, and the engine keeps;
// not one that is renewed.
func TestNeverExpires(t *testing.T) {
	s := startServer(t)
	l, nc := open(t, s, time.Second)
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	renew := func() {
		if _, err := js.Publish(within(t), "lease.job", []byte("{}")); err != nil {
			t.Error(err)
		}
	}
	renew()
	var over atomic.Bool
	var renewing sync.WaitGroup
	defer renewing.Wait()
	renewing.Go(func() {
		tick := time.NewTicker(time.Second / 2)
		defer tick.Stop()
		for range 8 {
			<-tick.C
			renew()
		}
		over.Store(true)
	})
	if err := l.Hold(within(t), "job", "next", nil, func(context.Context) error {
		if !over.Load() {
			t.Error("it was taken from who renews it")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

// TestHolds has a holder that was cut off know that its time is over, at any moment.
func TestHolds(t *testing.T) {
	s := startServer(t)
	l, nc := open(t, s, time.Second)
	err := l.Hold(within(t), "job", "one", nil, func(ctx context.Context) error {
		holds := Holds(ctx)
		if !holds() {
			t.Error("it does not hold it")
		}
		nc.Close()
		for holds() {
			if err := sleep(t.Context(), time.Millisecond); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if Holds(t.Context())() || Left(t.Context())() != 0 {
		t.Error("whoever did not ask for it holds it")
	}
	l, _ = open(t, s, 10*time.Second)
	var left func() time.Duration
	err = l.Hold(within(t), "another", "one", nil, func(ctx context.Context) error {
		left = Left(ctx)
		return nil
	})
	if err != nil || left() > time.Second {
		t.Errorf("%v is left of a lease that was given back, %v", left(), err)
	}
}

// TestSilence has who waits for a lease learn that the engine does not answer.
func TestSilence(t *testing.T) {
	s := startServer(t)
	l, _ := open(t, s, time.Second)
	s.Shutdown()
	ctx := within(t)
	if err := l.Hold(ctx, "job", "one", nil, func(context.Context) error { return nil }); err == nil || ctx.Err() != nil {
		t.Errorf("it ended with %v", err)
	}
}

// TestOpenAsksAgain opens leases on an engine that does not answer the first question, as one
// that has no leader.
func TestOpenAsksAgain(t *testing.T) {
	s := startServer(t)
	_, nc := open(t, s, time.Second) // makes the stream
	deaf, err := server.NewServer(&server.Options{Host: "127.0.0.1", Port: server.RANDOM_PORT, NoLog: true, NoSigs: true})
	if err != nil {
		t.Fatal(err)
	}
	deaf.Start()
	t.Cleanup(func() { deaf.Shutdown(); deaf.WaitForShutdown() })
	front, err := nats.Connect(deaf.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(front.Close)
	var asked atomic.Int32
	if _, err := front.Subscribe("$JS.API.>", func(m *nats.Msg) {
		if asked.Add(1) == 1 {
			return
		}
		if answer, err := nc.Request(m.Subject, m.Data, patience); err == nil {
			_ = m.Respond(answer.Data)
		}
	}); err != nil {
		t.Fatal(err)
	}
	if err := front.Flush(); err != nil {
		t.Fatal(err)
	}
	client, err := nats.Connect(deaf.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	js, err := jetstream.New(client)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(within(t), js, Options{}); err != nil {
		t.Errorf("after %d questions: %v", asked.Load(), err)
	}
}
